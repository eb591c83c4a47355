//! Massive activations: a few values many times larger than the rest, which take all the codes of a site. Whether they may be
//! clipped is decided where it shows, at the logits.
//!
//! In pre-norm ViTs one hidden unit of one MLP may fire at twenty times the usual for a few tokens and write a single channel of
//! the residual stream full. By its own squared error such a value must be kept; the logits hardly depend on its height. So
//! each site with such a tail is clipped by halves; every time the model is calibrated anew behind the clip, because the
//! residual stream's range falls with it, planned and lowered, and what it computes is compared with the float model. The best
//! height is kept if it is better than none.

use std::collections::BTreeMap;

use super::evaluate::forward_some;
use super::{Calibration, PipelineError, Source, lower, plan, runnable};
use crate::calib::{Part, Progress, SampleSource, Stats, ValueStats};
use crate::config::Config;
use crate::ir::{NewOp, Tensor};
use crate::quant::{QuantPlan, Target};
use crate::runtime::tract::EngineOptions;
use crate::tune::objective::Distance;
use crate::vit::{Site, SiteRef};

/// A tail is massive when the largest value is this many times the 99.9th percentile.
const MASSIVE: f64 = 6.0;
/// Samples that a height is tried on.
const TRIED_ON: usize = 16;
/// Heights that are tried: the largest value halved so often, and half an octave to either side of the best of these.
const HALVINGS: i32 = 5;
/// A clip must bring as many decibels.
const WORTH: f64 = 0.1;
/// Sites that are tried, those with the longest tails.
const SITES: usize = 6;

/// A site that is clipped, and what that is good for.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Clip {
    /// The site's full name.
    pub site: String,
    /// Where it is clipped, on both sides of 0.
    pub at: f32,
    /// The largest magnitude before.
    pub largest: f32,
    /// The magnitude below which 99.9 % of the values lie.
    pub usual: f32,
    /// What the clip adds to the SQNR of the logits, in dB, on the samples that it was tried on.
    pub gain_db: f64,
}

/// What the search needs.
pub struct ClipSearch<'a> {
    /// The model.
    pub source: &'a Source,
    /// How sites are quantised.
    pub config: &'a Config,
    /// For which target.
    pub target: Target,
    /// How models are made concrete.
    pub options: &'a EngineOptions,
    /// The calibration samples.
    pub samples: &'a super::Samples,
    /// Workers.
    pub threads: usize,
    /// Is told how far it is.
    pub progress: &'a dyn Progress,
    /// The plan without clips: what it leaves in float stays so.
    pub base: &'a QuantPlan,
}

/// What the search found: statistics behind the clips, and a plan of them.
#[derive(Debug)]
pub struct Clipped {
    /// Statistics of all samples.
    pub stats: Stats,
    /// The plan.
    pub plan: QuantPlan,
    /// The clips, in the order in which they were found.
    pub clips: Vec<Clip>,
}

/// By the name of a value, where it is clipped on both sides of 0.
type Heights = BTreeMap<String, f32>;

/// The source behind clips that a search found.
///
/// # Errors
/// As [`Source::with_model`].
pub(super) fn behind(source: &Source, clips: &[Clip]) -> Result<Source, PipelineError> {
    let observed = |clip: &Clip| source.vit.sites.iter().find(|s| s.full_name() == clip.site).map(|s| s.observed().to_owned());
    clipped(source, &clips.iter().filter_map(|clip| Some((observed(clip)?, clip.at))).collect())
}

fn clipped(source: &Source, heights: &Heights) -> Result<Source, PipelineError> {
    source.with_model(|edit| {
        for (name, &at) in heights {
            let Some(value) = edit.value(name) else { continue };
            let low = edit.add_init(value.node, &format!("{name}_low"), Tensor::scalar(-at));
            let high = edit.add_init(value.node, &format!("{name}_high"), Tensor::scalar(at));
            let new = edit.add(value.node, NewOp::std("Clip", &format!("{name}_clip")).inputs([value, low, high]));
            edit.replace(value, new);
        }
    })
}

impl ClipSearch<'_> {
    /// Looks for clips. Without any massive activation nothing is run and `None` is returned, as when no clip is worth it.
    ///
    /// # Errors
    /// As [`Calibration::run`], [`plan`] and [`lower`].
    pub fn run(&self, stats: &Stats) -> Result<Option<Clipped>, PipelineError> {
        let candidates = self.candidates(stats);
        if candidates.is_empty() {
            return Ok(None);
        }
        let total = candidates.len() * (HALVINGS as usize + 1);
        let float = runnable(&self.source.path, self.source.model.clone(), self.options)?;
        let reference = forward_some(&float, self.samples, TRIED_ON, self.threads)?;
        let mut heights = Heights::new();
        let mut clips = Vec::new();
        let mut best = self.score(&heights, &reference)?;
        for (i, (site, largest, usual)) in candidates.into_iter().enumerate() {
            let (before, value) = (best, site.observed().to_owned());
            let mut kept = None;
            for halving in 1..=HALVINGS {
                self.progress.tick(i * (HALVINGS as usize + 1) + halving as usize, total);
                let at = (largest * 0.5f64.powi(halving)) as f32;
                // Below the usual values a clip is no longer one of outliers.
                if f64::from(at) < usual {
                    break;
                }
                let mut tried = heights.clone();
                tried.insert(value.clone(), at);
                let score = self.score(&tried, &reference)?;
                if score > best + WORTH {
                    (best, kept) = (score, Some(at));
                }
            }
            if let Some(at) = kept {
                let mut at = at;
                for factor in [std::f32::consts::SQRT_2, std::f32::consts::FRAC_1_SQRT_2] {
                    let near = at * factor;
                    let mut tried = heights.clone();
                    tried.insert(value.clone(), near);
                    let score = self.score(&tried, &reference)?;
                    if score > best + WORTH {
                        (best, at) = (score, near);
                        break;
                    }
                }
                heights.insert(value, at);
                let (largest, usual) = (largest as f32, usual as f32);
                clips.push(Clip { site: site.full_name(), at, largest, usual, gain_db: best - before });
            }
        }
        self.progress.tick(total, total);
        if clips.is_empty() {
            return Ok(None);
        }
        let (stats, mut plan) = self.planned(&heights, Part::WHOLE)?;
        for site in &mut plan.sites {
            if let Some(clip) = clips.iter().find(|c| c.site == site.name) {
                site.searched(&clip.to_string());
            }
        }
        Ok(Some(Clipped { stats, plan, clips }))
    }

    /// Sites with a massive tail, the longest first: largest magnitude and 99.9th percentile.
    fn candidates(&self, stats: &Stats) -> Vec<(SiteRef, f64, f64)> {
        // Where the activation's output is large the residual stream becomes so.
        let origins = self.source.vit.sites.iter().filter(|s| matches!(s.site, Site::MlpAct | Site::MlpGate));
        let tail = |site: &SiteRef| {
            let (largest, usual) = tail(stats.get(site.observed())?)?;
            (largest >= MASSIVE * usual).then(|| (site.clone(), largest, usual))
        };
        let origins = origins.filter(|s| self.base.site(&s.full_name()).is_some());
        let mut found: Vec<(SiteRef, f64, f64)> = origins.filter_map(tail).collect();
        found.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)));
        found.truncate(SITES);
        found
    }

    /// Statistics of the model behind clips, and a plan of them.
    fn planned(&self, heights: &Heights, part: Part) -> Result<(Stats, QuantPlan), PipelineError> {
        let clipped = clipped(self.source, heights)?;
        let engine = super::engine_of(&clipped, self.config, self.options)?;
        let calibration = Calibration {
            source: &clipped,
            config: self.config,
            engine: &engine,
            samples: self.samples,
            threads: self.threads,
            progress: &(),
        };
        let stats = calibration.run(part)?;
        let mut plan = plan(&clipped, &stats, self.config, self.target, self.threads)?;
        plan.sites.retain(|s| self.base.site(&s.name).is_some());
        plan.float.clone_from(&self.base.float);
        Ok((stats, plan))
    }

    /// SQNR of the logits with these clips, in dB.
    fn score(&self, heights: &Heights, reference: &[Vec<f32>]) -> Result<f64, PipelineError> {
        let parts = (self.samples.len() * self.samples.batch() / TRIED_ON).max(1);
        let (_, plan) = self.planned(heights, Part::new(0, parts)?)?;
        let (model, _) = lower(self.source, &plan)?;
        let engine = runnable(&self.source.path, model, self.options)?;
        let found = forward_some(&engine, self.samples, TRIED_ON, self.threads)?;
        Ok(Distance::between(reference, &found).sqnr_db())
    }
}

/// The largest magnitude of a value, and that below which 99.9 % of its magnitudes lie.
fn tail(seen: &ValueStats) -> Option<(f64, f64)> {
    const USUAL: f64 = 0.999;
    /// Bits of the sketch's bins that are told apart: a quantile within 1/16.
    const BITS: u32 = 4;
    let histogram = seen.sketch()?.histogram(BITS);
    let usual = histogram.quantile(USUAL)?.abs().max(histogram.quantile(1.0 - USUAL)?.abs());
    (usual > 0.0).then(|| (histogram.max_abs(), usual))
}

impl std::fmt::Display for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Clip { at, largest, usual, gain_db, .. } = self;
        write!(
            f,
            "clipped at {at:.1}: it reaches {largest:.1}, 99.9 % of it lie below {usual:.1}, and the logits gain {gain_db:.1} dB"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::calib::stats::Recording;

    fn seen(data: &[f32]) -> ValueStats {
        let recording = Recording::default();
        ValueStats::from_samples(recording, [([data.len()].as_slice(), data)]).unwrap()
    }

    /// Two of ten thousand values reach 200, on either side; the others lie evenly in ±2.
    #[test]
    fn a_tail_is_told_from_the_usual() {
        for sign in [1.0, -1.0] {
            let mut data: Vec<f32> = (0..10_000).map(|i| (i as f32 / 9_999.0 - 0.5) * 4.0).collect();
            (data[17], data[4_321]) = (sign * 200.0, sign * 150.0);
            let (largest, usual) = tail(&seen(&data)).unwrap();
            assert!((largest - 200.0).abs() < 1e-6 && (usual - 2.0).abs() <= 2.0 / 16.0, "{largest} {usual}");
            assert!(largest >= MASSIVE * usual);
        }
    }

    #[test]
    fn without_outliers_nothing_is_massive() {
        let data: Vec<f32> = (0..10_000).map(|i| ((i as f32 / 10_000.0) * 20.0).sin() * 3.0).collect();
        let (largest, usual) = tail(&seen(&data)).unwrap();
        assert!(largest < MASSIVE * usual);
        assert!(tail(&seen(&[0.0; 64])).is_none(), "nothing but zeros has no usual magnitude");
    }

    #[test]
    fn a_clip_says_where_and_what_for() {
        let clip = Clip { site: "blocks.7.mlp_act".to_owned(), at: 53.45, largest: 213.8, usual: 2.5, gain_db: 3.62 };
        let says = "clipped at 53.5: it reaches 213.8, 99.9 % of it lie below 2.5, and the logits gain 3.6 dB";
        assert_eq!(clip.to_string(), says);
    }
}
