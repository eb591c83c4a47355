//! What a value is after it went through its codes and back: the effect of a scheme on floats, without a graph.

use super::plan::{Codes, Constant, QuantPlan, Scheme, Segments, nearest_levels};
use crate::ir::Tensor;
use crate::simd::widest;

/// Quantises and dequantises in place, in the float32 arithmetic of QuantizeLinear and DequantizeLinear.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeQuant(Kind);

/// A scale, and the bounds of the codes less the zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Linear {
    scale: f32,
    low: f32,
    high: f32,
}

impl Linear {
    fn new(codes: Codes, scale: f32, zero: i32) -> Linear {
        let (low, high) = codes.range();
        Linear { scale, low: (low - zero) as f32, high: (high - zero) as f32 }
    }

    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        round_half_even((x / self.scale).clamp(self.low, self.high)) * self.scale
    }

    #[inline(always)]
    fn apply_level(self, x: f32, nearest: &[f32]) -> f32 {
        let code = round_half_even((x / self.scale).clamp(self.low, self.high)) - self.low;
        // A whole number from 0 to the last code, or of NaN 0.
        (nearest.get(code as usize).copied().unwrap_or(code) + self.low) * self.scale
    }
}

/// [`Segments`] in float32, whose integers below 2^24 are exact, and the zero points of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TwoSegments {
    /// The grid's lowest code.
    lowest: f32,
    breakpoint: f32,
    /// A step beyond it.
    step: f32,
    top: f32,
}

impl TwoSegments {
    fn new(segments: Segments, grid: Codes) -> TwoSegments {
        TwoSegments {
            lowest: grid.range().0 as f32,
            breakpoint: segments.breakpoint.into(),
            step: f32::from(segments.shift).exp2(),
            top: segments.top() as f32,
        }
    }

    /// The level of the nearest code, of two the even one.
    #[inline(always)]
    fn apply(&self, x: f32, grid: Linear) -> f32 {
        let zero = self.lowest - grid.low;
        let on_grid = round_half_even((x / grid.scale).clamp(grid.low, grid.high)) + zero;
        let magnitude = on_grid.abs();
        let beyond = (magnitude - self.breakpoint).max(0.0);
        let code = round_half_even(magnitude.min(self.breakpoint) + beyond / self.step).min(self.top);
        let level = code.min(self.breakpoint) + (code - self.breakpoint).max(0.0) * self.step;
        (level.copysign(on_grid) - zero) * grid.scale
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Tensor(Linear),
    /// One for each channel of the last axis.
    Channels(Vec<Linear>),
    /// One, or one for each channel, and then the nearest level: by the number of a code from the lowest, the number of its level.
    Codebook {
        linear: Vec<Linear>,
        nearest: Vec<f32>,
    },
    /// One, or one for each channel, and then small steps in the middle and large ones beyond.
    Piecewise {
        grid: Vec<Linear>,
        segments: TwoSegments,
    },
    /// `scale · 2^(−q / steps)` by code, of which the highest is 0; `normalized`, over the sum of its row.
    Log2 {
        steps: f32,
        values: Vec<f32>,
        normalized: bool,
    },
    /// Held within ±bound, in float.
    Clip {
        bound: f32,
    },
}

/// Adding and subtracting it rounds a float32 below 2^22 to an integer, half to even: in the default rounding mode the sum has
/// no bits below 1.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
fn round_half_even(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

impl FakeQuant {
    /// No codes: the value is held within ±`bound`.
    pub fn clip(bound: f32) -> FakeQuant {
        FakeQuant(Kind::Clip { bound })
    }

    /// Of an activation's scheme; `None` for that of a constant, and where nothing is rounded.
    pub fn of(scheme: &Scheme) -> Option<FakeQuant> {
        match scheme {
            Scheme::Affine { codes, scale, zero_point } => {
                Some(FakeQuant(Kind::Tensor(Linear::new(*codes, *scale, *zero_point))))
            }
            Scheme::Ptf { codes, scale, zero_point, factors } => {
                let channels = factors.scales(*scale)?.into_iter().zip(zero_point.as_slice().iter().cycle());
                Some(FakeQuant(Kind::Channels(channels.map(|(s, &z)| Linear::new(*codes, s, z)).collect())))
            }
            Scheme::Codebook { grid, levels } => {
                let (linear, codes) = FakeQuant::grid(grid)?;
                let (low, high) = codes.range();
                let nearest = nearest_levels(levels, low..=high).into_iter().map(|level| (level - low) as f32).collect();
                Some(FakeQuant(Kind::Codebook { linear, nearest }))
            }
            Scheme::Piecewise { grid, segments } => {
                let (grid, codes) = FakeQuant::grid(grid)?;
                Some(FakeQuant(Kind::Piecewise { grid, segments: TwoSegments::new(*segments, codes) }))
            }
            Scheme::Log2 { bits, fraction_bits, scale, normalized } => {
                let top = f32::from(1u16 << bits) - 1.0;
                let steps = f32::from(1u16 << fraction_bits);
                let value = |code: f32| if code < top { scale * (-code / steps).exp2() } else { 0.0 };
                let values = (0..1u16 << bits).map(|code| value(f32::from(code))).collect();
                Some(FakeQuant(Kind::Log2 { steps, values, normalized: *normalized }))
            }
            Scheme::Weight { .. } | Scheme::Groups { .. } | Scheme::Accumulator => None,
        }
    }

    /// A grid of which few codes occur: of the tensor, or of each channel.
    fn grid(grid: &Scheme) -> Option<(Vec<Linear>, Codes)> {
        let (Scheme::Affine { codes, .. } | Scheme::Ptf { codes, .. }) = grid else { return None };
        match FakeQuant::of(grid)?.0 {
            Kind::Tensor(one) => Some((vec![one], *codes)),
            Kind::Channels(each) => Some((each, *codes)),
            _ => None,
        }
    }

    /// Changes every element to what its code means; the last axis, of `channels` elements, is that of the scales.
    pub fn apply(&self, data: &mut [f32], channels: usize) {
        widest(
            #[inline(always)]
            || self.change(data, channels),
        );
    }

    /// The same for a tensor whose channels are runs of `inner` elements.
    pub fn apply_to_runs(&self, data: &mut [f32], inner: usize) {
        match &self.0 {
            Kind::Channels(each) => widest(
                #[inline(always)]
                || {
                    for (run, linear) in data.chunks_mut(inner.max(1)).zip(each.iter().cycle()) {
                        run.iter_mut().for_each(|x| *x = linear.apply(*x));
                    }
                },
            ),
            Kind::Codebook { linear, nearest } => widest(
                #[inline(always)]
                || {
                    for (run, linear) in data.chunks_mut(inner.max(1)).zip(linear.iter().cycle()) {
                        run.iter_mut().for_each(|x| *x = linear.apply_level(*x, nearest));
                    }
                },
            ),
            Kind::Piecewise { grid, segments } => widest(
                #[inline(always)]
                || {
                    for (run, &linear) in data.chunks_mut(inner.max(1)).zip(grid.iter().cycle()) {
                        run.iter_mut().for_each(|x| *x = segments.apply(*x, linear));
                    }
                },
            ),
            _ => self.apply(data, inner),
        }
    }

    #[inline(always)]
    fn change(&self, data: &mut [f32], channels: usize) {
        match self.0 {
            Kind::Tensor(linear) => data.iter_mut().for_each(|x| *x = linear.apply(*x)),
            Kind::Channels(ref each) => {
                for row in data.chunks_mut(channels.max(1)) {
                    for (x, linear) in row.iter_mut().zip(each) {
                        *x = linear.apply(*x);
                    }
                }
            }
            Kind::Codebook { ref linear, ref nearest } => {
                for row in data.chunks_mut(channels.max(1)) {
                    for (x, linear) in row.iter_mut().zip(linear.iter().cycle()) {
                        *x = linear.apply_level(*x, nearest);
                    }
                }
            }
            Kind::Piecewise { ref grid, ref segments } => {
                // One scale for the tensor is one for all of its rows.
                let row = if grid.len() == 1 { 1 } else { channels.max(1) };
                for row in data.chunks_mut(row) {
                    for (x, &linear) in row.iter_mut().zip(grid) {
                        *x = segments.apply(*x, linear);
                    }
                }
            }
            Kind::Clip { bound } => data.iter_mut().for_each(|x| *x = x.clamp(-bound, bound)),
            Kind::Log2 { steps, ref values, normalized } => {
                let top = values.len() as f32 - 1.0;
                for row in data.chunks_mut(channels.max(1)) {
                    let mut sum = 0.0f32;
                    for x in row.iter_mut() {
                        let code = round_half_even((-x.log2() * steps).clamp(0.0, top));
                        // A whole number from 0 to the top; of NaN the code 0.
                        *x = values.get(code as usize).copied().unwrap_or(code);
                        sum += *x;
                    }
                    if normalized && sum > 0.0 {
                        row.iter_mut().for_each(|x| *x /= sum);
                    }
                }
            }
        }
    }
}

/// A constant after it went through its codes.
///
/// # Errors
/// When the scales do not fit the tensor, or the tensor is not one of numbers.
pub fn fake_constant(tensor: &Tensor, constant: &Constant<'_>) -> Result<Tensor, String> {
    let mut data = tensor.to_f32().map_err(|e| e.to_string())?;
    let codes = constant.codes(&tensor.shape, &data)?;
    let inner: usize = constant.axis.map_or(data.len(), |a| tensor.shape.iter().skip(a + 1).product());
    let runs = data.chunks_mut(inner.max(1)).zip(codes.chunks(inner.max(1)));
    for ((run, codes), scale) in runs.zip(constant.scales.iter().cycle()) {
        run.iter_mut().zip(codes).for_each(|(x, &code)| *x = code as f32 * scale);
    }
    Tensor::new(&tensor.shape, &data).map_err(|e| e.to_string())
}

impl QuantPlan {
    /// What becomes of the plan's constants: by the name of the value, how it is quantised.
    pub fn constants(&self) -> impl Iterator<Item = (&str, &Scheme)> {
        let constants = self.sites.iter().filter(|s| s.site.weight);
        constants.flat_map(|s| s.site.values.iter().map(move |v| (v.as_str(), &s.scheme)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::calib::piecewise::Segments;
    use crate::quant::plan::{Factors, ZeroPoint};
    use proptest::prelude::*;

    /// QuantizeLinear and DequantizeLinear as ONNX defines them, in f64.
    fn oracle(x: f32, scale: f32, zero: i32, (low, high): (i32, i32)) -> f64 {
        let code = (f64::from(x / scale)).round_ties_even() + f64::from(zero);
        f64::from(scale) * (code.clamp(f64::from(low), f64::from(high)) - f64::from(zero))
    }

    proptest! {
        #[test]
        fn linear_codes_are_those_of_onnx(
            x in prop::collection::vec(-300f32..300.0, 1..64), scale in 0.001f32..4.0, zero in -128i32..128, bits in 4u8..=16
        ) {
            let codes = Codes { bits, signed: true };
            let zero_point = zero.clamp(codes.range().0, codes.range().1);
            let fake = FakeQuant::of(&Scheme::Affine { codes, scale, zero_point }).unwrap();
            let mut out = x.clone();
            fake.apply(&mut out, 1);
            for (x, y) in x.iter().zip(out) {
                let want = oracle(*x, scale, zero_point, codes.range());
                prop_assert!((f64::from(y) - want).abs() <= want.abs() * 1e-6 + 1e-9, "{x}: {y} for {want}");
            }
        }

        #[test]
        fn every_channel_has_its_step(x in prop::collection::vec(-30f32..30.0, 8), scale in 0.01f32..0.5) {
            let codes = Codes { bits: 8, signed: true };
            let each = [1.0, 2.5, 4.0, 14.0];
            for zero_point in [ZeroPoint::Tensor(3), ZeroPoint::Channels(vec![-128, 3, 127, 90])] {
                let zero = |c: usize| zero_point.as_slice().get(c).copied().unwrap_or(3);
                let factors = Factors::new(&[0, 1, 2, 3], 2, &[0, 1, 0, 3]);
                let scheme = Scheme::Ptf { codes, scale, zero_point: zero_point.clone(), factors };
                let (mut out, mut runs) = (x.clone(), x.clone());
                let fake = FakeQuant::of(&scheme).unwrap();
                fake.apply(&mut out, 4);
                fake.apply_to_runs(&mut runs, 2);
                for (i, (x, (y, z))) in x.iter().zip(out.iter().zip(&runs)).enumerate() {
                    for (y, c) in [(y, i % 4), (z, i / 2)] {
                        let want = oracle(*x, scale * each[c], zero(c), (-128, 127));
                        prop_assert!((f64::from(*y) - want).abs() <= want.abs() * 1e-6 + 1e-9, "{x}: {y} for {want}");
                    }
                }
            }
        }

        #[test]
        fn log2_codes_are_within_half_a_step_or_nothing(p in 1e-6f32..1.0, r in 0u8..4, scale in 0.9f32..1.1) {
            let scheme = Scheme::Log2 { bits: 4, fraction_bits: r, scale, normalized: false };
            let fake = FakeQuant::of(&scheme).unwrap();
            let mut out = [p];
            fake.apply(&mut out, 1);
            let steps = f64::from(1u32 << r);
            let code = (-f64::from(p).log2() * steps).round_ties_even();
            let want = if code >= 15.0 { 0.0 } else { f64::from(scale) * (-code / steps).exp2() };
            // At a tie either neighbour is right.
            let near = ((-f64::from(p).log2() * steps).fract() - 0.5).abs() < 1e-3;
            prop_assert!(near || (f64::from(out[0]) - want).abs() < 1e-5, "{p}: {} for {want}", out[0]);
        }
    }

    #[test]
    fn normalised_rows_are_divided_by_their_own_sums() {
        let scheme = Scheme::Log2 { bits: 4, fraction_bits: 0, scale: 1.0, normalized: true };
        // Codes 1, 2, 2 and 2, 3, the top code; a row of nothing stays one.
        let mut x = [0.5, 0.2, 0.3, 0.24, 0.13, 1e-6, 0.0, 0.0, 0.0];
        FakeQuant::of(&scheme).unwrap().apply(&mut x, 3);
        let want = [0.5, 0.25, 0.25, 2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0, 0.0];
        assert!(x.iter().zip(want).all(|(x, w)| (x - w).abs() < 1e-6), "{x:?}");
    }

    #[test]
    fn a_codebook_takes_codes_to_the_nearest_level() {
        let codes = Codes { bits: 8, signed: true };
        let grid = Box::new(Scheme::Affine { codes, scale: 0.5, zero_point: -10 });
        let scheme = Scheme::Codebook { grid, levels: vec![-100, -10, -6, 40] };
        assert_eq!(scheme.bits(), 2);
        // Codes -10, -9, -7, -8 (a tie: the lower), 127, -128, 15 (a tie).
        let mut x = [0.0, 0.5, 1.5, 1.0, 1e9, -1e9, 12.5];
        FakeQuant::of(&scheme).unwrap().apply(&mut x, 1);
        assert_eq!(x, [0.0, 0.0, 2.0, 0.0, 25.0, -45.0, 2.0]);
        let factors = Factors::new(&[0, 1], 0, &[]);
        let grid = Box::new(Scheme::Ptf { codes, scale: 0.5, zero_point: ZeroPoint::Channels(vec![-10, 0]), factors });
        let mut x = [1.5, 1.5, 1e9, 1e9];
        FakeQuant::of(&Scheme::Codebook { grid, levels: vec![-10, -6, 40] }).unwrap().apply(&mut x, 2);
        assert_eq!(x, [2.0, -6.0, 25.0, 40.0]);
    }

    proptest! {
        /// The nearest level of each channel's grid, by trying them all in f64; along the last axis and in runs.
        #[test]
        fn segments_are_levels_of_each_channels_grid(
            x in prop::collection::vec(-40f32..40.0, 8), bits in 4u8..=8, part in 1i32..8, shift in 1u8..=4
        ) {
            let breakpoint = u8::try_from(((1 << (bits - 1)) * part / 8).max(1)).unwrap();
            let segments = Segments { bits, breakpoint, shift };
            let (zeros, steps) = ([0, 30, -50, 7], [0.125, 0.25, 0.1875, 0.5]);
            let factors = Factors::new(&[0, 1, 0, 2], 1, &[0, 0, 1, 0]);
            let zero_point = ZeroPoint::Channels(zeros.to_vec());
            let codes = Codes { bits: bits + 4, signed: true };
            let grid = Box::new(Scheme::Ptf { codes, scale: 0.125, zero_point, factors });
            let fake = FakeQuant::of(&Scheme::Piecewise { grid, segments }).unwrap();
            let (mut rows, mut runs) = (x.clone(), x.clone());
            fake.apply(&mut rows, 4);
            fake.apply_to_runs(&mut runs, 2);
            let top = (1 << (bits - 1)) - 1;
            let magnitude = |n: i32| n.min(i32::from(breakpoint)) + (n - i32::from(breakpoint)).max(0) * (1 << shift);
            let levels: Vec<i32> = (-top..=top).map(|q: i32| q.signum() * magnitude(q.abs())).collect();
            for (i, x) in x.iter().enumerate() {
                for (y, c) in [(rows[i], i % 4), (runs[i], i / 2)] {
                    let real = |level: &i32| steps[c] * f64::from(level - zeros[c]);
                    let off = |v: f64| (v - f64::from(*x)).abs();
                    let least = levels.iter().map(real).map(off).fold(f64::INFINITY, f64::min);
                    prop_assert!(levels.iter().map(real).any(|v| v == f64::from(y)), "{y} is no level");
                    // A value goes the way of its code, half a step off at most.
                    prop_assert!(off(f64::from(y)) <= least + steps[c], "{x}: {y}");
                    let on_grid = (f64::from(*x) / steps[c]).round_ties_even() + f64::from(zeros[c]);
                    let number = |level: i32| levels.iter().position(|l| *l == level).unwrap() as i32 - top;
                    let of_grid = |level: &i32| (f64::from(*level) - on_grid).abs();
                    let best = levels.iter().copied().min_by(|a, b| {
                        of_grid(a).total_cmp(&of_grid(b)).then((number(*a) & 1).cmp(&(number(*b) & 1)))
                    });
                    prop_assert_eq!(best.as_ref().map(real), Some(f64::from(y)));
                }
            }
        }
    }

    #[test]
    fn a_clip_has_no_codes() {
        let mut x = [-3.0, 0.123, 7.0];
        FakeQuant::clip(2.0).apply(&mut x, 3);
        assert_eq!(x, [-2.0, 0.123, 2.0]);
    }
}
