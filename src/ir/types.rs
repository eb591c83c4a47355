//! Element types, dimensions and value types.

use bytes::Bytes;

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $text:literal, $bits:literal;)*) => {
        /// An ONNX element type. The discriminant is the number of `TensorProto.DataType`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i32)]
        #[allow(missing_docs)]
        pub enum DType { $($variant = $code,)* }

        impl DType {
            /// Every element type, in the order of its ONNX number.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// The element type of an ONNX number, if there is one.
            pub fn from_onnx(code: i32) -> Option<DType> {
                match code { $($code => Some(DType::$variant),)* _ => None }
            }

            /// The name in ONNX's textual syntax (`float`, `int8`, …).
            pub fn text(self) -> &'static str {
                match self { $(DType::$variant => $text,)* }
            }

            /// Bits of one element; 0 for strings, whose size varies.
            pub fn bits(self) -> usize {
                match self { $(DType::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    F32 = 1, "float", 32;
    U8 = 2, "uint8", 8;
    I8 = 3, "int8", 8;
    U16 = 4, "uint16", 16;
    I16 = 5, "int16", 16;
    I32 = 6, "int32", 32;
    I64 = 7, "int64", 64;
    String = 8, "string", 0;
    Bool = 9, "bool", 8;
    F16 = 10, "float16", 16;
    F64 = 11, "double", 64;
    U32 = 12, "uint32", 32;
    U64 = 13, "uint64", 64;
    C64 = 14, "complex64", 64;
    C128 = 15, "complex128", 128;
    BF16 = 16, "bfloat16", 16;
    F8E4M3FN = 17, "float8e4m3fn", 8;
    F8E4M3FNUZ = 18, "float8e4m3fnuz", 8;
    F8E5M2 = 19, "float8e5m2", 8;
    F8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    U4 = 21, "uint4", 4;
    I4 = 22, "int4", 4;
    F4E2M1 = 23, "float4e2m1", 4;
    F8E8M0 = 24, "float8e8m0", 8;
    U2 = 25, "uint2", 2;
    I2 = 26, "int2", 2;
    F6E2M3 = 27, "float6e2m3", 6;
    F6E3M2 = 28, "float6e3m2", 6;
}

impl DType {
    /// The ONNX number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// The element type of a name in ONNX's textual syntax.
    pub fn from_text(text: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.text() == text)
    }

    /// Bytes that `n` elements take in `raw_data` (sub-byte types are packed), or `None` for strings and on overflow.
    pub fn bytes_for(self, n: usize) -> Option<usize> {
        match self.bits() {
            0 => None,
            bits => Some(n.checked_mul(bits)?.div_ceil(8)),
        }
    }

    /// Whether this is a signed or unsigned integer (bool excluded).
    pub fn is_integer(self) -> bool {
        use DType::*;
        matches!(self, U2 | I2 | U4 | I4 | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// One dimension of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A known size.
    Value(i64),
    /// A named size, equal wherever the name recurs (`batch`).
    Param(String),
    /// Nothing is known.
    Unknown,
}

impl Dim {
    /// The size, if it is known and not negative.
    pub fn value(&self) -> Option<usize> {
        match self {
            Dim::Value(v) => usize::try_from(*v).ok(),
            _ => None,
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Value(v) => write!(f, "{v}"),
            Dim::Param(p) => f.write_str(p),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// The type of a dense tensor value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The shape, or `None` when even the rank is unknown.
    pub shape: Option<Vec<Dim>>,
    /// Denotations: of the type, then of each dimension; empty when there are none.
    pub denotations: Vec<String>,
}

impl TensorType {
    /// A type without denotations.
    pub fn new(dtype: DType, shape: Option<Vec<Dim>>) -> Self {
        TensorType { dtype, shape, denotations: Vec::new() }
    }
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// A dense tensor.
    Tensor(TensorType),
    /// A sequence, map, optional, sparse or opaque type, carried through as its encoded `TypeProto`.
    Other(Bytes),
}

/// What a file says of a value beside its name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValueInfo {
    /// The type; `None` when the file gives a name alone.
    pub ty: Option<Type>,
    /// The documentation string.
    pub doc: String,
    /// Key-value metadata.
    pub metadata: Vec<(String, String)>,
    /// Whether the file lists the value in the graph's `value_info`.
    pub listed: bool,
}

impl ValueInfo {
    /// A tensor type without documentation.
    pub fn tensor(dtype: DType, shape: Option<Vec<Dim>>) -> Self {
        ValueInfo { ty: Some(Type::Tensor(TensorType::new(dtype, shape))), ..ValueInfo::default() }
    }

    /// The tensor type, if the value is known to be a dense tensor.
    pub fn tensor_type(&self) -> Option<&TensorType> {
        match &self.ty {
            Some(Type::Tensor(t)) => Some(t),
            _ => None,
        }
    }
}
