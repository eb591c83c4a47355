//! Constants that are added to a product's accumulator before the sum gets codes: the position embedding and the patches.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::ir::{DType, Model};
use vitq::lower::lower;
use vitq::quant::{Scheme, Target};

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

#[test]
fn a_switch_gives_the_patches_codes_of_their_own() {
    for (config, target) in [
        (variant("extra_layer: {patch_embed: {keep_accumulator: false}}"), Target::Integer),
        // Its integer convolution ends in codes.
        (preset("int8"), Target::OnnxRuntime),
    ] {
        let (model, plan, _) = lowered(&config, target);
        assert!(plan.sites.iter().all(|s| s.scheme != Scheme::Accumulator), "{target}");
        assert!(model.graph.value("patches_quantized").is_some(), "{target}");
    }
}

#[test]
fn one_rounding_less_is_less_noise() {
    let requantised = variant("extra_layer: {patch_embed: {keep_accumulator: false}}");
    let found = [preset("int8"), requantised].map(|config| sqnr(&lowered(&config, Target::Integer).0));
    assert!(found[0] > found[1], "{found:?}");
}

#[test]
fn a_product_of_floats_leaves_the_sum_in_float_and_that_is_noted() {
    let (model, _, report) = lowered(&variant("extra_layer: {input: {float: true}}"), Target::Integer);
    assert!(report.notes.iter().any(|n| n.contains("it multiplies floats")), "{report:?}");
    assert_eq!(constant(&model, "position").dtype, DType::F32);
}

#[test]
fn an_edited_plan_is_told_where_an_accumulator_cannot_be() {
    let (float, plan) = planned(&preset("int8"), Target::Integer);
    // Neither is a product's own output that a constant alone is added to.
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
