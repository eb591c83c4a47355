//! `Slice`, with bounds clamped as numpy does, on symbolic sizes as far as the clamping is evident.

use super::ctx::{self, Ctx, Known, Stop, known, one, wrong};
use super::{DimExpr, Shape};

/// One sliced axis.
pub(super) struct Cut {
    pub(super) axis: usize,
    start: Option<DimExpr>,
    end: Option<DimExpr>,
    step: i64,
}

/// The cuts of a `Slice` over a rank: attributes before operator set 10, inputs since.
pub(super) fn cuts(c: &Ctx, rank: usize) -> Known<Vec<Cut>> {
    let bounds = |attr: &str, input: usize| -> Known<Vec<Option<DimExpr>>> {
        if let Some(v) = c.op.attrs.ints(attr) {
            return Ok(v.iter().map(|&n| Some(n.into())).collect());
        }
        match (c.contents(input), c.shape(input)) {
            (Ok(v), _) => Ok(v.clone()),
            (Err(_), Ok([n])) => Ok(vec![None; known(n.as_size().filter(|n| *n <= rank))?]),
            _ => Err(Stop::Unknown),
        }
    };
    let (starts, ends) = (bounds("starts", 1)?, bounds("ends", 2)?);
    let axes = match c.list("axes", 3)? {
        Some(list) => list.iter().map(|&a| ctx::axis(a, rank)).collect::<Known<Vec<_>>>()?,
        None => (0..starts.len().min(rank)).collect(),
    };
    let steps = if c.has(4) { c.const_ints(4)? } else { vec![1; axes.len()] };
    if starts.len() != axes.len() || ends.len() != axes.len() || steps.len() != axes.len() || steps.contains(&0) {
        return wrong(format!("{} starts, {} ends, {} axes, steps {steps:?}", starts.len(), ends.len(), axes.len()));
    }
    let rows = axes.into_iter().zip(starts).zip(ends).zip(steps);
    Ok(rows.map(|(((axis, start), end), step)| Cut { axis, start, end, step }).collect())
}

/// The shape of a `Slice`.
pub(super) fn slice(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let mut shape = c.shape(0)?.to_vec();
    for cut in cuts(c, shape.len())? {
        let axis = cut.axis;
        if let Some(slot) = shape.get_mut(axis) {
            *slot = c.or_anon(cut.length(slot), 0, axis);
        }
    }
    one(shape)
}

impl Cut {
    /// The number of elements that the cut takes of an axis.
    fn length(&self, size: &DimExpr) -> Option<DimExpr> {
        if let (Some(n), Some(s), Some(e)) = (size.as_const(), constant(&self.start), constant(&self.end)) {
            return Some(span(n, s, e, self.step)?.1.into());
        }
        if self.step < 0 {
            // Only the whole axis backwards is evident.
            let whole = constant(&self.start)? == -1 && constant(&self.end)? <= -i64::from(i32::MAX);
            return if whole { size.ceil_div(self.step.checked_neg()?) } else { None };
        }
        let (start, end) = (clamp(self.start.as_ref()?, size)?, clamp(self.end.as_ref()?, size)?);
        let length = end.sub(&start)?;
        match length.as_const() {
            Some(n) => DimExpr::from(n.max(0)).ceil_div(self.step),
            None if length.at_least(0) => length.ceil_div(self.step),
            None => None,
        }
    }

    /// The elements that the cut takes of an axis of known size, in order.
    pub(super) fn positions(&self, size: i64) -> Option<Vec<i64>> {
        let (first, count) = span(size, constant(&self.start)?, constant(&self.end)?, self.step)?;
        (0..count).map(|i| first.checked_add(i.checked_mul(self.step)?)).collect()
    }
}

fn constant(e: &Option<DimExpr>) -> Option<i64> {
    e.as_ref()?.as_const()
}

/// A bound of a forward cut, clamped to the axis; `None` when the clamping depends on symbols.
fn clamp(bound: &DimExpr, size: &DimExpr) -> Option<DimExpr> {
    let bound = match bound.as_const() {
        // Exporters write "to the end" as the largest integer of 32 or 64 bits; no axis is that long.
        Some(b) if b >= i64::from(i32::MAX) => return Some(size.clone()),
        Some(b) if b <= -i64::from(i32::MAX) => return Some(0.into()),
        Some(b) if b < 0 => size.plus(b)?,
        Some(_) => bound.clone(),
        None if bound.at_least(0) => bound.clone(),
        None => return None,
    };
    if bound.at_least(0) && size.sub(&bound)?.at_least(0) {
        return Some(bound);
    }
    // A size in numbers clamps numbers exactly.
    let (b, n) = (bound.as_const()?, size.as_const()?);
    Some(b.clamp(0, n.max(0)).into())
}

/// The first element, and the number of elements, of a cut.
fn span(n: i64, start: i64, end: i64, step: i64) -> Option<(i64, i64)> {
    if n < 0 || step == 0 {
        return None;
    }
    let from_end = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (start, end) = (from_end(start), from_end(end));
    let (first, distance) = if step > 0 {
        let first = start.clamp(0, n);
        (first, end.clamp(0, n) - first)
    } else {
        let first = start.clamp(-1, n - 1);
        (first, first - end.clamp(-1, n - 1))
    };
    let stride = i64::try_from(step.unsigned_abs()).unwrap_or(i64::MAX);
    Some((first, if distance <= 0 { 0 } else { (distance - 1) / stride + 1 }))
}
