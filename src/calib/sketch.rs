//! The tensor sketch: a one-pass histogram that needs no range and no order.
//!
//! A bin is (sign, exponent, leading [`MANTISSA_BITS`] mantissa bits), that is, the upper 16 bits of the float itself. The bins
//! exist before any data does, so counting is exact, merging adds integers, and every split of the data gives the same sketch.
//!
//! # Error bound
//!
//! A bin spans `[x, x·(1 + 2^-7))` at most, so a bin's centre is within a relative `2^-8` (0.39 %) of every value in it, and any order statistic
//! taken inside the right bin is within one bin width, `2^-7` (0.78 %). `min`, `max` and all ranks of bins are exact. Subnormal values
//! (below 1.2e-38) count as zero. Where an outer bin holds few elements, they can be kept exactly (`sparse`).

use crate::calib::extremes::{NonFinite, finite_range};
use crate::calib::histogram::{Bin, Histogram};
use crate::calib::pages::Pages;
use crate::calib::scratch::Scratch;
use crate::calib::sparse::{Fates, Sparse, few};
use crate::simd::widest;
use std::collections::BTreeSet;

/// Leading mantissa bits that select a bin.
pub const MANTISSA_BITS: u32 = 7;
/// Bins that share one sign and exponent.
pub(crate) const PAGE: usize = 1 << MANTISSA_BITS;
/// Bits of a float below those that make the bin.
pub(crate) const SHIFT: u32 = 23 - MANTISSA_BITS;
/// Largest exponent field of a finite float.
pub(crate) const MAX_EXPONENT: u16 = 254;

/// The bin of a float: its upper 16 bits.
#[inline(always)]
pub(crate) fn slot(bits: u32) -> u16 {
    (bits >> SHIFT) as u16
}

/// A page's first bin.
pub(crate) fn page_slot(negative: bool, exponent: u16) -> u16 {
    u16::from(negative) << 15 | exponent << MANTISSA_BITS
}

/// The exponent field of the larger magnitude.
pub(crate) fn top_of(lo: f32, hi: f32) -> u16 {
    u16::try_from(lo.abs().max(hi.abs()).to_bits() >> 23).unwrap_or(MAX_EXPONENT).min(MAX_EXPONENT)
}

/// Where a page stands among all pages, ascending with the values it holds: positive exponents as they are, negative ones mirrored.
pub(crate) type PageKey = i16;

fn page_key(negative: bool, exponent: u16) -> PageKey {
    let exponent = exponent.cast_signed();
    if negative { -1 - exponent } else { exponent }
}

/// Sign and exponent field of a key.
pub(crate) fn split_key(key: PageKey) -> (bool, u16) {
    if key < 0 { (true, (-1 - key).unsigned_abs()) } else { (false, key.unsigned_abs()) }
}

/// The mergeable histogram of one tensor over any number of samples. See the module's page for bins and error bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    pub(crate) count: u64,
    pub(crate) zero: u64,
    pub(crate) min: f32,
    pub(crate) max: f32,
    pub(crate) pages: Pages,
    /// `None` if not kept.
    pub(crate) sparse: Option<Sparse>,
}

impl Default for Sketch {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Sketch {
    /// No data yet. `outliers` says whether the elements of sparse outer bins are kept.
    #[must_use]
    pub fn new(outliers: bool) -> Self {
        let sparse = outliers.then(Sparse::default);
        Self { count: 0, zero: 0, min: f32::INFINITY, max: f32::NEG_INFINITY, pages: Pages::default(), sparse }
    }

    /// The sketch of one slice, weights for example.
    ///
    /// # Errors
    /// The slice holds NaN or infinity.
    pub fn from_slice(data: &[f32]) -> Result<Self, NonFinite> {
        let mut sketch = Self::default();
        sketch.extend(data, &mut Scratch::default())?;
        Ok(sketch)
    }

    /// Adds the elements of `data`. On an error the sketch is unchanged.
    ///
    /// # Errors
    /// The slice holds NaN or infinity.
    pub fn extend(&mut self, data: &[f32], scratch: &mut Scratch) -> Result<(), NonFinite> {
        if data.len() > Scratch::LIMIT {
            finite_range(data)?;
        }
        for part in data.chunks(Scratch::LIMIT) {
            let range = scratch.range(part, self.sparse.is_some())?;
            scratch.tally(part, range);
            self.absorb(range, part, scratch);
        }
        Ok(())
    }

    /// Takes over what a scratch table knows of `data`, elements within `range`.
    pub(crate) fn absorb(&mut self, range: (f32, f32), data: &[f32], scratch: &mut Scratch) {
        widest(
            #[inline(always)]
            || self.absorb_in_vectors(range, data, scratch),
        );
    }

    #[inline(always)]
    fn absorb_in_vectors(&mut self, (lo, hi): (f32, f32), data: &[f32], scratch: &mut Scratch) {
        let mut counted = std::mem::take(&mut scratch.counted);
        let old_top = self.top();
        self.min = self.min.min(lo);
        self.max = self.max.max(hi);
        self.count += counted.count;
        self.zero += counted.zero;
        self.pages.reserve(self.count);
        let top = self.top();
        let mut sparse = self.sparse.take();
        if top > old_top
            && let Some(sparse) = &mut sparse
        {
            // Under a larger magnitude bins keep fewer.
            let kept = self.kept();
            sparse.retain(|slot| kept.contains(&slot));
        }
        let mut fates = Fates::default();
        for (negative, pages) in [(true, &counted.negative), (false, &counted.positive)] {
            for new in pages {
                let page = self.pages.add(page_key(negative, new.exponent), &new.counts);
                let few = few(new.exponent, top);
                if sparse.is_some() && few > 0 {
                    fates.note(page_slot(negative, new.exponent), few, page, &new.counts, scratch);
                }
            }
        }
        if let Some(sparse) = &mut sparse {
            sparse.apply(&fates, data, scratch);
        }
        self.sparse = sparse;
        counted.clear(); // its buffers serve again
        scratch.counted = counted;
    }

    /// The exponent field of the largest magnitude; 0 before any element.
    fn top(&self) -> u16 {
        if self.count == 0 { 0 } else { top_of(self.min, self.max) }
    }

    /// The sparse outer bins, ascending by number, and how many elements each has.
    pub(crate) fn sparse_bins(&self) -> Vec<(u16, usize)> {
        let top = self.top();
        let mut bins = Vec::new();
        // By number, the negative ones come last, from the smallest magnitude.
        let (positive, negative) =
            (self.pages.iter().filter(|(key, _)| *key >= 0), self.pages.iter().filter(|(key, _)| *key < 0));
        for (key, counts) in positive.chain(negative.rev()) {
            let (negative, exponent) = split_key(key);
            let few = few(exponent, top);
            if few > 0 {
                let numbered = (page_slot(negative, exponent)..).zip(counts.iter());
                bins.extend(numbered.filter(|(_, count)| (1..=few).contains(count)).map(|(slot, count)| (slot, count as usize)));
            }
        }
        bins
    }

    /// The numbers of the sparse outer bins.
    fn kept(&self) -> BTreeSet<u16> {
        self.sparse_bins().into_iter().map(|(slot, _)| slot).collect()
    }

    /// Adds another sketch. Commutative and associative, exactly.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.zero += other.zero;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.pages.reserve(self.count);
        for (key, page) in other.pages.iter() {
            self.pages.add_all(key, page.iter());
        }
        // What one of them has not kept, the sum cannot have.
        self.sparse = self.sparse.take().zip(other.sparse.as_ref()).map(|(mut sparse, more)| {
            sparse.merge(more);
            let kept = self.kept();
            sparse.retain(|slot| kept.contains(&slot));
            sparse
        });
    }

    /// Elements seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Elements that are zero or subnormal.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zero
    }

    /// The exact extremes, or `None` before any element.
    #[must_use]
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// The sketch as ascending bins, `2^bits` to an octave. `bits` above [`MANTISSA_BITS`] gives the full resolution.
    #[must_use]
    pub fn histogram(&self, bits: u32) -> Histogram {
        self.bins(bits, false)
    }

    /// The histogram at the full resolution, and beyond where the sketch knows more: a sparse outer bin's elements are points.
    #[must_use]
    pub fn finest_histogram(&self) -> Histogram {
        self.bins(MANTISSA_BITS, true)
    }

    fn bins(&self, bits: u32, points: bool) -> Histogram {
        let group = PAGE >> bits.min(MANTISSA_BITS);
        let mut bins = Vec::new();
        let mut zero_pending = self.zero;
        for (key, counts) in self.pages.iter() {
            if key >= 0 && zero_pending > 0 {
                bins.push(Bin::point(0.0, zero_pending));
                zero_pending = 0;
            }
            let (negative, exponent) = split_key(key);
            let start = bins.len();
            let mut counts = counts.iter();
            for j in 0..PAGE / group {
                let count: u64 = counts.by_ref().take(group).sum();
                let sparse = self.sparse.as_ref().filter(|_| points);
                let known = sparse.map_or(&[][..], |sparse| sparse.of(page_slot(negative, exponent) + j as u16));
                if !known.is_empty() {
                    bins.extend(known.iter().map(|&bits| Bin::point(f64::from(f32::from_bits(bits)), 1)));
                } else if count > 0 {
                    let (from, to) = (j * group, (j + 1) * group);
                    let (a, b) = (edge(exponent, from as f64 / PAGE as f64), edge(exponent, to as f64 / PAGE as f64));
                    bins.push(if negative { Bin { lo: -b, hi: -a, count } } else { Bin { lo: a, hi: b, count } });
                }
            }
            if negative && let Some(page) = bins.get_mut(start..) {
                page.reverse();
            }
        }
        if zero_pending > 0 {
            bins.push(Bin::point(0.0, zero_pending));
        }
        Histogram::new(bins, f64::from(self.min), f64::from(self.max))
    }
}

/// The magnitude at `fraction` of the octave that the exponent field names; exact.
pub(crate) fn edge(exponent: u16, fraction: f64) -> f64 {
    let octave = f64::from_bits((u64::from(exponent) + 1023 - 127) << 52);
    octave * (1.0 + fraction)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    /// Any finite float, with the awkward ones made frequent.
    fn any_f32() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -10.0f32..10.0,
            2 => proptest::num::f32::NORMAL,
            1 => proptest::num::f32::SUBNORMAL,
            1 => prop_oneof![Just(0.0f32), Just(-0.0), Just(f32::MAX), Just(f32::MIN), Just(1.0), Just(-2.0)],
        ]
    }

    proptest! {
        #[test]
        fn every_element_lies_in_its_bin(data in prop::collection::vec(any_f32(), 1..300), bits in 0u32..9) {
            let sketch = Sketch::from_slice(&data).unwrap();
            let histogram = sketch.histogram(bits);
            let mut expected = vec![0u64; histogram.bins().len()];
            for &x in &data {
                let x = if x.is_subnormal() { 0.0 } else { f64::from(x) };
                // Half-open away from zero, closed at the clipped ends.
                let found: Vec<usize> = histogram.bins().iter().enumerate().filter(|&(i, b)| {
                    if b.lo == b.hi { x == b.lo }
                    else if b.lo >= 0.0 { x >= b.lo && (x < b.hi || (x == b.hi && i + 1 == expected.len())) }
                    else { (x > b.lo || (x == b.lo && i == 0)) && x <= b.hi }
                }).map(|(i, _)| i).collect();
                prop_assert_eq!(found.len(), 1, "{} in {:?}", x, histogram);
                expected[found[0]] += 1;
            }
            let counts: Vec<u64> = histogram.bins().iter().map(|b| b.count).collect();
            prop_assert_eq!(counts, expected);
            let width = 2.0f64.powi(-(bits.min(MANTISSA_BITS) as i32));
            for b in histogram.bins() {
                let near = b.lo.abs().min(b.hi.abs());
                prop_assert!(b.hi - b.lo <= near * width * (1.0 + 1e-12) || b.lo == b.hi);
            }
            for pair in histogram.bins().windows(2) {
                prop_assert!(pair[0].hi <= pair[1].lo);
            }
        }

        #[test]
        fn extremes_are_exact(data in prop::collection::vec(any_f32(), 1..100)) {
            let sketch = Sketch::from_slice(&data).unwrap();
            let lo = data.iter().copied().fold(f32::INFINITY, f32::min) + 0.0;
            let hi = data.iter().copied().fold(f32::NEG_INFINITY, f32::max) + 0.0;
            prop_assert_eq!(sketch.range().map(|(l, h)| (l.to_bits(), h.to_bits())), Some((lo.to_bits(), hi.to_bits())));
            prop_assert_eq!(sketch.count(), data.len() as u64);
        }

        #[test]
        fn any_split_in_any_order_is_one_sketch(
            data in prop::collection::vec(any_f32(), 0..200),
            cuts in prop::collection::vec(0usize..200, 0..6),
            rotate in 0usize..7,
        ) {
            let whole = Sketch::from_slice(&data).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(data.len())).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let mut parts: Vec<Sketch> = cuts.windows(2).map(|w| Sketch::from_slice(&data[w[0]..w[1]]).unwrap()).collect();
            let turn = rotate % parts.len();
            parts.rotate_left(turn);
            // A left fold, and a fold of pairs: another association.
            let mut left = Sketch::default();
            parts.iter().for_each(|p| left.merge(p));
            while parts.len() > 1 {
                parts = parts.chunks(2).map(|pair| {
                    let mut sum = pair[0].clone();
                    if let Some(second) = pair.get(1) { sum.merge(second); }
                    sum
                }).collect();
            }
            prop_assert_eq!(&left, &whole);
            prop_assert_eq!(left.min.to_bits(), whole.min.to_bits());
            prop_assert_eq!(&parts[0], &whole);
        }
    }

    #[test]
    fn non_finite_elements_are_counted_and_leave_no_trace() {
        let mut sketch = Sketch::from_slice(&[1.0, -3.0]).unwrap();
        let before = sketch.clone();
        let mut scratch = Scratch::default();
        let mut data = vec![1.0f32; 40];
        data[3] = f32::NAN;
        data[17] = f32::INFINITY;
        data[39] = f32::NEG_INFINITY;
        let error = sketch.extend(&data, &mut scratch).unwrap_err();
        assert_eq!(error, NonFinite { nan: 1, infinite: 2 });
        assert_eq!(sketch, before);
        sketch.extend(&[2.0], &mut scratch).unwrap();
        assert_eq!(sketch.count(), 3);
    }

    #[test]
    fn negative_zero_and_order_do_not_show() {
        let a = Sketch::from_slice(&[0.0, -0.0]).unwrap();
        let b = Sketch::from_slice(&[-0.0, 0.0]).unwrap();
        assert_eq!(a.min.to_bits(), b.min.to_bits());
        assert_eq!(a.min.to_bits(), 0);
        assert_eq!(a.zeros(), 2);
        assert_eq!(Sketch::default().range(), None);
    }
}
