//! Element types of outputs.

use super::ctx::Ctx;
use crate::ir::{AttrValue, DType};

/// The element type of one output.
pub(super) type DTypeFn = fn(&Ctx, usize) -> Option<DType>;

pub(super) fn like0(c: &Ctx, _: usize) -> Option<DType> {
    c.dtype(0)
}

pub(super) fn like1(c: &Ctx, _: usize) -> Option<DType> {
    c.dtype(1)
}

pub(super) fn like2(c: &Ctx, _: usize) -> Option<DType> {
    c.dtype(2)
}

pub(super) fn like7(c: &Ctx, _: usize) -> Option<DType> {
    c.dtype(7)
}

pub(super) fn bool_(_: &Ctx, _: usize) -> Option<DType> {
    Some(DType::Bool)
}

pub(super) fn i64_(_: &Ctx, _: usize) -> Option<DType> {
    Some(DType::I64)
}

pub(super) fn i32_(_: &Ctx, _: usize) -> Option<DType> {
    Some(DType::I32)
}

pub(super) fn f32_(_: &Ctx, _: usize) -> Option<DType> {
    Some(DType::F32)
}

pub(super) fn u8_(_: &Ctx, _: usize) -> Option<DType> {
    Some(DType::U8)
}

/// Operands of one type, of which any may be the known one.
pub(super) fn any(c: &Ctx, _: usize) -> Option<DType> {
    (0..c.arity()).find_map(|i| c.dtype(i))
}

/// `Where`: inputs 1 and 2.
pub(super) fn branches(c: &Ctx, _: usize) -> Option<DType> {
    c.dtype(1).or_else(|| c.dtype(2))
}

/// `MaxPool`, `TopK`: values, then int64 positions.
pub(super) fn with_index(c: &Ctx, port: usize) -> Option<DType> {
    if port == 0 { c.dtype(0) } else { Some(DType::I64) }
}

/// `Dropout`: values, then a mask that was of the data's type before operator set 10.
pub(super) fn with_mask(c: &Ctx, port: usize) -> Option<DType> {
    if port == 0 || c.opset < 10 { c.dtype(0) } else { Some(DType::Bool) }
}

/// `LayerNormalization`: values, then statistics of the stash type.
pub(super) fn with_stash(c: &Ctx, port: usize) -> Option<DType> {
    if port == 0 { c.dtype(0) } else { named(c, "stash_type").or(Some(DType::F32)) }
}

/// `DynamicQuantizeLinear`: codes, scale, zero point.
pub(super) fn dynamic_quantize(_: &Ctx, port: usize) -> Option<DType> {
    Some(if port == 1 { DType::F32 } else { DType::U8 })
}

fn named(c: &Ctx, attr: &str) -> Option<DType> {
    DType::from_onnx(i32::try_from(c.op.attrs.int(attr)?).ok()?)
}

/// `Cast`.
pub(super) fn to(c: &Ctx, _: usize) -> Option<DType> {
    named(c, "to")
}

/// An attribute `dtype`, else the type of input 0, else float.
pub(super) fn attribute(c: &Ctx, _: usize) -> Option<DType> {
    named(c, "dtype").or_else(|| c.dtype(0)).or(if c.arity() == 0 { Some(DType::F32) } else { None })
}

/// `QuantizeLinear`: of the zero point, else an attribute, else uint8.
pub(super) fn quantized(c: &Ctx, _: usize) -> Option<DType> {
    if c.has(2) { c.dtype(2) } else { named(c, "output_dtype").or(Some(DType::U8)) }
}

/// `DequantizeLinear`: of the scale, else an attribute.
pub(super) fn dequantized(c: &Ctx, _: usize) -> Option<DType> {
    named(c, "output_dtype").or_else(|| c.dtype(1))
}

/// `ConstantOfShape`: of the value, which is a float 0 when it is left out.
pub(super) fn fill(c: &Ctx, _: usize) -> Option<DType> {
    match c.op.attrs.get("value") {
        None => Some(DType::F32),
        Some(AttrValue::Tensor(t)) => Some(t.dtype),
        Some(_) => None,
    }
}

/// `Constant`.
pub(super) fn constant(c: &Ctx, _: usize) -> Option<DType> {
    match &c.op.attrs.iter().find(|a| a.name.starts_with("value"))?.value {
        AttrValue::Tensor(t) => Some(t.dtype),
        AttrValue::Int(_) | AttrValue::Ints(_) => Some(DType::I64),
        AttrValue::Float(_) | AttrValue::Floats(_) => Some(DType::F32),
        AttrValue::String(_) | AttrValue::Strings(_) => Some(DType::String),
        _ => None,
    }
}
