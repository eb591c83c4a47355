//! Better plans by what the model puts out: massive activations clipped, ranges changed, sites widened or left in float.

use super::tune::first_samples;
use super::{Clip, ClipSearch, PipelineError, Samples, Source};
use crate::calib::{Progress, Stats};
use crate::config::Config;
use crate::quant::{QuantPlan, Target};
use crate::runtime::tract::{EngineError, EngineOptions};
use crate::tune::cost::Cost;
use crate::tune::damage::Walk;
use crate::tune::objective::{Assignment, Distance, Objective};
use crate::tune::search::{Change, Damage, damages, refine};
use crate::tune::widths::{Widening, leave_in_float, widen};

/// Samples that damage is measured on.
const MEASURED_ON: usize = 16;
/// What is left in float must do this share of all damage.
const WORTH_FLOAT: f64 = 0.05;
/// Bits of a site that 8 do not suffice for.
const WIDE: u8 = 16;

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
    /// What each activation site did alone, before its range or width changed.
    pub damages: Vec<Damage>,
}

impl Found {
    /// What calibration alone made.
    pub fn unsearched(stats: Stats, plan: QuantPlan) -> Found {
        Found { stats, plan, clips: vec![], widenings: vec![], changes: vec![], damages: vec![] }
    }

    /// What was found, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let clips = self.clips.iter().map(|c| format!("{} is {c}", c.site));
        let widenings = self.widenings.iter().map(|w| format!("{} has {w}", w.site));
        let changes = self.changes.iter().map(|c| format!("{} has another range: {c}", c.site));
        clips.chain(widenings).chain(changes).collect()
    }
}

impl Search<'_> {
    /// Improves a plan that calibration alone made.
    ///
    /// # Errors
    /// When the model cannot be run, or a sample cannot be read.
    pub fn run(&self, stats: Stats, plan: QuantPlan) -> Result<Found, PipelineError> {
        let wanted = self.config.search;
        let inputs = first_samples(self.samples, MEASURED_ON)?;
        let objective = self.source.objective(&inputs, self.options, self.threads)?;
        let mut found = Found::unsearched(stats, plan);
        let mixes = !self.target.has_custom_ops() && wanted.float_share > 0.0;
        if mixes || wanted.widen_to_db.is_some() {
            found.damages = self.damages(&objective, &objective.float(), &found.plan)?;
        }
        if mixes {
            let cost = Cost::of(&self.source.model.graph, &self.source.vit.sites);
            let left = leave_in_float(&mut found.plan, &found.damages, &cost, wanted.float_share, WORTH_FLOAT);
            found.damages.retain(|d| found.plan.site(&d.site).is_some());
            found.widenings = left;
        }
        let mut background = objective.float();
        if wanted.clip && wanted.widen_to_db.is_none() {
            self.clip(&mut found)?;
            for clip in &found.clips {
                objective.clip(&mut background, &clip.site, clip.at);
            }
            if !found.clips.is_empty() {
                found.damages.clear();
            }
        }
        if found.damages.is_empty() && wanted.ranges {
            found.damages = self.damages(&objective, &background, &found.plan)?;
        }
        let mut left = found.damages.clone();
        if let Some(goal) = wanted.widen_to_db {
            let rest = self.weights_alone(&objective, &found.plan)?;
            found.widenings.extend(widen(&mut found.plan, &found.damages, rest, WIDE, goal));
            left.retain(|d| !found.widenings.iter().any(|w| w.site == d.site));
        }
        if wanted.ranges {
            let mut walk = self.walk(&objective, background)?;
            let bar = (self.progress)("changing ranges");
            let changed = refine(&mut walk, &mut found.plan, &left, &*bar);
            found.changes = changed.map_err(|e| self.failed(e))?;
        }
        Ok(found)
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

    fn walk<'o>(&self, objective: &'o Objective, background: Assignment) -> Result<Walk<'o>, PipelineError> {
        Walk::new(objective, background).map_err(|e| self.failed(e))
    }

    /// Noise over signal that a plan's constants alone make.
    fn weights_alone(&self, float: &Objective, plan: &QuantPlan) -> Result<f64, PipelineError> {
        let inputs = first_samples(self.samples, MEASURED_ON)?;
        let weights = self.source.with_fake_constants(plan)?.objective(&inputs, self.options, self.threads)?;
        let outputs = |o: &Objective| o.outputs(&o.float()).map_err(|e| self.failed(e));
        Ok(Distance::between(&outputs(float)?, &outputs(&weights)?).ratio())
    }

    fn failed(&self, source: EngineError) -> PipelineError {
        PipelineError::Engine { path: self.source.path.clone(), source }
    }
}
