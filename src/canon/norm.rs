//! LayerNormalization and RMSNormalization from their decomposed forms.

use crate::ir::{AttrValue, DType, Edit, NewOp, NodeId, Tensor, Value};
use crate::pattern::{Facts, Match, Pat, Rule, any_of, commute, konst, near, op, scalar, var};

pub(super) fn rules() -> Vec<Rule> {
    let without_beta = op("LayerNormalization", [var("x"), konst("gamma")]);
    let rms_norm = Rule::new("rms-norm", "", rms_norm(), check_rms, |edit, m, epsilon| {
        let name = edit.value_name(m.root()).to_owned();
        let new = NewOp::std("RMSNormalization", &name)
            .inputs([m.value("x"), m.value("gamma")])
            .attr("axis", AttrValue::Int(-1))
            .attr("epsilon", AttrValue::Float(epsilon));
        edit.add(m.root().node, new)
    });
    vec![
        rms_norm,
        Rule::new("layer-norm", "ReduceMean", layer_norm(), check, |edit, m, (epsilon, gamma, beta)| {
            build(edit, m, epsilon, [gamma, beta])
        }),
        Rule::new("layer-norm-plain", "", plain_layer_norm(), check_plain, |edit, m, (epsilon, channels)| {
            let filled = |edit: &mut Edit<'_>, name: &str, value: f32| {
                let stem = format!("{}_{name}", edit.value_name(m.root()));
                let t = Tensor::new(&[channels], &vec![value; channels]);
                m.get(name).or_else(|| Some(edit.add_init(m.root().node, &stem, t.ok()?)))
            };
            match (filled(edit, "gamma", 1.0), filled(edit, "beta", 0.0)) {
                (Some(gamma), Some(beta)) => build(edit, m, epsilon, [gamma, beta]),
                _ => m.root(),
            }
        }),
        Rule::new("layer-norm-beta", "", without_beta, check_without_beta, |edit, m, (epsilon, beta)| {
            let stem = format!("{}_beta", edit.value_name(m.root()));
            let beta = edit.add_init(m.root().node, &stem, beta);
            build(edit, m, epsilon, [m.value("gamma"), beta])
        }),
    ]
}

fn build(edit: &mut Edit<'_>, m: &Match, epsilon: f32, [gamma, beta]: [Value; 2]) -> Value {
    let root = m.root();
    let name = edit.value_name(root).to_owned();
    let new = NewOp::std("LayerNormalization", &name)
        .inputs([m.value("x"), gamma, beta])
        .attr("axis", AttrValue::Int(-1))
        .attr("epsilon", AttrValue::Float(epsilon));
    edit.add(root.node, new)
}

/// x / sqrt(mean(x²) + eps) · gamma (Zhang and Sennrich, arXiv 1910.07467, eq. 4).
fn rms_norm() -> Pat {
    let square = any_of([op("Pow", [var("x"), near(2.0)]), op("Mul", [var("x"), var("x")])]);
    let power = op("ReduceMean", [square]).named("variance");
    let deviation = || op("Sqrt", [commute("Add", power.clone(), scalar("eps"))]);
    let inverse = any_of([op("Reciprocal", [deviation()]), op("Div", [near(1.0), deviation()])]);
    let [div, mul] = ["ReduceMean, Sqrt, Div", "ReduceMean, Sqrt, Reciprocal"];
    let normal =
        any_of([op("Div", [var("x"), deviation()]).form(div), commute("Mul", var("x"), inverse).form(mul)]).named("normal");
    commute("Mul", normal, konst("gamma"))
}

fn check_rms(facts: Facts<'_>, m: &Match) -> Result<f32, String> {
    float32(facts, m)?;
    facts.same_shape(m, "x")?;
    let mean = |v| facts.graph.input(v, 1).is_some_and(|mean| facts.graph.is_op(mean.node, "ReduceMean"));
    if facts.graph.is_op(m.value("x").node, "Sub") && mean(m.value("x").node) {
        return Err("values whose mean was not subtracted expected: with that it is a LayerNormalization".to_owned());
    }
    last_axis_kept(facts, m.value("variance").node)?;
    let (g, x) = (facts.graph, m.value("x").node);
    // Inside a LayerNorm, whose bias comes later than this product.
    let mean = g.input(x, 1).filter(|v| g.is_op(x, "Sub") && g.is_op(v.node, "ReduceMean"));
    if mean.is_some_and(|mean| g.input(mean.node, 0) == g.input(x, 0)) {
        return Err("a value that is not centred expected: this is a LayerNormalization's".to_owned());
    }
    let gamma = facts.graph.constant(m.value("gamma")).map(|t| t.shape.clone()).unwrap_or_default();
    match facts.last_dim(m.value("x")) {
        Some(channels) if gamma == [channels] => {}
        channels => return Err(format!("gamma for {channels:?} channels expected, found a constant of shape {gamma:?}")),
    }
    facts
        .graph
        .constant(m.value("eps"))
        .and_then(|t| t.scalar_f32())
        .ok_or_else(|| "the epsilon must be a float constant".to_owned())
}

/// (x − mean) / sqrt(mean((x − mean)²) + eps) · gamma + beta, as TorchScript writes it up to opset 16.
fn layer_norm() -> Pat {
    commute("Add", commute("Mul", normalised(), konst("gamma")), konst("beta"))
}

/// The same where a simplifier has removed a gamma of ones, a beta of zeros, or both.
fn plain_layer_norm() -> Pat {
    any_of([normalised(), commute("Mul", normalised(), konst("gamma")), commute("Add", normalised(), konst("beta"))])
}

fn normalised() -> Pat {
    let centred = || op("Sub", [var("x"), op("ReduceMean", [var("x")]).named("mean")]);
    let again = || any_of([var("centred"), centred()]);
    let square = any_of([op("Pow", [again(), near(2.0)]), op("Mul", [again(), again()])]);
    let variance = op("ReduceMean", [square]).named("variance");
    let deviation = || op("Sqrt", [commute("Add", variance.clone(), scalar("eps"))]);
    any_of([
        op("Div", [centred().named("centred"), deviation()]).form("ReduceMean, Sqrt, Div"),
        commute("Mul", centred().named("centred"), op("Reciprocal", [deviation()])).form("ReduceMean, Sqrt, Reciprocal"),
    ])
}

type LayerNorm = (f32, Value, Value);

/// The epsilon and the number of channels.
/// More channels than any model has: a hostile shape asks for no memory.
const MOST_CHANNELS: usize = 1 << 20;

fn float32(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    match facts.shapes.dtype(m.value("x")) {
        Some(DType::F32) | None => Ok(()),
        Some(other) => Err(format!("float32 values expected, found {other}")),
    }
}

fn check_plain(facts: Facts<'_>, m: &Match) -> Result<(f32, usize), String> {
    let g = facts.graph;
    for name in ["mean", "variance"] {
        last_axis_kept(facts, m.value(name).node)?;
    }
    facts.same_shape(m, "x")?;
    float32(facts, m)?;
    let channels = facts.last_dim(m.value("x")).filter(|&n| n <= MOST_CHANNELS).ok_or("a known number of channels expected")?;
    let constant_of = |id: NodeId| g.inputs_of(id).into_iter().flatten().any(|v| g.constant(v).is_some());
    let affine = |id: NodeId| (g.is_op(id, "Mul") || g.is_op(id, "Add")) && constant_of(id);
    // What is multiplied or added next belongs to the norm.
    let closed = m.get("beta").is_some();
    if !closed && g.uses(m.root()).iter().any(|u| affine(u.node) && (m.get("gamma").is_none() || g.is_op(u.node, "Add"))) {
        return Err("a norm without gamma or beta behind it expected".to_owned());
    }
    if ["gamma", "beta"].iter().filter_map(|name| g.constant(m.get(name)?)).any(|t| t.shape != [channels]) {
        return Err(format!("gamma or beta of {channels} channels expected"));
    }
    let eps = g.constant(m.value("eps")).and_then(|t| t.scalar_f32()).ok_or("the epsilon must be a float constant")?;
    Ok((eps, channels))
}

/// The epsilon, and a beta of zeros for a norm that has none.
fn check_without_beta(facts: Facts<'_>, m: &Match) -> Result<(f32, Tensor), String> {
    let (g, id) = (facts.graph, m.root().node);
    let op = g.op(id).ok_or("an operator expected")?;
    let gamma = g.constant(m.value("gamma")).filter(|t| t.dtype == DType::F32 && t.shape.len() == 1);
    let gamma = gamma.ok_or("a constant gamma [C] expected")?;
    let last = facts.rank(Some(m.value("x"))).map_or(-1, |r| r as i64 - 1);
    let axis = op.attrs.int("axis").unwrap_or(-1);
    if g.input(id, 2).is_some() || m.root().port != 0 || (axis != -1 && axis != last) {
        return Err("a norm over the last axis without beta expected".to_owned());
    }
    let zeros = Tensor::new(&gamma.shape, &vec![0f32; gamma.len()]).map_err(|e| e.to_string())?;
    Ok((op.attrs.float("epsilon").unwrap_or(1e-5), zeros))
}

fn check(facts: Facts<'_>, m: &Match) -> Result<LayerNorm, String> {
    for name in ["mean", "variance"] {
        last_axis_kept(facts, m.value(name).node)?;
    }
    let eps = facts.graph.constant(m.value("eps")).and_then(|t| t.scalar_f32()).ok_or("the epsilon must be a float constant")?;
    let width = |name: &str| facts.graph.constant(m.value(name)).map(|t| t.shape.clone());
    let (gamma, beta) = (width("gamma"), width("beta"));
    if gamma.as_ref().is_none_or(|s| s.len() != 1) || gamma != beta {
        return Err(format!("gamma and beta of one shape [C] expected, found {gamma:?} and {beta:?}"));
    }
    // One element would be spread over the channels, which LayerNormalization does not do.
    let elements = gamma.and_then(|s| s.first().copied()).unwrap_or(0);
    if let Some(channels) = facts.last_dim(m.value("x")).filter(|&c| c != elements) {
        return Err(format!("gamma for {channels} channels expected, found {elements} elements"));
    }
    facts.same_shape(m, "x")?;
    Ok((eps, m.value("gamma"), m.value("beta")))
}

/// A mean over the last axis that keeps it; the axis may be an attribute or, from opset 18, an input.
fn last_axis_kept(facts: Facts<'_>, id: NodeId) -> Result<(), String> {
    let at = || facts.graph.describe(id);
    let Some(op) = facts.graph.op(id) else { return Err("an operator expected".to_owned()) };
    if op.attrs.int("keepdims").unwrap_or(1) != 1 {
        return Err(format!("ReduceMean with keepdims = 1 expected at {}", at()));
    }
    let input = facts.graph.input(id, 1).and_then(|v| facts.graph.constant(v)).and_then(|t| t.to_i64().ok());
    let axes = op.attrs.ints("axes").map(<[i64]>::to_vec).or(input);
    let last = facts.rank(facts.graph.input(id, 0)).map_or(-1, |r| r as i64 - 1);
    match axes.as_deref() {
        Some([a]) if *a == -1 || *a == last => Ok(()),
        found => Err(format!("ReduceMean over the last axis expected, found axes {:?} at {}", found.unwrap_or_default(), at())),
    }
}
