//! Gathering and scattering.

use super::ctx::{self, Ctx, Known, known, one, wrong};
use super::{DimExpr, Shape};

/// `Gather`.
pub(super) fn gather(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let (x, indices) = (c.shape(0)?, c.shape(1)?);
    let axis = ctx::axis(c.int("axis", 0), x.len())?;
    let mut shape = x.to_vec();
    shape.splice(axis..=axis, indices.iter().cloned());
    one(shape)
}

/// The shape of the indices: `GatherElements`.
pub(super) fn like_indices(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(c.shape(1)?.to_vec())
}

/// `GatherND`.
pub(super) fn gather_nd(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let (x, indices) = (c.shape(0)?, c.shape(1)?);
    let Some((depth, lead)) = indices.split_last() else { return wrong("indices of rank 0") };
    let depth = known(depth.as_size())?;
    let batch = known(usize::try_from(c.int("batch_dims", 0)).ok())?;
    match batch.checked_add(depth).and_then(|n| x.get(n..)) {
        Some(rest) => one([lead, rest].concat()),
        None => wrong(format!("indices of depth {depth} after {batch} batch axes into rank {}", x.len())),
    }
}

/// `OneHot`: the depth is input 1.
pub(super) fn one_hot(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let mut shape = c.shape(0)?.to_vec();
    let axis = ctx::axis(c.int("axis", -1), shape.len() + 1)?;
    let depth = c.contents(1).ok().and_then(|v| v.first().cloned().flatten());
    shape.insert(axis, c.or_anon(depth, 0, axis));
    one(shape)
}

/// `NonZero`: one column for each element that is not zero.
pub(super) fn non_zero(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(vec![DimExpr::from(c.shape(0)?.len() as i64), c.anon(0, 1)])
}
