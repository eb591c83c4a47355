//! `vitq analyze`.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::options::{Calibration as CalibrationData, Configuration, Targeting, Threads, check_outputs, note_calibration};
use super::progress::Bar;
use super::terminal::{Terminal, json};
use crate::fs::write_atomic;
use crate::pipeline::{self, Feed, PipelineError};
use crate::report::sensitivity::Sensitivity;

/// Rank every site by the damage that its codes do at the model's outputs, and show what wider codes would buy
///
/// Each site is quantised alone, everything else being in float, and the noise at the outputs is measured on calibration
/// images. The noise of all sites together is nearly the sum of these.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq analyze model.onnx --calib images/ --preprocess imagenet
  vitq analyze model.onnx --calib images/ --preprocess inception --target onnxruntime -o sites.json")]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    #[command(flatten)]
    data: CalibrationData,

    #[command(flatten)]
    config: Configuration,

    #[command(flatten)]
    target: Targeting,

    #[command(flatten)]
    threads: Threads,

    /// Write all sites and the whole frontier as JSON
    #[arg(short, long, value_name = "FILE.json", value_hint = ValueHint::FilePath, help_heading = "Output")]
    output: Option<PathBuf>,

    /// Print JSON instead of the table
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    let outputs: Vec<&std::path::Path> = args.output.iter().map(PathBuf::as_path).collect();
    check_outputs(terminal, &args.config.and(&[&args.model, &args.data.calib]), &outputs)?;
    let config = args.config.load(terminal)?;
    let source = pipeline::load(&args.model)?;
    source.require_sites()?;
    let feed = Feed::new(&args.model, &source.model, &args.data.data_options(&config))?;
    let samples = feed.open(&args.data.calib)?;
    note_calibration(&samples, terminal);
    let options = feed.engine_options();
    let engine = pipeline::engine_of(&source, &config, &options)?;
    let stats = {
        let bar = Bar::new(terminal, "calibrating");
        pipeline::calibrate(&source, &config, &engine, &samples, args.threads.count(), &bar)?
    };
    drop(engine);
    let target = args.target.target.into();
    let plan = pipeline::plan(&source, &stats, &config, target, args.threads.count())?;
    let against = pipeline::violations(&source, &config, &plan);
    if args.target.strict && !against.is_empty() {
        return Err(PipelineError::Strict(against).into());
    }
    let search = pipeline::Search {
        source: &source,
        config: &config,
        target,
        options: &options,
        samples: &samples,
        measured_on: pipeline::MEASURED_ON,
        threads: args.threads.count(),
        progress: &|what| Box::new(Bar::new(terminal, what)),
    };
    let found: Sensitivity = search.sensitivity(&plan)?;
    if let Some(path) = &args.output {
        let text = json(&found)?;
        write_atomic(path, |w| w.write_all(text.as_bytes()))?;
    }
    if args.json { terminal.print_json(&found) } else { terminal.print(&found.to_string()) }
}
