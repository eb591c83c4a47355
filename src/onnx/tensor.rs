//! `TensorProto` to and from the IR's tensor.

use bytes::Bytes;

use super::external::{self, DataFiles};
use super::proto::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use super::{OnnxError, types};
use crate::ir::{DType, Stored, Tensor, TensorData};

/// Reads a tensor; external data is resolved and stays mapped.
pub(super) fn import(t: TensorProto, files: &dyn DataFiles) -> Result<Tensor, OnnxError> {
    let name = t.name.clone().unwrap_or_default();
    let place = || format!("tensor '{name}'");
    let dtype = DType::from_onnx(t.data_type)
        .ok_or_else(|| OnnxError::malformed(place(), format!("unknown element type {}", t.data_type)))?;
    let shape = t
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| OnnxError::malformed(place(), format!("negative dimension {d}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if t.segment.is_some() {
        return Err(OnnxError::malformed(
            place(),
            "is stored in segments, which no current exporter writes; re-save the model with onnx",
        ));
    }
    let entries = types::import_entries(t.external_data);
    let external = t.data_location == DataLocation::External as i32;
    if dtype == DType::String && (external || t.raw_data.is_some()) {
        return Err(OnnxError::malformed(place(), "holds strings as raw bytes, which ONNX forbids; export the model again"));
    }
    let (data, stored) = if external {
        (TensorData::Bytes(external::slice(&name, &entries, files)?), Stored::External(entries))
    } else if let Some(raw) = t.raw_data {
        (TensorData::Bytes(raw), Stored::Raw)
    } else if dtype == DType::String {
        (TensorData::Strings(t.string_data), Stored::Typed)
    } else {
        let mut out = Vec::new();
        match dtype {
            DType::F32 | DType::C64 => t.float_data.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            DType::F64 | DType::C128 => t.double_data.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            DType::I64 => t.int64_data.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            DType::U64 => t.uint64_data.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            DType::U32 => t.uint64_data.iter().for_each(|v| out.extend_from_slice(&(*v as u32).to_le_bytes())),
            DType::F6E2M3 | DType::F6E3M2 => out = pack6(&t.int32_data),
            _ => {
                let width = int32_width(dtype);
                t.int32_data.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()[..width]));
            }
        }
        (TensorData::Bytes(Bytes::from(out)), Stored::Typed)
    };
    let expected_strings = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let mut tensor = match data {
        TensorData::Bytes(bytes) => Tensor::from_bytes(dtype, shape, bytes)
            .map_err(|e| OnnxError::malformed(place(), format!("{e}; the file is damaged, export it again")))?,
        TensorData::Strings(s) if Some(s.len()) == expected_strings => {
            Tensor { dtype, shape, data: TensorData::Strings(s), stored: Stored::Typed, doc: String::new(), metadata: vec![] }
        }
        TensorData::Strings(s) => {
            return Err(OnnxError::malformed(place(), format!("shape {shape:?} does not hold {} strings", s.len())));
        }
    };
    tensor.stored = stored;
    tensor.doc = t.doc_string;
    tensor.metadata = types::import_entries(t.metadata_props);
    Ok(tensor)
}

/// 6-bit elements, one an entry of `int32_data`, as a stream of bits, low bits first.
fn pack6(entries: &[i32]) -> Vec<u8> {
    let mut out = vec![0u8; (entries.len() * 6).div_ceil(8)];
    for (i, v) in entries.iter().enumerate() {
        let (at, bits) = (i * 6 / 8, ((*v as u16) & 63) << (i * 6 % 8));
        for (byte, part) in out[at..].iter_mut().zip(bits.to_le_bytes()) {
            *byte |= part;
        }
    }
    out
}

/// The first `n` elements of a stream of 6-bit elements.
fn unpack6(bytes: &[u8], n: usize) -> Vec<i32> {
    let byte = |i: usize| i32::from(bytes.get(i).copied().unwrap_or(0));
    (0..n).map(|i| ((byte(i * 6 / 8) | byte(i * 6 / 8 + 1) << 8) >> (i * 6 % 8)) & 63).collect()
}

/// Bytes of one entry of `int32_data`: a whole element, or one byte of packed sub-byte elements.
fn int32_width(dtype: DType) -> usize {
    (dtype.bits() / 8).clamp(1, 4)
}

/// Writes a tensor the way it was stored, under the name that the file gives it. External data that is not re-externalised by the caller becomes `raw_data`.
pub(super) fn export(name: Option<&str>, t: &Tensor) -> TensorProto {
    let mut p = TensorProto {
        name: name.map(str::to_owned),
        dims: t.shape.iter().map(|&d| d as i64).collect(),
        data_type: t.dtype.to_onnx(),
        doc_string: t.doc.clone(),
        metadata_props: types::export_entries(&t.metadata),
        ..TensorProto::default()
    };
    let bytes = match &t.data {
        TensorData::Strings(s) => {
            p.string_data.clone_from(s);
            return p;
        }
        TensorData::Bytes(b) => b,
    };
    if t.stored != Stored::Typed {
        p.raw_data = Some(bytes.clone());
        return p;
    }
    macro_rules! field {
        ($ty:ty) => {
            bytes.chunks_exact(size_of::<$ty>()).map(<$ty as crate::ir::Scalar>::read)
        };
    }
    match t.dtype {
        DType::F32 | DType::C64 => p.float_data = field!(f32).collect(),
        DType::F64 | DType::C128 => p.double_data = field!(f64).collect(),
        DType::I64 => p.int64_data = field!(i64).collect(),
        DType::U64 => p.uint64_data = field!(u64).collect(),
        DType::U32 => p.uint64_data = field!(u32).map(u64::from).collect(),
        DType::I32 => p.int32_data = field!(i32).collect(),
        DType::I16 => p.int32_data = field!(i16).map(i32::from).collect(),
        DType::I8 => p.int32_data = field!(i8).map(i32::from).collect(),
        DType::F6E2M3 | DType::F6E3M2 => p.int32_data = unpack6(bytes, t.len()),
        DType::U16 | DType::F16 | DType::BF16 => p.int32_data = field!(u16).map(i32::from).collect(),
        _ => p.int32_data = bytes.iter().map(|&b| i32::from(b)).collect(),
    }
    p
}

/// Points a tensor at a slice of a data file.
pub(super) fn point_outside(p: &mut TensorProto, location: &str, offset: usize, length: usize) {
    p.raw_data = None;
    p.data_location = DataLocation::External as i32;
    p.external_data = [("location", location.to_owned()), ("offset", offset.to_string()), ("length", length.to_string())]
        .into_iter()
        .map(|(key, value)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) })
        .collect();
}
