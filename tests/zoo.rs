//! Real exports of the plain-ViT family (tests/fixtures, made by make.py): every block and every site is found, and the
//! canonical and quantised graphs compute what PyTorch did.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use ndarray::{ArrayD, IxDyn};
use vitq::calib::run::{Failure, Named};
use vitq::calib::{Digest, SampleSource, Stats, calibrate};
use vitq::ir::{Edit, Model, OpName, Tensor};
use vitq::quant::{ModelFacts, Target, make_plan, recordings};
use vitq::runtime::tract::{Engine, EngineOptions};
use vitq::vit::{Vit, recognise};
use vitq::{canon, config, lower, onnx, pipeline};

/// One fixture, its activation, and the sites that it has beside the usual ones, or (after a minus) has not.
struct Fixture {
    name: &'static str,
    activation: &'static str,
    differs: &'static [&'static str],
}

const fn of(name: &'static str, activation: &'static str, differs: &'static [&'static str]) -> Fixture {
    Fixture { name, activation, differs }
}

/// A mean over the tokens, or a choice of one, before the only LayerNorm after the blocks.
const POOLED: &[&str] = &["blocks.1.residual2.pool"];
const CHOSEN: &[&str] = &["blocks.1.residual2.tokens"];
/// A LayerNorm before the first block: the sum before it is a tensor of its own.
const PRE_NORM: &[&str] = &["embed.sum"];
const TWO_HEADS: &[&str] = &["head.2", "head_output.2"];

const FIXTURES: &[Fixture] = &[
    of("beit_without_bias_table", "Gelu", POOLED),
    of("clip", "Gelu", PRE_NORM),
    of("clip_quickgelu", "QuickGelu", PRE_NORM),
    of("clip_quickgelu_torchscript", "QuickGelu", PRE_NORM),
    of("deit3", "Gelu", &[]),
    of("deit3_torchscript", "Gelu", &[]),
    of("deit_distilled", "Gelu", TWO_HEADS),
    of("deit_distilled_dynamo", "Gelu", TWO_HEADS),
    of("dinov2", "Gelu", &[]),
    of("dinov2_registers", "Gelu", &[]),
    of("float16", "Gelu", &[]),
    of("float16_inside", "Gelu", &[]),
    of("hf_deit", "Gelu", &[]),
    of("hf_vit", "Gelu", &[]),
    of("onnxsim", "Gelu", &[]),
    of("onnxsim_dynamo", "Gelu", &[]),
    of("onnxslim", "Gelu", &[]),
    of("ort_extended", "Gelu", &[]),
    of("ort_extended_dynamo", "Gelu", &[]),
    of("ort_transformers", "Gelu", &[]),
    of("ort_transformers_attention", "Gelu", &[]),
    of("separate_qkv", "Gelu", &[]),
    of("separate_qkv_dynamo", "Gelu", &[]),
    of("separate_qkv_scaled", "Gelu", &[]),
    of("separate_qkv_sdpa", "Gelu", &[]),
    of("separate_qkv_sdpa_dynamo", "Gelu", &[]),
    of("vit", "Gelu", &[]),
    of("vit_fc_norm", "Gelu", POOLED),
    of("vit_gelu_tanh", "Gelu", &[]),
    of("vit_hard_swish", "HardSwish", &[]),
    of("vit_no_class_token", "Gelu", POOLED),
    of("vit_no_norm", "Gelu", &["-norm", "norm.tokens"]),
    of("vit_no_qkv_bias", "Gelu", &[]),
    of("vit_norm_then_pool", "Gelu", &["norm.pool"]),
    of("vit_relu", "Relu", &[]),
    of("vit_silu", "Silu", &[]),
    of("vit_token_fc_norm", "Gelu", CHOSEN),
];

/// Families that differ in more than that, and their blocks: what is found in them is a snapshot.
const FAMILIES: &[(&str, usize)] = &[
    ("aimv2", 2),
    ("aimv2_rms_op", 2),
    ("beit", 2),
    ("beit3", 2),
    ("beit_dynamo", 2),
    ("cait", 4),
    ("cait_dynamo", 4),
    ("dinov2_gated", 2),
    ("dinov3", 2),
    ("dinov3_gated", 2),
    ("eva02", 2),
    ("eva02_swiglu", 2),
    ("hf_dinov2", 2),
    ("parallel", 2),
    ("parallel_projection", 2),
    ("post_norm", 2),
    ("qk_norm", 2),
    ("relative_position_network", 2),
    ("siglip", 3),
    ("siglip_fixed", 3),
    ("swin", 4),
    ("swin_dynamo", 4),
    ("swin_v2", 4),
    ("swin_v2_cr", 4),
    ("swin_v2_dynamo", 4),
];

fn names() -> impl Iterator<Item = &'static str> {
    FIXTURES.iter().map(|f| f.name).chain(FAMILIES.iter().map(|f| f.0))
}

/// Those whose file, as it is, the executor does not run: it knows no `Attention` of opset 23, no
/// `IsNaN`, none of onnxruntime's own operators, and not every operator on halves.
const NOT_EXECUTABLE: &[&str] = &[
    "aimv2_rms_op",
    "clip_quickgelu",
    "float16",
    "float16_inside",
    "hf_dinov2",
    "hf_vit",
    "ort_extended",
    "ort_extended_dynamo",
    "ort_transformers",
    "ort_transformers_attention",
    "swin_v2_dynamo",
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read(name: &str) -> Model {
    onnx::read(&folder().join(format!("{name}.onnx"))).unwrap()
}

fn canonical(name: &str) -> (Model, Vit) {
    let mut model = read(name);
    let report = canon::canonicalise(&mut model).unwrap();
    assert!(report.near_misses.is_empty(), "{name}: {:?}", report.near_misses);
    let vit = recognise(&model.graph);
    (model, vit)
}

fn batch(_: &str) -> usize {
    2
}

/// What PyTorch computed on the made-up input.
fn expected(name: &str) -> ArrayD<f32> {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = |key: &str| all[name][key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let shape: Vec<usize> = list("shape").iter().map(|&d| d as usize).collect();
    ArrayD::from_shape_vec(IxDyn(&shape), list("logits").iter().map(|&v| v as f32).collect()).unwrap()
}

#[test]
fn every_fixture_is_in_the_table() {
    let files = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path());
    let files: BTreeSet<String> = files
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(files, names().map(str::to_owned).collect());
}

fn usual_sites() -> BTreeSet<String> {
    let inside = [
        "norm1",
        "attn_qkv.q",
        "attn_qkv.k",
        "attn_qkv.v",
        "attn_qkv_output.q",
        "attn_qkv_output.k",
        "attn_qkv_output.v",
        "kv_act",
        "intSoft",
        "sv_attn",
        "attn_proj",
        "attn_proj_output",
        "residual1",
        "norm2",
        "mlp_fc1",
        "mlp_fc1_output",
        "mlp_act",
        "mlp_fc2",
        "mlp_act2",
        "residual2",
    ];
    let outside = ["input", "patch_embed", "patch_embed.weight", "embed", "embed.position", "norm", "head", "head_output"];
    let blocks = (0..2).flat_map(|b| inside.map(|s| format!("blocks.{b}.{s}")));
    blocks.chain(outside.map(str::to_owned)).collect()
}

#[test]
fn every_block_and_every_site_is_found() {
    for f in FIXTURES {
        let (model, vit) = canonical(f.name);
        assert!(vit.near_misses.is_empty(), "{}: {:?}", f.name, vit.near_misses);
        assert_eq!(vit.blocks.len(), 2, "{}", f.name);
        for b in &vit.blocks {
            let form = (b.dim, b.attentions[0].heads, b.attentions[0].head_dim, b.mlps[0].act_op.as_str());
            assert_eq!((form, b.mlp_ratio), ((32, 2, 16, f.activation), 2.0), "{}", f.name);
        }
        let mut wanted = usual_sites();
        for site in f.differs {
            match site.strip_prefix('-') {
                Some(absent) => assert!(wanted.remove(absent)),
                None => assert!(wanted.insert((*site).to_owned())),
            }
        }
        // What the general rules add beyond the blocks, such as the mean of two heads, is not of this table.
        let found: Vec<String> =
            vit.sites.iter().filter(|s| !s.site.is_general() && s.rows.is_none()).map(|s| s.full_name()).collect();
        assert_eq!(found.len(), wanted.len(), "{}: {found:?}", f.name);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), wanted, "{}", f.name);
        named_once(f.name, &model, &vit);
    }
}

/// Blocks and sites of a family in words.
fn describe(vit: &Vit) -> String {
    let mut out = String::new();
    for b in &vit.blocks {
        let (a, m) = (&b.attentions[0], &b.mlps[0]);
        let features = b.features().join(", ");
        let heads = format!("{} heads of {}", a.heads, a.head_dim);
        let _ =
            writeln!(out, "block {}: {} [{features}], dim {}, {heads}, {} × {}", b.index, b.kind, b.dim, m.act_op, b.mlp_ratio);
        for site in vit.sites.iter().filter(|s| s.block == Some(b.index)) {
            let name = site.full_name().split_off(format!("blocks.{}.", b.index).len());
            let observed = match (site.rows, &site.observe) {
                (Some([from, to]), _) => format!(" (rows from {from} to {to})"),
                (None, Some(_)) => " (observed before the mask)".to_owned(),
                (None, None) => String::new(),
            };
            let _ = writeln!(out, "  {name}: {}{observed}", if site.weight { "constant" } else { "value" });
        }
    }
    let _ = writeln!(out, "around them");
    for site in vit.sites.iter().filter(|s| s.block.is_none()) {
        let name = if site.site.is_general() { site.site.name().to_owned() } else { site.full_name() };
        let _ = writeln!(out, "  {name}: {}", if site.weight { "constant" } else { "value" });
    }
    out
}

#[test]
fn the_sites_of_every_family_are_found() {
    for &(name, blocks) in FAMILIES {
        let (model, vit) = canonical(name);
        assert!(vit.near_misses.is_empty(), "{name}: {:?}", vit.near_misses);
        assert_eq!(vit.blocks.len(), blocks, "{name}");
        named_once(name, &model, &vit);
        insta::with_settings!({ snapshot_path => "../snapshots/zoo", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, describe(&vit));
        });
    }
}

/// No value is in two sites but a sum, some of whose rows are a site of their own, and what is said of constants is so.
fn named_once(name: &str, model: &Model, vit: &Vit) {
    let mut seen = BTreeMap::new();
    for site in vit.sites.iter().filter(|s| s.rows.is_none()) {
        for value in &site.values {
            let constant = model.graph.constant(model.graph.value(value).unwrap()).is_some();
            assert_eq!(constant, site.weight, "{name}: {value}");
            assert_eq!(seen.insert(value, site.full_name()), None, "{name}: {value}");
        }
    }
}

#[test]
fn the_canonical_graph_computes_what_pytorch_did() {
    for name in names() {
        let (model, _) = canonical(name);
        let original = read(name);
        let inputs = common::inputs(&common::input_shapes(&original, &batch));
        let found = common::run(&model, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
        let difference = common::relative_difference(&expected(name), &found["logits"]);
        // Its logits leave as halves.
        let close = if name == "float16" { 1e-3 } else { 1e-4 };
        assert!(difference <= close, "{name}: {difference} from PyTorch");
        match common::run(&original, &inputs) {
            Ok(before) => {
                assert!(!NOT_EXECUTABLE.contains(&name), "{name} runs by now");
                let difference = common::relative_difference(&before["logits"], &found["logits"]);
                assert!(difference <= 1e-4, "{name}: {difference} from the file as it was");
            }
            Err(e) => assert!(NOT_EXECUTABLE.contains(&name), "{name}: {e}"),
        }
    }
}

/// What lies around the blocks and is not as expected is named, and the sites that are there are still found.
#[test]
fn what_is_not_found_around_the_blocks_is_named() {
    let altered = |name: &str, site: &str, op: &str| {
        let (mut model, vit) = canonical(name);
        let values = &vit.sites.iter().find(|s| s.full_name() == site).unwrap().values;
        let node = model.graph.value(&values[0]).unwrap().node;
        let mut edit = Edit::new(&mut model.graph);
        edit.op_mut(node).unwrap().op = OpName::std(op);
        edit.commit().unwrap();
        recognise(&model.graph)
    };
    let lost = |vit: &Vit| {
        let found: BTreeSet<String> = vit.sites.iter().map(|s| s.full_name()).collect();
        usual_sites().difference(&found).cloned().collect::<Vec<_>>()
    };
    let cases: [(&str, &str, &str, &str, &[&str]); 4] = [
        (
            "vit",
            "norm",
            "InstanceNormalization",
            "expected after the blocks, found InstanceNormalization '",
            &["head", "head_output", "norm"],
        ),
        (
            "vit_norm_then_pool",
            "norm.pool",
            "ReduceMax",
            "expected after the blocks, found ReduceMax '",
            &["head", "head_output"],
        ),
        (
            "deit3",
            "patch_embed",
            "ConvTranspose",
            "expected, found ConvTranspose '",
            &["input", "patch_embed", "patch_embed.weight"],
        ),
        (
            "clip",
            "embed",
            "InstanceNormalization",
            "expected, found InstanceNormalization '",
            // The convolution is no patch embedding any more, but one that the general rules serve.
            &["embed.position", "patch_embed", "patch_embed.weight"],
        ),
    ];
    for (name, site, op, says, without) in cases {
        let vit = altered(name, site, op);
        assert_eq!(vit.blocks.len(), 2, "{name}");
        let misses: Vec<String> = vit.near_misses.iter().filter(|m| m.rule == "outside").map(ToString::to_string).collect();
        assert!(misses.len() == 1 && misses[0].contains(says), "{name}: {misses:?}");
        assert_eq!(lost(&vit), without, "{name}");
    }
}

/// Made-up images for calibration.
struct Noise(Vec<usize>);

impl Noise {
    fn image(&self, i: usize) -> ArrayD<f32> {
        let data = common::numbers(1000 + i as u64, self.0.iter().product());
        ArrayD::from_shape_vec(IxDyn(&self.0), data).unwrap()
    }
}

impl SampleSource for Noise {
    fn len(&self) -> usize {
        8
    }

    fn get(&self, i: usize) -> Result<Option<Named>, Failure> {
        Ok(Some(vec![("input".to_owned(), self.image(i))]))
    }
}

fn facts(model: &Model, vit: &Vit) -> ModelFacts {
    let constant = |name: &String| -> (String, Tensor) {
        (name.clone(), model.graph.constant(model.graph.value(name).unwrap()).unwrap().clone())
    };
    ModelFacts {
        digest: pipeline::digest(model).to_string(),
        sites: vit.sites.clone(),
        multiplied: vit.multiplied.clone(),
        accumulated: vit.accumulated.clone(),
        norms: vit.norms.clone(),
        reparameterized: vec![],
        constants: vit.sites.iter().filter(|s| s.weight).flat_map(|s| &s.values).map(constant).collect(),
        before_gelu: [].into(),
    }
}

/// Quantised for a target; nothing that was planned stays in float.
fn quantised(name: &str, model: &Model, vit: &Vit, stats: &Stats, target: Target) -> Model {
    let config = config::preset("int8").unwrap().unwrap();
    let plan = make_plan(&facts(model, vit), stats, &config, target, 1).unwrap();
    let mut lowered = model.clone();
    let report = lower::lower(&mut lowered, &plan).unwrap();
    let expected = |note: &&String| note.ends_with("it has no integer op yet");
    let odd: Vec<&String> = report.notes.iter().filter(|note| !expected(note)).collect();
    assert_eq!(odd, [""; 0], "{name} for {target}");
    let counts = pipeline::op_counts(&lowered);
    if target == Target::Integer {
        for op in ["LayerNormalization", "Softmax", "Gelu", "Sigmoid", "Relu", "HardSwish"] {
            assert_eq!(counts.get(op), None, "{name}: {op} is left in float");
        }
    }
    lowered
}

#[test]
fn every_fixture_compiles_for_every_target() {
    for name in names() {
        let (model, vit) = canonical(name);
        let shapes = common::input_shapes(&model, &|_| 1);
        let noise = Noise(shapes["input"].clone());
        let config = config::preset("int8").unwrap().unwrap();
        let taps = recordings(&vit.sites, &config);
        let names: Vec<String> = taps.iter().map(|t| t.value.clone()).collect();
        let options = EngineOptions { input_shapes: shapes, ..EngineOptions::default() };
        let observed = pipeline::observed(&model, &vit.sites, &names).unwrap();
        let engine = Engine::new(&observed, &names, &options).unwrap();
        let stats = calibrate(&engine, &taps, &noise, Digest::default(), 1, &()).unwrap();
        for (_, target) in Target::NAMES {
            let after = quantised(name, &model, &vit, &stats, target);
            let (mut signal, mut error) = (0.0, 0.0);
            for i in 0..2 {
                let inputs = BTreeMap::from([("input".to_owned(), noise.image(i))]);
                let [want, found] = [&model, &after].map(|m| common::run(m, &inputs).unwrap()["logits"].clone());
                for (a, b) in want.iter().zip(&found) {
                    signal += f64::from(*a).powi(2);
                    error += f64::from(a - b).powi(2);
                }
            }
            let sqnr = 10.0 * (signal / error).log10();
            println!("{} for {target}: {sqnr:.1} dB", name);
            // A scale or exponent at the wrong place leaves less than 10 dB.
            assert!(sqnr > 15.0, "{} for {target}: {sqnr} dB", name);
        }
    }
}
