//! A real ratio of scales as an integer multiplier and a shift.

use super::{TableError, check_positive};

/// `ratio ≈ multiplier / 2^shift` with `multiplier` in `0..2^31` and `shift` in `0..=62`.
///
/// The multiplier has its full 31 bits (relative error at most 2^−31) unless the ratio is below 2^−32, where the shift ends;
/// such a ratio sends every int32 accumulator to at most one half anyway.
///
/// # Errors
/// [`TableError::Parameter`] for a ratio that is not finite and positive or is 2^31 or more.
pub fn multiplier_and_shift(ratio: f64) -> Result<(i32, u32), TableError> {
    check_positive("the ratio of scales", ratio)?;
    // ratio = fraction · 2^exponent with the fraction in [1/2, 1).
    let (fraction, exponent) = libm::frexp(ratio);
    let mut multiplier = (fraction * 2f64.powi(31)).round_ties_even() as i64;
    let mut shift = 31 - exponent;
    if multiplier == 1 << 31 {
        multiplier >>= 1;
        shift -= 1;
    }
    if shift < 0 {
        return Err(TableError::Parameter { what: "the ratio of scales", found: ratio, needed: "below 2^31" });
    }
    if shift > 62 {
        multiplier = libm::scalbn(ratio, 62).round_ties_even() as i64;
        shift = 62;
    }
    Ok((multiplier as i32, shift as u32))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn powers_of_two_are_exact_and_the_carry_is_kept() {
        assert_eq!(multiplier_and_shift(1.0), Ok((1 << 30, 30)));
        assert_eq!(multiplier_and_shift(0.5), Ok((1 << 30, 31)));
        assert_eq!(multiplier_and_shift(2f64.powi(30)), Ok((1 << 30, 0)));
        // Rounds up to the next power of two.
        assert_eq!(multiplier_and_shift(1.0 - f64::EPSILON), Ok((1 << 30, 30)));
        assert!(multiplier_and_shift(2f64.powi(31)).is_err());
        assert_eq!(multiplier_and_shift(2f64.powi(-62)), Ok((1, 62)));
        assert_eq!(multiplier_and_shift(2f64.powi(-70)), Ok((0, 62)));
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30] {
            assert!(multiplier_and_shift(ratio).is_err(), "{ratio}");
        }
        assert_eq!(multiplier_and_shift(f64::MIN_POSITIVE / 8.0), Ok((0, 62)));
    }

    proptest! {
        #[test]
        fn the_ratio_is_kept_to_31_bits(exponent in -32i32..30, fraction in 1.0f64..2.0) {
            let ratio = fraction * 2f64.powi(exponent);
            let (multiplier, shift) = multiplier_and_shift(ratio).unwrap();
            let back = f64::from(multiplier) * 2f64.powi(-(shift as i32));
            prop_assert!(((back - ratio) / ratio).abs() <= 2f64.powi(-31), "{back} {ratio}");
        }
    }
}
