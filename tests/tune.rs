//! The search's measure and its steps, on the small real Vision Transformer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::digits::Digits;
use vitq::calib::piecewise::Segments;
use vitq::calib::run::Named;
use vitq::config::{self, Config};
use vitq::pipeline;
use vitq::quant::fake::FakeQuant;
use vitq::quant::{QuantPlan, Scheme, SitePlan, Target};
use vitq::tune::cost::Cost;
use vitq::tune::damage::Walk;
use vitq::tune::objective::{Distance, Objective};
use vitq::tune::search::{Damage, damages, damages_to_refine, refine};
use vitq::tune::widths::{Goal, bits_of, leave_in_float, widen, with_bits};

struct Bench {
    digits: Digits,
    inputs: Vec<Named>,
    plan: QuantPlan,
}

impl Bench {
    fn new(config: &Config, target: Target) -> Bench {
        let digits = Digits::new(8);
        let (plan, inputs) = (digits.plan(config, target), digits.inputs(4));
        assert_eq!(inputs.len(), 4);
        Bench { digits, inputs, plan }
    }

    fn int8(target: Target) -> Bench {
        Bench::new(&config::preset("int8").unwrap().unwrap(), target)
    }

    fn float(&self) -> Objective {
        let source = self.digits.source.reparameterized(&self.plan.reparameterized).unwrap();
        source.objective(&self.plan, &self.inputs, &self.digits.options, 2).unwrap()
    }

    /// Simulated, with the plan's constants.
    fn simulated(&self, plan: &QuantPlan) -> Vec<Vec<f32>> {
        let weights = self
            .digits
            .source
            .with_fake_constants(plan)
            .unwrap()
            .objective(&self.plan, &self.inputs, &self.digits.options, 2)
            .unwrap();
        weights.outputs(&weights.assignment(plan)).unwrap()
    }

    fn damages(&self) -> Vec<Damage> {
        let float = self.float();
        damages(&mut Walk::new(&float, float.float()).unwrap(), &self.plan, &()).unwrap()
    }
}

fn noise(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    Distance::between(a, b).ratio()
}

fn emitted(b: &Bench, plan: &QuantPlan) -> Vec<Vec<f32>> {
    b.digits.emitted(plan, &b.inputs)
}

/// The simulation knows nothing of lowering, and lowering nothing of it.
#[test]
fn a_simulated_plan_computes_what_the_lowered_model_does() {
    // Few codes make the noise large against what rounding leaves undecided.
    let few = config::load::parse("few", "default: {bit_type: {bits: 5}}\nattn_layer: {intSoft: {bit_type: {bits: 8}}}").unwrap();
    let b = Bench::new(&few, Target::Integer);
    let emitted = emitted(&b, &b.plan);
    let float = b.float();
    let reference = float.outputs(&float.float()).unwrap();
    let (whole, apart) = (noise(&reference, &emitted), noise(&emitted, &b.simulated(&b.plan)));
    // A site that were forgotten, or had other codes, would make them as far apart as each is from the float model, or farther.
    assert!(apart < whole / 2.0, "{apart} of {whole}");
}

#[test]
fn a_site_alone_is_simulated_as_it_is_emitted() {
    let b = Bench::int8(Target::OnnxRuntime);
    for site in &b.plan.sites {
        let alone = QuantPlan { sites: vec![site.clone()], ..b.plan.clone() };
        let off = noise(&emitted(&b, &alone), &b.simulated(&alone));
        // Beyond the one row that the emitted model computes in its last block, whose floats are summed in another order: no bit.
        assert!(off < 1e-13, "{}: {off}", site.name);
    }
}

#[test]
fn what_comes_behind_a_cut_can_be_run_alone() {
    let b = Bench::int8(Target::Integer);
    let float = b.float();
    let all = float.assignment(&b.plan);
    let whole = float.outputs(&all).unwrap();
    // Before everything, and at least between the blocks' halves.
    assert!(float.cuts() > 8, "{}", float.cuts());
    let mut prefix = float.prefix(&all, 0).unwrap();
    for cut in 0..float.cuts() {
        prefix = float.advance(&prefix, &all, cut).unwrap();
        let apart = float.distance_from(&prefix, &all, &whole, f64::INFINITY).unwrap();
        assert_eq!(apart.map(|d| d.noise), Some(0.0), "cut {cut}");
    }
    let late = float.cut_before("blocks.3.mlp_act");
    assert!(late > float.cut_before("blocks.0.norm1"));
    let prefix = float.prefix(&all, late).unwrap();
    let mut other = all.clone();
    float.set(&mut other, "blocks.3.mlp_act", None);
    let apart = |reference: &[Vec<f32>]| float.distance_from(&prefix, &other, reference, f64::INFINITY).unwrap().unwrap().noise;
    assert!(apart(&whole) > 0.0 && apart(&float.outputs(&other).unwrap()) == 0.0);
    // The first sample says already that it is more than nothing: the last ones are not run.
    assert_eq!(float.distance_from(&prefix, &other, &whole, 0.0).unwrap(), None);
}

#[test]
fn noise_is_told_only_below_its_bound() {
    let b = Bench::int8(Target::Integer);
    for threads in [1, 3] {
        let source = &b.digits.source;
        let float = source.objective(&b.plan, &b.inputs, &b.digits.options, threads).unwrap();
        let mut walk = Walk::new(&float, float.float()).unwrap();
        for site in b.plan.sites.iter().filter(|s| s.rounds()).step_by(5) {
            let codes = [(site.name.as_str(), Some(&site.scheme))];
            let noise = walk.noise_of(&codes).unwrap();
            for (bound, told) in [(noise * (1.0 + 1e-12), true), (noise, false), (noise / 2.0, false), (0.0, false)] {
                let found = walk.noise_below(&codes, bound).unwrap();
                assert_eq!(found, told.then_some(noise), "{}: {noise} below {bound}", site.name);
            }
        }
    }
}

#[test]
fn a_site_does_the_same_damage_whichever_was_measured_before_it() {
    let b = Bench::int8(Target::Integer);
    let float = b.float();
    let mut walk = Walk::new(&float, float.float()).unwrap();
    let found = b.damages();
    for damage in [found.last().unwrap(), &found[0], &found[found.len() / 2]] {
        assert_eq!(walk.damage(&damage.site, &b.plan.site(&damage.site).unwrap().scheme).unwrap(), damage.noise);
    }
}

/// What no search changes is measured at once; what it may change, one by one, and is the same.
#[test]
fn sites_without_a_range_to_change_are_measured_together() {
    // As many samples as a class token wants.
    let digits = Digits::new(64);
    let mut plan = digits.plan(&config::preset("int8").unwrap().unwrap(), Target::Integer);
    let segments = Segments { bits: 8, breakpoint: 64, shift: 4 };
    for site in plan.sites.iter_mut().filter(|s| s.name.ends_with(".residual1")) {
        let mut grid = Box::new(site.scheme.clone());
        if let Scheme::Ptf { codes, scale, zero_point, .. } = &mut *grid {
            (codes.bits, *scale, *zero_point) = (segments.level_bits(), *scale / 8.0, zero_point.map(|z| z * 8));
            site.scheme = Scheme::Piecewise { grid, segments };
        }
    }
    let b = Bench { inputs: digits.inputs(4), digits, plan };
    let all = b.damages();
    let float = b.float();
    let (searched, rest) = damages_to_refine(&mut Walk::new(&float, float.float()).unwrap(), &b.plan, &()).unwrap();
    let (mut classes, mut segments, mut sum) = (0, 0, 0.0);
    for damage in &all {
        let site = b.plan.site(&damage.site).unwrap();
        let (class, in_segments) = (site.site.rows.is_some(), matches!(site.scheme, Scheme::Piecewise { .. }));
        assert_eq!(searched.contains(damage), !class && !in_segments, "{}", damage.site);
        (classes, segments) = (classes + usize::from(class), segments + usize::from(in_segments));
        sum += if class || in_segments { damage.noise } else { 0.0 };
    }
    assert!(classes > 4 && segments > 1 && searched.len() + classes + segments == all.len());
    assert!((0.5..2.0).contains(&(rest / sum)), "{rest} for {sum}");
}

/// What the search rests on.
#[test]
fn the_damage_of_all_sites_is_nearly_the_sum_of_each() {
    let b = Bench::int8(Target::Integer);
    let found = b.damages();
    // Of the last block's sums nothing but the class token's row is computed, which is another site.
    let measured = |s: &&SitePlan| found.iter().any(|d| d.site == s.name);
    let without: Vec<&str> = b.plan.sites.iter().filter(|s| s.rounds() && !measured(s)).map(|s| s.name.as_str()).collect();
    assert_eq!(without, ["blocks.3.residual1", "blocks.3.residual2"]);
    let sum: f64 = found.iter().map(|d| d.noise).sum();
    let float = b.float();
    let reference = float.outputs(&float.float()).unwrap();
    let joint = noise(&reference, &float.outputs(&float.assignment(&b.plan)).unwrap());
    assert!((joint / 3.0..joint * 3.0).contains(&sum), "{sum} for {joint}");
}

#[test]
fn a_range_that_is_far_too_wide_is_found_and_corrected() {
    let mut b = Bench::int8(Target::Integer);
    let name = "blocks.2.sv_attn";
    let site = b.plan.sites.iter_mut().find(|s| s.name == name).unwrap();
    let Scheme::Affine { scale, .. } = &mut site.scheme else { panic!("{:?}", site.scheme) };
    let right = *scale;
    *scale *= 60.0;
    site.observed = site.observed.map(|x| x * 60.0);
    let found = b.damages();
    let worst = found.iter().max_by(|a, b| a.noise.total_cmp(&b.noise)).unwrap();
    assert_eq!(worst.site, name);
    let float = b.float();
    let mut walk = Walk::new(&float, float.float()).unwrap();
    let all: f64 = found.iter().map(|d| d.noise).sum();
    let changes = refine(&mut walk, &mut b.plan, &found, 0.005 * all, &()).unwrap();
    let change = changes.iter().find(|c| c.site == name).unwrap();
    assert!(change.after < change.before / 16.0, "{change:?}");
    let site = b.plan.site(name).unwrap();
    let Scheme::Affine { scale, .. } = site.scheme else { panic!("{:?}", site.scheme) };
    assert!((0.3..3.0).contains(&(scale / right)), "{scale} for {right}");
    assert!(site.search.as_ref().unwrap().contains("less of its damage"));
}

#[test]
fn wider_codes_mean_the_same_more_finely() {
    let b = Bench::int8(Target::Integer);
    for site in b.plan.sites.iter().filter(|s| s.rounds()) {
        let Some(wide) = with_bits(&site.scheme, 16) else {
            assert!(matches!(site.scheme, Scheme::Log2 { .. }), "{}", site.name);
            continue;
        };
        let [narrow, wide] = [&site.scheme, &wide].map(|s| FakeQuant::of(s).unwrap());
        let channels = 64;
        let [lo, hi] = site.observed;
        let values: Vec<f32> = (0..64 * 256).map(|i| lo + (hi - lo) * (i as f32 * 0.618_034).fract()).collect();
        let error = |fake: &FakeQuant| -> f64 {
            let mut out = values.clone();
            fake.apply(&mut out, channels);
            out.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        // Where a channel is clipped, it is clipped as before.
        assert!(error(&wide) <= error(&narrow) * 1.01, "{}: {} and {}", site.name, error(&wide), error(&narrow));
    }
}

#[test]
fn widening_reaches_what_it_predicts() {
    // On this small model the softmax, which has no other width, does nearly all of the damage: without it.
    let yaml = "attn_layer: {kv_act: {float: true}, intSoft: {float: true}}";
    let b = Bench::new(&config::load::parse("float.yaml", yaml).unwrap(), Target::Integer);
    let mut plan = b.plan.clone();
    let float = b.float();
    let reference = float.outputs(&float.float()).unwrap();
    let before = -10.0 * noise(&reference, &b.simulated(&plan)).log10();
    let damages = b.damages();
    let goal = damages.iter().map(|d| d.noise).sum::<f64>() * 10f64.powf(-0.2);
    let cost = Cost::of(&b.digits.source.model.graph, &b.digits.source.vit.sites);
    let (widened, left) = widen(&mut plan, &damages, 0.0, &cost, 16, Goal { noise: goal, cost: f64::INFINITY });
    assert!(left <= goal, "{left} {goal}");
    assert!(!widened.is_empty() && widened.len() < damages.len() / 2, "{}", widened.len());
    assert!(widened.windows(2).all(|pair| pair[0].share >= pair[1].share), "those that do most come first");
    let after = -10.0 * noise(&reference, &b.simulated(&plan)).log10();
    assert!(after > before + 0.8, "{before} dB, then {after} dB for 2 dB more");
    for site in plan.sites.iter().filter(|s| s.scheme.bits() == 16) {
        assert!(site.search.as_ref().unwrap().starts_with("16 bits"), "{:?}", site.search);
    }
}

#[test]
fn widening_keeps_within_what_it_may_cost() {
    let b = Bench::int8(Target::Integer);
    let cost = Cost::of(&b.digits.source.model.graph, &b.digits.source.vit.sites);
    let damages = b.damages();
    let before = cost.mac_bits(&bits_of(&b.plan));
    let mut fewer = 0;
    for times in [1.0, 1.2, 4.0] {
        let mut plan = b.plan.clone();
        let (widened, left) = widen(&mut plan, &damages, 0.0, &cost, 16, Goal { noise: 0.0, cost: times });
        let kept = damages.iter().filter(|d| !widened.iter().any(|w| w.site == d.site));
        let kept: f64 = kept.map(|d| d.noise).sum();
        assert!((left - kept).abs() <= 1e-9 * kept, "{left} {kept}");
        let after = cost.mac_bits(&bits_of(&plan));
        assert!(after as f64 <= before as f64 * times, "{times}: {before} {after}");
        // What no product multiplies costs nothing here.
        assert!(widened.iter().any(|w| w.site.ends_with("residual1")) && widened.len() > fewer, "{times}: {}", widened.len());
        for site in plan.sites.iter().filter(|s| s.scheme.bits() == 16) {
            assert!(!site.name.ends_with("kv_act") && !site.name.ends_with("intSoft"), "{}", site.name);
        }
        fewer = widened.len();
    }
}

#[test]
fn a_site_on_top_of_the_others_is_what_goes_without_it() {
    let b = Bench::int8(Target::Integer);
    let float = b.float();
    let reference = float.outputs(&float.float()).unwrap();
    let codes = float.assignment(&b.plan);
    let mut walk = Walk::toward(&float, codes.clone(), reference.clone()).unwrap();
    for site in ["blocks.0.residual1", "blocks.3.mlp_act"] {
        let mut without = codes.clone();
        float.set(&mut without, site, None);
        let want = Distance::between(&reference, &float.outputs(&without).unwrap()).ratio();
        assert_eq!(walk.noise(site, None).unwrap(), want, "{site}");
    }
}

#[test]
fn float_is_given_where_it_helps_most_within_its_share() {
    let b = Bench::int8(Target::OnnxRuntime);
    let cost = Cost::of(&b.digits.source.model.graph, &b.digits.source.vit.sites);
    // 4 blocks of 4 Linears (q, k and v apart), two products of attention, the patches and the head.
    assert_eq!(cost.products.len(), 4 * 8 + 2);
    let found = b.damages();
    for (share, some) in [(0.0, false), (0.1, true)] {
        let mut plan = b.plan.clone();
        let left = leave_in_float(&mut plan, &found, &cost, share, 0.01, 90.0);
        assert_eq!(!left.is_empty(), some, "{share}");
        let float: u64 =
            cost.products.iter().filter(|p| p.operands.iter().any(|o| left.iter().any(|w| w.site == *o))).map(|p| p.macs).sum();
        assert!(float as f64 <= share * cost.macs() as f64, "{float} of {}", cost.macs());
        assert!(leave_in_float(&mut b.plan.clone(), &found, &cost, share, 0.01, 10.0).is_empty(), "integers are good enough");
        let (lowered, report) = pipeline::lower(&b.digits.source, &plan).unwrap();
        assert!(report.pairs > 0 && !lowered.graph.is_empty());
    }
}

#[test]
fn levels_are_chosen_on_the_values_whatever_the_threads() {
    let config = config::preset("w4a4").unwrap().unwrap();
    let b = Bench::new(&config, Target::Integer);
    let refit = |threads| {
        let mut plan = b.plan.clone();
        let (source, options, inputs) = (&b.digits.source, &b.digits.options, &b.inputs[..]);
        let progress = &|_: &'static str| Box::new(()) as Box<dyn vitq::calib::Progress>;
        pipeline::Adjust { source, config: &config, options, inputs, threads, progress }.choose_levels(&mut plan).unwrap();
        plan
    };
    let plan = refit(1);
    assert_eq!(plan, refit(2));
    let levels = |s: &SitePlan| matches!(s.scheme, Scheme::Codebook { .. });
    assert_eq!(plan.sites.iter().filter(|s| levels(s)).count(), b.plan.sites.iter().filter(|s| levels(s)).count());
    assert!(plan.sites.iter().zip(&b.plan.sites).all(|(a, b)| levels(a) || a == b), "other sites stay as they are");
    assert!(plan.sites.iter().zip(&b.plan.sites).any(|(a, b)| a != b));
    // As far from the float model as before, on a model that has nothing to gain.
    let float = b.float();
    let reference = float.outputs(&float.float()).unwrap();
    let [before, after] = [&b.plan, &plan].map(|p| noise(&reference, &float.outputs(&float.assignment(p)).unwrap()));
    assert!(after < 1.5 * before, "{before} {after}");
}
