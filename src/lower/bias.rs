//! Biases as int32 in units of input scale × weight scale, as integer kernels add them to their accumulators.

use std::collections::BTreeMap;

use super::qdq::{Pair, Quantised, misfit};
use super::{LowerError, LowerReport};
use crate::ir::{AttrValue, Edit, NewOp, NodeId, Tensor, Value};
use crate::quant::plan::SitePlan;

/// Rewrites the bias of every MatMul + Add and Conv whose input and weights are quantised.
pub(super) fn lower(edit: &mut Edit<'_>, quantised: &Quantised, report: &mut LowerReport) {
    let by_dq: BTreeMap<Value, &Pair> = quantised.values.values().map(|p| (p.dequantised, p)).collect();
    for id in edit.ops() {
        let Some((product, reader, port)) = bias_of(edit, id) else { continue };
        let operand = |port| edit.input(product, port).and_then(|v| by_dq.get(&v).copied());
        let (Some(x), Some(w)) = (operand(0), operand(1)) else { continue };
        let Some(value) = edit.input(reader, port) else { continue };
        match integer_bias(edit, value, x, w) {
            Ok(integers) => {
                replace(edit, reader, port, value, integers);
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

/// Half of what 32 bits hold: the products have the other half.
const MOST: f64 = (1u32 << 30) as f64;

/// A constant in units of an accumulator.
struct Integers {
    codes: Vec<i32>,
    /// One, or one a channel on the axis.
    scales: Vec<f32>,
    axis: Option<usize>,
}

/// The integers of a bias; the error is a reason worth a note, or `None` when there is nothing to do.
fn integer_bias(edit: &Edit<'_>, bias: Value, x: &Pair, w: &Pair) -> Result<Integers, Option<String>> {
    let tensor = edit.constant(bias).ok_or(None)?;
    // The position bias of attention: one scale for the whole tensor, as q and k have.
    let whole = tensor.shape.len() != 1;
    if whole && w.scales.len() != 1 {
        return Err(Some(format!("a vector expected, found shape {:?}", tensor.shape)));
    }
    integers(tensor, (!whole).then_some(0), x, w).map_err(Some)
}

/// A constant in units of the accumulator of a product of `x` and `w`, its channels on an axis.
fn integers(tensor: &Tensor, axis: Option<usize>, x: &Pair, w: &Pair) -> Result<Integers, String> {
    let values = tensor.to_f32().map_err(|e| e.to_string())?;
    // With PTF codes the product's accumulator is the sum over c of (q_c − zp_c) · f_c · w_c: factors that are powers of two are shifts of
    // the codes, so that it counts in units of the smallest factor's scale × the weight's, as the accumulator of a single scale does.
    // Scales without a common unit leave it without one.
    if x.scales.len() != 1 && x.multipliers.is_empty() {
        return Err(format!("the input {} has a scale for each channel", x.site));
    }
    let x_scale = x.unit as f32;
    let count = axis.and_then(|a| tensor.shape.get(a)).copied().unwrap_or(1);
    let inner: usize = axis.map_or(1, |a| tensor.shape.iter().skip(a + 1).product());
    let scales: Vec<f32> =
        (0..count).map(|c| x_scale * w.scales[if w.scales.len() == 1 { 0 } else { c % w.scales.len() }]).collect();
    let of_channel = |i: usize| scales[i / inner.max(1) % count.max(1)];
    let codes: Option<Vec<i32>> = values
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            let q = f64::from(v) / f64::from(of_channel(i));
            (q.is_finite() && q.abs() <= MOST).then_some(q.round_ties_even() as i32)
        })
        .collect();
    let codes = codes.ok_or("it takes more than half of 32 bits in units of input scale × weight scale")?;
    Ok(Integers { codes, scales, axis })
}

/// Rewrites the constants that are added to a product's accumulator, or joined to it, on the way to the sum that has codes.
/// `axes` are those of channels that are not the last, by value.
///
/// `constants` are those that the plan leaves without codes of their own; gives the names of all that are added.
///
/// # Errors
/// When the site is no product's own output, or something else than an addition reads it.
pub(super) fn lower_accumulated(
    edit: &mut Edit<'_>,
    site: &SitePlan,
    constants: &[&String],
    axes: &BTreeMap<String, usize>,
    quantised: &Quantised,
    report: &mut LowerReport,
) -> Result<Vec<String>, LowerError> {
    let no_product =
        || misfit(site, "", "an accumulator is the output of a convolution or Linear that nothing but additions read");
    let unknown = |name: &String| LowerError::UnknownValue { site: site.name.clone(), value: name.clone() };
    let value = |name: &String| Ok((edit.value(name).ok_or_else(|| unknown(name))?, from_end(axes, name)));
    let values = site.site.values.iter().map(value).collect::<Result<Vec<_>, LowerError>>()?;
    let first = values.first().map(|(v, _)| v.node).ok_or_else(no_product)?;
    let before = edit.input(first, 0).map(|v| v.node).filter(|_| edit.is_op(first, "Add"));
    let product = before.unwrap_or(first);
    if !(edit.is_op(product, "Conv") || edit.is_op(product, "MatMul")) {
        return Err(no_product());
    }
    let ports = added(edit, &values).ok_or_else(no_product)?;
    let constant = |&(node, port, _): &(NodeId, u32, usize)| edit.input(node, port).filter(|&v| edit.constant(v).is_some());
    let names = ports.iter().filter_map(constant).map(|v| edit.value_name(v).to_owned()).collect();
    let by_dq: BTreeMap<Value, &Pair> = quantised.values.values().map(|p| (p.dequantised, p)).collect();
    let operand = |port| edit.input(product, port).and_then(|v| by_dq.get(&v).copied());
    let (Some(x), Some(w)) = (operand(0), operand(1)) else {
        report.notes.push(format!("{} stays in float, and what is added to it: it multiplies floats", edit.describe(product)));
        return Ok(names);
    };
    for (node, port, channel_from_end) in ports {
        let Some((value, tensor)) = edit.input(node, port).and_then(|v| Some((v, edit.constant(v)?))) else { continue };
        // Of what the plan says nothing, tokens alone: they are joined to the patches.
        let name = edit.value_name(value).to_owned();
        if edit.is_op(node, "Add") && !constants.contains(&&name) {
            continue;
        }
        let axis = tensor.shape.len().checked_sub(channel_from_end);
        let fits = w.scales.len() == 1 || axis.and_then(|a| tensor.shape.get(a)) == Some(&w.scales.len());
        let found = match axis {
            Some(axis) if fits => integers(tensor, Some(axis), x, w),
            _ => Err(format!("one number for each of {} channels expected, found shape {:?}", w.scales.len(), tensor.shape)),
        };
        match found {
            Ok(integers) => {
                replace(edit, node, port, value, integers);
                report.biases += 1;
            }
            Err(why) => report.notes.push(format!("'{name}' stays in float where it is added to an accumulator: {why}")),
        }
    }
    Ok(names)
}

fn from_end(axes: &BTreeMap<String, usize>, value: &str) -> usize {
    axes.get(value).copied().unwrap_or(1)
}

/// Where constants enter: the node, its port, and the place of the channels from the end. `None` when something else than an
/// addition reads the values.
fn added(edit: &Edit<'_>, values: &[(Value, usize)]) -> Option<Vec<(NodeId, u32, usize)>> {
    let mut found = Vec::new();
    for &(value, channels) in values {
        if edit.is_output(value) {
            return None;
        }
        if edit.is_op(value.node, "Concat") || edit.is_op(value.node, "Expand") {
            let ports = if edit.is_op(value.node, "Expand") { 1 } else { edit.inputs_of(value.node).len() as u32 };
            found.extend((0..ports).map(|port| (value.node, port, channels)));
        }
        for reader in edit.uses(value) {
            let carries = values.iter().any(|(v, _)| v.node == reader.node) || edit.is_op(reader.node, "Shape");
            let other = 1 - reader.port.min(1);
            match edit.input(reader.node, other) {
                _ if carries => {}
                Some(c) if edit.is_op(reader.node, "Add") => {
                    // What has codes, as the residual stream, is added as it is.
                    found.extend(edit.constant(c).map(|_| (reader.node, other, channels)));
                }
                _ => return None,
            }
        }
    }
    Some(found)
}

fn replace(edit: &mut Edit<'_>, reader: NodeId, port: u32, old: Value, new: Integers) {
    let name = edit.value_name(old).to_owned();
    let shape = edit.constant(old).map(|t| t.shape.clone()).unwrap_or_default();
    let Ok(codes) = Tensor::new(&shape, &new.codes) else { return };
    let (scale, zero) = match (new.axis, &new.scales[..]) {
        (None, &[scale]) => (Tensor::scalar(scale), Tensor::scalar(0i32)),
        (_, scales) => (Tensor::vector(scales), Tensor::vector(&vec![0i32; scales.len()])),
    };
    let codes = edit.add_init(reader, &format!("{name}_quantized"), codes);
    let scale = edit.add_init(reader, &format!("{name}_scale"), scale);
    let zero = edit.add_init(reader, &format!("{name}_zero_point"), zero);
    // Layers may share a bias, which then has codes of its own in each: nodes need names of their own too.
    let stem = edit.fresh_name(&format!("{name}_dequantized"));
    let dq = NewOp::std("DequantizeLinear", &stem).inputs([codes, scale, zero]);
    let dq = edit.add(
        reader,
        match new.axis {
            None => dq,
            Some(axis) => dq.attr("axis", AttrValue::Int(axis as i64)),
        },
    );
    edit.set_input(reader, port, Some(dq));
}
