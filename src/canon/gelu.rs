//! Gelu from its decomposed forms: by erf, and the tanh approximation.

use bytes::Bytes;

use crate::ir::{AttrValue, Edit, NewOp, Value};
use crate::pattern::{Match, Pat, Rule, any_of, commute, near, op, var};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "gelu-erf",
            "Erf",
            product_of_half(erf_gate()),
            |f, m| f.same_shape(m, "x"),
            |edit, m, ()| build(edit, m, "none"),
        ),
        Rule::new(
            "gelu-tanh",
            "Tanh",
            product_of_half(tanh_gate()),
            |f, m| f.same_shape(m, "x"),
            |edit, m, ()| build(edit, m, "tanh"),
        ),
    ]
}

fn build(edit: &mut Edit<'_>, m: &Match, approximate: &'static str) -> Value {
    let root = m.root();
    let name = edit.value_name(root).to_owned();
    let approximate = AttrValue::String(Bytes::from_static(approximate.as_bytes()));
    edit.add(root.node, NewOp::std("Gelu", &name).input(m.value("x")).attr("approximate", approximate))
}

/// x · gate / 2, however the three factors are multiplied.
fn product_of_half(gate: Pat) -> Pat {
    any_of([
        commute("Mul", commute("Mul", var("x"), gate.clone()), near(0.5)),
        commute("Mul", var("x"), commute("Mul", gate.clone(), near(0.5))),
        commute("Mul", commute("Mul", var("x"), near(0.5)), gate.clone()),
        op("Div", [commute("Mul", var("x"), gate), near(2.0)]),
    ])
}

/// 1 + erf(x / √2).
fn erf_gate() -> Pat {
    let arg = any_of([
        op("Div", [var("x"), near(std::f32::consts::SQRT_2)]).form("Div"),
        commute("Mul", var("x"), near(std::f32::consts::FRAC_1_SQRT_2)).form("Mul"),
    ]);
    commute("Add", op("Erf", [arg]).form("Erf"), near(1.0))
}

/// 1 + tanh(√(2/π) · (x + 0.044715 · x³)).
fn tanh_gate() -> Pat {
    let square = commute("Mul", var("x"), var("x"));
    let cube = any_of([op("Pow", [var("x"), near(3.0)]).form("Pow"), commute("Mul", square, var("x")).form("x · x · x")]);
    let inner = commute("Add", var("x"), commute("Mul", cube, near(0.044_715)));
    let arg = commute("Mul", inner, near(0.797_884_6));
    commute("Add", op("Tanh", [arg]).form("Tanh"), near(1.0))
}
