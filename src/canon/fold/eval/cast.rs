//! `Cast`, rounding to nearest even into floats and truncating toward zero into integers.

use half::{bf16, f16};

use super::Call;
use crate::ir::{DType, Scalar, Tensor};

/// A number that holds every element of every type without loss.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

/// `Cast`.
pub(super) fn cast(call: &Call) -> Option<Vec<Tensor>> {
    let to = DType::from_onnx(i32::try_from(call.op.attrs.int("to")?).ok()?)?;
    convert(call.input(0)?, to).map(|t| vec![t])
}

/// The tensor in another element type; `None` for types that are not numbers of whole bytes, and where C leaves the
/// conversion undefined (a float outside of the integer's range).
pub(super) fn convert(t: &Tensor, to: DType) -> Option<Tensor> {
    if t.dtype == to {
        return Some(Tensor { doc: String::new(), ..t.clone() });
    }
    let numbers = read(t)?;
    macro_rules! int {
        ($t:ty) => {
            all::<$t>(t, &numbers, |n| match n {
                Number::Int(v) => Some(v as $t),
                Number::Float(v) => {
                    let v = v.trunc();
                    // Both limits are exact in f64; the upper one is excluded.
                    let limit = (<$t>::MAX as i128 + 1) as f64;
                    (v >= <$t>::MIN as f64 && v < limit).then_some(v as $t)
                }
            })
        };
    }
    macro_rules! float {
        ($t:ty, $from_f64:expr) => {
            all::<$t>(t, &numbers, |n| {
                Some(match n {
                    Number::Int(v) => $from_f64(int_to_f64(v)?),
                    Number::Float(v) => $from_f64(v),
                })
            })
        };
    }
    match to {
        DType::I64 => int!(i64),
        DType::I32 => int!(i32),
        DType::I16 => int!(i16),
        DType::I8 => int!(i8),
        DType::U64 => int!(u64),
        DType::U32 => int!(u32),
        DType::U16 => int!(u16),
        DType::U8 => int!(u8),
        DType::F64 => all::<f64>(t, &numbers, |n| {
            Some(match n {
                Number::Int(v) => v as f64,
                Number::Float(v) => v,
            })
        }),
        DType::F32 => all::<f32>(t, &numbers, |n| {
            Some(match n {
                Number::Int(v) => v as f32,
                Number::Float(v) => v as f32,
            })
        }),
        DType::F16 => float!(f16, f16::from_f64),
        DType::BF16 => float!(bf16, bf16::from_f64),
        DType::Bool => {
            let bytes: Vec<u8> = numbers
                .iter()
                .map(|n| match n {
                    Number::Int(v) => u8::from(*v != 0),
                    Number::Float(v) => u8::from(*v != 0.0),
                })
                .collect();
            Tensor::from_bytes(DType::Bool, t.shape.clone(), bytes.into()).ok()
        }
        _ => None,
    }
}

/// An integer as f64, unless that would round before the rounding to a narrower float.
fn int_to_f64(v: i128) -> Option<f64> {
    (v.unsigned_abs() <= 1 << 53).then_some(v as f64)
}

fn all<T: Scalar>(t: &Tensor, numbers: &[Number], f: impl Fn(Number) -> Option<T>) -> Option<Tensor> {
    let values: Vec<T> = numbers.iter().map(|&n| f(n)).collect::<Option<_>>()?;
    Tensor::new(&t.shape, &values).ok()
}

fn read(t: &Tensor) -> Option<Vec<Number>> {
    macro_rules! numbers {
        ($t:ty, $f:expr) => {
            t.to_vec::<$t>().ok()?.into_iter().map($f).collect()
        };
    }
    Some(match t.dtype {
        DType::F32 => numbers!(f32, |v| Number::Float(v.into())),
        DType::F64 => numbers!(f64, Number::Float),
        DType::F16 => numbers!(f16, |v| Number::Float(v.into())),
        DType::BF16 => numbers!(bf16, |v| Number::Float(v.into())),
        DType::U64 => numbers!(u64, |v| Number::Int(v.into())),
        _ => t.to_i64().ok()?.into_iter().map(|v| Number::Int(v.into())).collect(),
    })
}
