//! BatchNormalization at inference folded into the convolution or Linear before it.

use crate::ir::{DType, Edit, NewOp, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, any_of, konst, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let conv = op("Conv", [var("x"), konst("w")]).named("conv");
    let product = op("MatMul", [var("x"), konst("w")]).named("product");
    let linear = any_of([op("Add", [product.clone(), konst("b")]), product]).named("linear");
    let parts = [any_of([conv, linear]), konst("scale"), konst("shift"), konst("mean"), konst("variance")];
    vec![Rule::new(
        "fold-batch-norm",
        "BatchNormalization",
        op("BatchNormalization", parts).form("BatchNormalization"),
        check,
        build,
    )]
}

/// Weights and bias that compute the normalised result.
type Folded = (Tensor, Tensor);

/// (w·x + b − mean) / sqrt(variance + eps) · scale + shift, as one factor and one term an output channel.
fn check(facts: Facts<'_>, m: &Match) -> Result<Folded, String> {
    let graph = facts.graph;
    let bn = graph.op(m.root().node).ok_or("an operator expected")?;
    if bn.attrs.int("training_mode").unwrap_or(0) != 0 {
        return Err("BatchNormalization with training_mode = 0 expected".to_owned());
    }
    let before = m.get("conv").or(m.get("linear")).ok_or("a convolution or Linear expected")?;
    let readers = graph.use_count(before);
    if readers != 1 {
        return Err(format!("BatchNormalization as the only reader of '{}' expected, found {readers}", graph.value_name(before)));
    }
    let is_conv = m.get("conv").is_some();
    if !is_conv {
        // The channels of BatchNormalization are axis 1, those of a Linear are the last.
        match facts.rank(Some(before)) {
            Some(2) => {}
            found => return Err(format!("a Linear of rank 2 before it expected, found rank {found:?}")),
        }
        if m.get("product").is_some_and(|p| p != before && graph.use_count(p) != 1) {
            return Err("a product that only its bias reads expected".to_owned());
        }
    }
    let bias = if is_conv { graph.input(before.node, 2) } else { m.get("b") };
    let w = constant(facts, m.value("w"))?;
    let channels = w.shape.get(usize::from(!is_conv)).copied().unwrap_or(0);
    let per_channel = |value: Value, what: &str| -> Result<Vec<f32>, String> {
        let t = constant(facts, value)?;
        let v = t.to_f32().map_err(|e| e.to_string())?;
        if v.len() == channels { Ok(v) } else { Err(format!("{what} for {channels} channels expected, found {:?}", t.shape)) }
    };
    let [scale, shift, mean, variance] = ["scale", "shift", "mean", "variance"].map(|name| per_channel(m.value(name), name));
    let (scale, shift, mean, variance) = (scale?, shift?, mean?, variance?);
    let bias = bias.map_or_else(|| Ok(vec![0.0; channels]), |b| per_channel(b, "a bias"))?;
    let eps = f64::from(bn.attrs.float("epsilon").unwrap_or(1e-5));
    let factor: Vec<f64> = scale.iter().zip(&variance).map(|(&s, &v)| f64::from(s) / (f64::from(v) + eps).sqrt()).collect();
    if factor.iter().any(|f| !f.is_finite()) {
        return Err("variances of at least 0 expected".to_owned());
    }
    // Conv: [out, in/group, …]; Linear: [in, out].
    let inner: usize = if is_conv { w.shape.iter().skip(1).product() } else { 1 };
    let values = w.to_f32().map_err(|e| e.to_string())?;
    let scaled = values.iter().enumerate().map(|(i, &v)| (f64::from(v) * factor[i / inner.max(1) % channels.max(1)]) as f32);
    let scaled: Vec<f32> = scaled.collect();
    let moved: Vec<f32> =
        (0..channels).map(|c| ((f64::from(bias[c]) - f64::from(mean[c])) * factor[c] + f64::from(shift[c])) as f32).collect();
    let weights = Tensor::new(&w.shape, &scaled).map_err(|e| e.to_string())?;
    Ok((weights, Tensor::vector(&moved)))
}

fn constant<'a>(facts: Facts<'a>, value: Value) -> Result<&'a Tensor, String> {
    let name = facts.graph.value_name(value);
    let t = facts.graph.constant(value).ok_or_else(|| format!("a constant '{name}' expected"))?;
    if t.dtype == DType::F32 { Ok(t) } else { Err(format!("float32 parameters expected, '{name}' is {:?}", t.dtype)) }
}

fn build(edit: &mut Edit<'_>, m: &Match, (w, b): Folded) -> Value {
    let anchor = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let old = m.value("w");
    let w_name = edit.value_name(old).to_owned();
    let weights = edit.add_init(anchor, &format!("{w_name}.folded"), w);
    let bias = edit.add_init(anchor, &format!("{w_name}.bias"), b);
    match m.get("conv") {
        Some(conv) => {
            let attrs = edit.op(conv.node).map(|o| o.attrs.clone()).unwrap_or_default();
            edit.add(anchor, NewOp::std("Conv", &name).inputs([m.value("x"), weights, bias]).attrs(attrs))
        }
        None => {
            let product = edit.add(anchor, NewOp::std("MatMul", &format!("{name}_matmul")).inputs([m.value("x"), weights]));
            edit.add(anchor, NewOp::std("Add", &name).inputs([product, bias]))
        }
    }
}
