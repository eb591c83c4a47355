//! `vitq canon`.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::lower::emit;
use super::options::{Emission, check_data, check_outputs};
use super::terminal::Terminal;
use crate::pipeline;

/// Write a model's canonical form: the float graph in which blocks and sites are looked for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq canon model.onnx -o model.canonical.onnx
  vitq canon model.onnx -o /tmp/c.onnx && vitq inspect /tmp/c.onnx --text=elided | less")]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    #[command(flatten)]
    output: Emission,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    check_outputs(terminal, &[&args.model], &[&args.output.output])?;
    let mut source = pipeline::load(&args.model)?;
    check_data(&source.data, &args.output.output)?;
    let operators = |ops: &std::collections::BTreeMap<String, usize>| ops.values().sum::<usize>();
    let before = operators(&source.ops);
    let after = operators(&pipeline::op_counts(&source.model));
    emit(&args.model, &mut source.model, &args.output)?;
    source.canon.near_misses.iter().for_each(|miss| terminal.note(&format!("near miss: {miss}")));
    terminal.summary(&format_args!("{before} operators became {after}, written to {}\n", args.output.output.display()))
}
