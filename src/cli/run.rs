//! `vitq run`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};
use ndarray::{ArrayD, ArrayViewD, Axis};

use super::error::CliError;
use super::options::{Preprocessing, Threads, check_outputs, note_samples};
use super::progress::Bar;
use super::terminal::Terminal;
use crate::data::save_npz;
use crate::pipeline::{Feed, SampleOutputs, forward, is_quantised, read, runnable, top};

/// Run a model on images or arrays
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq run model.int8.onnx --input cat.jpg dog.png --preprocess imagenet
  vitq run model.int8.onnx --input samples.npy -o logits.npz")]
pub(super) struct Args {
    /// The model, float or quantised
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    /// Images, folders of images, .npy or .npz files
    #[arg(long, value_name = "PATH", required = true, num_args = 1.., value_hint = ValueHint::AnyPath, help_heading = "Data")]
    input: Vec<PathBuf>,

    #[command(flatten, next_help_heading = "Data")]
    preprocessing: Preprocessing,

    /// quantized runs the model as it is; fp32 insists on a float model
    #[arg(long, value_enum, default_value_t = Mode::Quantized, help_heading = "Execution")]
    mode: Mode,

    /// How many classes to print for each input
    #[arg(long, value_name = "K", default_value_t = 5, help_heading = "Output")]
    top: usize,

    /// Write all outputs to an .npz instead of printing classes
    #[arg(short, long, value_name = "OUT.npz", value_hint = ValueHint::FilePath, help_heading = "Output")]
    output: Option<PathBuf>,

    /// Print JSON
    #[arg(long, help_heading = "Output", conflicts_with = "output")]
    json: bool,

    #[command(flatten)]
    threads: Threads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Fp32,
    Quantized,
}

/// One class of one input.
#[derive(Debug, serde::Serialize)]
struct Class {
    class: usize,
    logit: f32,
    probability: f64,
}

/// The highest classes of one input.
#[derive(Debug, serde::Serialize)]
struct Prediction {
    input: String,
    top: Vec<Class>,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    if let Some(output) = &args.output {
        let inputs: Vec<_> = std::iter::once(&args.model).chain(&args.input).map(PathBuf::as_path).collect();
        check_outputs(terminal, &inputs, &[output])?;
    }
    let model = read(&args.model)?;
    if args.mode == Mode::Fp32 && is_quantised(&model) {
        return Err(CliError::Refused(format!(
            "{} is quantised, its float weights are gone: run the float model that it was compiled from, or leave --mode out",
            args.model.display()
        )));
    }
    let feed = Feed::new(&args.model, &model, &args.preprocessing.data_options(None))?;
    let sets = args.input.iter().map(|p| feed.open(p)).collect::<Result<Vec<_>, _>>()?;
    let engine = runnable(&args.model, model, &feed.engine_options())?;
    let mut all = Vec::new();
    for samples in &sets {
        note_samples(samples, terminal);
        let bar = Bar::new(terminal, "running");
        all.extend(forward(&engine, samples, args.threads.count(), &bar)?);
    }
    match &args.output {
        Some(path) => save(path, &all, terminal),
        None => show(args, &all, terminal),
    }
}

/// Every output as one array over all samples.
fn save(path: &std::path::Path, all: &[SampleOutputs], terminal: &Terminal) -> Result<(), CliError> {
    let names: Vec<&str> = all.first().map(|s| s.outputs.iter().map(|(n, _)| n.as_str()).collect()).unwrap_or_default();
    let mut arrays: Vec<(&str, ArrayD<f32>)> = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        let rows: Vec<ArrayViewD<'_, f32>> = all.iter().filter_map(|s| s.outputs.get(i)).map(|(_, a)| a.view()).collect();
        let stacked = ndarray::stack(Axis(0), &rows);
        let stacked = stacked.map_err(|_| {
            CliError::Refused(format!("the output '{name}' has another shape for each sample: run them one by one"))
        })?;
        arrays.push((name, stacked));
    }
    let views: Vec<(&str, ArrayViewD<'_, f32>)> = arrays.iter().map(|(n, a)| (*n, a.view())).collect();
    save_npz(path, &views)?;
    terminal.summary(&format_args!("{} samples, {} outputs, written to {}\n", all.len(), views.len(), path.display()))
}

fn show(args: &Args, all: &[SampleOutputs], terminal: &Terminal) -> Result<(), CliError> {
    let predictions = all.iter().map(|s| predict(s, args.top)).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        return terminal.print_json(&predictions);
    }
    let mut text = String::new();
    for p in &predictions {
        let _ = writeln!(text, "{}", p.input);
        for c in &p.top {
            let _ = writeln!(text, "  class {:>5}  logit {:>9.4}  probability {:.4}", c.class, c.logit, c.probability);
        }
    }
    terminal.print(&text)
}

fn predict(sample: &SampleOutputs, k: usize) -> Result<Prediction, CliError> {
    let Some((name, logits)) = sample.outputs.first() else {
        return Err(CliError::Refused("the model has no output: export it again".to_owned()));
    };
    if logits.ndim() != 1 {
        return Err(CliError::Refused(format!(
            "the output '{name}' has shape {:?} a sample, not one logit a class: write it to a file with -o OUT.npz",
            logits.shape()
        )));
    }
    let values: Vec<f32> = logits.iter().copied().collect();
    let best = top(&values, k);
    // The softmax of f64 differences from the largest cannot overflow.
    let most = values.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = values.iter().map(|&v| libm::exp(f64::from(v) - most)).sum();
    let class = |i: usize| {
        let logit = values.get(i).copied().unwrap_or(f32::NAN);
        Class { class: i, logit, probability: libm::exp(f64::from(logit) - most) / sum }
    };
    Ok(Prediction { input: sample.sample.clone(), top: best.into_iter().map(class).collect() })
}
