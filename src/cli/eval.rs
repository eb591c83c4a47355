//! `vitq eval`.

use std::fmt::{Display, Formatter};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::options::{Preprocessing, Threads, note_samples};
use super::progress::Bar;
use super::terminal::Terminal;
use crate::pipeline::{Evaluation, Feed, evaluate, read, runnable};
use crate::report::summary::{decibels, percent, seconds};

/// Measure a model on data: accuracy, and its distance from a reference
///
/// Labels come from labels.csv (columns file, label), from one sub-folder a class, or from the array `labels` of an .npz.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq eval model.int8.onnx --data validation/ --preprocess imagenet
  vitq eval model.int8.onnx --data validation/ --preprocess imagenet --reference model.onnx --json")]
pub(super) struct Args {
    /// The model, float or quantised
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    /// Folder of images, or an .npy or .npz
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = "Data")]
    data: PathBuf,

    /// Use at most N samples
    #[arg(long, value_name = "N", help_heading = "Data")]
    limit: Option<NonZeroUsize>,

    #[command(flatten, next_help_heading = "Data")]
    preprocessing: Preprocessing,

    /// A model to compare with on the same data, usually the float one
    #[arg(long, value_name = "FP32.onnx", value_hint = ValueHint::FilePath, help_heading = "Comparison")]
    reference: Option<PathBuf>,

    #[command(flatten)]
    threads: Threads,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    let options = args.preprocessing.data_options(args.limit);
    let model = read(&args.model)?;
    let feed = Feed::new(&args.model, &model, &options)?;
    let samples = feed.open(&args.data)?;
    note_samples(&samples, terminal);
    if args.reference.is_none() && samples.dataset().labels().is_none() {
        return Err(CliError::Usage(format!(
            "{}: these data have no labels, and there is no --reference: give the float model as one, or labels (labels.csv, one \
             sub-folder a class, or the array `labels` of an .npz)",
            args.data.display()
        )));
    }
    let engine = runnable(&args.model, model, &feed.engine_options())?;
    let reference = match &args.reference {
        None => None,
        Some(path) => {
            let model = read(path)?;
            let own = Feed::new(path, &model, &options)?;
            own.check_same(&feed)?;
            Some(runnable(path, model, &feed.engine_options())?)
        }
    };
    let bar = Bar::new(terminal, "evaluating");
    let evaluation = evaluate(&engine, reference.as_ref(), &samples, None, args.threads.count(), &bar)?;
    drop(bar);
    if args.json { terminal.print_json(&evaluation) } else { terminal.print(&Shown(&evaluation).to_string()) }
}

struct Shown<'a>(&'a Evaluation);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let e = self.0;
        let rate = if e.seconds > 0.0 { e.samples as f64 / e.seconds } else { 0.0 };
        writeln!(f, "Samples     {} in {} ({rate:.1} a second)", e.samples, seconds(e.seconds))?;
        let of = if e.labelled < e.samples { format!(" (of {} labelled samples)", e.labelled) } else { String::new() };
        match (e.top1, e.reference_top1) {
            (Some(top1), Some(r)) => writeln!(f, "Top-1       {} (reference {}){of}", percent(top1), percent(r))?,
            (Some(top1), None) => writeln!(f, "Top-1       {}{of}", percent(top1))?,
            (None, _) => writeln!(f, "Top-1       unknown: the data have no labels")?,
        }
        if let Some(top5) = e.top5 {
            writeln!(f, "Top-5       {}", percent(top5))?;
        }
        if let Some(a) = e.agreement {
            writeln!(f, "Agreement   {} have the reference's top-1", percent(a))?;
        }
        match (e.sqnr_db, e.max_abs_difference) {
            (Some(db), Some(d)) => writeln!(f, "Logit SQNR  {}, largest difference {d:.4}", decibels(db)),
            (None, Some(_)) => writeln!(f, "Logit SQNR  the outputs are identical"),
            _ => Ok(()),
        }
    }
}
