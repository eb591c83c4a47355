//! The comparisons behind a diff.

use std::collections::{BTreeMap, BTreeSet};

use super::{FieldChange, InitialiserChange, NodeChange, NodeRef, OpCount};
use crate::ir::text::{self, PrintOptions};
use crate::ir::{Graph, Model, Node, NodeId, NodeKind, Op, Tensor, TensorData, Value};

/// The entries of two keyed lists that differ, in the order of the first, then of the second.
fn changes(before: &[(String, String)], after: &[(String, String)]) -> Vec<FieldChange> {
    let find = |list: &[(String, String)], key: &str| list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let mut seen = BTreeSet::new();
    before
        .iter()
        .chain(after)
        .filter(|(k, _)| seen.insert(k.as_str()))
        .map(|(k, _)| FieldChange { field: k.clone(), before: find(before, k), after: find(after, k) })
        .filter(|c| c.before != c.after)
        .collect()
}

pub(super) fn header(before: &Model, after: &Model) -> Vec<FieldChange> {
    changes(&header_fields(before), &header_fields(after))
}

fn header_fields(m: &Model) -> Vec<(String, String)> {
    let h = &m.header;
    let mut out = vec![("ir_version".to_owned(), h.ir_version.to_string())];
    for o in &m.opsets {
        let domain = if o.domain.is_empty() { "ai.onnx" } else { &o.domain };
        out.push((format!("opset {domain}"), o.version.to_string()));
    }
    let strings = [
        ("producer_name", &h.producer_name),
        ("producer_version", &h.producer_version),
        ("domain", &h.domain),
        ("doc_string", &h.doc),
        ("graph name", &m.graph.name),
    ];
    out.extend(strings.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| ((*k).to_owned(), (*v).clone())));
    if h.model_version != 0 {
        out.push(("model_version".to_owned(), h.model_version.to_string()));
    }
    out.extend(h.metadata.iter().map(|(k, v)| (format!("metadata {k}"), v.clone())));
    let g = &m.graph;
    let described = |v: Value| text::value_type(g, v).unwrap_or_else(|| "untyped".to_owned());
    let inputs = g.inputs().iter().map(|&id| Value { node: id, port: 0 });
    out.extend(inputs.map(|v| (format!("input {}", g.value_name(v)), described(v))));
    out.extend(g.outputs().iter().map(|&v| (format!("output {}", g.value_name(v)), described(v))));
    out
}

pub(super) fn op_counts(before: &Graph, after: &Graph) -> Vec<OpCount> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for op in before.ops().into_iter().filter_map(|id| before.op(id)) {
        counts.entry(op.op.to_string()).or_default().0 += 1;
    }
    for op in after.ops().into_iter().filter_map(|id| after.op(id)) {
        counts.entry(op.op.to_string()).or_default().1 += 1;
    }
    let differing = counts.into_iter().filter(|(_, (a, b))| a != b);
    differing.map(|(op, (before, after))| OpCount { op, before, after }).collect()
}

pub(super) struct Nodes {
    pub(super) added: Vec<NodeRef>,
    pub(super) removed: Vec<NodeRef>,
    pub(super) changed: Vec<NodeChange>,
}

pub(super) fn nodes(before: &Graph, after: &Graph) -> Nodes {
    let partners = partners(before, after);
    let matched: BTreeSet<NodeId> = partners.values().copied().collect();
    let refer = |g: &Graph, id: NodeId| g.get(id).and_then(|n| n.op().map(|op| node_ref(n, op)));
    let mut out = Nodes { added: Vec::new(), removed: Vec::new(), changed: Vec::new() };
    for id in before.ops() {
        match partners.get(&id) {
            None => out.removed.extend(refer(before, id)),
            Some(&other) => {
                let changes = changes(&node_fields(before, id), &node_fields(after, other));
                if let (false, Some(node)) = (changes.is_empty(), refer(before, id)) {
                    out.changed.push(NodeChange { node, changes });
                }
            }
        }
    }
    out.added.extend(after.ops().into_iter().filter(|id| !matched.contains(id)).filter_map(|id| refer(after, id)));
    out
}

/// Operators of `before` with their counterparts: those that produce a value of the same name; of the rest, those with the
/// same node name and type.
fn partners(before: &Graph, after: &Graph) -> BTreeMap<NodeId, NodeId> {
    let mut out = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for id in before.ops() {
        let outputs = before.get(id).map(|n| n.outputs.as_slice()).unwrap_or_default();
        let producers = outputs.iter().filter_map(|n| after.value(n)).map(|v| v.node);
        if let Some(other) = producers.filter(|&n| after.op(n).is_some()).find(|n| !taken.contains(n)) {
            taken.insert(other);
            out.insert(id, other);
        }
    }
    let mut named: BTreeMap<(&str, String), NodeId> = BTreeMap::new();
    for id in after.ops().into_iter().filter(|id| !taken.contains(id)) {
        if let Some(op) = after.op(id).filter(|op| !op.name.is_empty()) {
            named.entry((&op.name, op.op.to_string())).or_insert(id);
        }
    }
    for id in before.ops() {
        let Some(op) = before.op(id).filter(|_| !out.contains_key(&id)) else { continue };
        if let Some(other) = named.remove(&(op.name.as_str(), op.op.to_string())) {
            out.insert(id, other);
        }
    }
    out
}

fn node_ref(node: &Node, op: &Op) -> NodeRef {
    let first = node.outputs.iter().find(|n| !n.is_empty());
    NodeRef { name: first.unwrap_or(&op.name).clone(), op: op.op.to_string() }
}

fn node_fields(g: &Graph, id: NodeId) -> Vec<(String, String)> {
    let Some((node, op)) = g.get(id).and_then(|n| Some((n, n.op()?))) else { return Vec::new() };
    let mut out = vec![("operator".to_owned(), op.op.to_string()), ("name".to_owned(), op.name.clone())];
    for (port, v) in g.inputs_of(id).into_iter().enumerate() {
        out.push((format!("input {port}"), v.map_or_else(|| "absent".to_owned(), |v| g.value_name(v).to_owned())));
    }
    out.extend(node.outputs.iter().enumerate().map(|(port, name)| (format!("output {port}"), name.clone())));
    out.extend(op.attrs.iter().map(|a| (format!("attribute {}", a.name), text::attribute_value(a))));
    out
}

pub(super) fn initialisers(before: &Graph, after: &Graph) -> Vec<InitialiserChange> {
    let find = |g: &Graph, name: &str| g.value(name).and_then(|v| g.get(v.node)).and_then(Node::tensor).cloned();
    let names = |g: &Graph| -> Vec<String> {
        let inits = g.node_ids().into_iter().filter(|&id| matches!(g.get(id).map(|n| &n.kind), Some(NodeKind::Init(_))));
        inits.map(|id| g.value_name(Value { node: id, port: 0 }).to_owned()).collect()
    };
    let mut seen = BTreeSet::new();
    let all = names(before).into_iter().chain(names(after)).filter(|n| seen.insert(n.clone()));
    all.filter_map(|name| initialiser(find(before, &name), find(after, &name), name)).collect()
}

fn initialiser(before: Option<Tensor>, after: Option<Tensor>, name: String) -> Option<InitialiserChange> {
    let ty = |t: &Tensor| text::constant_type(t.dtype, &t.shape);
    let (mut differing, mut max_abs_difference) = (None, None);
    if let (Some(a), Some(b)) = (&before, &after)
        && (a.dtype, &a.shape) == (b.dtype, &b.shape)
    {
        if a.data == b.data {
            return None;
        }
        let (n, max) = element_difference(a, b);
        (differing, max_abs_difference) = (Some(n), max);
    }
    Some(InitialiserChange {
        name,
        before: before.as_ref().map(ty),
        after: after.as_ref().map(ty),
        differing,
        max_abs_difference,
    })
}

/// The number of differing elements and, for numbers, the largest absolute difference, of tensors of one type and shape.
fn element_difference(a: &Tensor, b: &Tensor) -> (usize, Option<f64>) {
    let size = (a.dtype.bits() / 8).max(1);
    let differing = match (&a.data, &b.data) {
        (TensorData::Strings(a), TensorData::Strings(b)) => a.iter().zip(b).filter(|(x, y)| x != y).count(),
        // Elements under 8 bits are counted by the byte that packs them.
        _ => a.bytes().chunks(size).zip(b.bytes().chunks(size)).filter(|(x, y)| x != y).count(),
    };
    if let (Ok(a), Ok(b)) = (a.to_vec::<f64>(), b.to_vec::<f64>()) {
        return (differing, Some(max_abs(a.into_iter().zip(b))));
    }
    if let (Ok(a), Ok(b)) = (a.to_f32(), b.to_f32()) {
        let wide = a.into_iter().map(f64::from).zip(b.into_iter().map(f64::from));
        return (differing, Some(max_abs(wide)));
    }
    if let (Ok(a), Ok(b)) = (a.to_vec::<u64>(), b.to_vec::<u64>()) {
        return (differing, a.into_iter().zip(b).map(|(x, y)| x.abs_diff(y) as f64).reduce(f64::max));
    }
    match (a.to_i64(), b.to_i64()) {
        (Ok(a), Ok(b)) => (differing, a.into_iter().zip(b).map(|(x, y)| x.abs_diff(y) as f64).reduce(f64::max)),
        _ => (differing, None),
    }
}

fn max_abs(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let difference = |(x, y): (f64, f64)| match (x.is_nan(), y.is_nan()) {
        (true, true) => 0.0,
        (true, false) | (false, true) => f64::INFINITY,
        // Equal infinities have no difference, not a NaN.
        _ if x == y => 0.0,
        _ => (x - y).abs(),
    };
    pairs.map(difference).fold(0.0, f64::max)
}

pub(super) fn functions(before: &Model, after: &Model) -> Vec<FieldChange> {
    let list = |m: &Model| -> Vec<(String, String)> {
        let key = |f: &crate::ir::Function| match f.id.overload.as_str() {
            "" => f.id.to_string(),
            overload => format!("{}:{overload}", f.id),
        };
        let options = PrintOptions::snapshot();
        m.functions.iter().map(|f| (key(f), text::print_function(f, &options))).collect()
    };
    let summary = |f: &str, m: &Model| m.functions.iter().find(|g| g.id.to_string() == f).map(|g| g.body.ops().len());
    changes(&list(before), &list(after))
        .into_iter()
        .map(|c| {
            let nodes = |m: &Model| summary(&c.field, m).map_or_else(|| "present".to_owned(), |n| format!("{n} operators"));
            FieldChange {
                before: c.before.as_ref().map(|_| nodes(before)),
                after: c.after.as_ref().map(|_| nodes(after)),
                field: c.field,
            }
        })
        .collect()
}
