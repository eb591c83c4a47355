//! DequantizeLinear → LayerNormalization, Softmax, Gelu → QuantizeLinear as one integer op of domain `ai.vitq`.

use std::collections::{BTreeMap, BTreeSet};

use super::qdq::{Log2Codes, Pair, Quantised};
use super::{LowerError, LowerReport};
use crate::ir::shape::Shapes;
use crate::ir::{AI_VITQ, AttrValue, DType, Edit, NewOp, NodeId, OpName, Scalar, Tensor, Value};
use crate::quant::plan::Codes;
use crate::quant::tables::layer_norm::{LayerNormSpec, LayerNormTables};
use crate::quant::tables::log_softmax::{LogRounding, LogSoftmaxTables, log_dequantize_table, log_normalize_table};
use crate::quant::tables::lut::{Activation, activation_table, channel_tables};
use crate::quant::tables::{Affine, CodeType, Ptf, TableError};

/// Rewrites every operator whose input and output are quantised as the op needs them.
/// `shapes` are those of the graph before any value had codes, `joined` the values of which some rows have codes of their own.
pub(super) fn lower(
    edit: &mut Edit<'_>,
    quantised: &Quantised,
    shapes: &Shapes,
    joined: &BTreeSet<Value>,
    report: &mut LowerReport,
) -> Result<(), LowerError> {
    let by_dq: BTreeMap<Value, Pair> = quantised.values.values().map(|p| (p.dequantised, p.clone())).collect();
    for id in edit.ops() {
        let Some(op) = edit.op(id).map(|o| o.op.clone()) else { continue };
        let gated = gated(edit, id);
        let source = gated.map(|(x, _)| x).or_else(|| edit.input(id, 0));
        let parts = source.map(|v| parts(edit, v, &by_dq, joined)).unwrap_or_default();
        if parts.is_empty() {
            continue;
        }
        let output = Value { node: id, port: 0 };
        let pair = quantised.values.get(edit.value_name(output)).cloned();
        let done = match (op.op_type.as_str(), pair) {
            ("LayerNormalization" | "Softmax", _) if !over_last_axis(edit, id, shapes) => Err(TableError::Parameter {
                what: "the operator's axis",
                found: edit.op(id).and_then(|o| o.attrs.int("axis")).unwrap_or(-1) as f64,
                needed: "the last",
            }),
            ("LayerNormalization", Some(y)) => layer_norm(edit, id, &parts, &y),
            (_, Some(y)) if let (Some(function), [input]) = (activation(edit, id, gated), &parts[..]) => {
                lut(edit, id, function, input, &y)
            }
            ("Softmax", _) if let [input] = &parts[..] => match quantised.log2.get(edit.value_name(output)) {
                Some(&codes) => log_softmax(edit, id, input, row_length(shapes, output), codes),
                None => {
                    let known = edit.describe(id);
                    report.notes.push(format!("{known} stays in float between its codes: the integer softmax writes log2 codes"));
                    continue;
                }
            },
            ("RMSNormalization" | "ReduceL2", _) => {
                report.notes.push(format!("{} stays in float between its codes: it has no integer op yet", edit.describe(id)));
                continue;
            }
            _ => continue,
        };
        match done {
            Ok(()) => report.custom_ops += parts.len(),
            Err(e) => report.notes.push(format!("{} stays in float between its codes: {e}", edit.describe(id))),
        }
    }
    Ok(())
}

/// The codes that a value is of: its own, or those of rows that were taken apart and joined again; none where some of it has none.
fn parts(edit: &Edit<'_>, value: Value, by_dq: &BTreeMap<Value, Pair>, joined: &BTreeSet<Value>) -> Vec<Pair> {
    let pair = |v: Value| {
        let mut pair = by_dq.get(&v)?.clone();
        // An integer op before, a LayerNorm before a LayerNorm, makes the codes by now.
        pair.codes = edit.input(pair.dequantised.node, 0).unwrap_or(pair.codes);
        Some(pair)
    };
    let of_rows = || {
        let inputs = edit.inputs_of(value.node).into_iter();
        joined.contains(&value).then(|| inputs.map(|v| pair(v?)).collect::<Option<Vec<_>>>()).flatten()
    };
    pair(value).map(|one| vec![one]).or_else(of_rows).unwrap_or_default()
}

/// The ops that turn log2 codes into real values.
const DEQUANTISERS: [&str; 2] = ["LogDequantize", "LogNormalize"];

/// Notes the values that were to become log2 codes and did not.
pub(super) fn report_float_softmaxes(edit: &Edit<'_>, quantised: &Quantised, report: &mut LowerReport) {
    for name in quantised.log2.keys() {
        let producer = edit.value(name).map(|v| v.node);
        if let Some(id) = producer.filter(|&id| !edit.op(id).is_some_and(|o| DEQUANTISERS.iter().any(|d| o.op.is_in(AI_VITQ, d))))
        {
            let known = edit.describe(id);
            if !report.notes.iter().any(|n| n.starts_with(&known)) {
                report.notes.push(format!(
                    "{known} stays in float: log2 codes need a Softmax whose input has codes, on a target with custom ops"
                ));
            }
        }
    }
}

fn over_last_axis(edit: &Edit<'_>, id: NodeId, shapes: &Shapes) -> bool {
    let axis = edit.op(id).and_then(|o| o.attrs.int("axis")).unwrap_or(-1);
    axis == -1 || shapes.rank(Value { node: id, port: 0 }).is_some_and(|r| axis == r as i64 - 1)
}

fn code_type(codes: Codes) -> CodeType {
    match codes.dtype() {
        DType::I8 => CodeType::Int8,
        DType::U8 => CodeType::Uint8,
        DType::I16 => CodeType::Int16,
        _ => CodeType::Uint16,
    }
}

/// The meaning of a pair's codes at exponent 0.
fn affine(p: &Pair) -> Affine {
    Affine { scale: p.unit, zero_point: p.zeros.first().copied().unwrap_or_default() }
}

fn ptf(p: &Pair) -> Ptf<'_> {
    Ptf { scale: p.unit, zero_points: &p.zeros, multipliers: &p.multipliers }
}

fn codes_tensor(dtype: DType, values: &[i32]) -> Tensor {
    fn typed<T: Scalar + TryFrom<i32> + Default>(values: &[i32]) -> Tensor {
        Tensor::vector(&values.iter().map(|&v| T::try_from(v).unwrap_or_default()).collect::<Vec<_>>())
    }
    match dtype {
        DType::I8 => typed::<i8>(values),
        DType::U8 => typed::<u8>(values),
        DType::I16 => typed::<i16>(values),
        _ => typed::<u16>(values),
    }
}

/// Makes the DequantizeLinear of a pair read the codes of a custom op, and gives it the float value's name, which the
/// float operator no longer needs.
fn take_over(edit: &mut Edit<'_>, float: Value, codes: Value, y: &Pair) {
    let reader = y.snap.as_ref().map_or(y.dequantised.node, |(_, lut)| *lut);
    edit.set_input(reader, 0, Some(codes));
    edit.swap_names(float, y.dequantised);
}

/// Of rows with codes of their own each an op of its own; their codes are one value's.
fn layer_norm(edit: &mut Edit<'_>, id: NodeId, parts: &[Pair], y: &Pair) -> Result<(), TableError> {
    let tables = parts.iter().map(|x| layer_norm_tables(edit, id, x, y)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = tables.first() else { return Ok(()) };
    let float = Value { node: id, port: 0 };
    let name = edit.value_name(float).to_owned();
    let mut init = |what: &str, t: Tensor| edit.add_init(id, &format!("{name}_{what}"), t);
    // What the op makes of the normalised values is the same for all rows.
    let output = [
        init("gamma", Tensor::vector(&first.gamma)),
        init("beta", Tensor::vector(&first.beta)),
        init("shift", Tensor::scalar(first.shift)),
        init("range", codes_tensor(y.coding.dtype(), &[first.y_range.0, first.y_range.1])),
    ];
    let mut of_part = |x: &Pair, tables: &LayerNormTables| {
        let mut init = |what: &str, t: Tensor| edit.add_init(id, &format!("{name}_{what}"), t);
        let mut zero = codes_tensor(x.coding.dtype(), &tables.x_zero_points);
        if tables.x_zero_points.len() == 1 {
            zero.shape.clear();
        }
        let zero = init("x_zero_point", zero);
        let multiplier = init("multiplier", Tensor::vector(&tables.multiplier));
        let eps = init("eps", Tensor::scalar(tables.eps));
        let new = NewOp::new(OpName::new(AI_VITQ, "PtfLayerNorm"), &format!("{name}_codes"));
        edit.add(id, new.inputs([x.codes, zero, multiplier, eps]).inputs(output))
    };
    let codes: Vec<Value> = parts.iter().zip(&tables).map(|(x, tables)| of_part(x, tables)).collect();
    let codes = match codes[..] {
        [one] => one,
        _ => {
            // Rows are joined on the axis on which they were taken apart.
            let axis = edit.input(id, 0).and_then(|v| edit.op(v.node)?.attrs.int("axis")).unwrap_or(-2);
            edit.add(id, NewOp::std("Concat", &format!("{name}_codes_of_rows")).inputs(codes).attr("axis", AttrValue::Int(axis)))
        }
    };
    take_over(edit, float, codes, y);
    Ok(())
}

fn layer_norm_tables(edit: &Edit<'_>, id: NodeId, x: &Pair, y: &Pair) -> Result<LayerNormTables, TableError> {
    let reals = |port| -> Vec<f64> {
        let t = edit.input(id, port).and_then(|v| edit.constant(v)).and_then(|t| t.to_f32().ok());
        t.unwrap_or_default().into_iter().map(f64::from).collect()
    };
    let (gamma, beta) = (reals(1), reals(2));
    let eps = edit.op(id).and_then(|o| o.attrs.float("epsilon")).unwrap_or(1e-5);
    LayerNormTables::new(&LayerNormSpec {
        gamma: &gamma,
        beta: &beta,
        eps: f64::from(eps),
        input: ptf(x),
        input_type: code_type(x.coding),
        output: ptf(y),
        output_range: y.coding.range(),
    })
}

/// x and the activation, for `x · sigmoid(x)` and `x · sigmoid(1.702 x)`.
fn gated(edit: &Edit<'_>, id: NodeId) -> Option<(Value, Activation)> {
    let factors = |id: NodeId| Some([edit.input(id, 0)?, edit.input(id, 1)?]);
    let is = |v: Value, op: &str| edit.is_op(v.node, op);
    let [a, b] = factors(id).filter(|_| edit.is_op(id, "Mul"))?;
    [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        let inner = edit.input(gate.node, 0).filter(|_| is(gate, "Sigmoid"))?;
        if inner == x {
            return Some((x, Activation::Silu));
        }
        let [c, d] = factors(inner.node).filter(|_| is(inner, "Mul"))?;
        let other = if c == x { d } else { c };
        let factor = edit.constant(other).filter(|_| c == x || d == x)?.scalar_f32()?;
        // Another factor is another function than the table's.
        ((factor - 1.702).abs() < 1e-6).then_some((x, Activation::QuickGelu))
    })
}

/// The activation that an operator computes, if a table can hold it.
fn activation(edit: &Edit<'_>, id: NodeId, gated: Option<(Value, Activation)>) -> Option<Activation> {
    let op = edit.op(id)?;
    match op.op.op_type.as_str() {
        "Gelu" if op.attrs.str("approximate") == Some("tanh") => Some(Activation::GeluTanh),
        "Gelu" => Some(Activation::Gelu),
        "Sigmoid" => Some(Activation::Sigmoid),
        "Tanh" => Some(Activation::Tanh),
        "Relu" => Some(Activation::Relu),
        "HardSwish" => Some(Activation::HardSwish),
        "Mul" => gated.map(|(_, function)| function),
        _ => None,
    }
}

fn lut(edit: &mut Edit<'_>, id: NodeId, function: Activation, x: &Pair, y: &Pair) -> Result<(), TableError> {
    for (what, pair) in [("the number of the input's scales", x), ("the number of the output's scales", y)] {
        if pair.scales.len() != 1 && pair.multipliers.is_empty() {
            return Err(TableError::Parameter {
                what,
                found: pair.scales.len() as f64,
                needed: "1, or with a factor for each channel (PTF)",
            });
        }
    }
    let (from, range) = (code_type(x.coding), y.coding.range());
    let by_channel = if x.multipliers.is_empty() && y.multipliers.is_empty() {
        None
    } else {
        Some(channel_tables(function, ptf(x), from, ptf(y), range)?)
    };
    let float = Value { node: id, port: 0 };
    let stem = edit.value_name(float).to_owned();
    let init = |edit: &mut Edit<'_>, what: &str, t: Tensor| edit.add_init(id, &format!("{stem}_{what}"), t);
    // The table may hold the levels of a codebook as well.
    let codes = |mut entries: Vec<i32>| {
        if let Some((nearest, _)) = &y.snap {
            let level = |code: i32| usize::try_from(code - range.0).ok().and_then(|at| nearest.get(at)).copied();
            entries.iter_mut().for_each(|code| *code = level(*code).unwrap_or(*code));
        }
        codes_tensor(y.coding.dtype(), &entries)
    };
    let (prefix, inputs) = match by_channel {
        Some(t) if t.count > 1 => {
            let shape = vec![t.count, t.entries.len() / t.count];
            let mut table = codes(t.entries);
            table.shape = shape;
            let table = init(edit, "table", table);
            ("Channel", vec![x.codes, table, init(edit, "rows", Tensor::vector(&t.rows))])
        }
        // A single row serves every channel, as without exponents.
        one => {
            let entries = match one {
                Some(t) => t.entries,
                None => activation_table(function, affine(x), from, affine(y), range)?,
            };
            ("", vec![x.codes, init(edit, "table", codes(entries))])
        }
    };
    let y = &Pair { snap: None, ..y.clone() };
    let kind = if matches!(function, Activation::Gelu | Activation::GeluTanh) { "LutGelu" } else { "Lut" };
    let new = NewOp::new(OpName::new(AI_VITQ, &format!("{prefix}{kind}")), &format!("{stem}_codes"));
    let codes = edit.add(id, new.inputs(inputs));
    take_over(edit, float, codes, y);
    Ok(())
}

/// The length of a softmax's rows; for a symbolic one the longest that is served, which leaves an exponential 18 bits.
fn row_length(shapes: &Shapes, value: Value) -> usize {
    const LONGEST: usize = 4096;
    shapes.shape(value).and_then(|s| s.last()).and_then(|d| d.as_size()).unwrap_or(LONGEST)
}

fn log_softmax(edit: &mut Edit<'_>, id: NodeId, x: &Pair, row: usize, log2: Log2Codes) -> Result<(), TableError> {
    let (bits, r) = (u32::from(log2.bits), u32::from(log2.fraction_bits));
    if x.coding.bits > 8 || x.scales.len() != 1 {
        return Err(TableError::Parameter {
            what: "the width of the scores' codes",
            found: f64::from(x.coding.bits),
            needed: "at most 8 bits, with one scale for the tensor",
        });
    }
    let tables = LogSoftmaxTables::new(affine(x).scale, row, bits, r, LogRounding::default())?;
    let (dequantiser, values) = if log2.normalized {
        ("LogNormalize", Tensor::vector(&log_normalize_table(bits, r, row)?))
    } else {
        let values: Vec<f32> = log_dequantize_table(bits, r)?.into_iter().map(|v| v * log2.scale).collect();
        ("LogDequantize", Tensor::vector(&values))
    };
    let float = Value { node: id, port: 0 };
    let name = edit.value_name(float).to_owned();
    let init = |edit: &mut Edit<'_>, what: &str, t: Tensor| edit.add_init(id, &format!("{name}_{what}"), t);
    let inputs = [
        x.codes,
        init(edit, "exp_table", Tensor::vector(&tables.exp_table)),
        init(edit, "log_step", Tensor::scalar(tables.log_step)),
        init(edit, "mantissa_table", Tensor::vector(&tables.mantissa_table)),
        init(edit, "bias", Tensor::scalar(tables.bias)),
        init(edit, "shift", Tensor::scalar(tables.shift)),
        init(edit, "top", Tensor::scalar(tables.top)),
    ];
    let new = NewOp::new(OpName::new(AI_VITQ, "LogIntSoftmax"), &format!("{name}_codes"));
    let codes = edit.add(id, new.inputs(inputs));
    let table = init(edit, "values", values);
    let new = NewOp::new(OpName::new(AI_VITQ, dequantiser), &format!("{name}_dequantized"));
    let value = edit.add(id, new.inputs([codes, table]));
    edit.replace(float, value);
    Ok(())
}
