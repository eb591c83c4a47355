//! Biases that make up for what rounded weights do to a Linear's mean output.

/// `b + (W − Ŵ)ᵀ·mean(x)` for weights `[in, out]`: the error of the weights times the mean input is a constant for each output
/// channel, and belongs into the bias (Nagel et al., arXiv 1906.04721, section 4.2).
pub fn corrected(bias: &[f32], weights: &[f32], rounded: &[f32], mean: &[f64]) -> Vec<f32> {
    let n = bias.len().max(1);
    let mut out: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
    for ((row, kept), m) in weights.chunks_exact(n).zip(rounded.chunks_exact(n)).zip(mean) {
        for ((o, &w), &k) in out.iter_mut().zip(row).zip(kept) {
            *o += (f64::from(w) - f64::from(k)) * m;
        }
    }
    out.into_iter().map(|b| b as f32).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Means of the outputs agree afterwards, token by token computed in f64.
        #[test]
        fn means_agree(inputs in 1usize..5, outputs in 1usize..5, v in prop::collection::vec(-2.0f32..2.0, 200)) {
            let mut v = v.into_iter();
            let mut take = |n: usize| v.by_ref().take(n).collect::<Vec<f32>>();
            let (w, q) = (take(inputs * outputs), take(inputs * outputs));
            let b = take(outputs);
            let x = take(7 * inputs);
            let mean = |x: &[f32]| (0..inputs).map(|i| x.iter().skip(i).step_by(inputs).map(|&v| f64::from(v)).sum::<f64>() / 7.0).collect::<Vec<_>>();
            let new = corrected(&b, &w, &q, &mean(&x));
            for o in 0..outputs {
                let output = |x: &[f32], w: &[f32], b: f32| x.chunks(inputs).map(|row| {
                    f64::from(b) + row.iter().enumerate().map(|(i, &v)| f64::from(v) * f64::from(w[i * outputs + o])).sum::<f64>()
                }).sum::<f64>() / 7.0;
                prop_assert!((output(&x, &w, b[o]) - output(&x, &q, new[o])).abs() < 1e-5);
            }
        }
    }
}
