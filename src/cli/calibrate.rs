//! `vitq calibrate`.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::options::{Calibration as CalibrationData, Configuration, Threads, check_outputs, note_calibration};
use super::progress::Bar;
use super::terminal::Terminal;
use crate::calib::Part;
use crate::pipeline::{self, Calibration, Feed};

/// Observe a model's values on calibration data and write the statistics
///
/// One set of statistics serves every target, observer and bit width; only a configuration that asks for other recordings
/// (PTF on another site, other percentiles) needs a new one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq calibrate model.onnx --calib images/ --preprocess imagenet -o model.stats
  vitq calibrate model.onnx --calib images/ --preprocess imagenet --resume saved/ -o model.stats
  vitq calibrate model.onnx --calib images/ --preprocess imagenet --shard 3/16 -o 3.stats")]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    #[command(flatten)]
    data: CalibrationData,

    #[command(flatten)]
    config: Configuration,

    /// Run only the K-th of N parts of the samples; `vitq merge` puts the parts together
    #[arg(long, value_name = "K/N", default_value_t = Part::WHOLE, hide_default_value = true, help_heading = "Execution")]
    shard: Part,

    /// Save the statistics in this folder every few seconds, and go on from what is saved there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Execution")]
    resume: Option<PathBuf>,

    #[command(flatten)]
    threads: Threads,

    /// Where to write the statistics
    #[arg(short, long, value_name = "STATS", value_hint = ValueHint::FilePath, help_heading = "Output")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    check_outputs(terminal, &args.config.and(&[&args.model, &args.data.calib]), &[&args.output])?;
    let config = args.config.load(terminal)?;
    let source = pipeline::load(&args.model)?;
    source.require_sites()?;
    let feed = Feed::new(&args.model, &source.model, &args.data.data_options(&config))?;
    let samples = feed.open(&args.data.calib)?;
    note_calibration(&samples, terminal);
    let engine = pipeline::engine_of(&source, &config, &feed.engine_options())?;
    let stats = {
        let bar = Bar::new(terminal, "calibrating");
        let threads = args.threads.count();
        let run = Calibration { source: &source, config: &config, engine: &engine, samples: &samples, threads, progress: &bar };
        match &args.resume {
            None => run.run(args.shard)?,
            Some(folder) => run.run_resumable(args.shard, folder, &mut |text| terminal.note(&text))?,
        }
    };
    samples.skipped_note(&stats).iter().for_each(|n| terminal.warning(n));
    pipeline::write_stats(&stats, &args.output)?;
    let (values, seen) = (stats.values().len(), stats.samples().len() * samples.batch());
    if seen == 0 {
        terminal.warning(&format!(
            "shard {} has none of the {} samples: these statistics are of nothing",
            args.shard,
            stats.total()
        ));
    }
    let shard = if args.shard.is_whole() { String::new() } else { format!(", shard {} of {}", args.shard, stats.total()) };
    terminal.summary(&format_args!("{values} values observed on {seen} samples{shard}, written to {}\n", args.output.display()))
}
