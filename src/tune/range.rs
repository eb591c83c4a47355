//! Other ranges for a site: what a scheme becomes when the largest values are cut off, or no longer.

use crate::calib::Range;
use crate::quant::plan::{Factors, Scheme, ZeroPoint};
use crate::quant::{SitePlan, affine_scheme};

/// A range is changed in steps of this factor, a quarter of an octave.
pub const STEP: f64 = 1.189_207_115_002_721;
/// No range is less than this part of what calibration saw.
const SMALLEST: f64 = 1.0 / 64.0;

/// A scheme and what it is, in words.
pub type Candidate = (Scheme, String);

/// The scheme of a site with its range changed by `STEP^steps`: below 0 the largest values are clipped. `None` when that is no
/// other scheme, or no sensible one.
pub fn scaled(site: &SitePlan, steps: i32) -> Option<Candidate> {
    let factor = STEP.powi(steps);
    match &site.scheme {
        Scheme::Affine { codes, scale, zero_point } => {
            let [lo, hi] = site.observed.map(f64::from);
            let (low, high) = codes.range();
            let real = |code: i32| f64::from(*scale) * f64::from(code - zero_point);
            let seen = lo.abs().max(hi.abs());
            // The bound on magnitudes that the codes have now.
            let bound = real(low).abs().max(real(high).abs()).min(seen) * factor;
            // Beyond what was seen there is nothing; a range that ends just below it may still grow to it.
            if bound >= seen * STEP || bound < seen * SMALLEST {
                return None;
            }
            let bound = bound.min(seen);
            let (lo, hi) = (lo.max(-bound).min(0.0), hi.min(bound).max(0.0));
            let symmetric = *zero_point == if codes.signed { 0 } else { 1 << (codes.bits - 1) };
            let range = if symmetric { Range::new(-bound, bound) } else { Range::new(lo, hi) };
            let new = affine_scheme(range, *codes, symmetric);
            Some((new, format!("range {lo:.3} to {hi:.3}")))
        }
        Scheme::Ptf { codes, scale, zero_point, factors } => {
            let scale = (f64::from(*scale) * factor) as f32;
            let new = Scheme::Ptf { codes: *codes, scale, zero_point: zero_point.clone(), factors: factors.clone() };
            Some((new, format!("scale times {factor:.2}")))
        }
        Scheme::Codebook { grid, levels } => {
            let mut grid = grid.clone();
            if let Scheme::Affine { scale, .. } | Scheme::Ptf { scale, .. } = &mut *grid {
                *scale = (f64::from(*scale) * factor) as f32;
            }
            Some((Scheme::Codebook { grid, levels: levels.clone() }, format!("scale times {factor:.2}")))
        }
        // Its tails cost little, and its breakpoint was chosen for what is inside.
        Scheme::Piecewise { .. } | Scheme::Weight { .. } | Scheme::Groups { .. } | Scheme::Log2 { .. } | Scheme::Accumulator => {
            None
        }
    }
}

/// A scheme whose range is `factor` times as wide: about 0, or, with a zero point for each channel, about each channel's middle. `None` for
/// one that has no range.
pub fn widened(scheme: &Scheme, factor: f64) -> Option<Scheme> {
    let wide = |scale: f32| (f64::from(scale) * factor) as f32;
    match scheme {
        &Scheme::Affine { codes, scale, zero_point } => Some(Scheme::Affine { codes, scale: wide(scale), zero_point }),
        Scheme::Ptf { codes, scale, zero_point, factors } => {
            let (low, high) = codes.range();
            let middle = f64::from(low + high) / 2.0;
            let about = |z: i32| (middle - (middle - f64::from(z)) / factor).round_ties_even() as i32;
            let zero_point = match zero_point {
                ZeroPoint::Tensor(z) => ZeroPoint::Tensor(*z),
                ZeroPoint::Channels(each) => ZeroPoint::Channels(each.iter().map(|&z| about(z).clamp(low, high)).collect()),
            };
            Some(Scheme::Ptf { codes: *codes, scale: wide(*scale), zero_point, factors: factors.clone() })
        }
        Scheme::Codebook { .. }
        | Scheme::Piecewise { .. }
        | Scheme::Weight { .. }
        | Scheme::Groups { .. }
        | Scheme::Log2 { .. }
        | Scheme::Accumulator => None,
    }
}

/// The step between two codes, root mean square over the channels; `None` for a scheme without even steps.
pub fn step(scheme: &Scheme) -> Option<f64> {
    match scheme {
        Scheme::Affine { scale, .. } => Some(f64::from(*scale)),
        Scheme::Ptf { scale, factors, .. } => {
            let squares: Vec<f64> = factors.scales(*scale)?.into_iter().map(|s| f64::from(s) * f64::from(s)).collect();
            Some((squares.iter().sum::<f64>() / squares.len().max(1) as f64).sqrt())
        }
        Scheme::Codebook { .. }
        | Scheme::Piecewise { .. }
        | Scheme::Weight { .. }
        | Scheme::Groups { .. }
        | Scheme::Log2 { .. }
        | Scheme::Accumulator => None,
    }
}

/// An affine scheme with a slightly larger range. Values that lie on a grid of their own, as pixels do, may all fall half-way
/// between two codes; then every one of them is as wrong as it can be, and another scale is better though it is coarser.
pub fn nudged(site: &SitePlan) -> Option<Candidate> {
    const NUDGE: f32 = 1.0 + 1.0 / 64.0;
    let Scheme::Affine { codes, scale, zero_point } = site.scheme else { return None };
    Some((Scheme::Affine { codes, scale: scale * NUDGE, zero_point }, "range 1.6 % larger".to_owned()))
}

/// A PTF scheme whose largest exponents are `lower` less: the widest channels are clipped. `None` when nothing would change.
pub fn capped(site: &SitePlan, lower: u8) -> Option<Candidate> {
    let Scheme::Ptf { codes, scale, zero_point, factors } = &site.scheme else { return None };
    let (exponents, mantissas) = (factors.exponents()?, factors.mantissas()?);
    let highest = *exponents.iter().max()?;
    let cap = highest.checked_sub(lower)?;
    let changed = exponents.iter().filter(|&&e| e > cap).count();
    // A cap on most channels is another scale.
    if changed == 0 || changed * 8 > exponents.len() {
        return None;
    }
    let exponents: Vec<u8> = exponents.into_iter().map(|e| e.min(cap)).collect();
    let factors = Factors::new(&exponents, factors.mantissa_bits, &mantissas);
    let new = Scheme::Ptf { codes: *codes, scale: *scale, zero_point: zero_point.clone(), factors };
    let s = if changed == 1 { "" } else { "s" };
    Some((new, format!("{changed} channel{s} clipped at 2^-{lower} of the range")))
}

/// A log2 scheme with another number of fraction bits, by `finer`. `None` where there is none.
pub fn finer(site: &SitePlan, finer: i8) -> Option<Candidate> {
    let Scheme::Log2 { bits, fraction_bits, scale, normalized } = site.scheme else { return None };
    let fraction_bits = fraction_bits.checked_add_signed(finer).filter(|&r| r <= 4)?;
    Some((Scheme::Log2 { bits, fraction_bits, scale, normalized }, format!("{fraction_bits} fraction bits")))
}

/// A log2 scheme whose values are all multiplied by a factor: rounding and the code that means 0 leave the rows' sums a little
/// off 1, and the next requantisation takes the factor in. `None` where every row is divided by its sum.
pub fn rescaled(scheme: &Scheme, percent: i32) -> Option<Candidate> {
    let Scheme::Log2 { bits, fraction_bits, scale, normalized: false } = *scheme else { return None };
    let scale = scale * (1.0 + percent as f32 / 100.0);
    let scheme = Scheme::Log2 { bits, fraction_bits, scale, normalized: false };
    Some((scheme, format!("{fraction_bits} fraction bits, times {scale:.2}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::quant::plan::Codes;
    use proptest::prelude::*;

    /// The lowest and the highest value of every channel, in f64.
    fn ranges(scheme: &Scheme) -> Vec<(f64, f64)> {
        match scheme {
            Scheme::Affine { codes, scale, zero_point } => vec![reach(*codes, (*scale).into(), *zero_point)],
            Scheme::Ptf { codes, scale, zero_point, factors } => {
                let scales = factors.scales(*scale).unwrap();
                let zeros = zero_point.as_slice().iter().cycle();
                scales.iter().zip(zeros).map(|(&s, &z)| reach(*codes, s.into(), z)).collect()
            }
            _ => panic!("{scheme:?}"),
        }
    }

    fn reach(codes: Codes, scale: f64, zero: i32) -> (f64, f64) {
        let (low, high) = codes.range();
        (scale * f64::from(low - zero), scale * f64::from(high - zero))
    }

    proptest! {
        /// Every range is so many times as wide, and still holds what it held, to a step.
        #[test]
        fn a_wider_range_holds_the_old_one(
            scale in 0.01f32..1.0, zeros in prop::collection::vec(-128i32..=127, 4), factor in 1.0f64..2.0, bits in 4u8..=8
        ) {
            let codes = Codes { bits, signed: true };
            let (low, high) = codes.range();
            let zeros: Vec<i32> = zeros.into_iter().map(|z| z.clamp(low, high)).collect();
            let factors = Factors::new(&[0, 1, 2, 3], 2, &[0, 1, 0, 3]);
            let affine = Scheme::Affine { codes, scale, zero_point: zeros[0] };
            for scheme in [affine, Scheme::Ptf { codes, scale, zero_point: ZeroPoint::Channels(zeros), factors }] {
                let wide = widened(&scheme, factor).unwrap();
                prop_assert!((step(&wide).unwrap() / step(&scheme).unwrap() / factor - 1.0).abs() < 1e-5);
                for ((lo, hi), (new_lo, new_hi)) in ranges(&scheme).into_iter().zip(ranges(&wide)) {
                    let step = (new_hi - new_lo) / f64::from(high - low);
                    prop_assert!(((new_hi - new_lo) / (hi - lo) / factor - 1.0).abs() < 1e-5);
                    prop_assert!(new_lo <= lo + step && new_hi >= hi - step, "{lo} {hi} {new_lo} {new_hi}");
                    prop_assert!(new_lo <= 0.0 && new_hi >= 0.0, "0 stays a code");
                }
            }
        }
    }

    #[test]
    fn what_has_no_even_steps_has_no_room() {
        let log2 = Scheme::Log2 { bits: 8, fraction_bits: 3, scale: 1.0, normalized: false };
        assert_eq!((widened(&log2, 1.5), step(&log2)), (None, None));
        assert_eq!((widened(&Scheme::Accumulator, 1.5), step(&Scheme::Accumulator)), (None, None));
    }
}
