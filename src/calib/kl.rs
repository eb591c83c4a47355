//! Entropy calibration: Szymon Migacz, "8-bit inference with TensorRT", GTC 2017.
//!
//! The values' magnitudes go into `kl_bins` equal bins up to the largest. For every threshold, the reference distribution P is the bins below it with
//! all outliers added to the last one; Q is the same bins without outliers, merged into as many groups as there are codes and
//! spread evenly over each group's non-empty bins. The threshold with the least Kullback–Leibler divergence of Q from P wins.
//!
//! - A symmetric grid uses magnitudes and `2^(bits−1)` codes, as published.
//! - An affine grid uses signed bins with zero on an edge; the threshold grows from zero in both directions until the data ends on a side, outliers
//!   of each side go to that side's last bin, and the codes are all `2^bits`.
//! - Groups are as even as integers allow: group `j` of `n` bins begins at `⌊j·n / codes⌋`.
//! - Where outliers would be added to a bin that is empty without them, the divergence is infinite and the threshold is passed over.
//! - With at least as many codes as bins there is nothing to choose, and the range is the data's.
//!
//! The linear bins are filled from the sketch's: a sketch bin's elements are placed evenly between its edges, whole elements. Far outliers, of
//! which a sketch bin wider than a linear one holds a few, are known exactly, and fill just the linear bins that they lie in: a threshold
//! can only end at one of those.
//!
//! # Cost
//!
//! Thresholds are tried from the widest inwards. A threshold's divergence is a sum over its groups of which none is negative (log-sum
//! inequality), so that it is given up where the sum passes the least one found. What outliers add is known before any group is: a threshold that
//! clips too much is passed over at once.

use crate::calib::error::Error;
use crate::calib::histogram::Histogram;
use crate::calib::logarithm::{ln, x_ln_x};
use crate::calib::observer::{Grid, Observer, Range, RangeQuery, Target, histogram};
use crate::calib::stats::ValueStats;
use crate::simd::widest;

/// The range whose quantised distribution tells the most about the original one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kl {
    bins: u16,
}

impl Default for Kl {
    /// 2048 bins, as published.
    fn default() -> Self {
        Self { bins: 2048 }
    }
}

impl Kl {
    /// `bins` is the configuration's `kl_bins`.
    ///
    /// # Errors
    /// Fewer than 16 bins or more than 16384.
    pub fn new(bins: u32) -> Result<Self, Error> {
        u16::try_from(bins)
            .ok()
            .filter(|bins| (16..=16384).contains(bins))
            .map(|bins| Self { bins })
            .ok_or_else(|| Error::Option { name: "kl_bins", found: bins.to_string(), expected: "between 16 and 16384" })
    }
}

impl Observer for Kl {
    fn name(&self) -> &'static str {
        "KLObserver"
    }

    fn range(&self, values: &ValueStats, query: &RangeQuery) -> Result<Range, Error> {
        let mut histogram = histogram(self.name(), values, &query.target)?;
        if query.target == Target::Tensor
            && let Some(sketch) = values.sketch()
        {
            if !values.recording().outliers {
                return Err(Error::Observer {
                    observer: self.name(),
                    reason: "the statistics hold none of this value's outliers; calibrate again with this configuration".into(),
                });
            }
            histogram = sketch.finest_histogram();
        }
        Ok(range(&histogram, usize::from(self.bins), query.grid))
    }
}

/// The least-divergence range of a histogram; `[0, 0]` if it is empty or all zero.
#[must_use]
pub fn range(histogram: &Histogram, bins: usize, grid: Grid) -> Range {
    if histogram.count() == 0 || histogram.max_abs() == 0.0 || bins < 2 {
        return Range::new(0.0, 0.0);
    }
    if grid.is_symmetric() {
        let largest = histogram.max_abs();
        let width = largest / bins as f64;
        let linear = Linear::fill(histogram, 0, bins, width, true);
        let reach = best_reach(&linear, 0, u32::from(grid.bits()) - 1);
        let t = threshold(reach, width).min(largest);
        return Range::new(-t, t);
    }
    let (lo, hi) = (histogram.min().min(0.0), histogram.max().max(0.0));
    // Zero lies on an edge; each side that has data has at least one bin.
    let share = (bins as f64 * (-lo / (hi - lo))).round() as usize;
    let zero = share.clamp(usize::from(lo < 0.0), bins - usize::from(hi > 0.0));
    let width = (-lo / (zero.max(1)) as f64).max(hi / ((bins - zero).max(1)) as f64);
    let linear = Linear::fill(histogram, zero, bins, width, false);
    let t = threshold(best_reach(&linear, zero, u32::from(grid.bits())), width);
    Range::new(histogram.min().max(-t), histogram.max().min(t))
}

/// Half a bin past the last one kept, as published.
fn threshold(reach: usize, width: f64) -> f64 {
    (reach as f64 + 0.5) * width
}

/// Equal bins and their running sums.
struct Linear {
    counts: Vec<f64>,
    /// Before each bin and after the last: the elements so far, the bins so far that are not empty, and the sum of `count · ln count`. Counts
    /// are whole, so that the first two are exact.
    running: Vec<[f64; 3]>,
}

impl Linear {
    /// Spreads a histogram over `bins` bins of `width`, the edge before bin `zero` being 0.
    fn fill(histogram: &Histogram, zero: usize, bins: usize, width: f64, magnitude: bool) -> Self {
        Self::new(widest(
            #[inline(always)]
            || Self::placed(histogram, zero, bins, width, magnitude),
        ))
    }

    #[inline(always)]
    fn placed(histogram: &Histogram, zero: usize, bins: usize, width: f64, magnitude: bool) -> Vec<f64> {
        let mut counts = vec![0.0; bins];
        let last = bins.saturating_sub(1);
        let place = |x: f64| ((x / width + zero as f64).max(0.0) as usize).min(last);
        for b in histogram.bins() {
            let (lo, hi) = if magnitude && b.hi <= 0.0 { (-b.hi, -b.lo) } else { (b.lo, b.hi) };
            let count = b.count as f64;
            let (from, to) = (place(lo), place(hi));
            if from == to {
                if let Some(slot) = counts.get_mut(from) {
                    *slot += count;
                }
                continue;
            }
            // Element i lies at (i + 1/2) / count between the edges.
            if b.count <= (to - from) as u64 {
                for i in 0..b.count {
                    if let Some(slot) = counts.get_mut(place(lo + (hi - lo) * ((i as f64 + 0.5) / count)).min(to)) {
                        *slot += 1.0;
                    }
                }
                continue;
            }
            // So many lie before the end of bin k.
            let before = |k: usize| {
                let edge = (k as f64 + 1.0 - zero as f64) * width;
                if k >= to { count } else { (count * ((edge - lo) / (hi - lo)) - 0.5).ceil().clamp(0.0, count) }
            };
            let mut passed = 0.0;
            for (k, slot) in counts.iter_mut().enumerate().take(to + 1).skip(from) {
                let until = before(k);
                *slot += until - passed;
                passed = until;
            }
        }
        counts
    }

    fn new(counts: Vec<f64>) -> Self {
        let mut running = Vec::with_capacity(counts.len() + 1);
        let mut last = [0.0; 3];
        running.push(last);
        for &count in &counts {
            if count > 0.0 {
                last = [last[0] + count, last[1] + 1.0, last[2] + x_ln_x(count)];
            }
            running.push(last);
        }
        Self { counts, running }
    }

    #[inline(always)]
    fn before(&self, bin: usize) -> [f64; 3] {
        self.running.get(bin).copied().unwrap_or_default()
    }

    /// Elements, bins that are not empty, and the sum of `count · ln count` of the bins `from..to`.
    #[inline(always)]
    fn between(&self, from: usize, to: usize) -> [f64; 3] {
        let (a, b) = (self.before(from), self.before(to));
        [b[0] - a[0], b[1] - a[1], b[2] - a[2]]
    }

    /// KL(P‖Q) when only bins `from..to` are kept and merged into `2^code_bits` groups; infinite when it is above `limit`.
    fn divergence(&self, from: usize, to: usize, code_bits: u32, limit: f64) -> f64 {
        let (groups, bins) = (1 << code_bits, to - from);
        let [all, ..] = self.before(self.counts.len());
        let ([below, ..], [kept, ..]) = (self.before(from), self.between(from, to));
        let above = all - below - kept;
        // What outliers, put into the last bin of their side, `bin` of the group `a..b`, add to the sum of `P · ln(P / Q)`.
        let added = |outliers: f64, bin: usize, a: usize, b: usize| match self.counts.get(bin) {
            _ if outliers <= 0.0 => 0.0,
            Some(&count) if count > 0.0 => {
                let [sum, filled, _] = self.between(a, b);
                x_ln_x(count + outliers) - x_ln_x(count) - outliers * ln(sum / filled)
            }
            _ => f64::INFINITY,
        };
        let outliers = added(above, to - 1, from + (((groups - 1) * bins) >> code_bits), to)
            + added(below, from, from, from + (bins >> code_bits));
        if kept <= 0.0 || outliers == f64::INFINITY {
            return f64::INFINITY;
        }
        let clipped = ln(kept) - ln(all);
        let most = all * (limit - clipped) - outliers;
        if most < 0.0 {
            return f64::INFINITY;
        }
        let within = widest(
            #[inline(always)]
            || self.within(from, to, code_bits, most),
        );
        (within + outliers) / all + clipped
    }

    /// The sum of `P · ln(P / Q)` (neither normalised) without outliers, over the groups, which have one `Q` each. None adds less than
    /// nothing, so it is infinite as soon as it is above `limit`.
    #[inline(always)]
    fn within(&self, from: usize, to: usize, code_bits: u32, limit: f64) -> f64 {
        let (n, groups) = (to - from, 1usize << code_bits);
        let mut within = 0.0;
        let mut a = self.before(from);
        for start in (0..groups).step_by(LANES) {
            let [.., entropy] = a;
            let (mut sums, mut filled) = ([0.0; LANES], [1.0; LANES]);
            for (i, (sum, filled)) in sums.iter_mut().zip(&mut filled).enumerate().take(groups - start) {
                let b = self.before(from + (((start + i + 1) * n) >> code_bits));
                (*sum, *filled) = (b[0] - a[0], b[1] - a[1]);
                a = b;
            }
            let mut cross = [0.0; LANES];
            for ((cross, &sum), filled) in cross.iter_mut().zip(&sums).zip(&filled) {
                *cross = sum * ln(if sum > 0.0 { sum / filled } else { 1.0 });
            }
            within += a[2] - entropy - total(cross);
            if within > limit {
                return f64::INFINITY;
            }
        }
        within
    }
}

/// Groups whose logarithms are taken side by side.
const LANES: usize = 32;

/// The sum of all lanes, halves added to each other: one lane after the other would be all waiting.
#[inline(always)]
fn total(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// How many bins to keep on each side of `zero`: the fewest with the least divergence, at least as many in all as there are codes.
fn best_reach(linear: &Linear, zero: usize, code_bits: u32) -> usize {
    let bins = linear.counts.len();
    let full = zero.max(bins - zero);
    let mut best = (f64::INFINITY, full);
    for reach in (1..=full).rev() {
        let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(bins));
        if to - from < 1 << code_bits {
            break;
        }
        // The margin is for what rounding adds.
        let divergence = linear.divergence(from, to, code_bits, best.0 * (1.0 + 1e-9) + 1e-12);
        if divergence.is_finite() && divergence <= best.0 {
            best = (divergence, reach);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::sketch::Sketch;
    use proptest::prelude::*;

    #[test]
    fn outliers_have_to_be_recorded() {
        use crate::calib::stats::Recording;
        let data: Vec<f32> = (0..999).map(|i| (i as f32 * 0.1).sin()).collect();
        let seen = |outliers| {
            let recording = Recording { outliers, ..Recording::default() };
            ValueStats::from_samples(recording, [(&[data.len()][..], &data[..])]).unwrap()
        };
        let (kl, query) = (Kl::new(512).unwrap(), RangeQuery::tensor(Grid::affine(8).unwrap()));
        assert!(kl.range(&seen(true), &query).is_ok());
        let refused = kl.range(&seen(false), &query).unwrap_err().to_string();
        assert!(refused.contains("outliers; calibrate again"), "{refused}");
    }

    /// Migacz's slide, word for word: copies, groups, expansions, no running sums. Returns the divergence of each reach.
    fn textbook(counts: &[f64], zero: usize, codes: usize) -> Vec<f64> {
        let bins = counts.len();
        (1..=zero.max(bins - zero))
            .map(|reach| {
                let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(bins));
                if to - from < codes {
                    return f64::INFINITY;
                }
                let kept = &counts[from..to];
                let mut p = kept.to_vec();
                p[0] += counts[..from].iter().sum::<f64>();
                *p.last_mut().unwrap() += counts[to..].iter().sum::<f64>();
                let mut q = vec![0.0; kept.len()];
                for j in 0..codes {
                    let (a, b) = (j * kept.len() / codes, (j + 1) * kept.len() / codes);
                    let filled = kept[a..b].iter().filter(|&&c| c > 0.0).count() as f64;
                    let sum: f64 = kept[a..b].iter().sum();
                    for i in a..b {
                        if kept[i] > 0.0 {
                            q[i] = sum / filled;
                        }
                    }
                }
                let (p_sum, q_sum): (f64, f64) = (p.iter().sum(), q.iter().sum());
                p.iter()
                    .zip(&q)
                    .map(|(&p, &q)| match (p > 0.0, q > 0.0) {
                        (true, true) => p / p_sum * ((p / p_sum) / (q / q_sum)).ln(),
                        (true, false) => f64::INFINITY,
                        _ => 0.0,
                    })
                    .sum()
            })
            .collect()
    }

    fn normal(seed: u64, n: usize, tail: f64, shift: f64) -> Vec<f32> {
        let mut state = seed ^ 0x5851_f42d;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f64 + 0.5) / (1u64 << 24) as f64
        };
        (0..n)
            .map(|i| {
                let x = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
                (if i % 300 == 0 { x * tail } else { x } + shift) as f32
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn divergences_equal_the_textbook(
            counts in prop::collection::vec(prop_oneof![Just(0u32), 0u32..5, 0u32..1000], 20..120), zero in 0usize..100, code_bits in 2u32..5,
        ) {
            let zero = zero.min(counts.len());
            let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
            let expected = textbook(&counts, zero, 1 << code_bits);
            let linear = Linear::new(counts.clone());
            for (i, &expected) in expected.iter().enumerate() {
                let reach = i + 1;
                let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(counts.len()));
                if to - from < 1 << code_bits { continue; }
                let found = linear.divergence(from, to, code_bits, f64::INFINITY);
                if counts[from..to].iter().sum::<f64>() == 0.0 { prop_assert!(found.is_infinite()); continue; }
                prop_assert!(found == expected || (found - expected).abs() < 1e-9, "{} against {} at {}", found, expected, reach);
            }
        }

        #[test]
        fn passing_over_thresholds_changes_nothing(
            counts in prop::collection::vec(prop_oneof![3 => Just(0u32), 2 => 0u32..5, 1 => 0u32..1000], 20..300), zero in 0usize..100, code_bits in 2u32..5,
        ) {
            let zero = zero.min(counts.len());
            let linear = Linear::new(counts.iter().map(|&c| f64::from(c)).collect());
            let (bins, mut best) = (counts.len(), (f64::INFINITY, zero.max(counts.len() - zero)));
            for reach in 1..=best.1 {
                let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(bins));
                if to - from < 1 << code_bits { continue; }
                let found = linear.divergence(from, to, code_bits, f64::INFINITY);
                let limit = found * (1.0 + 1e-9) + 1e-12;
                prop_assert_eq!(linear.divergence(from, to, code_bits, limit), found, "at {}", reach);
                if found < best.0 { best = (found, reach); }
            }
            prop_assert_eq!(best_reach(&linear, zero, code_bits), best.1);
        }
    }

    /// Through the sketch: the chosen threshold is as good, judged by the textbook on the raw data's linear histogram.
    #[test]
    fn the_sketchs_threshold_is_as_good_on_raw_data() {
        for (seed, tail, shift, symmetric) in
            [(1, 1.0, 0.0, true), (2, 12.0, 0.0, true), (3, 30.0, 0.5, false), (4, 12.0, 3.0, false), (5, 5.0, -40.0, false)]
        {
            let data = normal(seed, 200_000, tail, shift);
            let (bins, bits) = (512, 6);
            let grid = if symmetric { Grid::symmetric(bits) } else { Grid::affine(bits) }.unwrap();
            let histogram = Sketch::from_slice(&data).unwrap().finest_histogram();
            let found = range(&histogram, bins, grid);
            let (lo, hi) =
                if symmetric { (0.0, histogram.max_abs()) } else { (histogram.min().min(0.0), histogram.max().max(0.0)) };
            let zero = if lo == 0.0 {
                0
            } else if hi == 0.0 {
                bins
            } else {
                ((-lo / (hi - lo) * bins as f64).round() as usize).clamp(1, bins - 1)
            };
            let width = (-lo / zero.max(1) as f64).max(hi / (bins - zero).max(1) as f64);
            let mut counts = vec![0.0; bins];
            for &x in &data {
                let x = f64::from(if symmetric { x.abs() } else { x });
                counts[((x / width + zero as f64) as usize).min(bins - 1)] += 1.0;
            }
            let codes = if symmetric { 1 << (bits - 1) } else { 1 << bits };
            let divergences = textbook(&counts, zero, codes);
            let least = divergences.iter().copied().fold(f64::INFINITY, f64::min);
            let t = found.hi.abs().max(found.lo.abs());
            let reach = ((t / width - 0.5).round() as usize).clamp(1, divergences.len());
            // The neighbours too: raw counts of single bins are noisy where the sketch is smooth.
            let at = divergences[reach.saturating_sub(3)..(reach + 2).min(divergences.len())]
                .iter()
                .copied()
                .fold(f64::INFINITY, f64::min);
            assert!(at <= least * 1.25 + 2e-4, "case {seed}: {at} against {least}, {found:?}");
            assert!(found.lo >= histogram.min().min(-t) && found.hi <= histogram.max().max(t));
        }
    }

    /// A residual stream with massive activations: a narrow bulk, and far out a handful of values, in clusters as they come.
    #[test]
    fn massive_outliers_do_not_hide_the_best_threshold() {
        for (seed, images) in [(1, 1), (2, 8), (3, 8), (4, 40)] {
            let mut data = normal(seed, 150_000, 6.0, 0.0);
            let jitter = normal(seed + 100, 17 * images, 1.0, 0.0);
            data.extend(jitter.iter().enumerate().map(|(i, x)| match i % 17 {
                0 | 1 => -560.0 + 6.0 * x,
                2 | 3 => -320.0 + 8.0 * x,
                4 => 36.0 + x,
                _ => 20.0 * x,
            }));
            for bins in [512, 2048] {
                let grid = Grid::affine(8).unwrap();
                let found = range(&Sketch::from_slice(&data).unwrap().finest_histogram(), bins, grid);
                let (lo, hi) = data.iter().fold((0.0f64, 0.0f64), |(lo, hi), &x| (lo.min(x.into()), hi.max(x.into())));
                let zero = (-lo / (hi - lo) * bins as f64).round() as usize;
                let width = (-lo / zero as f64).max(hi / (bins - zero) as f64);
                let mut counts = vec![0.0; bins];
                for &x in &data {
                    counts[((f64::from(x) / width + zero as f64) as usize).min(bins - 1)] += 1.0;
                }
                let divergences = textbook(&counts, zero, 256);
                let least = divergences.iter().copied().fold(f64::INFINITY, f64::min);
                let reach = (-found.lo / width - 0.5).round() as usize;
                let at = divergences[reach.clamp(1, divergences.len()) - 1];
                assert!(at <= least * 1.05 + 1e-5, "case {seed}, {bins} bins: {at} against {least}, {found:?}");
            }
        }
    }

    #[test]
    fn degenerate_data() {
        let grid = Grid::affine(8).unwrap();
        let of = |data: &[f32], grid| range(&Sketch::from_slice(data).unwrap().histogram(7), 2048, grid);
        assert_eq!(of(&[0.0; 5], grid), Range::new(0.0, 0.0));
        assert_eq!(of(&[2.5; 5], grid), Range::new(2.5, 2.5));
        assert_eq!(of(&[-1.0, -2.0], Grid::affine(16).unwrap()), Range::new(-2.0, -1.0));
        assert_eq!(of(&[-1.0, 2.0], Grid::symmetric(16).unwrap()), Range::new(-2.0, 2.0));
        assert!(Kl::new(8).is_err() && Kl::new(1 << 20).is_err());
        assert_eq!(Kl::new(2048).unwrap(), Kl::default());
    }
}
