//! Biases as int32 in units of input scale × weight scale, as integer kernels add them to their accumulators.

use std::collections::BTreeMap;

use super::LowerReport;
use super::qdq::{Pair, Quantised};
use crate::ir::{AttrValue, Edit, NewOp, NodeId, Tensor, Value};

/// Rewrites the bias of every MatMul + Add and Conv whose input and weights are quantised.
pub(super) fn lower(edit: &mut Edit<'_>, quantised: &Quantised, report: &mut LowerReport) {
    let by_dq: BTreeMap<Value, &Pair> = quantised.values.values().map(|p| (p.dequantised, p)).collect();
    for id in edit.ops() {
        let Some((product, reader, port)) = bias_of(edit, id) else { continue };
        let operand = |port| edit.input(product, port).and_then(|v| by_dq.get(&v).copied());
        let (Some(x), Some(w)) = (operand(0), operand(1)) else { continue };
        let Some(value) = edit.input(reader, port) else { continue };
        match integer_bias(edit, value, x, w) {
            Ok((codes, scales)) => {
                replace(edit, reader, port, value, codes, scales);
                report.biases += 1;
            }
            Err(Some(why)) => report.notes.push(format!("{}: its bias stays in float: {why}", edit.describe(reader))),
            Err(None) => {}
        }
    }
}

/// The product, and where its bias enters: the node and its port.
fn bias_of(edit: &Edit<'_>, id: NodeId) -> Option<(NodeId, NodeId, u32)> {
    if edit.is_op(id, "Conv") {
        return edit.input(id, 2).map(|_| (id, id, 2));
    }
    if !edit.is_op(id, "Add") {
        return None;
    }
    let product = edit.input(id, 0)?;
    let bias = edit.input(id, 1)?;
    (edit.is_op(product.node, "MatMul") && edit.constant(bias).is_some()).then_some((product.node, id, 1))
}

/// The codes and scales of a bias; the error is a reason worth a note, or `None` when there is nothing to do.
fn integer_bias(edit: &Edit<'_>, bias: Value, x: &Pair, w: &Pair) -> Result<(Vec<i32>, Vec<f32>), Option<String>> {
    let tensor = edit.constant(bias).ok_or(None)?;
    let b = tensor.to_f32().map_err(|e| Some(e.to_string()))?;
    // With PTF codes the product's accumulator is the sum over c of (q_c − zp_c) · f_c · w_c: factors that are powers of two are shifts of
    // the codes, so that it counts in units of the smallest factor's scale × the weight's, as the accumulator of a single scale does.
    // Scales without a common unit leave it without one.
    if x.scales.len() != 1 && x.multipliers.is_empty() {
        return Err(Some(format!("the input {} has a scale for each channel", x.site)));
    }
    let x_scale = x.unit as f32;
    // The position bias of attention: one scale for the whole tensor, as q and k have.
    let whole = tensor.shape.len() != 1;
    if whole && w.scales.len() != 1 {
        return Err(Some(format!("a vector expected, found shape {:?}", tensor.shape)));
    }
    let count = if whole { 1 } else { b.len() };
    let scales: Vec<f32> =
        (0..count).map(|c| x_scale * w.scales[if w.scales.len() == 1 { 0 } else { c % w.scales.len() }]).collect();
    let codes: Option<Vec<i32>> = b
        .iter()
        .zip(scales.iter().cycle())
        .map(|(&b, &s)| {
            let q = f64::from(b) / f64::from(s);
            (q.is_finite() && q.abs() <= f64::from(i32::MAX)).then_some(q.round_ties_even() as i32)
        })
        .collect();
    codes.map(|c| (c, scales)).ok_or_else(|| Some("it does not fit 32 bits in units of input scale × weight scale".to_owned()))
}

fn replace(edit: &mut Edit<'_>, reader: NodeId, port: u32, old: Value, codes: Vec<i32>, scales: Vec<f32>) {
    let name = edit.value_name(old).to_owned();
    let shape = edit.constant(old).map(|t| t.shape.clone()).unwrap_or_default();
    let Ok(codes) = Tensor::new(&shape, &codes) else { return };
    let one = shape.len() != 1;
    let (scale, zero) = match scales[..] {
        [scale] if one => (Tensor::scalar(scale), Tensor::scalar(0i32)),
        _ => (Tensor::vector(&scales), Tensor::vector(&vec![0i32; scales.len()])),
    };
    let codes = edit.add_init(reader, &format!("{name}_quantized"), codes);
    let scale = edit.add_init(reader, &format!("{name}_scale"), scale);
    let zero = edit.add_init(reader, &format!("{name}_zero_point"), zero);
    // Layers may share a bias, which then has codes of its own in each: nodes need names of their own too.
    let stem = edit.fresh_name(&format!("{name}_dequantized"));
    let dq = NewOp::std("DequantizeLinear", &stem).inputs([codes, scale, zero]);
    let dq = edit.add(reader, if one { dq } else { dq.attr("axis", AttrValue::Int(0)) });
    edit.set_input(reader, port, Some(dq));
}
