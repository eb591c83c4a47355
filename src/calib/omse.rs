//! OMSE: the range with the least squared error ("Low-bit quantization of neural networks for efficient inference", arXiv 1902.06822;
//! FQ-ViT's OmseObserver shrinks the extremes in steps of 1 % and rescans the data).
//!
//! Here each candidate's error is the closed form over the histogram's bins ([`distortion`](crate::calib::distortion)), so that a search is
//! cheap: both ends shrink together down a geometric ladder, then in all pairs of a coarser one, then each end by itself, then both in ever
//! finer steps.

use crate::calib::distortion::{Quantizer, Spans};
use crate::calib::error::Error;
use crate::calib::histogram::Histogram;
use crate::calib::observer::{Grid, Observer, Range, RangeQuery, histogram};
use crate::calib::stats::ValueStats;

/// The range that minimises the squared quantisation error for the query's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Omse;

impl Observer for Omse {
    fn name(&self) -> &'static str {
        "OmseObserver"
    }

    fn range(&self, values: &ValueStats, query: &RangeQuery) -> Result<Range, Error> {
        let full = histogram(self.name(), values, &query.target)?;
        let coarse = if query.target == crate::calib::observer::Target::Tensor {
            values.sketch().map(|s| s.histogram(COARSE_BITS))
        } else {
            None
        };
        Ok(search(&full, coarse.as_ref().unwrap_or(&full), query.grid))
    }
}

/// Bins to an octave (a power of two) in the first search.
const COARSE_BITS: u32 = 4;
/// 2^(-1/8), written out so that no platform's `pow` takes part.
const STEP: f64 = 0.917_004_043_204_671_2;
/// Down to 2^-10 of the extremes.
const STEPS: usize = 80;
/// Half steps of the refinement: 2^(1/16), 2^(1/32), ... to 2^(1/512), about 0.1 %.
const FINE: [f64; 6] = [
    1.044_273_782_427_413_8,
    1.021_897_148_654_116_7,
    1.010_889_286_051_700_5,
    1.005_429_901_112_802_7,
    1.002_711_275_050_202_5,
    1.001_354_719_892_108_2,
];

/// The least-error range of a histogram; `[0, 0]` if it is empty or all zero.
#[must_use]
pub fn range(histogram: &Histogram, grid: Grid) -> Range {
    search(histogram, histogram, grid)
}

fn search(full: &Histogram, coarse: &Histogram, grid: Grid) -> Range {
    if full.count() == 0 {
        return Range::new(0.0, 0.0);
    }
    let extremes = Range::new(full.min(), full.max());
    let widest = if grid.is_symmetric() { extremes.symmetric() } else { extremes.with_zero() };
    if widest.lo == widest.hi {
        return widest;
    }
    let spans = Spans::from(coarse);
    let error = |range: Range| spans.squared_error(&Quantizer::from_range(range, grid));
    let ladder = || std::iter::successors(Some(1.0), |f| Some(f * STEP)).take(STEPS + 1);
    let mut best = Best::new(widest, error(widest));
    for f in ladder().skip(1) {
        let range = Range::new(widest.lo * f, widest.hi * f);
        best.offer(range, error(range));
    }
    let two_sided = !grid.is_symmetric() && widest.lo < 0.0 && widest.hi > 0.0;
    if two_sided {
        // Few codes make a jagged landscape: a coarse grid over both ends finds the right valley.
        for f in ladder().step_by(2).take(21) {
            for g in ladder().step_by(2).take(21) {
                let range = Range::new(widest.lo * f, widest.hi * g);
                best.offer(range, error(range));
            }
        }
        // Each end down its whole ladder while the other stays: an outlier on one side must not decide for both.
        for _ in 0..3 {
            let before = best.range;
            for f in ladder() {
                let range = Range::new(widest.lo * f, best.range.hi);
                best.offer(range, error(range));
            }
            for f in ladder() {
                let range = Range::new(best.range.lo, widest.hi * f);
                best.offer(range, error(range));
            }
            if best.range == before {
                break;
            }
        }
    }
    let spans = Spans::from(full);
    let error = |range: Range| spans.squared_error(&Quantizer::from_range(range, grid));
    let mut best = Best::new(best.range, error(best.range));
    best.offer(widest, error(widest));
    for step in FINE {
        for _ in 0..4 {
            let at = best.range;
            let (lo, hi) = (at.lo, at.hi);
            for range in [Range::new(lo * step, hi * step), Range::new(lo / step, hi / step)] {
                best.offer(range, error(range));
            }
            if two_sided {
                for range in
                    [Range::new(lo, hi * step), Range::new(lo, hi / step), Range::new(lo * step, hi), Range::new(lo / step, hi)]
                {
                    best.offer(range, error(range));
                }
            }
            if best.range == at {
                break;
            }
        }
    }
    best.range
}

struct Best {
    range: Range,
    error: f64,
}

impl Best {
    fn new(range: Range, error: f64) -> Self {
        Self { range, error }
    }

    /// Only a strictly smaller error wins, so that ties keep the wider, earlier range.
    fn offer(&mut self, range: Range, error: f64) {
        if error < self.error {
            *self = Self { range, error };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::sketch::Sketch;
    use crate::calib::stats::Recording;
    use proptest::prelude::*;

    /// Textbook quantisation of raw data.
    fn raw_error(data: &[f32], lo: f64, hi: f64, bits: u8, symmetric: bool) -> f64 {
        let (qmin, qmax) = if symmetric {
            let top = f64::from((1 << (bits - 1)) - 1);
            (-top, top)
        } else {
            (0.0, f64::from((1 << bits) - 1))
        };
        let scale = (hi - lo) / (qmax - qmin);
        let zp = if symmetric { 0.0 } else { (-lo / scale).round_ties_even() };
        data.iter()
            .map(|&x| {
                let x = f64::from(x);
                let q = ((x / scale).round_ties_even() + zp).clamp(qmin, qmax);
                (x - scale * (q - zp)).powi(2)
            })
            .sum()
    }

    /// Gaussian bulk with a heavy tail, shifted.
    fn heavy(seed: u64, n: usize, tail: f64, shift: f64) -> Vec<f32> {
        let mut state = seed ^ 0x9e37_79b9;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f64 + 0.5) / (1u64 << 24) as f64
        };
        (0..n)
            .map(|i| {
                let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
                (if i % 500 == 0 { normal * tail } else { normal } + shift) as f32
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_exhaustive_rescan_of_the_data_does_better(seed in 0u64..1000, tail in 1.0f64..60.0, shift in -3.0f64..3.0, bits in 3u8..9, symmetric: bool) {
            let data = heavy(seed, 3000, tail, shift);
            let grid = if symmetric { Grid::symmetric(bits) } else { Grid::affine(bits) }.unwrap();
            let histogram = Sketch::from_slice(&data).unwrap().histogram(7);
            let found = range(&histogram, grid);
            let (min, max) = (histogram.min().min(0.0), histogram.max().max(0.0));
            let mut least = f64::INFINITY;
            if symmetric {
                let widest = histogram.max_abs();
                for i in 1..=400 {
                    let r = widest * f64::from(i) / 400.0;
                    least = least.min(raw_error(&data, -r, r, bits, true));
                }
            } else {
                for i in 0..=40 {
                    for j in 0..=40 {
                        let (lo, hi) = (min * f64::from(i) / 40.0, max * f64::from(j) / 40.0);
                        if hi > lo { least = least.min(raw_error(&data, lo, hi, bits, false)); }
                    }
                }
            }
            let error = raw_error(&data, found.lo, found.hi, bits, symmetric);
            prop_assert!(error <= least * 1.06, "{} against {} with {:?}", error, least, found);
        }
    }

    #[test]
    fn clips_one_outlier_and_keeps_a_lattice() {
        let mut data = heavy(1, 100_000, 1.0, 0.0);
        // Worth clipping: 100² is less than what steps of 100/15 cost the bulk. (500 would not be.)
        data.push(100.0);
        let stats = ValueStats::from_samples(Recording::default(), [(&[data.len()][..], &data[..])]).unwrap();
        let query = RangeQuery::tensor(Grid::affine(4).unwrap());
        let found = Omse.range(&stats, &query).unwrap();
        assert!(found.hi < 10.0 && found.lo > -8.0 && found.lo < -1.0, "{found:?}");
        // Two values: the widest range is exact already.
        let two = Sketch::from_slice(&[0.0, 256.0, 0.0]).unwrap().histogram(7);
        assert_eq!(range(&two, Grid::affine(8).unwrap()), Range::new(0.0, 256.0));
        let zero = Sketch::from_slice(&[0.0; 4]).unwrap().histogram(7);
        assert_eq!(range(&zero, Grid::affine(8).unwrap()), Range::new(0.0, 0.0));
        let none = Sketch::default().histogram(7);
        assert_eq!(range(&none, Grid::symmetric(8).unwrap()), Range::new(0.0, 0.0));
    }
}
