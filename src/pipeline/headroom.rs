//! The samples taken apart for [`room`](crate::tune::room): ranges from three quarters of them, damage on the others.

use super::clip::behind;
use super::{Calibration, Clip, PipelineError, Search, Source, plan};
use crate::calib::run::Named;
use crate::calib::{Part, SampleSource, Stats};
use crate::quant::QuantPlan;
use crate::tune::room::{Room, make_room};
use crate::tune::search::Change;

/// One of so many parts of the samples, the first, is kept from calibration.
const PARTS: usize = 4;

impl Search<'_> {
    /// Widens ranges where that lowers the damage of a kind of sites on samples that they were not taken from. Sites that are clipped
    /// or `fixed`, because a search chose their ranges, keep them. With fewer samples than there are parts nothing is done.
    ///
    /// # Errors
    /// When the model cannot be run, or a sample cannot be read.
    pub(super) fn headroom(&self, clips: &[Clip], fixed: &[Change], chosen: &mut QuantPlan) -> Result<Vec<Room>, PipelineError> {
        let inputs = self.kept_apart()?;
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let bar = (self.progress)("making room in ranges");
        let clipped = behind(self.source, clips)?;
        let stats = self.of_the_others(&clipped)?;
        if stats.samples().is_empty() {
            // None of them could be read, and that is allowed.
            return Ok(Vec::new());
        }
        let part = plan(&clipped, &stats, self.config, self.target, self.threads)?;
        let objective = self.objective(&part, &inputs)?;
        let mut background = objective.float();
        clips.iter().for_each(|clip| objective.clip(&mut background, &clip.site, clip.at));
        let mut walk = self.walk(&objective, background)?;
        let keeps = |name: &str| clips.iter().any(|c| c.site == name) || fixed.iter().any(|c| c.site == name);
        make_room(&mut walk, chosen, &part, &keeps, &*bar).map_err(|e| self.failed(e))
    }

    /// The first samples of the part that is kept from calibration.
    fn kept_apart(&self) -> Result<Vec<Named>, PipelineError> {
        let mut inputs = Vec::new();
        if self.samples.len() < PARTS {
            return Ok(inputs);
        }
        for g in (0..self.samples.len()).step_by(PARTS) {
            if inputs.len() * self.samples.batch() >= self.measured_on {
                break;
            }
            inputs.extend(self.samples.group_or_skip(g)?.map(|group| group.inputs));
        }
        Ok(inputs)
    }

    /// Statistics of all other parts.
    fn of_the_others(&self, source: &Source) -> Result<Stats, PipelineError> {
        let engine = super::engine_of(source, self.config, self.options)?;
        let (config, samples, threads) = (self.config, self.samples, self.threads);
        let calibration = Calibration { source, config, engine: &engine, samples, threads, progress: &() };
        let mut seen = calibration.run(Part::new(1, PARTS)?)?;
        for part in 2..PARTS {
            seen = seen.merge(calibration.run(Part::new(part, PARTS)?)?)?;
        }
        Ok(seen)
    }
}
