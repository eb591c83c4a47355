//! Opset adapters: every operator in the form that [`CANONICAL_OPSET`](super::CANONICAL_OPSET) gives it.

use super::{CANONICAL_OPSET, CanonError};
use crate::ir::shape::{self, Shapes};
use crate::ir::{AttrValue, Edit, Model, NodeId, Tensor, Value};

/// The oldest operator set that exporters still write and that the adapters know.
const OLDEST: i64 = 9;

/// From this operator set on, a nested graph, which no pass looks into, means the same in the canonical one.
const NESTED_SINCE: i64 = 18;

/// Brings a model's operators to the canonical opset.
pub(super) fn adapt(model: &mut Model) -> Result<(), CanonError> {
    let found = model.opset("").ok_or_else(|| CanonError::Opset {
        place: "the model".to_owned(),
        what: "imports no version of the default operator set; it is not an ordinary ONNX model".to_owned(),
    })?;
    if found < OLDEST {
        return Err(CanonError::Opset {
            place: "the model".to_owned(),
            what: format!("uses opset {found}, older than {OLDEST}: re-export it with opset 17 or later"),
        });
    }
    let nested = |id: &NodeId| model.graph.op(*id).is_some_and(|op| op.attrs.subgraphs().next().is_some());
    if let Some(id) = model.graph.ops().into_iter().find(nested).filter(|_| found < NESTED_SINCE) {
        return Err(CanonError::Opset {
            place: model.graph.describe(id),
            what: format!(
                "has a nested graph, and nested graphs of opset {found} are not brought to opset {CANONICAL_OPSET}: export the \
                 model with opset {NESTED_SINCE} or later, or let a simplifier such as onnxslim resolve the condition"
            ),
        });
    }
    let shapes = shape::infer(&model.graph, found);
    let mut edit = Edit::new(&mut model.graph);
    for id in edit.ops() {
        adapt_node(&mut edit, id, found, &shapes)?;
    }
    edit.commit()?;
    if found != CANONICAL_OPSET {
        model.set_opset("", CANONICAL_OPSET);
    }
    Ok(())
}

fn adapt_node(edit: &mut Edit<'_>, id: NodeId, opset: i64, shapes: &Shapes) -> Result<(), CanonError> {
    let Some(op) = edit.op(id).filter(|o| o.op.canonical_domain().is_empty()) else { return Ok(()) };
    match op.op.op_type.as_str() {
        "Squeeze" | "Unsqueeze" | "ReduceSum" if opset < 13 => ints_to_input(edit, id, "axes", 1),
        "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2" | "ReduceLogSum"
        | "ReduceLogSumExp" | "ReduceSumSquare"
            if opset < 18 =>
        {
            ints_to_input(edit, id, "axes", 1);
        }
        "Split" if opset < 18 => {
            ints_to_input(edit, id, "split", 1);
            // Equal parts had to be counted from the outputs; from opset 18 on the node says how many.
            if edit.input(id, 1).is_none() {
                let parts = edit.get(id).map_or(0, |n| n.outputs.len());
                edit.set_attr(id, "num_outputs", AttrValue::Int(parts as i64));
            }
        }
        "Clip" if opset < 11 => {
            float_to_input(edit, id, "min", 1);
            float_to_input(edit, id, "max", 2);
        }
        "Pad" if opset < 11 => {
            ints_to_input(edit, id, "pads", 1);
            float_to_input(edit, id, "value", 2);
        }
        "Slice" if opset < 10 => {
            ints_to_input(edit, id, "starts", 1);
            ints_to_input(edit, id, "ends", 2);
            ints_to_input(edit, id, "axes", 3);
        }
        "Dropout" if opset < 12 => {
            edit.op_mut(id).and_then(|op| op.attrs.remove("ratio"));
        }
        "Upsample" => return Err(refused(edit, id, opset)),
        "Resize" | "TopK" | "Scatter" if opset < 11 => return Err(refused(edit, id, opset)),
        "Softmax" | "LogSoftmax" | "Hardmax" if opset < 13 => {
            let axis = op.attrs.int("axis").unwrap_or(1);
            let rank = shapes.rank(Value { node: id, port: 0 });
            // Before opset 13 the input is coerced to a matrix at `axis`; on the last axis both meanings agree.
            if axis != -1 && rank.is_none_or(|r| axis != r as i64 - 1) {
                let rank = rank.map_or_else(|| "unknown rank".to_owned(), |r| format!("rank {r}"));
                return Err(CanonError::Opset {
                    place: edit.describe(id),
                    what: format!(
                        "is a softmax of opset {opset} over axis {axis} of a value of {rank}, which flattens its input: re-export the model with opset 13 or later"
                    ),
                });
            }
            edit.set_attr(id, "axis", AttrValue::Int(-1));
        }
        _ => {}
    }
    Ok(())
}

fn refused(edit: &Edit<'_>, id: NodeId, opset: i64) -> CanonError {
    CanonError::Opset {
        place: edit.describe(id),
        what: format!("means something else in opset {opset} than today: re-export the model with opset 13 or later"),
    }
}

/// Moves a list attribute to an input, as later operator sets have it.
fn ints_to_input(edit: &mut Edit<'_>, id: NodeId, name: &str, port: u32) {
    if let Some(AttrValue::Ints(values)) = edit.op_mut(id).and_then(|op| op.attrs.remove(name)) {
        to_input(edit, id, name, port, Tensor::vector(&values));
    }
}

/// Moves a number to an input.
fn float_to_input(edit: &mut Edit<'_>, id: NodeId, name: &str, port: u32) {
    if let Some(AttrValue::Float(value)) = edit.op_mut(id).and_then(|op| op.attrs.remove(name)) {
        to_input(edit, id, name, port, Tensor::scalar(value));
    }
}

fn to_input(edit: &mut Edit<'_>, id: NodeId, name: &str, port: u32, tensor: Tensor) {
    let stem = edit.get(id).and_then(|n| n.outputs.first()).map_or_else(String::new, |o| format!("{o}_{name}"));
    let value = edit.add_init(id, &stem, tensor);
    edit.set_input(id, port, Some(value));
}
