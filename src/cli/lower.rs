//! `vitq lower`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::ValueHint;

use super::error::CliError;
use super::options::{Emission, check_data, check_outputs};
use super::terminal::Terminal;
use crate::ir::Model;
use crate::onnx;
use crate::pipeline::{self, PipelineError};

/// Apply a plan to a model and write the quantised model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq lower model.onnx --plan model.plan.json -o model.int8.onnx
  vitq lower model.onnx --plan model.plan.json --batch 8 -o model.int8.b8.onnx")]
pub(super) struct Args {
    /// The float model that the plan was made for
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    /// Plan of `vitq plan`
    #[arg(long, value_name = "PLAN", value_hint = ValueHint::FilePath)]
    plan: PathBuf,

    #[command(flatten)]
    output: Emission,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    check_outputs(terminal, &[&args.model, &args.plan], &[&args.output.output])?;
    let plan = pipeline::read_plan(&args.plan)?;
    let source = pipeline::with_plan_constants(pipeline::load(&args.model)?, &plan, &args.plan)?;
    check_data(&source.data, &args.output.output)?;
    let (mut model, report) = pipeline::lower(&source, &plan)?;
    emit(&args.model, &mut model, &args.output)?;
    report.notes.iter().for_each(|n| terminal.note(n));
    let out = args.output.output.display();
    let narrowed = match report.narrowed {
        0 => String::new(),
        n => format!(", {n} operators of the rows that are read alone"),
    };
    terminal.summary(&format_args!(
        "{} Q/DQ pairs, {} integer constants, {} int32 biases, {} custom ops{narrowed}, written to {out}\n",
        report.pairs, report.weights, report.biases, report.custom_ops
    ))
}

/// Fixes the batch if asked to, and writes a model.
pub(super) fn emit(source: &Path, model: &mut Model, to: &Emission) -> Result<(), CliError> {
    if let Some(batch) = to.batch {
        pipeline::fix_batch(source, model, NonZeroUsize::get(batch))?;
    }
    let failed = |source| PipelineError::Write { path: to.output.clone(), source };
    Ok(onnx::write(model, &to.output, to.external_data()).map_err(failed)?)
}
