//! The graph container. Reading is free; changing goes through [`Edit`](super::Edit).

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use bytes::Bytes;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::{Op, Tensor, ValueInfo};

/// A node's index. Recycled once its node is gone, so it must not outlive a pass.
pub type NodeId = NodeIndex<u32>;

/// One output of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The producing node.
    pub node: NodeId,
    /// Its output port.
    pub port: u32,
}

/// One reader of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Use {
    /// The reading node.
    pub node: NodeId,
    /// Its input port; at or above the operator's arity it is a capture of a nested graph.
    pub port: u32,
}

/// An edge: output port of its source, input port of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Output port of the source node.
    pub src: u32,
    /// Input port of the target node.
    pub dst: u32,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeKind {
    /// A graph input without a default.
    Input,
    /// A constant dense tensor.
    Init(Tensor),
    /// A constant sparse tensor, carried through as its encoded `SparseTensorProto`.
    SparseInit(Bytes),
    /// An operator.
    Op(Op),
}

/// A node: everything that produces a value is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Its place in the file; the order of a pass never comes from indices alone.
    pub ord: u64,
    /// Names of the values it produces; an empty name is an output that the file leaves out.
    pub outputs: Vec<String>,
}

impl Node {
    /// The operator, if this is one.
    pub fn op(&self) -> Option<&Op> {
        match &self.kind {
            NodeKind::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The constant tensor, if this is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match &self.kind {
            NodeKind::Init(t) => Some(t),
            _ => None,
        }
    }
}

/// A dataflow graph.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub(super) net: StableDiGraph<Node, Edge, u32>,
    pub(super) by_name: HashMap<String, Value>,
    pub(super) infos: BTreeMap<String, ValueInfo>,
    /// Graph inputs in order; an initialiser listed here as well has a default that a caller may override.
    pub(super) inputs: Vec<NodeId>,
    /// Graph outputs in order.
    pub(super) outputs: Vec<Value>,
    /// The graph's name.
    pub name: String,
    /// The documentation string.
    pub doc: String,
    /// Key-value metadata.
    pub metadata: Vec<(String, String)>,
    /// Encoded `TensorAnnotation`s, carried through.
    pub quantization_annotations: Vec<Bytes>,
    /// Names that `value_info` listed, in the file's order; with what it says of a value that a graph input or output already
    /// described otherwise.
    pub(super) listed_infos: Vec<(String, Option<ValueInfo>)>,
    /// What the list of graph outputs says of a value that the list of graph inputs described otherwise.
    pub(super) output_infos: BTreeMap<String, ValueInfo>,
}

impl Graph {
    /// The nodes' ids in ascending `(ord, id)`: the order of the file, new nodes beside their anchors.
    pub fn node_ids(&self) -> Vec<NodeId> {
        let mut ids: Vec<NodeId> = self.net.node_indices().collect();
        ids.sort_by_key(|&id| (self.net[id].ord, id));
        ids
    }

    /// The nodes' ids such that every node follows its inputs: Kahn's algorithm, the smallest `(ord, id)` first.
    /// Nodes on a cycle are left out; [`verify`](Graph::verify) reports them.
    pub fn topo(&self) -> Vec<NodeId> {
        let mut waiting: HashMap<NodeId, usize> = HashMap::new();
        let mut ready = BinaryHeap::new();
        for id in self.net.node_indices() {
            let n = self.net.edges_directed(id, Direction::Incoming).count();
            if n == 0 {
                ready.push(std::cmp::Reverse((self.net[id].ord, id)));
            } else {
                waiting.insert(id, n);
            }
        }
        let mut order = Vec::with_capacity(self.net.node_count());
        while let Some(std::cmp::Reverse((_, id))) = ready.pop() {
            order.push(id);
            for e in self.net.edges_directed(id, Direction::Outgoing) {
                if let Some(n) = waiting.get_mut(&e.target()) {
                    *n -= 1;
                    if *n == 0 {
                        ready.push(std::cmp::Reverse((self.net[e.target()].ord, e.target())));
                    }
                }
            }
        }
        order
    }

    /// The operators' ids in topological order.
    pub fn ops(&self) -> Vec<NodeId> {
        self.topo().into_iter().filter(|&id| self.op(id).is_some()).collect()
    }

    /// A node, if it still exists.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.net.node_weight(id)
    }

    /// The operator of a node, if it is one.
    pub fn op(&self, id: NodeId) -> Option<&Op> {
        self.get(id).and_then(Node::op)
    }

    /// Whether the node is the default domain's operator of that type.
    pub fn is_op(&self, id: NodeId, op_type: &str) -> bool {
        self.op(id).is_some_and(|op| op.op.is(op_type))
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.net.node_count()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Graph inputs in order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// Graph outputs in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// The value that enters an input port.
    pub fn input(&self, id: NodeId, port: u32) -> Option<Value> {
        self.net
            .edges_directed(id, Direction::Incoming)
            .find(|e| e.weight().dst == port)
            .map(|e| Value { node: e.source(), port: e.weight().src })
    }

    /// The values that enter the declared input ports, in port order; `None` is an absent optional input.
    pub fn inputs_of(&self, id: NodeId) -> Vec<Option<Value>> {
        let mut v = vec![None; self.op(id).map_or(0, |op| op.arity)];
        for e in self.net.edges_directed(id, Direction::Incoming) {
            if let Some(slot) = v.get_mut(e.weight().dst as usize) {
                *slot = Some(Value { node: e.source(), port: e.weight().src });
            }
        }
        v
    }

    /// The outer values that the node's nested graphs read, in port order.
    pub fn captures_of(&self, id: NodeId) -> Vec<Value> {
        let arity = self.op(id).map_or(0, |op| op.arity) as u32;
        let mut v: Vec<_> = self
            .net
            .edges_directed(id, Direction::Incoming)
            .filter(|e| e.weight().dst >= arity)
            .map(|e| (e.weight().dst, Value { node: e.source(), port: e.weight().src }))
            .collect();
        v.sort_unstable();
        v.into_iter().map(|(_, value)| value).collect()
    }

    /// The readers of a value, in ascending `(ord, id, port)`; reading as a graph output is not among them.
    pub fn uses(&self, value: Value) -> Vec<Use> {
        let mut v: Vec<Use> = self
            .net
            .edges_directed(value.node, Direction::Outgoing)
            .filter(|e| e.weight().src == value.port)
            .map(|e| Use { node: e.target(), port: e.weight().dst })
            .collect();
        v.sort_unstable_by_key(|u| (self.net[u.node].ord, u.node, u.port));
        v
    }

    /// How many readers a value has, graph outputs included.
    pub fn use_count(&self, value: Value) -> usize {
        let reads = self.net.edges_directed(value.node, Direction::Outgoing).filter(|e| e.weight().src == value.port);
        reads.count() + self.outputs.iter().filter(|&&o| o == value).count()
    }

    /// Whether a value is a graph output.
    pub fn is_output(&self, value: Value) -> bool {
        self.outputs.contains(&value)
    }

    /// The constant tensor of a value, if it is an initialiser that no caller can override.
    pub fn constant(&self, value: Value) -> Option<&Tensor> {
        if self.inputs.contains(&value.node) { None } else { self.get(value.node)?.tensor() }
    }

    /// The name of a value.
    pub fn value_name(&self, value: Value) -> &str {
        self.get(value.node).and_then(|n| n.outputs.get(value.port as usize)).map_or("", String::as_str)
    }

    /// The value of a name.
    pub fn value(&self, name: &str) -> Option<Value> {
        self.by_name.get(name).copied()
    }

    /// What is known of a value beside its name.
    pub fn info(&self, value: Value) -> Option<&ValueInfo> {
        self.infos.get(self.value_name(value))
    }

    /// What is known of a value by name.
    pub fn info_of(&self, name: &str) -> Option<&ValueInfo> {
        self.infos.get(name)
    }

    /// The names that the file's `value_info` lists, in its order.
    pub fn listed_infos(&self) -> impl Iterator<Item = &str> {
        self.listed().map(|(name, _)| name)
    }

    /// The entries of the file's `value_info`, in its order. Where the graph's inputs or outputs describe the same value
    /// otherwise, [`info_of`](Graph::info_of) has what those say.
    pub fn listed(&self) -> impl Iterator<Item = (&str, &ValueInfo)> {
        self.listed_infos.iter().filter_map(|(name, own)| Some((name.as_str(), own.as_ref().or_else(|| self.infos.get(name))?)))
    }

    /// What the list of graph outputs says of a value; [`info`](Graph::info) has what the list of inputs says, when the value
    /// is in both.
    pub fn output_info(&self, value: Value) -> Option<&ValueInfo> {
        self.output_infos.get(self.value_name(value)).or_else(|| self.info(value))
    }

    /// A node for messages: its name, or its first output when it has none, with the operator type.
    pub fn describe(&self, id: NodeId) -> String {
        let Some(node) = self.get(id) else { return "a removed node".to_owned() };
        let first = node.outputs.iter().find(|n| !n.is_empty()).map_or("", String::as_str);
        match &node.kind {
            NodeKind::Input => format!("input '{first}'"),
            NodeKind::Init(_) | NodeKind::SparseInit(_) => format!("initializer '{first}'"),
            NodeKind::Op(op) if op.name.is_empty() => format!("{} (producing '{first}')", op.op),
            NodeKind::Op(op) => format!("{} '{}'", op.op, op.name),
        }
    }
}

impl PartialEq for Graph {
    /// Everything that a file says: the same nodes in the same order with the same inputs by value name, the same
    /// descriptions. Indices, and the order of `value_info`, say nothing.
    fn eq(&self, other: &Self) -> bool {
        let rows = |g: &Graph| -> Vec<(Node, Vec<Option<String>>)> {
            g.node_ids()
                .into_iter()
                .map(|id| {
                    let reads = g.inputs_of(id).into_iter().chain(g.captures_of(id).into_iter().map(Some));
                    (Node { ord: 0, ..g.net[id].clone() }, reads.map(|v| v.map(|v| g.value_name(v).to_owned())).collect())
                })
                .collect()
        };
        fn listed(g: &Graph) -> Vec<(&str, &ValueInfo)> {
            let mut rows: Vec<_> = g.listed().collect();
            rows.sort_by_key(|(name, _)| *name);
            rows
        }
        let ends = |g: &Graph| -> Vec<String> {
            let inputs = g.inputs.iter().map(|&id| g.value_name(Value { node: id, port: 0 }).to_owned());
            inputs.chain(g.outputs.iter().map(|&v| g.value_name(v).to_owned())).collect()
        };
        (&self.name, &self.doc, &self.metadata) == (&other.name, &other.doc, &other.metadata)
            && self.quantization_annotations == other.quantization_annotations
            && (&self.infos, &self.output_infos) == (&other.infos, &other.output_infos)
            && listed(self) == listed(other)
            && ends(self) == ends(other)
            && rows(self) == rows(other)
    }
}
