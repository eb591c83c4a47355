//! Operators of the canonical form that runtimes do not have yet, written out again.

use crate::ir::{AttrValue, Edit, NewOp, NodeId, Tensor, Value};

/// `RMSNormalization` is of opset 23, which few runtimes load beside Q/DQ: its operators of opset 20 say the same.
pub(super) fn rms_norms(edit: &mut Edit<'_>) {
    for id in edit.ops() {
        if edit.is_op(id, "RMSNormalization")
            && let Some(value) = rms_norm(edit, id)
        {
            edit.replace(Value { node: id, port: 0 }, value);
        }
    }
}

fn rms_norm(edit: &mut Edit<'_>, id: NodeId) -> Option<Value> {
    let op = edit.op(id)?;
    let (axis, epsilon) = (op.attrs.int("axis").unwrap_or(-1), op.attrs.float("epsilon").unwrap_or(1e-5));
    let (x, gamma) = (edit.input(id, 0)?, edit.input(id, 1)?);
    let float = op.attrs.int("stash_type").unwrap_or(1) == 1;
    if axis != -1 || !float || edit.get(id)?.outputs.len() != 1 {
        return None;
    }
    let name = edit.value_name(Value { node: id, port: 0 }).to_owned();
    let stem = |part: &str| format!("{name}_{part}");
    let axes = edit.add_init(id, &stem("axes"), Tensor::vector(&[-1i64]));
    let epsilon = edit.add_init(id, &stem("epsilon"), Tensor::scalar(epsilon));
    let square = edit.add(id, NewOp::std("Mul", &stem("square")).inputs([x, x]));
    let mean = NewOp::std("ReduceMean", &stem("mean")).inputs([square, axes]);
    let mean = edit.add(id, mean.attr("keepdims", AttrValue::Int(1)));
    let sum = edit.add(id, NewOp::std("Add", &stem("sum")).inputs([mean, epsilon]));
    let root = edit.add(id, NewOp::std("Sqrt", &stem("root")).inputs([sum]));
    let normal = edit.add(id, NewOp::std("Div", &stem("normal")).inputs([x, root]));
    Some(edit.add(id, NewOp::std("Mul", &name).inputs([normal, gamma])))
}
