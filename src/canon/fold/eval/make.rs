//! Tensors made from a shape or a range.

use super::{Call, element_size};
use crate::ir::{DType, Scalar, Tensor};

/// `ConstantOfShape`; the value is a float 0 when it is left out.
pub(super) fn constant_of_shape(call: &Call) -> Option<Vec<Tensor>> {
    let shape = call.ints(0)?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
    let zero = Tensor::vector(&[0f32]);
    let value = match call.op.attrs.get("value") {
        None => &zero,
        Some(_) => call.op.attrs.tensor("value")?,
    };
    let n = call.room(&shape, value.dtype)?;
    let element = value.bytes().get(..element_size(value.dtype)?)?;
    Some(vec![Tensor::from_bytes(value.dtype, shape, element.repeat(n).into()).ok()?])
}

/// `Shape`.
pub(super) fn shape(call: &Call) -> Option<Vec<Tensor>> {
    let dims = &call.input(0)?.shape;
    let rank = dims.len() as i64;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let start = clamp(call.int("start", 0));
    let end = clamp(call.int("end", i64::MAX)).max(start);
    let sizes: Vec<i64> = dims.get(start..end)?.iter().map(|&d| d as i64).collect();
    Some(vec![Tensor::vector(&sizes)])
}

/// `Size`.
pub(super) fn size(call: &Call) -> Option<Vec<Tensor>> {
    Some(vec![Tensor::scalar(call.input(0)?.len() as i64)])
}

/// `Range`: `start + i · delta` for `i < max(⌈(limit − start) / delta⌉, 0)`.
pub(super) fn range(call: &Call) -> Option<Vec<Tensor>> {
    fn all<T: Scalar>(call: &Call, count: impl Fn(T, T, T) -> Option<f64>, at: impl Fn(T, T, f64) -> T) -> Option<Vec<Tensor>> {
        let one = |i: usize| call.input(i)?.to_vec::<T>().ok()?.first().copied();
        let (start, limit, delta) = (one(0)?, one(1)?, one(2)?);
        let n = count(start, limit, delta)?.ceil().max(0.0);
        let n = call.room(&[(n < 1e12).then_some(n as usize)?], T::DTYPE)?;
        Some(vec![Tensor::vector(&(0..n).map(|i| at(start, delta, i as f64)).collect::<Vec<T>>())])
    }
    macro_rules! ints {
        ($t:ty) => {
            all::<$t>(
                call,
                |s, l, d| if d == 0 { None } else { Some((l as f64 - s as f64) / d as f64) },
                |s, d, i| s.wrapping_add((i as $t).wrapping_mul(d)),
            )
        };
    }
    macro_rules! floats {
        ($t:ty) => {
            all::<$t>(
                call,
                |s, l, d| {
                    let n = f64::from(l - s) / f64::from(d);
                    n.is_finite().then_some(n)
                },
                |s, d, i| s + i as $t * d,
            )
        };
    }
    match call.input(0)?.dtype {
        DType::I64 => ints!(i64),
        DType::I32 => ints!(i32),
        DType::F32 => floats!(f32),
        DType::F64 => floats!(f64),
        _ => None,
    }
}
