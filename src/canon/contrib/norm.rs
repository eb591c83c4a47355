//! `SkipLayerNormalization`, `SkipSimplifiedLayerNormalization` and `SimplifiedLayerNormalization`.

use super::{Parts, int, microsoft, number};
use crate::ir::{AttrValue, Edit, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, op, var};

pub(super) fn rules() -> Vec<Rule> {
    // onnxruntime has this one in the default domain.
    let simplified = op("SimplifiedLayerNormalization", [var("x"), var("gamma")]);
    vec![
        Rule::new(
            "skip-layer-norm",
            "com.microsoft.SkipLayerNormalization",
            microsoft("SkipLayerNormalization", [var("x"), var("skip"), var("gamma")]),
            |f, m| check_skip(f, m, 4),
            build_skip_layer_norm,
        ),
        Rule::new(
            "skip-rms-norm",
            "com.microsoft.SkipSimplifiedLayerNormalization",
            microsoft("SkipSimplifiedLayerNormalization", [var("x"), var("skip"), var("gamma")]),
            |f, m| check_skip(f, m, 3),
            build_skip_rms_norm,
        ),
        Rule::new("simplified-layer-norm", "SimplifiedLayerNormalization", simplified, check_rms_norm, |edit, m, epsilon| {
            rms_norm(&mut Parts::of(edit, m), m.value("x"), m.value("gamma"), epsilon)
        }),
    ]
}

struct Skip {
    epsilon: f32,
    /// The port of the bias that is added before the norm.
    bias: u32,
    /// Whether the bias is that of the Linear that makes `x`, rather than of the one that makes `skip`.
    bias_of_x: bool,
}

fn check_skip(facts: Facts<'_>, m: &Match, bias: u32) -> Result<Skip, String> {
    let read = |port| facts.graph.use_count(Value { port, ..m.root() }) > 0;
    if read(1) || read(2) {
        return Err("the mean and the deviation to have no reader expected".to_owned());
    }
    let g = facts.graph;
    let is_linear = |v: Value| {
        g.is_op(v.node, "MatMul") && g.input(v.node, 1).is_some_and(|w| g.constant(w).is_some()) || g.is_op(v.node, "Conv")
    };
    Ok(Skip {
        epsilon: number(facts, m, "epsilon").unwrap_or(1e-12),
        bias,
        bias_of_x: is_linear(m.value("x")) && !is_linear(m.value("skip")),
    })
}

/// The sum that the norm reads. It is the operator's fourth output too.
fn sum(parts: &mut Parts<'_, '_>, m: &Match, skip: &Skip) -> Value {
    let (mut a, mut b) = (m.value("x"), m.value("skip"));
    if let Some(bias) = parts.input(skip.bias) {
        let linear = if skip.bias_of_x { &mut a } else { &mut b };
        *linear = parts.op("biased", "Add", &[*linear, bias]);
    }
    let sum = parts.op("sum", "Add", &[a, b]);
    let fourth = Value { node: parts.at, port: 3 };
    if m.root() != fourth && parts.edit.use_count(fourth) > 0 {
        parts.edit.replace(fourth, sum);
    }
    sum
}

fn build_skip_layer_norm(edit: &mut Edit<'_>, m: &Match, skip: Skip) -> Value {
    let mut parts = Parts::of(edit, m);
    let sum = sum(&mut parts, m, &skip);
    if m.root().port == 3 {
        return sum;
    }
    let inputs: Vec<Value> = [sum, m.value("gamma")].into_iter().chain(parts.input(3)).collect();
    let attrs = [("axis", AttrValue::Int(-1)), ("epsilon", AttrValue::Float(skip.epsilon))];
    parts.with("", "LayerNormalization", &inputs, &attrs)
}

fn build_skip_rms_norm(edit: &mut Edit<'_>, m: &Match, skip: Skip) -> Value {
    let mut parts = Parts::of(edit, m);
    let sum = sum(&mut parts, m, &skip);
    if m.root().port == 3 { sum } else { rms_norm(&mut parts, sum, m.value("gamma"), skip.epsilon) }
}

fn check_rms_norm(facts: Facts<'_>, m: &Match) -> Result<f32, String> {
    super::first_output(m)?;
    let axis = int(facts, m, "axis").unwrap_or(-1);
    let last = facts.rank(Some(m.value("x"))).map_or(-1, |r| r as i64 - 1);
    if axis != -1 && axis != last {
        return Err(format!("a norm over the last axis expected, found axis {axis}"));
    }
    Ok(number(facts, m, "epsilon").unwrap_or(1e-5))
}

/// x / sqrt(mean(x²) + epsilon) · gamma (Zhang and Sennrich, "Root mean square layer normalization", eq. 4).
fn rms_norm(parts: &mut Parts<'_, '_>, x: Value, gamma: Value, epsilon: f32) -> Value {
    let square = parts.op("square", "Mul", &[x, x]);
    let axes = parts.constant("axes", Tensor::vector(&[-1i64]));
    let mean = parts.with("mean", "ReduceMean", &[square, axes], &[("keepdims", AttrValue::Int(1))]);
    let epsilon = parts.scalar("epsilon", epsilon);
    let shifted = parts.op("shifted", "Add", &[mean, epsilon]);
    let root = parts.op("root", "Sqrt", &[shifted]);
    let normal = parts.op("normal", "Div", &[x, root]);
    parts.op("", "Mul", &[normal, gamma])
}
