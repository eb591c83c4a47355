//! What observing adds to the forward passes of a calibration, without images, canonical form, digest and files.
//!
//! `observing MODEL.onnx IMAGES PREPROCESSING`: for each observer, and for the default preset, what recording takes of a sample's run, and how
//! much that is beside the rest of the run. One thread; medians over the samples, all configurations in turn on a few at a time, so that a
//! machine that others use disturbs them alike.

use std::error::Error;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ndarray::ArrayD;
use vitq::calib::run::{Failure, OnValue};
use vitq::calib::{Forward, ForwardSession, SampleSource, Selection, Stats, TapSpec, calibrate, resume};
use vitq::config::{self, load::parse};
use vitq::pipeline::{self, DataOptions, Feed};
use vitq::runtime::tract::{Engine, Session};

/// An engine whose runs are timed: all of a run, and what its observers took of it.
struct Timed<'a> {
    engine: &'a Engine,
    runs: Mutex<Vec<(Duration, Duration)>>,
}

struct TimedSession<'a>(Session<'a>, &'a Timed<'a>);

impl Forward for Timed<'_> {
    fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> {
        Ok(Box::new(TimedSession(self.engine.session()?, self)))
    }
}

impl ForwardSession for TimedSession<'_> {
    fn run(&mut self, inputs: &[(String, ArrayD<f32>)], on_value: &mut OnValue<'_>) -> Result<Vec<ArrayD<f32>>, Failure> {
        let mut observing = Duration::ZERO;
        let start = Instant::now();
        let outputs = ForwardSession::run(&mut self.0, inputs, &mut |tap, shape, data| {
            let start = Instant::now();
            on_value(tap, shape, data);
            observing += start.elapsed();
        })?;
        let run = (start.elapsed(), observing);
        self.1.runs.lock().map_err(|e| e.to_string())?.push(run);
        Ok(outputs)
    }
}

/// One way to observe the model.
struct Way {
    title: String,
    taps: Vec<TapSpec>,
    engine: Engine,
    stats: Option<Stats>,
    runs: Vec<(Duration, Duration)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, images, preprocess] = args.as_slice() else {
        return Err("usage: observing MODEL.onnx IMAGES PREPROCESSING".into());
    };
    let source = pipeline::load(Path::new(model))?;
    let options = DataOptions { preprocess: Some(preprocess.clone()), ..DataOptions::default() };
    let feed = Feed::new(Path::new(model), &source.model, &options)?;
    let samples = feed.open(Path::new(images))?;
    let mut configs = vec![("int8".to_owned(), config::load("int8")?)];
    for observer in ["MinmaxObserver", "OmseObserver", "KLObserver", "PercentileObserver"] {
        let text = format!("default: {{observer_type: {observer}, quantization_method: Uniform}}\n");
        configs.push((observer.to_owned(), parse(observer, &text)?));
    }
    let mut ways = Vec::new();
    for (title, config) in configs {
        let taps = vitq::quant::recordings(&source.vit.sites, &config);
        let engine = pipeline::engine_of(&source, &config, &feed.engine_options())?;
        ways.push(Way { title, taps, engine, stats: None, runs: Vec::new() });
    }
    let mut rest = Selection::part(&samples, vitq::calib::Part::WHOLE);
    while !rest.is_empty() {
        let some = rest.take(8);
        for way in &mut ways {
            let timed = Timed { engine: &way.engine, runs: Mutex::default() };
            way.stats = Some(match way.stats.take() {
                None => calibrate(&timed, &way.taps, &some, source.digest(), 1, &())?,
                Some(stats) => resume(stats, &timed, &way.taps, &some, 1, &())?,
            });
            way.runs.extend(timed.runs.into_inner()?);
        }
    }
    for way in &mut ways {
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        let observing = median(way.runs.iter().map(|r| r.1).collect());
        let forward = median(way.runs.iter().map(|r| r.0 - r.1).collect());
        println!(
            "{:18} observing {observing:6.2} ms, forward {forward:6.2} ms a sample: {:4.1} % more",
            way.title,
            100.0 * observing / forward
        );
    }
    Ok(())
}
