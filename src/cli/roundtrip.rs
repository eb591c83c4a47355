//! `vitq roundtrip`: import and export without a change, for tests of other people's models.

use std::path::PathBuf;

use clap::ValueHint;

use super::error::CliError;
use super::options::{check_data, check_outputs, external_data};
use super::terminal::Terminal;
use crate::onnx;
use crate::pipeline::{PipelineError, data_files, read};

/// Read a model and write it again
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model to read
    #[arg(value_name = "IN.onnx", value_hint = ValueHint::FilePath)]
    input: PathBuf,

    /// Where to write it
    #[arg(value_name = "OUT.onnx", value_hint = ValueHint::FilePath)]
    output: PathBuf,

    /// Write the weights to OUT.onnx.data beside the model
    #[arg(long)]
    external_data: bool,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    check_outputs(terminal, &[&args.input], &[&args.output])?;
    let model = read(&args.input)?;
    check_data(&data_files(&args.input, &model), &args.output)?;
    let failed = |source| PipelineError::Write { path: args.output.clone(), source };
    Ok(onnx::write(&model, &args.output, external_data(args.external_data)).map_err(failed)?)
}
