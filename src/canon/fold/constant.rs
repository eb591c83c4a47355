//! `Constant` nodes.

use crate::ir::{AttrValue, Attrs, DType, Tensor, TensorData};

/// The tensor of a `Constant`'s attributes; `None` for sparse values and function attribute references.
pub(super) fn tensor(attrs: &Attrs) -> Option<Tensor> {
    let strings = |v: &[bytes::Bytes], shape: Vec<usize>| Tensor {
        dtype: DType::String,
        shape,
        data: TensorData::Strings(v.to_vec()),
        stored: crate::ir::Stored::Typed,
        doc: String::new(),
        metadata: vec![],
    };
    let form = attrs.iter().find(|a| a.name.starts_with("value"))?;
    Some(match &form.value {
        AttrValue::Tensor(t) => t.clone(),
        AttrValue::Int(v) => Tensor::scalar(*v),
        AttrValue::Ints(v) => Tensor::vector(v),
        AttrValue::Float(v) => Tensor::scalar(*v),
        AttrValue::Floats(v) => Tensor::vector(v),
        AttrValue::String(v) => strings(std::slice::from_ref(v), vec![]),
        AttrValue::Strings(v) => strings(v, vec![v.len()]),
        _ => return None,
    })
}
