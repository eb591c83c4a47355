#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::calib::channels::{Channels, Layout};
use crate::calib::sketch::Sketch;
use proptest::prelude::*;

struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f64 + 0.5) / (1u64 << 24) as f64
    }
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Textbook: quantise raw values on codes `0..=qmax`.
fn raw_error(data: &[f32], scale: f64, zp: f64, qmax: f64) -> f64 {
    data.iter()
        .map(|&x| {
            let x = f64::from(x);
            let q = ((x / scale).round_ties_even() + zp).clamp(0.0, qmax);
            (x - scale * (q - zp)).powi(2)
        })
        .sum()
}

/// Equations 5 to 7, by trying every exponent on the raw channel.
fn published(channels: &[Vec<f32>], bits: u8, k: u8) -> (f64, f64, Vec<f64>) {
    let qmax = f64::from((1u32 << bits) - 1);
    let all = channels.concat();
    let lo = all.iter().copied().fold(0.0f32, f32::min);
    let hi = all.iter().copied().fold(0.0f32, f32::max);
    let s = (f64::from(hi) - f64::from(lo)) / qmax;
    let zp = (-f64::from(lo) / s).round_ties_even().clamp(0.0, qmax);
    let base = s / 2f64.powi(k.into());
    let least = channels
        .iter()
        .map(|c| (0..=k).map(|a| raw_error(c, base * 2f64.powi(a.into()), zp, qmax)).fold(f64::INFINITY, f64::min))
        .collect();
    (base, zp, least)
}

fn statistics(channels: &[Vec<f32>]) -> (Vec<Histogram>, Range) {
    let n = channels[0].len();
    let flat: Vec<f32> = (0..n).flat_map(|i| channels.iter().map(move |c| c[i])).collect();
    let layout = Layout { outer: n, channels: channels.len(), inner: 1 };
    let stats = Channels::from_slice(&flat, layout, true).unwrap();
    let (lo, hi) = Sketch::from_slice(&flat).unwrap().range().unwrap();
    let histograms = (0..channels.len()).map(|c| stats.histogram(c).unwrap()).collect();
    (histograms, Range::new(lo.into(), hi.into()))
}

fn total(channels: &[Vec<f32>], fit: &Ptf, bits: u8) -> f64 {
    let qmax = f64::from((1u32 << bits) - 1);
    channels
        .iter()
        .zip(fit.exponents.iter().zip(&fit.mantissas).zip(&fit.zero_points))
        .map(|(c, ((&a, &m), &zp))| {
            // Of fits with two bits or none.
            let factor = (1.0 + f64::from(m) / 4.0) * 2f64.powi(a.into());
            raw_error(c, fit.base * factor, zp.into(), qmax)
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whether to clip a channel's few largest values is judged by bins that are an eighth wide and assumed evenly filled. A
    /// wrong call moves one channel by one rung, whose error is at most the factor of four between neighbouring rungs away;
    /// over a tensor such calls are rare and of channels where little is at stake.
    #[test]
    fn each_channel_is_as_good_as_brute_force_on_raw_data(seed in 0u64..10_000, k in 0u8..9, bits in 4u8..9, shift in -4.0f64..4.0) {
        let mut random = Random(seed);
        let channels: Vec<Vec<f32>> = (0..12).map(|_| {
            let width = 2f64.powf(6.0 * random.uniform() - 3.0);
            let mean = 0.25 * shift * width * random.normal();
            (0..600).map(|_| (width * random.normal() + mean) as f32).collect()
        }).collect();
        let (histograms, range) = statistics(&channels);
        let (base, zp, least) = published(&channels, bits, k);
        let fitted = fit(&histograms, range, &[], PtfOptions { bits, max_exponent: k, search: false, own_zero_points: false, mantissa_bits: 0, reach: Reach::Seen }).unwrap();
        prop_assert!((fitted.ptf.base - base).abs() <= 1e-12 * base);
        prop_assert!(fitted.ptf.zero_points.iter().all(|&z| f64::from(z) == zp));
        let qmax = f64::from((1u32 << bits) - 1);
        for ((c, &a), least) in channels.iter().zip(&fitted.ptf.exponents).zip(&least) {
            prop_assert!(a <= k);
            let error = raw_error(c, base * 2f64.powi(a.into()), zp, qmax);
            prop_assert!(error <= least * 4.0, "{} against {}", error, least);
        }
        let estimate: f64 = total(&channels, &fitted.ptf, bits);
        prop_assert!(estimate <= 1.35 * least.iter().sum::<f64>());
        // A few clipped elements, each known to an eighth of its size, can be most of the error.
        prop_assert!((fitted.squared_error - estimate).abs() <= 0.35 * estimate, "{} against {}", fitted.squared_error, estimate);

        let searched = fit(&histograms, range, &[], PtfOptions { bits, max_exponent: k, search: true, own_zero_points: false, mantissa_bits: 0, reach: Reach::Seen }).unwrap();
        prop_assert!(searched.squared_error <= fitted.squared_error);
        prop_assert!(total(&channels, &searched.ptf, bits) <= 1.35 * estimate);
        prop_assert!(searched.ptf.exponents.iter().all(|&a| a <= k));
    }

    /// The two cuts against all rungs, on the same histograms: exactly the same choice.
    #[test]
    fn the_cuts_change_nothing(seed in 0u64..10_000, k in 0u8..9, shift in -3.0f64..3.0) {
        let mut random = Random(seed);
        let channels: Vec<Vec<f32>> = (0..6).map(|_| {
            let width = 2f64.powf(16.0 * random.uniform() - 10.0);
            (0..200).map(|_| (width * (random.normal() + shift)) as f32).collect()
        }).collect();
        let (histograms, range) = statistics(&channels);
        let fitted = fit(&histograms, range, &[], PtfOptions { bits: 8, max_exponent: k, search: false, own_zero_points: false, mantissa_bits: 0, reach: Reach::Seen }).unwrap();
        for (h, &a) in histograms.iter().zip(&fitted.ptf.exponents) {
            let errors: Vec<f64> = (0..=k).map(|a| Spans::from(h).squared_error(&Quantizer {
                scale: fitted.ptf.base * 2f64.powi(a.into()), zero_point: fitted.ptf.zero_points[0].into(), qmin: 0.0, qmax: 255.0,
            })).collect();
            let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert!(errors[usize::from(a)] <= least * (1.0 + 1e-9), "{:?} at {}", errors, a);
        }
    }
}

/// The shape of ViT-Tiny's residual: one channel reaches −577 for a few tokens, the others stay within 14.
#[test]
fn a_massive_negative_channel_does_not_cost_the_others_their_sign() {
    let mut random = Random(7);
    let mut channels: Vec<Vec<f32>> = (0..64).map(|_| (0..800).map(|_| (3.0 * random.normal()) as f32).collect()).collect();
    for i in 0..4 {
        channels[41][i * 197] = -577.0 + i as f32;
    }
    let (histograms, range) = statistics(&channels);
    let options = |max_exponent, search| PtfOptions {
        bits: 8,
        max_exponent,
        search,
        own_zero_points: false,
        mantissa_bits: 0,
        reach: Reach::Seen,
    };
    let per_channel = |ptf: &Ptf, skip: usize| {
        let kept: Vec<Vec<f32>> = channels.iter().enumerate().filter(|(c, _)| *c != skip).map(|(_, d)| d.clone()).collect();
        let mut rest = ptf.clone();
        rest.exponents.remove(skip);
        rest.zero_points.remove(skip);
        rest.mantissas.remove(skip);
        total(&kept, &rest, 8) / (63.0 * 800.0)
    };
    let paper = fit(&histograms, range, &[], options(3, false)).unwrap();
    let wide = fit(&histograms, range, &[], options(8, false)).unwrap();
    let searched = fit(&histograms, range, &[], options(8, true)).unwrap();
    let errors = [&paper, &wide, &searched].map(|f| per_channel(&f.ptf, 41));
    // The published zero point is about 250, so more exponents cannot help the positive half.
    assert!(errors[2] < 0.03 * errors[0], "{errors:?}");
    assert!(searched.ptf.exponents[41] >= 4, "{:?}", searched.ptf);
    // The total is mostly channel 41's own; a weight says that it does not matter, and the others get near 24/256's 7e-4.
    let weights: Vec<f64> = (0..64).map(|c| if c == 41 { 1e-3 } else { 1.0 }).collect();
    let weighted = fit(&histograms, range, &weights, options(8, true)).unwrap();
    assert!(per_channel(&weighted.ptf, 41) < 1.2e-3, "{}", per_channel(&weighted.ptf, 41));
    assert!(searched.squared_error <= wide.squared_error && wide.squared_error <= paper.squared_error);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// On raw data: a zero point of its own never costs a channel much, whatever side it lies on, and lopsided channels gain.
    #[test]
    fn zero_points_of_their_own_serve_lopsided_channels(seed in 0u64..10_000, bits in 4u8..9, lean in 0.0f64..6.0) {
        let mut random = Random(seed);
        let channels: Vec<Vec<f32>> = (0..16).map(|c| {
            let width = 2f64.powf(4.0 * random.uniform() - 2.0);
            let mean = if c % 2 == 0 { lean } else { -lean };
            (0..500).map(|_| (width * (random.normal() + mean)) as f32).collect()
        }).collect();
        let (histograms, range) = statistics(&channels);
        let options = PtfOptions { bits, max_exponent: 7, search: true, own_zero_points: false, mantissa_bits: 0, reach: Reach::Seen };
        let one = fit(&histograms, range, &[], options).unwrap();
        let own = fit(&histograms, range, &[], PtfOptions { own_zero_points: true, ..options }).unwrap();
        // Either search tries bases a quarter of an octave apart, from a start of its own: one may lie an eighth of an octave
        // off the other's best, and errors go with the square of the scale.
        let luck = 2f64.powf(0.25);
        prop_assert!(own.squared_error <= one.squared_error * luck, "{} against {}", own.squared_error, one.squared_error);
        let (one_raw, own_raw) = (total(&channels, &one.ptf, bits), total(&channels, &own.ptf, bits));
        prop_assert!(own_raw <= one_raw * luck * 1.1, "{own_raw} against {one_raw}");
        let top = (1i32 << bits) - 1;
        prop_assert!(own.ptf.zero_points.iter().all(|z| (0..=top).contains(z)));
        // Channels on both sides of zero: one zero point leaves each half of the codes, which is at least a bit.
        prop_assert!(lean < 4.0 || own_raw < 0.5 * one_raw, "{own_raw} against {one_raw}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Two bits of a mantissa: on many channels of random widths about 2.5 dB less error, on raw data.
    #[test]
    fn mantissas_win_back_what_powers_of_two_lose(seed in 0u64..10_000) {
        let mut random = Random(seed);
        // Uniform values: to cover them is best, whatever the scale.
        let channels: Vec<Vec<f32>> = (0..96).map(|_| {
            let width = 2f64.powf(4.0 * random.uniform() - 2.0);
            (0..200).map(|_| (width * (2.0 * random.uniform() - 1.0)) as f32).collect()
        }).collect();
        let (histograms, range) = statistics(&channels);
        let weights: Vec<f64> = channels.iter().map(|c| 1.0 / c.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).collect();
        let options = PtfOptions { bits: 8, max_exponent: 7, mantissa_bits: 0, search: true, own_zero_points: true, reach: Reach::Seen };
        let powers = fit(&histograms, range, &weights, options).unwrap();
        let mantissas = fit(&histograms, range, &weights, PtfOptions { mantissa_bits: 2, ..options }).unwrap();
        prop_assert!(powers.ptf.mantissas.iter().all(|&m| m == 0) && mantissas.ptf.mantissas.iter().all(|&m| m < 4));
        let error = |ptf: &Ptf| -> f64 {
            let one = |c: usize| Ptf {
                base: ptf.base,
                zero_points: vec![ptf.zero_points[c]],
                exponents: vec![ptf.exponents[c]],
                mantissas: vec![ptf.mantissas[c]],
            };
            (0..channels.len()).map(|c| weights[c] * total(&channels[c..=c], &one(c), 8)).sum()
        };
        let ratio = error(&mantissas.ptf) / error(&powers.ptf);
        prop_assert!((0.45..0.75).contains(&ratio), "{ratio}");
    }
}

#[test]
fn what_a_channel_does_not_need_is_to_spare_on_both_sides() {
    let channels: Vec<Vec<f32>> = vec![
        (0..101).map(|i| i as f32 / 100.0 * 8.0).collect(),
        (0..101).map(|i| i as f32 / -100.0 * 8.0).collect(),
        (0..101).map(|i| i as f32 / 100.0 * 6.0).collect(),
    ];
    let (histograms, range) = statistics(&channels);
    let options =
        PtfOptions { bits: 8, max_exponent: 0, search: true, own_zero_points: true, mantissa_bits: 0, reach: Reach::Seen };
    let fitted = fit(&histograms, range, &[], options).unwrap().ptf;
    // One step is about 8/255; six of eight leave 64 codes, half of them on each side.
    let [a, b, c] = fitted.zero_points[..] else { panic!("{fitted:?}") };
    assert!(a <= 2 && b >= 253 && (28..=36).contains(&c), "{fitted:?}");
    // As published there is one zero point, and shared ranges share theirs.
    for options in [PtfOptions { search: false, ..options }, PtfOptions { reach: Reach::Shared(0.9), ..options }] {
        let zero_points = fit(&histograms, range, &[], options).unwrap().ptf.zero_points;
        assert!(zero_points.iter().all(|z| *z == zero_points[0]), "{zero_points:?}");
    }
}

#[test]
fn degenerate_inputs() {
    let options =
        PtfOptions { bits: 8, max_exponent: 3, search: true, own_zero_points: true, mantissa_bits: 0, reach: Reach::Seen };
    let zeros = Channels::from_slice(&[0.0; 8], Layout { outer: 4, channels: 2, inner: 1 }, true).unwrap();
    let zeros: Vec<Histogram> = (0..2).map(|c| zeros.histogram(c).unwrap()).collect();
    let fitted = fit(&zeros, Range::new(0.0, 0.0), &[], options).unwrap();
    assert_eq!((fitted.ptf.base, fitted.ptf.exponents, fitted.squared_error), (1.0, vec![0, 0], 0.0));
    // A channel of zeros beside a live one takes the lowest exponent.
    let mixed = Channels::from_slice(&[0.0, 8.0, 0.0, -8.0], Layout { outer: 2, channels: 2, inner: 1 }, true).unwrap();
    let mixed: Vec<Histogram> = (0..2).map(|c| mixed.histogram(c).unwrap()).collect();
    for search in [false, true] {
        let fitted = fit(&mixed, Range::new(-8.0, 8.0), &[], PtfOptions { search, ..options }).unwrap();
        assert_eq!(fitted.ptf.exponents[0], 0);
    }
    assert!(fit(&[], Range::new(-1.0, 1.0), &[], options).unwrap().ptf.exponents.is_empty());
    assert!(fit(&mixed, Range::new(-8.0, 8.0), &[1.0], options).is_err());
    assert!(fit(&mixed, Range::new(-8.0, 8.0), &[1.0, f64::NAN], options).is_err());
    assert!(fit(&mixed, Range::new(f64::NAN, 1.0), &[], options).is_err());
    assert!(fit(&mixed, Range::new(-1.0, 1.0), &[], PtfOptions { bits: 17, ..options }).is_err());
    assert!(fit(&mixed, Range::new(-1.0, 1.0), &[], PtfOptions { max_exponent: 16, ..options }).is_err());
    // One-sided data.
    let positive = Channels::from_slice(&[1.0, 8.0, 2.0, 300.0], Layout { outer: 2, channels: 2, inner: 1 }, true).unwrap();
    let positive: Vec<Histogram> = (0..2).map(|c| positive.histogram(c).unwrap()).collect();
    let fitted = fit(&positive, Range::new(1.0, 300.0), &[], PtfOptions { max_exponent: 8, ..options }).unwrap();
    assert_eq!(fitted.ptf.zero_points[1], 0);
    assert!(fitted.ptf.exponents[1] > fitted.ptf.exponents[0]);
}

/// Ninety-nine channels within ±1 and one that reaches 40, so needs 2^5 to 2^6 times their scale, or half of that if a clip serves the others.
#[test]
fn a_shared_range_is_known_without_histograms() {
    let (rows, channels) = (50, 100);
    let value = |i: usize| ((i * 7919) % 1009) as f32 / 504.0 - 1.0;
    let data: Vec<f32> = (0..rows * channels).map(|i| value(i) * if i % channels == 3 { 40.0 } else { 1.0 }).collect();
    let seen = |sketches| {
        let recording = crate::calib::stats::Recording::with_channels(1, sketches);
        ValueStats::from_samples(recording, [(&[rows, channels][..], &data[..])]).unwrap()
    };
    let options = PtfOptions {
        bits: 8,
        max_exponent: 7,
        mantissa_bits: 0,
        search: true,
        own_zero_points: false,
        reach: Reach::Shared(0.95),
    };
    let fit = from_stats(&seen(false), None, &[], options).unwrap();
    assert_eq!(fit, from_stats(&seen(true), None, &[], options).unwrap());
    let (usual, far) = (fit.ptf.exponents[0], fit.ptf.exponents[3]);
    assert!(fit.ptf.exponents.iter().enumerate().all(|(c, &e)| c == 3 || e == usual), "{:?}", fit.ptf.exponents);
    assert!((4..=6).contains(&(far - usual)), "{usual} {far}");
    // Without a shared range the channels' histograms decide.
    let own = PtfOptions { reach: Reach::Seen, ..options };
    assert!(from_stats(&seen(false), None, &[], own).is_err());
}

/// Few normal values a channel: every range holds what was seen, and 4.5 deviations of the values about their mean, to a step.
#[test]
fn a_range_of_few_values_reaches_farther_than_they_do() {
    let (rows, channels) = (16, 24);
    let mut random = Random(7);
    let data: Vec<f32> = (0..rows * channels)
        .map(|i| {
            let width = 0.1 * f64::from(1 + (i % channels) as u32);
            (width * (random.normal() + [0.0, 3.0, -8.0][i % 3])) as f32
        })
        .collect();
    let recording = crate::calib::stats::Recording::with_channels(1, true);
    let shape = [1, channels];
    let seen = ValueStats::from_samples(recording, data.chunks(channels).map(|row| (&shape[..], row))).unwrap();
    let options = PtfOptions {
        bits: 8,
        max_exponent: 7,
        mantissa_bits: 3,
        search: true,
        own_zero_points: true,
        reach: Reach::Deviations(4.5),
    };
    let ptf = from_stats(&seen, None, &[], options).unwrap().ptf;
    for c in 0..channels {
        let column: Vec<f64> = data.iter().skip(c).step_by(channels).map(|&x| f64::from(x)).collect();
        let mean = column.iter().sum::<f64>() / rows as f64;
        let deviation = (column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / rows as f64).sqrt();
        let scale = ptf.base * (1.0 + f64::from(ptf.mantissas[c]) / 8.0) * 2f64.powi(ptf.exponents[c].into());
        let zero = f64::from(ptf.zero_points[c]);
        let (lo, hi) = (-zero * scale, (255.0 - zero) * scale);
        // Bins are an eighth wide, so the deviation is known that well; offset channels' bins are wide against it.
        let reach = 4.5 * deviation * 0.85;
        assert!(lo <= mean - reach + scale && hi >= mean + reach - scale, "{c}: {lo} to {hi} for {mean} ± {reach}");
        let all = (hi - lo) / ((mean + 4.5 * deviation).max(0.0) - (mean - 4.5 * deviation).min(0.0));
        assert!(all < 1.6, "{c}: not much farther: {all}");
    }
    // As the channels were seen, the ranges are narrower.
    let own = from_stats(&seen, None, &[], PtfOptions { reach: Reach::Seen, ..options }).unwrap().ptf;
    assert!(own.base < ptf.base || own.exponents.iter().zip(&ptf.exponents).any(|(a, b)| a < b));
}
