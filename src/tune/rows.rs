//! How much the outputs depend on the first row of what a Linear reads, against its other rows: a class token stands there, and
//! an error in it does more than an error in any patch.

use super::objective::{Assignment, Distance, Objective, Prefix};
use crate::runtime::tract::EngineError;

/// What is added to every element of a disturbed row, up or down, as a part of the value's root mean square.
const DISTURBANCE: f64 = 0.1;
/// So many rows for each channel must be left in effect, or a weighted moment says more of the calibration samples than of the
/// channels.
const ROWS_A_CHANNEL: f64 = 4.0;
/// No row weighs more: beside such rows others do not show in float32 sums. Outputs that depend on first rows only, as behind the last
/// attention, would ask for an infinite weight.
const MOST: f64 = 1e6;

/// Adds or takes away a part of the value's root mean square, in the first row of every matrix of `rows` rows or in all the others.
fn disturb(x: &mut [f32], channels: usize, rows: usize, first: bool) {
    let energy = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let size = (DISTURBANCE * (energy / x.len().max(1) as f64).sqrt()) as f32;
    for (i, row) in x.chunks_mut(channels.max(1)).enumerate() {
        if (i % rows == 0) == first {
            for (c, v) in row.iter_mut().enumerate() {
                // One bit of a multiplicative hash (Knuth, The Art of Computer Programming 3, 6.4) decides the direction.
                let hash = ((i * channels + c) as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                *v += if hash >> 63 == 0 { size } else { -size };
            }
        }
    }
}

/// Rows and channels of a value's matrices; `None` when it has one row a sample.
fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    match shape {
        [_, .., rows, channels] if *rows > 1 => Some((*rows, *channels)),
        _ => None,
    }
}

/// What disturbing a watched value's first rows does to the outputs, over what disturbing all its other rows does: noise over noise,
/// infinite when the outputs depend on first rows only. `undisturbed` is what the assignment puts out.
///
/// # Errors
/// When an operator fails.
pub fn dependence(
    objective: &Objective,
    from: &Prefix,
    codes: &Assignment,
    watched: usize,
    undisturbed: &[Vec<f32>],
) -> Result<f64, EngineError> {
    let noise = |first: bool| {
        let outputs = objective.outputs_disturbed(from, codes, watched, |shape, x| {
            if let Some((rows, channels)) = matrix(shape) {
                disturb(x, channels, rows, first);
            }
        })?;
        Ok(Distance::between(undisturbed, &outputs).noise)
    };
    let (first, others) = (noise(true)?, noise(false)?);
    Ok(if first > 0.0 { first / others } else { 1.0 })
}

/// The weight of a first row in moments over `samples` values of this shape, that of another row being 1: what [`dependence`] says,
/// row for row. It is at most so large that all rows together are as good as four for each channel: weighted rows count for
/// `(Σ w)² / Σ w²` of equal ones (Kish, Survey Sampling, 1965, section 11.7).
pub fn weight(dependence: f64, samples: usize, shape: &[usize]) -> f64 {
    let Some((rows, channels)) = matrix(shape) else { return 1.0 };
    let matrices = samples * shape.iter().rev().skip(2).product::<usize>();
    let others = (rows - 1) as f64;
    let wanted = (dependence * others).clamp(1.0, MOST);
    if wanted.is_nan() || wanted <= 1.0 {
        return 1.0;
    }
    let (a, b, least) = (matrices as f64, matrices as f64 * others, ROWS_A_CHANNEL * channels as f64);
    if a >= least {
        return wanted;
    }
    if a + b <= least {
        return 1.0;
    }
    // (a·w + b)² = least · (a·w² + b), the larger root.
    let (p, q, r) = (a * (least - a), a * b, b * (b - least));
    wanted.min((q + (q * q + p * r).max(0.0).sqrt()) / p).max(1.0)
}

/// The weight of row `i` of a value of this shape: `first` at the beginning of each of its matrices.
pub fn weight_of_row(i: usize, shape: &[usize], first: f64) -> f64 {
    if matrix(shape).is_some_and(|(rows, _)| i.is_multiple_of(rows)) { first } else { 1.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The largest weight, up to the one that is wanted, that leaves enough rows in effect; tried out on the definition.
        #[test]
        fn as_large_as_wanted_and_no_larger_than_the_rows_allow(
            wanted in 0.0f64..1e6, samples in 1usize..400, rows in 2usize..300, channels in 1usize..1000,
        ) {
            let shape = [1, rows, channels];
            let found = weight(wanted / (rows - 1) as f64, samples, &shape);
            let (a, b) = (samples as f64, (samples * (rows - 1)) as f64);
            let in_effect = |w: f64| (a * w + b).powi(2) / (a * w * w + b);
            let enough = 4.0 * channels as f64;
            prop_assert!(found >= 1.0 && found <= wanted.max(1.0) * (1.0 + 1e-9));
            prop_assert!(found == 1.0 || in_effect(found) >= enough * (1.0 - 1e-6), "{found}");
            if found < wanted * (1.0 - 1e-9) && wanted > 1.0 {
                prop_assert!(in_effect(found * 1.001) < enough * (1.0 + 1e-6), "{found} could be more");
            }
        }
    }

    #[test]
    fn only_first_rows_can_weigh_more() {
        let weights = |shape: &[usize]| (0..6).map(|i| weight_of_row(i, shape, 9.0)).collect::<Vec<_>>();
        assert_eq!(weights(&[2, 3, 8]), [9.0, 1.0, 1.0, 9.0, 1.0, 1.0]);
        assert_eq!(weights(&[6, 8]), [1.0; 6]);
        assert_eq!(weight(f64::INFINITY, 10_000, &[1, 3, 8]), MOST);
        assert_eq!((weight(f64::NAN, 16, &[1, 3, 8]), weight(0.1, 16, &[1, 3, 8])), (1.0, 1.0));
        assert_eq!(weight(f64::INFINITY, 64, &[64, 192]), 1.0);
    }

    #[test]
    fn disturbances_are_of_equal_size_and_do_not_meet() {
        let x = [1.0f32, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
        let (mut first, mut others) = (x, x);
        disturb(&mut first, 2, 2, true);
        disturb(&mut others, 2, 2, false);
        for i in 0..8 {
            let (a, b) = ((first[i] - x[i]).abs(), (others[i] - x[i]).abs());
            let moved = if i / 2 % 2 == 0 { (a, b) } else { (b, a) };
            assert!((moved.0 - 0.1).abs() < 1e-6 && moved.1 == 0.0, "{i}: {a} {b}");
        }
    }
}
