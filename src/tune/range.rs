//! Other ranges for a site: what a scheme becomes when the largest values are cut off, or no longer.

use crate::calib::Range;
use crate::quant::plan::{Factors, Scheme};
use crate::quant::{SitePlan, affine_scheme};

/// A range is changed in steps of this factor.
pub const STEP: f64 = std::f64::consts::SQRT_2;
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
            if bound > seen * STEP.sqrt() || bound < seen * SMALLEST {
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
        Scheme::Weight { .. } | Scheme::Log2 { .. } | Scheme::Accumulator => None,
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
