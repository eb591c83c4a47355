//! A residual CNN without a transformer block: the general rules on both targets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vitq::canon;
use vitq::config::{self, Config};
use vitq::ir::text::{PrintOptions, parse_model, print_model};
use vitq::ir::{DType, Model, NodeId, Value};
use vitq::lower::LowerReport;
use vitq::pipeline::{self, DataOptions, Feed, Source};
use vitq::quant::{QuantPlan, Scheme, Target};
use vitq::vit::{Site, Vit, recognise};

const CNN: &str = "models/digits/cnn_digits.onnx";
const CALIB: &str = "models/digits/calib";
const TARGETS: [Target; 2] = [Target::Integer, Target::OnnxRuntime];

fn preset(name: &str) -> Config {
    config::preset(name).unwrap().unwrap()
}

fn data() -> DataOptions {
    DataOptions { preprocess: Some("inception".to_owned()), crop_pct: Some(1.0), ..DataOptions::default() }
}

struct Compiled {
    source: Source,
    plan: QuantPlan,
    model: Model,
    report: LowerReport,
    samples: usize,
    /// Of the logits on the calibration images, in dB.
    sqnr: f64,
}

fn compiled(target: Target, config: &Config) -> Compiled {
    let c = compiled_from(Path::new(CNN), Path::new(CALIB), &data(), target, config);
    assert_eq!(c.samples, 64);
    c
}

fn compiled_from(path: &Path, images: &Path, data: &DataOptions, target: Target, config: &Config) -> Compiled {
    let source = pipeline::load(path).unwrap();
    source.require_sites().unwrap();
    let feed = Feed::new(path, &source.model, data).unwrap();
    let samples = feed.open(images).unwrap();
    let engine = pipeline::engine_of(&source, config, &feed.engine_options()).unwrap();
    let stats = pipeline::calibrate(&source, config, &engine, &samples, 1, &()).unwrap();
    let plan = pipeline::plan(&source, &stats, config, target, 2).unwrap();
    let (model, report) = pipeline::lower(&source, &plan).unwrap();
    let emitted = pipeline::runnable(path, model.clone(), &feed.engine_options()).unwrap();
    let evaluation = pipeline::evaluate(&emitted, Some(&engine), &samples, None, 1, &()).unwrap();
    let (samples, sqnr) = (evaluation.samples, evaluation.sqnr_db.unwrap());
    Compiled { source, plan, model, report, samples, sqnr }
}

/// The value behind a DequantizeLinear, or the value itself.
fn codes(model: &Model, value: Value) -> Option<Value> {
    if model.graph.is_op(value.node, "DequantizeLinear") { model.graph.input(value.node, 0) } else { None }
}

fn ops(model: &Model, op: &str) -> Vec<NodeId> {
    model.graph.ops().into_iter().filter(|&id| model.graph.is_op(id, op)).collect()
}

#[test]
fn every_layer_and_residual_sum_reads_codes_and_writes_them() {
    for target in TARGETS {
        let c = compiled(target, &preset("int8"));
        let graph = &c.model.graph;
        let linear = if target == Target::OnnxRuntime { "Gemm" } else { "MatMul" };
        let (convolutions, products) = (ops(&c.model, "Conv"), ops(&c.model, linear));
        assert_eq!((convolutions.len(), products.len()), (8, 1));
        for &id in convolutions.iter().chain(&products) {
            let at = graph.describe(id);
            for (port, value) in graph.inputs_of(id).into_iter().enumerate() {
                let codes = codes(&c.model, value.unwrap()).unwrap_or_else(|| panic!("input {port} of {at} has no codes"));
                if port > 0 {
                    let dtype = graph.constant(codes).unwrap().dtype;
                    assert_eq!(dtype, if port == 1 { DType::I8 } else { DType::I32 }, "{at}");
                }
            }
        }
        // Between two quantised layers nothing but an activation that clips, the sum and the pool.
        for id in convolutions.iter().copied().chain(ops(&c.model, "GlobalAveragePool")).chain(residuals(&c.model)) {
            let mut at = Value { node: id, port: 0 };
            let readers = graph.uses(at);
            if let [u] = readers[..]
                && graph.is_op(u.node, "Relu")
            {
                at = Value { node: u.node, port: 0 };
            }
            let readers = graph.uses(at);
            assert!(readers.len() == 1 && graph.is_op(readers[0].node, "QuantizeLinear"), "{}", graph.describe(id));
        }
        let sums = residuals(&c.model);
        assert_eq!(sums.len(), 3);
        for id in sums {
            let operands = graph.inputs_of(id);
            assert!(operands.iter().all(|v| codes(&c.model, v.unwrap()).is_some()), "{}", graph.describe(id));
        }
        assert_eq!((c.report.weights, c.report.biases, c.report.notes.as_slice()), (9, 9, &[][..]));
        assert!(ops(&c.model, "BatchNormalization").is_empty() && c.source.vit.blocks.is_empty());
        assert!(c.sqnr >= 20.0, "{target}: {} dB", c.sqnr);
    }
}

/// Sums of two activations.
fn residuals(model: &Model) -> Vec<NodeId> {
    let data = |id: &NodeId| {
        let operands = model.graph.inputs_of(*id).into_iter().flatten();
        // A bias is a constant, or codes of one.
        operands.map(|v| codes(model, v).unwrap_or(v)).all(|v| model.graph.constant(v).is_none())
    };
    ops(model, "Add").into_iter().filter(data).collect()
}

#[test]
fn plans_name_every_value_once_and_say_what_stays_in_float() {
    let c = compiled(Target::Integer, &preset("int8"));
    assert!(c.plan.float.is_empty());
    let names: BTreeSet<&str> = c.plan.sites.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names.len(), c.plan.sites.len());
    for name in ["input", "conv.stem.weight.folded", "pool_output./pool/GlobalAveragePool_output_0", "head_output.logits"] {
        assert!(names.contains(name), "{name} in {names:?}");
    }
    let conv = c.plan.site("conv.stem.weight.folded").unwrap();
    let Scheme::Weight { bits: 8, axis: Some(0), scales } = &conv.scheme else { panic!("{:?}", conv.scheme) };
    assert_eq!(scales.len(), 16);
    let c = compiled(Target::OnnxRuntime, &preset("int8"));
    let float: Vec<&str> = c.plan.float.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(float, ["head_output.logits"]);
}

#[test]
fn a_configuration_speaks_of_the_kinds() {
    let yaml = "extra_layer:\n  conv: {bit_type: {bits: 5}, calibration_mode: layer_wise}\n  add_output: {float: true}\n";
    let c = compiled(Target::Integer, &config::load::parse("cnn.yaml", yaml).unwrap());
    let weights = c.plan.sites.iter().filter(|s| s.site.site == Site::Conv);
    assert_eq!(weights.filter(|s| matches!(s.scheme, Scheme::Weight { bits: 5, axis: None, .. })).count(), 8);
    assert!(c.plan.float.len() == 3 && c.plan.float.iter().all(|f| f.site == Site::AddOutput));
    let inside = "extra_layer:\n  blocks.0.conv: {bit_type: {bits: 5}}\n";
    let error = config::load::parse("cnn.yaml", inside).unwrap_err().to_string();
    assert!(error.contains("`conv` is outside the blocks"), "{error}");
}

#[test]
fn the_graph_of_each_target() {
    for target in TARGETS {
        let c = compiled(target, &preset("int8"));
        let text = print_model(&c.model, &PrintOptions::snapshot());
        let filters = [("[0-9a-f]{64}", "[DIGEST]")];
        insta::with_settings!({ snapshot_path => "../snapshots/lower", prepend_module_to_snapshot => false, omit_expression => true, filters => filters }, {
            insta::assert_snapshot!(format!("cnn_{target}"), format!("{text}\n{:#?}\n", c.report));
        });
    }
}

fn found(body: &str, signature: &str, constants: &str) -> Vit {
    let text = format!("<ir_version: 8, opset_import: [\"\" : 17]>\ng {signature}\n<{constants}>\n{{\n{body}\n}}");
    let mut model = parse_model(&text).unwrap();
    canon::canonicalise(&mut model).unwrap();
    recognise(&model.graph)
}

fn names(vit: &Vit) -> Vec<String> {
    vit.sites.iter().map(|s| format!("{} = {}", s.full_name(), s.values.join(" "))).collect()
}

#[test]
fn values_that_move_keep_their_codes() {
    let body = "c = Conv (x, w)\nr = Relu (c)\np = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)\n\
                f = Flatten (p)\ns = Shape (r)\nh = MatMul (f, v)\nz = Softmax (h)";
    let constants = "float[2, 1, 1, 1] w = {1, 2}, float[8, 2] v = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}";
    let vit = found(body, "(float[1, 1, 4, 4] x) => (float[1, 2] z, int64[4] s)", constants);
    let expected = ["input = x", "conv.w = w", "conv_output.r = r p f", "linear.v = v", "linear_output.h = h"].map(str::to_owned);
    assert_eq!(names(&vit), expected);
    // The pool drops elements, so what it passes on is not the range.
    assert_eq!(vit.sites[2].observed(), "r");
    assert_eq!((vit.general.convolutions, vit.general.linears, vit.general.inner.as_slice()), (1, 1, &["c".to_owned()][..]));
}

#[test]
fn activations_beyond_clipping_have_sites_on_both_sides() {
    let body = "c = Conv (x, w)\ng = Sigmoid (c)\nm = Mul (c, g)\na = Add (m, x)\nj = Concat <axis = 1> (a, m)\n\
                y = GlobalAveragePool (j)";
    let vit = found(body, "(float[1, 1, 4, 4] x) => (float[1, 2, 1, 1] y)", "float[1, 1, 1, 1] w = {2}");
    let expected = [
        "input = x",
        "conv.w = w",
        "conv_output.c = c",
        "act_output.g = g",
        "mul_output.m = m",
        "add_output.a = a",
        "concat_output.j = j",
        "pool_output.y = y",
    ];
    assert_eq!(names(&vit), expected.map(str::to_owned));
}

#[test]
fn what_has_no_codes_is_no_operand() {
    // A Relu that is read twice is no part of the convolution; Sin is no operator of ours, so neither sum has codes.
    let body = "c = Conv (x, w)\nd = Sin (c)\na = Add (c, d)\nk = Add (c, one)\ne = Conv (a, w)\ny = Mul (e, k)";
    let vit = found(body, "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)", "float[1, 1, 1, 1] w = {2}, float one = {1}");
    let expected = ["input = x", "conv.w = w", "conv_output.c = c", "layer_input.a = a", "conv_output.e = e"];
    assert_eq!(names(&vit), expected.map(str::to_owned));
    assert_eq!(vit.general.convolutions, 2);
}

/// A model file and sixteen-pixel images for it, in a folder that lives as long as its handle.
fn files(text: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, images) = (dir.path().join("shared.onnx"), dir.path().join("x.npy"));
    std::fs::write(&path, vitq::onnx::encode(&parse_model(text).unwrap()).unwrap()).unwrap();
    let data = ndarray::Array4::from_shape_vec((4, 1, 4, 4), common::numbers(1, 64)).unwrap();
    let mut npy = Vec::new();
    ndarray_npy::WriteNpyExt::write_npy(&data, &mut npy).unwrap();
    std::fs::write(&images, npy).unwrap();
    (dir, path, images)
}

/// Exporters merge equal constants: layers that share weights and bias, each with another input scale.
#[test]
fn shared_constants_are_quantised_once_and_shared_biases_for_each_layer() {
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
<float[1, 1, 1, 1] w = {2}, float[1] b = {0.5}>
{
  c = Conv (x, w, b)
  d = Conv (c, w, b)
  y = Conv (d, w, b)
}"#;
    let (_folder, path, images) = files(text);
    for target in TARGETS {
        let c = compiled_from(&path, &images, &DataOptions::default(), target, &preset("int8"));
        assert_eq!((c.report.weights, c.report.biases), (1, 3));
        let graph = &c.model.graph;
        let names = graph.ops().into_iter().map(|id| graph.op(id).unwrap().name.as_str());
        let names: Vec<&str> = names.filter(|n| !n.is_empty()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        assert!(c.sqnr >= 30.0, "{target}: {} dB", c.sqnr);
    }
}

#[test]
fn activations_are_tables_on_the_integer_target() {
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
<float[1, 1, 1, 1] w = {6}, float[1] b = {-1}>
{
  c = Conv (x, w, b)
  h = HardSwish (c)
  s = Sigmoid (h)
  y = Mul (h, s)
}"#;
    let (_folder, path, images) = files(text);
    for (target, tables) in [(Target::Integer, 2), (Target::OnnxRuntime, 0)] {
        let c = compiled_from(&path, &images, &DataOptions::default(), target, &preset("int8"));
        assert_eq!((c.report.custom_ops, c.report.notes.as_slice()), (tables, &[][..]));
        assert_eq!((ops(&c.model, "HardSwish").len(), ops(&c.model, "Sigmoid").len()), if tables == 2 { (0, 0) } else { (1, 1) });
        assert!(c.sqnr >= 30.0, "{target}: {} dB", c.sqnr);
    }
}
