//! Linear layers as `MatMul(x, W [in, out])`, then `Add(…, bias)`.

use super::weights;
use crate::ir::{Edit, NewOp, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, konst, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let bias_first = op("Add", [konst("b"), op("MatMul", [var("x"), var("w")]).named("product")]).form("bias + MatMul");
    vec![
        Rule::new("linear-from-gemm", "Gemm", op("Gemm", [var("x"), konst("w")]).form("Gemm"), check_gemm, build_gemm),
        Rule::new(
            "linear-bias-last",
            "",
            bias_first,
            |_, _| Ok(()),
            |edit, m, ()| {
                let name = edit.value_name(m.root()).to_owned();
                edit.add(m.root().node, NewOp::std("Add", &name).inputs([m.value("product"), m.value("b")]))
            },
        ),
    ]
}

type Gemm = (Tensor, Option<Tensor>);

fn check_gemm(facts: Facts<'_>, m: &Match) -> Result<Gemm, String> {
    let id = m.root().node;
    let op = facts.graph.op(id).ok_or("an operator expected")?;
    if op.attrs.int("transA").unwrap_or(0) != 0 {
        return Err("Gemm with transA = 0 expected".to_owned());
    }
    let w = facts.graph.constant(m.value("w")).ok_or("constant weights expected")?;
    let alpha = op.attrs.float("alpha").unwrap_or(1.0);
    let beta = op.attrs.float("beta").unwrap_or(1.0);
    let w = if op.attrs.int("transB").unwrap_or(0) != 0 { weights::transpose(w) } else { Ok(w.clone()) };
    let text = |e: crate::ir::TensorError| e.to_string();
    let mut w = w.map_err(text)?;
    if alpha != 1.0 {
        w = weights::scaled(&w, alpha).map_err(text)?;
    }
    let bias = match facts.graph.input(id, 2) {
        None => None,
        Some(v) => {
            let b = facts.graph.constant(v).ok_or("a constant bias expected")?;
            let b = if beta == 1.0 { b.clone() } else { weights::scaled(b, beta).map_err(text)? };
            // [1, out] and [out] broadcast alike over the rows.
            let width = w.shape.last().copied().unwrap_or(0);
            Some(if b.len() == width { b.reshaped(&[width]).map_err(text)? } else { b })
        }
    };
    Ok((w, bias))
}

fn build_gemm(edit: &mut Edit<'_>, m: &Match, (w, bias): Gemm) -> Value {
    let (root, anchor) = (m.root(), m.root().node);
    let name = edit.value_name(root).to_owned();
    let w_name = edit.value_name(m.value("w")).to_owned();
    let w = if edit.constant(m.value("w")) == Some(&w) { m.value("w") } else { edit.add_init(anchor, &format!("{w_name}.t"), w) };
    let product = edit.add(anchor, NewOp::std("MatMul", &format!("{name}_matmul")).inputs([m.value("x"), w]));
    match bias {
        None => product,
        Some(b) => {
            let old = edit.input(anchor, 2);
            let b = match old {
                Some(v) if edit.constant(v) == Some(&b) => v,
                _ => edit.add_init(anchor, &format!("{name}_bias"), b),
            };
            edit.add(anchor, NewOp::std("Add", &format!("{name}_bias")).inputs([product, b]))
        }
    }
}
