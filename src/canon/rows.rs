//! A Linear on the rows of a flattened batch is the Linear on the batch: simplifiers write `Reshape`, `Gemm`, `Reshape`, because
//! a `Gemm` takes matrices.

use crate::ir::{Edit, NewOp, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, any_of, konst, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let rows = op("Reshape", [var("x"), konst("rows")]).named("flat");
    let product = op("MatMul", [rows, konst("w")]);
    let linear = any_of([op("Add", [product.clone(), konst("bias")]), product]);
    vec![Rule::new("linear-on-rows", "", op("Reshape", [linear, konst("shape")]), check, build)]
}

/// The sizes that the last Reshape makes of a row; none when it only gives back the leading axes.
fn check(facts: Facts<'_>, m: &Match) -> Result<Option<Vec<i64>>, String> {
    let shape = |name: &str| facts.shapes.shape(m.value(name)).ok_or_else(|| format!("a known shape of {name} expected"));
    let (x, flat) = (shape("x")?, shape("flat")?);
    let y = facts.shapes.shape(m.root()).ok_or("a known shape expected")?;
    let weights = facts.graph.constant(m.value("w")).map(|t| t.shape.clone()).unwrap_or_default();
    let [rows_in, rows_out] = weights[..] else { return Err("weights [in, out] expected".to_owned()) };
    let size = |n: usize| i64::try_from(n).unwrap_or(-1);
    let (Some((channels, lead)), [_, flat_channels]) = (x.split_last(), flat) else {
        return Err("rows of a value of two dimensions or more expected".to_owned());
    };
    if channels.as_const() != Some(size(rows_in)) || flat_channels != channels || y.get(..lead.len()) != Some(lead) {
        return Err("the rows to be the leading axes of what is flattened, before and after, expected".to_owned());
    }
    // One element would be spread over the rows.
    if m.get("bias").and_then(|b| facts.graph.constant(b)).is_some_and(|b| b.shape != [rows_out]) {
        return Err("a bias [out] expected".to_owned());
    }
    let rest: Vec<i64> = y.iter().skip(lead.len()).filter_map(crate::ir::shape::DimExpr::as_const).collect();
    if rest.len() + lead.len() != y.len() || rest.iter().product::<i64>() != size(rows_out) {
        return Err("known sizes of a row expected".to_owned());
    }
    Ok((rest.len() != 1).then(|| vec![0; lead.len()].into_iter().chain(rest).collect()))
}

fn build(edit: &mut Edit<'_>, m: &Match, target: Option<Vec<i64>>) -> Value {
    let at = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let stem = if target.is_some() { format!("{name}_rows") } else { name.clone() };
    let mut y = edit.add(at, NewOp::std("MatMul", &format!("{stem}_matmul")).inputs([m.value("x"), m.value("w")]));
    if let Some(bias) = m.get("bias") {
        y = edit.add(at, NewOp::std("Add", &stem).inputs([y, bias]));
    }
    match target {
        None => y,
        Some(target) => {
            let shape = edit.add_init(at, &format!("{name}_shape"), Tensor::vector(&target));
            edit.add(at, NewOp::std("Reshape", &name).inputs([y, shape]))
        }
    }
}
