//! Models in float16 or bfloat16, brought to float32.
//!
//! Quantisation starts from float32: the integer codes are what makes the result small, and constants of 11 bits would only add
//! an error of their own. Every constant, cast and recorded type becomes float32; a half is exactly a float32, so no weight
//! changes. What a half would have rounded between two operators is not rounded any more, which is the only difference.
//!
//! The graph's own inputs and outputs keep the file's types, behind one `Cast` each: the result replaces the model in a program
//! that feeds it halves. The casts beside it that a converter wrote (`keep_io_types`) come to nothing and are folded.

use std::collections::BTreeSet;

use super::CanonError;
use crate::ir::{AttrValue, DType, Edit, Graph, Model, NewOp, NodeId, NodeKind, Tensor, Type, Value, ValueInfo};

/// Brings a model to float32; gives the number of tensors, casts and attributes that changed.
///
/// # Errors
/// When operators of a half-precision model have nested graphs, which no pass looks into.
pub(super) fn widen(model: &mut Model) -> Result<usize, CanonError> {
    if !holds_halves(&model.graph) {
        return Ok(0);
    }
    if let Some(id) =
        model.graph.ops().into_iter().find(|&id| model.graph.op(id).is_some_and(|o| o.attrs.subgraphs().next().is_some()))
    {
        return Err(CanonError::Opset {
            place: model.graph.describe(id),
            what: "has a nested graph, and in a float16 model those are not converted: export the model in float32".to_owned(),
        });
    }
    let mut edit = Edit::new(&mut model.graph);
    let mut count = 0;
    for id in edit.node_ids() {
        count += widen_node(&mut edit, id);
    }
    let outputs: BTreeSet<Value> = edit.outputs().iter().copied().collect();
    for value in values(&edit) {
        let Some(info) = edit.info(value).filter(|i| half(i).is_some()).cloned() else { continue };
        let fed = matches!(edit.get(value.node).map(|n| &n.kind), Some(NodeKind::Input));
        if !fed && !outputs.contains(&value) {
            edit.set_info(value, widened(info));
        }
    }
    for id in edit.inputs().to_vec() {
        cast_input(&mut edit, Value { node: id, port: 0 });
    }
    for value in outputs {
        cast_output(&mut edit, value);
    }
    edit.commit()?;
    Ok(count)
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn half(info: &ValueInfo) -> Option<DType> {
    info.tensor_type().map(|t| t.dtype).filter(|&d| is_half(d))
}

fn is_half_number(code: i64) -> bool {
    i32::try_from(code).ok().and_then(DType::from_onnx).is_some_and(is_half)
}

/// Attributes that hold the number of an element type.
fn names_a_type(attr: &str) -> bool {
    matches!(attr, "to" | "dtype" | "output_dtype" | "stash_type" | "precision" | "softmax_precision")
}

/// A cast into a type at the graph's end, which stays.
fn is_last_cast(graph: &Graph, id: NodeId) -> bool {
    let y = Value { node: id, port: 0 };
    graph.is_op(id, "Cast") && graph.is_output(y) && graph.uses(y).is_empty()
}

/// Whether everything that reads a graph input casts it.
fn is_cast_at_once(graph: &Graph, input: Value) -> bool {
    graph.uses(input).iter().all(|u| graph.is_op(u.node, "Cast"))
}

fn holds_halves(graph: &Graph) -> bool {
    graph.node_ids().into_iter().any(|id| match graph.get(id).map(|n| &n.kind) {
        Some(NodeKind::Init(t)) => is_half(t.dtype),
        Some(NodeKind::Input) => {
            let input = Value { node: id, port: 0 };
            graph.info(input).and_then(half).is_some() && !is_cast_at_once(graph, input)
        }
        Some(NodeKind::Op(_)) if is_last_cast(graph, id) => false,
        Some(NodeKind::Op(op)) => op.attrs.iter().any(|a| match &a.value {
            AttrValue::Int(code) => names_a_type(&a.name) && is_half_number(*code),
            AttrValue::Tensor(t) => is_half(t.dtype),
            _ => false,
        }),
        _ => false,
    })
}

fn values(graph: &Graph) -> Vec<Value> {
    let ports = |id: NodeId| graph.get(id).map_or(0, |n| n.outputs.len()) as u32;
    graph.node_ids().into_iter().flat_map(|node| (0..ports(node)).map(move |port| Value { node, port })).collect()
}

/// The same numbers in float32.
fn float32(t: &Tensor) -> Option<Tensor> {
    if !is_half(t.dtype) {
        return None;
    }
    let wide = Tensor::new(&t.shape, &t.to_f32().ok()?).ok()?;
    Some(Tensor { doc: t.doc.clone(), metadata: t.metadata.clone(), ..wide })
}

fn widened(info: ValueInfo) -> ValueInfo {
    let ty = info.ty.map(|ty| match ty {
        Type::Tensor(t) if is_half(t.dtype) => Type::Tensor(crate::ir::TensorType { dtype: DType::F32, ..t }),
        other => other,
    });
    ValueInfo { ty, ..info }
}

fn widen_node(edit: &mut Edit<'_>, id: NodeId) -> usize {
    match edit.get(id).map(|n| &n.kind) {
        Some(NodeKind::Init(t)) => match float32(t) {
            None => 0,
            Some(wide) => {
                let value = Value { node: id, port: 0 };
                edit.set_tensor(id, wide);
                if let Some(info) = edit.info(value).cloned() {
                    edit.set_info(value, widened(info));
                }
                1
            }
        },
        Some(NodeKind::Op(_)) if is_last_cast(edit, id) => 0,
        Some(NodeKind::Op(op)) => {
            let new: Vec<(String, AttrValue)> = op
                .attrs
                .iter()
                .filter_map(|a| match &a.value {
                    AttrValue::Int(code) if names_a_type(&a.name) && is_half_number(*code) => {
                        Some((a.name.clone(), AttrValue::Int(DType::F32.to_onnx().into())))
                    }
                    AttrValue::Tensor(t) => Some((a.name.clone(), AttrValue::Tensor(float32(t)?))),
                    _ => None,
                })
                .collect();
            let count = new.len();
            new.into_iter().for_each(|(name, value)| edit.set_attr(id, &name, value));
            count
        }
        _ => 0,
    }
}

fn cast(edit: &mut Edit<'_>, anchor: NodeId, name: &str, x: Value, to: DType) -> Value {
    edit.add(anchor, NewOp::std("Cast", name).input(x).attr("to", AttrValue::Int(to.to_onnx().into())))
}

/// A float32 copy of a graph input, which every reader reads instead.
fn cast_input(edit: &mut Edit<'_>, input: Value) {
    if edit.info(input).and_then(half).is_none() || is_cast_at_once(edit, input) {
        return;
    }
    let name = format!("{}.float32", edit.value_name(input));
    let readers = edit.uses(input);
    let wide = cast(edit, input.node, &name, input, DType::F32);
    readers.into_iter().for_each(|u| edit.redirect(u, wide));
}

/// A graph output in the file's type; the float32 value behind it takes another name.
fn cast_output(edit: &mut Edit<'_>, output: Value) {
    let fed = matches!(edit.get(output.node).map(|n| &n.kind), Some(NodeKind::Input));
    let Some(to) = edit.output_info(output).and_then(half).filter(|_| !fed && !is_last_cast(edit, output.node)) else { return };
    let name = format!("{}.float32", edit.value_name(output));
    let narrow = cast(edit, output.node, &name, output, to);
    // The graph's outputs alone follow.
    edit.replace_uses(output, narrow, |_| false);
    edit.swap_names(output, narrow);
}
