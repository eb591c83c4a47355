//! Power-of-two factors (FQ-ViT, arXiv 2111.13824, equations 5 to 7): one scale and one zero point for the tensor, one exponent a channel.
//!
//! `real = base · 2^α_c · (q − zp)`, `q` in `0..=2^bits − 1`, `α_c` in `0..=K` with the least squared error over the channel's elements.
//!
//! As published, `base = (max − min) / (2^bits − 1) / 2^K` and `zp = round(−min / (max − min) · (2^bits − 1))` from the tensor's range.
//! That zero point is the range's, and all channels share it: where one channel reaches −577, `zp` is near the top, and every other channel has a few
//! codes left for its positive half. So [`fit`] can also search the zero point and the base for the least total error, and give each
//! channel a zero point of its own: `real = base · 2^α_c · (q − zp_c)`. An integer engine subtracts a constant a channel then instead of
//! one for the tensor, and QuantizeLinear takes a zero point for each channel as it takes a scale.
//!
//! A power of two is up to twice what a channel needs, which costs 3.3 dB on average (`∫ 4^u du` over an octave is 2.2). With b bits of a
//! mantissa, `real = base · (1 + m_c / 2^b) · 2^α_c · (q − zp_c)`, the shift becomes a multiplication by an integer of b + 1 bits, or b
//! more shifts and additions; two bits win back 2.5 dB, three 2.9 dB. For values that only sums and LayerNorms read, that costs next to nothing.
//!
//! # Why the search is short
//!
//! The scales that a channel can have are a ladder, `top · 2^−j`, or with mantissas `(1 + m / 2^b) · 2^−n` times a number. For one zero point, a finer rung whose codes still cover the channel holds
//! every coarser rung's values within it, so it is nowhere worse: a channel needs no rung above the finest that covers it (`j0`). Below
//! that, clipping only grows, and once the clipping alone (the error less the `s²/4` an element that rounding can add) is more than the best
//! error so far, every finer rung is worse. Both cuts are exact; usually two or three rungs are left.
//!
//! Zero is a code, so a zero point of a channel's own moves no value that codes can have: it only says on which side what does not fit is
//! cut off. Where all fits, what is to spare is shared by both sides; below that, the middle of what 99.8 % of the elements span and
//! an equal cut on both sides are tried.

use crate::calib::distortion::{Quantizer, Spans, round_half_even};
use crate::calib::error::Error;
use crate::calib::histogram::{Bin, Histogram};
use crate::calib::observer::{Range, Target, extremes};
use crate::calib::stats::ValueStats;

const NAME: &str = "PtfObserver";
/// The largest exponent that can be asked for: the integer LayerNorm shifts codes of 8 bits by it within 32 bits.
pub const MAX_EXPONENT: u8 = 15;

/// Parameters of a power-of-two-factor quantiser.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Ptf {
    /// The scale of a channel with exponent 0; positive.
    pub base: f64,
    /// The code of zero in each channel, among `0..=2^bits − 1`. For a signed container, subtract `2^(bits−1)` from codes and zero points.
    pub zero_points: Vec<i32>,
    /// `α_c`, one a channel.
    pub exponents: Vec<u8>,
    /// `m_c`, one a channel: its scale is `base · (1 + m_c / 2^mantissa_bits) · 2^α_c`.
    pub mantissas: Vec<u8>,
}

/// How to choose the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PtfOptions {
    /// Width of a code, 2 to 16.
    pub bits: u8,
    /// `K`, the largest exponent allowed (published: 3).
    pub max_exponent: u8,
    /// Bits of a channel's mantissa, 0 (published: powers of two) to 3.
    pub mantissa_bits: u8,
    /// Whether base and zero point are searched; otherwise they are the tensor range's, as published.
    pub search: bool,
    /// Whether a search gives each channel a zero point of its own. Channels that share a range share the zero point too.
    pub own_zero_points: bool,
    /// How far each channel's range reaches.
    pub reach: Reach,
}

/// How far a channel's range reaches, where what calibration saw of it alone says little.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    /// As far as it was seen to.
    Seen,
    /// So many of the channels, a share of them, have one range, the largest of theirs, and so one exponent: where a channel is
    /// seldom active, as a hidden unit of an MLP is.
    Shared(f64),
    /// At least so many standard deviations to either side of its mean: where a sample has few elements of it, as of a class token.
    Deviations(f64),
}

impl PtfOptions {
    fn check(self) -> Result<(), Error> {
        if !(2..=16).contains(&self.bits) {
            return Err(Error::Option { name: "bits", found: self.bits.to_string(), expected: "between 2 and 16" });
        }
        if self.max_exponent > MAX_EXPONENT {
            return Err(Error::Option { name: "max_exponent", found: self.max_exponent.to_string(), expected: "at most 15" });
        }
        if self.mantissa_bits > 3 {
            return Err(Error::Option {
                name: "ptf_mantissa_bits",
                found: self.mantissa_bits.to_string(),
                expected: "at most 3",
            });
        }
        Ok(())
    }

    fn qmax(self) -> f64 {
        f64::from((1u32 << self.bits) - 1)
    }

    /// The share of the channels that have one range; 0 where each has its own.
    fn shared(self) -> f64 {
        if let Reach::Shared(share) = self.reach { share } else { 0.0 }
    }

    /// Rungs of a ladder in an octave.
    fn per_octave(self) -> usize {
        1 << self.mantissa_bits
    }
}

/// A fit and what it costs.
#[derive(Debug, Clone, PartialEq)]
pub struct PtfFit {
    /// The parameters.
    pub ptf: Ptf,
    /// The sum of squared errors over all elements, estimated on the histograms and multiplied by the channels' weights.
    pub squared_error: f64,
}

/// Fits a value with recorded channel sketches; where channels share a range, their extremes are enough. `range` replaces the tensor's
/// exact range (a clip chosen downstream, say); `weights` as in [`fit`].
///
/// # Errors
/// Options out of range, or no channel sketches in the statistics.
pub fn from_stats(values: &ValueStats, range: Option<Range>, weights: &[f64], options: PtfOptions) -> Result<PtfFit, Error> {
    let range = match range {
        Some(range) => range,
        None => extremes(NAME, values, &Target::Tensor)?,
    };
    let missing = || Error::Observer {
        observer: NAME,
        reason: "the statistics hold no channel histograms of this value; calibrate again with them".into(),
    };
    let channels = values.channels().ok_or_else(missing)?;
    // A range that is not the channel's own is not chosen by what it holds inside it: that is taken as spread evenly.
    let evenly = |(lo, hi): (f64, f64)| Histogram::new(vec![Bin { lo, hi, count: channels.count() }], lo, hi);
    let of_channel = |c| match options.reach {
        Reach::Seen => channels.histogram(c),
        Reach::Shared(_) => channels.range(c).map(|(lo, hi)| evenly((lo.into(), hi.into()))),
        Reach::Deviations(many) => channels.histogram(c).map(|seen| evenly(seen.reach(many))),
    };
    let histograms: Vec<Histogram> = (0..channels.len()).map(of_channel).collect::<Option<_>>().ok_or_else(missing)?;
    let farthest = |range: Range, h: &Histogram| Range::new(range.lo.min(h.min()), range.hi.max(h.max()));
    let range = match options.reach {
        Reach::Deviations(_) => histograms.iter().fold(range, farthest),
        _ => range,
    };
    fit(&histograms, range, weights, options)
}

/// Fits one histogram a channel within the tensor's `range`. Ties go to the lowest exponent, and to the published zero point.
///
/// `weights` say how much a unit of squared error in a channel matters when base and zero point are searched (its effect downstream);
/// empty means equally. A channel's own exponent does not depend on them.
///
/// # Errors
/// Options out of range, a range that is not finite, weights that are not one finite positive number a channel.
pub fn fit(channels: &[Histogram], range: Range, weights: &[f64], options: PtfOptions) -> Result<PtfFit, Error> {
    options.check()?;
    if !(range.lo.is_finite() && range.hi.is_finite() && range.lo <= range.hi) {
        return Err(Error::Observer {
            observer: NAME,
            reason: format!("the tensor's range {} to {} is not a finite interval", range.lo, range.hi),
        });
    }
    if !weights.is_empty() && (weights.len() != channels.len() || !weights.iter().all(|w| w.is_finite() && *w > 0.0)) {
        return Err(Error::Observer {
            observer: NAME,
            reason: format!(
                "{} weights for {} channels; give each channel a positive number, or none",
                weights.len(),
                channels.len()
            ),
        });
    }
    let range = range.with_zero();
    if range.lo == range.hi {
        let none = || vec![0; channels.len()];
        let ptf = Ptf { base: 1.0, zero_points: vec![0; channels.len()], exponents: none(), mantissas: none() };
        return Ok(PtfFit { ptf, squared_error: 0.0 });
    }
    let channels: Vec<Channel> = channels
        .iter()
        .enumerate()
        .map(|(c, histogram)| Channel::new(histogram, weights.get(c).copied().unwrap_or(1.0)))
        .collect();
    let channels = share_range(channels, options.shared());
    let zero_point = round_half_even(-range.lo / ((range.hi - range.lo) / options.qmax())).clamp(0.0, options.qmax());
    let published = Ladder { top: (range.hi - range.lo) / options.qmax(), zero_point: Some(zero_point) };
    let mut best = published.fit(&channels, options, 0);
    if options.search {
        let mut ladder = published;
        let candidates: Vec<Ladder> = if options.own_zero_points && options.shared() <= 0.0 {
            Ladder::widest(&channels, range, options).into_iter().collect()
        } else {
            let covering = |zero_point| Ladder::covering(range, zero_point, options);
            zero_points(&channels, range, options).into_iter().map(covering).collect()
        };
        for candidate in candidates {
            if best.improve(candidate.fit(&channels, options, EXTRA)) {
                ladder = candidate;
            }
        }
        // Where a ladder's rungs are a factor of two apart, other ladders lie between them.
        let start = ladder;
        for shrink in SHRINKS.into_iter().filter(|_| options.mantissa_bits == 0) {
            let candidate = Ladder { top: start.top * shrink, ..start };
            best.improve(candidate.fit(&channels, options, EXTRA));
        }
        best.raise_base();
    }
    let ptf = Ptf {
        base: best.base,
        zero_points: best.channels.iter().map(|c| c.zero_point as i32).collect(),
        exponents: best.channels.iter().map(|c| c.exponent).collect(),
        mantissas: best.channels.iter().map(|c| c.mantissa).collect(),
    };
    Ok(PtfFit { ptf, squared_error: best.error })
}

/// 2^(-1/4), 2^(-1/2), 2^(-3/4).
const SHRINKS: [f64; 3] = [0.840_896_415_253_714_6, std::f64::consts::FRAC_1_SQRT_2, 0.594_603_557_501_360_5];
/// Rungs below the covering ladder's that the search may descend: the largest channel may be clipped to 1/16.
const EXTRA: usize = 4;

/// A channel, prepared.
struct Channel {
    weight: f64,
    spans: Spans,
    lo: f64,
    hi: f64,
    /// Nearly all of the channel: what a zero point should serve if it does not serve a few outliers.
    bulk: Range,
}

impl Channel {
    fn new(histogram: &Histogram, weight: f64) -> Self {
        let (lo, hi) = if histogram.count() == 0 { (0.0, 0.0) } else { (histogram.min(), histogram.max()) };
        let at = |p| histogram.quantile(p).unwrap_or(0.0);
        Self {
            weight,
            spans: Spans::from(histogram),
            lo: lo.min(0.0),
            hi: hi.max(0.0),
            bulk: Range::new(at(0.001), at(0.999)).with_zero(),
        }
    }
}

/// Widens every channel's range to the largest of a share of them.
fn share_range(mut channels: Vec<Channel>, share: f64) -> Vec<Channel> {
    if share <= 0.0 || channels.is_empty() {
        return channels;
    }
    let at = ((channels.len() as f64 * share) as usize).min(channels.len() - 1);
    let largest = |mut ends: Vec<f64>| {
        ends.sort_by(f64::total_cmp);
        ends.get(at).copied().unwrap_or(0.0)
    };
    let lo = -largest(channels.iter().map(|c| -c.lo).collect());
    let hi = largest(channels.iter().map(|c| c.hi).collect());
    for channel in &mut channels {
        (channel.lo, channel.hi) = (channel.lo.min(lo), channel.hi.max(hi));
    }
    channels
}

/// The scales `(1 + m / 2^mantissa_bits) · 2^−n` times a number, in descending order; without mantissas `top · 2^−j`.
#[derive(Debug, Clone, Copy)]
struct Ladder {
    /// The largest.
    top: f64,
    /// Of all channels; `None` where each has its own.
    zero_point: Option<f64>,
}

/// What a channel would have on one rung of a ladder.
#[derive(Debug, Clone, Copy)]
struct Rung {
    error: f64,
    zero_point: f64,
}

/// What a channel has.
#[derive(Debug, Clone, Copy)]
struct Choice {
    exponent: u8,
    mantissa: u8,
    zero_point: f64,
}

struct Fit {
    base: f64,
    channels: Vec<Choice>,
    error: f64,
}

impl Fit {
    fn improve(&mut self, other: Self) -> bool {
        let better = other.error < self.error;
        if better {
            *self = other;
        }
        better
    }

    /// The same quantiser with the largest base.
    fn raise_base(&mut self) {
        let least = self.channels.iter().map(|c| c.exponent).min().unwrap_or(0);
        self.base *= pow2(least.into());
        self.channels.iter_mut().for_each(|c| c.exponent -= least);
    }
}

/// 2^n, exactly.
fn pow2(n: u32) -> f64 {
    f64::from(1u32 << n.min(31))
}

impl Ladder {
    /// The smallest top that covers the range with this zero point.
    fn covering(range: Range, zero_point: f64, options: PtfOptions) -> Self {
        Self { top: scale_needed(range, zero_point, options.qmax()), zero_point: Some(zero_point) }
    }

    /// The smallest top that covers every channel within the range, with zero points of their own; `None` where all is zero.
    fn widest(channels: &[Channel], range: Range, options: PtfOptions) -> Option<Self> {
        let span = |c: &Channel| c.hi.min(range.hi) - c.lo.max(range.lo);
        let top = channels.iter().map(span).fold(0.0, f64::max) / options.qmax();
        (top > 0.0).then_some(Self { top, zero_point: None })
    }

    /// The scale of a rung, counted from the top, and its mantissa.
    fn scale(&self, rung: usize, options: PtfOptions) -> (f64, u8) {
        let n = options.per_octave();
        let mantissa = n - 1 - rung % n;
        let octave = self.top * n as f64 / (2 * n - 1) as f64 / pow2((rung / n) as u32);
        (octave * (1.0 + mantissa as f64 / n as f64), mantissa as u8)
    }

    /// The best window of `K + 1` octaves that begins at octave `0..=extra`, and each channel's best rung within it.
    fn fit(&self, channels: &[Channel], options: PtfOptions, extra: usize) -> Fit {
        let (k, n) = (usize::from(options.max_exponent), options.per_octave());
        let ladders: Vec<Vec<Rung>> = channels.iter().map(|c| self.rungs(c, options, extra)).collect();
        let nothing = Rung { error: f64::INFINITY, zero_point: self.zero_point.unwrap_or(0.0) };
        let mut best: Option<Fit> = None;
        for start in 0..=extra {
            let (mut total, mut chosen) = (0.0, Vec::with_capacity(channels.len()));
            for (channel, ladder) in channels.iter().zip(&ladders) {
                let (mut at, mut least) = ((start + k + 1) * n - 1, nothing);
                // The finest first.
                for rung in (start * n..(start + k + 1) * n).rev() {
                    // A channel that may hold more than it was seen to hold is not clipped at what was seen.
                    if options.shared() > 0.0
                        && rung > start * n
                        && let Some(zero_point) = self.zero_point
                    {
                        let (s, _) = self.scale(rung, options);
                        if -zero_point * s > channel.lo || (options.qmax() - zero_point) * s < channel.hi {
                            continue;
                        }
                    }
                    if let Some(found) = ladder.get(rung).filter(|found| found.error < least.error) {
                        (at, least) = (rung, *found);
                    }
                }
                total += channel.weight * least.error;
                // At most K, which a u8 says.
                let exponent = (start + k - at / n) as u8;
                chosen.push(Choice { exponent, mantissa: self.scale(at, options).1, zero_point: least.zero_point });
            }
            if best.as_ref().is_none_or(|best| total < best.error) {
                // The last rung of an octave has no mantissa.
                let (base, _) = self.scale((start + k + 1) * n - 1, options);
                best = Some(Fit { base, channels: chosen, error: total });
            }
        }
        let nothing = Choice { exponent: 0, mantissa: 0, zero_point: nothing.zero_point };
        best.unwrap_or(Fit { base: self.top, channels: vec![nothing; channels.len()], error: f64::INFINITY })
    }

    /// A channel with this scale: the zero point with the least error.
    fn rung(&self, channel: &Channel, s: f64, qmax: f64) -> Rung {
        let with = |zero_point: f64| {
            let error = channel.spans.squared_error(&Quantizer { scale: s, zero_point, qmin: 0.0, qmax });
            Rung { error, zero_point }
        };
        if let Some(zero_point) = self.zero_point {
            return with(zero_point);
        }
        // What lies to either side of these is cut off; as far as codes are left, on neither.
        let (lowest, highest) = (qmax - channel.hi / s, -channel.lo / s);
        let code = |x: f64| round_half_even(x).clamp(0.0, qmax);
        let equal = code(0.5 * (lowest + highest));
        let best = with(equal);
        if lowest <= highest {
            let bulk = 0.5 * (qmax - (channel.bulk.lo + channel.bulk.hi) / s);
            let bulk = code(bulk.clamp(lowest, highest));
            if bulk != equal {
                let other = with(bulk);
                if other.error < best.error {
                    return other;
                }
            }
        }
        best
    }

    /// What each rung gives; an infinite error where the module's two cuts show that the rung cannot win in any window.
    fn rungs(&self, channel: &Channel, options: PtfOptions, extra: usize) -> Vec<Rung> {
        let (k, n) = (usize::from(options.max_exponent), options.per_octave());
        let rungs = (k + extra + 1) * n;
        let mut out = vec![Rung { error: f64::INFINITY, zero_point: self.zero_point.unwrap_or(0.0) }; rungs];
        let need = match self.zero_point {
            Some(zero_point) => scale_needed(Range::new(channel.lo, channel.hi), zero_point, options.qmax()),
            None => (channel.hi - channel.lo) / options.qmax(),
        };
        // The finest covering rung; a window that ends before it takes its own finest rung, which is computed below.
        let covering = (0..rungs).rev().find(|&j| self.scale(j, options).0 >= need).unwrap_or(0);
        let first = covering.min((k + 1) * n - 1);
        let mut best = f64::INFINITY;
        for (j, slot) in out.iter_mut().enumerate().skip(first) {
            let (s, _) = self.scale(j, options);
            *slot = self.rung(channel, s, options.qmax());
            let clipping = slot.error - 0.25 * s * s * channel.spans.count();
            best = best.min(slot.error);
            // Windows may begin as late as `extra`, so rungs up to there are always known.
            if j >= extra * n && clipping > best {
                break;
            }
        }
        out
    }
}

/// The least scale with which codes `0..=qmax` cover a range that includes zero.
fn scale_needed(range: Range, zero_point: f64, qmax: f64) -> f64 {
    let side = |reach: f64, codes: f64| {
        if reach <= 0.0 {
            0.0
        } else if codes > 0.0 {
            reach / codes
        } else {
            f64::INFINITY
        }
    };
    side(range.hi, qmax - zero_point).max(side(-range.lo, zero_point))
}

/// `⌊log2 x⌋` for `x ≥ 1` (infinity included), 0 below.
fn octaves(x: f64) -> u32 {
    u32::try_from(((x.to_bits() >> 52) & 0x7ff).saturating_sub(1023)).unwrap_or(0)
}

/// Zero points worth an exact evaluation: the range's, the middle, and those with which the finest covering rungs are finest,
/// judged by `Σ w·n·s²` over whole channels and over their bulk.
fn zero_points(channels: &[Channel], range: Range, options: PtfOptions) -> Vec<f64> {
    let qmax = options.qmax();
    let k = u32::from(options.max_exponent);
    let published = round_half_even(-range.lo / (range.hi - range.lo) * qmax).clamp(0.0, qmax);
    let mut found = vec![published, (qmax + 1.0) / 2.0];
    let needs: [fn(&Channel) -> Range; 2] = [|c| Range::new(c.lo, c.hi), |c| c.bulk];
    let step = (1usize << options.bits).div_ceil(256);
    for part in needs {
        let mut best = (f64::INFINITY, published);
        for zero_point in (0..=qmax as usize).step_by(step) {
            let zero_point = zero_point as f64;
            let top = channels.iter().map(|c| scale_needed(part(c), zero_point, qmax)).fold(0.0, f64::max);
            if !(top > 0.0 && top.is_finite()) {
                continue;
            }
            let mut total = 0.0;
            for channel in channels {
                let need = scale_needed(part(channel), zero_point, qmax);
                let s = top / pow2(octaves(top / need).min(k));
                total += channel.weight * channel.spans.count() * s * s;
            }
            if total < best.0 {
                best = (total, zero_point);
            }
        }
        found.push(best.1);
    }
    let mut distinct = Vec::new();
    for zero_point in found {
        // A zero point at an end cannot cover a two-sided range at all.
        let covers = scale_needed(range, zero_point, qmax).is_finite();
        if covers && !distinct.contains(&zero_point) {
            distinct.push(zero_point);
        }
    }
    distinct
}

#[cfg(test)]
#[path = "ptf_tests.rs"]
mod tests;
