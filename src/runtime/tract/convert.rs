//! Tensors, element types and nodes of the IR in tract's types.

use std::borrow::Cow;

use tract_onnx::pb;
use tract_onnx::tract_core::internal as tc;

use super::{EngineError, support};
use crate::ir::{AttrValue, DType, Graph, NodeId, NodeKind, Tensor, TensorData, Value};

/// tract's element type; four-bit types are held as eight bits.
pub(super) fn datum_type(dtype: DType) -> Option<tc::DatumType> {
    use tc::DatumType as D;
    Some(match dtype {
        DType::F16 => D::F16,
        DType::F32 => D::F32,
        DType::F64 => D::F64,
        DType::Bool => D::Bool,
        DType::U8 | DType::U4 => D::U8,
        DType::I8 | DType::I4 => D::I8,
        DType::U16 => D::U16,
        DType::I16 => D::I16,
        DType::U32 => D::U32,
        DType::I32 => D::I32,
        DType::U64 => D::U64,
        DType::I64 => D::I64,
        _ => return None,
    })
}

/// Packed four-bit elements as one byte each, sign-extended for `int4`.
fn unpack_nibbles(t: &Tensor) -> Vec<u8> {
    let widen = |n: u8| if t.dtype == DType::I4 && n & 8 != 0 { n | 0xf0 } else { n };
    t.bytes().iter().flat_map(|b| [widen(b & 0xf), widen(b >> 4)]).take(t.len()).collect()
}

/// The one copy of a constant that tract works on.
pub(super) fn tensor(t: &Tensor, what: impl Fn() -> String) -> Result<tc::Tensor, EngineError> {
    let refuse = || EngineError::Unsupported {
        node: what(),
        what: format!("element type {} is not implemented", t.dtype),
        advice: "convert the model to float32",
    };
    let dt = datum_type(t.dtype).filter(|_| support::holds(t.dtype)).ok_or_else(refuse)?;
    let bytes: Cow<'_, [u8]> = match (&t.data, t.dtype) {
        (TensorData::Strings(_), _) => return Err(refuse()),
        (_, DType::I4 | DType::U4) => unpack_nibbles(t).into(),
        // A Rust bool that is neither 0 nor 1 is undefined.
        (_, DType::Bool) => t.bytes().iter().map(|&b| u8::from(b != 0)).collect::<Vec<_>>().into(),
        (TensorData::Bytes(b), _) => b.as_ref().into(),
    };
    // SAFETY: `ir::Tensor` holds exactly the bytes that shape and type need, and every bit pattern of these types is valid.
    unsafe { tc::Tensor::from_raw_dt(dt, &t.shape, &bytes) }.map_err(|e| EngineError::Load(super::error::one_line(&e)))
}

/// The integers of a zero point or of another constant of codes.
pub(super) fn integers(t: &Tensor) -> Option<Vec<i64>> {
    match t.dtype {
        DType::I4 => Some(unpack_nibbles(t).into_iter().map(|b| i64::from(b as i8)).collect()),
        DType::U4 => Some(unpack_nibbles(t).into_iter().map(i64::from).collect()),
        _ => t.to_i64().ok(),
    }
}

/// The constant that a value is: an initialiser or a `Constant` node, seen through `Identity`. An initialiser that is also
/// a graph input keeps its default here, as the executor offers no way to override it.
pub(super) fn constant(g: &Graph, value: Value) -> Option<Cow<'_, Tensor>> {
    let mut value = value;
    loop {
        let node = g.get(value.node)?;
        let op = match &node.kind {
            NodeKind::Init(t) => return Some(Cow::Borrowed(t)),
            NodeKind::Op(op) => op,
            NodeKind::Input | NodeKind::SparseInit(_) => return None,
        };
        if op.op.is("Identity") {
            value = g.input(value.node, 0)?;
            continue;
        }
        if !op.op.is("Constant") {
            return None;
        }
        return op.attrs.iter().find_map(|a| match (a.name.as_str(), &a.value) {
            ("value", AttrValue::Tensor(t)) => Some(Cow::Borrowed(t)),
            ("value_float", AttrValue::Float(v)) => Some(Cow::Owned(Tensor::scalar(*v))),
            ("value_floats", AttrValue::Floats(v)) => Some(Cow::Owned(Tensor::vector(v))),
            ("value_int", AttrValue::Int(v)) => Some(Cow::Owned(Tensor::scalar(*v))),
            ("value_ints", AttrValue::Ints(v)) => Some(Cow::Owned(Tensor::vector(v))),
            _ => None,
        });
    }
}

/// A node as tract's operator builders read it. Trailing absent inputs are left out: the builders count inputs.
pub(super) fn node(g: &Graph, id: NodeId) -> Result<pb::NodeProto, EngineError> {
    let (Some(node), Some(op)) = (g.get(id), g.op(id)) else { return Ok(pb::NodeProto::default()) };
    let mut input: Vec<String> =
        g.inputs_of(id).into_iter().map(|v| v.map_or_else(String::new, |v| g.value_name(v).to_owned())).collect();
    while input.last().is_some_and(String::is_empty) {
        input.pop();
    }
    Ok(pb::NodeProto {
        input,
        output: node.outputs.clone(),
        name: op.name.clone(),
        op_type: op.op.op_type.clone(),
        domain: op.op.domain.clone(),
        attribute: op.attrs.iter().map(|a| attribute(g, id, &a.name, &a.value)).collect::<Result<_, _>>()?,
        doc_string: String::new(),
    })
}

fn attribute(g: &Graph, id: NodeId, name: &str, value: &AttrValue) -> Result<pb::AttributeProto, EngineError> {
    use pb::attribute_proto::AttributeType as Ty;
    let mut p = pb::AttributeProto { name: name.to_owned(), ..pb::AttributeProto::default() };
    let ty = match value {
        AttrValue::Float(v) => (p.f = *v, Ty::Float).1,
        AttrValue::Int(v) => (p.i = *v, Ty::Int).1,
        AttrValue::String(v) => (p.s = v.to_vec(), Ty::String).1,
        AttrValue::Floats(v) => (p.floats.clone_from(v), Ty::Floats).1,
        AttrValue::Ints(v) => (p.ints.clone_from(v), Ty::Ints).1,
        AttrValue::Strings(v) => (p.strings = v.iter().map(|s| s.to_vec()).collect(), Ty::Strings).1,
        AttrValue::Tensor(t) if support::holds(t.dtype) && t.dtype.bits() >= 8 => {
            p.t = Some(pb::TensorProto {
                dims: t.shape.iter().map(|&d| d as i64).collect(),
                data_type: t.dtype.to_onnx(),
                raw_data: t.bytes().to_vec(),
                ..pb::TensorProto::default()
            });
            Ty::Tensor
        }
        _ => {
            return Err(EngineError::Unsupported {
                node: g.describe(id),
                what: format!("the value of its attribute '{name}' is of a kind that is not implemented"),
                advice: "rewrite the node without it, or run the model in onnxruntime",
            });
        }
    };
    p.r#type = ty as i32;
    Ok(p)
}
