//! The MLP branch: its pattern, and the sites inside it.

use super::Site;
use super::attention::way_back;
use super::parts::{Linear, LinearNames, Names, Part, another_norm, linear, normed_branch};
use crate::ir::Graph;
use crate::pattern::{Match, Pat, any_of, commute, near, op, var};

/// The MLP branch of a block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mlp {
    /// The residual stream that it reads.
    pub x: String,
    /// What it adds to the residual stream.
    pub branch: String,
    /// The LayerNorm before it, in pre-norm blocks.
    pub norm: Option<String>,
    /// The LayerNorm behind it, in post-norm blocks.
    pub post_norm: Option<String>,
    /// The first Linear; the one that the activation reads, where the MLP is gated.
    pub fc1: Linear,
    /// The Linear that is multiplied with the activation's output, where the MLP is gated.
    pub value: Option<Linear>,
    /// The activation's output.
    pub act: String,
    /// The activation: its operator's type, or `Silu` and `QuickGelu`, which are several operators.
    pub act_op: String,
    /// The second Linear.
    pub fc2: Linear,
    /// What it has that a plain MLP has not: `gated`, `inner norm`, `post-norm`.
    pub features: Vec<&'static str>,
    /// Values inside a step, which have no codes of their own.
    pub inner: Vec<String>,
    #[serde(skip)]
    pub(super) parts: Vec<Part>,
}

const FC1: LinearNames = ["fc1_weight", "fc1_product", "fc1_bias", "fc1_output"];
const VALUE: LinearNames = ["value_weight", "value_product", "value_bias", "value_output"];
const FC2: LinearNames = ["fc2_weight", "fc2_product", "fc2_bias", "fc2_output"];

/// From x to what is added to it.
pub(super) fn branch() -> Pat {
    normed_branch(from_input)
}

fn from_input(input: fn() -> Pat) -> Pat {
    let fc1 = linear(input(), FC1);
    // x · sigmoid(x) and x · sigmoid(1.702 x), which are no operators of opset 20.
    let again = || var(FC1[3]);
    let gate = |x: Pat| op("Sigmoid", [x]).named("gate");
    let quick = commute("Mul", again(), near(1.702)).named("gate_input");
    let act = any_of([
        op("Gelu", [fc1.clone()]),
        op("Relu", [fc1.clone()]),
        op("HardSwish", [fc1.clone()]),
        op("Sigmoid", [fc1.clone()]),
        op("Tanh", [fc1.clone()]),
        commute("Mul", fc1.clone(), gate(again())),
        commute("Mul", fc1, gate(quick)),
    ])
    .named("act");
    let gated = commute("Mul", act.clone(), linear(input(), VALUE)).named("gated");
    // The plain one first: x · sigmoid(x) is also a sigmoid times a Linear.
    let hidden = any_of([act, gated]);
    let normed = another_norm(hidden.clone()).named("inner_norm");
    linear(any_of([hidden, normed]), FC2)
}

/// What is known of a match of [`branch`].
pub(super) fn of(graph: &Graph, m: &Match) -> Mlp {
    let n = Names { graph, m };
    let (fc1, fc2) = (n.linear(FC1), n.linear(FC2));
    let value = m.get(VALUE[0]).map(|_| n.linear(VALUE));
    let mut parts = Vec::new();
    match n.get("norm") {
        Some(norm) => parts.push(Part::values(Site::Norm2, None, [norm].into_iter().chain(n.list("windows")).collect())),
        None if !n.list("windows").is_empty() => {
            parts.push(Part::values(Site::Residual1, Some("windows"), n.list("windows")));
        }
        None => {}
    }
    let gate = value.as_ref().map(|_| "gate");
    parts.push(Part::weight(Site::MlpFc1, gate, &fc1.weight));
    parts.extend(value.as_ref().map(|v| Part::weight(Site::MlpFc1, Some("value"), &v.weight)));
    parts.push(Part::values(Site::MlpFc1Output, gate, vec![fc1.output.clone()]));
    parts.extend(value.as_ref().map(|v| Part::values(Site::MlpFc1Output, Some("value"), vec![v.output.clone()])));
    match n.get("gated") {
        None => parts.push(Part::values(Site::MlpAct, None, vec![n.name("act")])),
        Some(product) => {
            parts.push(Part::values(Site::MlpGate, None, vec![n.name("act")]));
            parts.push(Part::values(Site::MlpAct, None, vec![product]));
        }
    }
    parts.extend(n.get("inner_norm").map(|v| Part::values(Site::MlpNorm, None, vec![v])));
    parts.push(Part::weight(Site::MlpFc2, None, &fc2.weight));
    parts.extend(way_back(&n, &fc2, Site::MlpAct2, Site::Norm2));
    let features = [("gated", "gated"), ("inner_norm", "inner norm"), ("post_norm", "post-norm")];
    let features = features.into_iter().filter(|(name, _)| m.get(name).is_some()).map(|(_, f)| f).collect();
    let linears = [Some(&fc1), value.as_ref(), Some(&fc2)];
    let products = linears.into_iter().flatten().filter(|l| l.bias.is_some()).map(|l| l.product.clone());
    let inner = ["gate_input", "gate"].iter().filter_map(|p| n.get(p)).chain(products).collect();
    Mlp {
        x: n.get("x").unwrap_or_default(),
        branch: n.of(m.root()),
        norm: n.get("norm"),
        post_norm: n.get("post_norm"),
        act: n.name("act"),
        act_op: match (m.get("gate"), m.get("gate_input")) {
            (None, _) => n.op_type(m.value("act")).to_owned(),
            (Some(_), None) => "Silu".to_owned(),
            (Some(_), Some(_)) => "QuickGelu".to_owned(),
        },
        fc1,
        value,
        fc2,
        features,
        inner,
        parts,
    }
}
