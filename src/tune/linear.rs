//! The Linears of a plan: what their weights are multiplied with, and where their biases are.

use crate::ir::{Graph, Value};
use crate::quant::{QuantPlan, SitePlan};

/// A Linear whose weights a plan quantises: `x·W + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// The full name of the weights' site.
    pub site: String,
    /// The block, for Linears inside one.
    pub block: Option<usize>,
    /// The name of W, `[in, out]`.
    pub weights: String,
    /// The name of x; its last axis is the input channels.
    pub input: String,
    /// The name of b, if there is one that nothing else reads.
    pub bias: Option<String>,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
}

/// The Linear of a site's constant.
///
/// # Errors
/// Why the constant is not the weights of one Linear, as half a sentence.
pub fn find(graph: &Graph, site: &SitePlan) -> Result<Linear, String> {
    let axis = site.scheme.constant().ok_or("it is not a constant")?.axis;
    let [name] = site.site.values.as_slice() else { return Err("it is not one constant".to_owned()) };
    let value = graph.value(name).ok_or("the model has no such constant")?;
    let shape = graph.constant(value).map(|t| t.shape.as_slice()).unwrap_or_default();
    let &[inputs, outputs] = shape else { return Err(format!("it has the shape {shape:?}, not that of a Linear's weights")) };
    if axis != Some(1) {
        return Err("it has no scale for each output channel".to_owned());
    }
    let uses = graph.uses(value);
    let [product] = uses.as_slice() else { return Err("several operators read it".to_owned()) };
    if !graph.is_op(product.node, "MatMul") || product.port != 1 {
        return Err("what reads it is not a Linear".to_owned());
    }
    let input = graph.input(product.node, 0).ok_or("the Linear has no input")?;
    Ok(Linear {
        site: site.name.clone(),
        block: site.site.block,
        weights: name.clone(),
        input: graph.value_name(input).to_owned(),
        bias: bias(graph, Value { node: product.node, port: 0 }, outputs),
        inputs,
        outputs,
    })
}

/// The constant vector that alone is added to a product, and that nothing else reads.
fn bias(graph: &Graph, product: Value, outputs: usize) -> Option<String> {
    let uses = graph.uses(product);
    let [sum] = uses.as_slice() else { return None };
    if !graph.is_op(sum.node, "Add") || graph.is_output(product) {
        return None;
    }
    let bias = graph.input(sum.node, 1 - sum.port.min(1))?;
    let fits = graph.constant(bias).is_some_and(|t| t.shape == [outputs]);
    (fits && graph.use_count(bias) == 1).then(|| graph.value_name(bias).to_owned())
}

/// Every site of a plan that is a Linear's weights, and why the others are not: full name and reason.
pub fn find_all(graph: &Graph, plan: &QuantPlan) -> (Vec<Linear>, Vec<(String, String)>) {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for site in plan.sites.iter().filter(|s| s.site.weight) {
        match find(graph, site) {
            Ok(linear) => found.push(linear),
            Err(why) => others.push((site.name.clone(), why)),
        }
    }
    (found, others)
}
