//! Codes in two segments: small steps in the middle, where nearly all values of a residual stream are, and steps of a power of two times
//! that beyond a breakpoint (piecewise linear quantization: Fang et al., arXiv 2002.00104, with one breakpoint and the same codes for
//! both segments).
//!
//! A few values of a residual sum go many times as far as the others. Codes that lie evenly either cut them off or have steps that are
//! too large for the rest. Here a code's magnitude n stands for the level
//!
//! ```text
//! level(n) = n                                     n ≤ breakpoint
//!          = breakpoint + (n − breakpoint) · 2^shift   beyond
//! ```
//!
//! which an integer engine gets by a comparison, a subtraction and a shift, or from a table of 2^bits entries. The levels are codes of a grid
//! with a factor and a zero point for each channel (PTF), so that level 0 is a channel's mean; zero itself need not be a level.

use crate::calib::histogram::Histogram;

/// The two segments of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Segments {
    /// Width of a code, 4 to 8; the lowest code does not occur, so that the highest is as far from 0 as the lowest that does.
    pub bits: u8,
    /// The magnitude up to which a step is 1, from 1 to the highest code.
    pub breakpoint: u8,
    /// log2 of a step beyond it, 1 to 4.
    pub shift: u8,
}

/// Levels have so many bits more than codes.
pub const LEVEL_BITS: u8 = 4;

impl Segments {
    /// Whether the numbers are within their bounds.
    #[must_use]
    pub fn is_valid(self) -> bool {
        (4..=8).contains(&self.bits)
            && (1..=LEVEL_BITS).contains(&self.shift)
            && (1..=self.top()).contains(&self.breakpoint.into())
    }

    /// The highest code.
    #[must_use]
    pub fn top(self) -> i32 {
        (1 << (self.bits.clamp(1, 16) - 1)) - 1
    }

    /// The width of a level.
    #[must_use]
    pub fn level_bits(self) -> u8 {
        self.bits.saturating_add(LEVEL_BITS)
    }

    /// What a code stands for, in steps of the grid.
    #[must_use]
    pub fn level(self, code: i32) -> i32 {
        let breakpoint = i32::from(self.breakpoint);
        let beyond = (code.abs() - breakpoint).max(0);
        code.signum() * (code.abs().min(breakpoint) + (beyond << self.shift.min(LEVEL_BITS)))
    }

    /// The code whose level is nearest to a code of the grid; of two as near the even one, so that the errors of many have no direction.
    #[must_use]
    pub fn nearest(self, grid_code: i32) -> i32 {
        let (breakpoint, shift) = (i32::from(self.breakpoint), self.shift.min(LEVEL_BITS));
        let magnitude = grid_code.saturating_abs();
        let beyond = (magnitude - breakpoint).max(0);
        let lower = magnitude.min(breakpoint) + (beyond >> shift);
        let (rest, half) = (beyond & ((1 << shift) - 1), 1 << shift >> 1);
        let up = rest > half || rest == half && half > 0 && lower & 1 == 1;
        grid_code.signum() * (lower + i32::from(up)).min(self.top())
    }
}

/// Parameters of a quantiser and what it costs.
#[derive(Debug, Clone, PartialEq)]
pub struct PiecewiseFit {
    /// The codes.
    pub segments: Segments,
    /// The scale of factor 1; positive.
    pub base: f64,
    /// The grid's code of zero in each channel.
    pub zero_points: Vec<i32>,
    /// `α_c`, one a channel.
    pub exponents: Vec<u8>,
    /// `m_c`, one a channel: a step is `base · (1 + m_c / 2^mantissa_bits) · 2^α_c`.
    pub mantissas: Vec<u8>,
    /// The sum of squared errors over all elements, taken as evenly spread within their steps.
    pub squared_error: f64,
}

/// What a fit may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PiecewiseOptions {
    /// Width of a code, 4 to 8.
    pub bits: u8,
    /// The largest exponent of a factor, at most 15.
    pub max_exponent: u8,
    /// Bits of its mantissa, at most 3.
    pub mantissa_bits: u8,
}

/// A channel, looked at once for all segments that are tried.
struct Channel<'h> {
    histogram: &'h Histogram,
    mean: f64,
    /// How far it goes from there.
    reach: f64,
}

impl<'h> Channel<'h> {
    fn new(histogram: &'h Histogram) -> Self {
        let Some((mean, _)) = histogram.moments() else { return Self { histogram, mean: 0.0, reach: 0.0 } };
        Self { histogram, mean, reach: (histogram.max() - mean).max(mean - histogram.min()) }
    }
}

/// Breakpoints are tried at so many parts of the codes.
const PARTS: i32 = 8;

/// The quantiser with the least squared error that cuts nothing off, each channel about its mean. `None` where there is no such: no
/// elements, too many channels for an integer LayerNorm, or options out of their range.
#[must_use]
pub fn fit(channels: &[Histogram], options: PiecewiseOptions) -> Option<PiecewiseFit> {
    if options.max_exponent > 15 || options.mantissa_bits > 3 {
        return None;
    }
    let channels: Vec<Channel<'_>> = channels.iter().map(Channel::new).collect();
    let top = Segments { bits: options.bits, breakpoint: 1, shift: 1 }.top();
    let breakpoints = (1..PARTS).filter_map(|part| u8::try_from((top + 1) * part / PARTS).ok());
    let candidates =
        breakpoints.flat_map(|breakpoint| (1..=LEVEL_BITS).map(move |shift| Segments { bits: options.bits, breakpoint, shift }));
    let fits = candidates.filter(|s| s.is_valid()).filter_map(|segments| with(segments, &channels, options));
    fits.min_by(|a, b| a.squared_error.total_cmp(&b.squared_error))
}

/// The factors for these segments and their error.
fn with(segments: Segments, channels: &[Channel<'_>], options: PiecewiseOptions) -> Option<PiecewiseFit> {
    let farthest = f64::from(segments.level(segments.top()));
    let last = f64::from((1i32 << (segments.level_bits() - 1)) - 1);
    // Zero is a code of the grid as well: a channel that lies far from it and hardly moves has larger steps.
    let needs: Vec<f64> = channels.iter().map(|c| (c.reach / farthest).max(c.mean.abs() / last)).collect();
    let widest = needs.iter().copied().fold(0.0, f64::max);
    if !(widest > 0.0 && widest.is_finite()) {
        return None;
    }
    let parts = f64::from(1u32 << options.mantissa_bits);
    let largest = (2.0 - 1.0 / parts) * f64::from(options.max_exponent).exp2();
    let narrowest = needs.iter().copied().filter(|n| *n > 0.0).fold(widest, f64::min);
    let mut base = narrowest.max(widest / largest);
    let factors = |base: f64| -> Vec<(u8, u8)> { needs.iter().map(|need| factor(need / base, parts)).collect() };
    let size = |&(exponent, mantissa): &(u8, u8)| (1.0 + f64::from(mantissa) / parts) * f64::from(exponent).exp2();
    let squares = |base: f64| factors(base).iter().map(|f| (parts * size(f)).powi(2)).sum::<f64>();
    while squares(base) > most_squares(channels.len()) {
        if base > widest {
            return None;
        }
        base *= std::f64::consts::SQRT_2;
    }
    let factors = factors(base);
    let steps: Vec<f64> = factors.iter().map(|f| base * size(f)).collect();
    let zero = |(c, step): (&Channel<'_>, &f64)| (-c.mean / step).round_ties_even() as i32;
    let zero_points: Vec<i32> = channels.iter().zip(&steps).map(zero).collect();
    let meanings = steps.iter().zip(&zero_points);
    let errors = channels.iter().zip(meanings).map(|(c, (&step, &zero))| error(c.histogram, step, zero, segments));
    let squared_error = errors.sum();
    let (exponents, mantissas) = factors.into_iter().unzip();
    Some(PiecewiseFit { segments, base, zero_points, exponents, mantissas, squared_error })
}

/// The exponent and the mantissa, in so many parts, of the smallest factor that is at least `ratio`, and at least 1.
fn factor(ratio: f64, parts: f64) -> (u8, u8) {
    // What a division rounds up is no reason for another part.
    const SLACK: f64 = 1e-9;
    if ratio <= 1.0 {
        return (0, 0);
    }
    let exponent = ratio.log2().floor();
    let mantissa = ((ratio / exponent.exp2() - 1.0) * parts - SLACK).ceil().max(0.0);
    if mantissa >= parts { (exponent as u8 + 1, 0) } else { (exponent as u8, mantissa as u8) }
}

/// The largest sum of squared multipliers with which the integer LayerNorm of 16-bit codes fits its 64 bits: with X_c the largest
/// |code − zero point| times the channel's multiplier, C · Σ X_c² stays below 2^62, and half of that is left to its epsilon.
fn most_squares(channels: usize) -> f64 {
    let farthest = f64::from(1u32 << 15) + f64::from(1u32 << 11);
    61f64.exp2() / (channels.max(1) as f64 * farthest * farthest)
}

/// A twelfth of the squared step for each element, where it falls. Beyond the breakpoint a value is rounded to the grid first (1/12 of its
/// step squared), and then one of 2^s codes of it to the level, (4^s + 2) / 12.
fn error(histogram: &Histogram, step: f64, zero_point: i32, segments: Segments) -> f64 {
    let middle = -step * f64::from(zero_point);
    let inside = f64::from(segments.breakpoint) * step;
    let (low, high) = (middle - inside, middle + inside);
    let coarse = f64::from((1u32 << (2 * segments.shift)) + 3);
    let of_bin = |lo: f64, hi: f64| {
        let part = if hi > lo {
            ((hi.min(high) - lo.max(low)) / (hi - lo)).clamp(0.0, 1.0)
        } else {
            f64::from(u8::from((low..=high).contains(&lo)))
        };
        part + (1.0 - part) * coarse
    };
    let sum: f64 = histogram.bins().iter().map(|b| b.count as f64 * of_bin(b.lo, b.hi)).sum();
    sum * step * step / 12.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::calib::histogram::Bin;
    use proptest::prelude::*;

    const OPTIONS: PiecewiseOptions = PiecewiseOptions { bits: 8, max_exponent: 7, mantissa_bits: 3 };

    fn histogram(values: &[f64]) -> Histogram {
        let bins = values.iter().map(|&x| Bin::point(x, 1)).collect();
        let ends = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        Histogram::new(bins, ends.0, ends.1)
    }

    /// A channel's step and zero point.
    fn meaning(fit: &PiecewiseFit, channel: usize) -> (f64, i32) {
        let mantissa = 1.0 + f64::from(fit.mantissas[channel]) / 8.0;
        (fit.base * mantissa * f64::from(fit.exponents[channel]).exp2(), fit.zero_points[channel])
    }

    /// What a value is after its codes: rounded to the grid, and to the nearest level by trying all.
    fn decoded(fit: &PiecewiseFit, channel: usize, x: f64) -> f64 {
        let (step, zero) = meaning(fit, channel);
        let last = f64::from(1 << (fit.segments.level_bits() - 1));
        let on_grid = ((x / step).round_ties_even() + f64::from(zero)).clamp(-last, last - 1.0) as i32;
        let top = fit.segments.top();
        let off = |code: &i32| ((fit.segments.level(*code) - on_grid).abs(), code & 1);
        let code = (-top..=top).min_by_key(off).unwrap();
        assert_eq!(fit.segments.nearest(on_grid), code, "{on_grid} in {:?}", fit.segments);
        step * f64::from(fit.segments.level(code) - zero)
    }

    /// Values of a bell, by its quantiles, and a few far out, one of them at `far`.
    fn heavy(width: f64, middle: f64, far: f64) -> Vec<f64> {
        // The logistic distribution's.
        let quantile = |i: u32| 0.55 * (f64::from(2 * i + 1) / f64::from(2 * 500 - 2 * i - 1)).ln();
        let bell = (0..500).map(|i| middle + width * quantile(i));
        bell.chain((0..20).map(|i| middle + width * far * (1.0 - 0.0237 * f64::from(i)))).collect()
    }

    #[test]
    fn levels_are_a_fine_and_a_coarse_segment() {
        let segments = Segments { bits: 4, breakpoint: 5, shift: 2 };
        let levels: Vec<i32> = (-7..=7).map(|code| segments.level(code)).collect();
        assert_eq!(levels, [-13, -9, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 9, 13]);
        // 7 is as near to 5 as to 9, the codes 5 and 6; 11 to 9 and 13, 6 and 7. Beyond the last there is none.
        let nearest = [4, 5, 6, 7, 8, 10, 11, 12, 100, -7, -11, -128].map(|level| segments.nearest(level));
        assert_eq!(nearest, [4, 5, 5, 6, 6, 6, 6, 7, 7, -6, -6, -7]);
        let valid = |bits, breakpoint, shift| Segments { bits, breakpoint, shift }.is_valid();
        assert!(valid(4, 1, 1) && valid(8, 127, 4));
        assert!(!valid(3, 1, 1) && !valid(9, 1, 1) && !valid(8, 0, 1) && !valid(8, 128, 1) && !valid(8, 1, 0) && !valid(8, 1, 5));
    }

    #[test]
    fn every_level_is_a_code_of_the_grid() {
        for bits in 4..=8u8 {
            for breakpoint in 1..1 << (bits - 1) {
                for shift in 1..=LEVEL_BITS {
                    let segments = Segments { bits, breakpoint: breakpoint as u8, shift };
                    let levels: Vec<i32> = (-segments.top()..=segments.top()).map(|code| segments.level(code)).collect();
                    assert!(levels.is_sorted_by(|a, b| a < b) && levels.len() == (1 << bits) - 1);
                    assert!(levels.iter().enumerate().all(|(at, &level)| segments.nearest(level) == at as i32 - segments.top()));
                    // The lowest code does not occur, but a table has an entry for it.
                    assert!(segments.level(-segments.top() - 1) >= -(1 << (segments.level_bits() - 1)), "{segments:?}");
                }
            }
        }
    }

    proptest! {
        /// Nothing that was seen is cut off, and zero is a code of the grid.
        #[test]
        fn everything_seen_is_within_half_a_step(
            widths in prop::collection::vec((0.01f64..20.0, -30.0f64..30.0, 4.0f64..60.0), 1..6)
        ) {
            let channels: Vec<Vec<f64>> = widths.iter().map(|&(width, middle, far)| heavy(width, middle, far)).collect();
            let histograms: Vec<Histogram> = channels.iter().map(|c| histogram(c)).collect();
            let fit = fit(&histograms, OPTIONS).unwrap();
            let coarse = f64::from(1u32 << fit.segments.shift);
            for (c, values) in channels.iter().enumerate() {
                let (step, zero) = meaning(&fit, c);
                prop_assert!(zero.abs() < 1 << 11);
                for &x in values {
                    let error = (decoded(&fit, c, x) - x).abs();
                    // Half a step of the grid, which the middle may be off as well, and half a coarse one.
                    prop_assert!(error <= step * (0.5 + 0.5 * coarse) * (1.0 + 1e-9), "{x}: {error} of step {step}");
                }
            }
        }

        /// The integer LayerNorm's sums stay within 64 bits, for any codes of 16 bits.
        #[test]
        fn the_factors_fit_an_integer_layer_norm(channels in 1usize..3000, wide in 1usize..40, ratio in 1.0f64..300.0) {
            let of = |c: usize| heavy(if c.is_multiple_of(wide) { ratio } else { 1.0 }, 0.0, 8.0).split_off(480);
            let histograms: Vec<Histogram> = (0..channels).map(|c| histogram(&of(c))).collect();
            let fit = fit(&histograms, OPTIONS).unwrap();
            let factor = |c: usize| (8 + i128::from(fit.mantissas[c])) << fit.exponents[c];
            let most = |c: usize| factor(c) * (32768 + i128::from(fit.zero_points[c].abs()));
            let squares: i128 = (0..channels).map(|c| most(c).pow(2)).sum();
            prop_assert!(channels as i128 * squares < 1 << 62, "{channels} channels: {squares}");
        }
    }

    /// The error of values that fill their steps evenly is the one that was told, and has no direction.
    #[test]
    fn the_error_is_what_was_said_and_points_nowhere() {
        // Nearly all between -1 and 1, and a tail to one side.
        let middle = (0..40_000).map(|i| f64::from(i) / 20_000.0 - 0.999_987);
        let values: Vec<f64> = middle.chain((0..8_000).map(|i| 1.0 + f64::from(i) / 700.0)).collect();
        let seen = histogram(&values);
        let channels = [Channel::new(&seen)];
        for shift in 1..=LEVEL_BITS {
            let fit = with(Segments { bits: 8, breakpoint: 32, shift }, &channels, OPTIONS).unwrap();
            let (step, _) = meaning(&fit, 0);
            let errors: Vec<f64> = values.iter().map(|&x| decoded(&fit, 0, x) - x).collect();
            let squared: f64 = errors.iter().map(|e| e * e).sum();
            assert!((squared / fit.squared_error - 1.0).abs() < 0.05, "shift {shift}: {squared} for {}", fit.squared_error);
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            assert!(mean.abs() < 0.05 * step, "shift {shift}: {} steps", mean / step);
        }
    }

    /// Steps are small where the values are: many times as small as those that reach the one far out.
    #[test]
    fn a_tail_is_coarse_and_the_rest_fine() {
        // One alone.
        let seen = histogram(&heavy(1.0, 3.0, 40.0)[..501]);
        let fit = fit(std::slice::from_ref(&seen), OPTIONS).unwrap();
        let (step, _) = meaning(&fit, 0);
        let even = (seen.max() - seen.min()) / 255.0;
        assert!(step < even / 3.0, "{step} and {even}: {:?}", fit.segments);
        let coarse = step * f64::from(1u32 << fit.segments.shift);
        assert!(fit.segments.shift >= 2 && (decoded(&fit, 0, 43.0) - 43.0).abs() <= 0.5 * (coarse + step));
    }

    #[test]
    fn where_nothing_is_there_is_no_fit() {
        assert_eq!(fit(&[], OPTIONS), None);
        assert_eq!(fit(&[histogram(&[0.0, 0.0])], OPTIONS), None);
        for out in [
            PiecewiseOptions { bits: 9, ..OPTIONS },
            PiecewiseOptions { bits: 3, ..OPTIONS },
            PiecewiseOptions { max_exponent: 16, ..OPTIONS },
            PiecewiseOptions { mantissa_bits: 32, ..OPTIONS },
        ] {
            assert_eq!(fit(&[histogram(&[1.0, 2.0])], out), None);
        }
        // A constant far from zero is a channel as any other.
        let fit = fit(&[histogram(&[5.0, 5.0]), histogram(&heavy(1.0, 0.0, 9.0))], OPTIONS).unwrap();
        assert!((decoded(&fit, 0, 5.0) - 5.0).abs() < 0.01);
    }
}
