//! Small products of matrices.

use super::{Call, cast};
use crate::ir::{DType, Tensor};

/// Larger products are left to the runtime.
const MAX_MULTIPLICATIONS: usize = 1 << 20;

/// `MatMul` of two float matrices; sums run in f64 and round once.
pub(super) fn matmul(call: &Call) -> Option<Vec<Tensor>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (&[m, k], &[inner, n]) = (a.shape.as_slice(), b.shape.as_slice()) else { return None };
    let float = matches!(a.dtype, DType::F32 | DType::F64) && a.dtype == b.dtype;
    if !float || k != inner || m.checked_mul(k)?.checked_mul(n)? > MAX_MULTIPLICATIONS || k == 0 || n == 0 {
        return None;
    }
    call.room(&[m, n], a.dtype)?;
    let wide = |t: &Tensor| cast::convert(t, DType::F64)?.to_vec::<f64>().ok();
    let (x, y) = (wide(a)?, wide(b)?);
    let element =
        |(row, column): (&[f64], usize)| -> f64 { row.iter().zip(y.iter().skip(column).step_by(n)).map(|(p, q)| p * q).sum() };
    let values: Vec<f64> = x.chunks(k).flat_map(|row| (0..n).map(move |j| (row, j))).map(element).collect();
    Some(vec![cast::convert(&Tensor::new(&[m, n], &values).ok()?, a.dtype)?])
}
