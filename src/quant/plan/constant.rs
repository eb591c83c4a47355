//! The codes of constants: all of a width, or the levels of a codebook.

use super::{Scheme, nearest_levels};

/// The codes that a constant's elements can have; symmetric, zero point 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConstantCodes {
    bits: u8,
    /// Ascending; none where all codes of the width can occur.
    levels: Vec<i32>,
    /// The level nearest to each code, from the lowest code on.
    nearest: Vec<i32>,
}

impl ConstantCodes {
    /// All codes ±(2^(bits−1) − 1).
    pub fn of_width(bits: u8) -> Self {
        Self { bits: bits.clamp(2, 16), levels: Vec::new(), nearest: Vec::new() }
    }

    /// These of 8 bits; one beyond the ends is the end.
    pub fn of_levels(levels: &[i32]) -> Self {
        let mut codes = Self::of_width(8);
        codes.levels = levels.iter().map(|&level| level.clamp(-codes.top(), codes.top())).collect();
        codes.levels.sort_unstable();
        codes.levels.dedup();
        codes.nearest = nearest_levels(&codes.levels, -codes.top()..=codes.top());
        codes
    }

    /// The width in which they are stored.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The largest code of the width.
    pub fn top(&self) -> i32 {
        (1 << (self.bits - 1)) - 1
    }

    /// The levels of a codebook, ascending; none where all codes can occur.
    pub fn levels(&self) -> &[i32] {
        &self.levels
    }

    /// The code for a value that lies at `x` scales: what QuantizeLinear gives, and of a codebook the level next to it.
    pub fn round_half_even(&self, x: f32) -> i32 {
        let top = self.top();
        let code = f64::from(x).round_ties_even().clamp(f64::from(-top), f64::from(top));
        // Not a number has the code 0.
        let code = code as i32;
        usize::try_from(code + top).ok().and_then(|at| self.nearest.get(at)).copied().unwrap_or(code)
    }
}

/// What a scheme says of a constant.
#[derive(Debug, Clone, PartialEq)]
pub struct Constant<'a> {
    /// The channel axis, or `None` for one scale.
    pub axis: Option<usize>,
    /// One scale a channel.
    pub scales: &'a [f32],
    /// The codes.
    pub codes: ConstantCodes,
}

impl Scheme {
    /// What the scheme says of a constant; `None` of an activation's, and of a codebook on another grid than one of 8 bits.
    pub fn constant(&self) -> Option<Constant<'_>> {
        match self {
            Scheme::Weight { bits, axis, scales } => {
                Some(Constant { axis: *axis, scales, codes: ConstantCodes::of_width(*bits) })
            }
            Scheme::Codebook { grid, levels } => match &**grid {
                Scheme::Weight { bits: 8, axis, scales } => {
                    Some(Constant { axis: *axis, scales, codes: ConstantCodes::of_levels(levels) })
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The scales of a constant, to be changed.
    pub(crate) fn constant_scales(&mut self) -> Option<&mut Vec<f32>> {
        match self {
            Scheme::Weight { scales, .. } => Some(scales),
            Scheme::Codebook { grid, .. } => grid.constant_scales(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// By the definition: QuantizeLinear's code, and of all levels the one next to it, the lower of two.
        #[test]
        fn the_level_next_to_the_code(x in -300.0f32..300.0, levels in prop::collection::btree_set(-127i32..=127, 2..20), bits in 4u8..=8) {
            let top = f64::from((1i32 << (bits - 1)) - 1);
            let code = f64::from(x).round_ties_even().clamp(-top, top);
            prop_assert_eq!(f64::from(ConstantCodes::of_width(bits).round_half_even(x)), code);
            let code = f64::from(x).round_ties_even().clamp(-127.0, 127.0);
            let levels: Vec<i32> = levels.into_iter().collect();
            let mut best = levels[0];
            for &level in &levels {
                if (f64::from(level) - code).abs() < (f64::from(best) - code).abs() {
                    best = level;
                }
            }
            let turned: Vec<i32> = levels.iter().rev().copied().collect();
            prop_assert_eq!(ConstantCodes::of_levels(&turned).round_half_even(x), best);
        }
    }

    #[test]
    fn what_is_not_a_number_is_0() {
        assert_eq!(ConstantCodes::of_width(8).round_half_even(f32::NAN), 0);
        assert_eq!(ConstantCodes::of_levels(&[-3, 2, 9]).round_half_even(f32::NAN), 2);
    }
}
