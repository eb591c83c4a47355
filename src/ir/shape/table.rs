//! Which functions infer which operator.

use super::contents::{self as values, ContentsFn};
use super::ctx::{Ctx, Known};
use super::dtype::{self, DTypeFn};
use super::{Shape, conv, elementwise as ew, index, layout, linear, reduce, slice, source};
use crate::ir::{AI_ONNX, AI_VITQ, COM_MICROSOFT, OpName};

/// The shapes of a node's outputs.
pub(super) type ShapeFn = fn(&Ctx) -> Known<Vec<Option<Shape>>>;

/// How an operator is inferred.
pub(super) struct Entry {
    pub(super) dtype: DTypeFn,
    pub(super) shape: ShapeFn,
    pub(super) contents: Option<ContentsFn>,
}

fn entry(dtype: DTypeFn, shape: ShapeFn) -> Option<Entry> {
    Some(Entry { dtype, shape, contents: None })
}

fn followed(dtype: DTypeFn, shape: ShapeFn, contents: ContentsFn) -> Option<Entry> {
    Some(Entry { dtype, shape, contents: Some(contents) })
}

/// The entry of an operator, if it is known.
pub(super) fn lookup(op: &OpName) -> Option<Entry> {
    match op.canonical_domain() {
        AI_ONNX => standard(&op.op_type),
        AI_VITQ => custom(&op.op_type),
        COM_MICROSOFT => contributed(&op.op_type),
        _ => None,
    }
}

#[rustfmt::skip] // A table: one row a line.
fn standard(op: &str) -> Option<Entry> {
    match op {
        "Abs" | "Neg" | "Max" | "Min" | "Sum" | "Add" | "Sub" | "Mul" | "Div" => followed(dtype::any, ew::broadcast, values::elementwise),
        "Mod" => followed(dtype::any, ew::broadcast, values::elementwise),
        "And" | "Or" | "Not" | "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" =>
            followed(dtype::bool_, ew::broadcast, values::elementwise),
        "Where" => followed(dtype::branches, ew::broadcast, values::elementwise),
        "Xor" => entry(dtype::bool_, ew::broadcast),
        "Pow" => entry(dtype::like0, ew::broadcast),
        "Mean" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => entry(dtype::any, ew::broadcast),
        "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "Cos" | "Cosh" | "Sin" | "Sinh" | "Tan" | "Tanh" | "Ceil"
        | "Floor" | "Round" | "Sign" | "Exp" | "Log" | "Sqrt" | "Reciprocal" | "Erf" | "Sigmoid" | "HardSigmoid" | "HardSwish"
        | "Swish" | "Mish" | "Elu" | "Selu" | "Celu" | "Gelu" | "Relu" | "LeakyRelu" | "PRelu" | "ThresholdedRelu" | "Softplus"
        | "Softsign" | "Shrink" | "BitwiseNot" | "Clip" | "Softmax" | "LogSoftmax" | "Hardmax" | "Trilu" | "CumSum"
        | "InstanceNormalization" | "GroupNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" | "LpNormalization" | "MeanVarianceNormalization" | "LRN"
        | "Scatter" | "ScatterND" | "ScatterElements" | "ReverseSequence" | "RotaryEmbedding" | "TensorScatter" =>
            entry(dtype::like0, ew::same),
        "Identity" => followed(dtype::like0, ew::same, values::same),
        "IsNaN" | "IsInf" => entry(dtype::bool_, ew::same),
        "Dropout" => entry(dtype::with_mask, ew::same),
        "Cast" => followed(dtype::to, ew::same, values::cast),
        "CastLike" => entry(dtype::like1, ew::same),
        "Bernoulli" | "RandomNormalLike" | "RandomUniformLike" | "EyeLike" => entry(dtype::attribute, ew::same),
        "QuantizeLinear" => entry(dtype::quantized, ew::same),
        "DequantizeLinear" => entry(dtype::dequantized, ew::same),
        "DynamicQuantizeLinear" => entry(dtype::dynamic_quantize, ew::dynamic_quantize),
        "LayerNormalization" => entry(dtype::with_stash, ew::layer_norm),
        "BatchNormalization" => entry(dtype::like0, ew::batch_norm),

        "MatMul" => entry(dtype::any, linear::matmul),
        "MatMulInteger" => entry(dtype::i32_, linear::matmul),
        "QLinearMatMul" => entry(dtype::like7, linear::qlinear_matmul),
        "Gemm" => entry(dtype::any, linear::gemm),
        "Einsum" => entry(dtype::any, linear::einsum),
        "Attention" => entry(dtype::like0, linear::attention),
        "Conv" => entry(dtype::like0, conv::conv),
        "ConvInteger" => entry(dtype::i32_, conv::conv),
        "QLinearConv" => entry(dtype::like7, conv::qlinear_conv),
        "ConvTranspose" => entry(dtype::like0, conv::conv_transpose),
        "MaxPool" => entry(dtype::with_index, conv::pool),
        "AveragePool" | "LpPool" => entry(dtype::like0, conv::pool),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => entry(dtype::like0, conv::global_pool),
        "Resize" | "Upsample" => entry(dtype::like0, conv::resize),
        "DepthToSpace" | "SpaceToDepth" => entry(dtype::like0, conv::depth_space),

        "ReduceSum" | "ReduceProd" | "ReduceMax" | "ReduceMin" => followed(dtype::like0, reduce::reduce, values::reduce),
        "ReduceMean" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" =>
            entry(dtype::like0, reduce::reduce),
        "ArgMax" | "ArgMin" => entry(dtype::i64_, reduce::arg),
        "TopK" => entry(dtype::with_index, reduce::top_k),

        "Reshape" => followed(dtype::like0, layout::reshape, values::same),
        "Flatten" => followed(dtype::like0, layout::flatten, values::same),
        "Squeeze" => followed(dtype::like0, layout::squeeze, values::same),
        "Unsqueeze" => followed(dtype::like0, layout::unsqueeze, values::same),
        "Transpose" => followed(dtype::like0, layout::transpose, values::transpose),
        "Concat" => followed(dtype::any, layout::concat, values::concat),
        "Split" => followed(dtype::like0, layout::split, values::split),
        "Slice" => followed(dtype::like0, slice::slice, values::slice),
        "Expand" => followed(dtype::like0, layout::expand, values::repeat),
        "Tile" => followed(dtype::like0, layout::tile, values::repeat),
        "Pad" => entry(dtype::like0, layout::pad),
        "Gather" => followed(dtype::like0, index::gather, values::gather),
        "GatherElements" => entry(dtype::like0, index::like_indices),
        "GatherND" => entry(dtype::like0, index::gather_nd),
        "OneHot" => entry(dtype::like2, index::one_hot),
        "NonZero" => entry(dtype::i64_, index::non_zero),

        "Constant" => followed(dtype::constant, source::constant, values::constant),
        "ConstantOfShape" => followed(dtype::fill, source::of_contents, values::constant_of_shape),
        "Shape" => followed(dtype::i64_, source::shape, values::shape),
        "Size" => followed(dtype::i64_, source::scalar, values::size),
        "Range" => followed(dtype::any, source::range, values::range),
        "RandomNormal" | "RandomUniform" => entry(dtype::attribute, source::of_attribute),
        _ => None,
    }
}

/// Our own operators.
fn custom(op: &str) -> Option<Entry> {
    match op {
        // x, table, and rows a channel: the element type is the table's.
        "Lut" | "LutGelu" | "ChannelLut" | "ChannelLutGelu" | "LogDequantize" => entry(dtype::like1, ew::same),
        "LogNormalize" => entry(dtype::f32_, ew::same),
        "LogIntSoftmax" => entry(dtype::u8_, ew::same),
        "PtfLayerNorm" => entry(ptf_layer_norm, ew::same),
        _ => None,
    }
}

/// `PtfLayerNorm`: the last input is `y_range`, whose element type is the output's.
fn ptf_layer_norm(c: &Ctx, _: usize) -> Option<crate::ir::DType> {
    c.dtype(c.arity().checked_sub(1)?)
}

/// Operators that onnxruntime adds.
fn contributed(op: &str) -> Option<Entry> {
    match op {
        "Gelu"
        | "FastGelu"
        | "BiasGelu"
        | "QuickGelu"
        | "BiasAdd"
        | "BiasSoftmax"
        | "SkipLayerNormalization"
        | "SkipSimplifiedLayerNormalization" => entry(dtype::like0, ew::same),
        "Attention" => entry(dtype::like0, linear::packed_attention),
        "MultiHeadAttention" => entry(dtype::like0, linear::multi_head_attention),
        "FusedMatMul" | "TransposeMatMul" => entry(dtype::any, linear::fused_matmul),
        "FusedGemm" => entry(dtype::any, linear::gemm),
        "GemmFastGelu" => entry(dtype::any, linear::matmul),
        "FusedConv" => entry(dtype::like0, conv::conv),
        _ => None,
    }
}
