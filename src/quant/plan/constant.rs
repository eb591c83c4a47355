//! The codes of constants: all of a width, the levels of a codebook, or those of groups.

use super::groups::PRODUCT_BITS;
use super::{Groups, Scheme, nearest_levels};
use crate::simd::widest;
use crate::vit::Site;

/// The codes that a constant's elements can have; symmetric, zero point 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConstantCodes {
    bits: u8,
    /// Ascending; none where all codes of the width can occur.
    levels: Vec<i32>,
    /// The level nearest to each code, from the lowest code on.
    nearest: Vec<i32>,
    groups: Option<Groups>,
}

impl ConstantCodes {
    /// All codes ±(2^(bits−1) − 1).
    pub fn of_width(bits: u8) -> Self {
        Self { bits: bits.clamp(2, 16), levels: Vec::new(), nearest: Vec::new(), groups: None }
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

    /// Products of a factor and a code of few bits, 8 bits together; of groups that are valid.
    pub(crate) fn of_groups(groups: Groups) -> Self {
        Self { groups: Some(groups), ..Self::of_width(PRODUCT_BITS) }
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

    /// How elements share factors, if they do.
    pub fn groups(&self) -> Option<Groups> {
        self.groups
    }

    /// The largest magnitude that occurs, where all channels have their full range.
    pub fn largest(&self) -> i32 {
        match self.groups {
            Some(groups) => groups.largest(),
            None => self.levels.iter().map(|level| level.abs()).max().filter(|&l| l > 0).unwrap_or(self.top()),
        }
    }

    /// The code for a value, of no group, that lies at `x` scales: what QuantizeLinear gives, and of a codebook the level next to it.
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

impl Constant<'_> {
    /// The codes of a tensor's elements, in their order.
    ///
    /// # Errors
    /// When there is no positive scale for each channel of the shape.
    pub(crate) fn codes(&self, shape: &[usize], x: &[f32]) -> Result<Vec<i32>, String> {
        let channels = match self.axis {
            None => 1,
            Some(a) => *shape.get(a).ok_or_else(|| format!("axis {a} of shape {shape:?}"))?,
        };
        if self.scales.len() != channels || self.scales.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(format!("{channels} positive scales needed, found {}", self.scales.len()));
        }
        let inner: usize = self.axis.map_or(x.len(), |a| shape[a + 1..].iter().product()).max(1);
        let mut codes = vec![0; x.len()];
        let Some(groups) = self.codes.groups else {
            for ((run, x), scale) in codes.chunks_mut(inner).zip(x.chunks(inner)).zip(self.scales.iter().cycle()) {
                run.iter_mut().zip(x).for_each(|(code, x)| *code = self.codes.round_half_even(x / scale));
            }
            return Ok(codes);
        };
        let size = groups.size.clamp(1, x.len().max(1));
        let (mut near, mut products) = (vec![0.0; size], vec![0; size]);
        for (c, scale) in self.scales.iter().enumerate() {
            let runs = (c * inner..x.len()).step_by(channels * inner);
            let places: Vec<usize> = runs.flat_map(|start| start..start + inner).collect();
            for places in places.chunks(size) {
                let (near, products) = (&mut near[..places.len()], &mut products[..places.len()]);
                near.iter_mut().zip(places).for_each(|(near, &at)| *near = x[at] / scale);
                widest(
                    #[inline(always)]
                    || groups.round_half_even(near, products),
                );
                products.iter().zip(places).for_each(|(&product, &at)| codes[at] = product);
            }
        }
        Ok(codes)
    }
}

impl Scheme {
    /// What the scheme says of a constant; `None` of an activation's, of a codebook or groups on another grid than one of 8 bits, and
    /// of groups that are none.
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
            Scheme::Groups { grid, groups } => match &**grid {
                Scheme::Weight { bits: PRODUCT_BITS, axis: Some(axis), scales } if groups.is_valid() => {
                    Some(Constant { axis: Some(*axis), scales, codes: ConstantCodes::of_groups(*groups) })
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Bits of so many elements of a constant, and of the factors that groups of them share.
    pub fn stored_bits(&self, elements: u64) -> u64 {
        let codes = elements * u64::from(self.bits());
        let Some(Constant { scales, codes: ConstantCodes { groups: Some(groups), .. }, .. }) = self.constant() else {
            return codes;
        };
        let channels = scales.len().max(1) as u64;
        let factors = channels * (elements / channels).div_ceil(groups.size as u64);
        codes + factors * u64::from(PRODUCT_BITS - groups.bits)
    }

    /// The scales of a constant, to be changed.
    pub(crate) fn constant_scales(&mut self) -> Option<&mut Vec<f32>> {
        match self {
            Scheme::Weight { scales, .. } => Some(scales),
            Scheme::Codebook { grid, .. } | Scheme::Groups { grid, .. } => grid.constant_scales(),
            _ => None,
        }
    }
}

/// The channel axis of a constant: the output channel of a Linear's `[in, out]` and of a convolution's `[out, in, …]`, the
/// last axis of anything else.
pub(crate) fn channel_axis(site: Site, shape: &[usize]) -> Option<usize> {
    match (site, shape.len()) {
        (_, 0) => None,
        (Site::Conv | Site::PatchEmbed, _) => Some(0),
        (_, n) => Some(n - 1),
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
    fn factors_are_stored_too() {
        let grid = Scheme::Weight { bits: 8, axis: Some(1), scales: vec![1.0; 3] };
        assert_eq!(grid.stored_bits(60), 480);
        // 20 elements a channel: three groups, of 8, 8 and 4.
        let groups = Scheme::Groups { grid: Box::new(grid), groups: Groups { bits: 5, size: 8 } };
        assert_eq!(groups.stored_bits(60), 60 * 5 + 9 * 3);
    }

    #[test]
    fn what_is_not_a_number_is_0() {
        assert_eq!(ConstantCodes::of_width(8).round_half_even(f32::NAN), 0);
        assert_eq!(ConstantCodes::of_levels(&[-3, 2, 9]).round_half_even(f32::NAN), 2);
    }
}
