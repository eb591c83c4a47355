//! Operators that work element by element.

use super::ctx::{Ctx, Known, known, one, wrong};
use super::{DimExpr, Shape};

/// Every output has the shape of input 0.
pub(super) fn same(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    Ok(vec![Some(c.shape(0)?.to_vec()); c.outputs])
}

/// All inputs broadcast with each other.
pub(super) fn broadcast(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    // Before operator set 7 only the second operand stretched, along `axis`.
    if c.op.attrs.int("broadcast").is_some() {
        return same(c);
    }
    let mut shape: Shape = c.shape(0)?.to_vec();
    for i in 1..c.arity() {
        shape = broadcast_two(c, &shape, c.shape(i)?)?;
    }
    one(shape)
}

/// Numpy's broadcasting of two shapes; a size that depends is anonymous.
pub(super) fn broadcast_two(c: &Ctx, a: &[DimExpr], b: &[DimExpr]) -> Known<Shape> {
    let rank = a.len().max(b.len());
    let at = |s: &[DimExpr], i: usize| (i + s.len()).checked_sub(rank).and_then(|j| s.get(j).cloned());
    let mut shape = Vec::with_capacity(rank);
    for i in 0..rank {
        shape.push(match (at(a, i), at(b, i)) {
            (Some(x), Some(y)) => broadcast_dims(&x, &y)?.unwrap_or_else(|| c.anon(0, i)),
            (x, y) => known(x.or(y))?,
        });
    }
    Ok(shape)
}

/// The size of two broadcast sizes; `None` when it depends on values of symbols.
fn broadcast_dims(x: &DimExpr, y: &DimExpr) -> Known<Option<DimExpr>> {
    Ok(match (x.as_const(), y.as_const()) {
        _ if x == y => Some(x.clone()),
        (Some(1), _) => Some(y.clone()),
        (_, Some(1)) => Some(x.clone()),
        (Some(p), Some(q)) => return wrong(format!("sizes {p} and {q} cannot be broadcast")),
        // The other must be 1 or the same.
        (Some(_), None) => Some(x.clone()),
        (None, Some(_)) => Some(y.clone()),
        (None, None) => None,
    })
}

/// `LayerNormalization` and its kin: the optional mean and deviation keep the axes before `axis`.
pub(super) fn layer_norm(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let axis = super::ctx::axis(c.int("axis", -1), x.len())?;
    let stat: Shape = x.iter().enumerate().map(|(i, d)| if i < axis { d.clone() } else { 1.into() }).collect();
    Ok((0..c.outputs).map(|port| Some(if port == 0 { x.to_vec() } else { stat.clone() })).collect())
}

/// `BatchNormalization`: the statistics have one element a channel.
pub(super) fn batch_norm(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let stat = x.get(1).map(|d| vec![d.clone()]);
    Ok((0..c.outputs).map(|port| if port == 0 { Some(x.to_vec()) } else { stat.clone() }).collect())
}

/// `DynamicQuantizeLinear`: codes, then a scalar scale and zero point.
pub(super) fn dynamic_quantize(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    Ok(vec![Some(c.shape(0)?.to_vec()), Some(vec![]), Some(vec![])])
}
