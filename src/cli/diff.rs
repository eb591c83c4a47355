//! `vitq diff`.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::terminal::Terminal;
use crate::pipeline::read;
use crate::report::diff::ModelDiff;

/// Show what differs between two models
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq diff model.onnx model.int8.onnx
  vitq diff before.onnx after.onnx --all | less
  vitq diff before.onnx after.onnx --json")]
pub(super) struct Args {
    /// The first model
    #[arg(value_name = "A.onnx", value_hint = ValueHint::FilePath)]
    before: PathBuf,

    /// The second model
    #[arg(value_name = "B.onnx", value_hint = ValueHint::FilePath)]
    after: PathBuf,

    /// Unchanged lines around each change of the text
    #[arg(long, value_name = "N", default_value_t = 3)]
    context: usize,

    /// Show long sections whole
    #[arg(long, conflicts_with = "json")]
    all: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    let diff = ModelDiff::new(&read(&args.before)?, &read(&args.after)?, args.context);
    if args.json {
        terminal.print_json(&diff)
    } else if args.all {
        terminal.print(&format!("{diff:#}"))
    } else {
        terminal.print(&diff.to_string())
    }
}
