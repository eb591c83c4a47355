//! Per-channel statistics: exact ranges, and compact sketches where an observer looks inside a channel (PTF, channel-wise percentiles).
//!
//! A channel's sketch is half a kilobyte, and one beyond 65,535 elements: for each sign, [`KEPT`] bins below the channel's largest
//! magnitude, `2^`[`CHANNEL_MANTISSA_BITS`] to an octave, and one bin for everything smaller. The window only ever moves up, and
//! moving it early drops nothing that moving it late would keep, so the result is the same in any order: the sketch merges exactly,
//! like the tensor's.
//!
//! # Error bound
//!
//! A bin's centre is within a relative `2^-4` of every value in it (an order statistic within `2^-3`) down to `2^-14` of the channel's largest
//! magnitude; smaller values are only known to be that small. Enough to choose among scales that differ by factors of two.

use crate::calib::histogram::{Bin, Histogram};
use crate::calib::rows::{HALF, MANTISSA_BITS, OCTAVE, ROW, Rows, base_key, columns, steps};
use crate::calib::sketch::edge;
use crate::simd::widest;

/// Leading mantissa bits that select a channel's bin.
pub const CHANNEL_MANTISSA_BITS: u32 = MANTISSA_BITS;
/// Bins that keep their place below the largest magnitude.
pub const KEPT: usize = HALF - 1;
/// Channels whose extremes are found together: what the processor's registers hold.
const BLOCK: usize = 32;

/// A tensor seen as `outer × channels × inner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Product of the dimensions before the channel axis.
    pub outer: usize,
    /// Length of the channel axis.
    pub channels: usize,
    /// Product of the dimensions after it.
    pub inner: usize,
}

impl Layout {
    /// The layout of `shape` with the channel axis counted from the end (1 is the last). `None` if the shape has no such axis.
    #[must_use]
    pub fn new(shape: &[usize], axis_from_end: usize) -> Option<Self> {
        let axis = shape.len().checked_sub(axis_from_end)?;
        let channels = *shape.get(axis)?;
        Some(Self { outer: shape.get(..axis)?.iter().product(), channels, inner: shape.get(axis + 1..)?.iter().product() })
    }
}

/// Exact ranges, and sketches if asked for, of every channel of one value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Channels {
    /// Elements seen in each channel.
    pub(crate) count: u64,
    pub(crate) lo: Vec<f32>,
    pub(crate) hi: Vec<f32>,
    pub(crate) rows: Option<Rows>,
}

impl Channels {
    /// No data yet.
    #[must_use]
    pub fn new(channels: usize, sketches: bool) -> Self {
        Self {
            count: 0,
            lo: vec![f32::INFINITY; channels],
            hi: vec![f32::NEG_INFINITY; channels],
            rows: sketches.then(|| Rows::new(channels)),
        }
    }

    /// The statistics of one finite tensor, weights for example. `None` if the layout does not fit the data or a channel
    /// has 2^32 elements or more.
    #[must_use]
    pub fn from_slice(data: &[f32], layout: Layout, sketches: bool) -> Option<Self> {
        let mut channels = Self::new(layout.channels, sketches);
        channels.extend(data, layout).then_some(channels)
    }

    /// How many channels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lo.len()
    }

    /// Whether there is no channel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lo.is_empty()
    }

    /// Elements seen in each channel.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether sketches were recorded beside the ranges.
    #[must_use]
    pub fn has_sketches(&self) -> bool {
        self.rows.is_some()
    }

    /// The exact extremes of one channel. `None` for a channel that does not exist or saw nothing.
    #[must_use]
    pub fn range(&self, channel: usize) -> Option<(f32, f32)> {
        let (&lo, &hi) = (self.lo.get(channel)?, self.hi.get(channel)?);
        (self.count > 0).then_some((lo, hi))
    }

    /// Adds a tensor of finite elements. `false`, and nothing changed, if the layout does not fit or a counter could overflow.
    pub fn extend(&mut self, data: &[f32], layout: Layout) -> bool {
        let Layout { outer, channels, inner } = layout;
        let fits = outer.checked_mul(channels).and_then(|n| n.checked_mul(inner)) == Some(data.len());
        let count = self.count + (outer * inner) as u64;
        if !fits || channels != self.len() || count > u64::from(u32::MAX) {
            return false;
        }
        if data.is_empty() {
            return true;
        }
        self.count = count;
        widest(
            #[inline(always)]
            || self.extend_ranges(data, layout),
        );
        let (lo, hi) = (&self.lo, &self.hi);
        if let Some(rows) = &mut self.rows {
            rows.reserve(count);
            rows.raise(lo, hi);
            if inner == 1 {
                widest(
                    #[inline(always)]
                    || rows.count_columns(data),
                );
            } else {
                rows.count_runs(data, inner);
            }
        }
        true
    }

    #[inline(always)]
    fn extend_ranges(&mut self, data: &[f32], layout: Layout) {
        if layout.inner == 1 {
            let mut start = 0;
            for (lo, hi) in self.lo.chunks_mut(BLOCK).zip(self.hi.chunks_mut(BLOCK)) {
                let rows = columns(data, layout.channels, start..start + lo.len());
                start += lo.len();
                if let (Ok(lo), Ok(hi)) = (<&mut [f32; BLOCK]>::try_from(&mut *lo), <&mut [f32; BLOCK]>::try_from(&mut *hi)) {
                    // Copies stay in registers for all rows.
                    let (mut least, mut most) = (*lo, *hi);
                    for row in rows.filter_map(|row| <&[f32; BLOCK]>::try_from(row).ok()) {
                        widen(row, &mut least, &mut most);
                    }
                    (*lo, *hi) = (least, most);
                } else {
                    for row in rows {
                        widen(row, lo, hi);
                    }
                }
            }
        } else {
            for block in data.chunks_exact(layout.channels * layout.inner) {
                for ((run, lo), hi) in block.chunks_exact(layout.inner).zip(&mut self.lo).zip(&mut self.hi) {
                    // Finite by contract; should it not be, the ranges stay as they are.
                    let (run_lo, run_hi) = super::extremes::finite_range(run).unwrap_or((*lo, *hi));
                    *lo = lo.min(run_lo);
                    *hi = hi.max(run_hi);
                }
            }
        }
        for x in self.lo.iter_mut().chain(&mut self.hi) {
            *x += 0.0; // -0.0 becomes 0.0: which of the two came first must not show
        }
    }

    /// Adds another value's channels. Exact. `false`, and nothing changed, if the numbers of channels or the recorded kinds differ, or
    /// a counter could overflow.
    pub fn merge(&mut self, other: &Self) -> bool {
        let fits = self.len() == other.len()
            && self.rows.is_some() == other.rows.is_some()
            && self.count + other.count <= u64::from(u32::MAX);
        if !fits {
            return false;
        }
        self.count += other.count;
        for (a, &b) in self.lo.iter_mut().zip(&other.lo) {
            *a = a.min(b);
        }
        for (a, &b) in self.hi.iter_mut().zip(&other.hi) {
            *a = a.max(b);
        }
        if let (Some(rows), Some(more)) = (&mut self.rows, &other.rows) {
            rows.reserve(self.count);
            rows.merge(more);
        }
        true
    }

    /// One channel's histogram. `None` without sketches or for a channel that does not exist.
    #[must_use]
    pub fn histogram(&self, channel: usize) -> Option<Histogram> {
        self.group(channel..channel.checked_add(1)?)
    }

    /// The histogram of several channels together (a head, a group). `None` without sketches, or for channels that do not exist.
    #[must_use]
    pub fn group(&self, channels: std::ops::Range<usize>) -> Option<Histogram> {
        let rows = self.rows.as_ref()?;
        if channels.is_empty() || channels.end > self.len() {
            return None;
        }
        let lo = self.lo.get(channels.clone())?.iter().copied().fold(f32::INFINITY, f32::min);
        let hi = self.hi.get(channels.clone())?.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let top = rows.tops().get(channels.clone())?.iter().copied().max()?;
        // A group may pass 2^32, so its counters are wider.
        let mut sum = [0u64; ROW];
        for channel in channels {
            let down = steps(*rows.tops().get(channel)?, top);
            for (at, count) in rows.of(channel).enumerate() {
                // Down within its own half.
                let (half, k) = (at / HALF * HALF, at % HALF);
                if let Some(slot) = sum.get_mut(half + k.saturating_sub(down)) {
                    *slot += u64::from(count);
                }
            }
        }
        Some(to_histogram(&sum, top, f64::from(lo), f64::from(hi)))
    }
}

/// Takes one row's elements into their channels' extremes.
#[inline(always)]
fn widen(row: &[f32], lo: &mut [f32], hi: &mut [f32]) {
    for ((&x, lo), hi) in row.iter().zip(lo).zip(hi) {
        *lo = if x < *lo { x } else { *lo };
        *hi = if x > *hi { x } else { *hi };
    }
}

fn to_histogram(counts: &[u64; ROW], top: u16, min: f64, max: f64) -> Histogram {
    let (positive, negative) = counts.split_at(HALF);
    let base = base_key(top);
    // Edges of bin k; the lowest reaches to zero, and so does everything subnormal.
    let edges = |k: usize| {
        let key = base + k as i32;
        let (lo, hi) = (magnitude(key), magnitude(key + 1));
        if k == 0 { (0.0, hi) } else { (lo, hi) }
    };
    let mut bins = Vec::new();
    for (k, &count) in negative.iter().enumerate().rev() {
        if count > 0 {
            let (lo, hi) = edges(k);
            bins.push(Bin { lo: -hi, hi: -lo, count });
        }
    }
    for (k, &count) in positive.iter().enumerate() {
        if count > 0 {
            let (lo, hi) = edges(k);
            bins.push(Bin { lo, hi, count });
        }
    }
    Histogram::new(bins, min, max)
}

/// The magnitude whose upper bits are `key`; 0 where the key is subnormal or below.
fn magnitude(key: i32) -> f64 {
    let octave = OCTAVE.cast_signed();
    match u16::try_from(key.div_euclid(octave)) {
        Ok(exponent) if exponent > 0 => edge(exponent, f64::from(key.rem_euclid(octave)) / f64::from(octave)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            5 => -20.0f32..20.0,
            1 => proptest::num::f32::NORMAL.prop_map(|x| x / 4.0),
            1 => prop_oneof![Just(0.0f32), Just(-0.0), Just(1e-6), Just(-577.0), Just(1.0e-40)],
        ]
    }

    proptest! {
        #[test]
        fn any_order_of_rows_is_one_result(rows in prop::collection::vec(prop::collection::vec(value(), 3), 1..40), cut in 0usize..40) {
            let layout = |n| Layout { outer: n, channels: 3, inner: 1 };
            let flat = |rows: &[Vec<f32>]| rows.concat();
            let whole = Channels::from_slice(&flat(&rows), layout(rows.len()), true).unwrap();
            let cut = cut.min(rows.len());
            let mut a = Channels::from_slice(&flat(&rows[..cut]), layout(cut), true).unwrap();
            let mut b = Channels::from_slice(&flat(&rows[cut..]), layout(rows.len() - cut), true).unwrap();
            let first = a.clone();
            prop_assert!(a.merge(&b));
            prop_assert_eq!(&a, &whole);
            prop_assert!(b.merge(&first));
            prop_assert_eq!(&b, &whole);
            let mut one_by_one = Channels::new(3, true);
            for row in rows.iter().rev() {
                prop_assert!(one_by_one.extend(row, layout(1)));
            }
            prop_assert_eq!(&one_by_one, &whole);
        }

        #[test]
        fn every_element_lies_in_its_bin(data in prop::collection::vec(value(), 1..150)) {
            let layout = Layout { outer: data.len(), channels: 1, inner: 1 };
            let histogram = Channels::from_slice(&data, layout, true).unwrap().histogram(0).unwrap();
            prop_assert_eq!(histogram.count(), data.len() as u64);
            let mut left: Vec<u64> = histogram.bins().iter().map(|b| b.count).collect();
            let largest = histogram.max_abs();
            for &x in &data {
                let x = f64::from(x);
                // Edges are shared, so an element on one may be counted on either side of zero.
                let at = histogram.bins().iter().zip(&left).position(|(b, &n)| n > 0 && x.is_sign_negative() == (b.lo < 0.0) && if b.lo >= 0.0 {
                    b.lo <= x && (x < b.hi || (x == b.hi && x == histogram.max()))
                } else {
                    x <= b.hi && (b.lo < x || (x == b.lo && x == histogram.min()))
                });
                let zero = histogram.bins().iter().zip(&left).position(|(b, &n)| n > 0 && x.abs() < 1e-37 && b.lo.abs().min(b.hi.abs()) == 0.0);
                let at = at.or(zero);
                prop_assert!(at.is_some(), "{} in {:?}", x, histogram);
                left[at.unwrap()] -= 1;
            }
            for b in histogram.bins() {
                let near = b.lo.abs().min(b.hi.abs());
                prop_assert!(b.hi - b.lo <= near / 8.0 + 1e-12 * near || b.lo.abs().max(b.hi.abs()) <= largest / 2.0f64.powi(14));
            }
        }

        #[test]
        fn a_wide_tensor_equals_its_columns(seed in 0u32..1000, outer in 1usize..5) {
            // 150 channels: two full blocks and a rest.
            let channels = 150;
            let data: Vec<f32> = (0..outer * channels)
                .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) as f32 / 4e9 - 0.5) * (1 << (i % 12)) as f32).collect();
            let all = Channels::from_slice(&data, Layout { outer, channels, inner: 1 }, true).unwrap();
            for c in 0..channels {
                let column: Vec<f32> = data.iter().skip(c).step_by(channels).copied().collect();
                // As a run, so that the other inner loop is the oracle.
                let one = Channels::from_slice(&column, Layout { outer: 1, channels: 1, inner: outer }, true).unwrap();
                prop_assert_eq!(all.histogram(c), one.histogram(0));
                prop_assert_eq!(all.range(c), one.range(0));
            }
        }
    }

    #[test]
    fn groups_and_axes() {
        let data: Vec<f32> = (0..24).map(|i| i as f32 - 12.0).collect();
        let layout = Layout::new(&[2, 3, 4], 2).unwrap();
        assert_eq!(layout, Layout { outer: 2, channels: 3, inner: 4 });
        let channels = Channels::from_slice(&data, layout, true).unwrap();
        assert_eq!(channels.range(0), Some((-12.0, 3.0)));
        assert_eq!(channels.range(2), Some((-4.0, 11.0)));
        let group = channels.group(1..3).unwrap();
        assert_eq!((group.count(), group.min(), group.max()), (16, -8.0, 11.0));
        assert!(channels.group(2..4).is_none());
        assert!(Channels::from_slice(&data, layout, false).unwrap().histogram(0).is_none());
        assert!(Channels::from_slice(&data, Layout { outer: 1, channels: 3, inner: 4 }, true).is_none());
        assert!(Layout::new(&[2, 3], 3).is_none());
        assert!(Layout::new(&[2, 3], 0).is_none());
    }
}
