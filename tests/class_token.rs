//! The class token's row of residual sums has codes of its own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use common::digits::Digits;
use ndarray::{ArrayD, Axis, concatenate};
use vitq::config;
use vitq::ir::text::{PrintOptions, parse_model, print_model};
use vitq::ir::{Edit, Model};
use vitq::lower::{lower, prepare};
use vitq::quant::{QuantPlan, Scheme, Target, make_plan};
use vitq::tune::objective::Distance;
use vitq::vit::{SiteRef, Vit, recognise};

/// `tiny`, its text changed.
fn changed(changes: &[(&str, &str)]) -> (Model, Vit) {
    let mut text = print_model(&tiny().0, &PrintOptions::lossless());
    for (old, new) in changes {
        assert!(text.contains(old), "{old}: {text}");
        text = text.replace(old, new);
    }
    let model = parse_model(&text).unwrap();
    let vit = recognise(&model.graph);
    assert_eq!(vit.blocks.len(), 1, "{:?}", vit.near_misses);
    (model, vit)
}

/// A distilled model's two tokens.
const TWO: [(&str, &str); 2] = [
    ("int64 first = {0}", "int64 first = {0}, int64 second = {1}"),
    (
        "token = Gather <axis = 1> (last, first)",
        "c = Gather <axis = 1> (last, first)\n  d = Gather <axis = 1> (last, second)\n  token = Add (c, d)",
    ),
];

fn rows(changes: &[(&str, &str)]) -> Vec<(String, [usize; 2])> {
    let (_, vit) = changed(changes);
    vit.sites.iter().filter_map(|s| Some((s.full_name(), s.rows?))).collect()
}

#[test]
fn the_rows_are_those_that_the_head_reads() {
    let all =
        |rows: [usize; 2]| ["blocks.0.residual1.class", "blocks.0.residual2.class", "embed.class"].map(|s| (s.to_owned(), rows));
    assert_eq!(rows(&[]), all([0, 1]));
    assert_eq!(rows(&[("int64 first = {0}", "int64 first = {3}")]), all([3, 4]));
    assert_eq!(rows(&[("int64 first = {0}", "int64 first = {-1}")]), all([3, 4]));
    assert_eq!(rows(&TWO), all([0, 2]));
}

#[test]
fn without_rows_that_alone_are_read_there_are_none() {
    // The others would be in two pieces.
    assert_eq!(rows(&[("int64 first = {0}", "int64 first = {2}")]), []);
    assert_eq!(rows(&[("float[batch,3] logits", "float[batch,3] logits, float[batch,4,4] last")]), []);
    let mean = [
        ("int64 first = {0}", "int64[1] over = {1}"),
        ("Gather <axis = 1> (last, first)", "ReduceMean <keepdims = 0> (last, over)"),
    ];
    assert_eq!(rows(&mean), []);
    // A sum that is an output has one value for all its rows.
    let output = rows(&[("float[batch,3] logits", "float[batch,3] logits, float[batch,4,4] x")]);
    assert_eq!(
        output.iter().map(|(s, _)| s.as_str()).collect::<Vec<_>>(),
        ["blocks.0.residual1.class", "blocks.0.residual2.class"]
    );
}

/// What is apart is joined in its order, under names that are free, and computes the same.
#[test]
fn rows_apart_are_joined_again() {
    for (first, parts) in [("0", ["x_class_1", "x_rest"]), ("3", ["x_rest", "x_class_1"])] {
        let index = format!("int64 first = {{{first}}}");
        let taken = format!("{index}, float x_class = {{0.5}}");
        let (mut model, vit) = changed(&[
            ("int64 first = {0}", taken.as_str()),
            ("token = Gather <axis = 1> (last, first)", "t = Gather <axis = 1> (last, first)\n  token = Mul (t, x_class)"),
        ]);
        let float = model.clone();
        let mut sites: Vec<SiteRef> = vit.sites.clone();
        let mut edit = Edit::new(&mut model.graph);
        assert_eq!(prepare(&mut edit, &mut sites, false).unwrap(), 0);
        edit.commit().unwrap();
        let values = |name: &str| sites.iter().find(|s| s.full_name() == name).unwrap().values.clone();
        assert_eq!((values("embed.class"), values("embed")), (vec!["x_class_1".to_owned()], vec!["x_rest".to_owned()]));
        let g = &model.graph;
        let join = g.value("x_rows").unwrap().node;
        let joined: Vec<&str> = g.inputs_of(join).into_iter().flatten().map(|v| g.value_name(v)).collect();
        assert_eq!(joined, parts);
        let farthest = |a: &Model, b: &Model| {
            let run = |m: &Model| common::run(m, &[("image".to_owned(), Images::image(3))].into()).unwrap()["logits"].clone();
            run(a).iter().zip(run(b).iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(farthest(&float, &model) < 1e-6);
    }
}

/// Each alone, everything else in float: the graph does to the sum's rows what the simulation does.
#[test]
fn either_part_is_simulated_as_it_is_emitted() {
    let digits = Digits::new(8);
    let plan = digits.plan(&config::preset("int8").unwrap().unwrap(), Target::Integer);
    let inputs = digits.inputs(4);
    let sum = |name: &str| plan.sites.iter().find(|s| s.name == name).unwrap().clone();
    let outputs = |plan: &QuantPlan| {
        let float = digits.source.objective(plan, &inputs, &digits.options, 1).unwrap();
        (float.outputs(&float.float()).unwrap(), float.outputs(&float.assignment(plan)).unwrap())
    };
    // Within a block, where the last block picks its queries of the sum, and where nothing but the row is left.
    for block in ["blocks.1.residual1", "blocks.2.residual2", "blocks.3.residual2"] {
        let [whole, class] = [block.to_owned(), format!("{block}.class")].map(|name| sum(&name));
        assert!(matches!(class.scheme, Scheme::Ptf { .. }) && class.site.rows == Some([0, 1]));
        let both = [whole.clone(), class.clone()];
        for sites in [vec![whole.clone()], vec![class.clone()], both.to_vec(), vec![class, whole]] {
            let some = QuantPlan { sites, ..plan.clone() };
            let (float, simulated) = outputs(&some);
            let emitted = digits.emitted(&some, &inputs);
            let (noise, off) = (Distance::between(&float, &emitted).ratio(), Distance::between(&emitted, &simulated).ratio());
            assert!(noise > 1e-7 && off < 1e-6 * noise, "{block}, {} sites: {off} of {noise}", some.sites.len());
        }
    }
}

/// Only where they are wanted and the target has an operator for them; in float go all rows together.
#[test]
fn the_configuration_and_the_target_decide() {
    let class = |yaml: &str, target: Target| {
        let (model, plan) = planned(&variant(yaml), target);
        lower(&mut model.clone(), &plan).unwrap();
        let floats = plan.float.iter().filter(|f| f.name.ends_with(".class")).count();
        (plan.sites.iter().filter(|s| s.site.rows.is_some()).count(), floats)
    };
    assert_eq!(class("", Target::Integer), (3, 0));
    assert_eq!(class("", Target::OnnxRuntime), (0, 0));
    assert_eq!(class("default: {class_token_codes: false}", Target::Integer), (0, 0));
    assert_eq!(class("residual_layer: {residual1: {class_token_codes: false}}", Target::Integer), (2, 0));
    assert_eq!(class("residual_layer: {default: {float: true}}", Target::Integer), (1, 0));
    assert_eq!(class("residual_layer: {default: {quantization_method: Uniform}}", Target::Integer), (1, 0));
}

/// A range from few rows reaches farther than they do.
#[test]
fn no_other_sample_is_cut_off() {
    let (model, plan) = planned(&preset("int8"), Target::Integer);
    let of = |name: &str| {
        let site = plan.site(name).unwrap();
        let Scheme::Ptf { codes, scale, zero_point, factors } = &site.scheme else { panic!("{:?}", site.scheme) };
        let (low, high) = codes.range();
        let each = factors.scales(*scale).unwrap().into_iter().zip(zero_point.as_slice().to_vec());
        each.map(|(s, z)| (s * (low - z) as f32, s * (high - z) as f32)).collect::<Vec<_>>()
    };
    let class = of("blocks.0.residual1.class");
    let taps = vec!["r1".to_owned()];
    let engine = vitq::runtime::tract::Engine::new(&model, &taps, &Default::default()).unwrap();
    let mut session = engine.session().unwrap();
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for i in 0..216 {
        let mut see = |_: usize, _: &[usize], x: &[f32]| rows.push(x[..4].to_vec());
        session.run(&[("image", Images::image(i).view())], &mut see).unwrap();
    }
    // The first 16 were calibrated on.
    let (seen, others) = rows.split_at(16);
    let outside = |ranges: &[(f32, f32)]| {
        let beyond = |row: &Vec<f32>| row.iter().zip(ranges).filter(|(x, (lo, hi))| !(*lo..=*hi).contains(x)).count();
        others.iter().map(beyond).sum::<usize>()
    };
    let column = |c: usize| seen.iter().map(move |row| row[c]);
    let extremes = |c: usize| (column(c).fold(f32::INFINITY, f32::min), column(c).fold(f32::NEG_INFINITY, f32::max));
    assert!(outside(&(0..4).map(extremes).collect::<Vec<_>>()) > 20, "the extremes of 16 rows are not those of others");
    assert_eq!(outside(&class), 0, "of 800 values");
}

#[test]
fn a_plan_of_other_rows_is_refused() {
    let refused_of = |name: &str, change: &dyn Fn(&mut SiteRef)| {
        let (mut model, mut plan) = planned(&preset("int8"), Target::Integer);
        change(&mut site(&mut plan, name).site);
        lower(&mut model, &plan).unwrap_err().to_string()
    };
    let refused = |change: &dyn Fn(&mut SiteRef)| refused_of("embed.class", change);
    let says = [
        refused(&|s| s.rows = Some([0, 5])),
        refused(&|s| s.rows = Some([2, 2])),
        refused(&|s| s.rows = Some([1, 2])),
        refused(&|s| s.values = vec!["nowhere".to_owned()]),
        refused(&|s| s.values.push("r1".to_owned())),
        // Of these only the class token's row is computed.
        refused_of("blocks.0.residual1.class", &|s| s.rows = Some([0, 99])),
        refused_of("blocks.0.residual2.class", &|s| s.rows = Some([2, 2])),
        refused_of("blocks.0.residual2.class", &|s| s.values = vec!["x".to_owned()]),
    ];
    insta::with_settings!({ snapshot_path => "../snapshots/lower", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("rows_refused", says.join("\n"));
    });
}

/// The class token at either end, and two of them; each emitted model is near its float model, and a batch is its samples.
#[test]
fn every_form_is_lowered_and_runs() {
    for changes in [&[][..], &[("int64 first = {0}", "int64 first = {3}")], &TWO] {
        let (model, vit) = changed(changes);
        let plan =
            make_plan(&facts(&model, &vit), &stats(&model, &vit, &preset("int8")), &preset("int8"), Target::Integer, 1).unwrap();
        let mut lowered = model.clone();
        let report = lower(&mut lowered, &plan).unwrap();
        assert!(report.notes.is_empty(), "{report:?}");
        // The first norm in two parts; of the others nothing but these rows is left.
        assert_eq!(ops(&lowered)["ai.vitq.PtfLayerNorm"], 4);
        let run =
            |m: &Model, image: ArrayD<f32>| common::run(m, &[("image".to_owned(), image)].into()).unwrap()["logits"].clone();
        let (mut signal, mut noise) = (0.0, 0.0);
        for i in 0..8 {
            let (want, found) = (run(&model, Images::image(i)), run(&lowered, Images::image(i)));
            for (a, b) in want.iter().zip(&found) {
                (signal, noise) = (signal + a * a, noise + (a - b) * (a - b));
            }
        }
        // A scale at the wrong place leaves less than 10 dB.
        assert!(signal > 10.0 * noise, "{signal} {noise}");
        let both = concatenate(Axis(0), &[Images::image(1).view(), Images::image(2).view()]).unwrap();
        let alone = [1, 2].map(|i| run(&lowered, Images::image(i)));
        assert_eq!(run(&lowered, both), concatenate(Axis(0), &[alone[0].view(), alone[1].view()]).unwrap());
    }
}

/// A norm without an integer op says so, whatever it reads.
#[test]
fn another_norm_stays_in_float_and_that_is_noted() {
    let (model, vit) = changed(&[("n1 = LayerNormalization", "n1 = RMSNormalization"), ("(x, n1_g, n1_b)", "(x, n1_g)")]);
    let plan =
        make_plan(&facts(&model, &vit), &stats(&model, &vit, &preset("int8")), &preset("int8"), Target::Integer, 1).unwrap();
    assert!(plan.site("embed.class").is_some());
    let report = lower(&mut model.clone(), &plan).unwrap();
    assert!(matches!(&report.notes[..], [note] if note.contains("no integer op yet")), "{report:?}");
}

/// From so few rows no deviation can be told: all rows share codes, and the sum's entry says why.
#[test]
fn few_samples_are_too_few() {
    let digits = Digits::new(7);
    let plan = digits.plan(&config::preset("int8").unwrap().unwrap(), Target::Integer);
    assert!(plan.sites.iter().all(|s| s.site.rows.is_none()));
    let note = plan.site("blocks.1.residual1").unwrap().note.clone().unwrap();
    assert_eq!(
        note,
        "its class token has no codes of its own: 7 rows do not tell how far it reaches, 8 do: calibrate on more samples"
    );
}

/// Rows that the model itself picks of a sum, and puts out, keep their name.
#[test]
fn rows_that_are_an_output_keep_their_name() {
    let slice = "x = Add (tokens, position)\n  row = Slice (x, from, to, from)";
    let (mut model, vit) = changed(&[
        ("x = Add (tokens, position)", slice),
        ("int64 first = {0}", "int64 first = {0}, int64[1] from = {0}, int64[1] to = {1}, int64[1] axes = {1}"),
        ("(x, from, to, from)", "(x, from, to, axes)"),
        ("float[batch,3] logits", "float[batch,3] logits, float[batch,1,4] row"),
    ]);
    let plan =
        make_plan(&facts(&model, &vit), &stats(&model, &vit, &preset("int8")), &preset("int8"), Target::Integer, 1).unwrap();
    assert!(plan.site("embed.class").is_some());
    lower(&mut model, &plan).unwrap();
    let outputs: Vec<&str> = model.graph.outputs().iter().map(|&v| model.graph.value_name(v)).collect();
    assert_eq!(outputs, ["logits", "row"]);
}
