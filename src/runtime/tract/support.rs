//! What the executor implements. tract ignores attributes that it does not know and computes something else, so every node
//! is held against this table before tract sees it; what is not listed is an error that names the node.

use super::EngineError;
use crate::ir::{AI_ONNX, AI_VITQ, AttrValue, DType, Graph, NodeId};

/// Which values of an attribute are implemented.
#[derive(Debug, Clone, Copy)]
enum Accept {
    /// Every value.
    Any,
    /// These integers.
    Int(&'static [i64]),
    /// These strings.
    Str(&'static [&'static str]),
    /// An element type that the executor holds.
    Type,
}
use Accept::{Any, Int, Str, Type};

/// Operators of one domain that take the same attributes, and how many outputs they may have.
struct Row {
    domain: &'static str,
    op_types: &'static [&'static str],
    attrs: &'static [(&'static str, Accept)],
    outputs: usize,
}

const fn row(
    domain: &'static str,
    op_types: &'static [&'static str],
    attrs: &'static [(&'static str, Accept)],
    outputs: usize,
) -> Row {
    Row { domain, op_types, attrs, outputs }
}

const AUTO_PAD: Accept = Str(&["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]);
const ZERO: Accept = Int(&[0]);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row(AI_ONNX, &[
        "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual",
        "LessOrEqual", "Where", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Not", "Abs", "Neg", "Sign", "Ceil", "Floor",
        "Round", "Sqrt", "Exp", "Log", "Erf", "Tanh", "Sin", "Cos", "Reciprocal", "Relu", "Sigmoid", "HardSwish", "Softplus",
        "Identity", "MatMul", "GlobalAveragePool", "GlobalMaxPool", "Expand", "Tile", "Size", "Range",
    ], &[], 1),
    row(AI_ONNX, &["BitShift"], &[("direction", Str(&["LEFT", "RIGHT"]))], 1),
    row(AI_ONNX, &["Mod"], &[("fmod", Int(&[0, 1]))], 1),
    row(AI_ONNX, &["Clip"], &[("min", Any), ("max", Any)], 1),
    row(AI_ONNX, &["HardSigmoid"], &[("alpha", Any), ("beta", Any)], 1),
    row(AI_ONNX, &["LeakyRelu", "Elu"], &[("alpha", Any)], 1),
    row(AI_ONNX, &["Softmax", "LogSoftmax", "Flatten", "Gather", "GatherElements", "Concat"], &[("axis", Any)], 1),
    row(AI_ONNX, &["Gelu"], &[("approximate", Str(&["none", "tanh"]))], 1),
    row(AI_ONNX, &["Dropout"], &[("ratio", Any), ("seed", Any)], 1),
    row(AI_ONNX, &["LayerNormalization"], &[("axis", Any), ("epsilon", Any), ("stash_type", Int(&[1]))], 1),
    row(AI_ONNX, &["RMSNormalization"], &[("axis", Any), ("epsilon", Any), ("stash_type", Int(&[1]))], 1),
    row(AI_ONNX, &["BatchNormalization"],
        &[("epsilon", Any), ("momentum", Any), ("spatial", Int(&[1])), ("training_mode", ZERO)], 1),
    row(AI_ONNX, &["InstanceNormalization"], &[("epsilon", Any)], 1),
    row(AI_ONNX, &["Gemm"], &[("alpha", Any), ("beta", Any), ("transA", Int(&[0, 1])), ("transB", Int(&[0, 1]))], 1),
    row(AI_ONNX, &["Einsum"], &[("equation", Any)], 1),
    row(AI_ONNX, &["Conv"],
        &[("auto_pad", AUTO_PAD), ("dilations", Any), ("group", Any), ("kernel_shape", Any), ("pads", Any), ("strides", Any)], 1),
    row(AI_ONNX, &["MaxPool"],
        &[("auto_pad", AUTO_PAD), ("ceil_mode", ZERO), ("dilations", Any), ("kernel_shape", Any), ("pads", Any),
          ("storage_order", ZERO), ("strides", Any)], 1),
    row(AI_ONNX, &["AveragePool"],
        &[("auto_pad", AUTO_PAD), ("ceil_mode", ZERO), ("count_include_pad", Int(&[0, 1])), ("dilations", Any),
          ("kernel_shape", Any), ("pads", Any), ("strides", Any)], 1),
    row(AI_ONNX, &["Reshape"], &[("allowzero", Int(&[0, 1]))], 1),
    row(AI_ONNX, &["Transpose"], &[("perm", Any)], 1),
    row(AI_ONNX, &["Slice"], &[("axes", Any), ("starts", Any), ("ends", Any)], 1),
    row(AI_ONNX, &["Split"], &[("axis", Any), ("split", Any), ("num_outputs", Any)], usize::MAX),
    row(AI_ONNX, &["Squeeze", "Unsqueeze"], &[("axes", Any)], 1),
    row(AI_ONNX, &["Shape"], &[("start", Any), ("end", Any)], 1),
    row(AI_ONNX, &["ConstantOfShape"], &[("value", Any)], 1),
    row(AI_ONNX, &["Constant"],
        &[("value", Any), ("value_float", Any), ("value_floats", Any), ("value_int", Any), ("value_ints", Any)], 1),
    row(AI_ONNX, &["Pad"], &[("mode", Str(&["constant", "reflect", "edge"])), ("pads", Any), ("value", Any)], 1),
    row(AI_ONNX, &["Cast"], &[("to", Type), ("saturate", Any)], 1),
    row(AI_ONNX, &["CastLike"], &[("saturate", Any)], 1),
    row(AI_ONNX, &["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"],
        &[("axes", Any), ("keepdims", Int(&[0, 1])), ("noop_with_empty_axes", Int(&[0, 1]))], 1),
    row(AI_ONNX, &["ArgMax", "ArgMin"],
        &[("axis", Any), ("keepdims", Int(&[0, 1])), ("select_last_index", Int(&[0, 1]))], 1),
    // Ours, in `ops`.
    row(AI_ONNX, &["QuantizeLinear"],
        &[("axis", Any), ("saturate", Any), ("block_size", ZERO), ("output_dtype", Any), ("precision", Int(&[0, 1]))], 1),
    row(AI_ONNX, &["DequantizeLinear"], &[("axis", Any), ("block_size", ZERO), ("output_dtype", Int(&[0, 1]))], 1),
    row(AI_VITQ, super::ops::VITQ_OPS, &[], 1),
];

/// Element types that values may have. Four-bit types are held as eight bits.
pub(super) fn holds(dtype: DType) -> bool {
    use DType::*;
    matches!(dtype, F32 | F64 | Bool | U4 | I4 | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// Holds one operator against the table.
pub(super) fn check(g: &Graph, id: NodeId, has_function: impl Fn(&crate::ir::OpName) -> bool) -> Result<(), EngineError> {
    let (Some(node), Some(op)) = (g.get(id), g.op(id)) else { return Ok(()) };
    let refuse = |what: String, advice| Err(EngineError::Unsupported { node: g.describe(id), what, advice });
    let domain = op.op.canonical_domain();
    let Some(row) = TABLE.iter().find(|r| r.domain == domain && r.op_types.contains(&op.op.op_type.as_str())) else {
        return if has_function(&op.op) {
            refuse(format!("{} is a function that the model defines", op.op), "inline the model's functions first")
        } else {
            let place = if domain.is_empty() { "the standard domain".to_owned() } else { format!("domain '{domain}'") };
            refuse(
                format!("the operator {} of {place} is not implemented", op.op.op_type),
                "rewrite it with standard operators, or run the model in onnxruntime",
            )
        };
    };
    const ATTR: &str = "rewrite the node without it, or run the model in onnxruntime";
    for a in op.attrs.iter() {
        let Some((_, accept)) = row.attrs.iter().find(|(name, _)| *name == a.name) else {
            return refuse(format!("its attribute '{}' is not implemented", a.name), ATTR);
        };
        let ok = match (accept, &a.value) {
            (_, AttrValue::Ref(..) | AttrValue::Opaque(_) | AttrValue::Graph(_) | AttrValue::Graphs(_)) => false,
            (Any, _) => true,
            (Int(list), AttrValue::Int(v)) => list.contains(v),
            (Str(list), AttrValue::String(v)) => list.iter().any(|s| s.as_bytes() == v.as_ref()),
            (Type, AttrValue::Int(v)) => {
                let dtype = i32::try_from(*v).ok().and_then(DType::from_onnx);
                dtype.is_some_and(|d| holds(d) && d.bits() >= 8)
            }
            _ => false,
        };
        if !ok {
            return refuse(format!("the value {} of its attribute '{}' is not implemented", show(&a.value), a.name), ATTR);
        }
    }
    let outputs = node.outputs.iter().rposition(|o| !o.is_empty()).map_or(0, |p| p + 1);
    if outputs > row.outputs {
        return refuse(
            format!("only the first output of {} is implemented, and the node has {outputs}", op.op),
            "remove the other outputs if nothing reads them",
        );
    }
    Ok(())
}

/// An attribute's value for messages.
fn show(v: &AttrValue) -> String {
    match v {
        AttrValue::Float(v) => v.to_string(),
        AttrValue::Int(v) => v.to_string(),
        AttrValue::String(v) => format!("'{}'", String::from_utf8_lossy(v)),
        AttrValue::Ref(name, _) => format!("(a reference to '{name}')"),
        _ => "given".to_owned(),
    }
}
