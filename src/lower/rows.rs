//! Linears as Gemm on rows, whose integer kernels start from the int32 bias instead of adding it to a float product.
//!
//! `codes [.., T, K] → DequantizeLinear → MatMul → Add` becomes `Gemm` of `[rows, K]`, and what looks at single elements or at one
//! row at a time stays among rows: quantisers, activation functions, LayerNorms, residual sums. So a stream of tokens is reshaped
//! where it begins, where heads are cut out of it, and where it ends. No Reshape comes between a QuantizeLinear and its
//! DequantizeLinear: onnxruntime makes signed codes unsigned, as its Gemm needs them, only where the two are neighbours.

use std::collections::BTreeMap;

use super::qdq::{Pair, Quantised};
use crate::ir::shape::{DimExpr, Shapes};
use crate::ir::{AttrValue, DType, Edit, NewOp, NodeId, Tensor, Value};

/// Operators that look at one element of their first input at a time; what else they read is one number each.
const ELEMENTWISE: [&str; 8] = ["QuantizeLinear", "DequantizeLinear", "Clip", "Gelu", "Relu", "Sigmoid", "Tanh", "HardSwish"];

/// Rewrites every Linear whose input, weights and bias, if any, are integers of 8, 8 and 32 bits, and of whose output no more than one size is
/// unknown. `shapes` are those of the graph before any value had codes.
pub(super) fn lower(edit: &mut Edit<'_>, quantised: &Quantised, shapes: &Shapes) {
    let by_dq: BTreeMap<Value, &Pair> = quantised.values.values().map(|p| (p.dequantised, p)).collect();
    let mut rows = Rows { shapes, known: BTreeMap::new() };
    for id in edit.ops() {
        match rows.linear(edit, id, &by_dq) {
            Some(linear) => rows.multiply(edit, &linear),
            None => _ = rows.follow(edit, id),
        }
    }
    rows.hand_names_on(edit);
}

/// `Add(MatMul(x, weights), bias)`, or the product alone, all behind DequantizeLinear.
struct Linear {
    /// The operator that makes the output.
    last: NodeId,
    x: Value,
    weights: Value,
    bias: Option<Value>,
    /// Of the input's last axis.
    inputs: usize,
    /// Of the output.
    shape: Vec<DimExpr>,
}

/// The shape of a value of which no more than one size is unknown.
fn shape_of(shapes: &Shapes, value: Value) -> Option<&[DimExpr]> {
    shapes.shape(value).filter(|shape| shape.iter().filter(|d| d.as_size().is_none()).count() <= 1)
}

/// What Reshape makes of that shape: −1 where a size is unknown.
fn sizes(shape: &[DimExpr]) -> Vec<i64> {
    shape.iter().map(|d| d.as_size().map_or(-1, |n| n as i64)).collect()
}

/// A value as rows.
#[derive(Clone)]
struct Known {
    rows: Value,
    /// Of the value itself.
    shape: Vec<DimExpr>,
}

struct Rows<'a> {
    shapes: &'a Shapes,
    /// By the value itself.
    known: BTreeMap<Value, Known>,
}

impl Rows<'_> {
    fn linear(&self, edit: &Edit<'_>, last: NodeId, by_dq: &BTreeMap<Value, &Pair>) -> Option<Linear> {
        let (product, bias) = if edit.is_op(last, "Add") {
            (edit.input(last, 0)?.node, Some(integer_bias(edit, last)?))
        } else {
            let out = Value { node: last, port: 0 };
            // With a bias it is the sum that is rewritten.
            if edit.uses(out).iter().any(|u| integer_bias(edit, u.node).is_some()) {
                return None;
            }
            (last, None)
        };
        if !edit.is_op(product, "MatMul") {
            return None;
        }
        let (x, weights) = (edit.input(product, 0)?, edit.input(product, 1)?);
        // What a DequantizeLinear among rows makes is known by the value that it stands for.
        let of_x = by_dq.get(&x).or_else(|| by_dq.get(&self.known.get(&x)?.rows))?;
        let of_weights = by_dq.get(&weights)?;
        let [inputs, _] = edit.constant(of_weights.codes)?.shape[..] else { return None };
        let bytes = [of_x, of_weights].iter().all(|p| matches!(p.coding.dtype(), DType::I8 | DType::U8));
        if !bytes || of_x.scales.len() != 1 {
            return None;
        }
        let shape = shape_of(self.shapes, Value { node: last, port: 0 })?.to_vec();
        Some(Linear { last, x, weights, bias, inputs, shape })
    }

    fn multiply(&mut self, edit: &mut Edit<'_>, linear: &Linear) {
        let Some(x) = self.dequantised(edit, linear) else { return };
        let old = Value { node: linear.last, port: 0 };
        let name = edit.value_name(old).to_owned();
        let gemm = NewOp::std("Gemm", &format!("{name}_gemm")).inputs([x, linear.weights]).inputs(linear.bias);
        let gemm = edit.add(linear.last, gemm.output(&format!("{name}_rows")));
        if linear.shape.len() == 2 {
            edit.replace(old, gemm);
        } else {
            self.shaped(edit, gemm, old, &linear.shape);
        }
    }

    /// The input as rows.
    fn dequantised(&mut self, edit: &mut Edit<'_>, linear: &Linear) -> Option<Value> {
        if linear.shape.len() == 2 {
            return Some(linear.x);
        }
        if let Some(known) = self.known.get(&linear.x) {
            return Some(known.rows);
        }
        let width = linear.inputs as i64;
        let dq = linear.x.node;
        let [codes, scale, zero] = [edit.input(dq, 0)?, edit.input(dq, 1)?, edit.input(dq, 2)?];
        let name = edit.value_name(codes).to_owned();
        let reals = edit.input(codes.node, 0).filter(|_| edit.is_op(codes.node, "QuantizeLinear"));
        let codes = match reals {
            Some(reals) => {
                let reals = flattened(edit, reals, width);
                let op = NewOp::std("QuantizeLinear", &format!("{name}_rows")).inputs([reals, scale, zero]);
                edit.add(codes.node, op)
            }
            None => flattened(edit, codes, width),
        };
        let name = edit.value_name(linear.x).to_owned();
        let rows = edit.add(dq, NewOp::std("DequantizeLinear", &format!("{name}_rows")).inputs([codes, scale, zero]));
        let before = linear.shape.split_last().map_or(&[][..], |(_, before)| before);
        let shape = before.iter().cloned().chain([DimExpr::from(width)]).collect();
        self.known.insert(linear.x, Known { rows, shape });
        Some(rows)
    }

    /// Makes an operator read rows, where it may.
    fn follow(&mut self, edit: &mut Edit<'_>, id: NodeId) -> Option<()> {
        let y = Value { node: id, port: 0 };
        let x = edit.input(id, 0)?;
        if edit.is_op(id, "Reshape") {
            let rows = self.known.get(&x)?.rows;
            let shape = sizes(shape_of(self.shapes, y)?);
            let name = edit.value_name(y).to_owned();
            let shape = edit.add_init(id, &format!("{name}_shape"), Tensor::vector(&shape));
            edit.set_input(id, 0, Some(rows));
            edit.set_input(id, 1, Some(shape));
            return None;
        }
        let shape = if edit.is_op(id, "Add") {
            let other = edit.input(id, 1)?;
            let shape = self.known.get(&x).or_else(|| self.known.get(&other))?.shape.clone();
            let (a, b) = (self.rows_of(edit, x, &shape)?, self.rows_of(edit, other, &shape)?);
            edit.set_input(id, 0, Some(a));
            edit.set_input(id, 1, Some(b));
            shape
        } else {
            let normalises = is_last_norm(edit, id, self.shapes);
            if !normalises && !is_elementwise(edit, id) {
                return None;
            }
            if normalises && edit.uses(y).iter().all(|u| edit.is_op(u.node, "QuantizeLinear")) && !self.known.contains_key(&x) {
                // Where a stream begins.
                let shape = shape_of(self.shapes, x).filter(|s| s.len() > 2)?;
                self.rows_of(edit, x, shape)?;
            }
            let known = self.known.get(&x)?.clone();
            edit.set_input(id, 0, Some(known.rows));
            if normalises {
                edit.set_attr(id, "axis", AttrValue::Int(-1));
            }
            known.shape
        };
        self.shaped(edit, y, y, &shape);
        Some(())
    }

    /// A value of a shape as rows.
    fn rows_of(&mut self, edit: &mut Edit<'_>, value: Value, shape: &[DimExpr]) -> Option<Value> {
        if let Some(known) = self.known.get(&value) {
            return (known.shape == shape).then_some(known.rows);
        }
        let fits = edit.constant(value).is_none() && shape_of(self.shapes, value)? == shape;
        let rows = flattened(edit, value, shape.last().filter(|_| fits)?.as_const()?);
        self.known.insert(value, Known { rows, shape: shape.to_vec() });
        Some(rows)
    }

    /// Rows in the shape of the value that they stand for, for whoever needs that.
    fn shaped(&mut self, edit: &mut Edit<'_>, rows: Value, old: Value, shape: &[DimExpr]) {
        let name = edit.value_name(old).to_owned();
        let shaped = reshape(edit, rows, &format!("{name}_shaped"), &format!("{name}_rows"), &sizes(shape));
        edit.replace(old, shaped);
        self.known.insert(shaped, Known { rows, shape: shape.to_vec() });
    }

    /// Where nothing needed a value's own shape, its rows have its name.
    fn hand_names_on(&self, edit: &mut Edit<'_>) {
        let names: Vec<(Value, Value, String)> =
            self.known.iter().map(|(&v, known)| (v, known.rows, edit.value_name(v).to_owned())).collect();
        edit.sweep();
        for (value, rows, name) in names {
            if edit.get(value.node).is_none() {
                edit.rename(rows, &name);
            }
        }
    }
}

/// The int32 bias of a Linear that ends in this Add, dequantised: a number for each output, added to a product that nothing else reads.
fn integer_bias(edit: &Edit<'_>, add: NodeId) -> Option<Value> {
    let (product, bias) = (edit.input(add, 0)?, edit.input(add, 1)?);
    let fits = edit.is_op(add, "Add")
        && edit.is_op(product.node, "MatMul")
        && edit.use_count(product) == 1
        && edit.is_op(bias.node, "DequantizeLinear");
    let codes = edit.constant(edit.input(bias.node, 0).filter(|_| fits)?)?;
    (codes.dtype == DType::I32 && codes.shape.len() == 1).then_some(bias)
}

fn is_elementwise(edit: &Edit<'_>, id: NodeId) -> bool {
    let one = |v: Value| edit.constant(v).is_some_and(|t| t.shape.iter().product::<usize>() == 1);
    ELEMENTWISE.iter().any(|op| edit.is_op(id, op)) && edit.inputs_of(id).into_iter().skip(1).flatten().all(one)
}

fn is_last_norm(edit: &Edit<'_>, id: NodeId, shapes: &Shapes) -> bool {
    let axis = edit.op(id).and_then(|o| o.attrs.int("axis")).unwrap_or(-1);
    let last = axis == -1 || shapes.rank(Value { node: id, port: 0 }).is_some_and(|r| axis == r as i64 - 1);
    let vector = |v: Value| edit.constant(v).is_some_and(|t| t.shape.len() == 1);
    let one = edit.get(id).is_some_and(|n| n.outputs.len() == 1);
    edit.is_op(id, "LayerNormalization") && one && last && edit.inputs_of(id).into_iter().skip(1).flatten().all(vector)
}

/// A value as rows of a width; of a Reshape, what that reads.
fn flattened(edit: &mut Edit<'_>, value: Value, width: i64) -> Value {
    let name = edit.value_name(value).to_owned();
    let source = edit.input(value.node, 0).filter(|_| edit.is_op(value.node, "Reshape")).unwrap_or(value);
    let name = format!("{name}_rows");
    let anchor = value.node;
    let to = edit.add_init(anchor, &format!("{name}_shape"), Tensor::vector(&[-1, width]));
    edit.add(anchor, NewOp::std("Reshape", &name).inputs([source, to]))
}

fn reshape(edit: &mut Edit<'_>, value: Value, name: &str, output: &str, shape: &[i64]) -> Value {
    let to = edit.add_init(value.node, &format!("{name}_shape"), Tensor::vector(shape));
    edit.add(value.node, NewOp::std("Reshape", name).inputs([value, to]).output(output))
}
