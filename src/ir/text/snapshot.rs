//! The compact style for people: one line a fact, so that a line diff of two texts reads well.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::tensor::{content, info_text, shape_text};
use super::{PrintOptions, attr, quoted};
use crate::ir::{Function, Graph, Model, Node, NodeId, NodeKind, OpsetImport, Value};

pub(super) fn model(m: &Model, options: &PrintOptions) -> String {
    let mut out = format!("ir_version: {}\n", m.header.ir_version);
    opsets(&mut out, &m.opsets);
    for (k, v) in &m.header.metadata {
        let _ = writeln!(out, "metadata {}: {}", plain(k), quoted(v));
    }
    out.push_str(&graph(&m.graph, options));
    for f in &m.functions {
        out.push('\n');
        out.push_str(&function(f, options));
    }
    out
}

fn opsets(out: &mut String, list: &[OpsetImport]) {
    for o in list {
        let domain = if o.domain.is_empty() { "ai.onnx" } else { &o.domain };
        let _ = writeln!(out, "opset: {} {}", plain(domain), o.version);
    }
}

pub(super) fn function(f: &Function, options: &PrintOptions) -> String {
    let mut out = String::new();
    let attributes: Vec<String> =
        f.attributes.iter().map(|a| plain(a)).chain(f.attribute_defaults.iter().map(|a| attr::attribute(a, options))).collect();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" <{}>", attributes.join(", ")) };
    let _ = writeln!(out, "function {}{attributes}", f.id);
    opsets(&mut out, &f.opsets);
    out.push_str(&graph(&f.body, options));
    out
}

pub(super) fn graph(g: &Graph, options: &PrintOptions) -> String {
    let mut out = String::new();
    let typed = |v: Value| match info_text(g.info(v)) {
        Some(ty) => format!("{}: {ty}", plain(g.value_name(v))),
        None => plain(g.value_name(v)),
    };
    let inputs: Vec<String> = g.inputs().iter().map(|&id| typed(Value { node: id, port: 0 })).collect();
    let outputs: Vec<String> = g.outputs().iter().map(|&v| typed(v)).collect();
    let _ = writeln!(out, "{} ({}) => ({}) {{", plain(&g.name), inputs.join(", "), outputs.join(", "));
    let mut shown = BTreeSet::new();
    for id in g.ops() {
        let reads = g.inputs_of(id).into_iter().flatten().chain(g.captures_of(id));
        for v in reads {
            constant(&mut out, g, v.node, options, &mut shown);
        }
        let _ = writeln!(out, "  {}", operator(g, id, options));
    }
    for id in g.node_ids() {
        constant(&mut out, g, id, options, &mut shown);
    }
    out.push_str("}\n");
    out
}

/// The line of a constant that was not shown yet.
fn constant(out: &mut String, g: &Graph, id: NodeId, options: &PrintOptions, shown: &mut BTreeSet<NodeId>) {
    let Some(node) = g.get(id) else { return };
    let name = plain(g.value_name(Value { node: id, port: 0 }));
    let mut line = match &node.kind {
        NodeKind::Init(t) => {
            let mut line = format!("  {name} = {} ", shape_text(t.dtype, &t.shape));
            content(&mut line, t, options);
            line
        }
        NodeKind::SparseInit(_) => format!("  {name} = sparse"),
        NodeKind::Input | NodeKind::Op(_) => return,
    };
    if g.inputs().contains(&id) {
        line.push_str("  # default of an input");
    }
    if shown.insert(id) {
        out.push_str(&line);
        out.push('\n');
    }
}

fn operator(g: &Graph, id: NodeId, options: &PrintOptions) -> String {
    let Some((node, op)) = g.get(id).and_then(|n| Some((n, n.op()?))) else { return String::new() };
    let outputs: Vec<String> = node
        .outputs
        .iter()
        .map(|n| match info_text(g.info_of(n)).filter(|_| options.value_types) {
            Some(ty) => format!("{}: {ty}", plain(n)),
            None => plain(n),
        })
        .collect();
    let input = |v: Option<Value>| v.map_or_else(|| "_".to_owned(), |v| plain(g.value_name(v)));
    let inputs: Vec<String> = g.inputs_of(id).into_iter().map(input).collect();
    let overload = if op.op.overload.is_empty() { String::new() } else { format!(":{}", plain(&op.op.overload)) };
    let mut line = format!(
        "{} = {}{overload} {}({})",
        outputs.join(", "),
        plain(&op.op.to_string()),
        attr::list(&op.attrs, options),
        inputs.join(", ")
    );
    if !names_follow(node, &op.name) {
        let _ = write!(line, "  # {}", plain(&op.name));
    }
    line
}

/// Whether a node's name says no more than its output's, as exporters usually derive one from the other.
fn names_follow(node: &Node, name: &str) -> bool {
    let first = node.outputs.first().map_or("", String::as_str);
    name.is_empty() || first == name || first.strip_prefix(name) == Some("_output_0")
}

/// A name as it is, quoted only where it would blur the line.
fn plain(s: &str) -> String {
    let clear = |c: char| c.is_alphanumeric() || "_./:-@~+!$%^&*|".contains(c);
    if !s.is_empty() && s != "_" && s.chars().all(clear) { s.to_owned() } else { quoted(s) }
}
