//! Residual sums in codes of two segments: small steps in the middle, large ones beyond.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use common::digits::Digits;
use vitq::calib::piecewise::Segments;
use vitq::config;
use vitq::ir::Model;
use vitq::ir::text::{PrintOptions, print_model};
use vitq::lower::lower;
use vitq::quant::{Codes, QuantPlan, Scheme, SitePlan, Target, ZeroPoint};
use vitq::tune::objective::Distance;

const SEGMENTS: Segments = Segments { bits: 8, breakpoint: 64, shift: 2 };

/// A sum's codes in two segments that reach as far.
fn in_segments(site: &mut SitePlan) {
    let Scheme::Ptf { scale, zero_point, factors, .. } = &site.scheme else { panic!("{:?}", site.scheme) };
    let finer = 128.0 / SEGMENTS.level(SEGMENTS.top()) as f32;
    let zero_point =
        ZeroPoint::of_channels(zero_point.as_slice().iter().map(|&z| ((z as f32 + 0.5) / finer).round() as i32).collect());
    let codes = Codes { bits: SEGMENTS.level_bits(), signed: true };
    let grid = Scheme::Ptf { codes, scale: scale * finer, zero_point, factors: factors.clone() };
    site.scheme = Scheme::Piecewise { grid: Box::new(grid), segments: SEGMENTS };
}

fn with_segments(names: &[&str]) -> (Model, QuantPlan) {
    let (model, mut plan) = planned(&variant("default: {ptf_piecewise: false}"), Target::Integer);
    names.iter().for_each(|name| in_segments(site(&mut plan, name)));
    (model, plan)
}

#[test]
fn codes_of_eight_bits_stand_in_the_graph_and_levels_behind_them() {
    let (mut model, plan) = with_segments(&["embed"]);
    let report = lower(&mut model, &plan).unwrap();
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let text = print_model(&Model { functions: Vec::new(), ..model.clone() }, &PrintOptions::snapshot());
    let lines = text.lines().filter(|l| l.contains("x_rest_") && !l.contains("_class"));
    snapshot("piecewise", &lines.map(|l| format!("{}\n", l.trim_end())).collect::<String>());
    // 16-bit integers need it.
    assert_eq!(model.opset(""), Some(21));
    // The norm behind reads the levels: nothing of it is left in float.
    let counts = ops(&model);
    assert_eq!((counts.get("ai.vitq.PtfLayerNorm"), counts.get("ai.vitq.Lut")), (Some(&4), Some(&2)), "{counts:?}");
    let (mut even_model, even_plan) = with_segments(&[]);
    lower(&mut even_model, &even_plan).unwrap();
    assert!(sqnr(&model) > sqnr(&even_model) - 6.0, "{} and {}", sqnr(&model), sqnr(&even_model));
}

/// Each alone, everything else in float: the graph does to a sum what the simulation does.
#[test]
fn what_is_simulated_is_what_is_emitted() {
    let digits = Digits::new(64);
    let plan = digits.plan(&config::preset("int8").unwrap().unwrap(), Target::Integer);
    let inputs = digits.inputs(4);
    let in_segments: Vec<&SitePlan> = plan.sites.iter().filter(|s| matches!(s.scheme, Scheme::Piecewise { .. })).collect();
    assert!(!in_segments.is_empty(), "a trained model's sums have tails");
    for site in in_segments {
        assert!(site.site.rows.is_none() && site.scheme.bits() == 8, "{}", site.name);
        let alone = QuantPlan { sites: vec![site.clone()], ..plan.clone() };
        let objective = digits.source.objective(&alone, &inputs, &digits.options, 1).unwrap();
        let float = objective.outputs(&objective.float()).unwrap();
        let simulated = objective.outputs(&objective.assignment(&alone)).unwrap();
        let emitted = digits.emitted(&alone, &inputs);
        let (noise, off) = (Distance::between(&float, &emitted).ratio(), Distance::between(&emitted, &simulated).ratio());
        assert!(noise > 1e-9 && off < 1e-5 * noise, "{}: {off} of {noise}", site.name);
    }
}

/// Of all sums, and of no other site; where the configuration and the target say so.
#[test]
fn the_configuration_and_the_target_decide() {
    let digits = Digits::new(64);
    let of = |yaml: &str, target: Target| {
        let plan = digits.plan(&variant(yaml), target);
        let sites = plan.sites.iter().filter(|s| matches!(s.scheme, Scheme::Piecewise { .. }));
        let sums = sites.map(|s| matches!(s.site.site.name(), "embed" | "residual1" | "residual2")).collect::<Vec<_>>();
        assert!(sums.iter().all(|sum| *sum), "{yaml}");
        sums.len()
    };
    let all = of("", Target::Integer);
    assert!(all > 1);
    assert_eq!(of("", Target::OnnxRuntime), 0);
    for off in [
        "default: {ptf_piecewise: false}",
        "default: {bit_type: {bits: 16}}",
        "residual_layer: {default: {quantization_method: Uniform}}\nextra_layer: {embed: {quantization_method: Uniform}}",
        "residual_layer: {default: {calibration_mode: layer_wise}}\nextra_layer: {embed: {calibration_mode: layer_wise}}",
    ] {
        assert_eq!(of(off, Target::Integer), 0, "{off}");
    }
    let without = of("residual_layer: {residual1: {ptf_piecewise: false}}", Target::Integer);
    assert!(0 < without && without < all, "{without} of {all}");
}

/// What cannot be is said where it was asked for.
#[test]
fn what_segments_need_is_said() {
    let digits = Digits::new(64);
    let notes = |yaml: &str| {
        let plan =
            digits.plan(&variant(&format!("residual_layer: {{residual1: {{ptf_piecewise: true, {yaml}}}}}")), Target::Integer);
        let site = plan.sites.iter().find(|s| s.name == "blocks.0.residual1").unwrap();
        assert!(!matches!(site.scheme, Scheme::Piecewise { .. }), "{yaml}");
        site.note.clone().unwrap()
    };
    for (yaml, needed) in [
        ("bit_type: {bits: 16}", "8 bits or fewer"),
        ("bit_type: {signed: false}", "signed codes"),
        ("calibration_mode: layer_wise", "channel_wise"),
        ("observer_type: PercentileObserver", "MinmaxObserver, OmseObserver"),
    ] {
        let note = notes(yaml);
        assert!(note.contains("not in two segments") && note.contains(needed), "{note}");
    }
}

/// The graph of any width does what the simulation does, here of values that the codes cut off as well.
#[test]
fn every_width_is_emitted_as_simulated() {
    let digits = Digits::new(64);
    let plan = digits.plan(&config::preset("int8").unwrap().unwrap(), Target::Integer);
    let inputs = digits.inputs(2);
    let of = |s: &&SitePlan| matches!(s.scheme, Scheme::Piecewise { .. });
    let found = plan.sites.iter().find(of).unwrap();
    for bits in 4..=8u8 {
        let mut site = found.clone();
        let Scheme::Piecewise { grid, segments } = &mut site.scheme else { panic!() };
        let Scheme::Ptf { codes, zero_point, .. } = &mut **grid else { panic!() };
        let less = 8 - bits;
        codes.bits -= less;
        *zero_point = zero_point.map(|z| z >> less);
        *segments = Segments { bits, breakpoint: (segments.breakpoint >> less).max(1), ..*segments };
        let alone = QuantPlan { sites: vec![site], ..plan.clone() };
        let objective = digits.source.objective(&alone, &inputs, &digits.options, 1).unwrap();
        let float = objective.outputs(&objective.float()).unwrap();
        let simulated = objective.outputs(&objective.assignment(&alone)).unwrap();
        let emitted = digits.emitted(&alone, &inputs);
        let (noise, off) = (Distance::between(&float, &emitted).ratio(), Distance::between(&emitted, &simulated).ratio());
        assert!(noise > 1e-9 && off < 1e-5 * noise, "{bits} bits: {off} of {noise}");
    }
}

/// No custom op, no table: a plan for another target cannot be changed to `onnxruntime` by its name.
#[test]
fn a_target_without_tables_refuses_segments() {
    let (mut model, mut plan) = with_segments(&["embed"]);
    plan.target = Target::OnnxRuntime;
    let error = lower(&mut model, &plan).unwrap_err().to_string();
    assert!(error.contains("embed") && error.contains("onnxruntime has no operator for a table of codes"), "{error}");
}

#[test]
fn segments_that_are_none_are_refused() {
    type Edit = fn(&mut Scheme);
    let refused = |edit: Edit| {
        let (mut model, mut plan) = with_segments(&["embed"]);
        edit(&mut site(&mut plan, "embed").scheme);
        lower(&mut model, &plan).unwrap_err().to_string()
    };
    fn parts(scheme: &mut Scheme) -> (&mut Scheme, &mut Segments) {
        let Scheme::Piecewise { grid, segments } = scheme else { panic!() };
        (grid, segments)
    }
    let cases: [Edit; 11] = [
        |s| parts(s).1.breakpoint = 0,
        |s| parts(s).1.breakpoint = 200,
        |s| parts(s).1.shift = 5,
        |s| parts(s).1.bits = 9,
        |s| *parts(s).1 = Segments { bits: 6, breakpoint: 8, shift: 2 },
        |s| {
            let (Scheme::Ptf { codes, .. }, _) = parts(s) else { panic!() };
            codes.signed = false;
        },
        |s| *parts(s).0 = Scheme::Weight { bits: 8, axis: None, scales: vec![1.0] },
        |s| *parts(s).0 = Scheme::Accumulator,
        |s| *parts(s).0 = Scheme::Log2 { bits: 8, fraction_bits: 3, scale: 1.0, normalized: false },
        |s| *parts(s).0 = Scheme::Codebook { grid: Box::new(Scheme::Accumulator), levels: vec![0, 1] },
        |s| {
            let (Scheme::Ptf { zero_point, .. }, _) = parts(s) else { panic!() };
            *zero_point = ZeroPoint::Tensor(3000);
        },
    ];
    insta::with_settings!({ snapshot_path => "../snapshots/lower", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("piecewise_refused", cases.map(refused).join("\n"));
    });
}
