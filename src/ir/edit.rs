//! The only mutator of a graph.

use std::collections::BTreeSet;

use petgraph::Direction;
use petgraph::visit::EdgeRef;

use super::{AttrValue, Attrs, Edge, Graph, Node, NodeId, NodeKind, Op, OpName, Tensor, Use, Value, ValueInfo, VerifyError};

/// Space between the places of consecutive nodes of a file.
const ORD_STEP: u64 = 1 << 10;

/// An operator to be added.
#[derive(Debug, Clone)]
pub struct NewOp {
    op: OpName,
    name: String,
    inputs: Vec<Option<Value>>,
    attrs: Attrs,
    outputs: Vec<String>,
}

impl NewOp {
    /// An operator of the default domain whose node name, and the stem of its output's name, is `name`.
    pub fn std(op_type: &str, name: &str) -> Self {
        NewOp::new(OpName::std(op_type), name)
    }

    /// An operator whose node name, and the stem of its output's name, is `name`.
    pub fn new(op: OpName, name: &str) -> Self {
        NewOp { op, name: name.to_owned(), inputs: Vec::new(), attrs: Attrs::new(), outputs: Vec::new() }
    }

    /// Appends an input.
    #[must_use]
    pub fn input(mut self, value: Value) -> Self {
        self.inputs.push(Some(value));
        self
    }

    /// Appends an optional input that may be absent.
    #[must_use]
    pub fn maybe_input(mut self, value: Option<Value>) -> Self {
        self.inputs.push(value);
        self
    }

    /// Appends inputs.
    #[must_use]
    pub fn inputs(mut self, values: impl IntoIterator<Item = Value>) -> Self {
        self.inputs.extend(values.into_iter().map(Some));
        self
    }

    /// Sets an attribute.
    #[must_use]
    pub fn attr(mut self, name: &str, value: AttrValue) -> Self {
        self.attrs.set(name, value);
        self
    }

    /// Replaces all attributes.
    #[must_use]
    pub fn attrs(mut self, attrs: Attrs) -> Self {
        self.attrs = attrs;
        self
    }

    /// Appends an output with a preferred name; without any, the operator has one output named after the node.
    #[must_use]
    pub fn output(mut self, name: &str) -> Self {
        self.outputs.push(name.to_owned());
        self
    }
}

/// A change of a graph in progress. Dropping it keeps what was done but neither sweeps nor verifies: always
/// [`commit`](Edit::commit).
#[derive(Debug)]
pub struct Edit<'g> {
    graph: &'g mut Graph,
    added: Vec<NodeId>,
}

impl std::ops::Deref for Edit<'_> {
    type Target = Graph;
    fn deref(&self) -> &Graph {
        self.graph
    }
}

impl<'g> Edit<'g> {
    /// Starts a change.
    pub fn new(graph: &'g mut Graph) -> Self {
        Edit { graph, added: Vec::new() }
    }

    /// The operators added since the change began, in that order; some may be removed again.
    pub fn added(&self) -> &[NodeId] {
        &self.added
    }

    /// A name that no value has, made from a stem.
    pub fn fresh_name(&self, stem: &str) -> String {
        let stem = if stem.is_empty() { "value" } else { stem };
        if !self.graph.by_name.contains_key(stem) {
            return stem.to_owned();
        }
        let mut n = 1usize;
        loop {
            let name = format!("{stem}_{n}");
            if !self.graph.by_name.contains_key(&name) {
                return name;
            }
            n += 1;
        }
    }

    fn end_ord(&self) -> u64 {
        self.graph.net.node_weights().map(|n| n.ord).max().map_or(ORD_STEP, |m| m.saturating_add(ORD_STEP))
    }

    fn insert(&mut self, kind: NodeKind, ord: u64, outputs: Vec<String>) -> NodeId {
        let id = self.graph.net.add_node(Node { kind, ord, outputs });
        let names: Vec<(String, u32)> =
            self.graph.net[id].outputs.iter().zip(0..).filter(|(n, _)| !n.is_empty()).map(|(n, p)| (n.clone(), p)).collect();
        for (name, port) in names {
            self.graph.by_name.insert(name, Value { node: id, port });
        }
        id
    }

    fn ord_beside(&self, anchor: NodeId) -> u64 {
        self.graph.get(anchor).map_or_else(|| self.end_ord(), |n| n.ord)
    }

    /// Appends a node that keeps exactly the given names: what an importer does. The operator's inputs are connected with
    /// [`connect`](Edit::connect).
    pub fn append(&mut self, kind: NodeKind, ord: u64, outputs: Vec<String>) -> NodeId {
        self.insert(kind, ord.saturating_mul(ORD_STEP), outputs)
    }

    /// Lists a node as the graph's next input.
    pub fn push_graph_input(&mut self, id: NodeId) {
        self.graph.inputs.push(id);
    }

    /// Lists a value as the graph's next output.
    pub fn push_graph_output(&mut self, value: Value) {
        self.graph.outputs.push(value);
    }

    /// Adds an initialiser beside a node.
    pub fn add_init(&mut self, anchor: NodeId, name: &str, tensor: Tensor) -> Value {
        let ord = self.ord_beside(anchor);
        let name = self.fresh_name(name);
        Value { node: self.insert(NodeKind::Init(tensor), ord, vec![name]), port: 0 }
    }

    /// Adds an operator beside a node.
    pub fn add_op(&mut self, anchor: NodeId, new: NewOp) -> NodeId {
        let ord = self.ord_beside(anchor);
        let stems = if new.outputs.is_empty() { vec![new.name.clone()] } else { new.outputs };
        let mut outputs: Vec<String> = Vec::with_capacity(stems.len());
        for stem in stems {
            let mut name = self.fresh_name(&stem);
            while outputs.contains(&name) {
                name.push('_');
            }
            outputs.push(name);
        }
        let op = Op {
            op: new.op,
            name: new.name,
            attrs: new.attrs,
            arity: new.inputs.len(),
            doc: String::new(),
            metadata: Vec::new(),
            extra: bytes::Bytes::new(),
        };
        let id = self.insert(NodeKind::Op(op), ord, outputs);
        self.added.push(id);
        for (port, value) in (0..).zip(new.inputs) {
            if let Some(value) = value {
                self.connect(value, id, port);
            }
        }
        id
    }

    /// Adds an operator of one output beside a node and returns that output.
    pub fn add(&mut self, anchor: NodeId, new: NewOp) -> Value {
        Value { node: self.add_op(anchor, new), port: 0 }
    }

    /// Connects a value to an input port that nothing enters yet.
    pub fn connect(&mut self, value: Value, node: NodeId, port: u32) {
        self.graph.net.add_edge(value.node, node, Edge { src: value.port, dst: port });
    }

    /// Makes an input port read another value, or nothing.
    pub fn set_input(&mut self, node: NodeId, port: u32, value: Option<Value>) {
        let old = self.graph.net.edges_directed(node, Direction::Incoming).find(|e| e.weight().dst == port).map(|e| e.id());
        if let Some(old) = old {
            self.graph.net.remove_edge(old);
        }
        if let Some(NodeKind::Op(op)) = self.graph.net.node_weight_mut(node).map(|n| &mut n.kind) {
            op.arity = op.arity.max(port as usize + 1);
        }
        if let Some(value) = value {
            self.connect(value, node, port);
        }
    }

    /// Makes one reader read another value.
    pub fn redirect(&mut self, u: Use, to: Value) {
        let old = self.graph.net.edges_directed(u.node, Direction::Incoming).find(|e| e.weight().dst == u.port).map(|e| e.id());
        if let Some(old) = old {
            self.graph.net.remove_edge(old);
            self.connect(to, u.node, u.port);
        }
    }

    /// Makes every reader of `old`, graph outputs included, read `new`, which takes over `old`'s name and type: a value
    /// that means the same keeps its name. Readers that feed `new` itself are left alone.
    pub fn replace(&mut self, old: Value, new: Value) {
        if old == new {
            return;
        }
        self.replace_uses(old, new, |u| u.node != new.node);
        if !matches!(self.graph.net.node_weight(new.node).map(|n| &n.kind), Some(NodeKind::Input))
            && !self.graph.inputs.contains(&old.node)
        {
            self.swap_names(old, new);
        }
    }

    /// Makes the readers of `old` that a predicate picks read `new`; graph outputs follow; names stay.
    pub fn replace_uses(&mut self, old: Value, new: Value, mut pick: impl FnMut(Use) -> bool) {
        for u in self.graph.uses(old) {
            if pick(u) {
                self.redirect(u, new);
            }
        }
        for out in &mut self.graph.outputs {
            if *out == old {
                *out = new;
            }
        }
    }

    /// Exchanges the names of two values; the type recorded under a name stays with the name.
    pub fn swap_names(&mut self, a: Value, b: Value) {
        let (na, nb) = (self.graph.value_name(a).to_owned(), self.graph.value_name(b).to_owned());
        self.put_name(a, nb);
        self.put_name(b, na);
    }

    fn put_name(&mut self, value: Value, name: String) {
        if let Some(slot) = self.graph.net.node_weight_mut(value.node).and_then(|n| n.outputs.get_mut(value.port as usize)) {
            slot.clone_from(&name);
            if !name.is_empty() {
                self.graph.by_name.insert(name, value);
            }
        }
    }

    /// Gives a value a new name, made unique; its recorded type follows.
    pub fn rename(&mut self, value: Value, stem: &str) {
        let old = self.graph.value_name(value).to_owned();
        if old == stem {
            return;
        }
        let name = self.fresh_name(stem);
        self.graph.by_name.remove(&old);
        if let Some(info) = self.graph.infos.remove(&old) {
            self.graph.infos.insert(name.clone(), info);
        }
        if let Some(info) = self.graph.output_infos.remove(&old) {
            self.graph.output_infos.insert(name.clone(), info);
        }
        for (listed, _) in self.graph.listed_infos.iter_mut().filter(|(n, _)| *n == old) {
            listed.clone_from(&name);
        }
        self.put_name(value, name);
    }

    /// Sets an attribute of an operator.
    pub fn set_attr(&mut self, id: NodeId, name: &str, value: AttrValue) {
        if let Some(op) = self.op_mut(id) {
            op.attrs.set(name, value);
        }
    }

    /// The operator's own content, for changing.
    pub fn op_mut(&mut self, id: NodeId) -> Option<&mut Op> {
        match self.graph.net.node_weight_mut(id).map(|n| &mut n.kind) {
            Some(NodeKind::Op(op)) => Some(op),
            _ => None,
        }
    }

    /// Replaces the tensor of an initialiser.
    pub fn set_tensor(&mut self, id: NodeId, tensor: Tensor) {
        if let Some(n) = self.graph.net.node_weight_mut(id)
            && matches!(n.kind, NodeKind::Init(_))
        {
            n.kind = NodeKind::Init(tensor);
        }
    }

    /// Records the type of a value.
    pub fn set_info(&mut self, value: Value, info: ValueInfo) {
        let name = self.graph.value_name(value).to_owned();
        self.set_info_of(name, info);
    }

    /// Records the type of a value by name; what a file said of it a second time is forgotten.
    pub fn set_info_of(&mut self, name: String, info: ValueInfo) {
        let listed = info.listed;
        let old = self.graph.infos.insert(name.clone(), info);
        if old.is_some() {
            self.graph.output_infos.remove(&name);
            self.graph.listed_infos.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, own)| *own = None);
        }
        if listed && !old.is_some_and(|i| i.listed) {
            self.graph.listed_infos.push((name, None));
        }
    }

    /// Records what a file's list of graph outputs says of a value. What its list of inputs says comes first.
    pub fn describe_output(&mut self, name: String, info: ValueInfo) {
        match self.graph.infos.get(&name) {
            Some(first) if *first == info => {}
            Some(_) => _ = self.graph.output_infos.insert(name, info),
            None => self.set_info_of(name, info),
        }
    }

    /// Records an entry of a file's `value_info`. What its lists of graph inputs and outputs say comes first.
    pub fn describe_listed(&mut self, name: String, info: ValueInfo) {
        let info = ValueInfo { listed: true, ..info };
        match self.graph.infos.get(&name) {
            Some(first) => {
                let own = (ValueInfo { listed: true, ..first.clone() } != info).then_some(info);
                self.graph.listed_infos.push((name, own));
            }
            None => self.set_info_of(name, info),
        }
    }

    /// Forgets every recorded type but those of graph inputs and outputs.
    pub fn clear_value_infos(&mut self) {
        let inputs = self.graph.inputs.iter().map(|&id| Value { node: id, port: 0 });
        let keep: Vec<String> =
            inputs.chain(self.graph.outputs.iter().copied()).map(|v| self.graph.value_name(v).to_owned()).collect();
        self.graph.infos.retain(|name, _| keep.contains(name));
        self.graph.output_infos.retain(|name, _| keep.contains(name));
        self.graph.listed_infos.clear();
    }

    /// Removes an overridable default: the initialiser stays, the graph input of the same name goes.
    pub fn unlist_input(&mut self, id: NodeId) {
        self.graph.inputs.retain(|&i| i != id);
    }

    /// Removes an operator or initialiser with its edges.
    pub fn remove(&mut self, id: NodeId) {
        if let Some(node) = self.graph.net.remove_node(id) {
            for (name, port) in node.outputs.iter().zip(0..) {
                if self.graph.by_name.get(name) == Some(&Value { node: id, port }) {
                    self.graph.by_name.remove(name);
                    self.graph.infos.remove(name);
                    self.graph.output_infos.remove(name);
                }
            }
        }
    }

    /// Removes what no graph output depends on (graph inputs stay) and forgets what was recorded of values that are gone.
    pub fn sweep(&mut self) {
        let mut live = vec![false; self.graph.net.node_indices().map(NodeId::index).max().map_or(0, |m| m + 1)];
        let mut stack: Vec<NodeId> = self.graph.outputs.iter().map(|v| v.node).chain(self.graph.inputs.iter().copied()).collect();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut live[id.index()], true) {
                stack.extend(self.graph.net.neighbors_directed(id, Direction::Incoming));
            }
        }
        for id in self.graph.node_ids() {
            if !live[id.index()] {
                self.remove(id);
            }
        }
        let by_name = &self.graph.by_name;
        self.graph.infos.retain(|name, _| by_name.contains_key(name));
        self.graph.output_infos.retain(|name, _| by_name.contains_key(name));
        self.graph.listed_infos.retain(|(name, _)| by_name.contains_key(name));
    }

    /// Gives every added operator whose name another one has a name of its own: onnxruntime refuses two nodes of one name.
    /// Names that came with a file stay, so that a round trip changes nothing.
    fn separate_names(&mut self) {
        let added: BTreeSet<NodeId> = std::mem::take(&mut self.added).into_iter().collect();
        let name_of = |id: &NodeId| self.graph.op(*id).map(|op| op.name.clone()).filter(|n| !n.is_empty());
        let ops = self.graph.ops();
        let mut known: BTreeSet<String> = ops.iter().filter_map(name_of).collect();
        let mut borne: BTreeSet<String> = ops.iter().filter(|id| !added.contains(id)).filter_map(name_of).collect();
        for id in added {
            let Some(op) = self.op_mut(id).filter(|op| !op.name.is_empty()) else { continue };
            if borne.insert(op.name.clone()) {
                continue;
            }
            let (stem, mut n) = (std::mem::take(&mut op.name), 1usize);
            op.name = loop {
                let name = format!("{stem}_{n}");
                if known.insert(name.clone()) {
                    break name;
                }
                n += 1;
            };
            borne.insert(op.name.clone());
        }
    }

    /// Ends the change: sweeps, separates the names of operators and verifies.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn commit(mut self) -> Result<(), VerifyError> {
        self.sweep();
        self.separate_names();
        self.graph.verify()
    }

    /// Ends the building of a graph from a file: verifies, and keeps what nothing reads.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn finish(self) -> Result<(), VerifyError> {
        self.graph.verify()
    }
}
