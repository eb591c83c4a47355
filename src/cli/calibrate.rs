//! `vitq calibrate`.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::options::{Calibration, Configuration, Threads, check_outputs, note_samples};
use super::progress::Bar;
use super::terminal::Terminal;
use crate::pipeline::{self, Feed};

/// Observe a model's values on calibration data and write the statistics
///
/// One set of statistics serves every target, observer and bit width; only a configuration that asks for other recordings
/// (PTF on another site, other percentiles) needs a new one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq calibrate model.onnx --calib images/ --preprocess imagenet -o model.stats
  vitq calibrate model.onnx --calib samples.npy --calib-limit 64 -o model.stats")]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    #[command(flatten)]
    data: Calibration,

    #[command(flatten)]
    config: Configuration,

    #[command(flatten)]
    threads: Threads,

    /// Where to write the statistics
    #[arg(short, long, value_name = "STATS", value_hint = ValueHint::FilePath, help_heading = "Output")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    check_outputs(&[&args.model, &args.data.calib], &[&args.output])?;
    let config = args.config.load(terminal)?;
    let source = pipeline::load(&args.model)?;
    source.require_sites()?;
    let feed = Feed::new(&args.model, &source.model, &args.data.data_options())?;
    let samples = feed.open(&args.data.calib)?;
    note_samples(&samples, terminal);
    let engine = pipeline::engine_of(&source, &config, &feed.engine_options())?;
    let stats = {
        let bar = Bar::new(terminal, "calibrating");
        pipeline::calibrate(&source, &config, &engine, &samples, args.threads.count(), &bar)?
    };
    pipeline::write_stats(&stats, &args.output)?;
    let (values, seen) = (stats.values().len(), stats.samples().len() * samples.batch());
    terminal.summary(&format_args!("{values} values observed on {seen} samples, written to {}\n", args.output.display()))
}
