//! Calibration on the executor.

use ndarray::ArrayD;

use super::{PipelineError, Samples, Source};
use crate::calib::run::{Named, OnValue};
use crate::calib::{self, Part, Progress, Selection, Stats, TapSpec};
use crate::config::Config;
use crate::quant;
use crate::runtime::tract::{Engine, EngineOptions, Session};

/// The executor of a canonical model with every value tapped that a configuration wants to be observed; its outputs are the
/// float model's.
///
/// # Errors
/// When the executor cannot run the model.
pub fn engine_of(source: &Source, config: &Config, options: &EngineOptions) -> Result<Engine, PipelineError> {
    let taps: Vec<String> = quant::recordings(&source.vit.sites, config).into_iter().map(|t| t.value).collect();
    let failed = |e| PipelineError::Engine { path: source.path.clone(), source: e };
    Engine::new(&source.model, &taps, options).map_err(failed)
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
