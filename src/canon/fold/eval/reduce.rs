//! Reductions. Float sums run in f64 and round once; integer ones wrap.

use super::{Call, axis, cast, strides, walk};
use crate::ir::{DType, Tensor};

/// `ReduceSum`, `ReduceProd`, `ReduceMean`, `ReduceMax`, `ReduceMin`: axes as attribute or input.
pub(super) fn reduce(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    let rank = t.shape.len();
    let axes = match call.list("axes", 1)? {
        Some(list) if !list.is_empty() => list.iter().map(|&a| axis(a, rank)).collect::<Option<Vec<_>>>()?,
        _ if call.int("noop_with_empty_axes", 0) != 0 => return Some(vec![t.clone()]),
        _ => (0..rank).collect(),
    };
    let keep = call.int("keepdims", 1) != 0;
    let own = strides(&t.shape);
    let split = |inside: bool| -> (Vec<usize>, Vec<isize>) {
        let picked = (0..rank).filter(|i| axes.contains(i) == inside);
        picked.filter_map(|i| Some((*t.shape.get(i)?, *own.get(i)?))).unzip()
    };
    let ((outer, outer_steps), (inner, inner_steps)) = (split(false), split(true));
    let shape: Vec<usize> = if keep {
        t.shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect()
    } else {
        outer.clone()
    };
    let op = call.op.op.op_type.as_str();
    let count = inner.iter().product::<usize>();
    if count == 0 {
        return None;
    }
    macro_rules! groups {
        ($values:expr, $f:expr) => {{
            let (values, mut out, mut good) = ($values, Vec::new(), true);
            walk(&outer, &outer_steps, 0, |base| {
                let mut group = Vec::with_capacity(count);
                walk(&inner, &inner_steps, base, |at| {
                    group.extend(usize::try_from(at).ok().and_then(|at| values.get(at)).copied())
                });
                match $f(group) {
                    Some(v) => out.push(v),
                    None => good = false,
                }
            });
            good.then_some(out)?
        }};
    }
    if t.dtype.is_integer() {
        let values = groups!(t.to_i64().ok()?, |g: Vec<i64>| match op {
            "ReduceSum" => Some(g.into_iter().fold(0, i64::wrapping_add)),
            "ReduceProd" => Some(g.into_iter().fold(1, i64::wrapping_mul)),
            "ReduceMax" => g.into_iter().max(),
            "ReduceMin" => g.into_iter().min(),
            _ => None,
        });
        return Some(vec![cast::convert(&Tensor::new(&shape, &values).ok()?, t.dtype)?]);
    }
    let wide = cast::convert(t, DType::F64)?.to_vec::<f64>().ok()?;
    let extreme =
        |g: Vec<f64>, better: fn(f64, f64) -> bool| g.into_iter().reduce(|a, b| if a.is_nan() || better(a, b) { a } else { b });
    let values = groups!(wide, |g: Vec<f64>| match op {
        "ReduceSum" => Some(g.into_iter().sum::<f64>()),
        "ReduceMean" => Some(g.into_iter().sum::<f64>() / count as f64),
        "ReduceProd" => Some(g.into_iter().product()),
        "ReduceMax" => extreme(g, |a, b| a > b),
        "ReduceMin" => extreme(g, |a, b| a < b),
        _ => None,
    });
    Some(vec![cast::convert(&Tensor::new(&shape, &values).ok()?, t.dtype)?])
}
