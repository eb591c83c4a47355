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
//! Thresholds are tried from the widest inwards. What a threshold clips is known before its groups are: merging all bins but the last gives two
//! outcomes, whose divergence is at most that of all (data processing), so a threshold that clips too much is passed over unseen.

use crate::calib::error::Error;
use crate::calib::histogram::Histogram;
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
    let codes = 1usize << grid.bits();
    if grid.is_symmetric() {
        let largest = histogram.max_abs();
        let width = largest / bins as f64;
        let linear = Linear::fill(histogram, 0, bins, width, true);
        let reach = best_reach(&linear, 0, codes / 2);
        let t = threshold(reach, width).min(largest);
        return Range::new(-t, t);
    }
    let (lo, hi) = (histogram.min().min(0.0), histogram.max().max(0.0));
    // Zero lies on an edge; each side that has data has at least one bin.
    let share = (bins as f64 * (-lo / (hi - lo))).round() as usize;
    let zero = share.clamp(usize::from(lo < 0.0), bins - usize::from(hi > 0.0));
    let width = (-lo / (zero.max(1)) as f64).max(hi / ((bins - zero).max(1)) as f64);
    let linear = Linear::fill(histogram, zero, bins, width, false);
    let t = threshold(best_reach(&linear, zero, codes), width);
    Range::new(histogram.min().max(-t), histogram.max().min(t))
}

/// Half a bin past the last one kept, as published.
fn threshold(reach: usize, width: f64) -> f64 {
    (reach as f64 + 0.5) * width
}

/// Equal bins and their running sums.
struct Linear {
    counts: Vec<f64>,
    sums: Vec<f64>,
    /// Bins that are not empty.
    filled: Vec<f64>,
    entropy: Vec<f64>,
}

impl Linear {
    /// Spreads a histogram over `bins` bins of `width`, the edge before bin `zero` being 0.
    fn fill(histogram: &Histogram, zero: usize, bins: usize, width: f64, magnitude: bool) -> Self {
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
            // Element i lies at (i + 1/2) / count between the edges: so many lie before the end of bin k.
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
        Self::new(counts)
    }

    fn new(counts: Vec<f64>) -> Self {
        let (mut sum, mut filled, mut entropy) = (0.0, 0.0, 0.0);
        let mut linear = Self { sums: vec![0.0], filled: vec![0.0], entropy: vec![0.0], counts: Vec::new() };
        for &count in &counts {
            sum += count;
            filled += f64::from(u8::from(count > 0.0));
            entropy += x_ln_x(count);
            linear.sums.push(sum);
            linear.filled.push(filled);
            linear.entropy.push(entropy);
        }
        linear.counts = counts;
        linear
    }

    fn at(&self, bin: usize) -> f64 {
        self.counts.get(bin).copied().unwrap_or(0.0)
    }

    #[inline(always)]
    fn between(list: &[f64], from: usize, to: usize) -> f64 {
        let at = |k: usize| list.get(k).copied().unwrap_or_default();
        at(to) - at(from)
    }

    /// What lies below bin `from` and from bin `to` on.
    fn outliers(&self, from: usize, to: usize) -> (f64, f64) {
        (Self::between(&self.sums, 0, from), Self::between(&self.sums, to, self.counts.len()))
    }

    /// At most [`divergence`](Self::divergence): that of the last bin, or the first, against all others.
    fn least(&self, from: usize, to: usize, codes: usize) -> f64 {
        let (below, above) = self.outliers(from, to);
        let kept = Self::between(&self.sums, from, to);
        let n = to - from;
        let side = |outliers: f64, bin: usize, a: usize, b: usize| {
            let p = (self.at(bin) + outliers) / (kept + below + above);
            let q = Self::between(&self.sums, a, b) / Self::between(&self.filled, a, b) / kept;
            let possible = outliers > 0.0 && self.at(bin) > 0.0 && p < 1.0 && q > 0.0 && q < 1.0;
            if possible { p * ln(p / q) + (1.0 - p) * ln((1.0 - p) / (1.0 - q)) } else { 0.0 }
        };
        let last = side(above, to - 1, from + (codes - 1) * n / codes, to);
        last.max(side(below, from, from, from + n / codes))
    }

    /// KL(P‖Q) when only bins `from..to` are kept and merged into `codes` groups.
    fn divergence(&self, from: usize, to: usize, codes: usize) -> f64 {
        // Counts are whole, so running sums are exact.
        let (below, above) = self.outliers(from, to);
        let (first, last) = (self.at(from), self.at(to - 1));
        if (below > 0.0 && first <= 0.0) || (above > 0.0 && last <= 0.0) {
            return f64::INFINITY;
        }
        let kept = Self::between(&self.sums, from, to);
        if kept <= 0.0 {
            return f64::INFINITY;
        }
        let mut own = Self::between(&self.entropy, from, to);
        if to - from == 1 {
            own = x_ln_x(first + below + above);
        } else {
            own += x_ln_x(first + below) - x_ln_x(first) + x_ln_x(last + above) - x_ln_x(last);
        }
        let cross = widest(
            #[inline(always)]
            || self.cross(from, to, codes, below, above),
        );
        let all = kept + below + above;
        (own - cross) / all - ln(all) + ln(kept)
    }
}

impl Linear {
    /// The sum of `P · ln Q` (neither normalised) over the groups, which have one `Q` each.
    #[inline(always)]
    fn cross(&self, from: usize, to: usize, codes: usize, below: f64, above: f64) -> f64 {
        const LANES: usize = 16;
        let n = to - from;
        let mut lanes = [0.0; LANES];
        let mut a = from;
        for start in (0..codes).step_by(LANES) {
            let (mut weight, mut mean) = ([0.0; LANES], [1.0; LANES]);
            for (i, (weight, mean)) in weight.iter_mut().zip(&mut mean).enumerate().take(codes - start) {
                let b = from + (start + i + 1) * n / codes;
                let sum = Self::between(&self.sums, a, b);
                if sum > 0.0 {
                    *weight = sum + if a == from { below } else { 0.0 } + if b == to { above } else { 0.0 };
                    *mean = sum / Self::between(&self.filled, a, b);
                }
                a = b;
            }
            for ((lane, weight), mean) in lanes.iter_mut().zip(&weight).zip(&mean) {
                *lane += weight * ln(*mean);
            }
        }
        lanes.iter().sum()
    }
}

/// How many bins to keep on each side of `zero`: the fewest with the least divergence, at least as many in all as there are codes.
fn best_reach(linear: &Linear, zero: usize, codes: usize) -> usize {
    let bins = linear.counts.len();
    let full = zero.max(bins - zero);
    let mut best = (f64::INFINITY, full);
    for reach in (1..=full).rev() {
        let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(bins));
        if to - from < codes {
            break;
        }
        // The margin is for what rounding adds to the bound.
        if linear.least(from, to, codes) > best.0 * (1.0 + 1e-9) + 1e-12 {
            continue;
        }
        let divergence = linear.divergence(from, to, codes);
        if divergence.is_finite() && divergence <= best.0 {
            best = (divergence, reach);
        }
    }
    best.1
}

fn x_ln_x(x: f64) -> f64 {
    if x > 0.0 { x * ln(x) } else { 0.0 }
}

/// The natural logarithm of a positive normal number, within a few ulps and the same on every platform (a libm's may differ in the last bit, which
/// could decide a tie): `ln m = 2·artanh((m − 1)/(m + 1))` for the mantissa in [√½, √2).
#[inline(always)]
fn ln(x: f64) -> f64 {
    const MAGIC: f64 = 4_503_599_627_370_496.0; // 2^52: an integer in the low bits of the mantissa becomes a float without a conversion
    let bits = x.to_bits();
    let exponent = f64::from_bits(((bits >> 52) & 0x7ff) | MAGIC.to_bits()) - (MAGIC + 1023.0);
    let m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    let above = m > std::f64::consts::SQRT_2;
    let (m, exponent) = (if above { 0.5 * m } else { m }, if above { exponent + 1.0 } else { exponent });
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut series = 0.0;
    for k in (0..=10).rev() {
        series = series * z + 1.0 / f64::from(2 * k + 1);
    }
    exponent * std::f64::consts::LN_2 + 2.0 * s * series
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
            counts in prop::collection::vec(prop_oneof![Just(0u32), 0u32..5, 0u32..1000], 20..120), zero in 0usize..100, codes in 4usize..16,
        ) {
            let zero = zero.min(counts.len());
            let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
            let expected = textbook(&counts, zero, codes);
            let linear = Linear::new(counts.clone());
            for (i, &expected) in expected.iter().enumerate() {
                let reach = i + 1;
                let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(counts.len()));
                if to - from < codes { continue; }
                let found = linear.divergence(from, to, codes);
                if counts[from..to].iter().sum::<f64>() == 0.0 { prop_assert!(found.is_infinite()); continue; }
                prop_assert!(found == expected || (found - expected).abs() < 1e-9, "{} against {} at {}", found, expected, reach);
            }
        }

        #[test]
        fn passing_over_thresholds_changes_nothing(
            counts in prop::collection::vec(prop_oneof![3 => Just(0u32), 2 => 0u32..5, 1 => 0u32..1000], 20..300), zero in 0usize..100, codes in 4usize..16,
        ) {
            let zero = zero.min(counts.len());
            let linear = Linear::new(counts.iter().map(|&c| f64::from(c)).collect());
            let (bins, mut best) = (counts.len(), (f64::INFINITY, zero.max(counts.len() - zero)));
            for reach in 1..=best.1 {
                let (from, to) = (zero.saturating_sub(reach), (zero + reach).min(bins));
                if to - from < codes { continue; }
                let found = linear.divergence(from, to, codes);
                prop_assert!(linear.least(from, to, codes) <= found * (1.0 + 1e-9) + 1e-12, "at {}", reach);
                if found < best.0 { best = (found, reach); }
            }
            prop_assert_eq!(best_reach(&linear, zero, codes), best.1);
        }

        #[test]
        fn ln_is_ln(x in 1e-300f64..1e300) {
            prop_assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1.0));
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
