//! `Gelu`, `BiasGelu`, `FastGelu` and `QuickGelu`.

use super::{Parts, biased, microsoft, number};
use crate::ir::{Edit, Value};
use crate::pattern::{Match, Rule, any_of, var};

pub(super) fn rules() -> Vec<Rule> {
    let exact = any_of([microsoft("Gelu", [var("x")]), microsoft("BiasGelu", [var("x"), var("bias")])]);
    vec![
        Rule::new("bias-gelu", "", exact, |_, _| Ok(()), |edit, m, ()| gelu(edit, m, "none")),
        Rule::new("fast-gelu", "", microsoft("FastGelu", [var("x")]), |_, _| Ok(()), |edit, m, ()| gelu(edit, m, "tanh")),
        Rule::new(
            "quick-gelu",
            "",
            microsoft("QuickGelu", [var("x")]),
            |f, m| Ok(number(f, m, "alpha").unwrap_or(1.702)),
            build_quick_gelu,
        ),
    ]
}

/// The bias is the second input, where there is one.
fn gelu(edit: &mut Edit<'_>, m: &Match, approximate: &'static str) -> Value {
    let mut parts = Parts::of(edit, m);
    let bias = parts.input(1);
    let x = biased(&mut parts, "biased", m.value("x"), bias);
    parts.gelu("", x, approximate)
}

/// x · sigmoid(alpha · x); SiLU when alpha is 1.
fn build_quick_gelu(edit: &mut Edit<'_>, m: &Match, alpha: f32) -> Value {
    let mut parts = Parts::of(edit, m);
    let x = m.value("x");
    let inner = if alpha == 1.0 { x } else { parts.times("scaled", x, alpha) };
    let gate = parts.op("gate", "Sigmoid", &[inner]);
    parts.op("", "Mul", &[x, gate])
}
