//! The small real Vision Transformer with its images, and its way through the library.

use std::path::Path;

use vitq::calib::run::Named;
use vitq::calib::{Part, Stats};
use vitq::config::{self, Config};
use vitq::pipeline::{self, Calibration, DataOptions, Feed, Samples, Source};
use vitq::quant::{QuantPlan, Target};
use vitq::runtime::tract::EngineOptions;

const MODEL: &str = "models/digits/vit_digits.onnx";

pub struct Digits {
    pub source: Source,
    pub options: EngineOptions,
    pub samples: Samples,
}

impl Digits {
    /// With so many of its calibration images.
    pub fn new(images: usize) -> Digits {
        let source = pipeline::load(Path::new(MODEL)).unwrap();
        let options =
            DataOptions { preprocess: Some("inception".into()), crop_pct: Some(1.0), limit: Some(images), ..Default::default() };
        let feed = Feed::new(Path::new(MODEL), &source.model, &options).unwrap();
        let samples = feed.open(Path::new("models/digits/calib")).unwrap();
        Digits { options: feed.engine_options(), source, samples }
    }

    /// Statistics of these parts of the images.
    pub fn stats(&self, config: &Config, parts: &[Part]) -> Stats {
        let Digits { source, options, samples } = self;
        let engine = pipeline::engine_of(source, config, options).unwrap();
        let calibration = Calibration { source, config, engine: &engine, samples, threads: 2, progress: &() };
        parts.iter().map(|part| calibration.run(*part).unwrap()).reduce(|a, b| a.merge(b).unwrap()).unwrap()
    }

    /// A plan of all images.
    pub fn plan(&self, config: &Config, target: Target) -> QuantPlan {
        pipeline::plan(&self.source, &self.stats(config, &[Part::WHOLE]), config, target, 2).unwrap()
    }

    pub fn inputs(&self, count: usize) -> Vec<Named> {
        pipeline::first_samples(&self.samples, count).unwrap()
    }

    /// What the lowered model of a plan computes.
    pub fn emitted(&self, plan: &QuantPlan, inputs: &[Named]) -> Vec<Vec<f32>> {
        let (model, _) = pipeline::lower(&self.source, plan).unwrap();
        let engine = pipeline::runnable(Path::new(MODEL), model, &self.options).unwrap();
        let mut session = engine.session().unwrap();
        let run = |inputs: &Named| -> Vec<f32> {
            let views: Vec<_> = inputs.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
            session.run(&views, &mut |_, _, _| {}).unwrap()[0].1.iter().copied().collect()
        };
        inputs.iter().map(run).collect()
    }
}

pub fn parsed(yaml: &str) -> Config {
    config::load::parse("test.yaml", yaml).unwrap()
}
