//! Types and tensor elements: printing, and reading single elements.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::lex::Tok;
use super::{Dialect, PrintOptions, is_identifier, quoted, quoted_bytes};
use crate::ir::{DType, Dim, Graph, Scalar, Stored, Tensor, TensorData, TensorType, Type, Value, ValueInfo};

/// Eight hexadecimal digits that change with the element type, the shape or any element: the start of a SHA-256.
pub fn digest(t: &Tensor) -> String {
    let mut h = Sha256::new();
    h.update(t.dtype.text());
    for &d in &t.shape {
        h.update((d as u64).to_le_bytes());
    }
    match &t.data {
        TensorData::Bytes(b) => h.update(b),
        TensorData::Strings(list) => list.iter().for_each(|s| {
            h.update((s.len() as u64).to_le_bytes());
            h.update(s);
        }),
    }
    super::hex(h.finalize().get(..4).unwrap_or_default())
}

/// One line of a constant, as snapshots show it: type, and elements up to 8 or else the digest.
pub fn tensor_summary(t: &Tensor) -> String {
    let mut out = format!("{} ", shape_text(t.dtype, &t.shape));
    content(&mut out, t, &PrintOptions::snapshot());
    out
}

/// `float[2,3]`, for a constant.
pub fn shape_text(dtype: DType, shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    if dims.is_empty() { dtype.text().to_owned() } else { format!("{dtype}[{}]", dims.join(",")) }
}

/// `float[batch,3,?]`; `float` is rank 0, `float[]` is of unknown rank.
pub fn type_text(t: &TensorType) -> String {
    let Some(shape) = &t.shape else { return format!("{}[]", t.dtype) };
    let dims: Vec<String> = shape
        .iter()
        .map(|d| match d {
            Dim::Param(p) if !is_identifier(p) => quoted(p),
            d => d.to_string(),
        })
        .collect();
    if dims.is_empty() { t.dtype.text().to_owned() } else { format!("{}[{}]", t.dtype, dims.join(",")) }
}

/// The recorded type of a value as text, if it is a dense tensor's.
pub fn value_type(graph: &Graph, value: Value) -> Option<String> {
    info_text(graph.info(value))
}

/// The recorded type, if the syntax has it.
pub(super) fn info_text(info: Option<&ValueInfo>) -> Option<String> {
    match info?.ty.as_ref()? {
        Type::Tensor(t) => Some(type_text(t)),
        Type::Other(_) => None,
    }
}

/// Everything after a tensor's type and name: its elements, where they are, or their digest.
pub(super) fn content(out: &mut String, t: &Tensor, options: &PrintOptions) {
    let strings = match &t.data {
        TensorData::Strings(list) => list.len(),
        TensorData::Bytes(_) => 0,
    };
    if options.shows(t.len().max(strings)) {
        elements(out, t, options.dialect);
        return;
    }
    match options.dialect {
        Dialect::Snapshot => out.push_str(&format!("#{}", digest(t))),
        Dialect::Onnx => {
            let entries = match &t.stored {
                Stored::External(entries) if !entries.is_empty() => entries.clone(),
                _ => [("location", "elided".to_owned()), ("length", t.bytes().len().to_string()), ("digest", digest(t))]
                    .map(|(k, v)| (k.to_owned(), v))
                    .to_vec(),
            };
            let rows: Vec<String> = entries.iter().map(|(k, v)| format!("{}: {}", quoted(k), quoted(v))).collect();
            let _ = write!(out, "[{}]", rows.join(", "));
        }
    }
}

/// `{1, 2, 3}`.
fn elements(out: &mut String, t: &Tensor, dialect: Dialect) {
    let bytes = t.bytes();
    macro_rules! numbers {
        ($ty:ty, $show:expr) => {
            join(out, bytes.chunks_exact(size_of::<$ty>()).map(<$ty as Scalar>::read), $show)
        };
    }
    out.push('{');
    match (&t.data, t.dtype) {
        (TensorData::Strings(list), _) => join(out, list.iter(), |out, s| out.push_str(&quoted_bytes(s))),
        (_, DType::F32 | DType::C64) => numbers!(f32, |out, v| out.push_str(&float(v))),
        (_, DType::F64 | DType::C128) => numbers!(f64, |out, v| out.push_str(&double(v))),
        (_, DType::I8) => numbers!(i8, show),
        (_, DType::I16) => numbers!(i16, show),
        (_, DType::U16) => numbers!(u16, show),
        (_, DType::I32) => numbers!(i32, show),
        (_, DType::U32) => numbers!(u32, show),
        (_, DType::I64) => numbers!(i64, show),
        (_, DType::U64) => numbers!(u64, show),
        (_, DType::F16) if dialect == Dialect::Snapshot => numbers!(half::f16, |out, v| out.push_str(&float(v.to_f32()))),
        (_, DType::BF16) if dialect == Dialect::Snapshot => numbers!(half::bf16, |out, v| out.push_str(&float(v.to_f32()))),
        (_, DType::F16 | DType::BF16) => numbers!(u16, show),
        (_, DType::I4 | DType::U4 | DType::I2 | DType::U2) if dialect == Dialect::Snapshot => {
            join(out, unpack(t).into_iter(), show);
        }
        _ => join(out, bytes.iter(), show),
    }
    out.push('}');
}

fn show<T: std::fmt::Display>(out: &mut String, v: T) {
    let _ = write!(out, "{v}");
}

fn join<T>(out: &mut String, items: impl Iterator<Item = T>, show: impl Fn(&mut String, T)) {
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        show(out, item);
    }
}

/// The shortest decimal that reads back as the same float.
pub(super) fn float(v: f32) -> String {
    special(v.is_nan(), v.is_infinite(), v.is_sign_negative()).unwrap_or_else(|| format!("{v:?}"))
}

fn double(v: f64) -> String {
    special(v.is_nan(), v.is_infinite(), v.is_sign_negative()).unwrap_or_else(|| format!("{v:?}"))
}

fn special(nan: bool, infinite: bool, negative: bool) -> Option<String> {
    let word = if nan {
        "nan"
    } else if infinite {
        "inf"
    } else {
        return None;
    };
    Some(if negative { format!("-{word}") } else { word.to_owned() })
}

/// The values of packed integers of 4 or 2 bits, low bits first.
fn unpack(t: &Tensor) -> Vec<i8> {
    let bits = t.dtype.bits().clamp(1, 8);
    let signed = matches!(t.dtype, DType::I4 | DType::I2);
    let code = |i: usize| t.bytes().get(i * bits / 8).map(|b| (b >> (i * bits % 8)) & ((1u16 << bits) - 1) as u8);
    let value = |v: u8| if signed { ((v << (8 - bits)) as i8) >> (8 - bits) } else { v as i8 };
    (0..t.len()).map_while(code).map(value).collect()
}

/// Reads a float; an overflow is an error, as in onnx.
pub(super) fn read_float(text: &str) -> Option<f32> {
    let v: f32 = text.parse().ok()?;
    (!v.is_infinite() || is_special(text)).then_some(v)
}

fn read_double(text: &str) -> Option<f64> {
    let v: f64 = text.parse().ok()?;
    (!v.is_infinite() || is_special(text)).then_some(v)
}

/// Whether the text spells an infinity or a NaN.
pub(super) fn is_special(text: &str) -> bool {
    let t = text.strip_prefix('-').unwrap_or(text);
    ["inf", "infinity", "nan"].iter().any(|w| t.eq_ignore_ascii_case(w))
}

/// The elements of a tensor as they are read.
#[derive(Debug)]
pub(super) struct Collector {
    dtype: DType,
    bytes: Vec<u8>,
    strings: Vec<bytes::Bytes>,
}

impl Collector {
    pub(super) fn new(dtype: DType) -> Self {
        Collector { dtype, bytes: Vec::new(), strings: Vec::new() }
    }

    /// Takes one element; on failure says what was expected.
    pub(super) fn push(&mut self, tok: &Tok<'_>) -> Result<(), String> {
        let wrong = || format!("expected an element of type {}", self.dtype);
        if let (DType::String, Tok::Str(s)) = (self.dtype, tok) {
            self.strings.push(s.clone());
            return Ok(());
        }
        let text = match (self.dtype, tok) {
            (DType::String, _) => return Err(wrong()),
            (_, Tok::Int(s)) => *s,
            (DType::F32 | DType::F64 | DType::C64 | DType::C128, Tok::Float(s) | Tok::Ident(s)) => *s,
            _ => return Err(wrong()),
        };
        macro_rules! push {
            ($ty:ty) => {
                text.parse::<$ty>().map_err(|_| format!("{text} is out of range for {}", self.dtype))?.write(&mut self.bytes)
            };
        }
        match self.dtype {
            DType::F32 | DType::C64 => read_float(text).ok_or_else(wrong)?.write(&mut self.bytes),
            DType::F64 | DType::C128 => read_double(text).ok_or_else(wrong)?.write(&mut self.bytes),
            DType::I8 => push!(i8),
            DType::I16 => push!(i16),
            DType::U16 | DType::F16 | DType::BF16 => push!(u16),
            DType::I32 => push!(i32),
            DType::U32 => push!(u32),
            DType::I64 => push!(i64),
            DType::U64 => push!(u64),
            DType::I2 | DType::I4 if text.starts_with('-') => push!(i8),
            _ => push!(u8),
        }
        Ok(())
    }

    /// The tensor, once its elements are complete.
    pub(super) fn finish(self, shape: Vec<usize>) -> Result<Tensor, String> {
        if self.dtype != DType::String {
            return Tensor::from_bytes(self.dtype, shape, self.bytes.into()).map_err(|e| e.to_string());
        }
        if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(self.strings.len()) {
            return Err(format!("the shape {shape:?} does not hold {} strings", self.strings.len()));
        }
        let data = TensorData::Strings(self.strings);
        Ok(Tensor { dtype: self.dtype, shape, data, stored: Stored::Typed, doc: String::new(), metadata: Vec::new() })
    }
}
