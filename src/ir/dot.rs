//! Graphviz text of a graph, for looking at it: `dot -Tsvg`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::text::{tensor_summary, value_type};
use super::{Graph, Node, NodeId, NodeKind, Op, Value};

/// The Graphviz text of a graph: operators are boxes that list their constants, edges carry the recorded types of values,
/// values of nested graphs enter by dashed edges. `cluster` may name the frame that a node is drawn in. Equal graphs give
/// equal text.
pub fn print_dot(graph: &Graph, cluster: impl Fn(NodeId) -> Option<String>) -> String {
    let order: Vec<NodeId> =
        graph.topo().into_iter().filter(|&id| !is_constant(graph, id) || graph.inputs().contains(&id)).collect();
    let place: BTreeMap<NodeId, usize> = order.iter().copied().zip(0..).collect();
    let mut out = String::new();
    let _ = writeln!(out, "digraph {} {{", quoted(&graph.name));
    out.push_str("  node [shape=box, fontname=\"Helvetica\", fontsize=10];\n  edge [fontname=\"Helvetica\", fontsize=8];\n");
    // Frames in the order of their first node.
    let mut frames: Vec<(Option<String>, Vec<String>)> = Vec::new();
    for (n, &id) in order.iter().enumerate() {
        let Some(node) = graph.get(id) else { continue };
        let line = format!("n{n} [{}];", style(graph, id, node));
        let name = cluster(id);
        match frames.iter_mut().find(|(f, _)| *f == name) {
            Some((_, lines)) => lines.push(line),
            None => frames.push((name, vec![line])),
        }
    }
    for (n, (name, lines)) in frames.iter().enumerate() {
        match name {
            None => lines.iter().for_each(|l| out.push_str(&format!("  {l}\n"))),
            Some(name) => {
                let _ = writeln!(out, "  subgraph cluster_{n} {{\n    label={};", quoted(name));
                lines.iter().for_each(|l| out.push_str(&format!("    {l}\n")));
                out.push_str("  }\n");
            }
        }
    }
    for (n, &value) in graph.outputs().iter().enumerate() {
        let _ = writeln!(out, "  out{n} [shape=ellipse, label={}];", quoted(graph.value_name(value)));
    }
    for &id in &order {
        let Some(&to) = place.get(&id) else { continue };
        let reads = graph.inputs_of(id).into_iter().flatten().map(|v| (v, false));
        for (v, captured) in reads.chain(graph.captures_of(id).into_iter().map(|v| (v, true))) {
            if let Some(from) = place.get(&v.node) {
                let dashed = if captured { ", style=dashed" } else { "" };
                let _ = writeln!(out, "  n{from} -> n{to} [label={}{dashed}];", quoted(&edge_type(graph, v)));
            }
        }
    }
    for (n, &value) in graph.outputs().iter().enumerate() {
        if let Some(from) = place.get(&value.node) {
            let _ = writeln!(out, "  n{from} -> out{n} [label={}];", quoted(&edge_type(graph, value)));
        }
    }
    out.push_str("}\n");
    out
}

fn is_constant(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.get(id).map(|n| &n.kind), Some(NodeKind::Init(_) | NodeKind::SparseInit(_)))
}

/// The attributes of a box.
fn style(graph: &Graph, id: NodeId, node: &Node) -> String {
    match &node.kind {
        NodeKind::Op(op) => format!("label={}", quoted(&op_label(graph, id, node, op))),
        _ => format!("shape=ellipse, label={}", quoted(node.outputs.first().map_or("", String::as_str))),
    }
}

fn op_label(graph: &Graph, id: NodeId, node: &Node, op: &Op) -> String {
    let name = if op.name.is_empty() { node.outputs.first() } else { Some(&op.name) };
    let mut label = format!("{}\n{}", op.op, name.map_or("", String::as_str));
    let mut seen = BTreeSet::new();
    for (port, value) in graph.inputs_of(id).into_iter().enumerate() {
        let Some(value) = value.filter(|v| is_constant(graph, v.node) && !graph.inputs().contains(&v.node)) else { continue };
        let what = graph.get(value.node).and_then(Node::tensor).map_or_else(|| "sparse".to_owned(), tensor_summary);
        if seen.insert((port, value)) {
            let _ = write!(label, "\ninput {port}: {what}");
        }
    }
    label
}

fn edge_type(graph: &Graph, value: Value) -> String {
    value_type(graph, value).unwrap_or_default()
}

/// A Graphviz string; line ends become `\n`.
fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
