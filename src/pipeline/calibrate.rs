//! Calibration on the executor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayD;

use super::{PipelineError, Samples, Source};
use crate::calib::run::{Named, OnValue};
use crate::calib::{self, Part, Progress, SampleSource, Selection, Stats, TapSpec};
use crate::config::Config;
use crate::ir::{Edit, Model};
use crate::lower::prepare;
use crate::quant;
use crate::runtime::tract::{Engine, EngineOptions, Session};
use crate::vit::SiteRef;

/// The executor of a canonical model with every value tapped that a configuration wants to be observed; its outputs are the
/// float model's.
///
/// # Errors
/// When the executor cannot run the model.
pub fn engine_of(source: &Source, config: &Config, options: &EngineOptions) -> Result<Engine, PipelineError> {
    let taps: Vec<String> = quant::recordings(&source.vit.sites, config).into_iter().map(|t| t.value).collect();
    let failed = |e| PipelineError::Engine { path: source.path.clone(), source: e };
    let model = observed(&source.model, &source.vit.sites, &taps)?;
    std::thread::scope(|scope| {
        // What the statistics will be tied to takes a while on large weights, and the executor is not made on all processors.
        scope.spawn(|| source.digest());
        Engine::new(&model, &taps, options).map_err(failed)
    })
}

/// A canonical model in which every value that is tapped has its name: rows that are observed by themselves are apart.
///
/// # Errors
/// When such rows are none of their value.
pub fn observed<'a>(model: &'a Model, sites: &[SiteRef], taps: &[String]) -> Result<Cow<'a, Model>, PipelineError> {
    let by_itself = |s: &&SiteRef| s.rows.is_none() || taps.iter().any(|t| t == s.observed());
    let mut sites: Vec<SiteRef> = sites.iter().filter(by_itself).cloned().collect();
    if sites.iter().all(|s| s.rows.is_none()) {
        return Ok(Cow::Borrowed(model));
    }
    let mut model = model.clone();
    let mut edit = Edit::new(&mut model.graph);
    prepare(&mut edit, &mut sites, false)?;
    edit.commit().map_err(|e| PipelineError::Lower(e.into()))?;
    Ok(Cow::Owned(model))
}

/// The model's first output for the first samples of a calibration, kept while it runs: what [`evaluate_kept`](super::evaluate_kept) compares with
/// needs no second run of the float model.
#[derive(Debug)]
pub struct Kept {
    /// How many batches are kept, from the first on.
    groups: usize,
    outputs: Mutex<BTreeMap<usize, ArrayD<f32>>>,
}

impl Kept {
    /// Room for the outputs of the first `limit` samples, in whole batches; [`Kept::beside`] fills it.
    pub fn new(limit: usize, samples: &Samples) -> Self {
        // Calibration leaves out what does not fill a batch.
        let groups = limit.div_ceil(samples.batch().max(1)).min(samples.len());
        Kept { groups, outputs: Mutex::default() }
    }

    /// Progress that is passed on, and keeps the outputs.
    pub fn beside<'a>(&'a self, progress: &'a dyn Progress) -> impl Progress + 'a {
        Keeping { kept: self, progress }
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// What is kept of a batch, with its batch axis; `None` of one that was skipped or is past the limit.
    pub(super) fn group(&self, group: usize) -> Option<ArrayD<f32>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }
}

struct Keeping<'a> {
    kept: &'a Kept,
    progress: &'a dyn Progress,
}

impl Progress for Keeping<'_> {
    fn tick(&self, done: usize, total: usize) {
        self.progress.tick(done, total);
    }

    fn outputs(&self, sample: u64, outputs: Vec<ArrayD<f32>>) {
        let group = usize::try_from(sample).ok().filter(|&g| g < self.kept.groups);
        if let (Some(group), Some(first)) = (group, outputs.into_iter().next()) {
            self.kept.outputs.lock().unwrap_or_else(PoisonError::into_inner).insert(group, first);
        }
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }
}

/// One calibration: what is observed, by which executor, on which samples.
pub struct Calibration<'a> {
    /// The model.
    pub source: &'a Source,
    /// What wants to be observed.
    pub config: &'a Config,
    /// [`engine_of`] both.
    pub engine: &'a Engine,
    /// The data set.
    pub samples: &'a Samples,
    /// Workers.
    pub threads: usize,
    /// Is told how far it is.
    pub progress: &'a dyn Progress,
}

impl Calibration<'_> {
    /// Statistics of a part of the data set: the same bytes on any number of threads; all parts merged are the whole.
    ///
    /// # Errors
    /// The first failure by sample order.
    pub fn run(&self, part: Part) -> Result<Stats, PipelineError> {
        self.check_batch()?;
        let samples = Selection::part(self.samples, part);
        Ok(calib::calibrate(self.engine, &self.taps(), &samples, self.source.digest(), self.threads, self.progress)?)
    }

    pub(super) fn taps(&self) -> Vec<TapSpec> {
        quant::recordings(&self.source.vit.sites, self.config)
    }

    pub(super) fn check_batch(&self) -> Result<(), PipelineError> {
        let (found, batch) = (self.samples.dataset().len(), self.samples.batch());
        if found >= batch {
            return Ok(());
        }
        Err(PipelineError::Input {
            path: self.source.path.clone(),
            what: format!(
                "the model is fixed to batches of {batch}, and there are only {found} calibration samples: give more, or export the model with an open batch"
            ),
        })
    }
}

/// Runs all samples through [`engine_of`]'s executor and records what the configuration needs.
///
/// # Errors
/// The first failure by sample order.
pub fn calibrate(
    source: &Source,
    config: &Config,
    engine: &Engine,
    samples: &Samples,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Stats, PipelineError> {
    Calibration { source, config, engine, samples, threads, progress }.run(Part::WHOLE)
}

/// Runs a session on owned arrays.
pub(super) fn feed(
    session: &mut Session<'_>,
    inputs: &[(String, ArrayD<f32>)],
    on_value: &mut OnValue<'_>,
) -> Result<Named, crate::runtime::tract::EngineError> {
    let views: Vec<_> = inputs.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
    session.run(&views, on_value)
}
