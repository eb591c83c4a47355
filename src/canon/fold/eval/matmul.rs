//! Products of constants: a table of position biases comes from a small network on constant coordinates.

use super::{Call, cast};
use crate::ir::{DType, Tensor};

/// Larger products are left to the runtime: half a second's work.
const MAX_MULTIPLICATIONS: usize = 1 << 28;
/// What a product may take whatever its operands: the hidden layer of such a network.
pub(in crate::canon::fold) const ROOM: usize = 64 << 20;

/// `MatMul` of a stack of float rows and a matrix; sums run in f64 and round once.
pub(super) fn matmul(call: &Call) -> Option<Vec<Tensor>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let ([rows @ .., k], &[inner, n]) = (a.shape.as_slice(), b.shape.as_slice()) else { return None };
    let (k, m) = (*k, rows.iter().product::<usize>());
    let shape: Vec<usize> = rows.iter().copied().chain([n]).collect();
    let float = matches!(a.dtype, DType::F32 | DType::F64) && a.dtype == b.dtype;
    if !float || k != inner || m.checked_mul(k)?.checked_mul(n)? > MAX_MULTIPLICATIONS || k == 0 || n == 0 || rows.is_empty() {
        return None;
    }
    call.room(&shape, a.dtype)?;
    let wide = |t: &Tensor| cast::convert(t, DType::F64)?.to_vec::<f64>().ok();
    let (x, y) = (wide(a)?, wide(b)?);
    let mut values = vec![0.0; m * n];
    for (row, out) in x.chunks(k).zip(values.chunks_mut(n)) {
        for (p, weights) in row.iter().zip(y.chunks(n)) {
            out.iter_mut().zip(weights).for_each(|(sum, q)| *sum += p * q);
        }
    }
    Some(vec![cast::convert(&Tensor::new(&shape, &values).ok()?, a.dtype)?])
}
