//! Blocks: sums of the residual stream and the branches that they add, paired.

use std::collections::{BTreeMap, BTreeSet};

use super::attention::{self, Attention};
use super::mlp::{self, Mlp};
use super::parts::{MOVES, Part, is_normed};
use super::{Site, SiteRef};
use crate::ir::{Graph, NodeId, Value};
use crate::pattern::{Miss, NearMiss, Pat, match_given, match_value};

/// A block.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Block {
    /// Its number, in the order of the data flow.
    pub index: usize,
    /// How it is built: `pre-norm`, `post-norm`, `parallel`, or `pooling` for attention with a learnt query.
    pub kind: &'static str,
    /// The residual stream before it.
    pub x: String,
    /// Its attention branches: one, but for blocks with several in parallel.
    pub attentions: Vec<Attention>,
    /// Its MLP branches.
    pub mlps: Vec<Mlp>,
    /// The residual sum after it.
    pub output: String,
    /// Columns of the first Linear divided by its rows.
    pub mlp_ratio: f64,
    /// The width of the residual stream.
    pub dim: usize,
    /// The sums, first to last, each with the values that carry it to its readers.
    #[serde(skip)]
    pub(super) sums: Vec<Sum>,
}

/// A residual sum of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    /// The sum, and what moves its elements to the next reader in a block.
    pub(super) values: Vec<String>,
    /// Sums of branches alone, which are added to the stream together.
    partial: Vec<String>,
    /// What a class token is joined to before its LayerNorm.
    joined: Option<String>,
}

/// Branches that are added to the residual stream by one sum.
struct Half {
    x: Value,
    sum: Value,
    partial: Vec<Value>,
    attentions: Vec<Attention>,
    mlps: Vec<Mlp>,
    joined: Option<Value>,
}

/// The patterns, made once.
struct Forms {
    attention: Pat,
    mlp: Pat,
    pooling: Pat,
}

/// Finds the blocks, and the places where the pattern all but matched.
pub fn find(graph: &Graph) -> (Vec<Block>, Vec<NearMiss>) {
    let forms = Forms { attention: attention::branch(), mlp: mlp::branch(), pooling: attention::pooling() };
    let mut search = Search { graph, forms, halves: Vec::new(), covered: BTreeSet::new(), missed: BTreeMap::new() };
    search.halves();
    search.poolings();
    search.halves.sort_by_key(|half| graph.get(half.sum.node).map(|n| n.ord));
    let mut misses = search.near_misses();
    let blocks = search.pair(&mut misses);
    (blocks, misses)
}

struct Search<'g> {
    graph: &'g Graph,
    forms: Forms,
    /// In the order of the data flow.
    halves: Vec<Half>,
    /// Softmaxes and activations inside a branch.
    covered: BTreeSet<NodeId>,
    /// For operators that give a branch away and are in none: where the nearest branch left its pattern.
    missed: BTreeMap<NodeId, Miss>,
}

/// A branch of either form.
enum Branch {
    Attention(Box<(Attention, Option<Value>)>),
    Mlp(Box<Mlp>),
}

/// Operators that give a branch away.
const TELLS: [(&str, &str); 2] = [("attention", "Softmax"), ("mlp", "Gelu")];

impl Search<'_> {
    /// The terms of a sum of activations, sums that nothing else reads taken apart, and those inner sums. The bias of a Linear
    /// is no term; a class token is.
    fn terms(&self, sum: Value) -> Option<(Vec<Value>, Vec<Value>)> {
        /// More branches than any block has in parallel.
        const MOST: usize = 32;
        let operands = |v: Value| -> Option<Vec<Value>> {
            let operands: Vec<Value> = self.graph.inputs_of(v.node).into_iter().flatten().collect();
            let sums = operands.iter().all(|v| self.graph.constant(*v).is_none_or(|t| t.shape.len() > 1));
            (self.graph.is_op(v.node, "Add") && sums).then_some(operands)
        };
        let (mut terms, mut inner) = (Vec::new(), Vec::new());
        // The first term first: the stack is read from its end.
        let mut todo: Vec<Value> = operands(sum)?.into_iter().rev().collect();
        while let Some(v) = todo.pop() {
            let alone = self.graph.use_count(v) == 1 && !self.graph.is_output(v);
            match operands(v).filter(|_| alone) {
                Some(more) => {
                    inner.push(v);
                    todo.extend(more.into_iter().rev());
                }
                None => terms.push(v),
            }
            if terms.len() + todo.len() > MOST {
                return None;
            }
        }
        // The innermost sum first, as they are computed.
        inner.reverse();
        Some((terms, inner))
    }

    fn halves(&mut self) {
        let graph = self.graph;
        let sums = graph.ops().into_iter().map(|node| Value { node, port: 0 });
        let sums: Vec<(Value, Vec<Value>, Vec<Value>)> =
            sums.filter_map(|sum| self.terms(sum).map(|(terms, inner)| (sum, terms, inner))).collect();
        let inner: BTreeSet<Value> = sums.iter().flat_map(|(.., inner)| inner).copied().collect();
        for (sum, terms, partial) in sums.into_iter().filter(|(sum, ..)| !inner.contains(sum)) {
            // The residual operand of a pre-norm block is the one that a LayerNorm reads: ask for it first.
            let mut candidates = terms.clone();
            // The stream is added once.
            candidates.retain(|x| terms.iter().filter(|t| *t == x).count() == 1);
            candidates.sort_by_key(|&v| !is_normed(graph, v));
            for x in candidates {
                let branches: Vec<Value> = terms.iter().copied().filter(|&t| t != x).collect();
                let found: Option<Vec<Branch>> = branches.iter().map(|&t| self.branch(x, t)).collect();
                if let Some(found) = found.filter(|f| !f.is_empty()) {
                    self.take(x, sum, partial, found);
                    break;
                }
            }
        }
    }

    fn branch(&mut self, x: Value, value: Value) -> Option<Branch> {
        let graph = self.graph;
        let given = [("x", x), ("root", self.root(x))];
        let mut deepest: Option<Miss> = None;
        match match_given(graph, &self.forms.attention, value, &given) {
            Ok(m) => {
                if let Some(found) = attention::of(graph, &m) {
                    self.covered.extend(m.get("probabilities").map(|v| v.node));
                    return Some(Branch::Attention(Box::new((found, m.get("joined")))));
                }
            }
            Err(miss) => deepest = Some(miss),
        }
        match match_given(graph, &self.forms.mlp, value, &given) {
            Ok(m) => {
                self.covered.extend(m.get("act").map(|v| v.node));
                return Some(Branch::Mlp(Box::new(mlp::of(graph, &m))));
            }
            Err(miss) if deepest.as_ref().is_none_or(|d| d.depth < miss.depth) => deepest = Some(miss),
            Err(_) => {}
        }
        if let Some(miss) = deepest {
            self.remember(&miss);
        }
        None
    }

    /// The value that was reshaped to another.
    fn root(&self, mut value: Value) -> Value {
        while self.graph.is_op(value.node, "Reshape")
            && let Some(from) = self.graph.input(value.node, 0)
        {
            value = from;
        }
        value
    }

    fn remember(&mut self, miss: &Miss) {
        for &n in miss.path.iter().filter(|&&n| TELLS.iter().any(|(_, tell)| self.graph.is_op(n, tell))) {
            if self.missed.get(&n).is_none_or(|known| known.depth < miss.depth) {
                self.missed.insert(n, miss.clone());
            }
        }
    }

    fn take(&mut self, x: Value, sum: Value, partial: Vec<Value>, found: Vec<Branch>) {
        let mut half = Half { x, sum, partial, attentions: Vec::new(), mlps: Vec::new(), joined: None };
        for branch in found {
            match branch {
                Branch::Attention(found) => {
                    half.attentions.push(found.0);
                    half.joined = half.joined.or(found.1);
                }
                Branch::Mlp(found) => half.mlps.push(*found),
            }
        }
        self.halves.push(half);
    }

    /// Attention with a learnt query: what it makes is a stream of its own.
    fn poolings(&mut self) {
        let graph = self.graph;
        for node in graph.ops() {
            let value = Value { node, port: 0 };
            if !(graph.is_op(node, "Add") || graph.is_op(node, "MatMul")) || !is_normed(graph, value) {
                continue;
            }
            let Ok(m) = match_value(graph, &self.forms.pooling, value) else { continue };
            let Some(found) = attention::of(graph, &m) else { continue };
            self.covered.insert(m.value("probabilities").node);
            let half = Half {
                x: m.value("x"),
                sum: value,
                partial: Vec::new(),
                attentions: vec![found],
                mlps: Vec::new(),
                joined: None,
            };
            self.halves.push(half);
        }
    }

    /// Whether a graph has attention at all: a GELU of a network without is no near miss.
    fn attends(&self) -> bool {
        self.graph.ops().into_iter().any(|id| self.graph.is_op(id, "Softmax") && self.between_products(id))
    }

    /// Whether a Softmax lies between products of activations.
    fn between_products(&self, softmax: NodeId) -> bool {
        let product = |v: Value| {
            let inputs = self.graph.inputs_of(v.node);
            self.graph.is_op(v.node, "MatMul") && inputs.into_iter().flatten().all(|i| self.graph.constant(i).is_none())
        };
        let mut seen = BTreeSet::new();
        let mut todo = vec![Value { node: softmax, port: 0 }];
        while let Some(v) = todo.pop() {
            for u in self.graph.uses(v) {
                let y = Value { node: u.node, port: 0 };
                if product(y) {
                    return true;
                }
                let goes_on = MOVES.iter().chain(&["Add", "Sub", "Mul", "MatMul"]).any(|op| self.graph.is_op(y.node, op));
                if goes_on && seen.insert(y) && seen.len() < 16 {
                    todo.push(y);
                }
            }
        }
        false
    }

    /// For each Softmax of attention and each Gelu that is in no branch, where the nearest branch left its pattern.
    fn near_misses(&self) -> Vec<NearMiss> {
        let attends = self.attends();
        let tells = |id: NodeId| {
            let rule = TELLS.iter().find(|(_, tell)| self.graph.is_op(id, tell)).map(|(rule, _)| *rule)?;
            (if rule == "attention" { self.between_products(id) } else { attends }).then_some((id, rule))
        };
        let lonely = self.graph.ops().into_iter().filter(|id| !self.covered.contains(id)).filter_map(tells);
        let miss = |(id, rule): (NodeId, &'static str)| {
            let tell = self.graph.describe(id);
            let unknown = || format!("{tell} is not inside a residual branch of the known form");
            let what = self.missed.get(&id).map_or_else(unknown, |m| m.what.clone());
            NearMiss { rule, tell, what }
        };
        lonely.map(miss).collect()
    }

    /// The values from `from` to `to` when only moves lie between.
    fn carried(&self, from: Value, to: Value) -> Option<Vec<Value>> {
        let mut chain = Vec::new();
        let mut at = to;
        while at != from {
            if !MOVES.iter().any(|op| self.graph.is_op(at.node, op)) {
                return None;
            }
            chain.push(at);
            at = self.graph.input(at.node, 0)?;
        }
        chain.reverse();
        Some(chain)
    }

    /// Pairs attention with the MLP that reads its sum.
    fn pair(self, misses: &mut Vec<NearMiss>) -> Vec<Block> {
        let mut taken = BTreeSet::new();
        let mut blocks: Vec<Block> = Vec::new();
        for (i, half) in self.halves.iter().enumerate().filter(|(_, h)| !h.attentions.is_empty()) {
            if !half.mlps.is_empty() {
                blocks.push(self.block(half, None, blocks.len()));
                continue;
            }
            let of_mlp = |m: &Half| m.attentions.is_empty() && self.carried(half.sum, m.x).is_some();
            match self.halves.iter().enumerate().skip(i + 1).find(|(_, m)| of_mlp(m)) {
                Some((k, mlp)) => {
                    taken.insert(k);
                    blocks.push(self.block(half, Some(mlp), blocks.len()));
                }
                None => {
                    let readers = self.graph.uses(half.sum).into_iter().filter(|u| self.graph.is_op(u.node, "Add"));
                    let sums = readers.map(|u| Value { node: u.node, port: 0 });
                    let why = sums.filter_map(|sum| self.branch_miss(sum, half.sum, &self.forms.mlp)).reduce(deeper);
                    misses.push(self.half_missing(half.sum, "an MLP that reads", why, misses));
                }
            }
        }
        for (_, half) in self.halves.iter().enumerate().filter(|(k, h)| h.attentions.is_empty() && !taken.contains(k)) {
            let mut terms = self.terms(half.x).map(|(terms, _)| terms).unwrap_or_default();
            // The residual operand of a pre-norm block is the one that a LayerNorm reads.
            if terms.iter().any(|&v| is_normed(self.graph, v)) {
                terms.retain(|&v| is_normed(self.graph, v));
            }
            let why = terms.into_iter().filter_map(|x| self.branch_miss(half.x, x, &self.forms.attention)).reduce(deeper);
            misses.push(self.half_missing(half.x, "an attention whose sum is", why, misses));
        }
        blocks
    }

    /// Where the branch that a sum adds to `x` leaves its pattern.
    fn branch_miss(&self, sum: Value, x: Value, branch: &Pat) -> Option<Miss> {
        let (terms, inner) = self.terms(sum)?;
        let reads = |v: &&Value| self.graph.inputs_of(v.node).contains(&Some(x));
        if let Some(again) = inner.iter().find(reads).filter(|_| terms.iter().filter(|&&t| t == x).count() > 1) {
            let (name, at) = (self.graph.value_name(x), self.graph.describe(again.node));
            return Some(Miss {
                depth: usize::MAX,
                what: format!("'{name}' to be added once expected, found again at {at}"),
                path: vec![],
            });
        }
        let others = terms.into_iter().filter(|&t| t != x);
        others.filter_map(|t| match_given(self.graph, branch, t, &[("x", x), ("root", self.root(x))]).err()).reduce(deeper)
    }

    /// Half a block is there, the other is not.
    fn half_missing(&self, sum: Value, expected: &str, why: Option<Miss>, known: &[NearMiss]) -> NearMiss {
        let value = self.graph.value_name(sum).to_owned();
        // The same place may have been reported for its Softmax or Gelu already.
        let why = why.filter(|w| known.iter().all(|k| k.what != w.what));
        let why = why.map_or_else(String::new, |w| format!(": {}", w.what));
        // What is no sum has no branches.
        let found = if self.graph.is_op(sum.node, "Add") { "none".to_owned() } else { self.graph.describe(sum.node) };
        NearMiss { rule: "block", what: format!("{expected} '{value}' expected, found {found}{why}"), tell: value }
    }

    fn block(&self, first: &Half, second: Option<&Half>, index: usize) -> Block {
        let name = |v: Value| self.graph.value_name(v).to_owned();
        let halves: Vec<&Half> = [Some(first), second].into_iter().flatten().collect();
        let attentions: Vec<Attention> = halves.iter().flat_map(|h| h.attentions.clone()).collect();
        let mlps: Vec<Mlp> = halves.iter().flat_map(|h| h.mlps.clone()).collect();
        let fc1 = mlps.first().and_then(|m| self.graph.constant(self.graph.value(&m.fc1.weight)?));
        let (dim, hidden) = fc1.map_or((0, 0), |t| (t.shape.first().copied().unwrap_or(0), t.shape.get(1).copied().unwrap_or(0)));
        let sums = halves.iter().enumerate().map(|(i, half)| {
            let moved = halves.get(i + 1).and_then(|next| self.carried(half.sum, next.x)).unwrap_or_default();
            Sum {
                values: [half.sum].into_iter().chain(moved).map(name).collect(),
                partial: half.partial.iter().map(|&v| name(v)).collect(),
                joined: half.joined.map(name),
            }
        });
        let has = |f| attentions.iter().any(|a| a.features.contains(&f));
        Block {
            index,
            kind: match () {
                () if has("learnt query") => "pooling",
                () if has("post-norm") => "post-norm",
                () if attentions.len() + mlps.len() > 2 || second.is_none() => "parallel",
                () => "pre-norm",
            },
            x: name(first.x),
            output: name(halves.last().map_or(first.sum, |h| h.sum)),
            mlp_ratio: hidden as f64 / dim.max(1) as f64,
            dim,
            sums: sums.collect(),
            attentions,
            mlps,
        }
    }
}

fn deeper(a: Miss, b: Miss) -> Miss {
    if b.depth > a.depth { b } else { a }
}

impl Block {
    /// What its branches have that plain ones have not.
    pub fn features(&self) -> Vec<&'static str> {
        let all = self.attentions.iter().flat_map(|a| &a.features).chain(self.mlps.iter().flat_map(|m| &m.features));
        let mut features: Vec<&'static str> = Vec::new();
        for &f in all {
            if !features.contains(&f) && f != self.kind {
                features.push(f);
            }
        }
        features
    }

    /// Values inside a step of a branch, which have no codes of their own.
    pub fn inner(&self) -> impl Iterator<Item = &String> {
        self.attentions.iter().flat_map(|a| &a.inner).chain(self.mlps.iter().flat_map(|m| &m.inner))
    }

    /// Its sites, in the order of the data flow.
    pub(super) fn sites(&self) -> Vec<SiteRef> {
        let mut listed = Listed { block: self.index, sites: Vec::new() };
        let sums = match &self.sums[..] {
            [both] => [None, Some(both)],
            [first, .., last] => [Some(first), Some(last)],
            [] => [None, None],
        };
        listed.joined(sums[0].or(sums[1]));
        self.attentions.iter().flat_map(|a| &a.parts).for_each(|p| listed.push(p.clone()));
        // The stream of a pooling begins with what its projection makes: that is its first sum.
        listed.sum(Site::Residual1, sums[0].filter(|_| self.kind != "pooling"));
        self.mlps.iter().flat_map(|m| &m.parts).for_each(|p| listed.push(p.clone()));
        listed.sum(Site::Residual2, sums[1]);
        listed.sites
    }
}

struct Listed {
    block: usize,
    sites: Vec<SiteRef>,
}

impl Listed {
    fn joined(&mut self, sum: Option<&Sum>) {
        if let Some(joined) = sum.and_then(|s| s.joined.clone()) {
            self.push(Part::values(Site::Residual2, Some("joined"), vec![joined]));
        }
    }

    fn sum(&mut self, site: Site, sum: Option<&Sum>) {
        let Some(sum) = sum else { return };
        sum.partial.iter().for_each(|v| self.push(Part::values(site, Some("branches"), vec![v.clone()])));
        self.push(Part::values(site, None, sum.values.clone()));
    }

    /// Lists a part unless its values are listed: parallel branches share what they read. A second of a kind gets a number.
    fn push(&mut self, part: Part) {
        let mut values = part.values;
        values.retain(|v| !self.sites.iter().any(|s| s.values.contains(v)));
        if values.is_empty() {
            return;
        }
        let taken =
            |name: &Option<String>| self.sites.iter().any(|s| (s.site, s.weight, &s.part) == (part.site, part.weight, name));
        let named = |n: usize| match (&part.part, n) {
            (part, 1) => part.clone(),
            (None, n) => Some(n.to_string()),
            (Some(part), n) => Some(format!("{part}.{n}")),
        };
        let Some(name) = (1..).map(named).find(|name| !taken(name)) else { return };
        let (site, weight, observe) = (part.site, part.weight, part.observe);
        self.sites.push(SiteRef { block: Some(self.block), site, part: name, weight, values, observe, rows: None });
    }
}
