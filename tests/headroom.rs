//! Room in ranges for samples that calibration did not see, on the small real Vision Transformer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use vitq::calib::{Part, Stats};
use vitq::config::{self, Config};
use vitq::pipeline::{self, Calibration, DataOptions, Feed, Found, Samples, Search, Source};
use vitq::quant::{QuantPlan, Target};
use vitq::runtime::tract::EngineOptions;
use vitq::tune::objective::Distance;
use vitq::tune::range::{step, widened};

const MODEL: &str = "models/digits/vit_digits.onnx";
const ONLY_ROOM: &str = "search: {clip: false, ranges: false, float_share: 0}";

struct Bench {
    source: Source,
    config: Config,
    options: EngineOptions,
    samples: Samples,
}

impl Bench {
    fn new(yaml: &str, limit: usize) -> Bench {
        let source = pipeline::load(Path::new(MODEL)).unwrap();
        let options =
            DataOptions { preprocess: Some("inception".into()), crop_pct: Some(1.0), limit: Some(limit), ..Default::default() };
        let feed = Feed::new(Path::new(MODEL), &source.model, &options).unwrap();
        let samples = feed.open(Path::new("models/digits/calib")).unwrap();
        let config = config::load::parse("test.yaml", yaml).unwrap();
        Bench { options: feed.engine_options(), source, config, samples }
    }

    fn stats(&self, parts: &[Part]) -> Stats {
        let engine = pipeline::engine_of(&self.source, &self.config, &self.options).unwrap();
        let Bench { source, config, samples, .. } = self;
        let run =
            |part: &Part| Calibration { source, config, engine: &engine, samples, threads: 2, progress: &() }.run(*part).unwrap();
        parts.iter().map(run).reduce(|a, b| a.merge(b).unwrap()).unwrap()
    }

    fn plan(&self, parts: &[Part]) -> QuantPlan {
        pipeline::plan(&self.source, &self.stats(parts), &self.config, Target::Integer, 2).unwrap()
    }

    fn search(&self, threads: usize) -> Found {
        let search = Search {
            source: &self.source,
            config: &self.config,
            target: Target::Integer,
            options: &self.options,
            samples: &self.samples,
            measured_on: 8,
            threads,
            progress: &|_| Box::new(()),
        };
        let stats = self.stats(&[Part::WHOLE]);
        let plan = pipeline::plan(&self.source, &stats, &self.config, Target::Integer, 2).unwrap();
        search.run(stats, plan).unwrap()
    }
}

#[test]
fn ranges_become_as_wide_as_unseen_samples_ask_for() {
    let b = Bench::new(ONLY_ROOM, 16);
    let (found, before) = (b.search(2), b.plan(&[Part::WHOLE]));
    assert!(!found.rooms.is_empty());
    // What the other quarter of the samples leaves: its ranges are what the factors are of.
    let others: Vec<Part> = (1..4).map(|i| Part::new(i, 4).unwrap()).collect();
    let part = b.plan(&others);
    let mut changed = 0;
    for (site, old) in found.plan.sites.iter().zip(&before.sites) {
        let room = found.rooms.iter().find(|r| r.kind == site.site.site && site.rounds());
        let Some((room, now)) = room.zip(step(&site.scheme)) else {
            assert_eq!(site, old);
            continue;
        };
        let (all, wanted) = (step(&old.scheme).unwrap(), step(&part.site(&site.name).unwrap().scheme).unwrap() * room.factor);
        assert!((now / all.max(wanted) - 1.0).abs() < 1e-5, "{}: {now}, of {all} and {wanted}", site.name);
        assert_eq!(site.search.is_some(), now > all, "{}", site.name);
        changed += usize::from(now > all);
    }
    assert!(changed > 4, "{changed}");
    assert_eq!(found.plan, b.search(1).plan, "on any number of threads");
}

/// The damage that is reported, measured again: the samples that begin each group of four were not calibrated on.
#[test]
fn the_damage_is_that_of_all_sites_of_a_kind_on_unseen_samples() {
    let b = Bench::new(ONLY_ROOM, 16);
    let others: Vec<Part> = (1..4).map(|i| Part::new(i, 4).unwrap()).collect();
    let part = b.plan(&others);
    let inputs = pipeline::first_samples(&b.samples, 16).unwrap().into_iter().step_by(4).collect::<Vec<_>>();
    let float = b.source.objective(Target::Integer, &inputs, &b.options, 1).unwrap();
    let reference = float.outputs(&float.float()).unwrap();
    let room = b.search(2).rooms.remove(0);
    let damage = |factor: f64| {
        let mut codes = float.float();
        for site in part.sites.iter().filter(|s| s.site.site == room.kind && s.rounds()) {
            float.set(&mut codes, &site.name, widened(&site.scheme, factor).as_ref());
        }
        Distance::between(&reference, &float.outputs(&codes).unwrap()).ratio()
    };
    assert_eq!((damage(1.0), damage(room.factor)), (room.before, room.after));
    assert!(room.after < room.before * 0.95);
}

#[test]
fn none_is_made_where_there_is_nothing_to_measure_or_nobody_asks() {
    assert!(Bench::new(ONLY_ROOM, 3).search(1).rooms.is_empty());
    assert!(Bench::new("search: {clip: false, ranges: false, headroom: false, float_share: 0}", 16).search(1).rooms.is_empty());
}
