//! `vitq compile`: calibrate, plan and lower in one go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueHint;

use super::error::CliError;
use super::lower::emit;
use super::options::{
    Calibration, Configuration, Emission, Searching, Targeting, Threads, check_data, check_outputs, note_calibration,
};
use super::progress::Bar;
use super::terminal::{Terminal, json};
use crate::config::Config;
use crate::fs::{is_direct, write_atomic};
use crate::ir::{Model, Tensor};
use crate::lower::LowerReport;
use crate::pipeline::{self, Evaluation, Feed, Found, Kept, PipelineError, Samples, Source};
use crate::quant::QuantPlan;
use crate::report::summary::{CompileSummary, Lowered, Phase, Quality, adjusted, left_in_float, quantised, searched};

/// Calibration samples on which the emitted model is compared with the float model.
const COMPARED: usize = 32;
/// The same with `--effort fast`: simulating integers costs more than the float model.
const COMPARED_FAST: usize = 8;

/// Compile a float Vision Transformer, or another network, into a quantised model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq compile model.onnx --calib images/ --preprocess imagenet -o model.int8.onnx
  vitq compile model.onnx --calib images/ --preprocess inception --budget 25dB,1.5x -o out.onnx
  vitq compile model.onnx --calib x.npy --config my.yaml --save-plan plan.json -o out.onnx")]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    #[command(flatten)]
    data: Calibration,

    #[command(flatten)]
    config: Configuration,

    #[command(flatten)]
    target: Targeting,

    #[command(flatten)]
    effort: Searching,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    output: Emission,

    /// Write the statistics, as `vitq calibrate` would
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    save_stats: Option<PathBuf>,

    /// Write the plan, as `vitq plan` would
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    save_plan: Option<PathBuf>,

    /// Write the summary as JSON to a file
    #[arg(long, value_name = "FILE.json", value_hint = ValueHint::FilePath, help_heading = "Output")]
    report: Option<PathBuf>,

    /// Print the summary as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Wall-clock time by phase.
struct Clock {
    start: Instant,
    last: Instant,
    phases: Vec<Phase>,
}

impl Clock {
    fn new() -> Self {
        let now = Instant::now();
        Clock { start: now, last: now, phases: Vec::new() }
    }

    fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push(Phase { name, seconds: (now - self.last).as_secs_f64() });
        self.last = now;
    }
}

/// What the steps made.
struct Made {
    source: Source,
    config: Config,
    found: Found,
    /// Constants that are others than the model's, and what could not be done about some.
    constants: BTreeMap<String, Tensor>,
    notes: Vec<String>,
    model: Model,
    report: LowerReport,
    samples: usize,
    skipped: Option<String>,
    evaluation: Evaluation,
}

pub(super) fn run(args: Args, terminal: &Terminal) -> Result<(), CliError> {
    let constants = args.save_plan.as_deref().filter(|p| !is_direct(p)).map(pipeline::constants_path);
    let more = [&args.save_stats, &args.save_plan, &constants, &args.report];
    let outputs: Vec<&Path> =
        std::iter::once(&args.output.output).chain(more.into_iter().flatten()).map(PathBuf::as_path).collect();
    check_outputs(terminal, &args.config.and(&[&args.model, &args.data.calib]), &outputs)?;
    let mut clock = Clock::new();
    let mut made = make(&args, terminal, &mut clock)?;
    // Nothing is written before everything has succeeded.
    emit(&args.model, &mut made.model, &args.output)?;
    if let Some(path) = &args.save_stats {
        pipeline::write_stats(&made.found.stats, path)?;
    }
    if let Some(path) = &args.save_plan {
        if !made.constants.is_empty() {
            made.found.plan.constants = Some(pipeline::write_constants(&made.constants, &pipeline::constants_path(path))?);
        }
        pipeline::write_plan(&made.found.plan, path)?;
    }
    clock.end("write");
    let summary = summarise(&args, &made, clock);
    if let Some(path) = &args.report {
        let text = json(&summary)?;
        write_atomic(path, |w| w.write_all(text.as_bytes()))?;
    }
    if args.json { terminal.print_json(&summary) } else { terminal.summary(&summary) }
}

fn make(args: &Args, terminal: &Terminal, clock: &mut Clock) -> Result<Made, CliError> {
    let mut config = args.config.load(terminal)?;
    args.effort.configure(&mut config)?;
    let source = pipeline::load(&args.model)?;
    source.require_sites()?;
    check_data(&source.data, &args.output.output)?;
    let feed = Feed::new(&args.model, &source.model, &args.data.data_options(&config))?;
    let samples = feed.open(&args.data.calib)?;
    note_calibration(&samples, terminal);
    clock.end("load");
    let float = pipeline::engine_of(&source, &config, &feed.engine_options())?;
    let kept = Kept::new(if args.effort.searches() { COMPARED } else { COMPARED_FAST }, &samples);
    let stats = {
        let bar = Bar::new(terminal, "calibrating");
        pipeline::calibrate(&source, &config, &float, &samples, args.threads.count(), &kept.beside(&bar))?
    };
    // It holds a copy of all weights.
    drop(float);
    let skipped = samples.skipped_note(&stats);
    skipped.iter().for_each(|n| terminal.warning(n));
    clock.end("calibrate");
    let target = args.target.target.into();
    let plan = pipeline::plan(&source, &stats, &config, target, args.threads.count())?;
    clock.end("plan");
    let (mut notes, mut constants) = (Vec::new(), BTreeMap::new());
    let mut found = if args.effort.searches() {
        let search = pipeline::Search {
            source: &source,
            config: &config,
            target,
            options: &feed.engine_options(),
            samples: &samples,
            measured_on: args.effort.samples(),
            threads: args.threads.count(),
            progress: &|what| Box::new(Bar::new(terminal, what)),
        };
        let found = search.run(stats, plan)?;
        clock.end("search");
        found
    } else {
        Found::unsearched(stats, plan)
    };
    notes.append(&mut found.notes);
    let source = source.reparameterized(&found.plan.reparameterized)?.into_owned();
    let adjusted = adjust(args, terminal, &source, &config, &feed, &samples, &found.plan)?;
    let source = match adjusted {
        Some(a) => {
            clock.end("adjust");
            found.plan = a.plan;
            notes.extend(a.notes);
            let adjusted = source.with_constants(a.constants.clone())?;
            constants = a.constants;
            adjusted
        }
        None => source,
    };
    let plan = &found.plan;
    let unsearched = if args.effort.searches() { None } else { pipeline::unsearched(&config) };
    let mut against = pipeline::violations(&source, &config, plan);
    against.extend(unsearched.clone());
    if args.target.strict && !against.is_empty() {
        return Err(PipelineError::Strict(against).into());
    }
    notes.extend(unsearched);
    let (model, report) = pipeline::lower(&source, plan)?;
    clock.end("lower");
    let evaluation = compare(args, terminal, &model, &kept, &feed, &samples)?;
    clock.end("evaluate");
    let samples = found.stats.samples().len() * samples.batch();
    Ok(Made { source, config, found, constants, notes, model, report, samples, skipped, evaluation })
}

/// Codebooks, weights and biases by what they compute, where the configuration asks for that.
fn adjust(
    args: &Args,
    terminal: &Terminal,
    source: &Source,
    config: &Config,
    feed: &Feed,
    samples: &Samples,
    plan: &QuantPlan,
) -> Result<Option<pipeline::Adjusted>, CliError> {
    /// Samples that second moments are taken of.
    const MOMENTS_OF: usize = 64;
    if !pipeline::asks_to_adjust(config, plan) && !pipeline::has_codebooks(plan) {
        return Ok(None);
    }
    let inputs = pipeline::first_samples(samples, MOMENTS_OF)?;
    let adjust = pipeline::Adjust {
        source,
        config,
        options: &feed.engine_options(),
        inputs: &inputs,
        threads: args.threads.count(),
        progress: &|what| Box::new(Bar::new(terminal, what)),
    };
    Ok(Some(adjust.run(plan)?))
}

/// The emitted model in the executor against the float model's kept outputs, on the first calibration samples.
fn compare(
    args: &Args,
    terminal: &Terminal,
    model: &Model,
    kept: &Kept,
    feed: &Feed,
    samples: &Samples,
) -> Result<Evaluation, CliError> {
    let emitted = pipeline::runnable(&args.output.output, model.clone(), &feed.engine_options())?;
    let bar = Bar::new(terminal, "comparing");
    Ok(pipeline::evaluate_kept(&emitted, kept, samples, args.threads.count(), &bar)?)
}

fn summarise(args: &Args, made: &Made, clock: Clock) -> CompileSummary {
    let source = &made.source;
    let misses = source.vit.near_misses.iter().chain(&source.canon.near_misses);
    let r = &made.report;
    CompileSummary {
        model: args.model.display().to_string(),
        output: args.output.output.display().to_string(),
        target: made.found.plan.target.to_string(),
        config: made.config.name.clone(),
        calibration_samples: made.samples,
        blocks: source.vit.blocks.len(),
        heads: source.vit.blocks.first().and_then(|b| b.attentions.first()).map_or(0, |a| a.heads),
        convolutions: source.vit.general.convolutions,
        linears: source.vit.general.linears,
        rules: source.canon.applied.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
        near_misses: misses.map(ToString::to_string).collect(),
        quantised: quantised(&made.found.plan),
        float: left_in_float(&made.found.plan),
        adjusted: adjusted(&made.found.plan),
        searched: searched(&made.found.plan),
        lowered: Lowered {
            pairs: r.pairs,
            weights: r.weights,
            biases: r.biases,
            custom_ops: r.custom_ops,
            narrowed: r.narrowed,
            notes: r.notes.clone(),
        },
        notes: {
            let unknown = pipeline::unknown_names(source, &made.config).into_iter();
            unknown.chain(made.notes.clone()).chain(made.skipped.clone()).collect()
        },
        quality: Quality {
            samples: made.evaluation.samples,
            of: made.samples,
            sqnr_db: made.evaluation.sqnr_db,
            agreement: made.evaluation.agreement,
        },
        bytes_before: source.bytes,
        bytes_after: written_bytes(&args.output.output, &made.model),
        seconds: clock.start.elapsed().as_secs_f64(),
        phases: clock.phases,
        peak_memory_bytes: peak_memory(),
    }
}

/// Bytes of the emitted model, with its data file if it has one.
fn written_bytes(path: &Path, model: &Model) -> u64 {
    // A pipe or a device cannot be read again.
    match pipeline::read(path) {
        Ok(written) => pipeline::file_bytes(path, &written),
        Err(_) => pipeline::encoded_bytes(model),
    }
}

/// The largest resident set of this process so far.
#[cfg(target_os = "linux")]
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(not(target_os = "linux"))]
fn peak_memory() -> Option<u64> {
    None
}
