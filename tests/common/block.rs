//! A vision transformer of one block, and its way from a configuration to a lowered graph.

use std::collections::BTreeMap;

use ndarray::ArrayD;
use vitq::calib::run::{Failure, Named};
use vitq::calib::{Digest, SampleSource, Stats, calibrate};
use vitq::config::{self, Config};
use vitq::ir::Model;
use vitq::ir::text::parse_model;
use vitq::lower::{LowerReport, lower};
use vitq::quant::{ModelFacts, QuantPlan, SitePlan, Target, make_plan, recordings};
use vitq::runtime::tract::{Engine, EngineOptions};
use vitq::vit::{Vit, recognise};
use vitq::{canon, pipeline};

/// A tensor in the textual syntax, its elements up to `scale` in size.
pub fn tensor(name: &str, shape: &[usize], scale: f32) -> String {
    let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(131).wrapping_add(u64::from(b)));
    let values = super::numbers(seed, shape.iter().product());
    let values: Vec<String> = values.iter().map(|v| format!("{:.3}", v * scale)).collect();
    let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("float[{}] {name} = {{{}}}", shape.join(", "), values.join(", "))
}

/// One block of width 4 and two heads on four patches of a 4 × 4 image, canonical already.
pub fn tiny() -> (Model, Vit) {
    tiny_with(8)
}

/// The same with another number of hidden units in its MLP.
pub fn tiny_with(hidden: usize) -> (Model, Vit) {
    let mut parts: Vec<String> = [
        ("patch_w", &[4, 1, 2, 2][..], 1.0),
        ("patch_b", &[4], 0.1),
        ("position", &[1, 4, 4], 2.0),
        ("n1_g", &[4], 1.0),
        ("n1_b", &[4], 0.2),
        ("q_w", &[4, 4], 1.0),
        ("q_b", &[4], 0.1),
        ("k_w", &[4, 4], 1.0),
        ("k_b", &[4], 0.1),
        ("v_w", &[4, 4], 1.0),
        ("v_b", &[4], 0.1),
        ("proj_w", &[4, 4], 1.0),
        ("proj_b", &[4], 0.1),
        ("n2_g", &[4], 1.0),
        ("n2_b", &[4], 0.2),
        ("fc1_w", &[4, hidden], 1.0),
        ("fc1_b", &[hidden], 0.1),
        ("fc2_w", &[hidden, 4], 1.0),
        ("fc2_b", &[4], 0.1),
        ("n_g", &[4], 1.0),
        ("n_b", &[4], 0.2),
        ("head_w", &[4, 3], 1.0),
        ("head_b", &[3], 0.1),
    ]
    .iter()
    .map(|&(name, shape, scale)| tensor(name, shape, scale))
    .collect();
    parts.push(
        "int64[3] flat = {0, 4, -1}, int64[4] heads = {0, 0, 2, 2}, int64[3] merged = {0, 0, 4}, int64 first = {0}".to_owned(),
    );
    let text = format!(
        r#"<ir_version: 9, opset_import: ["" : 20]>
tiny (float[batch, 1, 4, 4] image) => (float[batch, 3] logits)
<{}>
{{
  patches = Conv <kernel_shape = [2, 2], strides = [2, 2]> (image, patch_w, patch_b)
  rows = Reshape (patches, flat)
  tokens = Transpose <perm = [0, 2, 1]> (rows)
  x = Add (tokens, position)
  n1 = LayerNormalization <axis = -1, epsilon = 0.000001> (x, n1_g, n1_b)
  q_p = MatMul (n1, q_w)
  q = Add (q_p, q_b)
  q_r = Reshape (q, heads)
  q_h = Transpose <perm = [0, 2, 1, 3]> (q_r)
  k_p = MatMul (n1, k_w)
  k = Add (k_p, k_b)
  k_r = Reshape (k, heads)
  k_h = Transpose <perm = [0, 2, 3, 1]> (k_r)
  v_p = MatMul (n1, v_w)
  v = Add (v_p, v_b)
  v_r = Reshape (v, heads)
  v_h = Transpose <perm = [0, 2, 1, 3]> (v_r)
  scores = MatMul (q_h, k_h)
  probs = Softmax <axis = -1> (scores)
  context = MatMul (probs, v_h)
  back = Transpose <perm = [0, 2, 1, 3]> (context)
  joined = Reshape (back, merged)
  proj_p = MatMul (joined, proj_w)
  proj = Add (proj_p, proj_b)
  r1 = Add (x, proj)
  n2 = LayerNormalization <axis = -1, epsilon = 0.000001> (r1, n2_g, n2_b)
  fc1_p = MatMul (n2, fc1_w)
  fc1 = Add (fc1_p, fc1_b)
  act = Gelu (fc1)
  fc2_p = MatMul (act, fc2_w)
  fc2 = Add (fc2_p, fc2_b)
  r2 = Add (r1, fc2)
  last = LayerNormalization <axis = -1, epsilon = 0.000001> (r2, n_g, n_b)
  token = Gather <axis = 1> (last, first)
  logits_p = MatMul (token, head_w)
  logits = Add (logits_p, head_b)
}}"#,
        parts.join(",\n ")
    );
    let mut model = parse_model(&text).unwrap();
    canon::canonicalise(&mut model).unwrap();
    let vit = recognise(&model.graph);
    assert_eq!((vit.blocks.len(), vit.sites.len()), (1, 31), "{:?}", vit.near_misses);
    (model, vit)
}

/// Made-up images.
pub struct Images(pub usize);

impl Images {
    pub fn image(i: usize) -> ArrayD<f32> {
        ArrayD::from_shape_vec(vec![1, 1, 4, 4], super::numbers(100 + i as u64, 16)).unwrap()
    }
}

impl SampleSource for Images {
    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, i: usize) -> Result<Option<Named>, Failure> {
        Ok(Some(vec![("image".to_owned(), Images::image(i))]))
    }
}

pub fn stats(model: &Model, vit: &Vit, config: &Config) -> Stats {
    let taps = recordings(&vit.sites, config);
    let names: Vec<String> = taps.iter().map(|t| t.value.clone()).collect();
    let model = pipeline::observed(model, &vit.sites, &names).unwrap();
    let engine = Engine::new(&model, &names, &EngineOptions::default()).unwrap();
    calibrate(&engine, &taps, &Images(16), Digest::default(), 1, &()).unwrap()
}

pub fn facts(model: &Model, vit: &Vit) -> ModelFacts {
    let constant = |name: &String| (name.clone(), model.graph.constant(model.graph.value(name).unwrap()).unwrap().clone());
    ModelFacts {
        digest: pipeline_digest(model),
        sites: vit.sites.clone(),
        multiplied: vit.multiplied.clone(),
        accumulated: vit.accumulated.clone(),
        norms: vit.norms.clone(),
        reparameterized: vec![],
        constants: vit.sites.iter().filter(|s| s.weight).flat_map(|s| &s.values).map(constant).collect(),
        before_gelu: [].into(),
    }
}

pub fn pipeline_digest(model: &Model) -> String {
    pipeline::digest(model).to_string()
}

pub fn preset(name: &str) -> Config {
    config::preset(name).unwrap().unwrap()
}

pub fn planned(config: &Config, target: Target) -> (Model, QuantPlan) {
    planned_with(8, config, target)
}

pub fn planned_with(hidden: usize, config: &Config, target: Target) -> (Model, QuantPlan) {
    let (model, vit) = tiny_with(hidden);
    let plan = make_plan(&facts(&model, &vit), &stats(&model, &vit, config), config, target, 2).unwrap();
    (model, plan)
}

pub fn lowered(config: &Config, target: Target) -> (Model, QuantPlan, LowerReport) {
    let (mut model, plan) = planned(config, target);
    let report = lower(&mut model, &plan).unwrap();
    (model, plan, report)
}

pub fn snapshot(name: &str, text: &str) {
    // A model's digest changes with every change of its canonical form.
    let filters = [("[0-9a-f]{64}", "[DIGEST]")];
    insta::with_settings!({ snapshot_path => "../../snapshots/lower", prepend_module_to_snapshot => false, omit_expression => true, filters => filters }, {
        insta::assert_snapshot!(name, text);
    });
}

/// The signal-to-noise ratio of the quantised logits over images that calibration saw, in dB.
pub fn sqnr(quantised: &Model) -> f64 {
    let (float, _) = tiny();
    let engine = |m: &Model| Engine::new(m, &[], &EngineOptions::default()).unwrap();
    let (a, b) = (engine(&float), engine(quantised));
    let (mut a, mut b) = (a.session().unwrap(), b.session().unwrap());
    let (mut signal, mut noise) = (0.0, 0.0);
    for i in 0..16 {
        let image = Images::image(i);
        let want = a.run(&[("image", image.view())], &mut |_, _, _| {}).unwrap();
        let found = b.run(&[("image", image.view())], &mut |_, _, _| {}).unwrap();
        assert_eq!(found[0].0, "logits");
        for (x, y) in want[0].1.iter().zip(&found[0].1) {
            signal += f64::from(*x).powi(2);
            noise += (f64::from(*x) - f64::from(*y)).powi(2);
        }
    }
    10.0 * (signal / noise).log10()
}

pub fn ops(model: &Model) -> BTreeMap<String, usize> {
    pipeline::op_counts(model)
}
pub fn variant(yaml: &str) -> Config {
    config::load::parse("variant.yaml", yaml).unwrap()
}

pub fn site<'p>(plan: &'p mut QuantPlan, name: &str) -> &'p mut SitePlan {
    plan.sites.iter_mut().find(|s| s.name == name).unwrap()
}
