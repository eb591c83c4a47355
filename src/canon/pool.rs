//! A mean over an image's rows and columns is a pool, which integer runtimes have.

use crate::ir::{NewOp, Value};
use crate::pattern::{Facts, Match, Rule, op, var};

pub(super) fn rules() -> Vec<Rule> {
    vec![Rule::new("mean-as-pool", "", op("ReduceMean", [var("x")]).form("ReduceMean"), check, |edit, m, ()| {
        let name = edit.value_name(m.root()).to_owned();
        edit.add(m.root().node, NewOp::std("GlobalAveragePool", &name).inputs([m.value("x")]))
    })]
}

/// Axes 2 and 3 of four, kept with size 1.
fn check(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let id = m.root().node;
    let op = facts.graph.op(id).ok_or("an operator expected")?;
    if op.attrs.int("keepdims").unwrap_or(1) != 1 {
        return Err("ReduceMean with keepdims = 1 expected".to_owned());
    }
    let axes = |v: Value| facts.graph.constant(v).and_then(|t| t.to_i64().ok());
    let axes = op.attrs.ints("axes").map(<[i64]>::to_vec).or_else(|| axes(facts.graph.input(id, 1)?)).unwrap_or_default();
    let mut axes: Vec<i64> = axes.into_iter().map(|a| if a < 0 { a + 4 } else { a }).collect();
    axes.sort_unstable();
    match facts.rank(Some(m.value("x"))) {
        Some(4) if axes == [2, 3] => Ok(()),
        rank => Err(format!("a mean over axes 2 and 3 of 4 expected, found {axes:?} of {rank:?}")),
    }
}
