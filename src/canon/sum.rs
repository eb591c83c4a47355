//! Sums: a sum over a stack is an addition, and a factor of a sum is one of its operands.

use crate::ir::{NewOp, Value};
use crate::pattern::{Facts, Match, Rule, any_of, commute, konst, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let row = |name, axis| op("Unsqueeze", [var(name), konst(axis)]);
    let stack = op("Concat", [row("a", "axis"), row("b", "axis2")]).named("stack");
    let linear = |x, w, bias, output| {
        let product = op("MatMul", [var(x), konst(w)]);
        any_of([op("Add", [product.clone(), konst(bias)]), product]).named(output)
    };
    let two_linears = op("Add", [linear("x", "w", "bias", "a"), linear("x2", "w2", "bias2", "b")]).named("sum");
    vec![
        Rule::new(
            "sum-of-stack",
            "",
            op("ReduceSum", [stack, konst("over")]).form("Concat, ReduceSum"),
            check_stack,
            |edit, m, ()| {
                let name = edit.value_name(m.root()).to_owned();
                edit.add(m.root().node, NewOp::std("Add", &name).inputs([m.value("a"), m.value("b")]))
            },
        ),
        Rule::new("scale-of-sum", "", commute("Mul", two_linears, konst("gamma")), check_scaled, |edit, m, ()| {
            let (at, name) = (m.root().node, edit.value_name(m.root()).to_owned());
            let mut scaled = |part: &str| -> Value {
                let new = NewOp::std("Mul", &format!("{name}_{part}"));
                edit.add(at, new.inputs([m.value(part), m.value("gamma")]))
            };
            let (a, b) = (scaled("a"), scaled("b"));
            edit.add(at, NewOp::std("Add", &name).inputs([a, b]))
        }),
    ]
}

/// Two tensors stacked on a new first axis, which the sum removes.
fn check_stack(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let g = facts.graph;
    let (sum, stack) = (m.root().node, m.value("stack").node);
    let axes = |name: &str| m.get(name).and_then(|v| g.constant(v)).and_then(|t| t.to_i64().ok());
    let attr = |id, name: &str, default| g.op(id).and_then(|o| o.attrs.int(name)).unwrap_or(default);
    let first = ["axis", "axis2", "over"].iter().all(|name| axes(name).as_deref() == Some(&[0]));
    if !first || attr(sum, "keepdims", 1) != 0 || attr(stack, "axis", 0) != 0 || g.inputs_of(stack).len() != 2 {
        return Err("the sum of two values over the axis that stacks them expected".to_owned());
    }
    Ok(())
}

/// A factor for each channel of two Linears whose sum nothing else reads: each can take it into its weights.
fn check_scaled(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let g = facts.graph;
    for name in ["sum", "a", "b"] {
        if g.use_count(m.value(name)) != 1 {
            return Err(format!("'{}' to be read once expected", g.value_name(m.value(name))));
        }
    }
    let gamma = g.constant(m.value("gamma")).map(|t| t.shape.clone()).unwrap_or_default();
    match facts.last_dim(m.value("a")) {
        Some(width) if gamma == [width] => Ok(()),
        width => Err(format!("a factor for each of {width:?} channels expected, found a constant of shape {gamma:?}")),
    }
}
