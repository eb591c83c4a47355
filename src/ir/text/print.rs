//! The ONNX syntax: printing.

use std::fmt::Write;

use super::notes::Notes;
use super::tensor::{content, info_text, shape_text};
use super::{PrintOptions, attr, is_identifier, name, quoted};
use crate::ir::{Function, Graph, Model, NodeId, NodeKind, OpName, OpsetImport, Value};

pub(super) fn model(m: &Model, options: &PrintOptions) -> String {
    let mut notes = Notes::default();
    notes.model(m);
    let mut out = notes.comment();
    let h = &m.header;
    let mut rows = vec![format!("ir_version: {}", h.ir_version), opsets(&m.opsets)];
    let strings = [("producer_name", &h.producer_name), ("producer_version", &h.producer_version), ("domain", &h.domain)];
    rows.extend(strings.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}: {}", quoted(v))));
    if h.model_version != 0 {
        rows.push(format!("model_version: {}", h.model_version));
    }
    if !h.doc.is_empty() {
        rows.push(format!("doc_string: {}", quoted(&h.doc)));
    }
    if !h.metadata.is_empty() {
        let entries: Vec<String> = h.metadata.iter().map(|(k, v)| format!("{}: {}", quoted(k), quoted(v))).collect();
        rows.push(format!("metadata_props: [{}]", entries.join(", ")));
    }
    let _ = writeln!(out, "<\n  {}\n>", rows.join(",\n  "));
    write_graph(&mut out, &m.graph, options);
    for f in &m.functions {
        out.push('\n');
        write_function(&mut out, f, options);
    }
    out
}

pub(super) fn graph(g: &Graph, options: &PrintOptions) -> String {
    let mut notes = Notes::default();
    notes.graph(g);
    let mut out = notes.comment();
    write_graph(&mut out, g, options);
    out
}

pub(super) fn function(f: &Function, options: &PrintOptions) -> String {
    let mut notes = Notes::default();
    notes.function(f);
    let mut out = notes.comment();
    write_function(&mut out, f, options);
    out
}

fn opsets(list: &[OpsetImport]) -> String {
    let rows: Vec<String> = list.iter().map(|o| format!("{} : {}", quoted(&o.domain), o.version)).collect();
    format!("opset_import: [{}]", rows.join(", "))
}

fn write_graph(out: &mut String, g: &Graph, options: &PrintOptions) {
    let typed = |v: Value| declared(g, g.value_name(v));
    let inputs: Vec<String> = g.inputs().iter().map(|&id| typed(Value { node: id, port: 0 })).collect();
    let outputs: Vec<String> = g.outputs().iter().map(|&v| typed(v)).collect();
    let _ = writeln!(out, "{} ({}) => ({})", name(&g.name), inputs.join(", "), outputs.join(", "));
    let mut rows: Vec<String> = g.listed_infos().map(|n| declared(g, n)).collect();
    for id in g.node_ids() {
        if let Some(t) = g.get(id).and_then(|n| n.tensor()) {
            let value = g.value_name(Value { node: id, port: 0 });
            let mut row = format!("{} {} = ", shape_text(t.dtype, &t.shape), name(value));
            content(&mut row, t, options);
            rows.push(row);
        }
    }
    if !rows.is_empty() {
        let _ = writeln!(out, "<\n  {}\n>", rows.join(",\n  "));
    }
    write_nodes(out, g, options);
}

/// A value with its recorded type.
fn declared(g: &Graph, value: &str) -> String {
    match info_text(g.info_of(value)) {
        Some(ty) => format!("{ty} {}", name(value)),
        None => name(value),
    }
}

fn write_function(out: &mut String, f: &Function, options: &PrintOptions) {
    let mut rows = vec![format!("domain: {}", quoted(&f.id.domain)), opsets(&f.opsets)];
    if !f.id.overload.is_empty() {
        rows.push(format!("overload: {}", quoted(&f.id.overload)));
    }
    if !f.doc.is_empty() {
        rows.push(format!("doc_string: {}", quoted(&f.doc)));
    }
    let _ = writeln!(out, "<{}>", rows.join(", "));
    let plain = f.attributes.iter().map(|a| name(a));
    let attributes: Vec<String> = plain.chain(f.attribute_defaults.iter().map(|a| attr::attribute(a, options))).collect();
    let attributes = if attributes.is_empty() { String::new() } else { format!("<{}> ", attributes.join(", ")) };
    let g = &f.body;
    let typed = |v: Value| declared(g, g.value_name(v));
    let inputs: Vec<Value> = g.inputs().iter().map(|&id| Value { node: id, port: 0 }).collect();
    let rows: Vec<String> = inputs.iter().map(|&v| typed(v)).collect();
    let _ = write!(out, "{} {attributes}({})", name(&f.id.op_type), rows.join(", "));
    let rows: Vec<String> = g.outputs().iter().map(|&v| typed(v)).collect();
    let _ = writeln!(out, " => ({})", rows.join(", "));
    let ends: Vec<&str> = inputs.iter().chain(g.outputs()).map(|&v| g.value_name(v)).collect();
    let infos: Vec<String> = g.listed_infos().filter(|n| !ends.contains(n)).map(|n| declared(g, n)).collect();
    if !infos.is_empty() {
        let _ = writeln!(out, "<\n  {}\n>", infos.join(",\n  "));
    }
    write_nodes(out, g, options);
}

fn write_nodes(out: &mut String, g: &Graph, options: &PrintOptions) {
    out.push_str("{\n");
    for id in g.topo() {
        if let Some(NodeKind::Op(_)) = g.get(id).map(|n| &n.kind) {
            let _ = writeln!(out, "  {}", node(g, id, options));
        }
    }
    out.push_str("}\n");
}

fn node(g: &Graph, id: NodeId, options: &PrintOptions) -> String {
    let Some((node, op)) = g.get(id).and_then(|n| Some((n, n.op()?))) else { return String::new() };
    let label = if op.name.is_empty() { String::new() } else { format!("[{}] ", name(&op.name)) };
    let outputs: Vec<String> = node.outputs.iter().map(|n| name(n)).collect();
    let inputs: Vec<String> =
        g.inputs_of(id).into_iter().map(|v| v.map_or_else(|| "\"\"".to_owned(), |v| name(g.value_name(v)))).collect();
    format!("{label}{} = {} {}({})", outputs.join(", "), operator(&op.op), attr::list(&op.attrs, options), inputs.join(", "))
}

/// `ai.vitq.Lut:overload`; parts that are no identifiers are quoted.
fn operator(op: &OpName) -> String {
    let word = |s: &str| if is_identifier(s) { s.to_owned() } else { quoted(s) };
    let mut out = String::new();
    if !op.domain.is_empty() {
        out.extend(op.domain.split('.').flat_map(|part| [word(part), ".".to_owned()]));
    }
    out.push_str(&word(&op.op_type));
    if !op.overload.is_empty() {
        let _ = write!(out, ":{}", word(&op.overload));
    }
    out
}
