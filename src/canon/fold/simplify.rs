//! Operators that do nothing, and neighbours that are one operator.

use super::Round;
use super::shapes::constant_target;
use crate::ir::shape::DimExpr;
use crate::ir::{AttrValue, DType, NewOp, NodeId, Op, Value};

impl Round<'_, '_> {
    /// Removes the operator or joins it with its predecessor; whether it did.
    pub(super) fn simplify(&mut self, id: NodeId) -> bool {
        let (Some(op), Some(x)) = (self.graph().op(id), self.edit.input(id, 0)) else { return false };
        if op.op.canonical_domain() != crate::ir::AI_ONNX {
            return false;
        }
        let y = Value { node: id, port: 0 };
        if self.does_nothing(id, op, x, y) {
            let done = self.bypass(y, x);
            if done {
                self.count("operators without effect removed");
            }
            return done;
        }
        let done = match op.op.op_type.as_str() {
            "Transpose" => self.join_transposes(id, x, y),
            "Cast" => self.join_casts(id, x, y),
            "Reshape" => self.reshaped_transpose(id, x, y) || self.join_reshapes(id, x, y),
            _ => false,
        };
        if done {
            self.count("neighbours joined");
        }
        done
    }

    fn does_nothing(&self, id: NodeId, op: &Op, x: Value, y: Value) -> bool {
        let same_shape = || self.shapes.shape(x).is_some() && self.shapes.shape(x) == self.shapes.shape(y);
        let constant = |port: u32| self.edit.constant(self.edit.input(id, port)?)?.to_i64().ok();
        match op.op.op_type.as_str() {
            "Identity" => true,
            "Dropout" => self.is_inference_dropout(id, op),
            "Cast" => op.attrs.int("to").is_some_and(|to| self.shapes.dtype(x).is_some_and(|d| i64::from(d.to_onnx()) == to)),
            "Reshape" | "Flatten" | "Expand" | "Squeeze" | "Unsqueeze" => same_shape(),
            "Tile" => constant(1).is_some_and(|v| v.iter().all(|&n| n == 1)),
            "Transpose" => permutation(op, self.shapes.rank(x)).is_some_and(|p| p.iter().enumerate().all(|(i, &a)| i == a)),
            // The whole of every axis forwards: a step of −1 has the same shape.
            "Slice" => {
                same_shape() && (self.edit.input(id, 4).is_none() || constant(4).is_some_and(|v| v.iter().all(|&s| s > 0)))
            }
            "Concat" => op.arity == 1,
            "Split" => self.edit.get(id).is_some_and(|n| n.outputs.len() == 1) && same_shape(),
            "Pad" => match op.attrs.ints("pads") {
                Some(v) => v.iter().all(|&n| n == 0),
                None => constant(1).is_some_and(|v| v.iter().all(|&n| n == 0)),
            },
            _ => false,
        }
    }

    fn is_inference_dropout(&self, id: NodeId, op: &Op) -> bool {
        let mask_read = self.edit.use_count(Value { node: id, port: 1 }) > 0;
        let training = match self.edit.input(id, 2) {
            Some(v) => self.edit.constant(v).and_then(|t| t.to_i64().ok()).is_none_or(|v| v != [0]),
            None => self.opset < 7 && op.attrs.int("is_test").unwrap_or(0) == 0,
        };
        !mask_read && !training
    }

    /// `Transpose(Transpose(x))`.
    fn join_transposes(&mut self, id: NodeId, x: Value, y: Value) -> bool {
        let joined = || {
            let inner = self.graph().op(x.node).filter(|op| op.op.is("Transpose"))?;
            let source = self.edit.input(x.node, 0)?;
            let rank = self.shapes.rank(source);
            let (first, second) = (permutation(inner, rank)?, permutation(self.graph().op(id)?, rank)?);
            let perm: Vec<usize> = second.iter().map(|&i| first.get(i).copied()).collect::<Option<_>>()?;
            Some((source, perm))
        };
        let Some((source, perm)) = joined() else { return false };
        if perm.iter().enumerate().all(|(i, &a)| i == a) && self.bypass(y, source) {
            return true;
        }
        self.edit.set_input(id, 0, Some(source));
        self.edit.set_attr(id, "perm", ints(&perm));
        true
    }

    /// `Cast(Cast(x))`, where the inner one loses nothing.
    fn join_casts(&mut self, id: NodeId, x: Value, y: Value) -> bool {
        let joined = || {
            self.graph().op(x.node).filter(|op| op.op.is("Cast"))?;
            let source = self.edit.input(x.node, 0)?;
            let (from, middle) = (self.shapes.dtype(source)?, self.shapes.dtype(x)?);
            is_lossless(from, middle).then_some((source, from))
        };
        let Some((source, from)) = joined() else { return false };
        if self.shapes.dtype(y) == Some(from) && self.bypass(y, source) {
            return true;
        }
        self.edit.set_input(id, 0, Some(source));
        true
    }

    /// `Reshape(Reshape(x))`; an axis that the inner one adds is no more than that.
    fn join_reshapes(&mut self, id: NodeId, x: Value, y: Value) -> bool {
        let joined = || {
            self.graph().op(x.node).filter(|op| op.op.is("Reshape") || op.op.is("Unsqueeze"))?;
            self.edit.constant(self.edit.input(id, 1)?)?;
            let source = self.edit.input(x.node, 0)?;
            let target = constant_target(self.shapes.shape(source)?, self.shapes.shape(y)?)?;
            Some((source, target))
        };
        let Some((source, target)) = joined() else { return false };
        self.edit.set_input(id, 0, Some(source));
        self.set_target(id, &target);
        true
    }

    /// `Reshape(Transpose(Reshape(x)))` where the first merges leading axes, the second leaves them in front and the last
    /// splits them again: one `Transpose`. Exporters of scaled dot product attention write it for kᵀ.
    fn reshaped_transpose(&mut self, id: NodeId, x: Value, y: Value) -> bool {
        let joined = || {
            let middle = self.graph().op(x.node).filter(|op| op.op.is("Transpose"))?;
            let merged = self.edit.input(x.node, 0)?;
            self.graph().op(merged.node).filter(|op| op.op.is("Reshape"))?;
            let source = self.edit.input(merged.node, 0)?;
            let (before, inside, after) = (self.shapes.shape(source)?, self.shapes.shape(merged)?, self.shapes.shape(y)?);
            let perm = permutation(middle, Some(inside.len()))?;
            Some((source, lifted_permutation(before, inside, after, &perm)?))
        };
        let Some((source, perm)) = joined() else { return false };
        let name = self.graph().op(id).map(|op| op.name.clone()).unwrap_or_default();
        let new = self.edit.add(id, NewOp::std("Transpose", &name).input(source).attr("perm", ints(&perm)));
        self.edit.replace(y, new);
        true
    }
}

/// The permutation of all axes that equals merging the leading axes of `before` to the first of `inside`, permuting the rest
/// by `perm`, and splitting the first axis again to give `after`.
fn lifted_permutation(before: &[DimExpr], inside: &[DimExpr], after: &[DimExpr], perm: &[usize]) -> Option<Vec<usize>> {
    let lead = (before.len() + 1).checked_sub(inside.len())?;
    let rest = inside.get(1..)?;
    // A trailing size of 0 would leave the leading ones open.
    let fits = lead >= 2
        && before.get(lead..)? == rest
        && rest.iter().all(|d| d.at_least(1))
        && after.get(..lead)? == before.get(..lead)?;
    let (first, tail) = perm.split_first()?;
    if !fits || *first != 0 || after.len() != before.len() {
        return None;
    }
    let lifted: Vec<usize> = tail.iter().map(|&p| p + lead - 1).collect();
    let moved: Vec<&DimExpr> = lifted.iter().map(|&p| before.get(p)).collect::<Option<_>>()?;
    after.iter().skip(lead).eq(moved).then(|| (0..lead).chain(lifted).collect())
}

fn ints(perm: &[usize]) -> AttrValue {
    AttrValue::Ints(perm.iter().map(|&p| p as i64).collect())
}

/// The permutation of a `Transpose`; the default reverses the axes.
fn permutation(op: &Op, rank: Option<usize>) -> Option<Vec<usize>> {
    let perm: Vec<usize> = match op.attrs.ints("perm") {
        Some(v) => v.iter().map(|&p| usize::try_from(p).ok()).collect::<Option<_>>()?,
        None => (0..rank?).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    let valid = sorted.iter().enumerate().all(|(i, &p)| i == p) && rank.is_none_or(|r| r == perm.len());
    valid.then_some(perm)
}

/// Whether every value of one type is exactly a value of the other.
fn is_lossless(from: DType, to: DType) -> bool {
    use DType::*;
    let bits = |d: DType| match d {
        U8 => Some((0, 8)),
        U16 => Some((0, 16)),
        U32 => Some((0, 32)),
        U64 => Some((0, 64)),
        I8 => Some((1, 7)),
        I16 => Some((1, 15)),
        I32 => Some((1, 31)),
        I64 => Some((1, 63)),
        _ => None,
    };
    // Integers up to 2^n, and floats of fewer digits and smaller range.
    let float = |d: DType| match d {
        F16 => Some((11, 5)),
        BF16 => Some((8, 8)),
        F32 => Some((24, 8)),
        F64 => Some((53, 11)),
        _ => None,
    };
    if from == to || (from == Bool && (bits(to).is_some() || float(to).is_some())) {
        return true;
    }
    match (bits(from), bits(to), float(from), float(to)) {
        (Some((s, n)), Some((t, m)), ..) => s <= t && n <= m,
        (Some((_, n)), _, _, Some((digits, range))) => n <= digits && (range > 5 || n <= 15),
        (_, _, Some((d, r)), Some((e, q))) => d <= e && r <= q,
        _ => false,
    }
}
