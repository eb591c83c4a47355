//! Calibration on the executor.

use ndarray::ArrayD;

use super::{PipelineError, Samples, Source};
use crate::calib::run::{Named, OnValue};
use crate::calib::{self, Progress, Stats};
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

/// Runs the samples through [`engine_of`]'s executor and records what the configuration needs: the same bytes on any number of
/// threads.
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
    let taps = quant::recordings(&source.vit.sites, config);
    if samples.dataset().len() < samples.batch() {
        return Err(PipelineError::Input {
            path: source.path.clone(),
            what: format!(
                "the model is fixed to batches of {}, and there are only {} calibration samples: give more, or export the model with an open batch",
                samples.batch(),
                samples.dataset().len()
            ),
        });
    }
    Ok(calib::calibrate(engine, &taps, samples, source.digest(), threads, progress)?)
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
