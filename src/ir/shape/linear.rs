//! Products of matrices.

use std::collections::BTreeMap;

use super::ctx::{Ctx, Known, known, one, unify, wrong};
use super::elementwise::broadcast_two;
use super::{DimExpr, Shape};

/// `MatMul` and `MatMulInteger`: inputs 0 and 1.
pub(super) fn matmul(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(product_shape(c, c.shape(0)?, c.shape(1)?)?)
}

/// `QLinearMatMul`: inputs 0 and 3.
pub(super) fn qlinear_matmul(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(product_shape(c, c.shape(0)?, c.shape(3)?)?)
}

fn product_shape(c: &Ctx, a: &[DimExpr], b: &[DimExpr]) -> Known<Shape> {
    let (Some((a_inner, a_rest)), false) = (a.split_last(), b.is_empty()) else {
        return wrong("a matrix product of a scalar");
    };
    let (b_inner, b_columns, b_batch) = match b {
        [k] => (k, None, &b[..0]),
        [batch @ .., k, n] => (k, Some(n.clone()), batch),
        [] => return wrong("a matrix product of a scalar"),
    };
    if let (Some(p), Some(q)) = (a_inner.as_const(), b_inner.as_const())
        && p != q
    {
        return wrong(format!("the inner sizes {p} and {q} of a matrix product differ"));
    }
    let (a_rows, a_batch) = match a_rest.split_last() {
        Some((m, batch)) => (Some(m.clone()), batch),
        None => (None, a_rest),
    };
    let mut shape = broadcast_two(c, a_batch, b_batch)?;
    shape.extend(a_rows);
    shape.extend(b_columns);
    Ok(shape)
}

/// `FusedMatMul` of onnxruntime, whose operands may be transposed.
pub(super) fn fused_matmul(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let side = |i: usize, attr: &str| -> Known<Shape> {
        let mut shape = c.shape(i)?.to_vec();
        if let (true, [.., r, k]) = (c.int(attr, 0) != 0, &mut shape[..]) {
            std::mem::swap(r, k);
        }
        Ok(shape)
    };
    let batches = |name| c.int(name, 0) != 0;
    if batches("transBatchA") || batches("transBatchB") {
        return known(None);
    }
    one(product_shape(c, &side(0, "transA")?, &side(1, "transB")?)?)
}

/// `Attention` of onnxruntime: `[batch, tokens, in]` and weights `[in, q + k + v]`.
pub(super) fn packed_attention(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let ([b, s, _], [_, joint]) = (c.shape(0)?, c.shape(1)?) else { return known(None) };
    let width = match c.op.attrs.ints("qkv_hidden_sizes") {
        Some([_, _, v]) => Some((*v).into()),
        _ => joint.div_exact(&3.into()),
    };
    Ok(outputs(c, vec![b.clone(), s.clone(), known(width)?]))
}

/// `MultiHeadAttention` of onnxruntime on `[batch, tokens, heads · size]`; keys and values may be split into heads.
pub(super) fn multi_head_attention(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let ([b, s, _], v) = (c.shape(0)?, c.shape(2)?) else { return known(None) };
    let width = match v {
        [_, _, width] => Some(width.clone()),
        [_, heads, _, size] => heads.as_const().and_then(|h| size.times(h)),
        _ => None,
    };
    Ok(outputs(c, vec![b.clone(), s.clone(), known(width)?]))
}

/// The shape of the first output; of the others nothing is known.
fn outputs(c: &Ctx, first: Shape) -> Vec<Option<Shape>> {
    let mut shapes = vec![None; c.outputs.max(1)];
    shapes[0] = Some(first);
    shapes
}

/// `Gemm`.
pub(super) fn gemm(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let side = |i: usize, attr: &str, outer: usize| -> Known<DimExpr> {
        let transposed = c.int(attr, 0) != 0;
        match c.shape(i)? {
            [r, k] => Ok(if (outer == 0) == transposed { k.clone() } else { r.clone() }),
            other => wrong(format!("Gemm takes matrices and input {i} has rank {}", other.len())),
        }
    };
    one(vec![side(0, "transA", 0)?, side(1, "transB", 1)?])
}

/// `Einsum` without an ellipsis.
pub(super) fn einsum(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let equation: String = known(c.op.attrs.str("equation"))?.chars().filter(|ch| !ch.is_whitespace()).collect();
    if equation.contains('.') {
        return known(None);
    }
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_owned(), Some(r.to_owned())),
        None => (equation, None),
    };
    let mut sizes: BTreeMap<char, (DimExpr, usize)> = BTreeMap::new();
    for (i, term) in left.split(',').enumerate() {
        let shape = c.shape(i)?;
        if shape.len() != term.chars().count() {
            return wrong(format!("Einsum term '{term}' does not fit rank {}", shape.len()));
        }
        for (letter, d) in term.chars().zip(shape) {
            let slot = sizes.entry(letter).or_insert_with(|| (d.clone(), 0));
            // A size of 1 broadcasts.
            slot.0 = if slot.0.as_const() == Some(1) { d.clone() } else { unify(&slot.0, d) };
            slot.1 += 1;
        }
    }
    let out = right.unwrap_or_else(|| sizes.iter().filter(|(_, (_, n))| *n == 1).map(|(l, _)| *l).collect());
    one(out.chars().map(|l| known(sizes.get(&l).map(|s| s.0.clone()))).collect::<Known<_>>()?)
}

/// `Attention` of operator set 23: rank 4 (batch, heads, tokens, size) or rank 3 with the heads inside the last axis.
pub(super) fn attention(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let (q, v) = (c.shape(0)?, c.shape(2)?);
    let out = match (q, v) {
        ([b, h, s, _], [.., d]) => vec![b.clone(), h.clone(), s.clone(), d.clone()],
        ([b, s, _], [.., d]) => {
            let (heads, kv) = (known(c.op.attrs.int("q_num_heads"))?, known(c.op.attrs.int("kv_num_heads"))?);
            let size = d.times(heads).and_then(|n| n.div_exact(&kv.into()));
            vec![b.clone(), s.clone(), c.or_anon(size, 0, 2)]
        }
        _ => return wrong("Attention takes inputs of rank 3 or 4"),
    };
    one(out)
}
