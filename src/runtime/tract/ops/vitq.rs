//! The operators of domain `ai.vitq`: wrappers of the integer kernels. Their constants are inputs in the file and are read
//! once here.

use tract_onnx::tract_hir::internal::*;

use super::{Built, Params, elementwise, slice};
use crate::runtime::kernels::Code;
use crate::runtime::kernels::layer_norm::{PtfLayerNorm, ptf_layer_norm};
use crate::runtime::kernels::log_normalize::log_normalize;
use crate::runtime::kernels::log_softmax::{LogIntSoftmax, log_int_softmax};
use crate::runtime::kernels::lut::{lookup, lookup_by_channel};
use crate::runtime::tract::{EngineError, convert};

/// Runs `$body` with `$T` the Rust type of a code's element type.
macro_rules! with_code {
    ($dt:expr, $T:ident => $body:expr) => {
        match $dt {
            DatumType::I8 => {
                type $T = i8;
                $body
            }
            DatumType::U8 => {
                type $T = u8;
                $body
            }
            DatumType::I16 => {
                type $T = i16;
                $body
            }
            DatumType::U16 => {
                type $T = u16;
                $body
            }
            other => bail!("codes of element type {other:?}"),
        }
    };
}

fn output<T: Datum + Copy>(shape: &[usize], y: &[T]) -> TractResult<TVec<TValue>> {
    Ok(tvec!(Tensor::from_shape(shape, y)?.into_tvalue()))
}

/// `Lut`, `LutGelu` and `LogDequantize`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    name: &'static str,
    table: Tensor,
}

impl Op for Table {
    fn name(&self) -> StaticName {
        self.name.into()
    }
    op_as_typed_op!();
}

impl EvalOp for Table {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        with_code!(x.datum_type(), X => {
            let codes = slice::<X>(&x)?;
            if self.table.datum_type() == DatumType::F32 {
                output(x.shape(), &lookup(codes, slice::<f32>(&self.table)?)?)
            } else {
                with_code!(self.table.datum_type(), Y => output(x.shape(), &lookup(codes, slice::<Y>(&self.table)?)?))
            }
        })
    }
}

impl TypedOp for Table {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.table.datum_type().fact(inputs[0].shape.clone())))
    }
    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }
    fn change_axes(&self, m: &TypedModel, n: &TypedNode, _: InOut, c: &AxisOp) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(m, n, None, c)))
    }
    as_op!();
}

pub(super) fn table(p: &Params<'_>, name: &'static str) -> Result<Built, EngineError> {
    let table = convert::tensor(&*p.constant(1)?, || p.g.describe(p.id))?;
    let to = table.datum_type();
    if table.rank() != 1 {
        return Err(p.malformed(format!("its table has {} axes instead of one", table.rank())));
    }
    Ok(elementwise(Table { name, table }, p.data(0)?, None, to))
}

/// `ChannelLut` and `ChannelLutGelu` over the last axis.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ChannelTable {
    name: &'static str,
    table: Tensor,
    rows: Vec<i32>,
}

impl Op for ChannelTable {
    fn name(&self) -> StaticName {
        self.name.into()
    }
    op_as_typed_op!();
}

impl EvalOp for ChannelTable {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        ensure!(x.shape().last() == Some(&self.rows.len()), "rows for {} channels in shape {:?}", self.rows.len(), x.shape());
        with_code!(x.datum_type(), X => with_code!(self.table.datum_type(), Y => {
            let (codes, table) = (slice::<X>(&x)?, slice::<Y>(&self.table)?);
            ensure!(self.table.shape().last() == Some(&X::COUNT), "a table of shape {:?} for {:?}", self.table.shape(), x.datum_type());
            output(x.shape(), &lookup_by_channel(codes, table, &self.rows)?)
        }))
    }
}

impl TypedOp for ChannelTable {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.table.datum_type().fact(inputs[0].shape.clone())))
    }
    as_op!();
}

pub(super) fn channel_table(p: &Params<'_>, name: &'static str) -> Result<Built, EngineError> {
    let table = convert::tensor(&*p.constant(1)?, || p.g.describe(p.id))?;
    let to = table.datum_type();
    if table.rank() != 2 {
        return Err(p.malformed(format!("its table has {} axes instead of two", table.rank())));
    }
    Ok(elementwise(ChannelTable { name, table, rows: p.integers(2)? }, p.data(0)?, None, to))
}

/// `LogIntSoftmax` over the last axis.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Softmax {
    exp_table: Vec<i32>,
    log_step: i32,
    mantissa_table: Vec<i32>,
    bias: i32,
    shift: u32,
    top: i32,
}

impl Op for Softmax {
    fn name(&self) -> StaticName {
        "LogIntSoftmax".into()
    }
    op_as_typed_op!();
}

impl EvalOp for Softmax {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let n = x.shape().last().copied().unwrap_or(1);
        let constants = LogIntSoftmax {
            exp_table: &self.exp_table,
            log_step: self.log_step,
            mantissa_table: &self.mantissa_table,
            bias: self.bias,
            shift: self.shift,
            top: self.top,
        };
        let codes = match x.datum_type() {
            DatumType::I8 => log_int_softmax(slice::<i8>(&x)?, n, &constants)?,
            DatumType::U8 => log_int_softmax(slice::<u8>(&x)?, n, &constants)?,
            other => bail!("scores of element type {other:?}"),
        };
        output(x.shape(), &codes)
    }
}

impl TypedOp for Softmax {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(u8::fact(inputs[0].shape.clone())))
    }
    as_op!();
}

pub(super) fn log_int_softmax_op(p: &Params<'_>) -> Result<Built, EngineError> {
    let op = Softmax {
        exp_table: p.integers(1)?,
        log_step: p.integer(2)?,
        mantissa_table: p.integers(3)?,
        bias: p.integer(4)?,
        shift: p.integer(5)?,
        top: p.integer(6)?,
    };
    Ok(elementwise(op, p.data(0)?, None, DatumType::U8))
}

/// `LogNormalize` over the last axis.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Normalize {
    table: Vec<i32>,
}

impl Op for Normalize {
    fn name(&self) -> StaticName {
        "LogNormalize".into()
    }
    op_as_typed_op!();
}

impl EvalOp for Normalize {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let n = x.shape().last().copied().unwrap_or(1);
        let rows = with_code!(x.datum_type(), X => log_normalize(slice::<X>(&x)?, n, &self.table)?);
        let quotients = |(row, &sum): (&[i32], &i32)| row.iter().map(move |&w| w as f32 / sum as f32).collect::<Vec<_>>();
        let values: Vec<f32> = rows.weights.chunks_exact(n).zip(&rows.sums).flat_map(quotients).collect();
        output(x.shape(), &values)
    }
}

impl TypedOp for Normalize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(inputs[0].shape.clone())))
    }
    as_op!();
}

pub(super) fn log_normalize_op(p: &Params<'_>) -> Result<Built, EngineError> {
    Ok(elementwise(Normalize { table: p.integers(1)? }, p.data(0)?, None, DatumType::F32))
}

/// `PtfLayerNorm` over the last axis.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LayerNorm {
    x_zero_points: Vec<i64>,
    multiplier: Vec<i64>,
    eps: i64,
    gamma: Vec<i64>,
    beta: Vec<i64>,
    shift: u64,
    y_range: [i64; 2],
    to: DatumType,
}

impl Op for LayerNorm {
    fn name(&self) -> StaticName {
        "PtfLayerNorm".into()
    }
    op_as_typed_op!();
}

impl EvalOp for LayerNorm {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        ensure!(x.shape().last() == Some(&self.multiplier.len()), "{} channels in shape {:?}", self.multiplier.len(), x.shape());
        with_code!(x.datum_type(), X => with_code!(self.to, Y => {
            let zero_points = self.x_zero_points.iter().map(|&z| X::try_from(z)).collect::<Result<Vec<X>, _>>()?;
            let constants = PtfLayerNorm {
                x_zero_points: &zero_points,
                multiplier: &self.multiplier,
                eps: self.eps,
                gamma: &self.gamma,
                beta: &self.beta,
                shift: self.shift,
                y_range: [Y::try_from(self.y_range[0])?, Y::try_from(self.y_range[1])?],
            };
            output(x.shape(), &ptf_layer_norm(slice::<X>(&x)?, &constants)?)
        }))
    }
}

impl TypedOp for LayerNorm {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.to.fact(inputs[0].shape.clone())))
    }
    as_op!();
}

pub(super) fn ptf_layer_norm_op(p: &Params<'_>) -> Result<Built, EngineError> {
    let from = convert::datum_type(p.constant(1)?.dtype);
    let range = p.integers::<i64>(7)?;
    let (&[low, high], Some(to)) = (range.as_slice(), convert::datum_type(p.constant(7)?.dtype)) else {
        return Err(p.malformed("its y_range is not a pair of codes"));
    };
    let op = LayerNorm {
        x_zero_points: p.integers(1)?,
        multiplier: p.integers(2)?,
        eps: p.integer(3)?,
        gamma: p.integers(4)?,
        beta: p.integers(5)?,
        shift: p.integer(6)?,
        y_range: [low, high],
        to,
    };
    Ok(elementwise(op, p.data(0)?, from, to))
}
