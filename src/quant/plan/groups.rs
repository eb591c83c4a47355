//! Constants of few bits with a small integer factor for a few elements at a time.
//!
//! Two-level scales (VS-Quant, Dai et al., arXiv 2102.04503): the real value is `scale_c · f · q`, with one scale for an output
//! channel and a factor f for each group of its elements. `f · q` fits 8 bits, so that an engine for 8-bit weights needs to
//! know nothing of groups; one that multiplies fewer bits multiplies q and, once a group, the sum by f. The smallest f that divides all
//! products of a group and leaves none above the largest q is one that it can take.

/// The width of `f · q`.
pub(crate) const PRODUCT_BITS: u8 = 8;
/// The most factors, those of 4 bits.
const FACTORS: usize = 16;

/// How a constant's elements share factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Groups {
    /// The width of q, 4 to 7: ±(2^(bits−1) − 1).
    pub bits: u8,
    /// Elements of a group: so many that follow each other in an output channel, the last group of a channel maybe fewer.
    #[serde(rename = "group_size")]
    pub size: usize,
}

impl Groups {
    /// Whether the width is one of 4 to 7 and a group has two elements at least.
    pub fn is_valid(self) -> bool {
        (4..PRODUCT_BITS).contains(&self.bits) && self.size > 1
    }

    /// The largest q.
    pub fn top(self) -> i32 {
        (1 << (self.bits.clamp(4, PRODUCT_BITS - 1) - 1)) - 1
    }

    /// The largest f: 8 − bits bits hold f − 1.
    pub fn largest_factor(self) -> i32 {
        1 << (PRODUCT_BITS - self.bits.clamp(4, PRODUCT_BITS - 1))
    }

    /// The largest `f · q`.
    pub fn largest(self) -> i32 {
        self.top() * self.largest_factor()
    }

    /// The factor of a group whose elements lie at `x` scales: the one with the least squared error, the smallest of several. If some
    /// factor represents all elements exactly, every factor without error gives the same products. What is not finite has no say.
    #[inline(always)]
    fn factor(self, x: &[f32]) -> i32 {
        let (top, mut errors) = (f64::from(self.top()), [0.0f64; FACTORS]);
        for x in x.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)) {
            for (error, f) in errors.iter_mut().zip(1u8..) {
                let f = f64::from(f);
                let missed = x - f * (x / f).round_ties_even().clamp(-top, top);
                *error += missed * missed;
            }
        }
        let known = &errors[..self.largest_factor() as usize];
        let best = (0..known.len()).fold(0, |best, f| if known[f] < known[best] { f } else { best });
        best as i32 + 1
    }

    /// The products `f · q` of a group whose elements lie at `x` scales. Not a number has the code 0.
    #[inline(always)]
    pub(super) fn round_half_even(self, x: &[f32], products: &mut [i32]) {
        let (factor, top) = (self.factor(x), f64::from(self.top()));
        for (product, &x) in products.iter_mut().zip(x) {
            let code = (f64::from(x) / f64::from(factor)).round_ties_even().clamp(-top, top);
            *product = factor * code as i32;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn products(groups: Groups, x: &[f32]) -> Vec<i32> {
        let mut out = vec![0; x.len()];
        groups.round_half_even(x, &mut out);
        out
    }

    fn error(x: &[f32], products: &[i32]) -> f64 {
        x.iter().zip(products).map(|(&x, &p)| (f64::from(x) - f64::from(p)).powi(2)).sum()
    }

    proptest! {
        /// No factor with the nearest codes to it has less error, and some factor has these products.
        #[test]
        fn the_best_of_all_factors(x in prop::collection::vec(-150f32..150.0, 1..20), bits in 4u8..8) {
            let groups = Groups { bits, size: x.len().max(2) };
            let (top, found) = (groups.top(), products(groups, &x));
            prop_assert!(found.iter().all(|p| (-127..=127).contains(p)));
            let of = |f: i32| (1..=groups.largest_factor()).contains(&f) && found.iter().all(|p| p % f == 0 && (p / f).abs() <= top);
            prop_assert!((1..=16).any(of), "{found:?}");
            for f in 1..=groups.largest_factor() {
                let nearest = |&x: &f32| (-top..=top).map(|q| f * q).min_by(|a, b| {
                    let far = |p: &i32| (f64::from(x) - f64::from(*p)).abs();
                    far(a).total_cmp(&far(b))
                });
                let other: Vec<i32> = x.iter().filter_map(nearest).collect();
                prop_assert!(error(&x, &found) <= error(&x, &other) + 1e-6, "factor {f}: {other:?} for {found:?}");
            }
        }

        /// What has been rounded, behind a scale and a float's error, stays as it is.
        #[test]
        fn products_are_kept(q in prop::collection::vec(-7i32..=7, 1..20), f in 1i32..=16, scale in 1e-4f32..1e4) {
            let wanted: Vec<i32> = q.iter().map(|q| f * q).collect();
            let x: Vec<f32> = wanted.iter().map(|&p| p as f32 * scale / scale).collect();
            prop_assert_eq!(products(Groups { bits: 4, size: 8 }, &x), wanted);
        }
    }

    #[test]
    fn products_fill_8_bits_and_no_more() {
        let largest = |bits| Groups { bits, size: 8 }.largest();
        assert_eq!([4, 5, 6, 7].map(largest), [112, 120, 124, 126]);
    }

    #[test]
    fn what_is_not_finite_does_not_cut_the_others_off() {
        let groups = Groups { bits: 4, size: 3 };
        assert_eq!(products(groups, &[f32::NAN, 98.0, f32::NEG_INFINITY]), [0, 98, -98]);
        assert_eq!(products(groups, &[f32::NAN; 2]), [0, 0]);
    }
}
