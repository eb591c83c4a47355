//! An operand that is expanded to the other's shape: the operator broadcasts it anyway.

use crate::ir::{NewOp, Value};
use crate::pattern::{Facts, Match, Rule, any_of, commute, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let expanded = || op("Expand", [var("y"), var("shape")]).form("Expand").named("expanded");
    let elementwise = any_of([
        op("Div", [var("x"), expanded()]),
        op("Sub", [var("x"), expanded()]),
        commute("Mul", var("x"), expanded()),
        commute("Add", var("x"), expanded()),
    ]);
    vec![Rule::new("expand-is-broadcast", "", elementwise, check, |edit, m, ()| {
        let (root, name) = (m.root(), edit.value_name(m.root()).to_owned());
        let Some(op) = edit.op(root.node).cloned() else { return root };
        let shorter = |v: Value| if v == m.value("expanded") { m.value("y") } else { v };
        let inputs: Vec<Value> = edit.inputs_of(root.node).into_iter().flatten().map(shorter).collect();
        edit.add(root.node, NewOp::std(&op.op.op_type, &name).inputs(inputs))
    })]
}

/// The other operand has the result's shape already. A constant stays expanded: a class token is a stream of its own.
fn check(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    if m.value("x") == m.value("expanded") {
        return Err("another operand beside the expanded one expected".to_owned());
    }
    if facts.graph.constant(m.value("y")).is_some() {
        return Err("something computed expected, found a constant".to_owned());
    }
    let (x, result) = (facts.shapes.shape(m.value("x")), facts.shapes.shape(m.root()));
    if x.is_none() || x != result {
        return Err("an operand of the result's shape beside the expanded one expected".to_owned());
    }
    Ok(())
}
