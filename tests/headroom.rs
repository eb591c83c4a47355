//! Room in ranges for samples that calibration did not see, on the small real Vision Transformer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::digits::{Digits, parsed};
use vitq::calib::Part;
use vitq::config::Config;
use vitq::pipeline::{self, Found, Search};
use vitq::quant::{QuantPlan, Target};
use vitq::tune::objective::Distance;
use vitq::tune::range::{step, widened};

const ONLY_ROOM: &str = "search: {clip: false, ranges: false, float_share: 0}";

struct Bench {
    digits: Digits,
    config: Config,
}

impl Bench {
    fn new(yaml: &str, images: usize) -> Bench {
        Bench { digits: Digits::new(images), config: parsed(yaml) }
    }

    /// A plan of all samples but those that begin each group of four.
    fn plan_of_three_quarters(&self) -> QuantPlan {
        let parts: Vec<Part> = (1..4).map(|i| Part::new(i, 4).unwrap()).collect();
        let stats = self.digits.stats(&self.config, &parts);
        pipeline::plan(&self.digits.source, &stats, &self.config, Target::Integer, 2).unwrap()
    }

    fn search(&self, threads: usize) -> Found {
        let search = Search {
            source: &self.digits.source,
            config: &self.config,
            target: Target::Integer,
            options: &self.digits.options,
            samples: &self.digits.samples,
            measured_on: 8,
            threads,
            progress: &|_| Box::new(()),
        };
        let stats = self.digits.stats(&self.config, &[Part::WHOLE]);
        let plan = self.digits.plan(&self.config, Target::Integer);
        search.run(stats, plan).unwrap()
    }
}

#[test]
fn ranges_become_as_wide_as_unseen_samples_ask_for() {
    let b = Bench::new(ONLY_ROOM, 16);
    let (found, before) = (b.search(2), b.digits.plan(&b.config, Target::Integer));
    assert!(!found.rooms.is_empty());
    let part = b.plan_of_three_quarters();
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
    let part = b.plan_of_three_quarters();
    let inputs = b.digits.inputs(16).into_iter().step_by(4).collect::<Vec<_>>();
    let float = b.digits.source.objective(&part, &inputs, &b.digits.options, 1).unwrap();
    let reference = float.outputs(&float.float()).unwrap();
    let room = b.search(2).rooms.remove(0);
    let damage = |factor: f64| {
        let mut codes = float.float();
        for site in part.sites.iter().filter(|s| s.site.site == room.kind && s.site.rows.is_none() && s.rounds()) {
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
