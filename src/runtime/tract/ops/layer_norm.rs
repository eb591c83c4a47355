//! LayerNormalization in one pass a row; tract spells it as a dozen operators, each of which walks the tensor.

use tract_onnx::tract_hir::internal::*;

use super::{Built, Params, elementwise, filled, slice};
use crate::runtime::tract::EngineError;
use crate::simd::widest;

/// `y = (x − mean) / sqrt(var + eps) · scale + bias` over the axes from `axis` on, in float32 as `stash_type` 1 says.
#[derive(Debug, Clone, PartialEq)]
struct LayerNorm {
    axis: i64,
    epsilon: f32,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl Eq for LayerNorm {}

impl LayerNorm {
    /// Elements of a row in a tensor of this shape.
    fn row(&self, shape: &[usize]) -> TractResult<usize> {
        let at = if self.axis < 0 { self.axis + shape.len() as i64 } else { self.axis };
        let at = usize::try_from(at).ok().filter(|&a| a <= shape.len());
        let row: usize =
            at.with_context(|| format!("axis {} of shape {shape:?}", self.axis)).map(|a| shape[a..].iter().product())?;
        ensure!(row == self.scale.len() && row > 0, "a scale of {} elements for rows of {row}", self.scale.len());
        Ok(row)
    }
}

impl LayerNorm {
    #[inline(always)]
    fn normalise(&self, x: &[f32], y: &mut [f32]) {
        let row = x.len() as f32;
        let mean = sum(
            x,
            #[inline(always)]
            |v| v,
        ) / row;
        let variance = sum(
            x,
            #[inline(always)]
            |v| (v - mean) * (v - mean),
        ) / row;
        let inverse = 1.0 / (variance + self.epsilon).sqrt();
        for (((x, y), scale), bias) in x.iter().zip(y).zip(&self.scale).zip(&self.bias) {
            *y = (x - mean) * inverse * scale + bias;
        }
    }
}

/// The sum of `f` over a row in sixteen partial sums: the order of additions is fixed, and the error stays small.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(*v);
    }
    lanes.iter().map(|&v| f64::from(v)).sum::<f64>() as f32
}

impl Op for LayerNorm {
    fn name(&self) -> StaticName {
        "LayerNormalization".into()
    }
    op_as_typed_op!();
}

impl EvalOp for LayerNorm {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let row = self.row(input.shape())?;
        let x = slice::<f32>(&input)?;
        filled::<f32>(input.shape(), |y| {
            let rows = x.chunks_exact(row).zip(y.chunks_exact_mut(row));
            widest(
                #[inline(always)]
                || {
                    for (x, y) in rows {
                        self.normalise(x, y);
                    }
                },
            );
            Ok(())
        })
    }
}

impl TypedOp for LayerNorm {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        if let Some(shape) = inputs[0].shape.as_concrete() {
            self.row(shape)?;
        }
        Ok(tvec!(f32::fact(inputs[0].shape.clone())))
    }
    as_op!();
}

/// Our LayerNormalization where scale and bias are constants; `None` leaves the node to tract.
pub(super) fn build(p: &Params<'_>) -> Result<Option<Built>, EngineError> {
    let (Ok(scale), Ok(bias)) = (p.constant(1), p.maybe_constant(2)) else { return Ok(None) };
    let (Ok(scale), Some(Ok(bias))) = (scale.to_vec::<f32>(), Some(bias.map_or(Ok(Vec::new()), |b| b.to_vec::<f32>()))) else {
        return Ok(None);
    };
    let bias = if bias.is_empty() { vec![0.0; scale.len()] } else { bias };
    if bias.len() != scale.len() {
        return Err(p.malformed(format!("its scale has {} elements and its bias {}", scale.len(), bias.len())));
    }
    let op = p.g.op(p.id);
    let epsilon = op.and_then(|op| op.attrs.float("epsilon")).unwrap_or(1e-5);
    let op = LayerNorm { axis: p.int("axis", -1), epsilon, scale, bias };
    Ok(Some(elementwise(op, p.data(0)?, Some(DatumType::F32), DatumType::F32)))
}
