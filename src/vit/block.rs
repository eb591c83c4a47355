//! The block pattern: pre-norm attention, then pre-norm MLP.

use std::collections::BTreeMap;

use super::{Site, SiteRef};
use crate::ir::{Graph, NodeId, Value};
use crate::pattern::{Match, Miss, NearMiss, Pat, any_of, commute, konst, match_value, near, op, var};

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

/// The attention half of a block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Attention {
    /// The residual stream before it.
    pub x: String,
    /// LayerNorm's output.
    pub norm: String,
    /// q, k and v.
    pub qkv: [Linear; 3],
    /// For each of q, k, v: the values from the Linear's output to the product's operand.
    pub heads_first: [Vec<String>; 3],
    /// The scaled scores.
    pub scores: String,
    /// The probabilities.
    pub probabilities: String,
    /// The values from attention · v to the projection's input.
    pub context: Vec<String>,
    /// The output projection.
    pub proj: Linear,
    /// The residual sum after it.
    pub output: String,
    /// The number of heads.
    pub heads: usize,
    /// The width of one head.
    pub head_dim: usize,
}

/// The MLP half of a block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mlp {
    /// The residual stream before it.
    pub x: String,
    /// LayerNorm's output.
    pub norm: String,
    /// The first Linear.
    pub fc1: Linear,
    /// The activation's output.
    pub act: String,
    /// The activation: its operator's type, or `Silu` and `QuickGelu`, which are several operators.
    pub act_op: String,
    /// The values inside an activation of several operators, producers first.
    pub gate: Vec<String>,
    /// The second Linear.
    pub fc2: Linear,
    /// The residual sum after it.
    pub output: String,
}

/// A block.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Block {
    /// Its number, in the order of the data flow.
    pub index: usize,
    /// The attention half.
    pub attention: Attention,
    /// The MLP half.
    pub mlp: Mlp,
    /// Columns of the first Linear divided by its rows.
    pub mlp_ratio: f64,
    /// The width of the residual stream.
    pub dim: usize,
}

/// A Linear whose parts are bound to four names.
fn linear(x: Pat, [weight, product, bias, output]: [&'static str; 4]) -> Pat {
    let product = op("MatMul", [x, konst(weight)]).named(product);
    any_of([op("Add", [product.clone(), konst(bias)]), product]).named(output)
}

/// Over the channels of `[batch, tokens, channels]`: what the integer LayerNorm computes.
fn norm(name: &'static str) -> Pat {
    op("LayerNormalization", [var("x"), konst("gamma"), konst("beta")]).check(|op| last_axis(op, 2)).named(name)
}

fn last_axis(op: &crate::ir::Op, last: i64) -> Result<(), String> {
    match op.attrs.int("axis").unwrap_or(-1) {
        axis if axis == -1 || axis == last => Ok(()),
        axis => Err(format!("{} over the last axis expected, found axis {axis}", op.op)),
    }
}

fn perm(want: &'static [i64]) -> fn(&crate::ir::Op) -> Result<(), String> {
    fn test(op: &crate::ir::Op, want: &[i64]) -> Result<(), String> {
        let found = op.attrs.ints("perm").unwrap_or_default();
        if found == want { Ok(()) } else { Err(format!("perm {want:?} expected, found {found:?}")) }
    }
    if want == [0, 2, 1, 3] { |op| test(op, &[0, 2, 1, 3]) } else { |op| test(op, &[0, 2, 3, 1]) }
}

const HEADS_FIRST: &[i64] = &[0, 2, 1, 3];
const KEYS_TRANSPOSED: &[i64] = &[0, 2, 3, 1];
const Q: [&str; 4] = ["q_weight", "q_product", "q_bias", "q_output"];
const K: [&str; 4] = ["k_weight", "k_product", "k_bias", "k_output"];
const V: [&str; 4] = ["v_weight", "v_product", "v_bias", "v_output"];
const PROJ: [&str; 4] = ["proj_weight", "proj_product", "proj_bias", "proj_output"];
const FC1: [&str; 4] = ["fc1_weight", "fc1_product", "fc1_bias", "fc1_output"];
const FC2: [&str; 4] = ["fc2_weight", "fc2_product", "fc2_bias", "fc2_output"];

fn attention() -> Pat {
    commute("Add", var("x"), attention_branch())
}

/// What attention adds to the residual stream.
fn attention_branch() -> Pat {
    let heads = |parts: [&'static str; 4], shaped: &'static str, shape: &'static str, order, first: &'static str| {
        let reshaped = op("Reshape", [linear(norm("norm"), parts), konst(shape)]).named(shaped);
        op("Transpose", [reshaped]).check(perm(order)).named(first)
    };
    let q = heads(Q, "q_heads", "q_shape", HEADS_FIRST, "q_first");
    let k = heads(K, "k_heads", "k_shape", KEYS_TRANSPOSED, "k_first");
    let v = heads(V, "v_heads", "v_shape", HEADS_FIRST, "v_first");
    let scores = op("MatMul", [q, k]).named("scores");
    let probabilities = op("Softmax", [scores]).check(|op| last_axis(op, 3)).named("probabilities");
    let context = op("MatMul", [probabilities, v]).named("context");
    let back = op("Transpose", [context]).check(perm(HEADS_FIRST)).named("context_back");
    let merged = op("Reshape", [back, konst("merged_shape")]).named("context_merged");
    linear(merged, PROJ)
}

fn mlp() -> Pat {
    commute("Add", var("x"), mlp_branch())
}

/// What the MLP adds to the residual stream.
fn mlp_branch() -> Pat {
    let fc1 = linear(norm("norm"), FC1);
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
    ]);
    linear(act.named("act"), FC2)
}

/// Finds the blocks, and the places where the pattern all but matched.
pub fn find(graph: &Graph) -> (Vec<Block>, Vec<NearMiss>) {
    let (attentions, mut misses) = halves(graph, "attention", &attention(), "Softmax", |m| attention_of(graph, m));
    let (mlps, mlp_misses) = halves(graph, "mlp", &mlp(), "Gelu", |m| mlp_of(graph, m));
    misses.extend(mlp_misses);
    let mut blocks = Vec::new();
    for mlp in mlps.iter().filter(|m| attentions.iter().all(|a| a.output != m.x)) {
        let why = graph.value(&mlp.x).and_then(|v| branch_miss(graph, v, &attention_branch()));
        misses.push(half_missing(&mlp.x, "an attention whose sum is", why, &misses));
    }
    for attention in attentions {
        match mlps.iter().find(|m| m.x == attention.output) {
            None => {
                let readers = graph.value(&attention.output).map(|v| graph.uses(v)).unwrap_or_default();
                let sums = readers.into_iter().filter(|u| graph.is_op(u.node, "Add"));
                let failed = sums.filter_map(|u| branch_miss(graph, Value { node: u.node, port: 0 }, &mlp_branch()));
                let why = failed.reduce(deeper);
                misses.push(half_missing(&attention.output, "an MLP that reads", why, &misses));
            }
            Some(mlp) => {
                let shape =
                    graph.value(&mlp.fc1.weight).and_then(|v| graph.constant(v)).map(|t| t.shape.clone()).unwrap_or_default();
                let (dim, hidden) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
                let mlp_ratio = hidden as f64 / dim.max(1) as f64;
                blocks.push(Block { index: blocks.len(), attention, mlp: mlp.clone(), mlp_ratio, dim });
            }
        }
    }
    (blocks, misses)
}

fn deeper(a: Miss, b: Miss) -> Miss {
    if b.depth > a.depth { b } else { a }
}

/// Where the branch of a sum leaves its pattern. The residual operand of a pre-norm block is the one that a LayerNorm reads.
fn branch_miss(graph: &Graph, sum: Value, branch: &Pat) -> Option<Miss> {
    let operands: Vec<Value> = graph.inputs_of(sum.node).into_iter().flatten().collect();
    let normed = |v: &Value| graph.uses(*v).into_iter().any(|u| graph.is_op(u.node, "LayerNormalization"));
    let one = operands.iter().filter(|v| normed(v)).count() == 1;
    let branches = operands.iter().filter(|v| !one || !normed(v));
    branches.filter_map(|&v| match_value(graph, branch, v).err()).reduce(deeper)
}

/// Half a block is there, the other is not.
fn half_missing(value: &str, expected: &str, why: Option<Miss>, known: &[NearMiss]) -> NearMiss {
    // The same place may have been reported for its Softmax or Gelu already.
    let why = why.filter(|w| known.iter().all(|k| k.what != w.what));
    let why = why.map_or_else(String::new, |w| format!(": {}", w.what));
    NearMiss { rule: "block", tell: value.to_owned(), what: format!("{expected} '{value}' expected, found none{why}") }
}

/// Whether an Add may be a residual sum: the bias of a Linear is none.
fn sums_activations(graph: &Graph, id: NodeId) -> bool {
    graph.is_op(id, "Add") && graph.inputs_of(id).into_iter().flatten().all(|v| graph.constant(v).is_none())
}

/// Every match of a half in topological order, and for each `tell` operator in none of them the deepest miss.
fn halves<T>(
    graph: &Graph,
    rule: &'static str,
    pattern: &Pat,
    tell: &'static str,
    make: impl Fn(&Match) -> Option<T>,
) -> (Vec<T>, Vec<NearMiss>) {
    let (mut found, mut covered, mut best) = (Vec::new(), Vec::new(), BTreeMap::<NodeId, Miss>::new());
    for id in graph.ops().into_iter().filter(|&id| sums_activations(graph, id)) {
        match match_value(graph, pattern, Value { node: id, port: 0 }) {
            Ok(m) => {
                if let Some(half) = make(&m) {
                    covered.extend(["probabilities", "act"].iter().filter_map(|n| m.get(n)).map(|v| v.node));
                    found.push(half);
                }
            }
            Err(miss) => {
                for &n in miss.path.iter().filter(|&&n| graph.is_op(n, tell)) {
                    if best.get(&n).is_none_or(|b| b.depth < miss.depth) {
                        best.insert(n, miss.clone());
                    }
                }
            }
        }
    }
    let lonely = graph.ops().into_iter().filter(|id| graph.is_op(*id, tell) && !covered.contains(id));
    let misses = lonely.map(|id| NearMiss {
        rule,
        tell: graph.describe(id),
        what: best.get(&id).map_or_else(
            || format!("{} is not inside a residual branch of the known form", graph.describe(id)),
            |m| m.what.clone(),
        ),
    });
    (found, misses.collect())
}

struct Names<'a> {
    graph: &'a Graph,
    m: &'a Match,
}

impl Names<'_> {
    fn name(&self, of: &str) -> String {
        self.graph.value_name(self.m.value(of)).to_owned()
    }

    fn linear(&self, [weight, product, bias, output]: [&str; 4]) -> Linear {
        let bias = self.m.get(bias).map(|v| self.graph.value_name(v).to_owned());
        Linear { weight: self.name(weight), product: self.name(product), bias, output: self.name(output) }
    }
}

fn attention_of(graph: &Graph, m: &Match) -> Option<Attention> {
    let n = Names { graph, m };
    let shape = graph.constant(m.value("q_shape"))?.to_i64().ok()?;
    let [.., heads, head_dim] = shape[..] else { return None };
    // One of the two may be left to be computed.
    let width = graph.constant(m.value("q_weight"))?.shape.get(1).and_then(|&w| i64::try_from(w).ok())?;
    let (heads, head_dim) = match (heads, head_dim) {
        (-1, d) if d > 0 => (width / d, d),
        (h, -1) if h > 0 => (h, width / h),
        known => known,
    };
    let chain = |parts: [&str; 3]| parts.map(|p| n.name(p)).to_vec();
    Some(Attention {
        x: n.name("x"),
        norm: n.name("norm"),
        qkv: [n.linear(Q), n.linear(K), n.linear(V)],
        heads_first: [
            chain(["q_output", "q_heads", "q_first"]),
            chain(["k_output", "k_heads", "k_first"]),
            chain(["v_output", "v_heads", "v_first"]),
        ],
        scores: n.name("scores"),
        probabilities: n.name("probabilities"),
        context: chain(["context", "context_back", "context_merged"]),
        proj: n.linear(PROJ),
        output: graph.value_name(m.root()).to_owned(),
        heads: usize::try_from(heads).ok().filter(|&h| h > 0)?,
        head_dim: usize::try_from(head_dim).ok().filter(|&d| d > 0)?,
    })
}

fn mlp_of(graph: &Graph, m: &Match) -> Option<Mlp> {
    let n = Names { graph, m };
    Some(Mlp {
        x: n.name("x"),
        norm: n.name("norm"),
        fc1: n.linear(FC1),
        act: n.name("act"),
        act_op: match (m.get("gate"), m.get("gate_input")) {
            (None, _) => graph.op(m.value("act").node)?.op.op_type.clone(),
            (Some(_), None) => "Silu".to_owned(),
            (Some(_), Some(_)) => "QuickGelu".to_owned(),
        },
        gate: ["gate_input", "gate"].iter().filter_map(|p| m.get(p)).map(|v| graph.value_name(v).to_owned()).collect(),
        fc2: n.linear(FC2),
        output: graph.value_name(m.root()).to_owned(),
    })
}

/// The sites of one block, in the order of the data flow.
pub(super) fn sites(block: &Block) -> Vec<SiteRef> {
    let (a, m) = (&block.attention, &block.mlp);
    let site = |site, part: Option<&str>, weight, values: Vec<String>| SiteRef {
        block: Some(block.index),
        site,
        part: part.map(str::to_owned),
        weight,
        values,
    };
    let one = |s, value: &String| site(s, None, false, vec![value.clone()]);
    let weight = |s, value: &String| site(s, None, true, vec![value.clone()]);
    let parts = ["q", "k", "v"];
    let mut out = vec![one(Site::Norm1, &a.norm)];
    out.extend(parts.iter().zip(&a.qkv).map(|(p, l)| site(Site::AttnQkv, Some(p), true, vec![l.weight.clone()])));
    out.extend(parts.iter().zip(&a.heads_first).map(|(p, v)| site(Site::AttnQkvOutput, Some(p), false, v.clone())));
    out.extend([
        one(Site::KvAct, &a.scores),
        one(Site::IntSoft, &a.probabilities),
        site(Site::SvAttn, None, false, a.context.clone()),
        weight(Site::AttnProj, &a.proj.weight),
        one(Site::AttnProjOutput, &a.proj.output),
        one(Site::Residual1, &a.output),
        one(Site::Norm2, &m.norm),
        weight(Site::MlpFc1, &m.fc1.weight),
        one(Site::MlpFc1Output, &m.fc1.output),
        one(Site::MlpAct, &m.act),
        weight(Site::MlpFc2, &m.fc2.weight),
        one(Site::MlpAct2, &m.fc2.output),
        one(Site::Residual2, &m.output),
    ]);
    out
}
