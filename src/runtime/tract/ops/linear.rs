//! QuantizeLinear and DequantizeLinear with ONNX's arithmetic: `q = clamp(round_half_even(x / scale) + zp)`, dividing by the
//! scale (tract multiplies by its reciprocal, which decides ties differently), and `x = (q − zp) · scale`.

use tract_onnx::tract_hir::internal::*;

use super::{Built, Params, elementwise, filled, slice};
use crate::ir::DType;
use crate::runtime::tract::{EngineError, convert};
use crate::simd::widest;

/// Scales and zero points of a tensor (one of each) or of the slices along an axis.
#[derive(Debug, Clone, PartialEq)]
struct Grid {
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    /// `None` for one scale for the whole tensor.
    axis: Option<i64>,
}

impl Eq for Grid {}

impl Grid {
    /// Reads scale (input 1) and zero point (input 2); also gives the zero point's element type.
    fn read(p: &Params<'_>) -> Result<(Grid, Option<DType>), EngineError> {
        let scale = p.floats(1)?;
        let rank = p.constant(1)?.shape.len();
        let zero = p.maybe_constant(2)?;
        let dtype = zero.as_ref().map(|z| z.dtype);
        let zero_point = match zero {
            None => vec![0; scale.len()],
            Some(z) => convert::integers(&z)
                .and_then(|v| v.into_iter().map(|v| i32::try_from(v).ok()).collect::<Option<Vec<i32>>>())
                .ok_or_else(|| {
                    p.unsupported(format!("its zero point is {}", z.dtype), "quantise to integers of 4, 8 or 16 bits")
                })?,
        };
        if scale.len() != zero_point.len() || scale.is_empty() || rank > 1 {
            return Err(p.malformed(format!(
                "its scale has {} elements in {rank} dimensions and its zero point {}: both are a scalar or both a vector of one length",
                scale.len(),
                zero_point.len()
            )));
        }
        // ONNX lets a vector of one element stand for a scalar.
        let axis = (scale.len() > 1).then(|| p.int("axis", 1));
        Ok((Grid { scale, zero_point, axis }, dtype))
    }

    /// The number of consecutive elements that share a scale, in a tensor of this shape.
    fn run(&self, shape: &[usize]) -> TractResult<usize> {
        let Some(axis) = self.axis else { return Ok(shape.iter().product()) };
        let at = if axis < 0 { axis + shape.len() as i64 } else { axis };
        let at =
            usize::try_from(at).ok().filter(|&a| a < shape.len()).with_context(|| format!("axis {axis} of shape {shape:?}"))?;
        ensure!(shape[at] == self.scale.len(), "{} scales along axis {axis} of shape {shape:?}", self.scale.len());
        Ok(shape[at + 1..].iter().product())
    }

    /// `y = f(x, scale, zero point)` for every element.
    #[inline(always)]
    fn apply<X: Copy, Y>(&self, shape: &[usize], x: &[X], y: &mut [Y], f: impl Fn(X, f32, i32) -> Y) -> TractResult<()> {
        let run = self.run(shape)?;
        if x.is_empty() {
            return Ok(());
        }
        let params = || self.scale.iter().copied().zip(self.zero_point.iter().copied());
        if run == 1 && self.axis.is_some() {
            for (x, y) in x.chunks(self.scale.len()).zip(y.chunks_mut(self.scale.len())) {
                for ((x, y), (s, z)) in x.iter().zip(y).zip(params()) {
                    *y = f(*x, s, z);
                }
            }
        } else {
            for ((x, y), (s, z)) in x.chunks(run).zip(y.chunks_mut(run)).zip(params().cycle()) {
                for (x, y) in x.iter().zip(y) {
                    *y = f(*x, s, z);
                }
            }
        }
        Ok(())
    }

    fn check(&self, fact: &TypedFact) -> TractResult<()> {
        match fact.shape.as_concrete() {
            Some(shape) => self.run(shape).map(drop),
            None => Ok(()),
        }
    }

    /// One scale for all elements commutes with every change of axes.
    fn mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        if self.axis.is_none() { AxesMapping::natural(inputs, outputs) } else { AxesMapping::disconnected(inputs, outputs) }
    }

    fn change(&self, model: &TypedModel, node: &TypedNode, change: &AxisOp) -> Option<AxisChangeConsequence> {
        self.axis.is_none().then(|| AxisChangeConsequence::new(model, node, None, change))
    }
}

/// `round_half_even(v)` for |v| ≤ 2^22: adding 1.5 · 2^23 leaves the integer in the low bits of the sum's mantissa, rounded
/// by the addition itself.
#[inline(always)]
fn round_half_even_small(v: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (v + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Quantize {
    grid: Grid,
    low: i32,
    high: i32,
    to: DatumType,
}

impl Quantize {
    /// The code of one element; NaN becomes the lowest code, as in onnxruntime.
    #[inline(always)]
    fn code(&self, x: f32, scale: f32, zero_point: i32) -> i32 {
        // Clamping to integers before rounding is clamping after it, and keeps the rounding's argument small.
        let (low, high) = ((self.low - zero_point) as f32, (self.high - zero_point) as f32);
        round_half_even_small((x / scale).max(low).min(high)) + zero_point
    }
}

impl Op for Quantize {
    fn name(&self) -> StaticName {
        "QuantizeLinear".into()
    }
    op_as_typed_op!();
}

impl EvalOp for Quantize {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let (x, shape) = (slice::<f32>(&input)?, input.shape());
        macro_rules! to {
            ($t:ty) => {
                filled::<$t>(shape, |y| {
                    widest(
                        #[inline(always)]
                        || {
                            self.grid.apply(
                                shape,
                                x,
                                y,
                                #[inline(always)]
                                |x, s, z| self.code(x, s, z) as $t,
                            )
                        },
                    )
                })
            };
        }
        match self.to {
            DatumType::I8 => to!(i8),
            DatumType::U8 => to!(u8),
            DatumType::I16 => to!(i16),
            DatumType::U16 => to!(u16),
            other => bail!("QuantizeLinear to {other:?}"),
        }
    }
}

impl TypedOp for Quantize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.grid.check(inputs[0])?;
        Ok(tvec!(self.to.fact(inputs[0].shape.clone())))
    }
    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        self.grid.mapping(inputs, outputs)
    }
    fn change_axes(&self, m: &TypedModel, n: &TypedNode, _: InOut, c: &AxisOp) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(self.grid.change(m, n, c))
    }
    as_op!();
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Dequantize {
    grid: Grid,
}

impl Op for Dequantize {
    fn name(&self) -> StaticName {
        "DequantizeLinear".into()
    }
    op_as_typed_op!();
}

impl EvalOp for Dequantize {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let shape = input.shape();
        macro_rules! from {
            ($t:ty) => {{
                let x = slice::<$t>(&input)?;
                filled::<f32>(shape, |y| {
                    widest(
                        #[inline(always)]
                        || {
                            self.grid.apply(
                                shape,
                                x,
                                y,
                                #[inline(always)]
                                |q, s, z| i32::from(q).wrapping_sub(z) as f32 * s,
                            )
                        },
                    )
                })
            }};
        }
        match input.datum_type() {
            DatumType::I8 => from!(i8),
            DatumType::U8 => from!(u8),
            DatumType::I16 => from!(i16),
            DatumType::U16 => from!(u16),
            DatumType::I32 => from!(i32),
            other => bail!("DequantizeLinear of {other:?}"),
        }
    }
}

impl TypedOp for Dequantize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.grid.check(inputs[0])?;
        Ok(tvec!(f32::fact(inputs[0].shape.clone())))
    }
    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        self.grid.mapping(inputs, outputs)
    }
    fn change_axes(&self, m: &TypedModel, n: &TypedNode, _: InOut, c: &AxisOp) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(self.grid.change(m, n, c))
    }
    as_op!();
}

/// The element type and the codes of a QuantizeLinear: its zero point says, else `output_dtype`, else uint8.
fn code_type(p: &Params<'_>, zero: Option<DType>) -> Result<(DatumType, i32, i32), EngineError> {
    let attr = p.int("output_dtype", 0);
    let asked = if attr == 0 { None } else { i32::try_from(attr).ok().and_then(DType::from_onnx) };
    if attr != 0 && (asked.is_none() || zero.is_some_and(|z| Some(z) != asked)) {
        return Err(p.malformed(format!("its output_dtype {attr} is not its zero point's element type")));
    }
    let dtype = zero.or(asked).unwrap_or(DType::U8);
    Ok(match dtype {
        DType::I4 => (DatumType::I8, -8, 7),
        DType::U4 => (DatumType::U8, 0, 15),
        DType::I8 => (DatumType::I8, -128, 127),
        DType::U8 => (DatumType::U8, 0, 255),
        DType::I16 => (DatumType::I16, -32768, 32767),
        DType::U16 => (DatumType::U16, 0, 65535),
        other => return Err(p.unsupported(format!("it quantises to {other}"), "quantise to integers of 4, 8 or 16 bits")),
    })
}

pub(super) fn quantize(p: &Params<'_>) -> Result<Built, EngineError> {
    let (grid, zero) = Grid::read(p)?;
    let (to, low, high) = code_type(p, zero)?;
    Ok(elementwise(Quantize { grid, low, high, to }, p.data(0)?, Some(DatumType::F32), to))
}

pub(super) fn dequantize(p: &Params<'_>) -> Result<Built, EngineError> {
    let (grid, zero) = Grid::read(p)?;
    let from = match zero {
        None => None,
        Some(DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 | DType::I4 | DType::U4) => {
            zero.and_then(convert::datum_type)
        }
        Some(other) => {
            return Err(p.unsupported(format!("it dequantises {other}"), "quantise to integers of 4, 8, 16 or 32 bits"));
        }
    };
    Ok(elementwise(Dequantize { grid }, p.data(0)?, from, DatumType::F32))
}
