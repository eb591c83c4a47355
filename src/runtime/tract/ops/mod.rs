//! Operators that tract lacks or computes differently, on tract's traits. Their parameters are read from the graph when the
//! plan is made, so that tract sees an operator of one input.

mod erf;
mod layer_norm;
mod linear;
#[cfg(test)]
mod tests;
mod vitq;
mod wall;

use tract_onnx::tract_hir::internal::*;

pub(super) use wall::wall;

use super::{EngineError, convert};
use crate::ir::{AI_ONNX, AI_VITQ, DType, Graph, NodeId, Tensor as Constant, Value};

/// The operators of domain `ai.vitq` that are implemented here.
pub(super) const VITQ_OPS: &[&str] =
    &["PtfLayerNorm", "LogIntSoftmax", "LogDequantize", "LogNormalize", "LutGelu", "Lut", "ChannelLutGelu", "ChannelLut"];

/// An operator of ours and the values that it reads at run time.
pub(super) struct Built {
    pub(super) op: Box<dyn InferenceOp>,
    pub(super) inputs: Vec<Value>,
}

/// Our implementation of a node, if there is one.
pub(super) fn build(g: &Graph, id: NodeId) -> Result<Option<Built>, EngineError> {
    let Some(op) = g.op(id) else { return Ok(None) };
    let p = Params { g, id };
    let built = match (op.op.canonical_domain(), op.op.op_type.as_str()) {
        (AI_ONNX, "QuantizeLinear") => linear::quantize(&p)?,
        (AI_ONNX, "DequantizeLinear") => linear::dequantize(&p)?,
        (AI_ONNX, "LayerNormalization") => return layer_norm::build(&p),
        (AI_ONNX, "Erf") => erf::build(&p, erf::Function::Erf)?,
        (AI_ONNX, "Gelu") if op.attrs.str("approximate") != Some("tanh") => erf::build(&p, erf::Function::Gelu)?,
        (AI_VITQ, "PtfLayerNorm") => vitq::ptf_layer_norm_op(&p)?,
        (AI_VITQ, "LogIntSoftmax") => vitq::log_int_softmax_op(&p)?,
        (AI_VITQ, "LogDequantize") => vitq::table(&p, "LogDequantize")?,
        (AI_VITQ, "LogNormalize") => vitq::log_normalize_op(&p)?,
        (AI_VITQ, "LutGelu") => vitq::table(&p, "LutGelu")?,
        (AI_VITQ, "Lut") => vitq::table(&p, "Lut")?,
        (AI_VITQ, "ChannelLutGelu") => vitq::channel_table(&p, "ChannelLutGelu")?,
        (AI_VITQ, "ChannelLut") => vitq::channel_table(&p, "ChannelLut")?,
        _ => return Ok(None),
    };
    Ok(Some(built))
}

/// A typed operator of one input, with the element type of its output; the shape is the input's.
fn elementwise<O: TypedOp>(op: O, input: Value, from: Option<DatumType>, to: DatumType) -> Built {
    let op = inference_wrap(op, 1, move |_, s, inputs, outputs| {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        if let Some(from) = from {
            s.equals(&inputs[0].datum_type, from)?;
        }
        s.equals(&outputs[0].datum_type, to)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)
    });
    Built { op, inputs: vec![input] }
}

/// The inputs of a node, with errors that name it.
struct Params<'g> {
    g: &'g Graph,
    id: NodeId,
}

impl<'g> Params<'g> {
    fn malformed(&self, what: impl Into<String>) -> EngineError {
        EngineError::Malformed { node: self.g.describe(self.id), what: what.into() }
    }

    fn unsupported(&self, what: impl Into<String>, advice: &'static str) -> EngineError {
        EngineError::Unsupported { node: self.g.describe(self.id), what: what.into(), advice }
    }

    /// An integer attribute or its default.
    fn int(&self, name: &str, default: i64) -> i64 {
        self.g.op(self.id).and_then(|op| op.attrs.int(name)).unwrap_or(default)
    }

    /// A value that changes from run to run.
    fn data(&self, port: u32) -> Result<Value, EngineError> {
        self.g.input(self.id, port).ok_or_else(|| self.malformed(format!("its input {port} is missing")))
    }

    /// A constant, if the input is connected.
    fn maybe_constant(&self, port: u32) -> Result<Option<std::borrow::Cow<'g, Constant>>, EngineError> {
        let Some(value) = self.g.input(self.id, port) else { return Ok(None) };
        let found = convert::constant(self.g, value);
        found.map(Some).ok_or_else(|| EngineError::NotConstant {
            node: self.g.describe(self.id),
            input: self.g.value_name(value).to_owned(),
        })
    }

    /// A constant that must be there.
    fn constant(&self, port: u32) -> Result<std::borrow::Cow<'g, Constant>, EngineError> {
        self.maybe_constant(port)?.ok_or_else(|| self.malformed(format!("its input {port} is missing")))
    }

    /// The elements of a float32 constant.
    fn floats(&self, port: u32) -> Result<Vec<f32>, EngineError> {
        let t = self.constant(port)?;
        match t.dtype {
            DType::F32 => t.to_vec::<f32>().map_err(|e| self.malformed(e.to_string())),
            other => Err(self.unsupported(format!("its input {port} is {other}"), "convert the model to float32")),
        }
    }

    /// The elements of an integer constant in a type that must hold them.
    fn integers<T: TryFrom<i64>>(&self, port: u32) -> Result<Vec<T>, EngineError> {
        let t = self.constant(port)?;
        let fit = |v: Vec<i64>| v.into_iter().map(|v| T::try_from(v).ok()).collect::<Option<Vec<T>>>();
        convert::integers(&t).and_then(fit).ok_or_else(|| {
            self.malformed(format!("its input {port} ({}) does not hold integers of the range that the operator takes", t.dtype))
        })
    }

    /// The single element of an integer constant.
    fn integer<T: TryFrom<i64> + Copy>(&self, port: u32) -> Result<T, EngineError> {
        match self.integers::<T>(port)?.as_slice() {
            [v] => Ok(*v),
            list => Err(self.malformed(format!("its input {port} has {} elements instead of one", list.len()))),
        }
    }
}

/// The elements of a tensor.
fn slice<T: Datum>(t: &Tensor) -> TractResult<&[T]> {
    t.try_as_plain_ram()?.as_slice::<T>()
}

/// A new tensor of a shape, filled by `fill`.
fn filled<T: Datum>(shape: &[usize], fill: impl FnOnce(&mut [T]) -> TractResult<()>) -> TractResult<TVec<TValue>> {
    let mut out = Tensor::zero_dt(T::datum_type(), shape)?;
    fill(out.try_as_plain_ram_mut()?.as_slice_mut::<T>()?)?;
    Ok(tvec!(out.into_tvalue()))
}
