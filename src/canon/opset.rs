//! Opset adapters: every operator in the form that [`CANONICAL_OPSET`](super::CANONICAL_OPSET) gives it.

use super::{CANONICAL_OPSET, CanonError};
use crate::ir::{AttrValue, Edit, Model, NodeId, Tensor};

/// The oldest operator set that exporters still write and that the adapters know.
const OLDEST: i64 = 9;

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
    let mut edit = Edit::new(&mut model.graph);
    for id in edit.ops() {
        adapt_node(&mut edit, id, found)?;
    }
    edit.commit()?;
    if found != CANONICAL_OPSET {
        model.set_opset("", CANONICAL_OPSET);
    }
    Ok(())
}

fn adapt_node(edit: &mut Edit<'_>, id: NodeId, opset: i64) -> Result<(), CanonError> {
    let Some(op) = edit.op(id).filter(|o| o.op.canonical_domain().is_empty()) else { return Ok(()) };
    match op.op.op_type.as_str() {
        "Squeeze" | "Unsqueeze" | "ReduceSum" if opset < 13 => attr_to_input(edit, id, "axes", 1),
        "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2" | "ReduceLogSum"
        | "ReduceLogSumExp" | "ReduceSumSquare"
            if opset < 18 =>
        {
            attr_to_input(edit, id, "axes", 1);
        }
        "Split" if opset < 13 => attr_to_input(edit, id, "split", 1),
        "Softmax" | "LogSoftmax" if opset < 13 => {
            let axis = op.attrs.int("axis").unwrap_or(1);
            // Before opset 13 the input is coerced to a matrix at `axis`; on the last axis both meanings agree.
            if axis != -1 && edit.info(crate::ir::Value { node: id, port: 0 }).is_none() && axis < 3 {
                return Err(CanonError::Opset {
                    place: edit.describe(id),
                    what: format!(
                        "is a softmax of opset {opset} over axis {axis}, which flattens its input: re-export the model with opset 13 or later"
                    ),
                });
            }
            edit.set_attr(id, "axis", AttrValue::Int(-1));
        }
        _ => {}
    }
    Ok(())
}

/// Moves a list attribute to an input, as later operator sets have it.
fn attr_to_input(edit: &mut Edit<'_>, id: NodeId, name: &str, port: u32) {
    let Some(AttrValue::Ints(values)) = edit.op_mut(id).and_then(|op| op.attrs.remove(name)) else { return };
    let stem = edit.get(id).and_then(|n| n.outputs.first()).map_or_else(String::new, |o| format!("{o}_{name}"));
    let value = edit.add_init(id, &stem, Tensor::vector(&values));
    edit.set_input(id, port, Some(value));
}
