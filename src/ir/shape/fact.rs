//! What inference knows of a value.

use super::DimExpr;
use crate::ir::{DType, Tensor, TensorType};

/// Contents of larger tensors are not followed: no shape has that many dimensions.
pub(super) const MAX_CONTENTS: usize = 256;

/// The dimensions of a value of known rank.
pub type Shape = Vec<DimExpr>;

/// The elements of a small integer or bool tensor in row-major order; `None` where an element is not known.
pub type Contents = Vec<Option<DimExpr>>;

/// What inference knows of one value. Every part may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fact {
    /// The element type.
    pub dtype: Option<DType>,
    /// The shape. A dimension of unknown size is an expression of its own, equal to itself alone.
    pub shape: Option<Shape>,
    /// The elements of a small int32, int64 or bool tensor (bools are 0 and 1).
    pub contents: Option<Contents>,
}

impl Fact {
    /// The shape's sizes, when all of them are numbers.
    pub fn sizes(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(DimExpr::as_size).collect()
    }

    /// The contents, when all of them are numbers.
    pub fn const_contents(&self) -> Option<Vec<i64>> {
        self.contents.as_ref()?.iter().map(|e| e.as_ref().and_then(DimExpr::as_const)).collect()
    }

    /// The fact in a file's notation; `None` when the element type is unknown.
    pub fn to_tensor_type(&self) -> Option<TensorType> {
        let shape = self.shape.as_ref().map(|s| s.iter().map(DimExpr::to_dim).collect());
        Some(TensorType::new(self.dtype?, shape))
    }

    pub(super) fn of_tensor(t: &Tensor) -> Fact {
        let followed = matches!(t.dtype, DType::I64 | DType::I32 | DType::Bool) && t.len() <= MAX_CONTENTS;
        Fact {
            dtype: Some(t.dtype),
            shape: Some(t.shape.iter().map(|&d| (d as i64).into()).collect()),
            contents: if followed { t.to_i64().ok().map(|v| v.into_iter().map(|e| Some(e.into())).collect()) } else { None },
        }
    }
}
