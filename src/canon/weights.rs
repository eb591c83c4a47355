//! Constant weights rearranged at compile time. Each result is made in one pass over the bytes, which may be those of the
//! mapped model file, so that no other copy is made. Float32 only: other types no longer fit the operators around them.

use crate::ir::{DType, Scalar, Tensor, TensorError};

/// Bytes of an element.
const F32: usize = size_of::<f32>();

/// The transpose of a matrix.
pub(super) fn transpose(t: &Tensor) -> Result<Tensor, TensorError> {
    /// Rows read side by side, so that a line of the cache is used up before it is dropped.
    const TILE: usize = 16;
    let (rows, cols) = matrix(t)?;
    let v = floats(t)?;
    let mut out = vec![0u8; v.len()];
    for top in (0..rows).step_by(TILE) {
        let tile = v.chunks_exact((cols * F32).max(1)).enumerate().skip(top).take(TILE);
        for (r, row) in tile {
            let column = out.chunks_exact_mut((rows * F32).max(1)).zip(row.chunks_exact(F32));
            column.for_each(|(line, element)| line[r * F32..][..F32].copy_from_slice(element));
        }
    }
    Tensor::from_bytes(DType::F32, vec![cols, rows], out.into())
}

/// The columns `from..from + width` of the last axis of a vector or matrix.
pub(super) fn columns(t: &Tensor, from: usize, width: usize) -> Result<Tensor, TensorError> {
    let cols = t.shape.last().copied().unwrap_or(0);
    let v = floats(t)?;
    let mut out = Vec::with_capacity(v.len() / cols.max(1) * width);
    let rows = v.chunks((cols * F32).max(1)).filter_map(|row| row.get(from * F32..(from + width) * F32));
    rows.for_each(|row| out.extend_from_slice(row));
    let mut shape = t.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Tensor::from_bytes(DType::F32, shape, out.into())
}

/// Every element times a factor.
pub(super) fn scaled(t: &Tensor, factor: f32) -> Result<Tensor, TensorError> {
    scaled_columns(t, &[factor])
}

/// Every column of the last axis times its factor.
pub(super) fn scaled_columns(t: &Tensor, factors: &[f32]) -> Result<Tensor, TensorError> {
    let v = floats(t)?;
    let mut out = Vec::with_capacity(v.len());
    for (element, factor) in v.chunks_exact(F32).zip(factors.iter().cycle()) {
        (f32::read(element) * factor).write(&mut out);
    }
    Tensor::from_bytes(DType::F32, t.shape.clone(), out.into())
}

fn floats(t: &Tensor) -> Result<&[u8], TensorError> {
    if t.dtype == DType::F32 { Ok(t.bytes()) } else { Err(TensorError::DType { expected: DType::F32.text(), found: t.dtype }) }
}

fn matrix(t: &Tensor) -> Result<(usize, usize), TensorError> {
    match t.shape[..] {
        [r, c] => Ok((r, c)),
        _ => Err(TensorError::DType { expected: "a matrix", found: t.dtype }),
    }
}
