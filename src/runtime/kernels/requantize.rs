//! From an int32 accumulator to a code.

use super::{KernelError, check_range};

const OP: &str = "Requantize";

/// `v / 2^shift`, rounded to the nearest integer, ties to the even one. `shift` above 63 counts as 63.
pub fn shift_right_round_half_even(v: i64, shift: u32) -> i64 {
    let shift = shift.min(63);
    if shift == 0 {
        return v;
    }
    let floor = v >> shift;
    // In 0..2^63, so that the comparison below is of non-negative numbers.
    let rest = (v as u64) & ((1u64 << shift) - 1);
    let half = 1u64 << (shift - 1);
    let up = rest > half || (rest == half && floor & 1 == 1);
    floor + i64::from(up)
}

/// A requantisation: `code = clamp(round_half_even(acc · multiplier / 2^shift) + zero_point, low, high)`.
///
/// The multiplier has 31 bits, the product 62, so that nothing overflows for any accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requantizer {
    multiplier: i64,
    shift: u32,
    zero_point: i64,
    low: i64,
    high: i64,
}

impl Requantizer {
    /// Makes a requantiser: `multiplier` in `0..2^31`, `shift` in `0..=62`, `low ≤ high`.
    ///
    /// # Errors
    /// [`KernelError::Range`] for a constant outside its range.
    pub fn new(multiplier: i32, shift: u32, zero_point: i32, low: i32, high: i32) -> Result<Self, KernelError> {
        let wide = i64::from;
        check_range(OP, "multiplier", wide(multiplier), 0, wide(i32::MAX))?;
        check_range(OP, "shift", i64::from(shift), 0, 62)?;
        check_range(OP, "low", wide(low), wide(i32::MIN), wide(high))?;
        Ok(Self { multiplier: wide(multiplier), shift, zero_point: wide(zero_point), low: wide(low), high: wide(high) })
    }

    /// The code of an accumulator.
    pub fn apply(&self, accumulator: i32) -> i32 {
        let scaled = shift_right_round_half_even(i64::from(accumulator) * self.multiplier, self.shift);
        // low and high are i32, so the clamped number is one too.
        (scaled + self.zero_point).clamp(self.low, self.high) as i32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_even_neighbour() {
        let halves: Vec<i64> = (-5..=5).map(|v| shift_right_round_half_even(v, 1)).collect();
        assert_eq!(halves, [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2]);
        assert_eq!(shift_right_round_half_even(7, 0), 7);
        assert_eq!(shift_right_round_half_even(i64::MIN, 63), -1);
        assert_eq!(shift_right_round_half_even(i64::MAX, 63), 1);
        assert_eq!(shift_right_round_half_even(1 << 62, 63), 0);
    }

    #[test]
    fn constants_out_of_range_are_refused() {
        assert!(Requantizer::new(-1, 31, 0, 0, 255).is_err());
        assert!(Requantizer::new(1, 63, 0, 0, 255).is_err());
        assert!(Requantizer::new(1, 31, 0, 1, 0).is_err());
        let widest = Requantizer::new(i32::MAX, 0, i32::MIN, i32::MIN, i32::MAX).unwrap();
        assert_eq!(widest.apply(i32::MIN), i32::MIN);
        assert_eq!(widest.apply(i32::MAX), i32::MAX);
    }

    proptest! {
        #[test]
        fn rounds_to_the_nearest(v: i64, shift in 1u32..63) {
            let r = i128::from(shift_right_round_half_even(v, shift));
            // |v - r·2^shift| ≤ 2^(shift-1), and at equality r is even.
            let error = (i128::from(v) - (r << shift)).abs();
            let half = 1i128 << (shift - 1);
            prop_assert!(error < half || (error == half && r % 2 == 0));
        }
    }
}
