//! Other ranges for a site: what a scheme becomes when the largest values are cut off, or no longer.

use crate::quant::SitePlan;
use crate::quant::plan::{Codes, Scheme, exponents_from_text, exponents_to_text};

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
            let new = if symmetric { symmetric_of(*codes, bound) } else { affine_of(*codes, lo, hi) };
            Some((new, format!("range {lo:.3} to {hi:.3}")))
        }
        Scheme::Ptf { codes, scale, zero_point, exponents } => {
            let scale = (f64::from(*scale) * factor) as f32;
            let new = Scheme::Ptf { codes: *codes, scale, zero_point: *zero_point, exponents: exponents.clone() };
            Some((new, format!("scale times {factor:.2}")))
        }
        Scheme::Weight { .. } | Scheme::Log2 { .. } => None,
    }
}

/// A PTF scheme whose largest exponents are `lower` less: the widest channels are clipped. `None` when nothing would change.
pub fn capped(site: &SitePlan, lower: u8) -> Option<Candidate> {
    let Scheme::Ptf { codes, scale, zero_point, exponents } = &site.scheme else { return None };
    let exponents = exponents_from_text(exponents)?;
    let highest = *exponents.iter().max()?;
    let cap = highest.checked_sub(lower)?;
    let changed = exponents.iter().filter(|&&e| e > cap).count();
    // A cap on most channels is another scale.
    if changed == 0 || changed * 8 > exponents.len() {
        return None;
    }
    let exponents: Vec<u8> = exponents.into_iter().map(|e| e.min(cap)).collect();
    let new = Scheme::Ptf { codes: *codes, scale: *scale, zero_point: *zero_point, exponents: exponents_to_text(&exponents) };
    let s = if changed == 1 { "" } else { "s" };
    Some((new, format!("{changed} channel{s} clipped at 2^-{lower} of the range")))
}

fn affine_of(codes: Codes, lo: f64, hi: f64) -> Scheme {
    let (low, high) = codes.range();
    let scale = positive((hi - lo) / f64::from(high - low));
    let zero = (f64::from(low) - lo / f64::from(scale)).round_ties_even();
    Scheme::Affine { codes, scale, zero_point: zero.clamp(f64::from(low), f64::from(high)) as i32 }
}

fn symmetric_of(codes: Codes, bound: f64) -> Scheme {
    let middle = if codes.signed { 0 } else { 1 << (codes.bits - 1) };
    Scheme::Affine { codes, scale: positive(bound / f64::from((1i32 << (codes.bits - 1)) - 1)), zero_point: middle }
}

fn positive(scale: f64) -> f32 {
    let scale = scale as f32;
    if scale.is_finite() && scale >= f32::MIN_POSITIVE { scale } else { 1.0 }
}
