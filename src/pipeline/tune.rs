//! The objective of a model and its calibration samples.

use std::collections::BTreeMap;

use super::{PipelineError, Samples, Source};
use crate::calib::SampleSource;
use crate::calib::run::Named;
use crate::ir::Tensor;
use crate::lower::prepare;
use crate::quant::QuantPlan;
use crate::runtime::tract::EngineOptions;
use crate::tune::objective::{Objective, fake_constants};
use crate::vit::SiteRef;

impl Source {
    /// The same source with other constants, by name.
    ///
    /// # Errors
    /// When the graph refuses them.
    pub fn with_constants(&self, constants: BTreeMap<String, Tensor>) -> Result<Source, PipelineError> {
        self.with_model(|edit| {
            for (name, tensor) in constants {
                if let Some(value) = edit.value(&name) {
                    edit.set_tensor(value.node, tensor);
                }
            }
        })
    }

    /// The same source with the constants of a plan as their codes mean them.
    ///
    /// # Errors
    /// When the plan does not fit.
    pub fn with_fake_constants(&self, plan: &QuantPlan) -> Result<Source, PipelineError> {
        let source = self.reparameterized(&plan.reparameterized)?;
        let graph = &source.model.graph;
        let constants = fake_constants(plan, |name| graph.constant(graph.value(name)?));
        source.with_constants(constants.map_err(|what| PipelineError::Input { path: self.path.clone(), what })?)
    }

    /// What this source computes on some samples, and with which sites it can be changed as a plan has them. Rows that nothing reads are
    /// not computed.
    ///
    /// # Errors
    /// When the executor cannot run the model.
    pub fn objective(
        &self,
        plan: &QuantPlan,
        samples: &[Named],
        options: &EngineOptions,
        threads: usize,
    ) -> Result<Objective, PipelineError> {
        let (source, sites) = self.simulated(plan, true)?;
        Objective::new(&source.model, &sites, samples.to_vec(), options, threads)
            .map_err(|source| PipelineError::Engine { path: self.path.clone(), source })
    }

    /// The model that a plan is simulated on, with or without rows that nothing reads, and the sites with the values that get codes in it.
    pub(super) fn simulated(&self, plan: &QuantPlan, skip_unread: bool) -> Result<(Source, Vec<SiteRef>), PipelineError> {
        let coded = self.vit.sites.iter().filter(|s| s.rows.is_none() || plan.site(&s.full_name()).is_some());
        let mut sites: Vec<SiteRef> = coded.map(|site| plan.target.coded(site)).collect();
        let mut prepared = Ok(0);
        let source = self.with_model(|edit| prepared = prepare(edit, &mut sites, skip_unread))?;
        prepared?;
        Ok((source, sites))
    }
}

/// The first samples, decoded, at most `limit` (whole batches).
///
/// # Errors
/// When one cannot be read.
pub fn first_samples(samples: &Samples, limit: usize) -> Result<Vec<Named>, PipelineError> {
    let mut out = Vec::new();
    for g in 0..samples.len() {
        if out.len() * samples.batch() >= limit {
            break;
        }
        out.extend(samples.group_or_skip(g)?.map(|group| group.inputs));
    }
    Ok(out)
}
