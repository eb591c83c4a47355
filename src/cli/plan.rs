//! `vitq plan`.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::options::{Configuration, Targeting, Threads, check_outputs};
use super::terminal::Terminal;
use crate::pipeline::{self, PipelineError};
use crate::report::summary::{adjusted, left_in_float, quantised};

/// Decide every quantisation parameter and write the plan, a JSON file to review and edit
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq plan model.onnx --stats model.stats -o model.plan.json
  vitq plan model.onnx --stats model.stats --target onnxruntime --config my.yaml -o model.plan.json")]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    /// Statistics of `vitq calibrate`
    #[arg(long, value_name = "STATS", value_hint = ValueHint::FilePath)]
    stats: PathBuf,

    #[command(flatten)]
    config: Configuration,

    #[command(flatten)]
    target: Targeting,

    #[command(flatten)]
    threads: Threads,

    /// Where to write the plan
    #[arg(short, long, value_name = "PLAN", value_hint = ValueHint::FilePath, help_heading = "Output")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    check_outputs(terminal, &args.config.and(&[&args.model, &args.stats]), &[&args.output])?;
    let config = args.config.load(terminal)?;
    let source = pipeline::load(&args.model)?;
    source.require_sites()?;
    let stats = pipeline::read_stats(&args.stats)?;
    let plan = pipeline::plan(&source, &stats, &config, args.target.target.into(), args.threads.count())?;
    let mut against = pipeline::violations(&source, &config, &plan);
    let left_out: Vec<String> = pipeline::missing_note(&stats).into_iter().chain(pipeline::unsearched(&config)).collect();
    against.extend(left_out.iter().cloned());
    if args.target.strict && !against.is_empty() {
        return Err(PipelineError::Strict(against).into());
    }
    if pipeline::asks_to_adjust(&config, &plan) {
        terminal.warning(
            "the configuration asks for weight_rounding or bias_correction, which need the samples: this plan rounds weights to nearest; `vitq compile --save-plan` makes one that does as asked",
        );
    }
    if pipeline::has_codebooks(&plan) {
        terminal.warning(
            "the levels of codebooks are chosen by the statistics, which treat all tokens alike: `vitq compile --save-plan` chooses them on the samples, by what the outputs depend on",
        );
    }
    pipeline::unknown_names(&source, &config).iter().chain(&left_out).for_each(|n| terminal.warning(n));
    adjusted(&plan).iter().for_each(|group| terminal.note(&group.to_string()));
    pipeline::write_plan(&plan, &args.output)?;
    let sites: usize = quantised(&plan).iter().map(|q| q.sites).sum();
    let float: usize = left_in_float(&plan).iter().map(|g| g.sites.len()).sum();
    terminal.summary(&format_args!("{sites} sites quantised, {float} left in float, written to {}\n", args.output.display()))
}
