//! The exact extremes of a slice, and whether it is finite, at about memory speed.

use crate::simd::widest;

/// Elements whose extremes are known together, so that outliers need not be looked for everywhere.
pub(crate) const BLOCK: usize = 1024;
/// Elements that are looked at side by side.
const LANES: usize = 32;

/// Non-finite elements found where finite ones were expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite {
    /// NaN elements.
    pub nan: u64,
    /// Elements that are positive or negative infinity.
    pub infinite: u64,
}

impl NonFinite {
    /// Counts the non-finite elements of `data`.
    #[must_use]
    pub fn in_slice(data: &[f32]) -> Self {
        let mut found = Self { nan: 0, infinite: 0 };
        for x in data {
            found.nan += u64::from(x.is_nan());
            found.infinite += u64::from(x.is_infinite());
        }
        found
    }
}

/// The exact extremes of a slice, at about memory speed. `-0.0` counts as `0.0`, so that the result does not depend on the order.
///
/// An empty slice gives `(inf, -inf)`.
///
/// # Errors
/// The slice holds NaN or infinity.
pub fn finite_range(data: &[f32]) -> Result<(f32, f32), NonFinite> {
    widest(
        #[inline(always)]
        || finite_range_in_lanes(data),
    )
}

#[inline(always)]
fn finite_range_in_lanes(data: &[f32]) -> Result<(f32, f32), NonFinite> {
    let mut lo = [f32::INFINITY; LANES];
    let mut hi = [f32::NEG_INFINITY; LANES];
    // x·0 is ±0 for a finite x and NaN otherwise: one multiply-add sees both NaN and infinity.
    let mut poison = [0.0f32; LANES];
    let chunks = data.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (((&x, lo), hi), poison) in chunk.iter().zip(&mut lo).zip(&mut hi).zip(&mut poison) {
            *lo = if x < *lo { x } else { *lo };
            *hi = if x > *hi { x } else { *hi };
            *poison += x * 0.0;
        }
    }
    for (((&x, lo), hi), poison) in rest.iter().zip(&mut lo).zip(&mut hi).zip(&mut poison) {
        *lo = if x < *lo { x } else { *lo };
        *hi = if x > *hi { x } else { *hi };
        *poison += x * 0.0;
    }
    if fold(poison, |a: f32, b| a + b).is_nan() {
        return Err(NonFinite::in_slice(data));
    }
    Ok((fold(lo, least) + 0.0, fold(hi, most) + 0.0))
}

#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

#[inline(always)]
fn most(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// All lanes in one, halves against each other: one lane after the other would take longer than a short slice's elements.
#[inline(always)]
fn fold(lanes: [f32; LANES], pick: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let lanes: [f32; 16] = halved(lanes, pick);
    let lanes: [f32; 8] = halved(lanes, pick);
    let lanes: [f32; 4] = halved(lanes, pick);
    let [a, b] = halved(lanes, pick);
    pick(a, b)
}

#[inline(always)]
fn halved<const N: usize, const HALF: usize>(lanes: [f32; N], pick: impl Fn(f32, f32) -> f32) -> [f32; HALF] {
    let (low, high) = lanes.split_at(HALF);
    let mut out = [0.0; HALF];
    for ((out, &a), &b) in out.iter_mut().zip(low).zip(high) {
        *out = pick(a, b);
    }
    out
}

/// The same, and the extremes of every [`BLOCK`] of elements.
///
/// # Errors
/// As [`finite_range`].
pub(crate) fn finite_ranges(data: &[f32], of_blocks: &mut Vec<(f32, f32)>) -> Result<(f32, f32), NonFinite> {
    of_blocks.clear();
    of_blocks.reserve(data.len().div_ceil(BLOCK));
    let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
    for block in data.chunks(BLOCK) {
        // A call for each block: inlined into this loop, the lanes would not be kept in registers.
        let range = finite_range(block).map_err(|_| NonFinite::in_slice(data))?;
        (lo, hi) = (least(lo, range.0), most(hi, range.1));
        of_blocks.push(range);
    }
    Ok((lo, hi))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn extremes_are_those_of_comparing_one_by_one(data in prop::collection::vec(-1e30f32..1e30, 1..3000)) {
            let plain = |x: &[f32]| x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
            let mut blocks = vec![(0.0, 0.0)];
            prop_assert_eq!(finite_range(&data).unwrap(), plain(&data));
            prop_assert_eq!(finite_ranges(&data, &mut blocks).unwrap(), plain(&data));
            prop_assert_eq!(blocks, data.chunks(BLOCK).map(plain).collect::<Vec<_>>());
        }

        #[test]
        fn what_is_not_finite_is_counted_wherever_it_is(len in 1usize..3000, places in prop::collection::btree_map(0usize..3000, 0usize..3, 1..4)) {
            let mut data = vec![1.0f32; len];
            let (mut nan, mut infinite) = (0, 0);
            for (place, kind) in places.into_iter().filter(|(place, _)| *place < len) {
                data[place] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
                if kind == 0 { nan += 1 } else { infinite += 1 }
            }
            let expected = if nan + infinite > 0 { Err(NonFinite { nan, infinite }) } else { Ok((1.0, 1.0)) };
            prop_assert_eq!(finite_range(&data), expected);
            prop_assert_eq!(finite_ranges(&data, &mut Vec::new()), expected);
        }
    }

    #[test]
    fn zero_has_no_sign_and_nothing_has_no_extremes() {
        let (lo, hi) = finite_range(&[-0.0; 40]).unwrap();
        assert!(lo.is_sign_positive() && hi.is_sign_positive());
        assert_eq!(finite_range(&[]), Ok((f32::INFINITY, f32::NEG_INFINITY)));
    }
}
