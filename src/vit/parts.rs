//! What attention and MLP are both made of: Linears, the normalised input, the way back to the residual stream.

use crate::ir::{Graph, Op, Value};
use crate::pattern::{Match, Pat, any_of, chain, constant, konst, op, rest, var};

/// A Linear layer by the names of its values.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Linear {
    /// The weights, `[in, out]`.
    pub weight: String,
    /// The product x · W.
    pub product: String,
    /// The bias, if there is one.
    pub bias: Option<String>,
    /// The output: the product, or its sum with the bias.
    pub output: String,
}

/// The names that a pattern binds for one Linear: weight, product, bias, output.
pub(super) type LinearNames = [&'static str; 4];

/// A Linear whose parts are bound to four names.
pub(super) fn linear(x: Pat, [weight, product, bias, output]: LinearNames) -> Pat {
    let product = op("MatMul", [x, konst(weight)]).named(product);
    any_of([op("Add", [product.clone(), konst(bias)]), product]).named(output)
}

/// Over the last axis: what the integer LayerNorm computes.
pub(super) fn layer_norm(x: Pat) -> Pat {
    let rms = op("RMSNormalization", [x.clone(), konst("gamma")]).check(over_last_axis);
    any_of([op("LayerNormalization", [x, konst("gamma"), konst("beta")]).check(over_last_axis), rms])
}

/// As [`layer_norm`] for a second LayerNormalization in one pattern.
pub(super) fn another_norm(x: Pat) -> Pat {
    let rms = op("RMSNormalization", [x.clone(), constant()]).check(over_last_axis);
    any_of([op("LayerNormalization", [x, constant(), constant()]).check(over_last_axis), rms])
}

pub(super) fn over_last_axis(op: &Op) -> Result<(), String> {
    match op.attrs.int("axis").unwrap_or(-1) {
        -1 => Ok(()),
        axis => Err(format!("{} over the last axis expected, found axis {axis}", op.op)),
    }
}

/// The operators that normalise over the channels.
pub(super) const NORMS: [&str; 2] = ["LayerNormalization", "RMSNormalization"];

/// Whether a normalisation reads a value.
pub(super) fn is_normed(graph: &Graph, value: Value) -> bool {
    graph.uses(value).into_iter().any(|u| NORMS.iter().any(|op| graph.is_op(u.node, op)))
}

/// Operators that only move elements, or pick some: windows are cut, rolled and put together again by them.
pub(super) fn moves() -> [Pat; 9] {
    [
        op("Reshape", [rest()]),
        op("Transpose", [rest()]),
        op("Slice", [rest()]),
        op("Concat", [rest(), rest()]),
        op("Pad", [rest()]),
        op("Gather", [rest(), constant()]),
        op("Squeeze", [rest()]),
        op("Unsqueeze", [rest()]),
        op("Flatten", [rest()]),
    ]
}

/// The types of [`moves`].
pub(super) const MOVES: [&str; 9] =
    ["Reshape", "Transpose", "Slice", "Concat", "Pad", "Gather", "Squeeze", "Unsqueeze", "Flatten"];

/// The residual stream that a branch reads, or what was reshaped to it (`root`).
fn stream() -> Pat {
    any_of([var("x"), var("root")])
}

/// What the first Linears of a pre-norm branch read: the residual stream behind a LayerNorm, cut into windows or not.
pub(super) fn normed_input() -> Pat {
    // A class token that alone is updated attends to itself and to the patches.
    let joined = op("Concat", [var("x"), var("tokens")]).named("joined");
    chain("windows", moves(), layer_norm(any_of([stream(), joined])).named("norm"))
}

/// What the first Linears of a post-norm branch read: the residual stream itself.
pub(super) fn plain_input() -> Pat {
    chain("windows", moves(), stream())
}

/// A branch that a LayerNorm begins or ends; `branch` makes its last Linear from what its first ones read.
pub(super) fn normed_branch(branch: impl Fn(fn() -> Pat) -> Pat) -> Pat {
    let post_normed = |last| another_norm(chain("unwindowed", moves(), last)).named("post_norm");
    let before = branch(normed_input);
    let added = any_of([before.clone(), post_normed(before), post_normed(branch(plain_input))]);
    chain("back", moves(), added)
}

/// The names of a match's values.
pub(super) struct Names<'a> {
    pub(super) graph: &'a Graph,
    pub(super) m: &'a Match,
}

impl Names<'_> {
    pub(super) fn of(&self, value: Value) -> String {
        self.graph.value_name(value).to_owned()
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.m.get(name).map(|v| self.of(v))
    }

    pub(super) fn name(&self, name: &str) -> String {
        self.of(self.m.value(name))
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.m.list(name).into_iter().map(|v| self.of(v)).collect()
    }

    pub(super) fn linear(&self, [weight, product, bias, output]: LinearNames) -> Linear {
        Linear { weight: self.name(weight), product: self.name(product), bias: self.get(bias), output: self.name(output) }
    }

    pub(super) fn op_type(&self, value: Value) -> &str {
        self.graph.op(value.node).map_or("", |op| op.op.op_type.as_str())
    }

    /// Whether an operator only moves elements.
    pub(super) fn moves(&self, value: Value) -> bool {
        MOVES.contains(&self.op_type(value)) || self.op_type(value) == "Expand"
    }
}

/// The values of a chain in runs: each begins at a value that is computed and goes on with what only moves its elements.
pub(super) fn runs(names: &Names<'_>, first: Value, path: &[Value]) -> Vec<Vec<Value>> {
    let mut runs = vec![vec![first]];
    for &value in path {
        match runs.last_mut() {
            Some(run) if names.moves(value) => run.push(value),
            _ => runs.push(vec![value]),
        }
    }
    runs
}

/// A site of one branch: which block it is in is known later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) site: super::Site,
    pub(super) part: Option<String>,
    pub(super) weight: bool,
    pub(super) values: Vec<String>,
    pub(super) observe: Option<String>,
}

impl Part {
    pub(super) fn values(site: super::Site, part: Option<&str>, values: Vec<String>) -> Part {
        Part { site, part: part.map(str::to_owned), weight: false, values, observe: None }
    }

    pub(super) fn weight(site: super::Site, part: Option<&str>, value: &str) -> Part {
        Part { site, part: part.map(str::to_owned), weight: true, values: vec![value.to_owned()], observe: None }
    }
}
