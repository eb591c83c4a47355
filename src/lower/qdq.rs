//! QuantizeLinear / DequantizeLinear around every planned value.

use std::collections::BTreeMap;

use super::LowerError;
use crate::ir::shape::Shapes;
use crate::ir::{AI_VITQ, AttrValue, DType, Edit, Graph, NewOp, NodeId, OpName, Scalar, Tensor, Value};
use crate::quant::plan::{Codes, Constant, Groups, Scheme, Segments, SitePlan, ZeroPoint, channel_axis, nearest_levels};

/// The values behind Q/DQ pairs, by the name of the original value.
#[derive(Debug, Default)]
pub(super) struct Quantised {
    pub(super) values: BTreeMap<String, Pair>,
    /// Softmax outputs that become log2 codes, by name.
    pub(super) log2: BTreeMap<String, Log2Codes>,
    /// Codes of constants whose elements share factors, by the name that they got.
    pub(super) groups: BTreeMap<String, Groups>,
}

/// One value's codes and their meaning.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) site: String,
    /// The codes: what QuantizeLinear (and Clip) produce, or the constant.
    pub(super) codes: Value,
    /// The real value again.
    pub(super) dequantised: Value,
    /// The scales: one, or one a channel.
    pub(super) scales: Vec<f32>,
    /// The zero points: one, or one a channel.
    pub(super) zeros: Vec<i32>,
    /// Of an activation.
    pub(super) coding: Codes,
    /// The scale of multiplier 1: `real = unit · multiplier · (code − zero point)`.
    pub(super) unit: f64,
    /// A multiplier for each channel (PTF), none for an affine value.
    pub(super) multipliers: Vec<u32>,
    /// Where only some codes occur: what every code becomes, from the lowest on, and the operator that sees to it.
    pub(super) snap: Option<(Vec<i32>, NodeId)>,
}

/// Where the channels of values with a scale for each are, counted from the end, by name: not the last axis.
pub(super) fn channel_axes(graph: &Graph, shapes: &Shapes, sites: &[SitePlan]) -> BTreeMap<String, usize> {
    let ptf = sites.iter().filter(|s| !s.site.weight && !matches!(s.scheme, Scheme::Affine { .. }));
    let values = ptf.flat_map(|s| &s.site.values).filter_map(|name| Some((name, graph.value(name)?)));
    let axes = values.map(|(name, value)| (name.clone(), shapes.channels_from_end(graph, value)));
    axes.filter(|(_, from_end)| *from_end != 1).collect()
}

pub(super) fn misfit(site: &SitePlan, value: &str, what: impl Into<String>) -> LowerError {
    // A sum of which nothing is left but the class token's row has no value of its own.
    let first = site.site.values.first().or(site.site.observe.as_ref()).map_or("", String::as_str);
    let value = if value.is_empty() { first } else { value };
    LowerError::Misfit { site: site.name.clone(), value: value.to_owned(), what: what.into() }
}

/// The codes of [`Scheme::Log2`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Log2Codes {
    pub(super) bits: u8,
    pub(super) fraction_bits: u8,
    pub(super) scale: f32,
    pub(super) normalized: bool,
}

/// The value of a name, which no site before this one has quantised.
fn find(edit: &Edit<'_>, site: &SitePlan, name: &str, done: &Quantised) -> Result<Value, LowerError> {
    let bits = site.scheme.bits();
    if !(4..=16).contains(&bits) {
        return Err(misfit(site, name, format!("4 to 16 bits needed, found {bits}")));
    }
    let other = done.values.get(name).map(|p| p.site.as_str()).or_else(|| done.log2.contains_key(name).then_some("another site"));
    if let Some(other) = other {
        return Err(misfit(site, name, format!("{other} quantises the same value")));
    }
    edit.value(name).ok_or_else(|| LowerError::UnknownValue { site: site.name.clone(), value: name.to_owned() })
}

/// Integers of an ONNX type from i32 codes.
fn integers(dtype: DType, shape: &[usize], codes: &[i32]) -> Option<Tensor> {
    fn typed<T: Scalar + TryFrom<i32>>(shape: &[usize], codes: &[i32]) -> Option<Tensor> {
        let v = codes.iter().map(|&c| T::try_from(c).ok()).collect::<Option<Vec<T>>>()?;
        Tensor::new(shape, &v).ok()
    }
    match dtype {
        DType::I8 => typed::<i8>(shape, codes),
        DType::U8 => typed::<u8>(shape, codes),
        DType::I16 => typed::<i16>(shape, codes),
        DType::U16 => typed::<u16>(shape, codes),
        DType::I32 => typed::<i32>(shape, codes),
        _ => None,
    }
}

/// Stores a constant as integers behind a DequantizeLinear.
pub(super) fn lower_constant(edit: &mut Edit<'_>, site: &SitePlan, out: &mut Quantised) -> Result<(), LowerError> {
    let Some(constant) = site.scheme.constant() else {
        let what = "a constant's scheme is 'weight'; or 'codebook' on a 'weight' grid of 8 bits; or 'groups' on such a grid with an axis, with 4 to 7 bits and a group_size of 2 or more";
        return Err(misfit(site, "", what));
    };
    let Constant { axis, scales, ref codes } = constant;
    let coding = Codes { bits: codes.bits(), signed: true };
    if let Scheme::Codebook { levels, .. } = &site.scheme {
        let top = codes.top();
        if !(2..=128).contains(&levels.len()) || !levels.iter().all(|l| (-top..=top).contains(l)) {
            return Err(misfit(site, "", "a codebook of weights needs 2 to 128 levels, from -127 to 127"));
        }
    }
    for name in &site.site.values {
        let old = find(edit, site, name, out)?;
        let tensor = edit.constant(old).ok_or_else(|| misfit(site, name, "it is not a constant"))?.clone();
        let x = tensor.to_f32().map_err(|e| misfit(site, name, e.to_string()))?;
        let channels = channel_axis(site.site.site, &tensor.shape);
        if axis.is_some() && axis != channels {
            let needed = channels.map_or("none".to_owned(), |a| a.to_string());
            let what =
                format!("a scale for each output channel needs the axis {needed}: a product cannot take in those of another");
            return Err(misfit(site, name, what));
        }
        let codes = constant.codes(&tensor.shape, &x).map_err(|what| misfit(site, name, what))?;
        let codes = integers(coding.dtype(), &tensor.shape, &codes).ok_or_else(|| misfit(site, name, "codes out of range"))?;
        let anchor = old.node;
        let shape: &[usize] = if axis.is_some() { &[scales.len()] } else { &[] };
        let scale_t = Tensor::new(shape, scales).map_err(|e| misfit(site, name, e.to_string()))?;
        let zero_t = integers(coding.dtype(), shape, &vec![0; scales.len()]).ok_or_else(|| misfit(site, name, "zero point"))?;
        let codes = edit.add_init(anchor, &format!("{name}_quantized"), codes);
        if let Some(groups) = constant.codes.groups() {
            out.groups.insert(edit.value_name(codes).to_owned(), groups);
        }
        let scale = edit.add_init(anchor, &format!("{name}_scale"), scale_t);
        let zero_point = edit.add_init(anchor, &format!("{name}_zero_point"), zero_t);
        let mut dq = NewOp::std("DequantizeLinear", &format!("{name}_dequantized")).inputs([codes, scale, zero_point]);
        if let Some(axis) = axis {
            dq = dq.attr("axis", AttrValue::Int(axis as i64));
        }
        let dequantised = edit.add(anchor, dq);
        edit.replace_uses(old, dequantised, |_| true);
        let pair = Pair {
            site: site.name.clone(),
            codes,
            dequantised,
            scales: scales.to_vec(),
            zeros: vec![0],
            coding,
            unit: scales.first().copied().unwrap_or(1.0).into(),
            multipliers: Vec::new(),
            snap: None,
        };
        out.values.insert(name.clone(), pair);
    }
    Ok(())
}

/// Puts a Q/DQ pair behind every value of a site; the number of pairs.
/// `shapes` are those of the graph before any value had codes.
pub(super) fn lower_values(
    edit: &mut Edit<'_>,
    site: &SitePlan,
    shapes: &Shapes,
    axes: &BTreeMap<String, usize>,
    out: &mut Quantised,
) -> Result<usize, LowerError> {
    let (grid, few) = match &site.scheme {
        Scheme::Codebook { grid, levels } => (&**grid, Some(Few::Levels(levels))),
        Scheme::Piecewise { grid, segments } => (&**grid, Some(Few::Segments(*segments))),
        scheme => (scheme, None),
    };
    let (codes, scale, zero_point, factors) = match grid {
        Scheme::Affine { codes, scale, zero_point } => (*codes, *scale, ZeroPoint::Tensor(*zero_point), None),
        Scheme::Ptf { codes, scale, zero_point, factors } => {
            let no_factors = "exponents are not hexadecimal digits, or mantissas not as many of mantissa_bits (0 to 3) bits";
            let parsed = factors.multipliers().zip(factors.scales(*scale)).ok_or_else(|| misfit(site, "", no_factors))?;
            if let ZeroPoint::Channels(each) = zero_point
                && each.len() != parsed.0.len()
            {
                let what = format!(
                    "one zero point for each of {} exponents needed, or a single one, found {}",
                    parsed.0.len(),
                    each.len()
                );
                return Err(misfit(site, "", what));
            }
            (*codes, *scale, zero_point.clone(), Some((factors.unit(*scale), parsed)))
        }
        &Scheme::Log2 { bits, fraction_bits, scale, normalized } if few.is_none() => {
            if !(4..=8).contains(&bits) || fraction_bits > 4 {
                let what = format!("4 to 8 bits with 0 to 4 fraction bits needed, found {bits} with {fraction_bits}");
                return Err(misfit(site, site.site.observed(), what));
            }
            if !(scale.is_finite() && scale > 0.0) {
                return Err(misfit(site, site.site.observed(), format!("a positive scale needed, found {scale}")));
            }
            if normalized && scale != 1.0 {
                let what = format!("a normalized row has no scale of its own, found {scale}: leave it out");
                return Err(misfit(site, site.site.observed(), what));
            }
            // What only moves the codes on reads them dequantised.
            for name in site.site.values.iter().take(1) {
                find(edit, site, name, out)?;
                out.log2.insert(name.clone(), Log2Codes { bits, fraction_bits, scale, normalized });
            }
            return Ok(0);
        }
        Scheme::Weight { .. } | Scheme::Groups { .. } if few.is_none() => {
            return Err(misfit(site, "", "the schemes 'weight' and 'groups' are for constants"));
        }
        Scheme::Accumulator if few.is_none() => return Ok(0),
        _ => return Err(misfit(site, "", "levels are codes of a grid with the scheme 'affine' or 'ptf'")),
    };
    if !(4..=16).contains(&codes.bits) {
        return Err(misfit(site, "", format!("4 to 16 bits needed, found {}", codes.bits)));
    }
    let (low, high) = codes.range();
    if let Some(what) = few.and_then(|few| few.misfit(codes)) {
        return Err(misfit(site, "", what));
    }
    let zeros = zero_point.as_slice();
    let outside = zeros.iter().find(|z| !(low..=high).contains(z));
    if outside.is_some() || !(scale.is_finite() && scale > 0.0) {
        let zero = outside.or(zeros.first()).copied().unwrap_or_default();
        let what = format!("a positive scale and a zero point in {low}..={high} needed, found {scale} and {zero}");
        return Err(misfit(site, "", what));
    }
    for name in &site.site.values {
        let value = find(edit, site, name, out)?;
        let from_end = axes.get(name).copied().unwrap_or(1);
        let channels = shapes.shape(value).and_then(|s| s.iter().nth_back(from_end - 1)).and_then(|d| d.as_size());
        if let (Some((_, (multipliers, _))), Some(channels)) = (&factors, channels)
            && channels != multipliers.len()
        {
            let what = format!("one exponent for each of {channels} channels needed, found {}", multipliers.len());
            return Err(misfit(site, name, what));
        }
        let anchor = value.node;
        let (unit, multipliers, scales) = match &factors {
            None => (scale.into(), Vec::new(), vec![scale]),
            Some((unit, (multipliers, scales))) => (*unit, multipliers.clone(), scales.clone()),
        };
        let n = scales.len();
        let shape: &[usize] = if factors.is_none() { &[] } else { &[n] };
        let scale_t = Tensor::new(shape, &scales).map_err(|e| misfit(site, name, e.to_string()))?;
        let each_zero: Vec<i32> = zeros.iter().cycle().take(n).copied().collect();
        let zero_t = integers(codes.dtype(), shape, &each_zero).ok_or_else(|| misfit(site, name, "zero point"))?;
        let scale_v = edit.add_init(anchor, &format!("{name}_scale"), scale_t);
        let zero_v = edit.add_init(anchor, &format!("{name}_zero_point"), zero_t);
        let axis = |op: NewOp| if factors.is_none() { op } else { op.attr("axis", AttrValue::Int(-(from_end as i64))) };
        let bounds = codes.is_narrow().then_some((low, high));
        let bounded = match bounds.filter(|_| codes.bits > 8) {
            Some(bounds) => {
                // Each channel's bounds on its axis.
                let shape: Vec<usize> = shape.iter().copied().chain(std::iter::repeat_n(1, from_end - 1)).collect();
                bound_reals(edit, name, value, (&scales, &each_zero), bounds, &shape)
            }
            None => value,
        };
        let q = NewOp::std("QuantizeLinear", &format!("{name}_quantized")).inputs([bounded, scale_v, zero_v]);
        let q = edit.add(anchor, axis(q));
        let coded = match bounds.filter(|_| codes.bits <= 8) {
            Some(bounds) => clip_codes(edit, name, q, codes.dtype(), bounds),
            None => q,
        };
        let (coded, snap) = match few {
            Some(few) => {
                let (first, last) = few.look_up(edit, name, coded, codes);
                (last, Some((few.nearest(codes), first.node)))
            }
            None => (coded, None),
        };
        let dq = edit
            .add(anchor, axis(NewOp::std("DequantizeLinear", &format!("{name}_dequantized")).inputs([coded, scale_v, zero_v])));
        // What reads the value itself: the quantiser, or the first of its bounds.
        let first = if bounded == value { q } else { edit.input(bounded.node, 0).unwrap_or(q) };
        let was_output = edit.is_output(value);
        let readers: Vec<_> = edit.uses(value).into_iter().filter(|u| edit.is_op(u.node, "Shape")).map(|u| u.node).collect();
        edit.replace_uses(value, dq, |u| u.node != first.node && !readers.contains(&u.node));
        if was_output {
            // The graph's output keeps its name.
            edit.swap_names(value, dq);
        }
        let pair = Pair {
            site: site.name.clone(),
            codes: coded,
            dequantised: dq,
            scales,
            zeros: zeros.to_vec(),
            coding: codes,
            unit,
            multipliers,
            snap,
        };
        out.values.insert(name.clone(), pair);
    }
    Ok(site.site.values.len())
}

/// Which of a grid's codes occur.
#[derive(Debug, Clone, Copy)]
enum Few<'a> {
    Levels(&'a [i32]),
    Segments(Segments),
}

impl Few<'_> {
    /// What every code of the grid becomes, from the lowest on.
    fn nearest(self, grid: Codes) -> Vec<i32> {
        let (low, high) = grid.range();
        match self {
            Few::Levels(levels) => nearest_levels(levels, low..=high),
            Few::Segments(segments) => (low..=high).map(|code| segments.level(segments.nearest(code))).collect(),
        }
    }

    /// Why these are no codes of such a grid.
    fn misfit(self, grid: Codes) -> Option<String> {
        let (low, high) = grid.range();
        match self {
            Few::Levels(levels) => {
                let fit = grid.bits == 8 && (2..=128).contains(&levels.len()) && levels.iter().all(|l| (low..=high).contains(l));
                (!fit).then(|| format!("a codebook needs 2 to 128 levels on a grid of 8 bits, from {low} to {high}"))
            }
            Few::Segments(segments) => {
                let (bits, top) = (segments.bits, segments.top());
                let wanted = Codes { bits: segments.level_bits(), signed: true };
                let (is_signed, needed, found) = (if grid.signed { "signed" } else { "unsigned" }, wanted.bits, grid.bits);
                if !(4..=8).contains(&bits) {
                    Some(format!("codes in two segments need 4 to 8 bits, found {bits}"))
                } else if !segments.is_valid() {
                    let Segments { breakpoint, shift, .. } = segments;
                    Some(format!(
                        "codes of {bits} bits in two segments need a breakpoint of 1 to {top} and a shift of 1 to 4, found {breakpoint} and {shift}"
                    ))
                } else {
                    (grid != wanted).then(|| {
                        format!(
                            "codes of {bits} bits in two segments need a grid of signed codes of {needed} bits, found {is_signed} ones of {found}"
                        )
                    })
                }
            }
        }
    }

    /// Brings codes of the grid `grid` to those that occur: what the first table writes, and the codes of the grid that this stands for.
    fn look_up(self, edit: &mut Edit<'_>, name: &str, q: Value, grid: Codes) -> (Value, Value) {
        let Few::Segments(segments) = self else {
            let levels = table_lookup(edit, name, "level", q, grid.dtype(), &self.nearest(grid));
            return (levels, levels);
        };
        let (low, high) = grid.range();
        let codes: Vec<i32> = (low..=high).map(|code| segments.nearest(code)).collect();
        let codes = table_lookup(edit, name, "code", q, DType::I8, &codes);
        // The lowest code does not occur.
        let levels: Vec<i32> = (-segments.top() - 1..=segments.top()).map(|code| segments.level(code)).collect();
        (codes, table_lookup(edit, name, "level", codes, grid.dtype(), &levels))
    }
}

/// Codes through a table that holds what each becomes, from the lowest on; `dtype` is that of both, or of what they become.
fn table_lookup(edit: &mut Edit<'_>, name: &str, what: &str, q: Value, dtype: DType, becomes: &[i32]) -> Value {
    // A table is in the order of the codes' bits: 0 and above first.
    let first = if matches!(dtype, DType::I8 | DType::I16) { becomes.len() / 2 } else { 0 };
    let entries: Vec<i32> = becomes.iter().cycle().skip(first).take(becomes.len()).copied().collect();
    let Some(table) = integers(dtype, &[entries.len()], &entries) else { return q };
    let table = edit.add_init(q.node, &format!("{name}_{what}s"), table);
    edit.add(q.node, NewOp::new(OpName::new(AI_VITQ, "Lut"), &format!("{name}_{what}")).inputs([q, table]))
}

/// Codes of less than 8 bits within their bytes.
fn clip_codes(edit: &mut Edit<'_>, name: &str, q: Value, dtype: DType, (low, high): (i32, i32)) -> Value {
    let mut bound = |what: &str, v: i32| {
        // The bounds of a narrower width fit the type.
        integers(dtype, &[], &[v]).map(|t| edit.add_init(q.node, &format!("{name}_{what}"), t))
    };
    let (Some(low), Some(high)) = (bound("low", low), bound("high", high)) else { return q };
    edit.add(q.node, NewOp::std("Clip", &format!("{name}_clipped")).inputs([q, low, high]))
}

/// A value held within what its codes of 9 to 15 bits, from `low` to `high`, can say: onnxruntime has no Clip of 16-bit integers.
/// The bounds are whole numbers of steps, so they quantise to those codes.
fn bound_reals(
    edit: &mut Edit<'_>,
    name: &str,
    value: Value,
    (scales, zeros): (&[f32], &[i32]),
    (low, high): (i32, i32),
    shape: &[usize],
) -> Value {
    let mut bounded = value;
    for (op, what, code) in [("Max", "low", low), ("Min", "high", high)] {
        let reals: Vec<f32> = scales.iter().zip(zeros).map(|(s, zero)| s * (code - zero) as f32).collect();
        let Ok(tensor) = Tensor::new(shape, &reals) else { return value };
        let limit = edit.add_init(value.node, &format!("{name}_{what}"), tensor);
        bounded = edit.add(value.node, NewOp::std(op, &format!("{name}_{what}_bound")).inputs([bounded, limit]));
    }
    bounded
}
