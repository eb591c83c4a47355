//! Codebooks chosen again where they are used: on the values that the quantised sites before them leave, first rows weighted.

use std::collections::BTreeSet;

use super::{Adjust, PipelineError};
use crate::quant::{QuantPlan, Scheme, SitePlan};
use crate::tune::levels::{Refit, Seen};
use crate::tune::rows;
use crate::vit::Site;

/// A site with a codebook.
struct Job {
    site: String,
    refit: Refit,
}

/// Whether a plan has a codebook of an activation.
pub fn has_codebooks(plan: &QuantPlan) -> bool {
    plan.sites.iter().any(is_codebook)
}

/// Those of weights are chosen on the weights.
fn is_codebook(site: &SitePlan) -> bool {
    !site.site.weight && matches!(site.scheme, Scheme::Codebook { .. })
}

impl Adjust<'_> {
    /// Chooses all codebooks of a plan again, in the order of the data flow.
    ///
    /// # Errors
    /// When the executor cannot run the model.
    pub fn choose_levels(&self, plan: &mut QuantPlan) -> Result<(), PipelineError> {
        let bar = (self.progress)("choosing levels");
        let (jobs, watched) = self.codebooks(plan);
        let (first, all) = (self.first_inputs(), self.inputs);
        let objective = |inputs| self.objective(plan, self.source, &watched, inputs);
        let (few, many) = (objective(first)?, objective(all)?);
        let (float, mut codes) = (few.float(), many.assignment(plan));
        let undisturbed = self.ran(few.outputs(&float))?;
        let (mut float_prefix, mut prefix) = (self.ran(few.prefix(&float, 0))?, self.ran(many.prefix(&codes, 0))?);
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&w| many.place(w));
        for (done, w) in order.into_iter().enumerate() {
            let (Some(job), (cut, _)) = (jobs.get(w), many.place(w)) else { continue };
            if cut > prefix.cut {
                float_prefix = self.ran(few.advance(&float_prefix, &float, cut))?;
                prefix = self.ran(many.advance(&prefix, &codes, cut))?;
            }
            let dependence = self.ran(rows::dependence(&few, &float_prefix, &float, w, &undisturbed))?;
            // As everything before the site leaves it.
            many.set(&mut codes, &job.site, None);
            let mut seen: Vec<Seen> = Vec::new();
            let see = |_: usize, shape: &[usize], x: &[f32]| (shape.to_vec(), x.to_vec());
            let take = |mut of_sample: Vec<(usize, Seen)>| seen.extend(of_sample.drain(..).map(|(_, values)| values));
            self.ran(many.watch(&prefix, &codes, &BTreeSet::from([w]), see, take))?;
            let shape = seen.first().map(|(shape, _)| shape.clone()).unwrap_or_default();
            let refit = Refit { first: rows::weight(dependence, all.len(), &shape), ..job.refit };
            if let Some(site) = plan.sites.iter_mut().find(|s| s.name == job.site) {
                site.scheme = refit.run(&site.scheme, &seen).unwrap_or_else(|| site.scheme.clone());
                many.set(&mut codes, &job.site, Some(&site.scheme));
            }
            bar.tick(done + 1, jobs.len());
        }
        Ok(())
    }

    /// The sites, and the values that are watched for them: the first of each, whose rows are tokens.
    fn codebooks(&self, plan: &QuantPlan) -> (Vec<Job>, Vec<String>) {
        let sites = plan.sites.iter().filter(|s| is_codebook(s));
        let job = |s: &SitePlan| {
            let config = self.config.resolve(s.site.block, s.site.site.name());
            // What calibration saw of one hidden unit says little of its range: their factors stay.
            let channels = !matches!(s.site.site, Site::MlpAct | Site::MlpFc1Output);
            let refit = Refit { first: 1.0, channels, max_exponent: config.max_exponent, threads: self.threads };
            Some((Job { site: s.name.clone(), refit }, s.site.values.first()?.clone()))
        };
        sites.filter_map(job).unzip()
    }
}
