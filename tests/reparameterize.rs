//! Scales of channels in the constants around a LayerNorm's output, on the small real Vision Transformer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::digits::{Digits, parsed};
use vitq::config::{self, Config};
use vitq::pipeline::{self, Source};
use vitq::quant::{Reparameterized, Scheme, Target};
use vitq::tune::objective::Distance;

fn outputs(b: &Digits, source: &Source) -> Vec<Vec<f32>> {
    let float = source.objective(&b.plan(&int8(), Target::OnnxRuntime), &b.inputs(16), &b.options, 2).unwrap();
    float.outputs(&float.float()).unwrap()
}

fn int8() -> Config {
    config::preset("int8").unwrap().unwrap()
}

#[test]
fn the_float_model_computes_what_it_did() {
    let b = Digits::new(16);
    let plan = b.plan(&int8(), Target::OnnxRuntime);
    let names: Vec<&str> = plan.reparameterized.iter().map(|r| r.site.as_str()).collect();
    assert_eq!(names.len(), 8, "two in each of four blocks: {names:?}");
    let scaled = b.source.reparameterized(&plan.reparameterized).unwrap();
    assert_eq!(scaled.digest(), b.source.digest(), "plans and statistics of it are the model's");
    let noise = Distance::between(&outputs(&b, &b.source), &outputs(&b, &scaled)).ratio();
    assert!(noise > 0.0 && noise < 1e-9, "{noise}");
    // Once, however often it is asked for.
    let again = scaled.reparameterized(&plan.reparameterized).unwrap();
    assert!(again.facts().constants == scaled.facts().constants);
}

/// The whole way, on the samples that were calibrated on: noise of the emitted model with and without, when the LayerNorms' outputs and
/// the weights that read them alone have codes.
#[test]
fn the_emitted_model_is_nearer_to_the_float_model() {
    let b = Digits::new(16);
    let reference = outputs(&b, &b.source);
    let noise = |reparameterize: bool| {
        let config = parsed(&format!(
            "default: {{float: true, reparameterize: {reparameterize}}}\nlayers:\n  norm1: &codes {{float: false}}\n  norm2: *codes\n  attn_qkv: *codes\n  \
             mlp_fc1: *codes\n"
        ));
        let plan = b.plan(&config, Target::OnnxRuntime);
        let tensors = plan.sites.iter().filter(|s| matches!(s.scheme, Scheme::Affine { .. }));
        assert_eq!(tensors.count(), 8, "one scale for the tensor either way");
        Distance::between(&reference, &b.emitted(&plan, &b.inputs(16))).ratio()
    };
    let (with, without) = (noise(true), noise(false));
    assert!(with < 0.9 * without, "{with} {without}");
}

#[test]
fn only_where_a_scale_a_channel_is_wanted_and_cannot_be() {
    let b = Digits::new(16);
    let scaled = |yaml: &str, target: Target| b.plan(&parsed(yaml), target).reparameterized.len();
    assert_eq!(scaled("", Target::Integer), 0, "it has an operator for that");
    assert_eq!(scaled("default: {reparameterize: false}", Target::OnnxRuntime), 0);
    assert_eq!(scaled("layers: {norm1: {quantization_method: Uniform}}", Target::OnnxRuntime), 4);
    assert_eq!(scaled("layers: {norm2: {float: true}, blocks.1.norm1: {reparameterize: false}}", Target::OnnxRuntime), 3);
}

#[test]
fn edited_plans_are_refused() {
    let b = Digits::new(16);
    let plan = b.plan(&int8(), Target::OnnxRuntime);
    let refused = |change: &dyn Fn(&mut Vec<Reparameterized>)| {
        let mut plan = plan.clone();
        change(&mut plan.reparameterized);
        pipeline::lower(&b.source, &plan).unwrap_err().to_string()
    };
    let other = refused(&|r| r[0].site = "blocks.0.mlp_act".to_owned());
    assert!(other.contains("blocks.0.mlp_act, which is not the output of a LayerNorm that nothing but Linears read"), "{other}");
    let short = refused(&|r| r[0].factors.truncate(3));
    assert!(short.contains("blocks.0.norm1: ") && short.contains("factors do not fit"), "{short}");
    let zero = refused(&|r| r[0].factors[1] = 0.0);
    assert!(zero.contains("blocks.0.norm1: a factor of 0.0 cannot be divided by"), "{zero}");
    let twice = refused(&|r| r.push(r[0].clone()));
    assert!(twice.contains("blocks.0.norm1 twice"), "{twice}");
    let scaled = b.source.reparameterized(&plan.reparameterized).unwrap();
    let error = scaled.reparameterized(&plan.reparameterized[1..]).unwrap_err().to_string();
    assert!(error.contains("scaled for another plan"), "{error}");
}
