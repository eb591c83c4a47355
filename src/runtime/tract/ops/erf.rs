//! The error function within 4e-7 (2e-6 in tract) and exact GELU in one pass (five operators in tract).

use tract_onnx::tract_hir::internal::*;

use super::{Built, Params, elementwise, filled, slice};
use crate::runtime::tract::EngineError;
use crate::simd::widest;

/// erf within 4e-7 (absolute and relative): `x · P(x²) / Q(x²)` on [−4, 4], outside of which erf is ±1 in float32. The
/// coefficients are a least-squares rational fit of erf(x)/x, reweighted until its relative error was level (7e-8).
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        0.207_117_29,
        0.051_523_797,
        0.003_990_135_6,
        0.000_147_268_64,
        -1.942_102_2e-6,
        1.910_873_6e-8,
    ];
    const Q: [f32; 5] = [1.0, 0.516_884_15, 0.117_967_41, 0.014_957_313, 0.001_020_980_8];
    let x = x.clamp(-4.0, 4.0);
    let t = x * x;
    let [p0, p1, p2, p3, p4, p5, p6] = P;
    let [q0, q1, q2, q3, q4] = Q;
    let p = (((((p6 * t + p5) * t + p4) * t + p3) * t + p2) * t + p1) * t + p0;
    let q = (((q4 * t + q3) * t + q2) * t + q1) * t + q0;
    (x * p / q).clamp(-1.0, 1.0)
}

/// `0.5 · x · (1 + erf(x / √2))`.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for (x, y) in x.iter().zip(y) {
        *y = f(*x);
    }
}

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Erf,
    Gelu,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Unary(Function);

impl Op for Unary {
    fn name(&self) -> StaticName {
        format!("{:?}", self.0).into()
    }
    op_as_typed_op!();
}

impl EvalOp for Unary {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let x = slice::<f32>(&input)?;
        filled::<f32>(input.shape(), |y| {
            match self.0 {
                Function::Erf => widest(
                    #[inline(always)]
                    || map(x, y, erf),
                ),
                Function::Gelu => widest(
                    #[inline(always)]
                    || map(x, y, gelu),
                ),
            }
            Ok(())
        })
    }
}

impl TypedOp for Unary {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(inputs[0].shape.clone())))
    }
    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }
    fn change_axes(&self, m: &TypedModel, n: &TypedNode, _: InOut, c: &AxisOp) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(m, n, None, c)))
    }
    as_op!();
}

pub(super) fn build(p: &Params<'_>, function: Function) -> Result<Built, EngineError> {
    Ok(elementwise(Unary(function), p.data(0)?, Some(DatumType::F32), DatumType::F32))
}
