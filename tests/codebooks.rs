//! Codebooks: few levels on a grid of 8-bit codes, from the plan to what a runtime computes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::ir::Model;
use vitq::ir::text::{PrintOptions, print_model};
use vitq::lower::lower;
use vitq::quant::{QuantPlan, Scheme, Target};
use vitq::runtime::tract::{Engine, EngineOptions};

/// The sites of the preset that have levels, and the values that carry them in the block.
const SITES: [(&str, &str); 5] = [
    ("blocks.0.norm1", "n1"),
    ("blocks.0.attn_qkv_output.v", "v"),
    ("blocks.0.sv_attn", "attn"),
    ("blocks.0.norm2", "n2"),
    ("blocks.0.mlp_act", "act"),
];

fn values(model: &Model, name: &str) -> (usize, Vec<f32>) {
    let engine = Engine::new(model, &[name.to_owned()], &EngineOptions::default()).unwrap();
    let mut session = engine.session().unwrap();
    let (mut channels, mut all) = (0, Vec::new());
    for i in 0..16 {
        let mut see = |_: usize, shape: &[usize], x: &[f32]| {
            channels = *shape.last().unwrap();
            all.extend_from_slice(x);
        };
        session.run(&[("image", Images::image(i).view())], &mut see).unwrap();
    }
    (channels, all)
}

/// Scale and zero point of a channel.
fn meaning(grid: &Scheme, channel: usize) -> (f32, i32) {
    match grid {
        Scheme::Affine { scale, zero_point, .. } => (*scale, *zero_point),
        Scheme::Ptf { scale, zero_point, factors, .. } => {
            let zeros = zero_point.as_slice();
            (factors.scales(*scale).unwrap()[channel], *zeros.get(channel).unwrap_or(&zeros[0]))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_runtime_computes_are_levels_of_the_plan() {
    let (model, plan, report) = lowered(&preset("w4a4"), Target::Integer);
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    for (name, value) in SITES {
        let site = plan.site(name).unwrap();
        let Scheme::Codebook { grid, levels } = &site.scheme else { panic!("{name}: {:?}", site.scheme) };
        assert!((2..=16).contains(&levels.len()) && site.scheme.bits() <= 4, "{name}: {levels:?}");
        let value = site.site.values.iter().find(|v| *v == value).unwrap_or(&site.site.values[0]);
        // What the codes of an integer op mean has the float value's name.
        let dequantised = format!("{value}_dequantized");
        let known = model.graph.value(&dequantised).is_some();
        let (channels, seen) = values(&model, if known { &dequantised } else { value });
        assert!(!seen.is_empty());
        for (i, x) in seen.into_iter().enumerate() {
            let (scale, zero) = meaning(grid, i % channels);
            let code = f64::from(x / scale) + f64::from(zero);
            let level = code.round() as i32;
            assert!((code - f64::from(level)).abs() < 1e-3 && levels.contains(&level), "{name} {i}: {x} is code {code}");
        }
    }
    let found = sqnr(&model);
    assert!(found > 6.0, "{found} dB");
}

#[test]
fn the_table_of_gelu_holds_levels_and_others_go_through_one() {
    let (model, ..) = lowered(&preset("w4a4"), Target::Integer);
    let text = print_model(&Model { functions: Vec::new(), ..model.clone() }, &PrintOptions::snapshot());
    let lines = text.lines().filter(|l| ["n2_level", "n2_codes", "act_codes", "act_level"].iter().any(|w| l.contains(w)));
    snapshot("codebook", &lines.map(|l| format!("{}\n", l.trim_end())).collect::<String>());
    let counts = ops(&model);
    assert_eq!((counts.get("ai.vitq.LutGelu"), counts.get("ai.vitq.PtfLayerNorm")), (Some(&1), Some(&4)), "{counts:?}");
    assert!(counts.get("ai.vitq.Lut").is_some_and(|&n| n >= 6), "{counts:?}");
}

#[test]
fn a_norms_levels_are_about_its_channels_means() {
    let (_, plan) = planned(&preset("w4a4"), Target::Integer);
    let Scheme::Codebook { grid, .. } = &plan.site("blocks.0.norm2").unwrap().scheme else { panic!() };
    assert!(matches!(**grid, Scheme::Ptf { .. }), "{grid:?}");
    let (model, _) = tiny();
    let (channels, seen) = values(&model, "n2");
    for c in 0..channels {
        let own: Vec<f64> = seen.iter().skip(c).step_by(channels).map(|&x| f64::from(x)).collect();
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        let spread = (own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / own.len() as f64).sqrt();
        let (scale, zero) = meaning(grid, c);
        // The middle of the codes is the mean, as far as the histogram's bins and one step tell.
        let middle = f64::from(scale) * f64::from(-zero);
        assert!((middle - mean).abs() < 0.2 * spread + f64::from(scale), "{c}: {middle} for {mean}, spread {spread}");
    }
}

#[test]
fn a_target_without_tables_has_uniform_codes_and_says_so() {
    let (_, plan) = planned(&preset("w4a4"), Target::OnnxRuntime);
    let site = plan.site("blocks.0.norm2").unwrap();
    assert!(matches!(site.scheme, Scheme::Affine { .. }), "{:?}", site.scheme);
    assert!(site.note.as_ref().unwrap().contains("not a codebook"), "{:?}", site.note);
}

#[test]
fn codebooks_that_are_none_are_refused() {
    type Edit = fn(&mut Box<Scheme>, &mut Vec<i32>);
    let refused = |edit: Edit| {
        let (mut model, mut plan) = planned(&preset("w4a4"), Target::Integer);
        let Scheme::Codebook { grid, levels } = &mut site(&mut plan, "blocks.0.sv_attn").scheme else { panic!() };
        edit(grid, levels);
        lower(&mut model, &plan).unwrap_err().to_string()
    };
    let cases: [(Edit, &str); 5] = [
        (|_, l| l.truncate(1), "2 to 128 levels"),
        (|_, l| l.extend(-128..128), "2 to 128 levels"),
        (|_, l| l[0] = 300, "from -128 to 127"),
        (|g, _| **g = Scheme::Weight { bits: 8, axis: None, scales: vec![1.0] }, "'affine' or 'ptf'"),
        (|g, l| **g = Scheme::Codebook { grid: g.clone(), levels: l.clone() }, "'affine' or 'ptf'"),
    ];
    for (edit, what) in cases {
        let error = refused(edit);
        assert!(error.contains(what) && error.contains("blocks.0.sv_attn"), "{error}");
    }
}

/// The block's `mlp_fc1` with levels, as YAML.
const WEIGHTS: &str = "layers: {mlp_fc1: {bit_type: {bits: 4}, quantization_method: Codebook}}";

#[test]
fn weights_have_levels_on_any_target() {
    let (float, _) = tiny();
    let constant = |model: &Model, name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap().clone();
    let w: Vec<f64> = constant(&float, "fc1_w").to_f32().unwrap().into_iter().map(f64::from).collect();
    // The squared error of codes on scales, one for each of 8 output channels.
    let error = |model: &Model, scales: &[f32]| -> f64 {
        let codes = constant(model, "fc1_w_quantized").to_i64().unwrap();
        w.iter().zip(&codes).enumerate().map(|(i, (w, q))| (w - f64::from(scales[i % 8]) * *q as f64).powi(2)).sum()
    };
    for target in [Target::Integer, Target::OnnxRuntime] {
        let (model, plan, _) = lowered(&variant(WEIGHTS), target);
        let scheme = &plan.site("blocks.0.mlp_fc1").unwrap().scheme;
        let Scheme::Codebook { grid, levels } = scheme else { panic!("{scheme:?}") };
        let Scheme::Weight { bits: 8, axis: Some(1), scales } = &**grid else { panic!("{grid:?}") };
        assert!(levels.len() <= 16 && levels.is_sorted() && scheme.bits() == 4, "{levels:?}");
        let codes = constant(&model, "fc1_w_quantized").to_i64().unwrap();
        assert!(codes.iter().all(|q| levels.iter().any(|l| i64::from(*l) == *q)), "{codes:?} {levels:?}");
        // Each weight has the level next to it, but for the grid's own rounding.
        for (i, (w, q)) in w.iter().zip(&codes).enumerate() {
            let x = w / f64::from(scales[i % 8]);
            let least = levels.iter().map(|l| (f64::from(*l) - x).abs()).fold(f64::INFINITY, f64::min);
            assert!((*q as f64 - x).abs() <= least + 1.0, "{i}: {x} has code {q}");
        }
        let (uniform, plan, _) = lowered(&variant("layers: {mlp_fc1: {bit_type: {bits: 4}}}"), target);
        let Scheme::Weight { bits: 4, scales: even, .. } = &plan.site("blocks.0.mlp_fc1").unwrap().scheme else { panic!() };
        let (levels, even) = (error(&model, scales), error(&uniform, even));
        assert!(levels < 0.9 * even, "{levels} {even}");
    }
    // With 8 bits there is nothing to choose.
    let (_, plan) = planned(&variant("layers: {mlp_fc1: {quantization_method: Codebook}}"), Target::Integer);
    assert!(matches!(plan.site("blocks.0.mlp_fc1").unwrap().scheme, Scheme::Weight { bits: 8, .. }));
}

#[test]
fn levels_that_are_none_are_refused_for_weights() {
    type Edit = fn(&mut Box<Scheme>, &mut Vec<i32>);
    let cases: [(Edit, &str); 5] = [
        (|_, l| l.truncate(1), "2 to 128 levels"),
        (|_, l| l[0] = -128, "from -127 to 127"),
        (|_, l| l[0] = i32::MIN, "from -127 to 127"),
        (
            |g, _| {
                if let Scheme::Weight { bits, .. } = &mut **g {
                    *bits = 4
                }
            },
            "'codebook' on a 'weight' grid of 8 bits",
        ),
        (
            |g, _| **g = Scheme::Log2 { bits: 8, fraction_bits: 3, scale: 1.0, normalized: false },
            "a constant's scheme is 'weight'",
        ),
    ];
    for (edit, what) in cases {
        let (mut model, mut plan) = planned(&variant(WEIGHTS), Target::Integer);
        let Scheme::Codebook { grid, levels } = &mut site(&mut plan, "blocks.0.mlp_fc1").scheme else { panic!() };
        edit(grid, levels);
        let error = lower(&mut model, &plan).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("blocks.0.mlp_fc1"), "{error}");
    }
}

#[test]
fn a_plan_with_levels_is_read_as_it_was_written() {
    let (_, plan) = planned(&preset("w4a4"), Target::Integer);
    let text = plan.to_text();
    assert!(text.contains("\"scheme\": \"codebook\""));
    assert_eq!(QuantPlan::from_text(&text, "x").unwrap(), plan);
}
