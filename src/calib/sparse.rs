//! The elements of a sketch's sparse outer bins, exactly.
//!
//! Far from zero a bin of the sketch spans several of the equal bins that [`kl`](crate::calib::kl) fills, and of a few outliers in it only their
//! values tell which of those they fill; a threshold of KL can only end at one that is filled. So a bin keeps its elements while they are
//! [`few`]: no more than the equal bins that it spans.
//!
//! The largest magnitude and a bin's count only grow, and the lower a bin lies under that magnitude the fewer it keeps. So what the whole data's
//! sketch keeps, the sketch of no part of them has dropped: the result is the same in any order, and merges exactly.

use crate::calib::extremes::BLOCK;
use crate::calib::pages::Page;
use crate::calib::scratch::Scratch;
use crate::calib::sketch::{MANTISSA_BITS, PAGE, SHIFT, slot};

/// The sketch's bins are wider than one of 2^11 equal bins, KL's own number, in so many octaves.
const OCTAVES: u32 = 11 - MANTISSA_BITS;
/// Elements that are looked at side by side: a byte of a word for each.
const LANES: usize = size_of::<u128>();

/// How many elements a bin with this exponent keeps, `top` being the largest magnitude's: so many equal bins it spans, on data of both
/// signs. With more elements than that, they are taken as spread over them all. 0 where it spans one.
#[inline(always)]
pub(crate) fn few(exponent: u16, top: u16) -> u64 {
    let below = u32::from(top.saturating_sub(exponent));
    if below < OCTAVES { 1 << (OCTAVES - below) } else { 0 }
}

/// Adds those elements of `part` that are `outer` and in bins that are to be kept.
#[inline(always)]
fn take(part: &[f32], outer: impl Fn(f32) -> bool, scratch: &Scratch, fresh: &mut Vec<u32>) {
    for part in part.chunks(LANES) {
        let mut found = [0; LANES];
        for (found, &x) in found.iter_mut().zip(part) {
            *found = u8::from(outer(x));
        }
        let mut found = u128::from_le_bytes(found);
        while found != 0 {
            let bits = part.get(found.trailing_zeros() as usize / 8).map_or(0, |x| x.to_bits());
            if scratch.get(slot(bits)) == Fate::Keep as u16 {
                fresh.push(bits);
            }
            found &= found - 1;
        }
    }
}

/// The elements kept, their bits ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sparse {
    pub(crate) bits: Vec<u32>,
}

/// What becomes of a bin that a tensor's elements have fallen into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is sparse still: its elements are to be taken out of the tensor.
    Keep = 1,
    /// It was sparse: its elements are to be forgotten.
    Forget = 2,
}

/// The bins with a fate, in a scratch table that is empty otherwise.
#[derive(Debug)]
pub(crate) struct Fates {
    slots: Vec<u16>,
    /// Elements to keep are not between these.
    inner: (f32, f32),
    forget: bool,
}

impl Default for Fates {
    fn default() -> Self {
        Self { slots: Vec::new(), inner: (f32::NEG_INFINITY, f32::INFINITY), forget: false }
    }
}

impl Fates {
    /// Notes what becomes of the bins of a page, the first of which is `first`, now that `counts` have been added to it; they keep [`few`].
    #[inline(always)]
    pub(crate) fn note(&mut self, first: u16, few: u64, page: Page<'_>, counts: &[u32; PAGE], scratch: &mut Scratch) {
        match page {
            Page::Narrow(sums) => self.note_in(first, few, sums, counts, scratch),
            Page::Wide(sums) => self.note_in(first, few, sums, counts, scratch),
        }
    }

    #[inline(always)]
    fn note_in<C: Copy + Into<u64>>(
        &mut self,
        first: u16,
        few: u64,
        sums: &[C; PAGE],
        counts: &[u32; PAGE],
        scratch: &mut Scratch,
    ) {
        let kept = |sum: u64, count: u64| (count > 0) & (sum <= few);
        let forgotten = |sum: u64, count: u64| (count > 0) & (sum > few) & (sum - count <= few) & (sum > count);
        let bins = || sums.iter().zip(counts).map(|(&sum, &count)| (sum.into(), u64::from(count)));
        // Most pages hold neither, which vectors see faster than branches.
        if !bins().fold(false, |any, (sum, count)| any | kept(sum, count) | forgotten(sum, count)) {
            return;
        }
        for (slot, (sum, count)) in (first..).zip(bins()) {
            if kept(sum, count) {
                let edge = f32::from_bits(u32::from(slot) << SHIFT);
                if edge < 0.0 {
                    self.inner.0 = self.inner.0.max(edge);
                } else {
                    self.inner.1 = self.inner.1.min(edge);
                }
                self.set(slot, Fate::Keep, scratch);
            } else if forgotten(sum, count) {
                self.forget = true;
                self.set(slot, Fate::Forget, scratch);
            }
        }
    }

    fn set(&mut self, slot: u16, fate: Fate, scratch: &mut Scratch) {
        self.slots.push(slot);
        scratch.set(slot, fate as u16);
    }
}

impl Sparse {
    /// The elements of one bin.
    pub(crate) fn of(&self, of: u16) -> &[u32] {
        let from = self.bits.partition_point(|&bits| slot(bits) < of);
        let rest = self.bits.get(from..).unwrap_or_default();
        rest.get(..rest.partition_point(|&bits| slot(bits) == of)).unwrap_or_default()
    }

    /// Keeps only elements of bins for which `keep` says so.
    pub(crate) fn retain(&mut self, keep: impl Fn(u16) -> bool) {
        self.bits.retain(|&bits| keep(slot(bits)));
    }

    /// Applies the fates, taking elements from `data`, the extremes of whose blocks the scratch table has, and clears them out of the table.
    #[inline(always)]
    pub(crate) fn apply(&mut self, fates: &Fates, data: &[f32], scratch: &mut Scratch) {
        if fates.forget {
            self.retain(|bin| scratch.get(bin) != Fate::Forget as u16);
        }
        let (below, above) = fates.inner;
        let mut fresh = Vec::new();
        if below > f32::NEG_INFINITY || above < f32::INFINITY {
            let outer = |x: f32| (x <= below) | (x >= above);
            debug_assert_eq!(scratch.extremes.len(), data.len().div_ceil(BLOCK), "extremes of another tensor");
            // Outliers are rare: most blocks are known to hold none, and most parts of the others are seen to by a few vector
            // comparisons. Plain loops, because adapters of iterators may not be compiled for those vectors.
            for (block, (lo, hi)) in data.chunks(BLOCK).zip(&scratch.extremes) {
                if (*lo > below) & (*hi < above) {
                    continue;
                }
                for part in block.chunks(4 * LANES) {
                    let mut any = false;
                    for &x in part {
                        any |= outer(x);
                    }
                    if any {
                        take(part, outer, scratch, &mut fresh);
                    }
                }
            }
        }
        fresh.sort_unstable();
        self.insert(&fresh);
        for &slot in &fates.slots {
            scratch.set(slot, 0);
        }
    }

    /// Puts elements, ascending, in their places.
    fn insert(&mut self, fresh: &[u32]) {
        // From behind, so that what lies before the first of them is not touched; step by step, because a search jumps about in memory.
        let (mut old, mut to) = (self.bits.len(), self.bits.len() + fresh.len());
        self.bits.resize(to, 0);
        for &bits in fresh.iter().rev() {
            while let Some(known) = old.checked_sub(1).and_then(|last| self.bits.get(last).copied()).filter(|&known| known > bits)
            {
                (old, to) = (old - 1, to - 1);
                if let Some(place) = self.bits.get_mut(to) {
                    *place = known;
                }
            }
            to -= 1;
            if let Some(place) = self.bits.get_mut(to) {
                *place = bits;
            }
        }
    }

    /// Adds the elements that another sketch has kept.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.insert(&other.bits);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::sketch::Sketch;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Values of few bins over some octaves, so that many bins end near the limit.
    fn crowded() -> impl Strategy<Value = f32> {
        let bin = (0u32..2, 120u32..128, 0u32..3).prop_map(|(sign, exponent, bin)| sign << 31 | exponent << 23 | bin << SHIFT);
        prop_oneof![
            9 => (bin, 0u32..1 << SHIFT).prop_map(|(bin, lower)| f32::from_bits(bin | lower)),
            1 => prop_oneof![Just(0.0f32), Just(-0.0), Just(1e-40), Just(-3.0), Just(9.5)],
        ]
    }

    /// By the definition: all elements are grouped by bin, and the groups are chosen at the end.
    fn oracle(data: &[f32]) -> Vec<u32> {
        let largest = data.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for x in data.iter().filter(|x| x.is_normal()) {
            groups.entry(x.to_bits() >> 16).or_default().push(x.to_bits());
        }
        // 16 in the largest magnitude's octave, half of it in each below.
        let octave = |x: f32| x.abs().log2().floor() as i32;
        let few = |x: f32| [16, 8, 4, 2].get((octave(largest) - octave(x)) as usize).copied().unwrap_or(0);
        groups.retain(|_, g| g.len() <= few(f32::from_bits(g[0])));
        let mut all: Vec<u32> = groups.into_values().flatten().collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn few_elements_of_an_outer_bin_are_kept_whatever_the_order(
            data in prop::collection::vec(crowded(), 1..1500), cuts in prop::collection::vec(0usize..1500, 0..4), turn in 0usize..5,
        ) {
            let whole = Sketch::from_slice(&data).unwrap();
            prop_assert_eq!(&whole.sparse.as_ref().unwrap().bits, &oracle(&data));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(data.len())).chain([0, data.len()]).collect();
            cuts.sort_unstable();
            let mut parts: Vec<&[f32]> = cuts.windows(2).map(|w| &data[w[0]..w[1]]).collect();
            let turn = turn % parts.len();
            parts.rotate_left(turn);
            let (mut streamed, mut merged, mut scratch) = (Sketch::default(), Sketch::default(), Scratch::default());
            for part in parts {
                streamed.extend(part, &mut scratch).unwrap();
                merged.merge(&Sketch::from_slice(part).unwrap());
            }
            prop_assert_eq!(&streamed, &whole);
            prop_assert_eq!(&merged, &whole);
        }

        #[test]
        fn the_finest_histogram_has_the_elements_as_points(data in prop::collection::vec(crowded(), 1..600)) {
            let sketch = Sketch::from_slice(&data).unwrap();
            let (plain, finest) = (sketch.histogram(MANTISSA_BITS), sketch.finest_histogram());
            prop_assert_eq!((plain.count(), plain.min(), plain.max()), (finest.count(), finest.min(), finest.max()));
            prop_assert!(finest.bins().windows(2).all(|w| w[0].hi <= w[1].lo));
            let mut points: Vec<f64> = finest.bins().iter().filter(|b| b.lo == b.hi && b.lo != 0.0).map(|b| b.lo).collect();
            let mut kept: Vec<f64> = oracle(&data).into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect();
            kept.sort_by(f64::total_cmp);
            // A bin of the extreme value alone is a point of its own.
            points.retain(|p| kept.contains(p));
            prop_assert_eq!(points, kept);
        }
    }
}
