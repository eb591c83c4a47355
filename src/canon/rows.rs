//! A Linear on the rows of a flattened batch is the Linear on the batch: simplifiers write `Reshape`, `Gemm`, `Reshape`, because
//! a `Gemm` takes matrices.

use crate::ir::shape::DimExpr;
use crate::ir::{Edit, NewOp, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, any_of, konst, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let rows = op("Reshape", [var("x"), konst("rows")]).named("flat");
    let product = op("MatMul", [rows, konst("w")]);
    let linear = any_of([op("Add", [product.clone(), konst("bias")]), product]);
    vec![Rule::new("linear-on-rows", "", op("Reshape", [linear, konst("shape")]), check, build)]
}

/// How the Linear on the batch is shaped.
struct Shaped {
    /// What `x` must be reshaped to before; none when its last axis is the row.
    before: Option<Vec<i64>>,
    /// What the rows are reshaped to after; none when the last Reshape only gave back the leading axes.
    after: Option<Vec<i64>>,
}

fn check(facts: Facts<'_>, m: &Match) -> Result<Shaped, String> {
    let shape = |v: Value| facts.shapes.shape(v).ok_or("a known shape expected");
    let (x, flat, y) = (shape(m.value("x"))?, shape(m.value("flat"))?, shape(m.root())?);
    let weights = facts.graph.constant(m.value("w")).map(|t| t.shape.clone()).unwrap_or_default();
    let [rows_in, rows_out] = weights[..] else { return Err("weights [in, out] expected".to_owned()) };
    let size = |n: usize| i64::try_from(n).unwrap_or(-1);
    // One element would be spread over the rows.
    if flat.len() != 2 || m.get("bias").and_then(|b| facts.graph.constant(b)).is_some_and(|b| b.shape != [rows_out]) {
        return Err("rows and a bias [out] expected".to_owned());
    }
    let sizes = |axes: &[DimExpr]| axes.iter().map(DimExpr::as_const).collect::<Option<Vec<i64>>>();
    let makes = |axes: Option<&[DimExpr]>, n: usize| {
        axes.and_then(sizes).filter(|v| !v.is_empty() && v.iter().product::<i64>() == size(n))
    };
    // The axes that lead before and after; what follows is one row.
    let found = (1..x.len()).rev().find_map(|k| {
        let rest = makes(y.get(k..), rows_out).filter(|_| x.get(..k) == y.get(..k))?;
        makes(x.get(k..), rows_in).map(|row| (k, row, rest))
    });
    let (k, row, rest) = found.ok_or("the rows to be the leading axes of what is flattened, before and after, expected")?;
    let target = |sizes: Vec<i64>| vec![0; k].into_iter().chain(sizes).collect::<Vec<i64>>();
    Ok(Shaped { before: (row.len() != 1).then(|| target(vec![size(rows_in)])), after: (rest.len() != 1).then(|| target(rest)) })
}

fn build(edit: &mut Edit<'_>, m: &Match, shaped: Shaped) -> Value {
    let at = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let reshape = |edit: &mut Edit<'_>, name: &str, x: Value, target: Option<Vec<i64>>| match target {
        None => x,
        Some(target) => {
            let shape = edit.add_init(at, &format!("{name}_shape"), Tensor::vector(&target));
            edit.add(at, NewOp::std("Reshape", name).inputs([x, shape]))
        }
    };
    let x = reshape(edit, &format!("{name}_in"), m.value("x"), shaped.before);
    let stem = if shaped.after.is_some() { format!("{name}_rows") } else { name.clone() };
    let mut y = edit.add(at, NewOp::std("MatMul", &format!("{stem}_matmul")).inputs([x, m.value("w")]));
    if let Some(bias) = m.get("bias") {
        y = edit.add(at, NewOp::std("Add", &stem).inputs([y, bias]));
    }
    reshape(edit, &name, y, shaped.after)
}
