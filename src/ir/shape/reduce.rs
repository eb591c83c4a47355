//! Operators that reduce along axes.

use super::ctx::{self, Ctx, Known, one};
use super::{DimExpr, Shape};

/// `Reduce*`: axes as attribute or as input 1.
pub(super) fn reduce(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let keep = c.int("keepdims", 1) != 0;
    let axes = match c.list("axes", 1) {
        Ok(Some(list)) if !list.is_empty() => ctx::axes(&list, x.len())?,
        Ok(_) if c.int("noop_with_empty_axes", 0) != 0 => return one(x.to_vec()),
        Ok(_) => (0..x.len()).collect(),
        // Which axes is unknown, but the rank is not.
        Err(ctx::Stop::Unknown) if keep => return one((0..x.len()).map(|i| c.anon(0, i)).collect()),
        Err(stop) => return Err(stop),
    };
    one(drop_axes(x, &axes, keep))
}

/// `ArgMax` and `ArgMin`.
pub(super) fn arg(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let axis = ctx::axis(c.int("axis", 0), x.len())?;
    one(drop_axes(x, &[axis], c.int("keepdims", 1) != 0))
}

fn drop_axes(x: &[DimExpr], axes: &[usize], keep: bool) -> Shape {
    let kept = |(i, d): (usize, &DimExpr)| match (axes.contains(&i), keep) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(1.into()),
        (true, false) => None,
    };
    x.iter().enumerate().filter_map(kept).collect()
}

/// `TopK`: `k` as attribute or as input 1.
pub(super) fn top_k(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let mut shape = c.shape(0)?.to_vec();
    let axis = ctx::axis(c.int("axis", -1), shape.len())?;
    let k = match c.op.attrs.int("k") {
        Some(k) => Some(k.into()),
        None => c.contents(1).ok().and_then(|v| v.first().cloned().flatten()),
    };
    if let Some(slot) = shape.get_mut(axis) {
        *slot = c.or_anon(k, 0, axis);
    }
    Ok(vec![Some(shape); c.outputs])
}
