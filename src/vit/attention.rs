//! The attention branch: its pattern, and the sites inside it.

use super::Site;
use super::parts::{
    Linear, LinearNames, NORMS, Names, Part, another_norm, linear, moves, normed_branch, normed_input, over_last_axis,
    plain_input, runs,
};
use crate::ir::{Graph, Op, Tensor, Value};
use crate::pattern::{Match, Pat, any_of, chain, commute, constant, konst, op, rest};

/// The attention branch of a block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Attention {
    /// The residual stream that it reads.
    pub x: String,
    /// What it adds to the residual stream.
    pub branch: String,
    /// The LayerNorm before it, in pre-norm blocks.
    pub norm: Option<String>,
    /// The LayerNorm behind it, in post-norm blocks.
    pub post_norm: Option<String>,
    /// q (unless it is a learnt constant), k and v.
    pub qkv: Vec<Linear>,
    /// The scores as the softmax reads them.
    pub scores: String,
    /// The probabilities.
    pub probabilities: String,
    /// The output projection.
    pub proj: Linear,
    /// The number of heads.
    pub heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// What it has that plain attention has not: `windows`, `position bias`, `mask`, `rotary embedding`, `qk-norm`, ….
    pub features: Vec<&'static str>,
    /// Values inside a step, which have no codes of their own.
    pub inner: Vec<String>,
    #[serde(skip)]
    pub(super) parts: Vec<Part>,
}

const HEADS_FIRST: &[i64] = &[0, 2, 1, 3];
const KEYS_TRANSPOSED: &[i64] = &[0, 2, 3, 1];
const TRANSPOSED: &[i64] = &[0, 1, 3, 2];
const Q: LinearNames = ["q_weight", "q_product", "q_bias", "q_output"];
const K: LinearNames = ["k_weight", "k_product", "k_bias", "k_output"];
const V: LinearNames = ["v_weight", "v_product", "v_bias", "v_output"];
const PROJ: LinearNames = ["proj_weight", "proj_product", "proj_bias", "proj_output"];

fn perm_of(op: &Op, want: &[i64]) -> Result<(), String> {
    let found = op.attrs.ints("perm").unwrap_or_default();
    if found == want { Ok(()) } else { Err(format!("perm {want:?} expected, found {found:?}")) }
}

/// What may happen to q and k between their Linear and the scores: normalisation, a rotary embedding.
fn steps_of_q() -> [Pat; 12] {
    let length = || op("Clip", [op("ReduceL2", [rest()])]);
    [
        another_norm(rest()),
        op("Div", [rest(), length()]),
        op("Reshape", [rest()]),
        op("Transpose", [rest()]),
        op("Unsqueeze", [rest()]),
        op("Squeeze", [rest()]),
        op("Slice", [rest()]),
        op("Split", [rest()]),
        op("Neg", [rest()]),
        commute("Mul", rest(), constant()),
        op("Concat", [rest(), rest()]),
        op("Add", [rest(), rest()]),
    ]
}

/// What may happen to the scores before the softmax, and to the probabilities behind it.
fn steps_of_scores() -> [Pat; 8] {
    // Talking heads: a Linear over the heads.
    let mixed = || op("MatMul", [rest(), constant()]);
    [
        op("Reshape", [rest()]),
        op("Transpose", [rest()]),
        op("Unsqueeze", [rest()]),
        op("Squeeze", [rest()]),
        op("Add", [mixed(), constant()]),
        mixed(),
        commute("Add", rest(), constant()),
        commute("Mul", rest(), constant()),
    ]
}

/// From x to what is added to it.
pub(super) fn branch() -> Pat {
    normed_branch(|input| projected(heads_of_q(linear(input(), Q)), input))
}

/// Attention with a learnt query, which pools the tokens: there is no residual stream of its width to add to.
pub(super) fn pooling() -> Pat {
    let learnt = op("Expand", [konst("query")]).named("query_expanded");
    // With a batch that is fixed the query is a constant to the end.
    let input = || any_of([normed_input(), plain_input()]);
    any_of([projected(heads_of_q(linear(learnt, Q)), input), projected(konst("query"), input)])
}

fn split(x: Pat, shaped: &'static str, shape: &'static str) -> Pat {
    op("Reshape", [x, konst(shape)]).named(shaped)
}

fn heads_first(x: Pat, first: &'static str) -> Pat {
    op("Transpose", [x]).check(|op| perm_of(op, HEADS_FIRST)).named(first)
}

fn heads_of_q(q: Pat) -> Pat {
    let normed = chain("q_norm", [another_norm(rest())], split(q, "q_heads", "q_shape"));
    chain("q_path", steps_of_q(), heads_first(normed, "q_first"))
}

fn projected(q: Pat, input: fn() -> Pat) -> Pat {
    let keys = |x: Pat| op("Transpose", [x]).check(|op| perm_of(op, KEYS_TRANSPOSED)).named("k_first");
    let transposed = |x: Pat| op("Transpose", [x]).check(|op| perm_of(op, TRANSPOSED)).named("k_transposed");
    let k = || chain("k_norm", [another_norm(rest())], split(linear(input(), K), "k_heads", "k_shape"));
    let k = any_of([keys(k()), transposed(chain("k_path", steps_of_q(), heads_first(k(), "k_first")))]);
    let v = heads_first(split(linear(input(), V), "v_heads", "v_shape"), "v_first");
    let scores = chain("scores_path", steps_of_scores(), op("MatMul", [q, k]).named("product"));
    let probabilities = op("Softmax", [scores.clone()]).check(over_last_axis).named("probabilities");
    let mixed = chain("mix_path", steps_of_scores(), probabilities);
    let context = op("MatMul", [mixed, v]).named("context");
    let back = op("Transpose", [context]).check(|op| perm_of(op, HEADS_FIRST)).named("context_back");
    let merged = op("Reshape", [back, konst("merged_shape")]).named("context_merged");
    let inner_norm = another_norm(merged.clone()).named("inner_norm");
    linear(chain("context_path", moves(), any_of([merged, inner_norm])), PROJ)
}

/// What is known of a match of [`branch`] or [`pooling`].
pub(super) fn of(graph: &Graph, m: &Match) -> Option<Attention> {
    let n = Names { graph, m };
    let shape = ["k_shape", "q_shape"].iter().find_map(|s| graph.constant(m.get(s)?)?.to_i64().ok())?;
    let [.., heads, head_dim] = shape[..] else { return None };
    // One of the two may be left to be computed.
    let width = graph.constant(m.value("k_weight"))?.shape.get(1).and_then(|&w| i64::try_from(w).ok())?;
    let (heads, head_dim) = match (heads, head_dim) {
        (-1, d) if d > 0 => (width / d, d),
        (h, -1) if h > 0 => (h, width / h),
        known => known,
    };
    let mut found = Found { n: &n, parts: Vec::new(), features: Vec::new(), inner: Vec::new() };
    let qkv: Vec<Linear> = [Q, K, V].into_iter().filter(|l| m.get(l[0]).is_some()).map(|l| n.linear(l)).collect();
    found.before(&qkv);
    let scores = found.scores();
    found.context();
    let proj = n.linear(PROJ);
    found.back(&proj);
    let Found { parts, features, mut inner, .. } = found;
    inner.extend(qkv.iter().chain([&proj]).filter(|l| l.bias.is_some()).map(|l| l.product.clone()));
    Some(Attention {
        x: n.get("x").unwrap_or_default(),
        branch: n.of(m.root()),
        norm: n.get("norm"),
        post_norm: n.get("post_norm"),
        qkv,
        scores,
        probabilities: n.name("probabilities"),
        proj,
        heads: usize::try_from(heads).ok().filter(|&h| h > 0)?,
        head_dim: usize::try_from(head_dim).ok().filter(|&d| d > 0)?,
        features,
        inner,
        parts,
    })
}

/// Parts and features as they are found.
struct Found<'a> {
    n: &'a Names<'a>,
    parts: Vec<Part>,
    features: Vec<&'static str>,
    inner: Vec<String>,
}

impl Found<'_> {
    fn values(&mut self, site: Site, part: Option<&str>, values: &[Value]) {
        let values = values.iter().map(|&v| self.n.of(v)).collect();
        self.parts.push(Part::values(site, part, values));
    }

    fn feature(&mut self, feature: &'static str) {
        if !self.features.contains(&feature) {
            self.features.push(feature);
        }
    }

    fn list(&self, name: &str) -> Vec<Value> {
        self.n.m.list(name)
    }

    /// The LayerNorm, q, k and v.
    fn before(&mut self, qkv: &[Linear]) {
        let m = self.n.m;
        let windows = self.list("windows");
        if windows.iter().any(|v| self.n.op_type(*v) == "Transpose") {
            self.feature("windows");
        }
        if m.get("joined").is_some() {
            self.feature("class token only");
        }
        if let Some(norm) = m.get("norm") {
            let all: Vec<Value> = [norm].into_iter().chain(windows).collect();
            self.values(Site::Norm1, None, &all);
        } else if !windows.is_empty() {
            self.parts.push(Part::values(Site::Residual2, Some("windows"), self.n.list("windows")));
        }
        let letters = if qkv.len() == 3 { &["q", "k", "v"][..] } else { &["k", "v"][..] };
        for (letter, linear) in letters.iter().zip(qkv) {
            self.parts.push(Part::weight(Site::AttnQkv, Some(letter), &linear.weight));
        }
        if m.get("query").is_some() {
            self.feature("learnt query");
            let expanded = self.n.get("query_expanded").map(|v| Part::values(Site::AttnQkvOutput, Some("query"), vec![v]));
            self.parts.extend(expanded);
        }
        match m.get("query").filter(|_| m.get("q_output").is_none()) {
            Some(query) => self.parts.push(Part::weight(Site::AttnQkvOutput, Some("q"), &self.n.of(query))),
            None => self.operand("q", ["q_output", "q_heads", "q_norm", "q_first", "q_path", ""]),
        }
        self.operand("k", ["k_output", "k_heads", "k_norm", "k_first", "k_path", "k_transposed"]);
        let v: Vec<Value> = ["v_output", "v_heads", "v_first"].iter().filter_map(|n| m.get(n)).collect();
        self.values(Site::AttnQkvOutput, Some("v"), &v);
    }

    /// q or k: what its Linear makes; what normalisation and rotary embedding make of it.
    fn operand(&mut self, letter: &str, [output, heads, norm, heads_first, path, transposed]: [&str; 6]) {
        let one = |name: &str| self.n.m.get(name).into_iter();
        let mut first: Vec<Value> = one(output).chain(one(heads)).collect();
        let moved = one(heads_first).chain(self.list(path)).chain(one(transposed));
        let mut path: Vec<Value> = self.list(norm).into_iter().chain(moved).collect();
        // What only moves elements keeps their codes up to the first operator that computes.
        let moved = path.iter().take_while(|v| matches!(self.n.op_type(**v), "Reshape" | "Transpose")).count();
        let rest = path.split_off(moved);
        first.extend(path);
        self.values(Site::AttnQkvOutput, Some(letter), &first);
        if rest.is_empty() {
            return;
        }
        let normalises = |v: &Value| NORMS.contains(&self.n.op_type(*v)) || self.n.op_type(*v) == "Div";
        let norm = rest.iter().rposition(normalises);
        let moves = |v: &&Value| self.n.moves(**v);
        // What is computed behind the norm, or without one: a rotary embedding, a factor a head.
        let from = norm.map_or(0, |at| at + 1 + rest[at + 1..].iter().take_while(moves).count());
        if let Some(at) = norm {
            self.feature(if self.n.op_type(rest[at]) == "Div" { "cosine" } else { "qk-norm" });
            self.values(Site::QkNorm, Some(letter), &rest[at..from]);
            self.inner.extend(rest[..at].iter().map(|&v| self.n.of(v)));
            if let Some(length) = self.n.graph.input(rest[at].node, 1).filter(|_| self.n.op_type(rest[at]) == "Div") {
                self.inner.push(self.n.of(length));
                self.inner.extend(self.n.graph.input(length.node, 0).map(|v| self.n.of(v)));
            }
        }
        let Some(computed) = rest[from..].iter().rposition(|v| !self.n.moves(*v)).map(|at| from + at) else {
            if norm.is_none() {
                // Nothing but picked: a site of its own, since only part of the codes goes on.
                self.values(Site::QkRope, Some(letter), &rest);
            }
            return;
        };
        if rest[from..].iter().any(|v| self.n.op_type(*v) == "Add") {
            self.feature("rotary embedding");
        }
        // The tokens that are not rotated join the others behind the sum.
        let joined = rest[computed..].iter().position(|v| self.n.op_type(*v) == "Concat").map_or(computed, |n| computed + n);
        self.values(Site::QkRope, Some(letter), &rest[joined..]);
        self.inner.extend(rest[from..joined].iter().map(|&v| self.n.of(v)));
    }

    /// From the product to what reads the probabilities; the name of what the softmax reads.
    fn scores(&mut self) -> String {
        let (m, graph) = (self.n.m, self.n.graph);
        let path = self.list("scores_path");
        let mut all = runs(self.n, m.value("product"), &path);
        let last = all.pop().unwrap_or_default();
        let mut unmasked = None;
        for (i, run) in all.iter().enumerate() {
            let next = all.get(i + 1).unwrap_or(&last)[0];
            if self.talks(next) {
                // A Linear reads them: they must be codes.
                self.values(Site::KvAct, Some("product"), run);
            } else {
                self.inner.extend(run.iter().map(|&v| self.n.of(v)));
            }
            let constant = graph.inputs_of(next.node).into_iter().flatten().find_map(|v| graph.constant(v));
            match (self.n.op_type(next), constant) {
                _ if self.talks(next) => {
                    self.talking(next, "before");
                    unmasked = None;
                }
                ("Add", Some(t)) if is_mask(t) => {
                    self.feature("mask");
                    unmasked = run.last().map(|&v| self.n.of(v));
                }
                ("Add", _) => {
                    self.feature("position bias");
                    unmasked = None;
                }
                // Of other numbers than before the mask.
                _ => unmasked = None,
            }
        }
        self.values(Site::KvAct, None, &last);
        if let Some(part) = self.parts.last_mut() {
            part.observe = unmasked;
        }
        let scores = last.last().map(|&v| self.n.of(v)).unwrap_or_default();
        let mixed = runs(self.n, m.value("probabilities"), &self.list("mix_path"));
        for (i, run) in mixed.iter().enumerate() {
            if i == 0 {
                self.values(Site::IntSoft, None, run);
            } else {
                if self.talks(run[0]) {
                    self.talking(run[0], "behind");
                }
                self.values(Site::TalkingOutput, None, run);
            }
        }
        scores
    }

    /// Whether a value is a Linear's over the heads.
    fn talks(&self, value: Value) -> bool {
        self.talking_product(value).is_some()
    }

    fn talking_product(&self, value: Value) -> Option<Value> {
        let product = match self.n.op_type(value) {
            "MatMul" => value,
            _ => self.n.graph.input(value.node, 0).filter(|&v| self.n.op_type(v) == "MatMul")?,
        };
        let weight = self.n.graph.input(product.node, 1)?;
        self.n.graph.constant(weight).map(|_| product)
    }

    fn talking(&mut self, value: Value, part: &'static str) {
        self.feature("talking heads");
        let Some(product) = self.talking_product(value) else { return };
        if let Some(weight) = self.n.graph.input(product.node, 1) {
            self.parts.push(Part::weight(Site::TalkingHeads, Some(part), &self.n.of(weight)));
        }
        if product != value {
            self.inner.push(self.n.of(product));
        }
    }

    fn context(&mut self) {
        let m = self.n.m;
        let mut values: Vec<Value> = ["context", "context_back", "context_merged"].map(|name| m.value(name)).to_vec();
        let moved = self.list("context_path");
        match m.get("inner_norm") {
            None => values.extend(moved),
            Some(norm) => {
                self.feature("inner norm");
                self.values(Site::SvAttn, None, &values);
                values = [norm].into_iter().chain(moved).collect();
                return self.values(Site::AttnNorm, None, &values);
            }
        }
        self.values(Site::SvAttn, None, &values);
    }

    /// The projection and the way back to the residual stream.
    fn back(&mut self, proj: &Linear) {
        self.parts.push(Part::weight(Site::AttnProj, None, &proj.weight));
        self.parts.extend(way_back(self.n, proj, Site::AttnProjOutput, Site::Norm1));
        if self.n.m.get("post_norm").is_some() {
            self.feature("post-norm");
        }
    }
}

/// The sites from a branch's last Linear to the sum.
pub(super) fn way_back(n: &Names<'_>, last: &Linear, output: Site, norm: Site) -> Vec<Part> {
    let (unwindowed, back) = (n.list("unwindowed"), n.list("back"));
    let from = |first: String, rest: Vec<String>| [first].into_iter().chain(rest).collect();
    match n.get("post_norm") {
        None => vec![Part::values(output, None, from(last.output.clone(), back))],
        Some(normed) => {
            vec![Part::values(output, None, from(last.output.clone(), unwindowed)), Part::values(norm, None, from(normed, back))]
        }
    }
}

/// Whether a constant hides scores: nothing, or so little that the softmax of it is 0.
fn is_mask(t: &Tensor) -> bool {
    const HIDDEN: f32 = -20.0;
    let values = t.to_f32().unwrap_or_default();
    values.iter().any(|&v| v <= HIDDEN) && values.iter().all(|&v| v == 0.0 || v <= HIDDEN)
}
