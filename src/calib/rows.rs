//! The counters of the channels' compact sketches: a window of bins below each channel's largest magnitude.
//!
//! Counters have 16 bits while no channel has seen more elements than they hold, since a value's counters are larger than a tensor of it and
//! what a sample costs is mostly to have them in the cache. A tensor's rows are counted in bytes first, in a table of few channels
//! that stays in the first-level cache.

use crate::calib::sketch::MAX_EXPONENT;

/// Leading mantissa bits that select a channel's bin.
pub(crate) const MANTISSA_BITS: u32 = 3;
/// Bins of one sign; the lowest holds all that is smaller, zero included.
pub(crate) const HALF: usize = 128;
/// Counters of one channel.
pub(crate) const ROW: usize = 2 * HALF;
const SHIFT: u32 = 23 - MANTISSA_BITS;
pub(crate) const OCTAVE: u32 = 1 << MANTISSA_BITS;
/// Channels that are counted together.
const BLOCK: usize = 64;
/// Rows of a tensor that are counted together: what a byte holds.
const PORTION: usize = u8::MAX as usize;
/// With fewer rows, adding the bytes up would take longer than counting does.
const FEW_ROWS: usize = 16;
/// Rows whose slots wait to be counted.
const SOME_ROWS: usize = 8;
/// Bytes from one channel's to the next one's. Counters of one bin must not lie a power of two apart: the processor's store buffer would take
/// those at equal places of two memory pages for one another.
const STRIDE: usize = ROW + 16;

/// The compact sketches: for channel `c`, counters `c·ROW..(c + 1)·ROW`, positive half first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rows {
    /// Exponent field of each channel's largest magnitude; 0 before any normal value.
    top: Vec<u16>,
    counts: Counts,
}

/// Narrow exactly while no channel has more elements than 16 bits count, so that equal contents are equal.
#[derive(Debug, Clone, PartialEq)]
enum Counts {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

/// A counter that is large enough by the caller's word.
trait Counter: Copy + Default + std::ops::AddAssign + From<u8> + std::iter::Sum {}

impl Counter for u16 {}
impl Counter for u32 {}

/// Runs an expression with the counters, whatever their width.
macro_rules! with_counts {
    ($counts:expr, $name:ident => $do:expr) => {
        match $counts {
            Counts::Narrow($name) => $do,
            Counts::Wide($name) => $do,
        }
    };
}

impl Rows {
    /// Nothing seen yet.
    pub(crate) fn new(channels: usize) -> Self {
        Self { top: vec![0; channels], counts: Counts::Narrow(vec![0; channels * ROW]) }
    }

    /// Rows with these tops and counters, `count` elements in each row. `None` if a counter says otherwise.
    pub(crate) fn from_parts(top: Vec<u16>, counts: &[u64], count: u64) -> Option<Self> {
        let full = |row: &[u64]| row.iter().try_fold(0u64, |sum, &c| sum.checked_add(c)) == Some(count);
        if counts.len() != top.len() * ROW || !counts.chunks_exact(ROW).all(full) {
            return None;
        }
        let counts = if count <= u64::from(u16::MAX) {
            Counts::Narrow(counts.iter().map(|&c| u16::try_from(c).ok()).collect::<Option<_>>()?)
        } else {
            Counts::Wide(counts.iter().map(|&c| u32::try_from(c).ok()).collect::<Option<_>>()?)
        };
        Some(Self { top, counts })
    }

    /// Exponent fields of the channels' largest magnitudes.
    pub(crate) fn tops(&self) -> &[u16] {
        &self.top
    }

    /// All counters.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.between(0..self.top.len() * ROW)
    }

    /// One channel's counters.
    pub(crate) fn of(&self, channel: usize) -> impl Iterator<Item = u32> {
        self.between(channel * ROW..(channel + 1) * ROW)
    }

    fn between(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
        let (narrow, wide) = match &self.counts {
            Counts::Narrow(counts) => (counts.get(range).unwrap_or_default(), &[][..]),
            Counts::Wide(counts) => (&[][..], counts.get(range).unwrap_or_default()),
        };
        narrow.iter().copied().map(u32::from).chain(wide.iter().copied())
    }

    /// Makes room for `count` elements in each row, 2^32 at most.
    pub(crate) fn reserve(&mut self, count: u64) {
        if let Counts::Narrow(counts) = &self.counts
            && count > u64::from(u16::MAX)
        {
            self.counts = Counts::Wide(counts.iter().map(|&c| u32::from(c)).collect());
        }
    }

    /// Moves windows up so that they hold the channels' new extremes.
    pub(crate) fn raise(&mut self, lo: &[f32], hi: &[f32]) {
        let tops = &mut self.top;
        with_counts!(&mut self.counts, counts => {
            for ((counts, top), (lo, hi)) in counts.chunks_exact_mut(ROW).zip(tops).zip(lo.iter().zip(hi)) {
                let largest = lo.abs().max(hi.abs()).to_bits() >> 23;
                raise_row(counts, top, u16::try_from(largest).unwrap_or(MAX_EXPONENT));
            }
        });
    }

    /// Adds the rows of as many other channels, for which there is room.
    pub(crate) fn merge(&mut self, other: &Self) {
        let tops = self.top.iter_mut().zip(&other.top);
        match (&mut self.counts, &other.counts) {
            (Counts::Narrow(counts), Counts::Narrow(more)) => merge_rows(counts, more, tops),
            (Counts::Wide(counts), Counts::Narrow(more)) => merge_rows(counts, more, tops),
            (Counts::Wide(counts), Counts::Wide(more)) => merge_rows(counts, more, tops),
            // There would be no room for so many.
            (Counts::Narrow(_), Counts::Wide(_)) => {}
        }
    }

    /// Counts a tensor whose last axis are the channels.
    #[inline(always)]
    pub(crate) fn count_columns(&mut self, data: &[f32]) {
        let tops = &self.top;
        with_counts!(&mut self.counts, counts => count_columns(counts, tops, data));
    }

    /// Counts a tensor with any other channel axis, each channel's elements being runs of `inner`.
    pub(crate) fn count_runs(&mut self, data: &[f32], inner: usize) {
        let tops = &self.top;
        with_counts!(&mut self.counts, counts => {
            for block in data.chunks_exact(tops.len() * inner) {
                for (run, (counts, &top)) in block.chunks_exact(inner).zip(counts.chunks_exact_mut(ROW).zip(tops)) {
                    count_run(counts, run, top);
                }
            }
        });
    }
}

/// Bins that a row moves down when its window's top rises.
pub(crate) fn steps(from: u16, to: u16) -> usize {
    usize::from(to.saturating_sub(from)) * OCTAVE as usize
}

/// The key (upper bits of the magnitude) of a window's lowest bin.
pub(crate) fn base_key(top: u16) -> i32 {
    i32::from(top) * OCTAVE.cast_signed() + OCTAVE.cast_signed() - HALF as i32
}

fn raise_row<T: Counter>(counts: &mut [T], top: &mut u16, to: u16) {
    if to <= *top {
        return;
    }
    let down = steps(*top, to);
    *top = to;
    for half in counts.chunks_exact_mut(HALF) {
        let gone = down.min(HALF - 1);
        let lost: T = half.iter().take(gone + 1).copied().sum();
        half.copy_within(gone.., 0);
        half.iter_mut().skip(HALF - gone).for_each(|count| *count = T::default());
        if let Some(lowest) = half.first_mut() {
            *lowest = lost;
        }
    }
}

fn merge_rows<'a, T: Counter + From<U>, U: Copy>(
    counts: &mut [T],
    more: &[U],
    tops: impl Iterator<Item = (&'a mut u16, &'a u16)>,
) {
    for ((counts, more), (top, &other_top)) in counts.chunks_exact_mut(ROW).zip(more.chunks_exact(ROW)).zip(tops) {
        raise_row(counts, top, other_top);
        let down = steps(other_top, *top);
        for (half, more) in counts.chunks_exact_mut(HALF).zip(more.chunks_exact(HALF)) {
            for (k, &count) in more.iter().enumerate() {
                if let Some(slot) = half.get_mut(k.saturating_sub(down)) {
                    *slot += T::from(count);
                }
            }
        }
    }
}

/// Some columns of a tensor, row by row.
#[inline(always)]
pub(crate) fn columns(data: &[f32], channels: usize, some: std::ops::Range<usize>) -> impl Iterator<Item = &[f32]> {
    data.chunks_exact(channels).filter_map(move |row| row.get(some.clone()))
}

/// A block of channels at a time, many rows of the tensor for each.
#[inline(always)]
fn count_columns<T: Counter>(counts: &mut [T], tops: &[u16], data: &[f32]) {
    let channels = tops.len();
    let mut table = [[0u8; STRIDE]; BLOCK];
    for portion in data.chunks(PORTION * channels) {
        let many = portion.len() >= FEW_ROWS * channels;
        let mut start = 0;
        for (counts, tops) in counts.chunks_mut(BLOCK * ROW).zip(tops.chunks(BLOCK)) {
            let mut base = [0i32; BLOCK];
            for (base, &top) in base.iter_mut().zip(tops) {
                *base = base_key(top);
            }
            let rows = columns(portion, channels, start..start + tops.len());
            if many && tops.len() == BLOCK {
                count_block(&mut table, rows, &base);
                for (counts, bytes) in counts.chunks_exact_mut(ROW).zip(&mut table) {
                    add_up(counts, bytes);
                }
            } else {
                for row in rows {
                    for ((counts, x), base) in counts.chunks_exact_mut(ROW).zip(row).zip(&base) {
                        if let Some(count) = counts.get_mut(usize::from(slot(x.to_bits(), *base))) {
                            *count += T::from(1);
                        }
                    }
                }
            }
            start += tops.len();
        }
    }
}

/// Rows of a full block, some at a time: slots first (vector arithmetic), then the counting. Through memory, because to take a vector apart in
/// registers, as is done when one row's slots are counted at once, costs more.
#[inline(always)]
fn count_block<'a>(table: &mut [[u8; STRIDE]; BLOCK], mut rows: impl Iterator<Item = &'a [f32]>, base: &[i32; BLOCK]) {
    let mut buffer = [[0u8; BLOCK]; SOME_ROWS];
    loop {
        let mut filled = 0;
        for (slots, row) in buffer.iter_mut().zip(rows.by_ref()) {
            for ((place, x), base) in slots.iter_mut().zip(row).zip(base) {
                *place = slot(x.to_bits(), *base);
            }
            filled += 1;
        }
        if filled == 0 {
            return;
        }
        for slots in buffer.iter().take(filled) {
            let ((tables, _), (slots, _)) = (table.as_chunks_mut::<8>(), slots.as_chunks::<8>());
            for (bytes, places) in tables.iter_mut().zip(slots) {
                for (bytes, place) in bytes.iter_mut().zip(places) {
                    bytes[usize::from(*place)] += 1;
                }
            }
        }
    }
}

/// Moves one channel's bytes to its counters.
#[inline(always)]
fn add_up<T: Counter>(counts: &mut [T], bytes: &mut [u8; STRIDE]) {
    for (count, byte) in counts.iter_mut().zip(bytes.iter()) {
        *count += T::from(*byte);
    }
    *bytes = [0; STRIDE];
}

fn count_run<T: Counter>(counts: &mut [T], run: &[f32], top: u16) {
    let base = base_key(top);
    if let Some(counts) = counts.first_chunk_mut::<ROW>() {
        for x in run {
            counts[usize::from(slot(x.to_bits(), base))] += T::from(1);
        }
    }
}

/// Counter of a float, of a magnitude that the window holds, in a row whose window starts at `base`.
#[inline(always)]
fn slot(bits: u32, base: i32) -> u8 {
    let key = ((bits & 0x7fff_ffff) >> SHIFT).cast_signed();
    let above = key - base;
    let above = if above > 0 { above } else { 0 };
    (above.cast_unsigned() | (bits >> 31) << 7) as u8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use crate::calib::channels::{Channels, Layout};
    use proptest::prelude::*;

    /// `rows × channels` values over 40 octaves, zeros of both signs among them.
    fn tensor(seed: u64, rows: usize, channels: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        (0..rows * channels)
            .map(|_| {
                let sign = if next(3) == 0 { -1.0 } else { 1.0 };
                let magnitude = (1.0 + next(1000) as f32 / 1000.0) * 2f32.powi(next(8) as i32 * next(6) as i32 - 30);
                if next(20) == 0 { sign * 0.0 } else { sign * magnitude }
            })
            .collect()
    }

    /// By the definition, in f64: eighths of octaves below the largest magnitude's octave, 16 octaves of them, zeros at the bottom.
    fn naive(column: &[f32]) -> Vec<u32> {
        let octave = |x: f64| x.log2().floor();
        let largest = column.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
        let mut counts = vec![0; 256];
        for &x in column {
            let m = f64::from(x).abs();
            let bin = if largest == 0.0 {
                120.0
            } else if m == 0.0 {
                0.0
            } else {
                let eighth = ((m / octave(m).exp2() - 1.0) * 8.0).floor();
                (120.0 - (octave(largest) - octave(m)) * 8.0 + eighth).max(0.0)
            };
            counts[bin as usize + if x.is_sign_negative() { 128 } else { 0 }] += 1;
        }
        counts
    }

    fn column(data: &[f32], channels: usize, c: usize) -> Vec<f32> {
        data.iter().skip(c).step_by(channels).copied().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Blocks that are full and ones that are not, more rows than a byte counts, tensors of few rows, every other axis.
        #[test]
        fn counters_are_those_of_counting_one_by_one(
            seed in any::<u64>(), channels in prop_oneof![1usize..10, 60usize..70, 125usize..150], rows in prop::collection::vec(1usize..300, 1..4),
        ) {
            let tensors: Vec<Vec<f32>> = rows.iter().map(|&n| tensor(seed ^ n as u64, n, channels)).collect();
            let mut found = Channels::new(channels, true);
            let mut turned = Channels::new(channels, true);
            for (data, &n) in tensors.iter().zip(&rows) {
                let layout = Layout { outer: n, channels, inner: 1 };
                prop_assert!(found.extend(data, layout));
                let runs: Vec<f32> = (0..channels).flat_map(|c| column(data, channels, c)).collect();
                let layout = Layout { outer: 1, channels, inner: n };
                prop_assert!(turned.extend(&runs, layout));
            }
            prop_assert_eq!(&found, &turned);
            let all = tensors.concat();
            for c in 0..channels {
                let column = column(&all, channels, c);
                let extremes = column.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
                prop_assert_eq!(found.range(c), Some(extremes));
                prop_assert_eq!(found.rows.as_ref().unwrap().of(c).collect::<Vec<_>>(), naive(&column));
            }
        }
    }

    /// Statistics do not show by which way they have outgrown 16 bits.
    #[test]
    fn counters_grow_beyond_16_bits_wherever_the_elements_come_from() {
        let (rows, channels, times) = (500, 65, 140);
        let layout = Layout { outer: rows, channels, inner: 1 };
        let data = tensor(7, rows, channels);
        let once = Channels::from_slice(&data, layout, true).unwrap();
        let (mut streamed, mut merged, mut half) = (once.clone(), once.clone(), once.clone());
        for i in 1..times {
            assert!(streamed.extend(&data, layout) && merged.merge(&once));
            if i < times / 2 {
                assert!(half.merge(&once));
            }
        }
        let other_half = half.clone();
        assert!(half.count() <= u64::from(u16::MAX) && half.merge(&other_half));
        assert!(streamed.count() > u64::from(u16::MAX));
        assert_eq!(streamed, merged);
        assert_eq!(half, merged);
        let mut wide_into_narrow = once.clone();
        let mut narrow_into_wide = merged.clone();
        assert!(wide_into_narrow.merge(&merged) && narrow_into_wide.merge(&once));
        assert_eq!(wide_into_narrow, narrow_into_wide);
        for c in 0..channels {
            let many: Vec<u32> = naive(&column(&data, channels, c)).iter().map(|&n| n * times).collect();
            assert_eq!(merged.rows.as_ref().unwrap().of(c).collect::<Vec<_>>(), many);
        }
    }
}
