//! Linears as Gemm on rows, whose kernels start from the int32 bias instead of adding it to a float product.
//!
//! `codes [.., T, K] → DequantizeLinear → MatMul → Add` becomes `codes → Reshape [rows, K] → DequantizeLinear → Gemm → Reshape
//! [.., T, N]`. The last Reshape moves behind operators that look at single elements, and two Gemms with nothing else but those and a
//! quantiser between need none. It does not move between a QuantizeLinear and its DequantizeLinear: onnxruntime makes signed codes
//! unsigned, as its Gemm needs them, only where the two are neighbours.

use std::collections::BTreeMap;

use super::qdq::{Pair, Quantised};
use crate::ir::shape::{DimExpr, Shapes};
use crate::ir::{DType, Edit, NewOp, NodeId, Tensor, Value};

/// Operators that look at one element of their first input at a time; what else they read is one number each.
const ELEMENTWISE: [&str; 6] = ["Clip", "Gelu", "Relu", "Sigmoid", "Tanh", "HardSwish"];

/// Rewrites every Linear whose input, weights and bias are integers of 8, 8 and 32 bits, and of whose output no more than one size is
/// unknown. `shapes` are those of the graph before lowering.
pub(super) fn lower(edit: &mut Edit<'_>, quantised: &Quantised, shapes: &Shapes) {
    let by_dq: BTreeMap<Value, &Pair> = quantised.values.values().map(|p| (p.dequantised, p)).collect();
    let mut rows = Rows::default();
    for id in edit.ops() {
        if let Some(linear) = linear(edit, id, &by_dq, shapes) {
            rows.multiply(edit, &linear);
        }
    }
}

/// `Add(MatMul(x, weights), bias)`, all behind DequantizeLinear.
struct Linear {
    add: NodeId,
    x: Value,
    weights: Value,
    bias: Value,
    /// Of the input's last axis.
    inputs: usize,
    /// Of the output, −1 where it is unknown.
    shape: Vec<i64>,
}

fn linear(edit: &Edit<'_>, add: NodeId, by_dq: &BTreeMap<Value, &Pair>, shapes: &Shapes) -> Option<Linear> {
    let (product, bias) = (edit.input(add, 0)?, edit.input(add, 1)?);
    let fits = edit.is_op(add, "Add")
        && edit.is_op(product.node, "MatMul")
        && edit.use_count(product) == 1
        && edit.is_op(bias.node, "DequantizeLinear");
    let codes = edit.constant(edit.input(bias.node, 0).filter(|_| fits)?)?;
    let (x, weights) = (edit.input(product.node, 0)?, edit.input(product.node, 1)?);
    let (of_x, of_weights) = (by_dq.get(&x)?, by_dq.get(&weights)?);
    let [inputs, _] = edit.constant(of_weights.codes)?.shape[..] else { return None };
    let bytes = [of_x, of_weights].iter().all(|p| matches!(p.coding.dtype(), DType::I8 | DType::U8));
    if codes.dtype != DType::I32 || codes.shape.len() != 1 || !bytes || of_x.scales.len() != 1 {
        return None;
    }
    let size = |d: &DimExpr| d.as_size().map_or(-1, |n| n as i64);
    let shape: Vec<i64> = shapes.shape(Value { node: add, port: 0 })?.iter().map(size).collect();
    (shape.iter().filter(|&&n| n < 0).count() <= 1).then_some(Linear { add, x, weights, bias, inputs, shape })
}

/// Values in both shapes.
#[derive(Default)]
struct Rows {
    /// As rows, by the value itself.
    flat: BTreeMap<Value, Value>,
}

impl Rows {
    fn multiply(&mut self, edit: &mut Edit<'_>, linear: &Linear) {
        let Some(x) = self.dequantised(edit, linear) else { return };
        let old = Value { node: linear.add, port: 0 };
        let name = edit.value_name(old).to_owned();
        let gemm = NewOp::std("Gemm", &format!("{name}_gemm")).inputs([x, linear.weights, linear.bias]);
        let gemm = edit.add(linear.add, gemm.output(&format!("{name}_rows")));
        if linear.shape.len() == 2 {
            return edit.replace(old, gemm);
        }
        let shaped = self.shaped(edit, gemm, old, &linear.shape);
        self.sink(edit, shaped, &linear.shape);
    }

    /// The input as rows: the codes reshaped, then dequantised.
    fn dequantised(&mut self, edit: &mut Edit<'_>, linear: &Linear) -> Option<Value> {
        if linear.shape.len() == 2 {
            return Some(linear.x);
        }
        if let Some(&known) = self.flat.get(&linear.x) {
            return Some(known);
        }
        let dq = linear.x.node;
        let [codes, scale, zero] = [edit.input(dq, 0)?, edit.input(dq, 1)?, edit.input(dq, 2)?];
        let name = edit.value_name(codes).to_owned();
        let quantiser = edit.is_op(codes.node, "QuantizeLinear").then_some(codes.node);
        let reals = quantiser.and_then(|q| self.flat.get(&edit.input(q, 0)?).copied());
        let rows = match reals {
            Some(reals) => {
                let op = NewOp::std("QuantizeLinear", &format!("{name}_rows")).inputs([reals, scale, zero]);
                edit.add(reals.node, op)
            }
            None => reshape(edit, codes, &name, "rows", &[-1, linear.inputs as i64]),
        };
        let name = edit.value_name(linear.x).to_owned();
        let op = NewOp::std("DequantizeLinear", &format!("{name}_rows")).inputs([rows, scale, zero]);
        let rows = edit.add(dq, op);
        self.flat.insert(linear.x, rows);
        Some(rows)
    }

    /// Moves a Reshape of rows behind the operators that alone read it and look at single elements.
    fn sink(&mut self, edit: &mut Edit<'_>, mut shaped: Value, shape: &[i64]) {
        while let [reader] = edit.uses(shaped)[..]
            && !edit.is_output(shaped)
            && reader.port == 0
            && is_elementwise(edit, reader.node)
            && let Some(&rows) = self.flat.get(&shaped)
        {
            let y = Value { node: reader.node, port: 0 };
            edit.set_input(reader.node, 0, Some(rows));
            shaped = self.shaped(edit, y, y, shape);
        }
    }

    /// Rows in the shape of the value that they stand for, which hands its name on: the rows have a name of their own.
    fn shaped(&mut self, edit: &mut Edit<'_>, rows: Value, old: Value, shape: &[i64]) -> Value {
        let name = edit.value_name(old).to_owned();
        let shaped = reshape(edit, rows, &name, "shaped", shape);
        edit.replace(old, shaped);
        self.flat.insert(shaped, rows);
        shaped
    }
}

fn is_elementwise(edit: &Edit<'_>, id: NodeId) -> bool {
    let one = |v: Value| edit.constant(v).is_some_and(|t| t.shape.iter().product::<usize>() == 1);
    ELEMENTWISE.iter().any(|op| edit.is_op(id, op)) && edit.inputs_of(id).into_iter().skip(1).flatten().all(one)
}

fn reshape(edit: &mut Edit<'_>, value: Value, name: &str, into: &str, shape: &[i64]) -> Value {
    let to = edit.add_init(value.node, &format!("{name}_{into}_shape"), Tensor::vector(shape));
    let op = NewOp::std("Reshape", &format!("{name}_{into}")).inputs([value, to]);
    edit.add(value.node, op.output(&format!("{name}_rows")))
}
