//! The squared error of quantising a histogram, in closed form.
//!
//! Inside a bin the values are taken as uniform, so the error is an integral of `(u − round(clamp(u)))²`, with `u = x / scale`. It has the
//! antiderivative `G(u) = r/12 + (u − r)³/3`, `r = round(clamp(u))`: a full cell adds 1/12, and past the last code `r` stays and the cube
//! grows. `G` is continuous, so a bin costs its two edges whether it lies inside one cell, spans a thousand, or is clipped.

use crate::calib::histogram::Histogram;
use crate::calib::observer::{Grid, Range};
use crate::simd::widest;

/// A uniform quantiser: `real = scale · (q − zero_point)`, `q` an integer in `qmin..=qmax`, nearest code, clamped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantizer {
    /// Step between codes; positive.
    pub scale: f64,
    /// The code of zero; an integer.
    pub zero_point: f64,
    /// Smallest code; an integer.
    pub qmin: f64,
    /// Largest code; an integer.
    pub qmax: f64,
}

impl Quantizer {
    /// The quantiser whose codes span `range` (made to include zero; made symmetric for a symmetric grid). The zero point is rounded
    /// half to even, as scale and zero point of ONNX are usually made. A range of no width has scale 1.
    #[must_use]
    pub fn from_range(range: Range, grid: Grid) -> Self {
        let (qmin, qmax) = grid.codes();
        let (qmin, qmax) = (f64::from(qmin), f64::from(qmax));
        let span = if grid.is_symmetric() { range.symmetric() } else { range.with_zero() };
        let scale = (span.hi - span.lo) / (qmax - qmin);
        if scale <= 0.0 || !scale.is_finite() {
            return Self { scale: 1.0, zero_point: 0.0, qmin, qmax };
        }
        let zero_point = if grid.is_symmetric() { 0.0 } else { round_half_even(-span.lo / scale).clamp(qmin, qmax) };
        Self { scale, zero_point, qmin, qmax }
    }

    /// What is left of `x` after quantising and dequantising.
    #[must_use]
    pub fn apply(&self, x: f64) -> f64 {
        let u = (x / self.scale).clamp(self.qmin - self.zero_point, self.qmax - self.zero_point);
        self.scale * round_half_even(u)
    }
}

/// Nearest integer, ties to even, for `|x| < 2^51`: without a libm call, so that loops become vector code.
#[inline(always)]
pub(crate) fn round_half_even(x: f64) -> f64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52: the ulp is 1 there
    (x + MAGIC) - MAGIC
}

/// A histogram prepared for many error evaluations.
#[derive(Debug, Clone, Default)]
pub struct Spans {
    edges: Vec<[f64; 2]>,
    density: Vec<f64>,
    /// Values without width: position, count.
    points: Vec<(f64, f64)>,
    count: f64,
}

/// Below this fraction of the largest magnitude bins are joined: 1/16 of a 16-bit step.
const LUMP: f64 = 1.0 / (1 << 20) as f64;

impl From<&Histogram> for Spans {
    fn from(histogram: &Histogram) -> Self {
        let mut spans = Self { count: histogram.count() as f64, ..Self::default() };
        for b in histogram.lump_below(histogram.max_abs() * LUMP).bins() {
            let count = b.count as f64;
            let width = b.hi - b.lo;
            // A bin that the exact extremes have clipped to (almost) nothing.
            if width <= 1e-9 * b.lo.abs().max(b.hi.abs()) {
                spans.points.push((0.5 * (b.lo + b.hi), count));
            } else {
                spans.edges.push([b.lo, b.hi]);
                spans.density.push(count / width);
            }
        }
        spans
    }
}

impl Spans {
    /// How many elements.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.count
    }

    /// The sum of squared differences between the elements and their quantised values.
    #[must_use]
    pub fn squared_error(&self, quantizer: &Quantizer) -> f64 {
        widest(
            #[inline(always)]
            || self.squared_error_in_vectors(quantizer),
        )
    }

    #[inline(always)]
    fn squared_error_in_vectors(&self, quantizer: &Quantizer) -> f64 {
        let inverse = 1.0 / quantizer.scale;
        let low = quantizer.qmin - quantizer.zero_point;
        let high = quantizer.qmax - quantizer.zero_point;
        let clamp = |u: f64| {
            let u = if u < high { u } else { high };
            if u > low { u } else { low }
        };
        let integral = |x: f64| {
            let u = x * inverse;
            let r = round_half_even(clamp(u));
            let f = u - r;
            r * (1.0 / 12.0) + f * f * f * (1.0 / 3.0)
        };
        // Four sums: the additions need not wait for each other, and the order is fixed.
        let mut sums = [0.0f64; 4];
        let edges = self.edges.chunks_exact(4);
        let densities = self.density.chunks_exact(4);
        let rest = edges.remainder().iter().zip(densities.remainder());
        for (edges, densities) in edges.zip(densities) {
            for ((sum, [a, b]), density) in sums.iter_mut().zip(edges).zip(densities) {
                *sum += density * (integral(*b) - integral(*a));
            }
        }
        for (sum, ([a, b], density)) in sums.iter_mut().zip(rest) {
            *sum += density * (integral(*b) - integral(*a));
        }
        let [a, b, c, d] = sums;
        let scale = quantizer.scale;
        let mut error = ((a + b) + (c + d)) * scale * scale * scale;
        for &(x, count) in &self.points {
            let u = x * inverse;
            let f = (u - round_half_even(clamp(u))) * scale;
            error += count * f * f;
        }
        error
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::histogram::Bin;
    use crate::calib::sketch::Sketch;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bin_equals_its_numeric_integral(lo in -3.0f64..3.0, width in 0.001f64..4.0, scale in 0.01f64..2.0, zp in 0i32..16) {
            let histogram = Histogram::new(vec![Bin { lo, hi: lo + width, count: 7 }], lo, lo + width);
            let q = Quantizer { scale, zero_point: f64::from(zp), qmin: 0.0, qmax: 15.0 };
            let n = 200_000;
            // Midpoint rule, with the textbook quantiser.
            let expected: f64 = (0..n).map(|i| {
                let x = lo + width * (f64::from(i) + 0.5) / f64::from(n);
                let code = ((x / scale).round() + f64::from(zp)).clamp(0.0, 15.0);
                (x - scale * (code - f64::from(zp))).powi(2)
            }).sum::<f64>() * 7.0 / f64::from(n);
            let found = Spans::from(&histogram).squared_error(&q);
            prop_assert!((found - expected).abs() <= 1e-6 * expected + 1e-9, "{} against {}", found, expected);
        }

        #[test]
        fn a_smooth_tensor_equals_its_raw_error(seed in 0u64..200, bits in 4u8..9, shrink in 0.05f64..1.2) {
            let mut state = seed;
            let mut uniform = || { state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407); (state >> 40) as f64 / (1u64 << 24) as f64 };
            let data: Vec<f32> = (0..20_000).map(|_| ((0..6).map(|_| uniform()).sum::<f64>() - 2.5) as f32).collect();
            let histogram = Sketch::from_slice(&data).unwrap().histogram(7);
            let range = Range::new(histogram.min() * shrink, histogram.max() * shrink);
            let q = Quantizer::from_range(range, Grid::affine(bits).unwrap());
            let raw: f64 = data.iter().map(|&x| {
                let code = ((f64::from(x) / q.scale).round() + q.zero_point).clamp(q.qmin, q.qmax);
                (f64::from(x) - q.scale * (code - q.zero_point)).powi(2)
            }).sum();
            let found = Spans::from(&histogram).squared_error(&q);
            prop_assert!((found - raw).abs() <= 0.03 * raw, "{} against {}", found, raw);
        }

        #[test]
        fn rounding_is_half_to_even(x in -1e6f64..1e6, half in -1000i32..1000) {
            prop_assert_eq!(round_half_even(x), x.round_ties_even());
            let tie = f64::from(half) + 0.5;
            prop_assert_eq!(round_half_even(tie), tie.round_ties_even());
        }
    }

    #[test]
    fn degenerate_ranges() {
        let q = Quantizer::from_range(Range::new(0.0, 0.0), Grid::affine(8).unwrap());
        assert_eq!((q.scale, q.apply(0.0)), (1.0, 0.0));
        let constant = Sketch::from_slice(&[0.75; 9]).unwrap().histogram(7);
        let q = Quantizer::from_range(Range::new(0.75, 0.75), Grid::affine(8).unwrap());
        assert!(Spans::from(&constant).squared_error(&q) < 1e-20);
        assert_eq!(Spans::default().squared_error(&q), 0.0);
        let symmetric = Quantizer::from_range(Range::new(-1.0, 127.0), Grid::symmetric(8).unwrap());
        assert_eq!((symmetric.scale, symmetric.zero_point, symmetric.qmin), (1.0, 0.0, -127.0));
    }
}
