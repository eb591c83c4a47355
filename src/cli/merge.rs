//! `vitq merge`.

use std::path::{Path, PathBuf};

use clap::ValueHint;

use super::error::CliError;
use super::options::check_outputs;
use super::terminal::Terminal;
use crate::pipeline;

/// Merge the statistics of shards into those of one run
///
/// The result has the same bytes as one run over all samples, whatever the number of shards and the order of the files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq merge 1.stats 2.stats 3.stats -o model.stats
  vitq merge shards/*.stats -o model.stats")]
pub(super) struct Args {
    /// Statistics of `vitq calibrate --shard`
    #[arg(value_name = "STATS", required = true, value_hint = ValueHint::FilePath)]
    stats: Vec<PathBuf>,

    /// Where to write the merged statistics
    #[arg(short, long, value_name = "STATS", value_hint = ValueHint::FilePath, help_heading = "Output")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    let inputs: Vec<&Path> = args.stats.iter().map(PathBuf::as_path).collect();
    check_outputs(terminal, &inputs, &[&args.output])?;
    let stats = pipeline::merge_stats(&args.stats)?;
    pipeline::missing_note(&stats).iter().for_each(|n| terminal.warning(n));
    pipeline::write_stats(&stats, &args.output)?;
    let (files, seen, skipped) = (args.stats.len(), stats.samples().len(), stats.skipped().len());
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    terminal.summary(&format_args!("{files} files merged, {seen} samples{skipped}, written to {}\n", args.output.display()))
}
