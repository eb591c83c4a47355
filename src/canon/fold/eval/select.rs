//! Choosing and joining blocks of elements.

use super::{Call, axis, broadcast, broadcast_strides, element_size, walk};
use crate::ir::{DType, Tensor};

/// The number of blocks before an axis, and the bytes of one step along it.
fn blocks(t: &Tensor, axis: usize) -> Option<(usize, usize)> {
    // Of nothing there are no blocks, whatever the other axes say.
    let empty = t.shape.iter().enumerate().any(|(i, &n)| i != axis && n == 0);
    let outer = if empty { 0 } else { t.shape.get(..axis)?.iter().product() };
    let inner: usize = t.shape.get(axis + 1..)?.iter().product();
    Some((outer, inner.checked_mul(element_size(t.dtype)?)?))
}

/// `Concat`.
pub(super) fn concat(call: &Call) -> Option<Vec<Tensor>> {
    let all: Vec<_> = call.inputs.iter().copied().collect::<Option<_>>()?;
    let first = *all.first()?;
    let at = axis(call.int("axis", if call.opset < 4 { 1 } else { 0 }), first.shape.len())?;
    let mut shape = first.shape.clone();
    *shape.get_mut(at)? = 0;
    for t in &all {
        let fits = t.dtype == first.dtype
            && t.shape.len() == shape.len()
            && t.shape.iter().zip(&first.shape).enumerate().all(|(i, (a, b))| i == at || a == b);
        let slot = shape.get_mut(at).filter(|_| fits)?;
        *slot = slot.checked_add(*t.shape.get(at)?)?;
    }
    call.room(&shape, first.dtype)?;
    let (outer, step) = blocks(first, at)?;
    let mut out = Vec::new();
    for i in 0..outer {
        for t in &all {
            let block = step.checked_mul(*t.shape.get(at)?)?;
            out.extend_from_slice(t.bytes().get(i * block..(i + 1) * block)?);
        }
    }
    Some(vec![Tensor::from_bytes(first.dtype, shape, out.into()).ok()?])
}

/// `Split`: sizes as attribute or input, else equal ones with a smaller last.
pub(super) fn split(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let at = axis(call.int("axis", 0), t.shape.len())?;
    let whole = *t.shape.get(at)?;
    let sizes: Vec<usize> = match call.list("split", 1)? {
        Some(v) => v.into_iter().map(|n| usize::try_from(n).ok()).collect::<Option<_>>()?,
        None => {
            let part = whole.div_ceil(call.outputs.max(1));
            (0..call.outputs).map(|i| part.min(whole.saturating_sub(part * i))).collect()
        }
    };
    if sizes.len() != call.outputs || sizes.iter().try_fold(0usize, |s, &n| s.checked_add(n))? != whole {
        return None;
    }
    let (outer, step) = blocks(t, at)?;
    let row = step.checked_mul(whole)?;
    let mut results = Vec::with_capacity(sizes.len());
    let mut offset = 0usize;
    for n in sizes {
        let mut out = Vec::with_capacity(outer * n * step);
        for i in 0..outer {
            let from = i * row + offset * step;
            out.extend_from_slice(t.bytes().get(from..from + n * step)?);
        }
        let mut shape = t.shape.clone();
        *shape.get_mut(at)? = n;
        results.push(Tensor::from_bytes(t.dtype, shape, out.into()).ok()?);
        offset += n;
    }
    Some(results)
}

/// `Gather`.
pub(super) fn gather(call: &Call) -> Option<Vec<Tensor>> {
    let (t, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0), t.shape.len())?;
    let size = *t.shape.get(at)?;
    let picks = indices.to_i64().ok()?.into_iter().map(|i| axis(i, size)).collect::<Option<Vec<_>>>()?;
    let mut shape = t.shape.clone();
    shape.splice(at..=at, indices.shape.iter().copied());
    call.room(&shape, t.dtype)?;
    let (outer, step) = blocks(t, at)?;
    let mut out = Vec::new();
    for i in 0..outer {
        for &p in &picks {
            let from = (i * size + p) * step;
            out.extend_from_slice(t.bytes().get(from..from + step)?);
        }
    }
    Some(vec![Tensor::from_bytes(t.dtype, shape, out.into()).ok()?])
}

/// `GatherND` without batch dimensions: each row of indices picks an element or a block of the leading axes.
pub(super) fn gather_nd(call: &Call) -> Option<Vec<Tensor>> {
    let (t, indices) = (call.input(0)?, call.input(1)?);
    let (&depth, rows) = indices.shape.split_last()?;
    if call.int("batch_dims", 0) != 0 || depth == 0 || depth > t.shape.len() {
        return None;
    }
    let (picked, block) = t.shape.split_at(depth);
    let shape: Vec<usize> = rows.iter().chain(block).copied().collect();
    call.room(&shape, t.dtype)?;
    let step = block.iter().product::<usize>().checked_mul(element_size(t.dtype)?)?;
    let mut out = Vec::new();
    for index in indices.to_i64().ok()?.chunks(depth) {
        let places = index.iter().zip(picked).map(|(&i, &size)| Some((axis(i, size)?, size)));
        let row = places.collect::<Option<Vec<_>>>()?.into_iter().fold(0, |row, (at, size)| row * size + at);
        out.extend_from_slice(t.bytes().get(row * step..(row + 1) * step)?);
    }
    Some(vec![Tensor::from_bytes(t.dtype, shape, out.into()).ok()?])
}

/// `Where`.
pub(super) fn where_(call: &Call) -> Option<Vec<Tensor>> {
    let (cond, yes, no) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if cond.dtype != DType::Bool || yes.dtype != no.dtype {
        return None;
    }
    let size = element_size(yes.dtype)?;
    let shape = broadcast(&broadcast(&cond.shape, &yes.shape)?, &no.shape)?;
    let n = call.room(&shape, yes.dtype)?;
    let offsets = |t: &Tensor| -> Option<Vec<isize>> {
        let mut v = Vec::with_capacity(n);
        walk(&shape, &broadcast_strides(&t.shape, &shape)?, 0, |at| v.push(at));
        Some(v)
    };
    let mut out = Vec::with_capacity(n * size);
    for ((c, y), z) in offsets(cond)?.into_iter().zip(offsets(yes)?).zip(offsets(no)?) {
        let (t, at) = if *cond.bytes().get(usize::try_from(c).ok()?)? != 0 { (yes, y) } else { (no, z) };
        let from = usize::try_from(at).ok()? * size;
        out.extend_from_slice(t.bytes().get(from..from + size)?);
    }
    Some(vec![Tensor::from_bytes(yes.dtype, shape, out.into()).ok()?])
}
