//! Options that several commands share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{ValueEnum, ValueHint};

use super::error::CliError;
use super::terminal::Terminal;
use crate::config::{self, Config};
use crate::fs::{check_writable, is_direct, is_stdout};
use crate::onnx::{ExternalData, data_path};
use crate::pipeline::{DataOptions, MEASURED_ON, PipelineError, Samples};
use crate::quant::Target;

/// How data are read.
#[derive(Debug, clap::Args)]
pub(super) struct Preprocessing {
    /// How images become tensors: imagenet (DeiT and most models trained on ImageNet-1k), inception (mean and std 0.5: the augreg
    /// ViTs), clip, none (values in [0, 1]), or a file: YAML, timm's config.json, a preprocessor_config.json
    #[arg(long, value_name = "NAME|FILE", value_hint = ValueHint::FilePath)]
    preprocess: Option<String>,

    /// Side of the model's input image in pixels [default: the model's own]
    #[arg(long, value_name = "N")]
    input_size: Option<NonZeroUsize>,

    /// Share of the resized image that the centre crop keeps [default: 0.9; 1 for none; a file's own]
    #[arg(long, value_name = "P", value_parser = share)]
    crop_pct: Option<f64>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("a number above 0 and at most 1 is needed".to_owned()),
    }
}

impl Preprocessing {
    pub(super) fn data_options(&self, limit: Option<NonZeroUsize>) -> DataOptions {
        DataOptions {
            preprocess: self.preprocess.clone(),
            section: None,
            input_size: self.input_size.map(NonZeroUsize::get),
            crop_pct: self.crop_pct,
            limit: limit.map(NonZeroUsize::get),
            skip_corrupt: false,
        }
    }
}

/// Calibration data.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Calibration data")]
pub(super) struct Calibration {
    /// Folder of images, or an .npy or .npz
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(super) calib: PathBuf,

    /// Use at most N samples
    #[arg(long, value_name = "N")]
    pub(super) calib_limit: Option<NonZeroUsize>,

    /// Leave out images that cannot be decoded, and say which, instead of failing
    #[arg(long)]
    skip_corrupt: bool,

    #[command(flatten)]
    pub(super) preprocessing: Preprocessing,
}

impl Calibration {
    pub(super) fn data_options(&self, config: &Config) -> DataOptions {
        let section = config.preprocess.clone();
        DataOptions { skip_corrupt: self.skip_corrupt, section, ..self.preprocessing.data_options(self.calib_limit) }
    }
}

/// A configuration.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Quantisation")]
pub(super) struct Configuration {
    /// A preset (int8, int8-attn4, mixed, w4a8, w6a6, w4a4, fqvit, seed), a YAML file, or a folder of YAML files
    #[arg(long, value_name = "PRESET|FILE|DIR", default_value = "int8", value_hint = ValueHint::AnyPath)]
    config: String,
}

impl Configuration {
    /// Loads it; what it accepts without effect is noted.
    pub(super) fn load(&self, terminal: &Terminal) -> Result<Config, CliError> {
        let config = config::load(&self.config).map_err(PipelineError::from)?;
        config.notes().iter().for_each(|n| terminal.note(n));
        Ok(config)
    }

    /// These inputs, and the configuration's file if it is one.
    pub(super) fn and<'a>(&'a self, inputs: &[&'a Path]) -> Vec<&'a Path> {
        inputs.iter().copied().chain(Some(Path::new(&self.config)).filter(|p| p.is_file())).collect()
    }
}

/// A target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TargetName {
    /// Everything in integers, with custom ops that carry their function bodies
    Integer,
    /// Only forms that onnxruntime's CPU provider runs fast
    Onnxruntime,
}

impl From<TargetName> for Target {
    fn from(t: TargetName) -> Target {
        match t {
            TargetName::Integer => Target::Integer,
            TargetName::Onnxruntime => Target::OnnxRuntime,
        }
    }
}

/// Where the emitted model is meant to run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Quantisation")]
pub(super) struct Targeting {
    /// Where the emitted model is meant to run
    #[arg(long, value_enum, value_name = "NAME", default_value_t = TargetName::Integer)]
    pub(super) target: TargetName,

    /// Fail on a block that all but matched, a site left in float against the configuration, or a configured name that names nothing
    #[arg(long)]
    pub(super) strict: bool,
}

/// How long to search for better parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Effort {
    /// Parameters straight from the observers; what is chosen on the samples in closed form (GPTQ, codebooks) still is
    Fast,
    /// Clips, ranges and widths by the effect on the outputs of 16 calibration samples
    Default,
    /// The same on 64 samples
    High,
}

/// The search for better parameters.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Quantisation")]
pub(super) struct Searching {
    /// How long to search for better parameters by their effect on the model's output
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Effort::Default)]
    effort: Effort,

    /// Widen the sites that do most damage to 16 bits: until the outputs are predicted to have so many decibels (25dB), or for as
    /// long as the products cost at most so many times as much (1.5x); both may be given
    #[arg(long, value_name = "NdB|Nx", value_delimiter = ',')]
    budget: Vec<Budget>,
}

/// How far sites are widened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Budget {
    /// Predicted SQNR of the outputs.
    Decibels(f64),
    /// Times the cost of the products.
    Cost(f64),
}

impl std::str::FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        let number = |part: &str, low: f64, high: f64| part.trim().parse::<f64>().ok().filter(|v| (low..=high).contains(v));
        let lower = text.trim().to_ascii_lowercase();
        let decibels = lower.strip_suffix("db").and_then(|n| number(n, 1.0, 60.0)).map(Budget::Decibels);
        let cost = lower.strip_suffix('x').and_then(|n| number(n, 1.0, 4.0)).map(Budget::Cost);
        decibels.or(cost).ok_or_else(|| "give decibels from 1dB to 60dB, or a cost from 1x to 4x".to_owned())
    }
}

impl Searching {
    /// Puts what is asked for here in the place of what the configuration says.
    pub(super) fn configure(&self, config: &mut Config) -> Result<(), CliError> {
        if !self.budget.is_empty() && !self.searches() {
            let what = "--budget needs a search: leave --effort fast out, or the budget";
            return Err(CliError::Usage(what.to_owned()));
        }
        let search = &mut config.search;
        if !self.budget.is_empty() {
            (search.widen_to_db, search.widen_to_cost, search.clip) = (None, None, false);
        }
        for budget in &self.budget {
            let before = match *budget {
                Budget::Decibels(db) => search.widen_to_db.replace(db),
                Budget::Cost(times) => search.widen_to_cost.replace(times),
            };
            if before.is_some() {
                let what = "--budget says two SQNRs or two costs: give one of each at most";
                return Err(CliError::Usage(what.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether to search at all.
    pub(super) fn searches(&self) -> bool {
        self.effort != Effort::Fast
    }

    /// How many samples effects are measured on.
    pub(super) fn samples(&self) -> usize {
        if self.effort == Effort::High { 64 } else { MEASURED_ON }
    }
}

/// How many threads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Execution")]
pub(super) struct Threads {
    /// Worker threads; the result does not depend on them [default: all processors]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Threads {
    pub(super) fn count(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// How an emitted model is written.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct Emission {
    /// Where to write the model
    #[arg(short, long, value_name = "OUT.onnx", value_hint = ValueHint::FilePath)]
    pub(super) output: PathBuf,

    /// Fix the model's open batch axis to N
    #[arg(long, value_name = "N")]
    pub(super) batch: Option<NonZeroUsize>,

    /// Write the weights to OUT.onnx.data beside the model [default: only above 2 GiB]
    #[arg(long)]
    external_data: bool,
}

impl Emission {
    pub(super) fn external_data(&self) -> ExternalData {
        external_data(self.external_data)
    }
}

pub(super) fn external_data(always: bool) -> ExternalData {
    if always { ExternalData::Always } else { ExternalData::WhenNeeded }
}

/// Refuses, before any work, an output that cannot be written or that would replace an input or another output. Words leave standard
/// output to a file that is written there.
pub(super) fn check_outputs(terminal: &Terminal, inputs: &[&Path], outputs: &[&Path]) -> Result<(), CliError> {
    for (i, output) in outputs.iter().enumerate() {
        if is_stdout(output) {
            terminal.leave_stdout();
        }
        refuse_inputs(inputs, output)?;
        let shown = output.display();
        if outputs.iter().take(i).any(|p| real(p) == real(output)) {
            return Err(CliError::Usage(format!("{shown} is given for two outputs: give each its own file")));
        }
        if output.is_dir() {
            return Err(CliError::Refused(format!("{shown} is a folder: give the name of a file")));
        }
        let folder = folder_of(output);
        if !folder.is_dir() {
            return Err(CliError::Refused(format!(
                "cannot write {shown}: the folder {} does not exist; create it first",
                folder.display()
            )));
        }
        if is_direct(output) {
            continue;
        }
        // A file that can be made and removed there is the only reliable sign of a writable folder.
        check_writable(output).map_err(|source| {
            CliError::Refused(format!("cannot write {shown}: {}; check that the folder is writable and has room", plain(&source)))
        })?;
    }
    Ok(())
}

/// Refuses to write a model, beside which a data file may appear, where the data of its own input lie.
pub(super) fn check_data(data: &[PathBuf], output: &Path) -> Result<(), CliError> {
    let data: Vec<&Path> = data.iter().map(PathBuf::as_path).collect();
    refuse_inputs(&data, output)?;
    refuse_inputs(&data, &data_path(output))
}

fn refuse_inputs(inputs: &[&Path], output: &Path) -> Result<(), CliError> {
    if inputs.iter().any(|p| real(p) == real(output)) {
        return Err(CliError::Refused(format!(
            "{} is an input of this command and would be overwritten: give another output",
            output.display()
        )));
    }
    Ok(())
}

/// The file that a path leads to, whether it exists or not.
fn real(path: &Path) -> PathBuf {
    let beside = || Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(beside).unwrap_or_else(|| path.to_owned())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// The system's words without the path of a temporary file.
fn plain(e: &std::io::Error) -> String {
    std::io::Error::from(e.kind()).to_string()
}

/// Tells what may surprise about data.
pub(super) fn note_samples(samples: &Samples, terminal: &Terminal) {
    samples.notes().iter().for_each(|n| terminal.note(n));
}

/// The same of data to calibrate on, which take whole batches.
pub(super) fn note_calibration(samples: &Samples, terminal: &Terminal) {
    note_samples(samples, terminal);
    let (left_over, batch) = (samples.left_over(), samples.batch());
    if left_over > 0 {
        terminal.note(&format!(
            "the last {left_over} of the samples are not calibrated on: the model takes {batch} at once, and one that fills up a batch would count twice"
        ));
    }
}
