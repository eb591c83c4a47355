//! Weights adjusted to what they read: the whole step on a small network.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use vitq::calib::run::Named;
use vitq::config::{Config, load::parse};
use vitq::ir::Tensor;
use vitq::pipeline::{self, Adjust, Adjusted, Source};
use vitq::quant::{Constant, QuantPlan, Scheme, Target};
use vitq::runtime::tract::EngineOptions;
use vitq::tune::objective::Distance;

const GPTQ: &str =
    "layers: {default: {bit_type: {bits: 4}, weight_rounding: gptq}, norm1: {bit_type: {bits: 8}}, norm2: {bit_type: {bits: 8}}}";

fn source() -> Source {
    pipeline::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit.onnx")).unwrap()
}

/// Images of smooth waves, so that neighbouring inputs go together.
fn samples(source: &Source, count: usize) -> Vec<Named> {
    let graph = &source.model.graph;
    let input = graph.inputs()[0];
    let name = graph.value_name(vitq::ir::Value { node: input, port: 0 }).to_owned();
    let shape: Vec<usize> = {
        let engine = vitq::runtime::tract::Engine::new(&source.model, &[], &EngineOptions::default()).unwrap();
        engine.inputs()[0].shape.clone()
    };
    let wave = |s: usize, i: usize| ((i as f32) * 0.013 * (1.0 + s as f32 * 0.37) + s as f32).sin() * 1.5;
    let image = |s: usize| ArrayD::from_shape_fn(IxDyn(&shape), |at| wave(s, at[1] * 711 + at[2] * 31 + at[3]));
    (0..count).map(|s| vec![(name.clone(), image(s))]).collect()
}

/// A plan of the network whose activations have generous ranges.
fn plan(source: &Source, config: &Config, inputs: &[Named]) -> QuantPlan {
    struct Given<'a>(&'a [Named]);
    impl vitq::calib::SampleSource for Given<'_> {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn get(&self, i: usize) -> Result<Option<Named>, vitq::calib::run::Failure> {
            Ok(Some(self.0[i].clone()))
        }
    }
    let engine = pipeline::engine_of(source, config, &EngineOptions::default()).unwrap();
    let taps = vitq::quant::recordings(&source.vit.sites, config);
    let stats = vitq::calib::calibrate(&engine, &taps, &Given(inputs), source.digest(), 1, &()).unwrap();
    pipeline::plan(source, &stats, config, Target::Integer, 2).unwrap()
}

fn adjust(source: &Source, config: &Config, inputs: &[Named], plan: &QuantPlan, threads: usize) -> Adjusted {
    let options = EngineOptions::default();
    Adjust { source, config, options: &options, inputs, threads, progress: &|_| Box::new(()) }.run(plan).unwrap()
}

/// Noise over signal at the outputs, of plan and constants against the float model.
fn noise(source: &Source, inputs: &[Named], plan: &QuantPlan, constants: &BTreeMap<String, Tensor>) -> f64 {
    let options = EngineOptions::default();
    let float = source.objective(plan, inputs, &options, 1).unwrap();
    let quantised = source.with_constants(constants.clone()).unwrap().with_fake_constants(plan).unwrap();
    let quantised = quantised.objective(plan, inputs, &options, 1).unwrap();
    let codes = quantised.assignment(plan);
    Distance::between(&float.outputs(&float.float()).unwrap(), &quantised.outputs(&codes).unwrap()).ratio()
}

fn codes_of(source: &Source, plan: &QuantPlan) -> BTreeMap<String, Vec<u8>> {
    let (model, _) = pipeline::lower(source, plan).unwrap();
    let graph = &model.graph;
    let names = plan.constants().map(|(name, _)| format!("{name}_quantized"));
    names.filter_map(|n| Some((n.clone(), graph.constant(graph.value(&n)?)?.bytes().to_vec()))).collect()
}

#[test]
fn the_same_on_any_number_of_threads() {
    let (source, config) = (source(), parse("gptq.yaml", &GPTQ.replace("gptq,", "gptq, bias_correction: true,")).unwrap());
    let config = Config { name: "gptq".to_owned(), ..config };
    let inputs = samples(&source, 5);
    let plan = plan(&source, &config, &inputs);
    let one = adjust(&source, &config, &inputs, &plan, 1);
    assert!(!one.constants.is_empty());
    for threads in [2, 4] {
        assert!(adjust(&source, &config, &inputs, &plan, threads) == one, "{threads} threads");
    }
}

#[test]
fn nothing_asked_nothing_changed() {
    let (source, config) = (source(), Config::default());
    let inputs = samples(&source, 2);
    let plan = plan(&source, &config, &inputs);
    let out = adjust(&source, &config, &inputs, &plan, 1);
    assert_eq!((out.plan, out.constants, out.notes), (plan, BTreeMap::new(), Vec::new()));
}

#[test]
fn rounding_with_regard_to_inputs_brings_the_outputs_nearer() {
    let levels = GPTQ
        .replacen("gptq}", "gptq, quantization_method: Codebook}", 1)
        .replace("bits: 8}", "bits: 8}, quantization_method: PTF");
    brings_the_outputs_nearer(GPTQ, 7);
    let plan = brings_the_outputs_nearer(&levels, 127);
    assert!(plan.sites.iter().any(|s| s.site.weight && matches!(s.scheme, Scheme::Codebook { .. })));
    let plan = brings_the_outputs_nearer(&GPTQ.replacen("gptq}", "gptq, group_size: 4}", 1), 112);
    assert!(plan.sites.iter().any(|s| s.site.weight && matches!(s.scheme, Scheme::Groups { .. })));
}

/// The plan, whose codes reach `top`.
fn brings_the_outputs_nearer(yaml: &str, top: i8) -> QuantPlan {
    let (source, config) = (source(), parse("gptq.yaml", yaml).unwrap());
    let inputs = samples(&source, 8);
    let plan = plan(&source, &config, &inputs);
    let out = adjust(&source, &config, &inputs, &plan, 2);
    assert!(out.notes.is_empty(), "{:?}", out.notes);
    let (before, after) = (noise(&source, &inputs, &plan, &BTreeMap::new()), noise(&source, &inputs, &out.plan, &out.constants));
    assert!(after < before, "{before} {after}");
    // Lowering rounds to nearest, which gives the chosen codes: those of the simulation.
    let lowered = codes_of(&source.with_constants(out.constants.clone()).unwrap(), &out.plan);
    let mut checked = 0;
    for (name, scheme) in out.plan.constants() {
        let (Some(chosen), Some(Constant { scales, .. })) = (out.constants.get(name), scheme.constant()) else { continue };
        let codes = &lowered[&format!("{name}_quantized")];
        for (i, (x, &code)) in chosen.to_f32().unwrap().iter().zip(codes).enumerate() {
            assert_eq!(*x, f32::from(code as i8) * scales[i % scales.len()], "{name}[{i}]");
            assert!((code as i8).abs() <= top);
        }
        checked += 1;
    }
    assert!(checked >= 6, "{checked}");
    // Activations keep their codes, and weights that nothing was asked of theirs.
    for (a, b) in plan.sites.iter().zip(&out.plan.sites) {
        assert!(a == b || a.site.weight && out.constants.contains_key(&a.site.values[0]), "{}", a.name);
    }
    out.plan
}

/// Biases alone: weights stay, and every changed constant is a bias or the rounded form of what it was.
#[test]
fn biases_alone_keep_the_codes() {
    let (source, config) =
        (source(), parse("bias.yaml", &GPTQ.replace("weight_rounding: gptq", "bias_correction: true")).unwrap());
    let inputs = samples(&source, 4);
    let plan = plan(&source, &config, &inputs);
    let out = adjust(&source, &config, &inputs, &plan, 1);
    assert_eq!(out.plan, plan);
    assert_eq!(codes_of(&source, &plan), codes_of(&source.with_constants(out.constants.clone()).unwrap(), &out.plan));
    let weights: Vec<&str> = plan.constants().map(|(name, _)| name).collect();
    let biases = out.constants.keys().filter(|name| !weights.contains(&name.as_str())).count();
    assert!(biases >= 6, "{biases}");
}
