//! The sites before the first block and after the last.

use std::collections::BTreeSet;

use super::parts::{NORMS, is_normed};
use super::{Block, Site, SiteRef};
use crate::ir::{Graph, NodeId, Value};
use crate::pattern::NearMiss;

/// Sites outside the blocks, and what was looked for and is not there.
pub(super) fn sites(graph: &Graph, blocks: &[Block], known: &[SiteRef]) -> (Vec<SiteRef>, Vec<NearMiss>) {
    let known = known.iter().flat_map(|s| &s.values).filter_map(|v| graph.value(v)).collect();
    let mut walk = Walk { graph, known, sites: Vec::new(), misses: Vec::new() };
    if let (Some(first), Some(last)) = (blocks.first(), blocks.last()) {
        if let Some(x) = graph.value(&first.x) {
            walk.before(x);
        }
        if let Some(x) = graph.value(&last.output) {
            walk.after(last.index, x);
        }
    }
    (walk.sites, walk.misses)
}

struct Walk<'g> {
    graph: &'g Graph,
    /// Values of sites in and between the blocks.
    known: BTreeSet<Value>,
    sites: Vec<SiteRef>,
    misses: Vec<NearMiss>,
}

/// Operators that keep the elements they pass on.
const CARRIERS: [&str; 7] = ["Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Slice"];

impl Walk<'_> {
    fn site(&mut self, block: Option<usize>, site: Site, weight: bool, part: Option<&str>, values: &[Value]) {
        let values: Vec<String> =
            values.iter().filter(|v| !self.known.contains(v)).map(|&v| self.graph.value_name(v).to_owned()).collect();
        if values.is_empty() {
            return;
        }
        let taken = |part: &Option<String>| {
            self.sites.iter().any(|s| (s.block, s.site, s.weight, &s.part) == (block, site, weight, part))
        };
        let named = |n: usize| match (part, n) {
            (part, 1) => part.map(str::to_owned),
            (None, n) => Some(n.to_string()),
            (Some(part), n) => Some(format!("{part}.{n}")),
        };
        // Two heads, or a norm on either side of the pooling.
        let Some(part) = (1..).map(named).find(|p| !taken(p)) else { return };
        self.sites.push(SiteRef { block, site, part, weight, values, observe: None, rows: None });
    }

    fn miss(&mut self, at: Value, what: &str) {
        let tell = self.graph.describe(at.node);
        let what = format!("{what}, found {tell} at '{}'", self.graph.value_name(at));
        self.misses.push(NearMiss { rule: "outside", tell, what });
    }

    fn is(&self, v: Value, ops: &[&str]) -> bool {
        ops.iter().any(|op| self.graph.is_op(v.node, op))
    }

    fn constant_input(&self, id: NodeId) -> Option<Value> {
        self.graph.inputs_of(id).into_iter().flatten().find(|&v| self.graph.constant(v).is_some())
    }

    /// The input of an operator that is computed from the graph's input rather than from constants and shapes.
    fn data_input(&self, v: Value) -> Option<Value> {
        let dynamic = |v: &Value| self.graph.constant(*v).is_none() && !self.graph.is_op(v.node, "Expand");
        self.graph.inputs_of(v.node).into_iter().flatten().find(dynamic)
    }

    /// The values from `at` up to the next operator that computes, that operator's first; and its value. Class, distillation
    /// and register tokens join the patches with their codes.
    fn carried(&self, mut at: Value) -> (Vec<Value>, Value) {
        let mut chain = vec![at];
        while self.is(at, &CARRIERS) || self.graph.is_op(at.node, "Concat") {
            let Some(next) = self.data_input(at) else { break };
            chain.extend(self.graph.inputs_of(at.node).into_iter().flatten().filter(|v| self.graph.is_op(v.node, "Expand")));
            chain.push(next);
            at = next;
        }
        chain.reverse();
        (chain, at)
    }

    /// Walks from the first block's input up to the graph's input.
    fn before(&mut self, x: Value) {
        let mut found = Vec::new();
        let mut at = x;
        if self.is(at, &NORMS) {
            // CLIP normalises before the first block: its input is a residual stream too, the sum is another.
            found.push((Site::Embed, false, None, vec![at]));
            at = self.graph.input(at.node, 0).unwrap_or(at);
        }
        let sum = if found.is_empty() { None } else { Some("sum") };
        let (chain, top) = self.carried(at);
        let position = self.constant_input(top.node).filter(|_| self.graph.is_op(top.node, "Add"));
        let (patches, conv) = match position {
            Some(position) => {
                found.push((Site::Embed, false, sum, chain));
                // The constant and the sum with it share the site's name.
                found.push((Site::Embed, true, Some("position"), vec![position]));
                self.data_input(top).map_or((Vec::new(), top), |v| self.carried(v))
            }
            None => (chain, top),
        };
        let (patches, conv) = match self.graph.input(conv.node, 0).filter(|_| self.is(conv, &NORMS)) {
            Some(before) => {
                found.push((Site::Embed, false, Some("patches"), patches));
                self.carried(before)
            }
            None => (patches, conv),
        };
        if self.graph.is_op(conv.node, "Conv") {
            found.push((Site::PatchEmbed, false, None, patches));
            match self.graph.input(conv.node, 1) {
                Some(w) if self.graph.constant(w).is_some() => found.push((Site::PatchEmbed, true, Some("weight"), vec![w])),
                _ => self.miss(conv, "patch_embed: constant weights of the patch convolution expected"),
            }
            found.extend(self.graph.input(conv.node, 0).map(|input| (Site::Input, false, None, vec![input])));
        } else {
            self.miss(
                conv,
                "input and patch_embed: a Conv whose output is reshaped, joined with tokens and added to a position embedding expected",
            );
            if found.is_empty() {
                found.push((Site::Embed, false, None, vec![x]));
            }
        }
        for (site, weight, part, values) in found.into_iter().rev() {
            self.site(None, site, weight, part, &values);
        }
    }

    /// Walks from the last block's output down to the logits: norm, pooling and heads, in whatever order they come.
    fn after(&mut self, block: usize, last: Value) {
        let mut todo = vec![Stage { block: Some(block), site: Site::Residual2, part: None, values: vec![last] }];
        let mut seen = BTreeSet::new();
        while let Some(mut stage) = todo.pop() {
            let (mut next, mut lost) = (Vec::new(), Vec::new());
            let mut tips = 0;
            let mut at = 0;
            while let Some(&v) = stage.values.get(at) {
                at += 1;
                for reader in self.graph.uses(v) {
                    let y = Value { node: reader.node, port: 0 };
                    if self.is(y, &CARRIERS) && reader.port == 0 {
                        stage.values.push(y);
                    } else if let Some(following) = self.following(&stage, y) {
                        tips += 1;
                        // Two stages may lead to one: a class token joined to the mean of the others.
                        if seen.insert(y) {
                            next.push(following);
                        }
                    } else if !self.graph.is_op(y.node, "Shape") {
                        lost.push(y);
                    }
                }
            }
            let ends = stage.values.iter().any(|&v| self.graph.is_output(v));
            if stage.site != Site::HeadOutput && !ends && (tips == 0 || !lost.is_empty()) {
                let at = lost.first().copied().unwrap_or(last);
                self.miss(at, "norm, head: a LayerNormalization, a mean over the tokens or a Linear expected after the blocks");
            }
            self.claim(stage);
            // The first reader first: the stack is read from its end.
            todo.extend(next.into_iter().rev());
        }
    }

    /// What an operator that reads a stage makes of it.
    fn following(&self, stage: &Stage, y: Value) -> Option<Stage> {
        let Stage { block, site, .. } = *stage;
        if self.is(y, &NORMS) {
            return Some(Stage { block: None, site: Site::Norm, part: None, values: vec![y] });
        }
        if self.over_tokens(y) || self.is(y, &["GlobalAveragePool"]) {
            return Some(Stage { block, site, part: Some("pool"), values: vec![y] });
        }
        if self.is(y, &["Concat"]) && !self.known.contains(&y) {
            return Some(Stage { block, site, part: Some("joined"), values: vec![y] });
        }
        let weight = self.graph.input(y.node, 1).filter(|&w| self.graph.constant(w).is_some());
        if self.graph.is_op(y.node, "MatMul") && weight.is_some() {
            let sum = self.graph.uses(y).into_iter().find(|u| self.graph.is_op(u.node, "Add"));
            let sum = sum.filter(|u| self.constant_input(u.node).is_some()).map(|u| Value { node: u.node, port: 0 });
            let logits = sum.unwrap_or(y);
            let head = Stage { block: None, site: Site::HeadOutput, part: None, values: vec![logits] };
            return self.leads_out(logits, 4).then_some(head);
        }
        None
    }

    /// Whether a value is an output but for a few operators: several heads are averaged, logits may become probabilities.
    /// The Linears of an attention pooling do not.
    fn leads_out(&self, v: Value, steps: usize) -> bool {
        const LAST: [&str; 7] = ["Add", "Sub", "Mul", "Div", "Softmax", "Sigmoid", "Cast"];
        let next = || self.graph.uses(v).into_iter().map(|u| Value { node: u.node, port: 0 });
        self.graph.is_output(v)
            || steps > 0 && next().any(|y| (self.is(y, &LAST) || self.is(y, &CARRIERS)) && self.leads_out(y, steps - 1))
    }

    /// Whether a Linear reads one of the values.
    fn feeds_linear(&self, values: &[Value]) -> bool {
        let readers = values.iter().flat_map(|&v| self.graph.uses(v));
        readers.into_iter().any(|u| self.graph.is_op(u.node, "MatMul") && self.constant_input(u.node).is_some())
    }

    /// A mean over the tokens.
    fn over_tokens(&self, y: Value) -> bool {
        let Some(op) = self.graph.op(y.node).filter(|op| op.op.is("ReduceMean")) else { return false };
        let input = self.graph.input(y.node, 1).and_then(|v| self.graph.constant(v)).and_then(|t| t.to_i64().ok());
        let axes = op.attrs.ints("axes").map(<[i64]>::to_vec).or(input);
        // Tokens in rows and columns: axes 1 and 2 of four.
        axes.is_some_and(|a| a == [1] || a == [-2] || a == [1, 2] || a == [-3, -2])
    }

    fn claim(&mut self, stage: Stage) {
        let Stage { block, site, part, mut values } = stage;
        match site {
            // No LayerNorm after the blocks: what the head reads needs one scale, not those of the residual stream.
            Site::Residual2 if self.feeds_linear(&values) => {
                if part.is_none() {
                    values.remove(0);
                }
                if !values.is_empty() {
                    self.site(None, Site::Norm, false, part.or(Some("tokens")), &values);
                }
            }
            Site::Residual2 if part.is_none() => {
                // The sum itself is the block's. What is picked from it before a LayerNormalization needs codes of its own;
                // before a mean it is read in float anyway.
                values.remove(0);
                if values.iter().any(|&v| is_normed(self.graph, v)) {
                    self.site(block, site, false, Some("tokens"), &values);
                }
            }
            Site::HeadOutput => {
                let product = values.first().map(|v| match self.graph.is_op(v.node, "Add") {
                    true => self.data_input(*v).unwrap_or(*v),
                    false => *v,
                });
                if let Some(w) = product.and_then(|p| self.graph.input(p.node, 1)) {
                    self.site(None, Site::Head, true, None, &[w]);
                }
                values.truncate(1);
                self.site(None, site, false, None, &values);
            }
            _ => self.site(block, site, false, part, &values),
        }
    }
}

/// One tensor on the way from the last block to the logits.
struct Stage {
    block: Option<usize>,
    site: Site,
    part: Option<&'static str>,
    /// Its producer, then what carries its elements.
    values: Vec<Value>,
}
