//! `FusedConv`: a convolution, a sum and an activation.

use super::{Parts, microsoft};
use crate::ir::{AttrValue, Attrs, Edit, NewOp, Value};
use crate::pattern::{Facts, Match, Rule, var};

pub(super) fn rules() -> Vec<Rule> {
    let conv = microsoft("FusedConv", [var("x"), var("w")]);
    vec![Rule::new("fused-conv", "com.microsoft.FusedConv", conv, check, build)]
}

/// An activation with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Activation {
    None,
    /// One of the standard operators without parameters.
    Plain(&'static str),
    LeakyRelu(f32),
    HardSigmoid(f32, f32),
    Clip(f32, f32),
}

impl Activation {
    /// The activation of a name and its parameters in onnxruntime's order.
    pub(super) fn named(name: &str, params: &[f32]) -> Result<Activation, String> {
        Ok(match (name, params) {
            ("" | "None", _) => Activation::None,
            ("Relu", _) => Activation::Plain("Relu"),
            ("Sigmoid", _) => Activation::Plain("Sigmoid"),
            ("Tanh", _) => Activation::Plain("Tanh"),
            ("HardSwish", _) => Activation::Plain("HardSwish"),
            ("LeakyRelu", []) => Activation::LeakyRelu(0.01),
            ("LeakyRelu", [alpha, ..]) => Activation::LeakyRelu(*alpha),
            ("HardSigmoid", [alpha, beta, ..]) => Activation::HardSigmoid(*alpha, *beta),
            ("HardSigmoid", []) => Activation::HardSigmoid(0.2, 0.5),
            ("Clip", [min, max, ..]) => Activation::Clip(*min, *max),
            _ => return Err(format!("a known activation expected, found '{name}' with parameters {params:?}")),
        })
    }

    /// Adds it behind `x`, as the last of the parts.
    pub(super) fn add(self, parts: &mut Parts<'_, '_>, x: Value) -> Value {
        let float = AttrValue::Float;
        match self {
            Activation::None => x,
            Activation::Plain(op) => parts.op("", op, &[x]),
            Activation::LeakyRelu(alpha) => parts.with("", "LeakyRelu", &[x], &[("alpha", float(alpha))]),
            Activation::HardSigmoid(alpha, beta) => {
                parts.with("", "HardSigmoid", &[x], &[("alpha", float(alpha)), ("beta", float(beta))])
            }
            Activation::Clip(min, max) => {
                let (min, max) = (parts.scalar("min", min), parts.scalar("max", max));
                parts.op("", "Clip", &[x, min, max])
            }
        }
    }
}

fn check(facts: Facts<'_>, m: &Match) -> Result<Activation, String> {
    let op = facts.graph.op(m.root().node).ok_or("an operator expected")?;
    let params = match op.attrs.get("activation_params") {
        Some(AttrValue::Floats(v)) => v.as_slice(),
        _ => &[],
    };
    Activation::named(op.attrs.str("activation").unwrap_or(""), params)
}

fn build(edit: &mut Edit<'_>, m: &Match, activation: Activation) -> Value {
    let mut parts = Parts::of(edit, m);
    let (bias, sum) = (parts.input(2), parts.input(3));
    let attrs = parts.edit.op(parts.at).map(|o| o.attrs.clone()).unwrap_or_default();
    let kept = attrs.iter().filter(|a| !a.name.starts_with("activation")).map(|a| (a.name.clone(), a.value.clone()));
    let stem = format!("{}.conv", parts.name);
    let new =
        NewOp::std("Conv", &stem).inputs([m.value("x"), m.value("w")].into_iter().chain(bias)).attrs(kept.collect::<Attrs>());
    let mut y = parts.edit.add(parts.at, new);
    if let Some(z) = sum {
        y = parts.op("sum", "Add", &[y, z]);
    }
    activation.add(&mut parts, y)
}
