//! Dense tensors: little-endian bytes with an element type and a shape.

use bytes::Bytes;

use super::DType;

/// How a file stored a tensor's elements; kept so that a round trip writes them the same way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Stored {
    /// In `raw_data`.
    #[default]
    Raw,
    /// In the typed field of the element type (`float_data`, `int32_data`, …).
    Typed,
    /// In another file, with the entries of `external_data`.
    External(Vec<(String, String)>),
}

/// The elements of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorData {
    /// Little-endian elements in row-major order, sub-byte types packed low bits first, as ONNX `raw_data`.
    Bytes(Bytes),
    /// String elements.
    Strings(Vec<Bytes>),
}

/// A constant dense tensor. Cloning shares the elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The element type.
    pub dtype: DType,
    /// The shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData,
    /// How the file stored them.
    pub stored: Stored,
    /// The documentation string.
    pub doc: String,
    /// Key-value metadata.
    pub metadata: Vec<(String, String)>,
}

/// Why a tensor cannot be built or read as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The number of bytes is not what shape and element type need.
    #[error("a {dtype} tensor of shape {shape:?} needs {expected} bytes and has {found}")]
    Size {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// Bytes needed.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The shape's element count overflows.
    #[error("the shape {0:?} has more elements than this machine can address")]
    TooLarge(Vec<usize>),
    /// The element type is not the one asked for.
    #[error("expected a tensor of {expected}, found {found}")]
    DType {
        /// What was asked for.
        expected: &'static str,
        /// What the tensor holds.
        found: DType,
    },
}

/// A Rust type with an ONNX element type.
pub trait Scalar: Copy + PartialEq + 'static {
    /// The element type.
    const DTYPE: DType;
    /// Reads one little-endian element from exactly `size_of::<Self>()` bytes.
    fn read(bytes: &[u8]) -> Self;
    /// Appends the little-endian bytes.
    fn write(self, out: &mut Vec<u8>);
}

macro_rules! scalars {
    ($($t:ty => $d:ident),*) => {$(
        impl Scalar for $t {
            const DTYPE: DType = DType::$d;
            fn read(bytes: &[u8]) -> Self {
                let mut b = [0u8; size_of::<$t>()];
                b.copy_from_slice(bytes);
                <$t>::from_le_bytes(b)
            }
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
scalars!(f32 => F32, f64 => F64, half::f16 => F16, half::bf16 => BF16, i8 => I8, u8 => U8, i16 => I16, u16 => U16,
    i32 => I32, u32 => U32, i64 => I64, u64 => U64);

/// The number of elements of a shape.
fn count(shape: &[usize]) -> Result<usize, TensorError> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| TensorError::TooLarge(shape.to_vec()))
}

impl Tensor {
    /// A tensor of raw little-endian bytes.
    ///
    /// # Errors
    /// When the number of bytes does not fit the shape and element type.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Tensor, TensorError> {
        let expected = dtype.bytes_for(count(&shape)?).ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
        if expected != bytes.len() {
            return Err(TensorError::Size { dtype, shape, expected, found: bytes.len() });
        }
        Ok(Tensor { dtype, shape, data: TensorData::Bytes(bytes), stored: Stored::Raw, doc: String::new(), metadata: vec![] })
    }

    /// A tensor of Rust scalars.
    ///
    /// # Errors
    /// When the number of elements does not fit the shape.
    pub fn new<T: Scalar>(shape: &[usize], values: &[T]) -> Result<Tensor, TensorError> {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        for &v in values {
            v.write(&mut bytes);
        }
        Tensor::from_bytes(T::DTYPE, shape.to_vec(), bytes.into())
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Scalar>(value: T) -> Tensor {
        Tensor::vector_with_shape(vec![], &[value])
    }

    /// A rank-1 tensor.
    pub fn vector<T: Scalar>(values: &[T]) -> Tensor {
        Tensor::vector_with_shape(vec![values.len()], values)
    }

    fn vector_with_shape<T: Scalar>(shape: Vec<usize>, values: &[T]) -> Tensor {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        for &v in values {
            v.write(&mut bytes);
        }
        let data = TensorData::Bytes(bytes.into());
        Tensor { dtype: T::DTYPE, shape, data, stored: Stored::Raw, doc: String::new(), metadata: vec![] }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw bytes; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            TensorData::Bytes(b) => b,
            TensorData::Strings(_) => &[],
        }
    }

    /// The elements as `T`, which must be the tensor's own element type.
    ///
    /// # Errors
    /// When the element type differs.
    pub fn to_vec<T: Scalar>(&self) -> Result<Vec<T>, TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::DType { expected: T::DTYPE.text(), found: self.dtype });
        }
        Ok(self.bytes().chunks_exact(size_of::<T>()).map(T::read).collect())
    }

    /// The elements converted to f32 from any float type of 16 bits or more.
    ///
    /// # Errors
    /// When the tensor does not hold floats.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        match self.dtype {
            DType::F32 => self.to_vec(),
            DType::F64 => Ok(self.to_vec::<f64>()?.into_iter().map(|v| v as f32).collect()),
            DType::F16 => Ok(self.to_vec::<half::f16>()?.into_iter().map(f32::from).collect()),
            DType::BF16 => Ok(self.to_vec::<half::bf16>()?.into_iter().map(f32::from).collect()),
            found => Err(TensorError::DType { expected: "floats", found }),
        }
    }

    /// The elements converted to i64 from any integer type of 8 bits or more, or bool.
    ///
    /// # Errors
    /// When the tensor does not hold such integers.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        macro_rules! widen {
            ($t:ty) => {
                self.to_vec::<$t>()?.into_iter().map(|v| v as i64).collect()
            };
        }
        Ok(match self.dtype {
            DType::I64 => self.to_vec()?,
            DType::I32 => widen!(i32),
            DType::I16 => widen!(i16),
            DType::I8 => widen!(i8),
            DType::U64 => widen!(u64),
            DType::U32 => widen!(u32),
            DType::U16 => widen!(u16),
            DType::U8 => widen!(u8),
            DType::Bool => self.bytes().iter().map(|&b| i64::from(b != 0)).collect(),
            found => return Err(TensorError::DType { expected: "integers", found }),
        })
    }

    /// The single element as f32, when the tensor holds exactly one float.
    pub fn scalar_f32(&self) -> Option<f32> {
        if self.len() != 1 { None } else { self.to_f32().ok()?.first().copied() }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        if count(shape)? != self.len() {
            return Err(TensorError::Size {
                dtype: self.dtype,
                shape: shape.to_vec(),
                expected: self.dtype.bytes_for(count(shape)?).unwrap_or(0),
                found: self.bytes().len(),
            });
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }
}
