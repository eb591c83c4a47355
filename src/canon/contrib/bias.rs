//! Sums with a bias that something else was fused with.

use super::{Parts, int, microsoft};
use crate::ir::AttrValue;
use crate::pattern::{Facts, Match, Rule, var};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "bias-add",
            "",
            microsoft("BiasAdd", [var("x"), var("bias"), var("skip")]),
            |_, _| Ok(()),
            |edit, m, ()| {
                let mut parts = Parts::of(edit, m);
                let x = parts.op("biased", "Add", &[m.value("x"), m.value("bias")]);
                parts.op("", "Add", &[x, m.value("skip")])
            },
        ),
        Rule::new(
            "bias-softmax",
            "com.microsoft.BiasSoftmax",
            microsoft("BiasSoftmax", [var("x"), var("bias")]),
            last_axis,
            |edit, m, ()| {
                let mut parts = Parts::of(edit, m);
                let x = parts.op("biased", "Add", &[m.value("x"), m.value("bias")]);
                parts.softmax("", x)
            },
        ),
        // (x + bias) in halves a and b: a · gelu(b).
        Rule::new(
            "bias-split-gelu",
            "",
            microsoft("BiasSplitGelu", [var("x"), var("bias")]),
            |_, _| Ok(()),
            |edit, m, ()| {
                let mut parts = Parts::of(edit, m);
                let x = parts.op("biased", "Add", &[m.value("x"), m.value("bias")]);
                let name = parts.name.clone();
                let split = crate::ir::NewOp::std("Split", &format!("{name}.halves"))
                    .input(x)
                    .attr("axis", AttrValue::Int(-1))
                    .attr("num_outputs", AttrValue::Int(2))
                    .output(&format!("{name}.value"))
                    .output(&format!("{name}.gate"));
                let node = parts.edit.add_op(parts.at, split);
                let half = |port| crate::ir::Value { node, port };
                let gate = parts.gelu("gelu", half(1), "none");
                parts.op("", "Mul", &[half(0), gate])
            },
        ),
    ]
}

/// Other axes flatten what follows them, as the Softmax of opset 12 did.
fn last_axis(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let axis = int(facts, m, "axis").unwrap_or(1);
    let last = facts.rank(Some(m.value("x"))).map_or(-1, |r| r as i64 - 1);
    if axis == -1 || axis == last { Ok(()) } else { Err(format!("a softmax over the last axis expected, found axis {axis}")) }
}
