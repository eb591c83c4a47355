//! The last axis is −1: exporters count it from either end.

use crate::ir::{AttrValue, NewOp};
use crate::pattern::{Facts, Match, Rule, any_of, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let over_an_axis = any_of(["LayerNormalization", "RMSNormalization", "Softmax"].map(|name| op(name, [var("x")]).form(name)));
    vec![Rule::new("last-axis", "", over_an_axis, check, |edit, m, ()| {
        let (root, name) = (m.root(), edit.value_name(m.root()).to_owned());
        let Some(op) = edit.op(root.node).cloned() else { return root };
        let inputs = edit.inputs_of(root.node).into_iter().flatten();
        let new = NewOp::std(&op.op.op_type, &name).inputs(inputs).attrs(op.attrs).attr("axis", AttrValue::Int(-1));
        edit.add(root.node, new)
    })]
}

fn check(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let axis = facts.graph.op(m.root().node).and_then(|op| op.attrs.int("axis")).unwrap_or(-1);
    match facts.rank(m.get("x")) {
        Some(rank) if axis >= 0 && axis + 1 == rank as i64 => Ok(()),
        rank => Err(format!("the last of {rank:?} axes, counted from the front, expected, found {axis}")),
    }
}
