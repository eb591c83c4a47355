//! Weights of few bits whose groups have a factor, from the plan to what a runtime computes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::ir::text::{PrintOptions, print_model};
use vitq::ir::{Model, Tensor};
use vitq::lower::lower;
use vitq::quant::plan::Groups;
use vitq::quant::{QuantPlan, Scheme, Target};

/// The block's `mlp_fc2`, of 8 input and 4 output channels, in groups of 3, and the patch convolution, of 4 elements a filter, in groups of 2.
const GROUPS: &str =
    "{layers: {mlp_fc2: {bit_type: {bits: 4}, group_size: 3}}, extra_layer: {patch_embed: {bit_type: {bits: 5}, group_size: 2}}}";

fn constant(model: &Model, name: &str) -> Tensor {
    model.graph.constant(model.graph.value(name).unwrap()).unwrap().clone()
}

/// A site's groups, and the scale of each output channel.
fn parts<'p>(plan: &'p QuantPlan, site: &str) -> (Groups, &'p [f32]) {
    let Scheme::Groups { grid, groups } = &plan.site(site).unwrap().scheme else { panic!("{site}: {plan:?}") };
    let Scheme::Weight { bits: 8, scales, .. } = &**grid else { panic!("{grid:?}") };
    (*groups, scales)
}

/// Weights and products `f · q` of each group of a channel, where `place(channel, i)` is that of a channel's i-th element.
fn check(w: &[f32], products: &[i64], groups: Groups, scales: &[f32], of_channel: usize, place: impl Fn(usize, usize) -> usize) {
    let top = i64::from(groups.top());
    for (c, &scale) in scales.iter().enumerate() {
        let places: Vec<usize> = (0..of_channel).map(|i| place(c, i)).collect();
        for group in places.chunks(groups.size) {
            let error = |code: &dyn Fn(f64) -> f64| -> f64 {
                group.iter().map(|&at| f64::from(w[at]) / f64::from(scale)).map(|x| (x - code(x)).powi(2)).sum()
            };
            let found: f64 = group.iter().map(|&at| (f64::from(w[at]) / f64::from(scale) - products[at] as f64).powi(2)).sum();
            let possible = |f: i64| group.iter().all(|&at| products[at] % f == 0 && (products[at] / f).abs() <= top);
            assert!((1..=groups.largest_factor().into()).any(possible), "{c} {group:?}: {products:?}");
            for f in (1..=groups.largest_factor()).map(f64::from) {
                let least = error(&|x| (x / f).round_ties_even().clamp(-top as f64, top as f64) * f);
                assert!(found <= least + 1e-6, "{c} {group:?} factor {f}: {found} {least}");
            }
        }
    }
}

#[test]
fn every_group_has_the_factor_that_serves_it_best() {
    let (float, _) = tiny();
    let floats = |name| constant(&float, name).to_f32().unwrap();
    for target in [Target::Integer, Target::OnnxRuntime] {
        let (model, plan, report) = lowered(&variant(GROUPS), target);
        assert!(report.notes.is_empty(), "{:?}", report.notes);
        let codes = |name| constant(&model, name).to_i64().unwrap();
        let (groups, scales) = parts(&plan, "blocks.0.mlp_fc2");
        assert_eq!(
            (groups, scales.len(), plan.site("blocks.0.mlp_fc2").unwrap().scheme.bits()),
            (Groups { bits: 4, size: 3 }, 4, 4)
        );
        check(&floats("fc2_w"), &codes("fc2_w_quantized"), groups, scales, 8, |c, i| i * 4 + c);
        let (groups, scales) = parts(&plan, "patch_embed.weight");
        assert_eq!((groups, scales.len()), (Groups { bits: 5, size: 2 }, 4));
        check(&floats("patch_w"), &codes("patch_w_quantized"), groups, scales, 4, |c, i| c * 4 + i);
    }
}

/// A runtime for 8-bit weights needs to know nothing of groups.
#[test]
fn the_graph_is_that_of_8_bit_weights() {
    let text = |yaml: &str| {
        let (model, ..) = lowered(&variant(yaml), Target::Integer);
        print_model(&Model { functions: Vec::new(), ..model }, &PrintOptions::snapshot())
    };
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|l| l.contains("fc2_w")).map(|l| format!("{}\n", l.trim_end())).collect()
    };
    let grouped = lines(&text(GROUPS));
    let (model, plan, _) = lowered(&variant(GROUPS), Target::Integer);
    snapshot("groups", &(grouped.concat() + &factors(&model, &plan)));
    // Of groups the file says which codes they are in.
    let notes = &model.header.metadata;
    let said = notes.iter().find(|(key, _)| key == "vitq.groups").map(|(_, value)| value.as_str());
    let wanted = r#"{"fc2_w_quantized":{"bits":4,"group_size":3},"patch_w_quantized":{"bits":5,"group_size":2}}"#;
    assert_eq!(said, Some(wanted));
    let operators = |lines: &[String]| lines.iter().filter(|l| l.contains(" = ") && l.contains('(')).cloned().collect::<Vec<_>>();
    assert_eq!(operators(&grouped), operators(&lines(&text("default: {bit_type: {bits: 8}}"))));
}

/// The model may have a value of the name that the codes would get.
#[test]
fn the_file_names_the_codes_as_they_are_named() {
    let (mut model, plan) = planned(&variant(GROUPS), Target::Integer);
    let text = print_model(&model, &PrintOptions::lossless()).replace("fc2_p", "fc2_w_quantized");
    assert!(text.contains("fc2_w_quantized"));
    model = vitq::ir::text::parse_model(&text).unwrap();
    lower(&mut model, &plan).unwrap();
    let said = model.header.metadata.iter().find(|(key, _)| key == "vitq.groups").map(|(_, value)| value.clone()).unwrap();
    let said: std::collections::BTreeMap<String, Groups> = serde_json::from_str(&said).unwrap();
    assert!(!said.contains_key("fc2_w_quantized"), "{said:?}");
    for name in said.keys() {
        assert_eq!(constant(&model, name).dtype, vitq::ir::DType::I8);
    }
}

/// Each output channel's groups of `fc2_w`, as the smallest factor that names all its products and what is left of them.
fn factors(model: &Model, plan: &QuantPlan) -> String {
    let products = constant(model, "fc2_w_quantized").to_i64().unwrap();
    let (groups, scales) = parts(plan, "blocks.0.mlp_fc2");
    let mut out = String::new();
    for c in 0..scales.len() {
        let of_channel: Vec<i64> = products.iter().skip(c).step_by(scales.len()).copied().collect();
        let text = of_channel.chunks(groups.size).map(|group| {
            let names = |f: &i64| group.iter().all(|p| p % f == 0 && (p / f).abs() <= i64::from(groups.top()));
            let f = (1..=16).find(names).unwrap();
            format!("{f} * {:?}", group.iter().map(|p| p / f).collect::<Vec<_>>())
        });
        out += &format!("channel {c}: {}\n", text.collect::<Vec<_>>().join(", "));
    }
    out
}

#[test]
fn a_factor_for_each_group_errs_less_than_one_scale() {
    let (float, _) = tiny();
    let w = constant(&float, "fc2_w").to_f32().unwrap();
    let error = |yaml: &str| -> f64 {
        let (model, plan, _) = lowered(&variant(yaml), Target::Integer);
        let mut scheme = &plan.site("blocks.0.mlp_fc2").unwrap().scheme;
        if let Scheme::Groups { grid, .. } = scheme {
            scheme = grid;
        }
        let Scheme::Weight { scales, .. } = scheme else { panic!("{scheme:?}") };
        let codes = constant(&model, "fc2_w_quantized").to_i64().unwrap();
        w.iter().zip(&codes).enumerate().map(|(i, (w, q))| (f64::from(*w) - f64::from(scales[i % 4]) * *q as f64).powi(2)).sum()
    };
    let (grouped, even) = (error(GROUPS), error("layers: {mlp_fc2: {bit_type: {bits: 4}}}"));
    assert!(grouped < 0.7 * even, "{grouped} {even}");
}

#[test]
fn near_misses_have_no_groups() {
    let scheme = |yaml: &str| planned(&variant(yaml), Target::Integer).1.site("blocks.0.mlp_fc2").unwrap().clone();
    let cases = [
        // 8 bits fill the product alone, and more do not fit.
        "bit_type: {bits: 8}",
        "bit_type: {bits: 12}",
        "bit_type: {bits: 4}, quantization_method: Codebook",
        "bit_type: {bits: 4}, calibration_mode: layer_wise",
    ];
    for case in cases {
        let site = scheme(&format!("layers: {{mlp_fc2: {{group_size: 8, {case}}}}}"));
        assert!(!matches!(site.scheme, Scheme::Groups { .. }), "{site:?}");
        assert!(site.note.as_ref().is_some_and(|n| n.contains("group_size is for channel_wise")), "{site:?}");
    }
    // What is said of all weights is not meant for those of 8 bits.
    let site = scheme("layers: {default: {group_size: 8}, mlp_fc1: {bit_type: {bits: 4}}}");
    assert!(matches!(site.scheme, Scheme::Weight { bits: 8, .. }) && site.note.is_none(), "{site:?}");
    assert!(matches!(scheme("layers: {mlp_fc2: {bit_type: {bits: 4}, group_size: 0}}").scheme, Scheme::Weight { bits: 4, .. }));
}

#[test]
fn groups_that_are_none_are_refused() {
    type Edit = fn(&mut Box<Scheme>, &mut Groups);
    let cases: [(Edit, &str); 8] = [
        (|_, g| g.bits = 3, "with 4 to 7 bits"),
        (|_, g| g.bits = 8, "with 4 to 7 bits"),
        (|_, g| g.size = 0, "a group_size of 2 or more"),
        (|_, g| g.size = 1, "a group_size of 2 or more"),
        (
            |w, _| {
                if let Scheme::Weight { bits, .. } = &mut **w {
                    *bits = 4
                }
            },
            "'groups' on such a grid",
        ),
        (
            |w, _| {
                if let Scheme::Weight { scales, .. } = &mut **w {
                    scales.truncate(2)
                }
            },
            "4 positive scales needed, found 2",
        ),
        (
            |w, _| {
                if let Scheme::Weight { axis, .. } = &mut **w {
                    *axis = None
                }
            },
            "on such a grid with an axis",
        ),
        (|w, g| **w = Scheme::Groups { grid: w.clone(), groups: *g }, "'groups' on such a grid"),
    ];
    for (edit, what) in cases {
        let (mut model, mut plan) = planned(&variant(GROUPS), Target::Integer);
        let Scheme::Groups { grid, groups } = &mut site(&mut plan, "blocks.0.mlp_fc2").scheme else { panic!() };
        edit(grid, groups);
        let error = lower(&mut model, &plan).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("blocks.0.mlp_fc2"), "{error}");
    }
    let (mut model, mut plan) = planned(&variant(GROUPS), Target::Integer);
    site(&mut plan, "blocks.0.norm2").scheme = plan.site("blocks.0.mlp_fc2").unwrap().scheme.clone();
    let error = lower(&mut model, &plan).unwrap_err().to_string();
    assert!(error.contains("'groups' are for constants") && error.contains("blocks.0.norm2"), "{error}");
}

#[test]
fn a_group_longer_than_a_channel_is_the_channel() {
    let codes = |size: usize| {
        let (mut model, mut plan) = planned(&variant(GROUPS), Target::Integer);
        let Scheme::Groups { groups, .. } = &mut site(&mut plan, "blocks.0.mlp_fc2").scheme else { panic!() };
        groups.size = size;
        lower(&mut model, &plan).unwrap();
        constant(&model, "fc2_w_quantized").to_i64().unwrap()
    };
    // A channel has 8 elements.
    assert_eq!((codes(9), codes(usize::MAX)), (codes(8), codes(8)));
    assert_ne!(codes(8), codes(7));
}
