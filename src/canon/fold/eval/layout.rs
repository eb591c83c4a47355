//! Moving elements without looking at them.

use super::{Call, axis, broadcast, broadcast_strides, element_size, strides, walk};
use crate::ir::Tensor;

/// Copies the elements of a strided view.
fn copy(call: &Call, t: &Tensor, shape: Vec<usize>, steps: &[isize], start: isize) -> Option<Vec<Tensor>> {
    let size = element_size(t.dtype)?;
    let n = call.room(&shape, t.dtype)?;
    let source = t.bytes();
    let mut out = Vec::with_capacity(n * size);
    let mut inside = true;
    walk(&shape, steps, start, |at| {
        let from = usize::try_from(at).ok().map(|at| at * size);
        match from.and_then(|from| source.get(from..from + size)) {
            Some(bytes) => out.extend_from_slice(bytes),
            None => inside = false,
        }
    });
    if inside { Some(vec![Tensor::from_bytes(t.dtype, shape, out.into()).ok()?]) } else { None }
}

/// `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`.
pub(super) fn reinterpret(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let shape = match call.op.op.op_type.as_str() {
        "Reshape" => reshape_target(call, t)?,
        "Flatten" => {
            let at = call.int("axis", 1);
            let at = if at == t.shape.len() as i64 { t.shape.len() } else { axis(at, t.shape.len())? };
            let (a, b) = t.shape.split_at(at);
            vec![a.iter().product(), b.iter().product()]
        }
        "Squeeze" => {
            let axes = match call.list("axes", 1)? {
                Some(list) => list.iter().map(|&a| axis(a, t.shape.len())).collect::<Option<Vec<_>>>()?,
                None => (0..t.shape.len()).filter(|&i| t.shape.get(i) == Some(&1)).collect(),
            };
            t.shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect()
        }
        _ => {
            let list = call.list("axes", 1)??;
            let rank = t.shape.len().checked_add(list.len())?;
            let axes = list.iter().map(|&a| axis(a, rank)).collect::<Option<Vec<_>>>()?;
            let mut rest = t.shape.iter().copied();
            (0..rank).filter_map(|i| if axes.contains(&i) { Some(1) } else { rest.next() }).collect()
        }
    };
    let mut out = t.reshaped(&shape).ok()?;
    out.doc.clear();
    Some(vec![out])
}

fn reshape_target(call: &Call, t: &Tensor) -> Option<Vec<usize>> {
    let target = match call.op.attrs.ints("shape") {
        Some(v) => v.to_vec(),
        None => call.ints(1)?,
    };
    let copies = call.int("allowzero", 0) == 0;
    let mut known = 1usize;
    let mut shape = Vec::with_capacity(target.len());
    let mut free = None;
    for (i, &d) in target.iter().enumerate() {
        let d = match d {
            -1 if free.is_none() => {
                free = Some(i);
                shape.push(0);
                continue;
            }
            0 if copies => *t.shape.get(i)?,
            d => usize::try_from(d).ok()?,
        };
        known = known.checked_mul(d)?;
        shape.push(d);
    }
    if let Some(slot) = free.and_then(|i| shape.get_mut(i)) {
        *slot = t.len().checked_div(known)?;
    }
    Some(shape)
}

/// `Transpose`.
pub(super) fn transpose(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let rank = t.shape.len();
    let perm: Vec<usize> = match call.op.attrs.ints("perm") {
        Some(v) => v.iter().map(|&p| usize::try_from(p).ok()).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return None;
    }
    let own = strides(&t.shape);
    let shape = perm.iter().map(|&p| t.shape.get(p).copied()).collect::<Option<Vec<_>>>()?;
    let steps = perm.iter().map(|&p| own.get(p).copied()).collect::<Option<Vec<_>>>()?;
    copy(call, t, shape, &steps, 0)
}

/// `Slice`: bounds as attributes or as inputs.
pub(super) fn slice(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let (starts, ends) = (call.list("starts", 1)??, call.list("ends", 2)??);
    let axes = call.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if call.input(4).is_some() { call.ints(4)? } else { vec![1; starts.len()] };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return None;
    }
    let (mut shape, mut stride, mut first) = (t.shape.clone(), strides(&t.shape), 0isize);
    for (((&start, &end), &a), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let a = axis(a, t.shape.len())?;
        let (size, unit) = (shape.get_mut(a)?, stride.get_mut(a)?);
        let n = *size as i64;
        let bound = |v: i64, low: i64, high: i64| (if v < 0 { v.saturating_add(n) } else { v }).max(low).min(high);
        let (from, length) = match step {
            0 => return None,
            1.. => {
                let from = bound(start, 0, n);
                (from, bound(end, 0, n) - from)
            }
            _ => {
                let from = bound(start, -1, n - 1);
                (from, from - bound(end, -1, n - 1))
            }
        };
        let stride_count = i64::try_from(step.unsigned_abs()).ok()?;
        let count = if length <= 0 { 0 } else { (length - 1) / stride_count + 1 };
        *size = usize::try_from(count).ok()?;
        if count > 0 {
            first = first.checked_add(unit.checked_mul(isize::try_from(from).ok()?)?)?;
        }
        // With one element the step leads nowhere, and may be as large as the type allows.
        *unit = if count > 1 { unit.checked_mul(isize::try_from(step).ok()?)? } else { 0 };
    }
    copy(call, t, shape, &stride, first)
}

/// `Expand`.
pub(super) fn expand(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let target = call.ints(1)?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
    let shape = broadcast(&t.shape, &target)?;
    let steps = broadcast_strides(&t.shape, &shape)?;
    copy(call, t, shape, &steps, 0)
}

/// `Tile`: each axis becomes a repeated and a moving one.
pub(super) fn tile(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let repeats = call.ints(1)?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
    if repeats.len() != t.shape.len() {
        return None;
    }
    let shape = t.shape.iter().zip(&repeats).map(|(&d, &r)| d.checked_mul(r)).collect::<Option<Vec<_>>>()?;
    let pairs: Vec<usize> = t.shape.iter().zip(&repeats).flat_map(|(&d, &r)| [r, d]).collect();
    let steps: Vec<isize> = strides(&t.shape).into_iter().flat_map(|s| [0, s]).collect();
    copy(call, t, pairs, &steps, 0)?.into_iter().map(|out| out.reshaped(&shape).ok()).collect()
}
