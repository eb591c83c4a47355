//! Why a step of the pipeline failed.

use std::path::PathBuf;

use crate::calib;
use crate::canon::CanonError;
use crate::config::ConfigError;
use crate::data::{DataError, PreprocessError};
use crate::fs::WriteError;
use crate::lower::LowerError;
use crate::onnx::OnnxError;
use crate::quant::{PlanError, PolicyError};
use crate::runtime::tract::EngineError;

/// Why a step of the pipeline failed. Every message is one paragraph that names the cause and the way out.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A model file cannot be read.
    #[error("{}", located(path, source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: OnnxError,
    },
    /// A model file cannot be written.
    #[error("{}", located(path, source))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: OnnxError,
    },
    /// A model has no canonical form.
    #[error("{}", located(path, source))]
    Canon {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CanonError,
    },
    /// No block of a Vision Transformer was recognised, and no other layer with weights.
    #[error(
        "{}: no transformer block, convolution or Linear with constant float32 weights was recognised, so there is nothing to quantise. The model has {ops}. {nearest} vitq compiles pre-norm Vision Transformers as timm exports them, and the convolutions and Linears of other models; `vitq inspect` shows what was found. Export the float model with torch.onnx.export, not one that is already quantised or fused by another optimiser",
        path.display()
    )]
    NothingToQuantise {
        /// The file.
        path: PathBuf,
        /// The operators by frequency, in one line.
        ops: String,
        /// The deepest near miss, as a sentence.
        nearest: String,
    },
    /// A model's inputs do not suit the data or the task.
    #[error("{}: {what}", path.display())]
    Input {
        /// The model file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A label that the model has no class for.
    #[error(
        "the sample {sample} has label {label}, but the model has {classes} classes: check the labels (they count from 0) and that the data belong to the model"
    )]
    Label {
        /// The sample.
        sample: String,
        /// Its label.
        label: usize,
        /// How many classes the model has.
        classes: usize,
    },
    /// Outputs that are not numbers: nothing can be said of them.
    #[error(
        "{whose} first output has {count} values of {of} that are NaN or infinite on the sample {sample}: check the model and the preprocessing of its input"
    )]
    NotFinite {
        /// `the model's` or `the reference's`.
        whose: &'static str,
        /// The sample.
        sample: String,
        /// How many values are not finite.
        count: usize,
        /// Of how many.
        of: usize,
    },
    /// Two models whose outputs cannot be compared.
    #[error(
        "the model's first output has {found} values a sample, and the reference's has {expected}: give the float model that this one was compiled from"
    )]
    Reference {
        /// The model's.
        found: usize,
        /// The reference's.
        expected: usize,
    },
    /// A model without an output.
    #[error("the model has no output, so there is nothing to run; export it again")]
    NoOutput,
    /// The executor failed on a sample.
    #[error("on sample {sample}: {source}")]
    Sample {
        /// The sample.
        sample: String,
        /// Why.
        source: EngineError,
    },
    /// The executor refused a model.
    #[error("{}: {source}", path.display())]
    Engine {
        /// The model file.
        path: PathBuf,
        /// Why.
        source: EngineError,
    },
    /// Statistics that cannot be used.
    #[error("{}: {source}", path.display())]
    Stats {
        /// The file.
        path: PathBuf,
        /// Why.
        source: calib::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The result contradicts `--strict`.
    #[error("--strict: {}", .0.join("; "))]
    Strict(Vec<String>),
    /// Data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Preprocessing.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// Calibration.
    #[error(transparent)]
    Calibration(#[from] calib::Error),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Lowering.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// An output file.
    #[error(transparent)]
    Output(#[from] WriteError),
}

/// An error's text with the file in front, unless it names it already.
fn located(path: &std::path::Path, error: &dyn std::error::Error) -> String {
    let (text, path) = (error.to_string(), path.display().to_string());
    if text.contains(&path) { text } else { format!("{path}: {text}") }
}
