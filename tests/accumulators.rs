//! What is added to a product's accumulator before the sum gets codes: the position embedding to the patches, the residual stream to what
//! attention and MLP make.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::block::*;
use common::digits::{Digits, parsed};
use vitq::ir::text::parse_model;
use vitq::ir::{DType, Model};
use vitq::lower::lower;
use vitq::quant::{QuantPlan, Scheme, SitePlan, Target, make_plan};
use vitq::vit::{Site, SiteRef};
use vitq::{canon, pipeline, vit};

fn constant(model: &Model, name: &str) -> vitq::ir::Tensor {
    model.graph.constant(model.graph.value(name).unwrap()).unwrap().clone()
}

/// Of an affine input.
fn scale_of(scheme: &Scheme) -> f64 {
    let Scheme::Affine { scale, .. } = scheme else { panic!("{scheme:?}") };
    f64::from(*scale)
}

#[test]
fn positions_are_int32_in_units_of_the_patches_accumulator() {
    let (model, plan, report) = lowered(&preset("int8"), Target::Integer);
    for site in ["patch_embed", "embed.position"] {
        assert_eq!(plan.site(site).unwrap().scheme, Scheme::Accumulator);
    }
    let Scheme::Weight { scales, .. } = &plan.site("patch_embed.weight").unwrap().scheme else { panic!() };
    let codes = constant(&model, "position_quantized");
    assert_eq!((codes.dtype, report.notes.len()), (DType::I32, 0));
    // [1, tokens, channels], and no code is more than half a unit from the float.
    let positions = constant(&tiny().0, "position").to_f32().unwrap();
    let input = scale_of(&plan.site("input").unwrap().scheme);
    for (i, (q, x)) in codes.to_i64().unwrap().into_iter().zip(positions).enumerate() {
        let unit = input * f64::from(scales[i % scales.len()]);
        assert!((f64::from(x) - unit * q as f64).abs() <= unit * 0.5001, "{i}");
    }
    // Between the convolution and the sum nothing is rounded.
    assert!(model.graph.value("patches_quantized").is_none() && model.graph.value("tokens_quantized").is_none());
    assert!(sqnr(&model) > 20.0);
}

/// Between a Linear and the residual stream nothing is rounded: its bias is in the accumulator, the stream's codes are added to it.
#[test]
fn the_stream_is_added_to_the_accumulator_of_what_joins_it() {
    let (model, plan, _) = lowered(&preset("int8"), Target::Integer);
    for (site, sum, stream, joins) in
        [("attn_proj_output", "r1", "x_class_dequantized", "proj"), ("mlp_act2", "r2", "r1_dequantized", "fc2")]
    {
        assert_eq!(plan.site(&format!("blocks.0.{site}")).unwrap().scheme, Scheme::Accumulator);
        let sum = model.graph.value(sum).unwrap().node;
        let operands: Vec<&str> = model.graph.inputs_of(sum).into_iter().flatten().map(|v| model.graph.value_name(v)).collect();
        assert_eq!(operands, [stream, joins]);
        let bias = model.graph.value(&format!("{joins}_b_quantized")).unwrap();
        assert_eq!(model.graph.constant(bias).unwrap().dtype, DType::I32);
    }
}

#[test]
fn a_switch_gives_every_product_codes_of_its_own() {
    for (config, target) in [
        (variant("default: {keep_accumulator: false}"), Target::Integer),
        (preset("fqvit"), Target::Integer),
        (preset("seed"), Target::Integer),
        // Its integer convolution ends in codes.
        (preset("int8"), Target::OnnxRuntime),
    ] {
        let (model, plan, _) = lowered(&config, target);
        assert!(plan.sites.iter().all(|s| s.scheme != Scheme::Accumulator), "{target}");
        assert!(model.graph.value("patches_quantized").is_some(), "{target}");
        assert_eq!(model.graph.value("proj_quantized").is_some(), target == Target::Integer);
    }
    let one = variant("attn_layer: {mlp_act2: {keep_accumulator: false}}");
    let (_, plan, _) = lowered(&one, Target::Integer);
    let kept: Vec<&str> = plan.sites.iter().filter(|s| s.scheme == Scheme::Accumulator).map(|s| &*s.name).collect();
    assert_eq!(kept, ["blocks.0.attn_proj_output", "patch_embed", "embed.position"]);
}

/// Of a small real model, on images that were not calibrated on.
#[test]
fn fewer_roundings_are_less_noise() {
    let digits = Digits::new(64);
    let inputs: Vec<_> = digits.inputs(64).split_off(32);
    let float = pipeline::runnable(Path::new("digits"), digits.source.model.clone(), &digits.options).unwrap();
    let mut session = float.session().unwrap();
    let want: Vec<Vec<f32>> = inputs
        .iter()
        .map(|sample| {
            let views: Vec<_> = sample.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
            session.run(&views, &mut |_, _, _| {}).unwrap()[0].1.iter().copied().collect()
        })
        .collect();
    let noise = |yaml: &str| -> f64 {
        let found = digits.emitted(&digits.plan(&parsed(yaml), Target::Integer), &inputs);
        want.iter().flatten().zip(found.iter().flatten()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    // So coarse that it shows.
    let of_codes = "attn_layer: {mlp_act2: {bit_type: {bits: 4}}}\nextra_layer: {attn_proj_output: {bit_type: {bits: 4}}}\n";
    let [kept, coded] = ["", "default: {keep_accumulator: false}"].map(|switch| noise(&format!("{of_codes}{switch}")));
    assert!(2.0 * kept < coded, "{kept} {coded}");
}

/// The sites of a product's own outputs, and those that stay accumulators.
fn accumulated(nodes: &str, outputs: &str) -> (usize, Vec<String>) {
    let tensors = ["w", "v"].map(|name| tensor(name, &[4, 4], 1.0));
    let text = format!(
        "<ir_version: 9, opset_import: [\"\" : 20]>\ng (float[1, 4] x) => ({outputs})\n<{}>\n{{\n  {nodes}\n}}",
        tensors.join(",\n")
    );
    let mut model = parse_model(&text).unwrap();
    canon::canonicalise(&mut model).unwrap();
    let vit = vit::recognise(&model.graph);
    let products = vit.sites.iter().filter(|s| s.site == Site::LinearOutput).count();
    (products, vit.accumulated.into_keys().collect())
}

#[test]
fn a_product_stays_an_accumulator_only_for_a_sum_with_codes() {
    let one = |name: &str| vec![format!("linear_output.{name}")];
    let y = "float[1, 4] y";
    assert_eq!(accumulated("p = MatMul (x, w)\n  y = Add (x, p)", y), (1, one("p")));
    assert_eq!(accumulated("p = MatMul (x, w)\n  y = Add (p, x)", y), (1, one("p")));
    // One of the two has codes: an accumulator is not added to another of other units.
    assert_eq!(accumulated("p = MatMul (x, w)\n  q = MatMul (x, v)\n  y = Add (p, q)", y), (2, one("p")));
    assert_eq!(accumulated("p = MatMul (x, w)\n  y = Add (p, p)", y), (1, vec![]));
    // Read by something else too: by another product, by an activation, by the model's user.
    assert_eq!(accumulated("p = MatMul (x, w)\n  s = Add (x, p)\n  q = MatMul (p, v)\n  y = Add (s, q)", y), (2, one("q")));
    assert_eq!(accumulated("p = MatMul (x, w)\n  s = Add (x, p)\n  q = Sigmoid (p)\n  y = Add (s, q)", y), (1, vec![]));
    assert_eq!(accumulated("p = MatMul (x, w)\n  y = Add (x, p)", "float[1, 4] y, float[1, 4] p").1, Vec::<String>::new());
    // What is added has no codes.
    assert_eq!(accumulated("p = MatMul (x, w)\n  f = Sin (x)\n  y = Add (f, p)", y), (1, vec![]));
}

/// What is left in float leaves no accumulator: what is multiplied, what else is added, the sum.
#[test]
fn without_codes_on_every_side_a_product_has_its_own() {
    for (float, product) in [
        ("extra_layer: {input: {float: true}}", "patch_embed"),
        ("extra_layer: {embed: {float: true}}", "patch_embed"),
        ("extra_layer: {embed: {float: true}}", "blocks.0.attn_proj_output"),
        ("residual_layer: {residual1: {float: true}}", "blocks.0.attn_proj_output"),
        ("residual_layer: {residual1: {float: true}}", "blocks.0.mlp_act2"),
        ("attn_layer: {mlp_act: {float: true}}", "blocks.0.mlp_act2"),
        ("layers: {mlp_fc2: {float: true}}", "blocks.0.mlp_act2"),
    ] {
        let (_, plan, _) = lowered(&variant(float), Target::Integer);
        assert!(matches!(plan.site(product).unwrap().scheme, Scheme::Ptf { .. }), "{float}: {product}");
    }
}

#[test]
fn a_product_of_floats_leaves_the_sum_in_float_and_that_is_noted() {
    let (mut model, mut plan) = planned(&preset("int8"), Target::Integer);
    plan.sites.retain(|s| s.name != "input");
    let report = lower(&mut model, &plan).unwrap();
    assert!(report.notes.iter().any(|n| n.contains("it multiplies floats")), "{report:?}");
    assert_eq!(constant(&model, "position").dtype, DType::F32);
}

#[test]
fn an_edited_plan_is_told_where_an_accumulator_cannot_be() {
    let (float, plan) = planned(&preset("int8"), Target::Integer);
    // Neither is a product's own output that nothing but additions read.
    for name in ["blocks.0.norm1", "blocks.0.mlp_fc1_output"] {
        let (mut model, mut plan) = (float.clone(), plan.clone());
        site(&mut plan, name).scheme = Scheme::Accumulator;
        let error = lower(&mut model, &plan).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("an accumulator is the output of"), "{error}");
    }
    // Weights are multiplied, and positions are added to codes once the patches have some.
    for (name, patches) in
        [("blocks.0.mlp_fc1", Scheme::Accumulator), ("embed.position", plan.site("embed").unwrap().scheme.clone())]
    {
        let (mut model, mut plan) = (float.clone(), plan.clone());
        site(&mut plan, "patch_embed").scheme = patches;
        site(&mut plan, name).scheme = Scheme::Accumulator;
        let error = lower(&mut model, &plan).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("it is not added to the accumulator"), "{error}");
    }
}

/// A Linear's output to which a row is added for each sample.
fn linear_and_row() -> (Model, QuantPlan) {
    let tensors = [("w", &[4, 3][..], 1.0), ("b", &[3], 0.1), ("row", &[1, 1, 4, 3], 1.0)]
        .map(|(name, shape, scale)| tensor(name, shape, scale));
    let text = format!(
        "<ir_version: 9, opset_import: [\"\" : 20]>\ng (float[1, 1, 4, 4] image) => (float[1, 1, 4, 3] y)\n<{}>\n{{\n  p = MatMul (image, w)\n  \
         a = Add (p, b)\n  y = Add (a, row)\n}}",
        tensors.join(",\n")
    );
    let mut model = parse_model(&text).unwrap();
    canon::canonicalise(&mut model).unwrap();
    let (vit, config) = (vit::recognise(&model.graph), preset("int8"));
    let plan = make_plan(&facts(&model, &vit), &stats(&model, &vit, &config), &config, Target::Integer, 1).unwrap();
    (model, plan)
}

#[test]
fn the_output_of_a_linear_may_stay_an_accumulator_too() {
    let (mut model, mut plan) = linear_and_row();
    let output = site(&mut plan, "linear_output.a");
    output.scheme = Scheme::Accumulator;
    let row = SiteRef {
        site: Site::Embed,
        part: Some("position".to_owned()),
        weight: true,
        values: vec!["row".to_owned()],
        ..output.site.clone()
    };
    let row = SitePlan { name: "embed.position".to_owned(), site: row, ..output.clone() };
    plan.sites.push(row);
    let report = lower(&mut model, &plan).unwrap();
    assert_eq!((report.biases, report.notes.len()), (2, 0), "{report:?}");
    assert_eq!(constant(&model, "row_quantized").dtype, DType::I32);
}

#[test]
fn what_does_not_fit_an_accumulator_stays_in_float_and_is_noted() {
    let (float, plan) = planned(&preset("int8"), Target::Integer);
    let mut model = float.clone();
    let mut plan = plan.clone();
    // A unit so small that 2^30 of them are less than a position.
    let Scheme::Weight { scales, .. } = &mut site(&mut plan, "patch_embed.weight").scheme else { panic!() };
    scales.iter_mut().for_each(|s| *s = 1e-9);
    let report = lower(&mut model, &plan).unwrap();
    assert!(report.notes.iter().any(|n| n.starts_with("'position' stays in float")), "{report:?}");
    assert_eq!(constant(&model, "position").dtype, DType::F32);
}

#[test]
fn positions_left_in_float_stay_floats() {
    let (model, plan, _) = lowered(&variant("extra_layer: {embed: {float: true}}"), Target::Integer);
    assert!(plan.float.iter().any(|f| f.name == "embed.position"));
    assert_eq!(constant(&model, "position").dtype, DType::F32);
}

#[test]
fn a_target_without_accumulators_is_noted() {
    let (mut model, mut plan) = planned(&preset("int8"), Target::Integer);
    plan.target = Target::OnnxRuntime;
    let report = lower(&mut model, &plan).unwrap();
    assert!(report.notes.iter().any(|n| n.contains("onnxruntime keeps no accumulators")), "{report:?}");
}
