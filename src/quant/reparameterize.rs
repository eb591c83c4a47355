//! A scale a channel where only one for the tensor can be: the channels of a LayerNorm's output are scaled alike beforehand.
//!
//! RepQ-ViT (Li et al., arXiv 2212.08254, equations 6 to 9) gives every channel of a LayerNorm's output its own scale and moves these into
//! the norm's weight and bias and into the rows of the weights that read it, at no cost when the model runs. Rows of other sizes are
//! harder to round, though, so that here a channel is divided by a power of its reach, `f_c = (max|x_c| / max|x|)^a` (SmoothQuant, Xiao
//! et al., arXiv 2211.10438, equation 4), and a is what makes the predicted noise of both roundings least.

use std::collections::BTreeMap;

use super::plan::Reparameterized;
use super::{ModelFacts, Target};
use crate::calib::channels::Channels;
use crate::calib::{Histogram, Stats, ValueStats};
use crate::config::schema::{Config, Method, SiteConfig};
use crate::ir::Tensor;
use crate::parallel;
use crate::vit::Norm;

/// A channel is divided by no less: with 8 bits, what reaches less than that part of the widest channel has no codes but 0, and its
/// noise is no longer seen.
const LEAST: f64 = 1.0 / 256.0;

/// A power of a channel's reach.
type Power = fn(f64) -> f64;

/// The powers that are tried beside 0; roots alone, which every machine rounds alike.
const POWERS: [Power; 4] = [|r| r.sqrt().sqrt(), f64::sqrt, |r| (r * r.sqrt()).sqrt(), |r| r];

/// The sites that are scaled, on so many threads, and by what.
pub fn choose(facts: &ModelFacts, stats: &Stats, config: &Config, target: Target, threads: usize) -> Vec<Reparameterized> {
    if target.has_custom_ops() {
        // There each channel has a factor of its own when the model runs.
        return Vec::new();
    }
    let choose = |i: usize| {
        let site = facts.sites.get(i)?;
        let norm = facts.norms.get(&site.full_name())?;
        let cfg = config.resolve(site.block, site.site.name());
        if !cfg.reparameterize || cfg.method != Method::Ptf || cfg.float {
            return None;
        }
        let seen = stats.get(site.observed())?.channels()?;
        let factors = factors(seen, &cfg, &weights(facts, config, norm))?;
        Some(Reparameterized { site: site.full_name(), factors })
    };
    parallel::map(facts.sites.len(), threads, choose).into_iter().flatten().collect()
}

/// Weights `[channels, out]` and the width of their codes, if they get any.
struct Weights {
    data: Vec<f32>,
    outputs: usize,
    bits: Option<u8>,
}

fn weights(facts: &ModelFacts, config: &Config, norm: &Norm) -> Vec<Weights> {
    let of = |name: &String| {
        let site = facts.sites.iter().find(|s| s.weight && s.values.contains(name))?;
        let cfg = config.resolve(site.block, site.site.name());
        let tensor = facts.constants.get(name)?;
        let outputs = *tensor.shape.last()?;
        Some(Weights { data: tensor.to_f32().ok()?, outputs, bits: (!cfg.float).then_some(cfg.bits) })
    };
    norm.weights.iter().filter_map(of).collect()
}

/// What the channels are divided by for the least noise; `None` when that is 1.
fn factors(seen: &Channels, cfg: &SiteConfig, weights: &[Weights]) -> Option<Vec<f32>> {
    let ranges: Vec<(f64, f64)> =
        (0..seen.len()).map(|c| seen.range(c).map(|(l, h)| (l.into(), h.into()))).collect::<Option<_>>()?;
    let energies: Vec<f64> = (0..seen.len()).map(|c| seen.histogram(c).map(|h| energy(&h))).collect::<Option<_>>()?;
    let reach = |&(lo, hi): &(f64, f64)| f64::max(-lo, hi).max(0.0);
    let widest = ranges.iter().map(reach).fold(0.0, f64::max);
    if widest <= 0.0 {
        return None;
    }
    let noise = |factors: &[f64]| noise(factors, &ranges, &energies, cfg.bits, weights);
    let mut least = noise(&vec![1.0; ranges.len()]);
    let mut best = None;
    for power in POWERS {
        let factors: Vec<f64> = ranges.iter().map(|r| power(reach(r) / widest).max(LEAST)).collect();
        let noise = noise(&factors);
        if noise < least {
            (least, best) = (noise, Some(factors));
        }
    }
    best.map(|factors| factors.into_iter().map(|f| f as f32).collect())
}

/// The mean square of a channel.
fn energy(seen: &Histogram) -> f64 {
    let squares: f64 = seen.bins().iter().map(|b| b.count as f64 * (b.lo * b.lo + b.lo * b.hi + b.hi * b.hi) / 3.0).sum();
    squares / seen.count().max(1) as f64
}

/// The noise at the outputs of the Linears, both roundings' errors being even over a step (Bennett): of the input, `s²/12 · Σ_c f_c² · |W_c|²`,
/// and of the weights, `Σ_o t_o²/12 · Σ_c E[x_c²] / f_c²`, with steps s and t_o.
fn noise(factors: &[f64], ranges: &[(f64, f64)], energies: &[f64], bits: u8, weights: &[Weights]) -> f64 {
    let (lo, hi) = scaled_range(ranges, factors);
    let step = (hi - lo) / f64::from((1u32 << bits) - 1);
    let energy: f64 = energies.iter().zip(factors).map(|(e, f)| e / (f * f)).sum();
    let of = |w: &Weights| {
        let (mut rows, mut largest) = (0.0, vec![0.0f64; w.outputs]);
        for (row, f) in w.data.chunks_exact(w.outputs.max(1)).zip(factors) {
            for (&x, most) in row.iter().zip(&mut largest) {
                let scaled = f64::from(x) * f;
                rows += scaled * scaled;
                *most = most.max(scaled.abs());
            }
        }
        let steps = w.bits.map_or(0.0, |b| {
            let codes = f64::from((1u32 << (b - 1)) - 1);
            largest.iter().map(|m| (m / codes) * (m / codes)).sum()
        });
        step * step * rows + steps * energy
    };
    weights.iter().map(of).sum()
}

/// Smallest and largest value of channels after their division, with 0 between.
fn scaled_range(ranges: &[(f64, f64)], factors: &[f64]) -> (f64, f64) {
    let each = ranges.iter().zip(factors);
    each.fold((0.0, 0.0), |(lo, hi): (f64, f64), (&(l, h), f)| (lo.min(l / f), hi.max(h / f)))
}

/// What calibration saw of a site, had its channels been divided; `None` without statistics of the channels.
pub(super) fn divided_range(seen: &ValueStats, factors: &[f32]) -> Option<(f64, f64)> {
    let channels = seen.channels().filter(|c| c.len() == factors.len())?;
    let ranges: Vec<(f64, f64)> =
        (0..channels.len()).filter_map(|c| channels.range(c)).map(|(l, h)| (l.into(), h.into())).collect();
    let factors: Vec<f64> = factors.iter().map(|&f| f.into()).collect();
    Some(scaled_range(&ranges, &factors))
}

/// The constants around a norm's output with its channels divided, by name.
///
/// # Errors
/// Why they cannot be, as half a sentence.
pub fn constants<'a>(
    norm: &Norm,
    factors: &[f32],
    tensor: impl Fn(&str) -> Option<&'a Tensor>,
) -> Result<BTreeMap<String, Tensor>, String> {
    if let Some(f) = factors.iter().find(|f| !f.is_finite() || **f < f32::MIN_POSITIVE) {
        return Err(format!("a factor of {f:?} cannot be divided by"));
    }
    let mut out = BTreeMap::new();
    let mut change = |name: &str, by: &dyn Fn(f64, f64) -> f64| {
        let tensor = tensor(name).ok_or("the model has no such constant")?;
        let mut data = tensor.to_f32().map_err(|e| e.to_string())?;
        if tensor.shape.first() != Some(&factors.len()) {
            return Err(format!("{} factors do not fit '{name}' of shape {:?}", factors.len(), tensor.shape));
        }
        let row = data.len() / factors.len().max(1);
        for (x, f) in data.chunks_mut(row.max(1)).zip(factors).flat_map(|(row, f)| row.iter_mut().map(move |x| (x, f))) {
            *x = by(f64::from(*x), f64::from(*f)) as f32;
            if !x.is_finite() {
                return Err(format!("a factor of {f:?} takes '{name}' out of the range of float32"));
            }
        }
        out.insert(name.to_owned(), Tensor::new(&tensor.shape, &data).map_err(|e| e.to_string())?);
        Ok::<(), String>(())
    };
    for name in std::iter::once(&norm.scale).chain(&norm.bias) {
        change(name, &|x, f| x / f)?;
    }
    for name in &norm.weights {
        change(name, &|x, f| x * f)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::calib::channels::Layout;
    use proptest::prelude::*;

    /// Rows of numbers in ±1, by a linear congruential generator (Knuth's MMIX).
    fn noise_of(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    struct Case {
        x: Vec<f32>,
        weights: Vec<Weights>,
        reaches: Vec<f64>,
    }

    impl Case {
        /// Channels of these reaches, on 512 rows, and weights of 6 outputs.
        fn new(seed: u64, reaches: &[f64], bits: u8) -> Case {
            let n = reaches.len();
            let x = noise_of(seed, 512 * n).iter().enumerate().map(|(i, x)| (x * reaches[i % n]) as f32).collect();
            let data = noise_of(seed + 1, n * 6).into_iter().map(|x| x as f32).collect();
            Case { x, weights: vec![Weights { data, outputs: 6, bits: Some(bits) }], reaches: reaches.to_vec() }
        }

        fn seen(&self) -> Channels {
            let layout = Layout { outer: 512, channels: self.reaches.len(), inner: 1 };
            Channels::from_slice(&self.x, layout, true).unwrap()
        }

        fn factors(&self) -> Option<Vec<f32>> {
            factors(&self.seen(), &config(), &self.weights)
        }

        /// The squared error of the Linear's outputs, both sides rounded as they are, in f64.
        fn measured(&self, factors: &[f64]) -> f64 {
            let n = self.reaches.len();
            let divided: Vec<f64> = self.x.iter().enumerate().map(|(i, &x)| f64::from(x) / factors[i % n]).collect();
            let (lo, hi) = divided.iter().fold((0.0, 0.0), |(l, h): (f64, f64), &x| (l.min(x), h.max(x)));
            let step = (hi - lo) / 255.0;
            let w = &self.weights[0];
            let row = |c: usize, o: usize| f64::from(w.data[c * 6 + o]) * factors[c];
            let codes = f64::from((1u32 << (w.bits.unwrap() - 1)) - 1);
            let mut error = 0.0;
            for o in 0..6 {
                let t = (0..n).map(|c| row(c, o).abs()).fold(0.0, f64::max) / codes;
                for x in divided.chunks(n) {
                    let exact: f64 = (0..n).map(|c| x[c] * row(c, o)).sum();
                    let rounded: f64 = (0..n).map(|c| (x[c] / step).round() * step * (row(c, o) / t).round() * t).sum();
                    error += (exact - rounded) * (exact - rounded);
                }
            }
            error / (self.x.len() / n) as f64
        }
    }

    fn config() -> SiteConfig {
        Config::default().resolve(None, "norm1")
    }

    proptest! {
        /// Bennett's model against what rounding does.
        #[test]
        fn noise_is_as_predicted(seed in 1u64..1000, reaches in prop::collection::vec(0.3f64..3.0, 24)) {
            let case = Case::new(seed, &reaches, 8);
            let (seen, even) = (case.seen(), [1.0; 24]);
            let ranges: Vec<(f64, f64)> = (0..24).map(|c| seen.range(c).map(|(l, h)| (l.into(), h.into())).unwrap()).collect();
            let energies: Vec<f64> = (0..24).map(|c| energy(&seen.histogram(c).unwrap())).collect();
            let predicted = noise(&even, &ranges, &energies, 8, &case.weights) / 12.0;
            let measured = case.measured(&even);
            prop_assert!((predicted / measured).ln().abs() < 0.5, "{predicted} {measured}");
        }

        /// What the Linear puts out is as before, in f64.
        #[test]
        fn products_stay(v in prop::collection::vec(-2f32..2.0, 4 + 4 + 12 + 4), f in prop::collection::vec(0.01f32..1.0, 4)) {
            let (g, rest) = v.split_at(4);
            let (b, rest) = rest.split_at(4);
            let (w, x) = rest.split_at(12);
            let t = |shape: &[usize], data: &[f32]| Tensor::new(shape, data).unwrap();
            let before: BTreeMap<&str, Tensor> = [("g", t(&[4], g)), ("b", t(&[4], b)), ("w", t(&[4, 3], w))].into();
            let after = constants(&around(), &f, |name| before.get(name)).unwrap();
            let after: BTreeMap<&str, Tensor> = after.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            let outputs = |of: &BTreeMap<&str, Tensor>| -> Vec<f64> {
                let read = |name: &str| of[name].to_f32().unwrap().iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                let (g, b, w) = (read("g"), read("b"), read("w"));
                (0..3).map(|o| (0..4).map(|c| (f64::from(x[c]) * g[c] + b[c]) * w[c * 3 + o]).sum()).collect()
            };
            for (a, b) in outputs(&before).iter().zip(outputs(&after)) {
                prop_assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    /// Measured over many weights, since in one case chance decides how a few weights are rounded.
    #[test]
    fn noise_falls_where_channels_differ() {
        for (bits, most) in [(4, 1.0), (6, 0.9), (8, 0.3)] {
            let (mut with, mut without) = (0.0, 0.0);
            for seed in 1..=30 {
                let mut reaches: Vec<f64> = noise_of(seed, 24).into_iter().map(|x| 0.55 + 0.45 * x).collect();
                reaches[3] = 6.0;
                let case = Case::new(seed, &reaches, bits);
                let found = case.factors().map_or(vec![1.0; 24], |f| f.into_iter().map(f64::from).collect());
                with += case.measured(&found);
                without += case.measured(&[1.0; 24]);
            }
            assert!(with < most * without, "{bits} bits: {with} of {without}");
        }
    }

    fn around() -> Norm {
        Norm { scale: "g".to_owned(), bias: Some("b".to_owned()), weights: vec!["w".to_owned()] }
    }

    #[test]
    fn channels_that_reach_alike_stay() {
        let found = Case::new(7, &[1.0; 24], 8).factors().unwrap_or_default();
        assert!(found.iter().all(|&f| f > 0.98), "{found:?}");
    }

    #[test]
    fn a_channel_that_is_hardly_seen_is_divided_by_no_less() {
        let mut reaches = vec![1.0; 24];
        (reaches[3], reaches[5]) = (6.0, 1e-9);
        let found = Case::new(7, &reaches, 8).factors().unwrap();
        assert_eq!((found[3], found[5]), (1.0, LEAST as f32));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tensor = Tensor::vector(&[1.0f32, 9.0]);
        let refused = |factors: &[f32]| constants(&around(), factors, |_| Some(&tensor)).unwrap_err();
        assert_eq!(refused(&[1.0, 0.0]), "a factor of 0.0 cannot be divided by");
        assert_eq!(refused(&[1.0, f32::NAN]), "a factor of NaN cannot be divided by");
        assert_eq!(refused(&[1.0, 1e-38]), "a factor of 1e-38 cannot be divided by");
        assert_eq!(refused(&[1.0, 1.2e-38]), "a factor of 1.2e-38 takes 'g' out of the range of float32");
        assert_eq!(refused(&[1.0]), "1 factors do not fit 'g' of shape [2]");
        assert_eq!(constants(&around(), &[1.0, 1.0], |_| None).unwrap_err(), "the model has no such constant");
    }
}
