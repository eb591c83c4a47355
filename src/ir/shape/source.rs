//! Operators that make a value from attributes or from a shape.

use super::ctx::{Ctx, Known, known, one, wrong};
use super::{DimExpr, Shape};
use crate::ir::AttrValue;

/// `Constant`, in every attribute form.
pub(super) fn constant(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let vector = |n: usize| one(vec![DimExpr::from(n as i64)]);
    let form = c.op.attrs.iter().find(|a| a.name.starts_with("value"));
    match form.map(|a| &a.value) {
        Some(AttrValue::Tensor(t)) => one(t.shape.iter().map(|&d| (d as i64).into()).collect()),
        Some(AttrValue::Int(_) | AttrValue::Float(_) | AttrValue::String(_)) => one(vec![]),
        Some(AttrValue::Ints(v)) => vector(v.len()),
        Some(AttrValue::Floats(v)) => vector(v.len()),
        Some(AttrValue::Strings(v)) => vector(v.len()),
        _ => known(None),
    }
}

/// `ConstantOfShape`: the shape is input 0.
pub(super) fn of_contents(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    match c.contents(0) {
        Ok(dims) => one(dims.iter().enumerate().map(|(i, d)| c.or_anon(d.clone(), 0, i)).collect()),
        Err(_) => one(anonymous(c, 0)?),
    }
}

/// A shape of as many anonymous sizes as an input has elements.
pub(super) fn anonymous(c: &Ctx, input: usize) -> Known<Shape> {
    const MAX_RANK: usize = 64;
    match c.shape(input)? {
        [n] => Ok((0..known(n.as_size().filter(|n| *n <= MAX_RANK))?).map(|i| c.anon(0, i)).collect()),
        other => wrong(format!("a shape must be a vector and has rank {}", other.len())),
    }
}

/// `RandomNormal` and `RandomUniform`: the shape is an attribute.
pub(super) fn of_attribute(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(known(c.op.attrs.ints("shape"))?.iter().map(|&d| d.into()).collect())
}

/// `Shape`: its length is the rank, between `start` and `end`.
pub(super) fn shape(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let (start, end) = shape_range(c, c.shape(0)?.len());
    one(vec![((end - start) as i64).into()])
}

/// The axes that `Shape` reads of a rank.
pub(super) fn shape_range(c: &Ctx, rank: usize) -> (usize, usize) {
    let clamp = |v: i64| (if v < 0 { v.saturating_add(rank as i64) } else { v }).clamp(0, rank as i64) as usize;
    let start = clamp(c.int("start", 0));
    (start, clamp(c.int("end", i64::MAX)).max(start))
}

/// A scalar.
pub(super) fn scalar(_: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(vec![])
}

/// `Range`: a vector of `⌈(limit − start) / delta⌉` elements.
pub(super) fn range(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let ends = |i: usize| c.contents(i).ok().and_then(|v| v.first().cloned().flatten());
    let from_ints = || {
        let (start, limit, delta) = (ends(0)?, ends(1)?, ends(2)?.as_const()?);
        let count = match delta {
            d if d > 0 => limit.sub(&start)?.ceil_div(d)?,
            d if d < 0 => start.sub(&limit)?.ceil_div(d.checked_neg()?)?,
            _ => return None,
        };
        match count.as_const() {
            Some(n) => Some(n.max(0).into()),
            None => count.at_least(0).then_some(count),
        }
    };
    let from_floats = || {
        let f = |i: usize| c.tensor(i)?.scalar_f32().map(f64::from);
        let n = ((f(1)? - f(0)?) / f(2)?).ceil();
        (n.is_finite() && n.abs() < 1e15).then(|| DimExpr::from((n as i64).max(0)))
    };
    one(vec![c.or_anon(from_ints().or_else(from_floats), 0, 0)])
}
