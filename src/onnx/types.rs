//! Value types and key-value metadata.

use prost::Message;

use super::proto::{
    StringStringEntryProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension::Value as DimValue, type_proto,
};
use crate::ir::{DType, Dim, TensorType, Type, ValueInfo};

pub(super) fn import_entries(entries: Vec<StringStringEntryProto>) -> Vec<(String, String)> {
    entries.into_iter().map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default())).collect()
}

pub(super) fn export_entries(entries: &[(String, String)]) -> Vec<StringStringEntryProto> {
    entries.iter().map(|(key, value)| StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) }).collect()
}

pub(super) fn import_info(v: ValueInfoProto, listed: bool) -> (String, ValueInfo) {
    let (ty, metadata) = (v.r#type.map(import_type), import_entries(v.metadata_props));
    (v.name, ValueInfo { ty, doc: v.doc_string, metadata, listed })
}

pub(super) fn export_info(name: &str, info: Option<&ValueInfo>) -> ValueInfoProto {
    let Some(info) = info else { return ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() } };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: info.ty.as_ref().map(export_type),
        doc_string: info.doc.clone(),
        metadata_props: export_entries(&info.metadata),
    }
}

fn import_type(t: TypeProto) -> Type {
    if let Some(type_proto::Value::TensorType(tensor)) = &t.value
        && let Some(dtype) = DType::from_onnx(tensor.elem_type)
    {
        let dims = tensor.shape.as_ref().map(|s| s.dim.as_slice());
        let shape = dims.map(|dims| {
            dims.iter()
                .map(|d| match &d.value {
                    Some(DimValue::DimValue(v)) => Dim::Value(*v),
                    Some(DimValue::DimParam(p)) => Dim::Param(p.clone()),
                    None => Dim::Unknown,
                })
                .collect()
        });
        let mut denotations = vec![t.denotation.clone()];
        denotations.extend(dims.unwrap_or_default().iter().map(|d| d.denotation.clone()));
        if denotations.iter().all(String::is_empty) {
            denotations.clear();
        }
        return Type::Tensor(TensorType { dtype, shape, denotations });
    }
    Type::Other(t.encode_to_vec().into())
}

fn export_type(t: &Type) -> TypeProto {
    match t {
        Type::Tensor(t) => {
            let denotation = |i: usize| t.denotations.get(i).cloned().unwrap_or_default();
            let shape = t.shape.as_ref().map(|dims| TensorShapeProto {
                dim: dims
                    .iter()
                    .enumerate()
                    .map(|(i, d)| Dimension {
                        value: match d {
                            Dim::Value(v) => Some(DimValue::DimValue(*v)),
                            Dim::Param(p) => Some(DimValue::DimParam(p.clone())),
                            Dim::Unknown => None,
                        },
                        denotation: denotation(i + 1),
                    })
                    .collect(),
            });
            TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: t.dtype.to_onnx(), shape })),
                denotation: denotation(0),
            }
        }
        // It was encoded from a TypeProto by `import_type`, so decoding cannot fail; an empty type is the honest fallback.
        Type::Other(bytes) => TypeProto::decode(bytes.clone()).unwrap_or_default(),
    }
}
