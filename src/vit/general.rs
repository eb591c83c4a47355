//! Sites of what belongs to no block: every convolution and Linear with constant weights, and what lies between them.
//!
//! A value that has codes keeps them through operators that only move its elements, so those are part of its site; a sum,
//! product, pool or activation whose operands all have codes gets codes of its own. Whatever else a convolution or Linear
//! reads is quantised where it is made. The rules follow the operators that integer runtimes have: a convolution with its
//! bias and a clipping activation is one step, and every step ends in codes.

use std::collections::BTreeSet;

use super::{Site, SiteRef};
use crate::ir::{DType, Graph, NodeId, NodeKind, Value};

/// What the general rules found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct General {
    /// Convolutions outside the blocks.
    pub convolutions: usize,
    /// Linears outside the blocks.
    pub linears: usize,
    /// The values inside a step: products before their bias, sums before their activation.
    pub inner: Vec<String>,
}

impl General {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.convolutions == 0 && self.linears == 0
    }
}

/// Operators that move the elements of their first input, or pick some: they keep its codes.
const MOVES: [&str; 11] = [
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Slice",
    "Gather",
    "Split",
    "DepthToSpace",
    "SpaceToDepth",
];
/// Activations that only narrow the range, so that clamping codes is all they are.
const CLIPS: [&str; 2] = ["Relu", "Clip"];
/// Other activations: a float operator or a table between two sites.
const ACTIVATIONS: [&str; 10] =
    ["HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "LeakyRelu", "Elu", "Mish", "Softplus", "PRelu"];
/// Operators over neighbourhoods whose result is not one of their inputs.
const POOLS: [&str; 3] = ["GlobalAveragePool", "AveragePool", "ReduceMean"];

/// The sites that `known` ones leave out, in the order of the data flow.
pub(super) fn sites(graph: &Graph, known: &[SiteRef]) -> (General, Vec<SiteRef>) {
    let names = known.iter().flat_map(|s| &s.values).filter_map(|name| graph.value(name));
    let coded: BTreeSet<Value> = names.collect();
    let mut walk = Walk { graph, known: coded.clone(), coded, found: General::default(), sites: Vec::new() };
    for id in graph.ops() {
        walk.visit(id);
    }
    (walk.found, walk.sites)
}

struct Walk<'a> {
    graph: &'a Graph,
    /// Values of the sites of blocks and of what surrounds them.
    known: BTreeSet<Value>,
    /// Values with codes.
    coded: BTreeSet<Value>,
    found: General,
    sites: Vec<SiteRef>,
}

impl Walk<'_> {
    fn visit(&mut self, id: NodeId) {
        let out = Value { node: id, port: 0 };
        let is = |ops: &[&str]| ops.iter().any(|op| self.graph.is_op(id, op));
        let layer = if is(&["Conv"]) {
            Some((Site::Conv, Site::ConvOutput))
        } else if is(&["MatMul"]) {
            Some((Site::Linear, Site::LinearOutput))
        } else {
            None
        };
        if let Some((site, output)) = layer {
            return self.layer(id, site, output);
        }
        if self.coded.contains(&out) {
            return;
        }
        let kind = if is(&["Add"]) {
            Site::AddOutput
        } else if is(&["Mul"]) {
            Site::MulOutput
        } else if is(&["Concat"]) {
            Site::ConcatOutput
        } else if is(&POOLS) {
            Site::PoolOutput
        } else if is(&ACTIVATIONS) {
            Site::ActOutput
        } else {
            return;
        };
        let several = matches!(kind, Site::AddOutput | Site::MulOutput | Site::ConcatOutput);
        let mut operands = self.graph.inputs_of(id).into_iter().flatten().take(if several { usize::MAX } else { 1 });
        if !operands.all(|v| self.coded.contains(&v)) {
            return;
        }
        let read_by = |op| self.graph.uses(out).into_iter().any(|u| self.graph.is_op(u.node, op));
        // A residual stream before its LayerNorm needs a scale for each channel, which only a block's sites have. A mean
        // that is subtracted again is part of a normalisation.
        if (kind == Site::AddOutput && super::parts::is_normed(self.graph, out)) || (kind == Site::PoolOutput && read_by("Sub")) {
            return;
        }
        let end = if several { self.through_clip(out) } else { out };
        self.output(kind, end);
    }

    /// A convolution or MatMul with constant weights that no other site has.
    fn layer(&mut self, id: NodeId, site: Site, output: Site) {
        let graph = self.graph;
        let (Some(x), Some(w)) = (graph.input(id, 0), graph.input(id, 1)) else { return };
        let Some(weight) = graph.constant(w) else { return };
        let ranked = if site == Site::Conv { weight.shape.len() > 2 } else { weight.shape.len() == 2 };
        if weight.dtype != DType::F32 || !ranked || graph.constant(x).is_some() || self.known.contains(&w) {
            return;
        }
        let count = if site == Site::Conv { &mut self.found.convolutions } else { &mut self.found.linears };
        *count += 1;
        if !self.coded.contains(&x) {
            self.input(x);
        }
        // Two layers may share their weights.
        if self.coded.insert(w) {
            self.push(site, true, &[w]);
        }
        let mut end = Value { node: id, port: 0 };
        if site == Site::Linear
            && let Some(sum) = self.only_reader(end, &["Add"])
            && graph.input(sum.node, 1).is_some_and(|b| graph.constant(b).is_some())
        {
            self.found.inner.push(graph.value_name(end).to_owned());
            end = sum;
        }
        end = self.through_clip(end);
        let logits = site == Site::Linear && graph.is_output(end);
        self.output(if logits { Site::HeadOutput } else { output }, end);
    }

    /// What a layer reads and has no codes: they are made where the elements are.
    fn input(&mut self, value: Value) {
        let mut root = value;
        while MOVES.iter().any(|op| self.graph.is_op(root.node, op)) {
            match self.graph.input(root.node, 0) {
                Some(from) if self.graph.constant(from).is_none() => root = from,
                _ => break,
            }
        }
        let given = self.graph.get(root.node).is_some_and(|n| matches!(n.kind, NodeKind::Input));
        self.output(if given { Site::Input } else { Site::LayerInput }, root);
    }

    /// The site of a value and of all that carries its elements on.
    fn output(&mut self, site: Site, value: Value) {
        if self.coded.contains(&value) {
            return;
        }
        let mut values = vec![value];
        let mut at = 0;
        while let Some(&v) = values.get(at) {
            at += 1;
            self.coded.insert(v);
            for u in self.graph.uses(v) {
                let moves = u.port == 0 && MOVES.iter().any(|op| self.graph.is_op(u.node, op));
                let outputs = self.graph.get(u.node).map_or(0, |n| n.outputs.len());
                // MaxPool's second output are indices.
                let outputs = if self.graph.is_op(u.node, "MaxPool") { outputs.min(1) } else { outputs };
                let carried = (0..).take(if moves { outputs } else { 0 }).map(|port| Value { node: u.node, port });
                values.extend(carried.filter(|v| self.coded.insert(*v)));
            }
        }
        self.push(site, false, &values);
    }

    /// The value after a clipping activation that alone reads this one.
    fn through_clip(&mut self, value: Value) -> Value {
        match self.only_reader(value, &CLIPS) {
            Some(clipped) => {
                self.found.inner.push(self.graph.value_name(value).to_owned());
                clipped
            }
            None => value,
        }
    }

    fn only_reader(&self, value: Value, ops: &[&str]) -> Option<Value> {
        let uses = self.graph.uses(value);
        let [u] = uses[..] else { return None };
        let alone = u.port == 0 && !self.graph.is_output(value) && ops.iter().any(|op| self.graph.is_op(u.node, op));
        alone.then_some(Value { node: u.node, port: 0 })
    }

    fn push(&mut self, site: Site, weight: bool, values: &[Value]) {
        let values: Vec<String> = values.iter().map(|&v| self.graph.value_name(v).to_owned()).collect();
        // Names of values are unique in a graph, and stable from one export to the next.
        let part = (site != Site::Input || self.graph.inputs().len() > 1).then(|| values[0].clone());
        self.sites.push(SiteRef { block: None, site, part, weight, values, observe: None, rows: None });
    }
}
