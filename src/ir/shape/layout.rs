//! Operators that move or select elements by position.

use super::ctx::{self, Ctx, Known, Stop, known, one, product, unify, wrong};
use super::elementwise::broadcast_two;
use super::source::anonymous;
use super::{DimExpr, Shape};

/// `Reshape`: the target is input 1, or an attribute before operator set 5.
pub(super) fn reshape(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let target: Vec<Option<DimExpr>> = match (c.op.attrs.ints("shape"), c.contents(1)) {
        (Some(v), _) => v.iter().map(|&d| Some(d.into())).collect(),
        (None, Ok(v)) => v.clone(),
        (None, Err(_)) => return one(anonymous(c, 1)?),
    };
    let input = c.shape(0);
    let zero_copies = c.int("allowzero", 0) == 0;
    let copied = |i: usize| input.as_ref().ok().and_then(|x| x.get(i).cloned());
    let mut shape: Vec<Option<DimExpr>> = Vec::with_capacity(target.len());
    let mut free = None;
    for (i, d) in target.into_iter().enumerate() {
        shape.push(match d.as_ref().and_then(DimExpr::as_const) {
            Some(0) if zero_copies => {
                if input.as_ref().is_ok_and(|x| x.len() <= i) {
                    return wrong(format!("target size {i} copies an axis that the input does not have"));
                }
                copied(i)
            }
            Some(-1) if free.is_some() => return wrong("the target has two sizes of -1"),
            Some(-1) => {
                free = Some(i);
                None
            }
            Some(n) if n < 0 => return wrong(format!("the target has a size of {n}")),
            // A symbolic target could turn out as 0 or −1; sizes of values do not, and other arithmetic is not known to.
            None if d.as_ref().is_some_and(|e| !e.at_least(0)) => None,
            _ => d,
        });
    }
    if let (Some(at), Ok(x)) = (free, &input) {
        let others: Option<Vec<DimExpr>> = shape.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, d)| d.clone()).collect();
        let rest = others.and_then(|others| quotient(x, &others));
        if let Some(slot) = shape.get_mut(at) {
            *slot = rest;
        }
    }
    let shape: Shape = shape.into_iter().enumerate().map(|(i, d)| c.or_anon(d, 0, i)).collect();
    if let (Ok(x), Some(new)) = (&input, product(&shape).and_then(|p| p.as_const()))
        && let Some(old) = product(*x).and_then(|p| p.as_const()).filter(|old| *old != new)
    {
        return wrong(format!("{old} elements cannot be reshaped to {new}"));
    }
    one(shape)
}

/// The product of some sizes divided by the product of others, known to divide it.
fn quotient(all: &[DimExpr], others: &[DimExpr]) -> Option<DimExpr> {
    let mut left = all.to_vec();
    let mut over = Vec::new();
    for d in others {
        match left.iter().position(|e| e == d && d.as_const() != Some(0)) {
            Some(at) => drop(left.swap_remove(at)),
            None => over.push(d.clone()),
        }
    }
    let (left, over) = (product(&left)?, product(&over)?);
    if over.as_const() == Some(0) {
        return None;
    }
    left.div_exact(&over).or_else(|| left.floor_div(over.as_const()?))
}

/// `Transpose`.
pub(super) fn transpose(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    one(permutation(c, x.len())?.into_iter().map(|i| known(x.get(i).cloned())).collect::<Known<_>>()?)
}

fn permutation(c: &Ctx, rank: usize) -> Known<Vec<usize>> {
    let Some(perm) = c.op.attrs.ints("perm") else { return Ok((0..rank).rev().collect()) };
    let sorted = ctx::axes(perm, rank)?;
    if perm.len() != rank || sorted.len() != rank {
        return wrong(format!("perm {perm:?} is no permutation of {rank} axes"));
    }
    perm.iter().map(|&p| ctx::axis(p, rank)).collect()
}

/// `Flatten`.
pub(super) fn flatten(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let axis = c.int("axis", 1);
    let axis = if axis == x.len() as i64 { x.len() } else { ctx::axis(axis, x.len())? };
    let (a, b) = x.split_at(axis);
    one(vec![c.or_anon(product(a), 0, 0), c.or_anon(product(b), 0, 1)])
}

/// `Concat`.
pub(super) fn concat(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let mut shape = c.shape(0)?.to_vec();
    let axis = ctx::axis(c.int("axis", if c.opset < 4 { 1 } else { 0 }), shape.len())?;
    let mut sum = shape.get(axis).cloned();
    for i in 1..c.arity() {
        let x = c.shape(i)?;
        if x.len() != shape.len() {
            return wrong(format!("Concat of rank {} with rank {}", shape.len(), x.len()));
        }
        for (k, (slot, d)) in shape.iter_mut().zip(x).enumerate() {
            if k == axis {
                sum = sum.and_then(|s| s.add(d));
            } else if let (Some(p), Some(q)) = (slot.as_const(), d.as_const()) {
                if p != q {
                    return wrong(format!("Concat of sizes {p} and {q} on axis {k}"));
                }
            } else {
                *slot = unify(slot, d);
            }
        }
    }
    if let Some(slot) = shape.get_mut(axis) {
        *slot = c.or_anon(sum, 0, axis);
    }
    one(shape)
}

/// `Split`: sizes as attribute, as input, by `num_outputs`, or equal.
pub(super) fn split(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let axis = ctx::axis(c.int("axis", 0), x.len())?;
    let whole = known(x.get(axis))?;
    let count = c.outputs as i64;
    let sizes: Vec<Option<DimExpr>> = match c.list("split", 1) {
        Ok(Some(v)) if v.len() == c.outputs => v.into_iter().map(|n| Some(n.into())).collect(),
        Ok(Some(v)) => return wrong(format!("{} sizes for {count} outputs", v.len())),
        Ok(None) => {
            let part = whole.ceil_div(count);
            let last = part.as_ref().and_then(|p| whole.sub(&p.times(count - 1)?));
            (0..c.outputs).map(|i| if i + 1 < c.outputs { part.clone() } else { last.clone() }).collect()
        }
        Err(Stop::Unknown) => vec![None; c.outputs],
        Err(stop) => return Err(stop),
    };
    let with = |(port, size): (usize, Option<DimExpr>)| {
        let mut shape = x.to_vec();
        if let Some(slot) = shape.get_mut(axis) {
            *slot = c.or_anon(size, port, axis);
        }
        Some(shape)
    };
    Ok(sizes.into_iter().enumerate().map(with).collect())
}

/// `Squeeze`: axes as attribute or input; without any, every axis of size 1.
pub(super) fn squeeze(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let axes = match c.list("axes", 1)? {
        Some(list) => ctx::axes(&list, x.len())?,
        None if x.iter().all(|d| d.equals(&1.into()).is_some()) => {
            x.iter().enumerate().filter(|(_, d)| d.as_const() == Some(1)).map(|(i, _)| i).collect()
        }
        None => return known(None),
    };
    if let Some(n) = axes.iter().filter_map(|&i| x.get(i)?.as_const()).find(|n| *n != 1) {
        return wrong(format!("Squeeze of an axis of size {n}"));
    }
    one(x.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect())
}

/// `Unsqueeze`: axes as attribute or input, counted in the output.
pub(super) fn unsqueeze(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let list = known(c.list("axes", 1)?)?;
    let rank = x.len() + list.len();
    let axes = ctx::axes(&list, rank)?;
    if axes.len() != list.len() {
        return wrong(format!("Unsqueeze names an axis twice: {list:?}"));
    }
    let mut rest = x.iter().cloned();
    one((0..rank).filter_map(|i| if axes.contains(&i) { Some(1.into()) } else { rest.next() }).collect())
}

/// `Expand`: the input broadcast to the shape that input 1 holds.
pub(super) fn expand(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let target = match c.contents(1) {
        Ok(v) => v.iter().enumerate().map(|(i, d)| c.or_anon(d.clone(), 0, i)).collect(),
        Err(_) => anonymous(c, 1)?,
    };
    one(broadcast_two(c, c.shape(0)?, &target)?)
}

/// `Tile`.
pub(super) fn tile(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let repeats = c.contents(1).ok();
    let size = |(i, d): (usize, &DimExpr)| {
        let n = repeats.and_then(|r| r.get(i).cloned().flatten());
        c.or_anon(n.and_then(|n| d.mul(&n)), 0, i)
    };
    one(x.iter().enumerate().map(size).collect())
}

/// `Pad`: pads as attribute or input 1, axes as input 3.
pub(super) fn pad(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let mut shape = c.shape(0)?.to_vec();
    let rank = shape.len();
    let axes = if c.has(3) {
        c.const_ints(3)?.iter().map(|&a| ctx::axis(a, rank)).collect::<Known<Vec<_>>>()?
    } else {
        (0..rank).collect()
    };
    let pads: Vec<Option<DimExpr>> = match c.op.attrs.ints("pads").or_else(|| c.op.attrs.ints("paddings")) {
        Some(v) => v.iter().map(|&n| Some(n.into())).collect(),
        None => c.contents(1).cloned().unwrap_or_else(|_| vec![None; 2 * axes.len()]),
    };
    if pads.len() != 2 * axes.len() {
        return wrong(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    for (i, &axis) in axes.iter().enumerate() {
        let ends = pads.get(i).cloned().flatten().zip(pads.get(i + axes.len()).cloned().flatten());
        if let Some(slot) = shape.get_mut(axis) {
            let size = ends.and_then(|(a, b)| slot.add(&a)?.add(&b)).filter(|e| e.as_const().is_none_or(|v| v >= 0));
            *slot = c.or_anon(size, 0, axis);
        }
    }
    one(shape)
}
