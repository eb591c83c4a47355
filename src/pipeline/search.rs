//! Better plans by what the model puts out: massive activations clipped, ranges changed, sites widened or left in float.

use std::collections::BTreeMap;

use super::tune::first_samples;
use super::{Clip, ClipSearch, PipelineError, Samples, Source};
use crate::calib::run::Named;
use crate::calib::{Progress, Stats};
use crate::config::Config;
use crate::config::schema;
use crate::quant::{QuantPlan, Target};
use crate::report::sensitivity::{FrontierPoint, Sensitivity, SiteSensitivity};
use crate::runtime::tract::{EngineError, EngineOptions};
use crate::tune::cost::Cost;
use crate::tune::damage::Walk;
use crate::tune::objective::{Assignment, Distance, Objective};
use crate::tune::room::Room;
use crate::tune::search::{Change, Damage, damages, damages_to_refine, refine};
use crate::tune::widths::{Goal, Widening, bits_of, leave_in_float, may_widen, widen};

/// Samples that damage is measured on, unless more are asked for.
pub const MEASURED_ON: usize = 16;
/// What is left in float must do this share of all damage.
const WORTH_FLOAT: f64 = 0.05;
/// Where the outputs are predicted to have this SQNR, in dB, nothing more is left in float.
const ENOUGH_DB: f64 = 24.0;
/// Bits of a site that 8 do not suffice for.
const WIDE: u8 = 16;
/// Sites that do less than this share of all damage keep their ranges.
const SHARE: f64 = 1.0 / 200.0;
/// The same where the worst may leave, to float or to more bits: beside float, ranges that small damages ask for cost more on images that
/// were not calibrated on than they bring, and beside 16 bits they bring little for their time (docs/accuracy.md).
const SHARE_OF_THE_REST: f64 = 1.0 / 50.0;

/// Damages after changes.
fn improve(damages: &mut [Damage], changes: &[Change]) {
    for change in changes {
        damages.iter_mut().filter(|d| d.site == change.site).for_each(|d| d.noise = change.after);
    }
}

/// What the search needs.
pub struct Search<'a> {
    /// The model.
    pub source: &'a Source,
    /// How sites are quantised, and what may be searched.
    pub config: &'a Config,
    /// For which target.
    pub target: Target,
    /// How models are made concrete.
    pub options: &'a EngineOptions,
    /// The calibration samples.
    pub samples: &'a Samples,
    /// How many of them damage is measured on.
    pub measured_on: usize,
    /// Workers.
    pub threads: usize,
    /// Is told how far each of its steps is.
    pub progress: &'a dyn Fn(&'static str) -> Box<dyn Progress>,
}

/// What the search found.
#[derive(Debug)]
pub struct Found {
    /// Statistics of all samples; of the model behind the clips, if there are any.
    pub stats: Stats,
    /// The plan.
    pub plan: QuantPlan,
    /// Massive activations that are clipped.
    pub clips: Vec<Clip>,
    /// Sites with another width.
    pub widenings: Vec<Widening>,
    /// Sites with another range.
    pub changes: Vec<Change>,
    /// Kinds of sites with wider ranges than calibration gives them.
    pub rooms: Vec<Room>,
    /// What activation sites did alone, before their ranges or widths changed: all, or, where only ranges are searched, those whose ranges may be.
    pub damages: Vec<Damage>,
    /// What was asked for and not reached.
    pub notes: Vec<String>,
}

impl Found {
    /// What calibration alone made.
    pub fn unsearched(stats: Stats, plan: QuantPlan) -> Found {
        Found { stats, plan, clips: vec![], widenings: vec![], changes: vec![], rooms: vec![], damages: vec![], notes: vec![] }
    }
}

/// What to say where wider codes are predicted to leave more noise than was asked for; `weights` is their part of it.
fn missed(wanted: schema::Search, noise: f64, weights: f64) -> Option<String> {
    let db = wanted.widen_to_db.filter(|db| noise > 10f64.powf(-db / 10.0))?;
    let why = match wanted.widen_to_cost {
        Some(times) => format!("at {times} times the cost of 8 bits"),
        None => format!("with {WIDE} bits wherever they can be"),
    };
    Some(format!(
        "{db} dB were asked for, and {why} {:.1} dB are predicted before ranges are changed, {:.0} % of that noise from \
         weights: what was reached stands under Logits, and `vitq analyze` ranks what is left",
        -10.0 * noise.log10(),
        100.0 * weights / noise
    ))
}

impl Search<'_> {
    /// Improves a plan that calibration alone made.
    ///
    /// # Errors
    /// When the model cannot be run, or a sample cannot be read.
    pub fn run(&self, stats: Stats, plan: QuantPlan) -> Result<Found, PipelineError> {
        let wanted = self.config.search;
        let inputs = first_samples(self.samples, self.measured_on)?;
        let mut objective = self.objective(&plan, &inputs)?;
        let mut found = Found::unsearched(stats, plan);
        let mixes = !self.target.has_custom_ops() && wanted.float_share > 0.0;
        let cost = Cost::of(&self.source.model.graph, &self.source.vit.sites);
        if mixes || wanted.widens() {
            found.damages = self.damages(&objective, &objective.float(), &found.plan)?;
        }
        if mixes {
            // What another range would cure, float need not.
            let mut cured = found.damages.clone();
            if wanted.ranges {
                let changes = self.refine(&objective, objective.float(), &mut found.plan.clone(), &found.damages, 0.0)?;
                improve(&mut cured, &changes);
            }
            let left = leave_in_float(&mut found.plan, &cured, &cost, wanted.float_share, WORTH_FLOAT, ENOUGH_DB);
            found.damages.retain(|d| found.plan.site(&d.site).is_some());
            found.widenings = left;
        }
        let mut background = objective.float();
        if wanted.clip && !wanted.widens() {
            let scaled = found.plan.reparameterized.clone();
            self.clip(&mut found)?;
            if found.plan.reparameterized != scaled {
                objective = self.objective(&found.plan, &inputs)?;
            }
            for clip in &found.clips {
                objective.clip(&mut background, &clip.site, clip.at);
            }
            if !found.clips.is_empty() {
                found.damages.clear();
            }
        }
        let mut rest = 0.0;
        if found.damages.is_empty() && wanted.ranges {
            let mut walk = self.walk(&objective, background.clone())?;
            let bar = (self.progress)("measuring sites");
            (found.damages, rest) = damages_to_refine(&mut walk, &found.plan, &*bar).map_err(|e| self.failed(e))?;
        }
        let mut left = found.damages.clone();
        if wanted.widens() {
            let quantised =
                self.source.with_fake_constants(&found.plan)?.objective(&found.plan, &inputs, self.options, self.threads)?;
            let weights = self.weights_alone(&objective, &quantised)?;
            let goal = Goal {
                noise: wanted.widen_to_db.map_or(0.0, |db| 10f64.powf(-db / 10.0)),
                cost: wanted.widen_to_cost.unwrap_or(f64::INFINITY),
            };
            let (widened, noise) = widen(&mut found.plan, &found.damages, weights, &cost, WIDE, goal);
            found.widenings.extend(widened);
            found.notes.extend(missed(wanted, noise, weights));
            left.retain(|d| !found.widenings.iter().any(|w| w.site == d.site));
        }
        if wanted.ranges {
            found.changes = self.refine(&objective, background, &mut found.plan, &left, rest)?;
        }
        if wanted.headroom {
            found.rooms = self.headroom(&found.clips, &found.changes, &mut found.plan)?;
        }
        Ok(found)
    }

    /// The float model that a plan is of, on some samples.
    pub(super) fn objective(&self, plan: &QuantPlan, inputs: &[Named]) -> Result<Objective, PipelineError> {
        self.source.reparameterized(&plan.reparameterized)?.objective(plan, inputs, self.options, self.threads)
    }

    fn clip(&self, found: &mut Found) -> Result<(), PipelineError> {
        let search = ClipSearch {
            source: self.source,
            config: self.config,
            target: self.target,
            options: self.options,
            samples: self.samples,
            threads: self.threads,
            progress: &*(self.progress)("clipping massive activations"),
            base: &found.plan,
        };
        if let Some(clipped) = search.run(&found.stats)? {
            (found.stats, found.plan, found.clips) = (clipped.stats, clipped.plan, clipped.clips);
        }
        Ok(())
    }

    /// What every activation site of a plan does alone, in the order of the data flow.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn damages(
        &self,
        objective: &Objective,
        background: &Assignment,
        plan: &QuantPlan,
    ) -> Result<Vec<Damage>, PipelineError> {
        let mut walk = self.walk(objective, background.clone())?;
        let bar = (self.progress)("measuring sites");
        damages(&mut walk, plan, &*bar).map_err(|e| self.failed(e))
    }

    /// What every activation site of a plan does alone, the most first, and what widening them one after the other is predicted
    /// to bring.
    ///
    /// # Errors
    /// When the model cannot be run, or a sample cannot be read.
    pub fn sensitivity(&self, plan: &QuantPlan) -> Result<Sensitivity, PipelineError> {
        let inputs = first_samples(self.samples, self.measured_on)?;
        let objective = self.objective(plan, &inputs)?;
        let mut damages = self.damages(&objective, &objective.float(), plan)?;
        damages.sort_by(|a, b| b.noise.total_cmp(&a.noise));
        let (weights, measured, on_top) = self.on_top(&objective, &inputs, plan)?;
        let all: f64 = damages.iter().map(|d| d.noise).sum();
        let cost = Cost::of(&self.source.model.graph, &self.source.vit.sites);
        let mut bits = bits_of(plan);
        let mut left = all + weights;
        let weight_bits = cost.weight_bits(plan);
        let point = |widened: String, sites: usize, noise: f64, bits: &BTreeMap<String, u8>| FrontierPoint {
            widened,
            sites,
            sqnr_db: -10.0 * noise.max(f64::MIN_POSITIVE).log10(),
            weight_bits,
            mac_bits: cost.mac_bits(bits),
        };
        let mut frontier = vec![point(String::new(), 0, left, &bits)];
        let mut sites = Vec::new();
        for damage in damages {
            let now = bits.get(&damage.site).copied().unwrap_or(32);
            sites.push(SiteSensitivity {
                bits: now,
                share: damage.noise / all,
                noise: damage.noise,
                on_top: on_top.get(&damage.site).copied().unwrap_or(0.0),
                site: damage.site.clone(),
            });
            if plan.site(&damage.site).is_some_and(may_widen) {
                left -= damage.noise;
                bits.insert(damage.site.clone(), WIDE);
                frontier.push(point(damage.site, frontier.len(), left, &bits));
            }
        }
        Ok(Sensitivity { sites, weights, measured, frontier })
    }

    /// Noise over signal of the plan's constants alone, that of the whole plan, and by how much it is less when one site is left in
    /// float, for every activation site.
    fn on_top(
        &self,
        float: &Objective,
        inputs: &[Named],
        plan: &QuantPlan,
    ) -> Result<(f64, f64, BTreeMap<String, f64>), PipelineError> {
        let ran = |r: Result<f64, EngineError>| r.map_err(|e| self.failed(e));
        let outputs = |o: &Objective, a: &Assignment| o.outputs(a).map_err(|e| self.failed(e));
        let quantised = self.source.with_fake_constants(plan)?.objective(plan, inputs, self.options, self.threads)?;
        let reference = outputs(float, &float.float())?;
        let weights = self.weights_alone(float, &quantised)?;
        let codes = quantised.assignment(plan);
        let all = Distance::between(&reference, &outputs(&quantised, &codes)?).ratio();
        let mut walk = Walk::toward(&quantised, codes, reference).map_err(|e| self.failed(e))?;
        let mut sites: Vec<&str> = plan.sites.iter().filter(|s| s.rounds()).map(|s| s.name.as_str()).collect();
        walk.order(&mut sites, |s| s);
        let bar = (self.progress)("measuring sites on top of the others");
        let mut found = BTreeMap::new();
        for (i, site) in sites.iter().enumerate() {
            found.insert((*site).to_owned(), all - ran(walk.noise(site, None))?);
            bar.tick(i + 1, sites.len());
        }
        Ok((weights, all, found))
    }

    /// Changes ranges of sites with a large enough share of these damages and of the `rest`.
    fn refine(
        &self,
        objective: &Objective,
        background: Assignment,
        plan: &mut QuantPlan,
        damages: &[Damage],
        rest: f64,
    ) -> Result<Vec<Change>, PipelineError> {
        let mut walk = self.walk(objective, background)?;
        let bar = (self.progress)("changing ranges");
        let worst_leave = !self.target.has_custom_ops() || self.config.search.widens();
        let share = if worst_leave { SHARE_OF_THE_REST } else { SHARE };
        let all = rest + damages.iter().map(|d| d.noise).sum::<f64>();
        refine(&mut walk, plan, damages, all * share, &*bar).map_err(|e| self.failed(e))
    }

    pub(super) fn walk<'o>(&self, objective: &'o Objective, background: Assignment) -> Result<Walk<'o>, PipelineError> {
        Walk::new(objective, background).map_err(|e| self.failed(e))
    }

    /// Noise over signal that a plan's constants alone make: those of `weights`.
    fn weights_alone(&self, float: &Objective, weights: &Objective) -> Result<f64, PipelineError> {
        let outputs = |o: &Objective| o.outputs(&o.float()).map_err(|e| self.failed(e));
        Ok(Distance::between(&outputs(float)?, &outputs(weights)?).ratio())
    }

    pub(super) fn failed(&self, source: EngineError) -> PipelineError {
        PipelineError::Engine { path: self.source.path.clone(), source }
    }
}
