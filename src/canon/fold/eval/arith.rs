//! Elementwise arithmetic, comparison and logic.

use half::{bf16, f16};

use super::{Call, broadcast, broadcast_strides, cast, walk};
use crate::ir::{DType, Scalar, Tensor};

/// A number with the arithmetic of its own type: floats round after every operation, integers wrap and divide toward zero.
trait Number: Scalar + PartialOrd {
    fn binary(op: &str, fmod: bool, a: Self, b: Self) -> Option<Self>;
    fn unary(op: &str, a: Self) -> Option<Self>;
}

macro_rules! float_number {
    ($t:ty) => {
        impl Number for $t {
            fn binary(op: &str, fmod: bool, a: Self, b: Self) -> Option<Self> {
                Some(match op {
                    "Add" | "Sum" => a + b,
                    "Sub" => a - b,
                    "Mul" => a * b,
                    "Div" => a / b,
                    "Pow" => a.powf(b),
                    "Mod" if fmod => a % b,
                    // A NaN on either side wins, as in numpy.
                    "Max" => {
                        if a.is_nan() || a > b {
                            a
                        } else {
                            b
                        }
                    }
                    "Min" => {
                        if a.is_nan() || a < b {
                            a
                        } else {
                            b
                        }
                    }
                    _ => return None,
                })
            }
            fn unary(op: &str, a: Self) -> Option<Self> {
                Some(match op {
                    "Sqrt" => a.sqrt(),
                    "Neg" => -a,
                    "Reciprocal" => 1.0 / a,
                    "Exp" => a.exp(),
                    "Log" => a.ln(),
                    "Abs" => a.abs(),
                    "Floor" => a.floor(),
                    "Ceil" => a.ceil(),
                    "Round" => a.round_ties_even(),
                    "Relu" => {
                        if a < 0.0 {
                            0.0
                        } else {
                            a
                        }
                    }
                    // In f64, so that the f32 result is rounded once.
                    "Sigmoid" => (1.0 / (1.0 + (-f64::from(a)).exp())) as $t,
                    "Tanh" => f64::from(a).tanh() as $t,
                    "Sin" => f64::from(a).sin() as $t,
                    "Cos" => f64::from(a).cos() as $t,
                    "Sign" => {
                        if a == 0.0 || a.is_nan() {
                            a
                        } else {
                            a.signum()
                        }
                    }
                    _ => return None,
                })
            }
        }
    };
}
float_number!(f32);
float_number!(f64);

macro_rules! half_number {
    ($t:ty) => {
        // 24 bits hold the rounding of every one of these operations on 11 bits, so rounding twice rounds once.
        impl Number for $t {
            fn binary(op: &str, fmod: bool, a: Self, b: Self) -> Option<Self> {
                f32::binary(op, fmod, a.to_f32(), b.to_f32()).map(<$t>::from_f32)
            }
            fn unary(op: &str, a: Self) -> Option<Self> {
                f32::unary(op, a.to_f32()).map(<$t>::from_f32)
            }
        }
    };
}
half_number!(f16);
half_number!(bf16);

macro_rules! int_number {
    ($($t:ty),*) => {$(
        impl Number for $t {
            #[allow(unused_comparisons)]
            fn binary(op: &str, fmod: bool, a: Self, b: Self) -> Option<Self> {
                Some(match op {
                    "Add" | "Sum" => a.wrapping_add(b),
                    "Sub" => a.wrapping_sub(b),
                    "Mul" => a.wrapping_mul(b),
                    "Div" => a.checked_div(b)?,
                    "Pow" => a.wrapping_pow(u32::try_from(b).ok()?),
                    "Mod" => {
                        let r = a.checked_rem(b)?;
                        // The sign of the divisor, unless `fmod` asks for the dividend's.
                        if !fmod && r != 0 && (r < 0) != (b < 0) { r.wrapping_add(b) } else { r }
                    }
                    "Max" => a.max(b),
                    "Min" => a.min(b),
                    _ => return None,
                })
            }
            #[allow(unused_comparisons)]
            fn unary(op: &str, a: Self) -> Option<Self> {
                Some(match op {
                    "Neg" => (0 as $t).wrapping_sub(a),
                    "Abs" => if a < 0 { (0 as $t).wrapping_sub(a) } else { a },
                    "Sign" => if a < 0 { (0 as $t).wrapping_sub(1) } else { <$t>::from(a > 0) },
                    _ => return None,
                })
            }
        }
    )*};
}
int_number!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! dispatch {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = f16;
                $body
            }
            DType::BF16 => {
                type $t = bf16;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            _ => None,
        }
    };
}

/// The elements of an operand at every position of a broadcast shape.
fn spread<T: Copy>(values: &[T], operand: &[usize], shape: &[usize]) -> Option<Vec<T>> {
    let mut out = Vec::new();
    walk(shape, &broadcast_strides(operand, shape)?, 0, |at| {
        out.extend(usize::try_from(at).ok().and_then(|at| values.get(at)).copied());
    });
    (out.len() == shape.iter().product::<usize>()).then_some(out)
}

/// A broadcast shape and both operands at each of its positions.
type Paired<T> = (Vec<usize>, Vec<(T, T)>);

/// Both operands at every position of their broadcast shape.
fn pair<T: Scalar>(call: &Call, a: &Tensor, b: &Tensor, result: DType) -> Option<Paired<T>> {
    let shape = broadcast(&a.shape, &b.shape)?;
    call.room(&shape, result)?;
    let x = spread(&a.to_vec::<T>().ok()?, &a.shape, &shape)?;
    let y = spread(&b.to_vec::<T>().ok()?, &b.shape, &shape)?;
    Some((shape, x.into_iter().zip(y).collect()))
}

/// `Add`, `Sub`, `Mul`, `Div`, `Pow`, `Mod`; `Max`, `Min`, `Sum` of any number of operands.
pub(super) fn arithmetic(call: &Call) -> Option<Vec<Tensor>> {
    // Before operator set 7 operands stretched along `axis`.
    if call.op.attrs.int("broadcast").is_some() {
        return None;
    }
    let op = call.op.op.op_type.as_str();
    let fmod = call.int("fmod", 0) != 0;
    let mut all = call.inputs.iter().copied();
    let first = all.next().flatten()?.clone();
    let result = all.try_fold(first, |a, b| {
        // Only `Pow` mixes types: the exponent becomes one of the base's type where that is exact in spirit.
        let b = match b? {
            b if b.dtype == a.dtype => b.clone(),
            b if op == "Pow" && !a.dtype.is_integer() => cast::convert(b, a.dtype)?,
            _ => return None,
        };
        dispatch!(a.dtype, T => {
            let (shape, pairs) = pair::<T>(call, &a, &b, a.dtype)?;
            let values: Vec<T> = pairs.into_iter().map(|(x, y)| T::binary(op, fmod, x, y)).collect::<Option<_>>()?;
            Tensor::new(&shape, &values).ok()
        })
    })?;
    Some(vec![Tensor { doc: String::new(), ..result }])
}

/// Functions of one operand.
pub(super) fn unary(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    dispatch!(t.dtype, T => {
        let values: Vec<T> = t.to_vec::<T>().ok()?.into_iter().map(|v| T::unary(&call.op.op.op_type, v)).collect::<Option<_>>()?;
        Some(vec![Tensor::new(&t.shape, &values).ok()?])
    })
}

/// `Clip`: bounds as inputs, or as float attributes before operator set 11.
pub(super) fn clip(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0)?;
    dispatch!(t.dtype, T => {
        let bound = |i: usize, attr: &str| -> Option<Option<T>> {
            match (call.op.attrs.float(attr), call.input(i)) {
                (Some(v), _) => Some(cast::convert(&Tensor::scalar(v), t.dtype)?.to_vec::<T>().ok()?.first().copied()),
                (None, Some(b)) => Some(b.to_vec::<T>().ok()?.first().copied()),
                (None, None) => Some(None),
            }
        };
        let (low, high) = (bound(1, "min")?, bound(2, "max")?);
        let clamp = |v: T| {
            let v = if low.is_some_and(|l| v < l) { low? } else { v };
            if high.is_some_and(|h| v > h) { high } else { Some(v) }
        };
        let values: Vec<T> = t.to_vec::<T>().ok()?.into_iter().map(clamp).collect::<Option<_>>()?;
        Some(vec![Tensor::new(&t.shape, &values).ok()?])
    })
}

fn flags(shape: Vec<usize>, flags: impl Iterator<Item = bool>) -> Option<Vec<Tensor>> {
    let bytes: Vec<u8> = flags.map(u8::from).collect();
    Some(vec![Tensor::from_bytes(DType::Bool, shape, bytes.into()).ok()?])
}

/// `Equal` and the orders.
pub(super) fn comparison(call: &Call) -> Option<Vec<Tensor>> {
    fn compare<T: PartialOrd>(op: &str, a: &T, b: &T) -> bool {
        match op {
            "Equal" => a == b,
            "Less" => a < b,
            "Greater" => a > b,
            "LessOrEqual" => a <= b,
            _ => a >= b,
        }
    }
    let (a, b) = (call.input(0)?, call.input(1)?);
    let op = call.op.op.op_type.as_str();
    if call.op.attrs.int("broadcast").is_some() || a.dtype != b.dtype {
        return None;
    }
    if a.dtype == DType::Bool && op == "Equal" {
        return bools(call, |x, y| x == y);
    }
    dispatch!(a.dtype, T => {
        let (shape, pairs) = pair::<T>(call, a, b, DType::Bool)?;
        flags(shape, pairs.iter().map(|(x, y)| compare(op, x, y)))
    })
}

/// `And`, `Or`, `Xor`.
pub(super) fn logic(call: &Call) -> Option<Vec<Tensor>> {
    match call.op.op.op_type.as_str() {
        "And" => bools(call, |x, y| x & y),
        "Or" => bools(call, |x, y| x | y),
        _ => bools(call, |x, y| x ^ y),
    }
}

fn bools(call: &Call, f: impl Fn(bool, bool) -> bool) -> Option<Vec<Tensor>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype != DType::Bool || b.dtype != DType::Bool {
        return None;
    }
    let shape = broadcast(&a.shape, &b.shape)?;
    call.room(&shape, DType::Bool)?;
    let (x, y) = (spread(a.bytes(), &a.shape, &shape)?, spread(b.bytes(), &b.shape, &shape)?);
    flags(shape, x.into_iter().zip(y).map(|(x, y)| f(x != 0, y != 0)))
}

/// `Not`.
pub(super) fn not(call: &Call) -> Option<Vec<Tensor>> {
    let t = call.input(0).filter(|t| t.dtype == DType::Bool)?;
    flags(t.shape.clone(), t.bytes().iter().map(|&b| b == 0))
}
