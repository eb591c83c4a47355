//! Constant weights rearranged at compile time. Float32 only: other types would come back as float32 and no longer fit
//! the operators around them.

use crate::ir::{DType, Tensor, TensorError};

/// The transpose of a matrix.
pub(super) fn transpose(t: &Tensor) -> Result<Tensor, TensorError> {
    let (rows, cols) = matrix(t)?;
    let v = t.to_vec::<f32>()?;
    let mut out = Vec::with_capacity(v.len());
    for c in 0..cols {
        out.extend((0..rows).map(|r| v[r * cols + c]));
    }
    Tensor::new(&[cols, rows], &out)
}

/// The columns `from..from + width` of the last axis of a vector or matrix.
pub(super) fn columns(t: &Tensor, from: usize, width: usize) -> Result<Tensor, TensorError> {
    let cols = t.shape.last().copied().unwrap_or(0);
    let v = t.to_vec::<f32>()?;
    let rows = v.chunks(cols.max(1)).filter_map(|row| row.get(from..from + width));
    let out: Vec<f32> = rows.flatten().copied().collect();
    let mut shape = t.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Tensor::new(&shape, &out)
}

/// Every element times a factor.
pub(super) fn scaled(t: &Tensor, factor: f32) -> Result<Tensor, TensorError> {
    let out: Vec<f32> = t.to_vec::<f32>()?.into_iter().map(|v| v * factor).collect();
    Tensor::new(&t.shape, &out)
}

/// Every column of the last axis times its factor.
pub(super) fn scaled_columns(t: &Tensor, factors: &[f32]) -> Result<Tensor, TensorError> {
    let out: Vec<f32> = t.to_vec::<f32>()?.into_iter().zip(factors.iter().cycle()).map(|(v, f)| v * f).collect();
    Tensor::new(&t.shape, &out)
}

fn matrix(t: &Tensor) -> Result<(usize, usize), TensorError> {
    match t.shape[..] {
        [r, c] => Ok((r, c)),
        _ => Err(TensorError::DType {
            expected: "a matrix",
            found: if t.dtype == DType::String { DType::String } else { t.dtype },
        }),
    }
}
