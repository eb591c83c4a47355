//! Attributes and the nested graphs inside them.

use std::collections::BTreeSet;

use prost::Message;

use super::external::{self, DataFiles};
use super::proto::{AttributeProto, GraphProto, attribute_proto::AttributeType as Ty};
use super::{OnnxError, tensor};
use crate::ir::{Attr, AttrValue, Attrs, Subgraph};

/// Nested graphs deeper than this are refused: no exporter writes them, and recursion must end.
const MAX_NESTING: usize = 32;

/// Reads the attributes of one node.
pub(super) fn import(list: Vec<AttributeProto>, place: &str, files: &dyn DataFiles) -> Result<Attrs, OnnxError> {
    let mut attrs = Attrs::new();
    for a in list {
        let (name, doc) = (a.name.clone(), a.doc_string.clone());
        let mut tensor_names: Vec<Option<String>> = a.t.iter().chain(&a.tensors).map(|t| t.name.clone()).collect();
        if tensor_names.iter().all(Option::is_none) {
            tensor_names.clear();
        }
        let value = import_value(a, place, files)?;
        attrs.push(Attr { name, value, doc, tensor_names });
    }
    Ok(attrs)
}

fn import_value(a: AttributeProto, place: &str, files: &dyn DataFiles) -> Result<AttrValue, OnnxError> {
    if !a.ref_attr_name.is_empty() {
        return Ok(AttrValue::Ref(a.ref_attr_name, a.r#type));
    }
    let missing = |what: &str| {
        OnnxError::malformed(format!("{place}, attribute '{}'", a.name), format!("has type {what} but no such value"))
    };
    let subgraph = |g: &GraphProto| -> Result<Subgraph, OnnxError> {
        let mut captures = Vec::new();
        collect_captures(g, &BTreeSet::new(), &mut captures, 0)
            .map_err(|what| OnnxError::malformed(format!("{place}, attribute '{}'", a.name), what))?;
        // The bytes go wherever the model goes, so they hold what lies beside the file.
        let mut g = g.clone();
        external::embed_graph(&mut g, files)?;
        Ok(Subgraph { proto: g.encode_to_vec().into(), captures })
    };
    Ok(match Ty::try_from(a.r#type).unwrap_or(Ty::Undefined) {
        Ty::Float => AttrValue::Float(a.f.unwrap_or(0.0)),
        Ty::Int => AttrValue::Int(a.i.unwrap_or(0)),
        Ty::String => AttrValue::String(a.s.clone().unwrap_or_default()),
        Ty::Tensor => AttrValue::Tensor(tensor::import(a.t.clone().ok_or_else(|| missing("TENSOR"))?, files)?),
        Ty::Graph => AttrValue::Graph(subgraph(a.g.as_ref().ok_or_else(|| missing("GRAPH"))?)?),
        Ty::Floats => AttrValue::Floats(a.floats),
        Ty::Ints => AttrValue::Ints(a.ints),
        Ty::Strings => AttrValue::Strings(a.strings),
        Ty::Tensors => AttrValue::Tensors(a.tensors.into_iter().map(|t| tensor::import(t, files)).collect::<Result<_, _>>()?),
        Ty::Graphs => AttrValue::Graphs(a.graphs.iter().map(subgraph).collect::<Result<_, _>>()?),
        Ty::SparseTensor | Ty::SparseTensors | Ty::TypeProto | Ty::TypeProtos => {
            let mut a = a;
            external::embed_attribute(&mut a, files)?;
            AttrValue::Opaque(a.encode_to_vec().into())
        }
        // IR version 1 files leave the type out; the set field tells it.
        Ty::Undefined => match (a.f, a.i, &a.s, &a.t) {
            (Some(f), ..) => AttrValue::Float(f),
            (_, Some(i), ..) => AttrValue::Int(i),
            (_, _, Some(s), _) => AttrValue::String(s.clone()),
            (.., Some(t)) => AttrValue::Tensor(tensor::import(t.clone(), files)?),
            _ if !a.floats.is_empty() => AttrValue::Floats(a.floats),
            _ if !a.ints.is_empty() => AttrValue::Ints(a.ints),
            _ => {
                return Err(OnnxError::malformed(
                    format!("{place}, attribute '{}'", a.name),
                    "has neither type nor value; export the model again",
                ));
            }
        },
    })
}

/// Writes the attributes of one node.
pub(super) fn export(attrs: &Attrs) -> Vec<AttributeProto> {
    attrs.iter().map(export_attr).collect()
}

fn export_attr(attr: &Attr) -> AttributeProto {
    // Encoded by `import_value` and by no one else; a decoding failure cannot happen, and an empty graph is what would remain.
    let graph = |g: &Subgraph| GraphProto::decode(g.proto.clone()).unwrap_or_default();
    let tensor = |i: usize, t| tensor::export(attr.tensor_names.get(i).and_then(Option::as_deref), t);
    let mut p = AttributeProto { name: attr.name.clone(), doc_string: attr.doc.clone(), ..AttributeProto::default() };
    let ty = match &attr.value {
        AttrValue::Float(v) => (p.f = Some(*v), Ty::Float).1,
        AttrValue::Int(v) => (p.i = Some(*v), Ty::Int).1,
        AttrValue::String(v) => (p.s = Some(v.clone()), Ty::String).1,
        AttrValue::Tensor(t) => (p.t = Some(tensor(0, t)), Ty::Tensor).1,
        AttrValue::Graph(g) => (p.g = Some(graph(g)), Ty::Graph).1,
        AttrValue::Floats(v) => (p.floats.clone_from(v), Ty::Floats).1,
        AttrValue::Ints(v) => (p.ints.clone_from(v), Ty::Ints).1,
        AttrValue::Strings(v) => (p.strings.clone_from(v), Ty::Strings).1,
        AttrValue::Tensors(v) => (p.tensors = v.iter().enumerate().map(|(i, t)| tensor(i, t)).collect(), Ty::Tensors).1,
        AttrValue::Graphs(v) => (p.graphs = v.iter().map(graph).collect(), Ty::Graphs).1,
        AttrValue::Ref(name, ty) => {
            p.ref_attr_name.clone_from(name);
            p.r#type = *ty;
            return p;
        }
        AttrValue::Opaque(bytes) => return AttributeProto::decode(bytes.clone()).unwrap_or(p),
    };
    p.r#type = ty as i32;
    p
}

/// The outer names that a nested graph reads, in order of first reading.
fn collect_captures(g: &GraphProto, outer: &BTreeSet<String>, out: &mut Vec<String>, depth: usize) -> Result<(), String> {
    if depth > MAX_NESTING {
        return Err(format!("graphs are nested deeper than {MAX_NESTING}"));
    }
    let mut known = outer.clone();
    known.extend(g.input.iter().map(|v| v.name.clone()));
    known.extend(g.initializer.iter().filter_map(|t| t.name.clone()));
    known.extend(g.sparse_initializer.iter().filter_map(|t| t.values.as_ref()?.name.clone()));
    known.extend(g.node.iter().flat_map(|n| n.output.iter().cloned()));
    let reads = g.node.iter().flat_map(|n| n.input.iter()).chain(g.output.iter().map(|v| &v.name));
    for name in reads {
        if !name.is_empty() && !known.contains(name) && !out.contains(name) {
            out.push(name.clone());
        }
    }
    for a in g.node.iter().flat_map(|n| n.attribute.iter()) {
        for inner in a.g.iter().chain(a.graphs.iter()) {
            collect_captures(inner, &known, out, depth + 1)?;
        }
    }
    Ok(())
}
