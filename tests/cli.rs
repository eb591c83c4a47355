//! The command line on real models: what it does, and what it says when it cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

#[path = "common/bench.rs"]
mod bench;

use bench::{Bench, CALIB, CNN, IMAGES, TEST, VIT, files, with};

fn snapshot(name: &str, text: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/cli");
    // A model's digest changes with every change of its canonical form.
    let filters = [("[0-9a-f]{12}…", "[DIGEST]")];
    insta::with_settings!({ snapshot_path => path, prepend_module_to_snapshot => false, omit_expression => true, filters => filters }, {
        insta::assert_snapshot!(name, text);
    });
}

/// `compile` with these arguments must fail; the message is the snapshot `name`.
fn refused(name: &str, b: &Bench, args: &[&str]) {
    let mut all = vec!["compile"];
    all.extend(args);
    all.extend(["-o", "@/out.onnx"]);
    snapshot(name, &b.fails(&all));
}

#[test]
fn a_missing_model_is_refused() {
    refused("missing_model", &Bench::new(), &with(&["@/none.onnx", "--calib", CALIB], &IMAGES));
}

#[test]
fn a_truncated_model_is_refused() {
    let b = Bench::new();
    let whole = std::fs::read(VIT).unwrap();
    b.write("truncated.onnx", &whole[..whole.len() / 2]);
    refused("truncated_model", &b, &with(&["@/truncated.onnx", "--calib", CALIB], &IMAGES));
    b.write("empty.onnx", b"");
    refused("empty_model", &b, &with(&["@/empty.onnx", "--calib", CALIB], &IMAGES));
}

#[test]
fn a_model_without_layers_is_refused() {
    let b = Bench::new();
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 3, 32, 32] x) => (float[batch, 3, 32, 32] y)
<float half = {0.5}>
{
  r = Relu (x)
  y = Mul (r, half)
}"#;
    let model = vitq::ir::text::parse_model(text).unwrap();
    b.write("elementwise.onnx", &vitq::onnx::encode(&model).unwrap());
    refused("no_blocks", &b, &with(&["@/elementwise.onnx", "--calib", CALIB], &IMAGES));
}

#[test]
fn a_folder_without_images_is_refused() {
    let b = Bench::new();
    std::fs::create_dir(b.path("empty")).unwrap();
    refused("empty_folder", &b, &with(&[VIT, "--calib", "@/empty"], &IMAGES));
    refused("missing_folder", &b, &with(&[VIT, "--calib", "@/none"], &IMAGES));
}

#[test]
fn a_corrupt_image_is_refused() {
    let b = Bench::new();
    std::fs::create_dir(b.path("images")).unwrap();
    std::fs::copy(format!("{CALIB}/0080.png"), b.path("images/a.png")).unwrap();
    b.write("images/b.jpg", b"\xff\xd8\xff\xe0 no picture");
    refused("corrupt_jpeg", &b, &with(&[VIT, "--calib", "@/images"], &IMAGES));
}

#[test]
fn a_wrong_input_size_is_refused() {
    let b = Bench::new();
    refused("wrong_input_size", &b, &with(&[VIT, "--calib", CALIB, "--input-size", "224"], &IMAGES));
    let arrays = ndarray::Array4::<f32>::zeros((4, 3, 28, 28));
    let mut npy = Vec::new();
    ndarray_npy::WriteNpyExt::write_npy(&arrays, &mut npy).unwrap();
    b.write("small.npy", &npy);
    refused("wrong_array_shape", &b, &[VIT, "--calib", "@/small.npy"]);
}

#[test]
fn a_wrong_configuration_is_refused() {
    let b = Bench::new();
    b.write("key.yaml", b"layers:\n  attn_qkv:\n    observer_tpye: MinmaxObserver\n");
    refused("unknown_config_key", &b, &with(&[VIT, "--calib", CALIB, "--config", "@/key.yaml"], &IMAGES));
    b.write("site.yaml", b"layers:\n  attn_qvk:\n    bit_type: {bits: 8}\n");
    refused("unknown_config_site", &b, &with(&[VIT, "--calib", CALIB, "--config", "@/site.yaml"], &IMAGES));
    refused("unknown_preset", &b, &with(&[VIT, "--calib", CALIB, "--config", "int9"], &IMAGES));
}

#[test]
fn images_need_a_preprocessing() {
    refused("no_preprocessing", &Bench::new(), &[VIT, "--calib", CALIB]);
}

#[test]
fn strict_refuses_a_name_that_names_nothing() {
    let b = Bench::new();
    b.write("c.yaml", b"layers:\n  blocks.9.attn_qkv:\n    bit_type: {bits: 8}\n");
    let args = with(&[VIT, "--calib", CALIB, "--calib-limit", "2", "--config", "@/c.yaml"], &IMAGES);
    refused("strict", &b, &with(&args, &["--strict"]));
    // Without it, the same is a note.
    let said = b.ok(&with(&with(&["compile", "-o", "@/out.onnx"], &args), &[]));
    assert!(said.contains("names blocks.9.attn_qkv"), "{said}");
    b.write("site.yaml", b"extra_layer:\n  blocks.0.mlp_gate: {float: true}\n");
    let other = with(&["compile", VIT, "--calib", CALIB, "--config", "@/site.yaml", "--strict", "-o", "@/x.onnx"], &IMAGES);
    let error = b.fails(&with(&other, &["--effort", "fast"]));
    assert!(error.contains("blocks.0.mlp_gate, but that block has no such site"), "{error}");
    b.compile("integer", "strict.onnx", &["--strict"]);
    b.compile("onnxruntime", "strict.ort.onnx", &["--strict"]);
}

#[test]
fn artefacts_of_other_models_and_kinds_are_refused() {
    let b = Bench::new();
    b.compile("integer", "a.onnx", &["--save-stats", "@/stats", "--save-plan", "@/plan"]);
    b.write("text", b"hello");
    let cases = [
        b.fails(&["lower", CNN, "--plan", "@/plan", "-o", "@/x.onnx"]),
        b.fails(&["lower", VIT, "--plan", "@/text", "-o", "@/x.onnx"]),
        b.fails(&["plan", VIT, "--stats", "@/text", "-o", "@/x.plan"]),
        b.fails(&["plan", VIT, "--stats", "@/none", "-o", "@/x.plan"]),
        b.fails(&with(&["compile", "@/a.onnx", "--calib", CALIB, "-o", "@/x.onnx"], &IMAGES)),
        b.fails(&with(&["run", "@/a.onnx", "--mode", "fp32", "--input", TEST], &IMAGES)),
        b.fails(&with(&["eval", CNN, "--data", TEST, "--input-size", "28"], &IMAGES)),
    ];
    snapshot("artefacts", &cases.concat());
    // A truncated statistics file is no statistics file.
    let stats = b.bytes("stats");
    b.write("cut", &stats[..stats.len() - 7]);
    assert!(b.fails(&["plan", VIT, "--stats", "@/cut", "-o", "@/x.plan"]).contains("statistics"));
}

#[test]
fn usage_errors_have_exit_code_2() {
    let b = Bench::new();
    for args in [
        &["compile"][..],
        &["compile", VIT, "--calib", CALIB, "--crop-pct", "1.5", "-o", "@/x"],
        &["fly"],
        &["inspect", VIT, "--json", "--dot"],
    ] {
        let out = b.run(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty() && !out.stderr.is_empty());
    }
    assert!(files(b.tmp.path()).is_empty());
}

/// The summary with what differs between machines taken out.
fn steady(summary: &str) -> String {
    let mut dropping = false;
    let mut keep = |line: &&str| {
        let label = line.split(' ').next().unwrap_or_default();
        dropping = if label.is_empty() { dropping } else { ["Time", "Memory", "Logits"].contains(&label) };
        !dropping
    };
    summary.lines().filter(|l| keep(l)).map(|l| format!("{l}\n")).collect()
}

#[test]
fn compile_says_what_it_did() {
    let b = Bench::new();
    for target in ["integer", "onnxruntime"] {
        let said = b.compile(target, "out.onnx", &["--report", "@/report.json"]);
        let out = b.path("out.onnx").display().to_string();
        snapshot(&format!("compile_{target}"), &steady(&said).replace(&out, "out.onnx"));
        let report: serde_json::Value = serde_json::from_slice(&b.bytes("report.json")).unwrap();
        assert_eq!(report["blocks"], 4);
        assert_eq!(report["calibration_samples"], 4);
        assert_eq!(report["bytes_after"], b.bytes("out.onnx").len());
        assert_eq!(report["bytes_before"], std::fs::metadata(VIT).unwrap().len());
        assert!(report["quality"]["sqnr_db"].as_f64().unwrap() > 15.0, "{report}");
        assert!(said.contains("Logits") && said.contains("4 of 4 calibration samples"), "{said}");
    }
    let json = b.compile("integer", "out.onnx", &["--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["target"], "integer");
    assert_eq!(b.compile("integer", "out.onnx", &["--quiet"]), "");
}

/// A preset of fewer bits: weights are rounded by what they compute, and the plan brings them along.
#[test]
fn rounded_weights_travel_with_the_plan() {
    let b = Bench::new();
    // On onnxruntime beside channels whose scales stand in the constants that are rounded.
    std::fs::write(b.path("rounded.yaml"), "default: {weight_rounding: gptq}\n").unwrap();
    b.compile("onnxruntime", "o.onnx", &["--config", "@/rounded.yaml", "--effort", "fast", "--save-plan", "@/o.json"]);
    assert!(!vitq::pipeline::read_plan(&b.path("o.json")).unwrap().reparameterized.is_empty());
    b.ok(&["lower", VIT, "--plan", "@/o.json", "-o", "@/again.onnx"]);
    assert!(b.bytes("o.onnx") == b.bytes("again.onnx"), "compile and its plan lowered differ");
    for threads in ["1", "2"] {
        let (model, plan) = (format!("{threads}.onnx"), format!("@/{threads}.json"));
        b.compile("integer", &model, &["--config", "w4a8", "--effort", "fast", "--threads", threads, "--save-plan", &plan]);
    }
    assert!(b.bytes("1.onnx") == b.bytes("2.onnx") && b.bytes("1.constants.npz") == b.bytes("2.constants.npz"));
    b.ok(&["lower", VIT, "--plan", "@/1.json", "-o", "@/again.onnx"]);
    assert!(b.bytes("1.onnx") == b.bytes("again.onnx"), "compile and its plan lowered differ");
    let images = with(&["--calib", CALIB, "--calib-limit", "4"], &IMAGES);
    b.ok(&with(&["calibrate", VIT, "--config", "w4a8", "-o", "@/w.stats"], &images));
    let out = b.run(&["plan", VIT, "--stats", "@/w.stats", "--config", "w4a8", "-o", "@/w.json"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("rounds weights to nearest"), "nothing is skipped silently");
    std::fs::remove_file(b.path("1.constants.npz")).unwrap();
    let error = b.fails(&["lower", VIT, "--plan", "@/1.json", "-o", "@/lost.onnx"]);
    assert!(error.contains("1.constants.npz"), "{error}");
}

#[test]
fn analyze_ranks_every_activation_site() {
    let b = Bench::new();
    let images = with(&["--calib", CALIB, "--calib-limit", "4"], &IMAGES);
    // The table is the result: to be quiet is to leave out everything else.
    let said = b.ok(&with(&["analyze", VIT, "-q", "-o", "@/sites.json"], &images));
    let found: serde_json::Value = serde_json::from_slice(&b.bytes("sites.json")).unwrap();
    let sites = found["sites"].as_array().unwrap();
    let noise: Vec<f64> = sites.iter().map(|s| s["noise"].as_f64().unwrap()).collect();
    assert!(noise.len() > 50 && noise.windows(2).all(|n| n[0] >= n[1]), "{noise:?}");
    let share: f64 = sites.iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-6, "{share}");
    // More bits cost more and predict more.
    let frontier = found["frontier"].as_array().unwrap();
    let fixed = |name: &str| name.ends_with("kv_act") || name.ends_with("intSoft");
    let wideable: Vec<&str> = sites.iter().filter_map(|s| s["site"].as_str()).filter(|name| !fixed(name)).collect();
    let widened: Vec<&str> = frontier.iter().skip(1).filter_map(|p| p["widened"].as_str()).collect();
    assert_eq!(widened, wideable, "scores and softmax have one width");
    assert!(said.contains("has no other width"), "{said}");
    for pair in frontier.windows(2) {
        for key in ["sqnr_db", "mac_bits", "weight_bits"] {
            assert!(pair[1][key].as_f64() >= pair[0][key].as_f64(), "{key}: {pair:?}");
        }
    }
    assert!(said.contains(sites[0]["site"].as_str().unwrap()) && said.contains("Weights alone"), "{said}");
    // What is left without a site is noise too.
    let number = |v: &serde_json::Value| v.as_f64().unwrap();
    let measured = number(&found["measured"]);
    assert!(measured > number(&found["weights"]), "{measured}");
    assert!(sites.iter().all(|s| number(&s["on_top"]) < measured) && sites.iter().any(|s| number(&s["on_top"]) > 0.0));
    let json = b.ok(&with(&["analyze", VIT, "--json"], &images));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), found);
}

#[test]
fn a_budget_widens_and_needs_a_search() {
    let b = Bench::new();
    let said = b.compile("integer", "m.onnx", &["--config", "mixed", "--effort", "fast"]);
    assert!(said.contains("configuration 'mixed' widens sites"), "{said}");
    let mixed = with(&["compile", VIT, "--calib", CALIB, "--config", "mixed", "--effort", "fast", "-o", "@/x.onnx"], &IMAGES);
    assert!(b.fails(&with(&mixed, &["--strict"])).contains("takes the search"));
    let twice = with(&["compile", VIT, "--calib", CALIB, "--budget", "20dB,5dB", "-o", "@/x.onnx"], &IMAGES);
    assert!(b.misused(&twice).contains("two SQNRs"));
    let widened = |budget: &str| {
        let said: serde_json::Value =
            serde_json::from_str(&b.compile("integer", "b.onnx", &["--json", "--budget", budget])).unwrap();
        let count = |q: &serde_json::Value| if q["bits"] == 16 { q["sites"].as_u64().unwrap() } else { 0 };
        said["quantised"].as_array().unwrap().iter().map(count).sum::<u64>()
    };
    let said = b.compile("integer", "b.onnx", &["--json", "--budget", "60dB"]);
    assert!(said.contains("60 dB were asked for, and with 16 bits wherever they can be"), "{said}");
    assert!(!b.compile("integer", "b.onnx", &["--json", "--budget", "5dB"]).contains("were asked for"));
    let (cheap, dear) = (widened("1x"), widened("60dB"));
    assert!(cheap > 0 && dear > cheap, "{cheap} {dear}");
    assert_eq!(widened("60dB,1x"), cheap);
    let args = with(&["compile", VIT, "-o", "@/no.onnx", "--calib", CALIB, "--effort", "fast", "--budget", "20dB"], &IMAGES);
    let error = b.misused(&args);
    assert!(error.contains("--effort fast"), "{error}");
    for bad in ["0.5x", "20", "99dB", "x"] {
        let out = b.run(&with(&["compile", VIT, "-o", "@/no.onnx", "--calib", CALIB, "--budget", bad], &IMAGES));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(2) && said.contains("1dB to 60dB"), "{bad}: {said}");
    }
}

#[test]
fn stages_and_threads_give_the_same_bytes() {
    let b = Bench::new();
    let images = with(&["--calib", CALIB, "--calib-limit", "4"], &IMAGES);
    for target in ["integer", "onnxruntime"] {
        // A search decides by running the model, which `plan` cannot.
        b.compile(target, "0.onnx", &["--threads", "1", "--save-plan", "@/0.plan"]);
        b.compile(target, "9.onnx", &["--threads", "2", "--save-plan", "@/9.plan"]);
        assert!(b.bytes("0.onnx") == b.bytes("9.onnx") && b.bytes("0.plan") == b.bytes("9.plan"), "searches differ");
        b.ok(&["lower", VIT, "--plan", "@/0.plan", "-o", "@/8.onnx"]);
        assert!(b.bytes("0.onnx") == b.bytes("8.onnx"), "compile with a search and its plan lowered differ");
        let saved = ["--save-stats", "@/1.stats", "--save-plan", "@/1.plan"];
        b.compile(target, "1.onnx", &with(&["--effort", "fast", "--threads", "1"], &saved));
        b.compile(target, "2.onnx", &["--effort", "fast", "--threads", "2"]);
        b.ok(&with(&["calibrate", VIT, "--threads", "2", "-o", "@/2.stats"], &images));
        b.ok(&["plan", VIT, "--stats", "@/2.stats", "--target", target, "-o", "@/2.plan"]);
        b.ok(&["lower", VIT, "--plan", "@/2.plan", "-o", "@/3.onnx"]);
        assert!(b.bytes("1.stats") == b.bytes("2.stats"), "statistics differ");
        assert!(b.bytes("1.plan") == b.bytes("2.plan"), "plans differ");
        assert!(b.bytes("1.onnx") == b.bytes("2.onnx"), "models of 1 and 2 threads differ");
        assert!(b.bytes("1.onnx") == b.bytes("3.onnx"), "compile and its stages differ");
    }
}

/// A plan with constants beside it lowers to other weights than one without, and to nothing when they are gone or changed.
#[test]
fn a_plan_is_lowered_with_its_constants() {
    use vitq::ir::Tensor;
    let b = Bench::new();
    b.compile("integer", "1.onnx", &["--effort", "fast", "--save-plan", "@/m.plan.json"]);
    let plan = vitq::pipeline::read_plan(&b.path("m.plan.json")).unwrap();
    let source = vitq::pipeline::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(VIT)).unwrap();
    let halved = |t: &Tensor| Tensor::new(&t.shape, &t.to_f32().unwrap().iter().map(|x| x / 2.0).collect::<Vec<_>>()).unwrap();
    let constants = source.facts().constants.iter().map(|(name, t)| (name.clone(), halved(t))).collect();
    let path = vitq::pipeline::constants_path(&b.path("m.plan.json"));
    let file = vitq::pipeline::write_constants(&constants, &path).unwrap();
    let plan = vitq::quant::QuantPlan { constants: Some(file), ..plan };
    vitq::pipeline::write_plan(&plan, &b.path("m.plan.json")).unwrap();
    let lower = ["lower", VIT, "--plan", "@/m.plan.json", "-o", "@/2.onnx"];
    b.ok(&lower);
    let expected = vitq::pipeline::lower(&source.with_constants(constants).unwrap(), &plan).unwrap().0;
    let written = vitq::pipeline::read(&b.path("2.onnx")).unwrap();
    assert_eq!(vitq::pipeline::digest(&written), vitq::pipeline::digest(&expected));
    assert!(b.bytes("1.onnx") != b.bytes("2.onnx"));
    std::fs::remove_file(b.path("2.onnx")).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(b.fails(&lower).contains("their digests differ"));
    std::fs::remove_file(&path).unwrap();
    assert!(b.fails(&lower).contains("m.plan.constants.npz cannot be used"));
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn an_emitted_model_runs_and_is_near_the_float_model() {
    let b = Bench::new();
    b.compile_on("16", "integer", "q.onnx", &[]);
    b.compile_on("16", "integer", "q8.onnx", &["--batch", "8"]);
    let eval = |model: &str, more: &[&str]| {
        json(&b.ok(&with(&with(&["eval", model, "--data", TEST, "--limit", "60", "--json"], &IMAGES), more)))
    };
    let one = eval("@/q.onnx", &["--reference", VIT, "--threads", "1"]);
    assert_eq!((&one["samples"], &one["labelled"]), (&60.into(), &60.into()));
    assert!(one["top1"].as_f64().unwrap() > 0.95 && one["agreement"].as_f64().unwrap() > 0.95, "{one}");
    assert!(one["sqnr_db"].as_f64().unwrap() > 20.0, "{one}");
    // Threads change no figure. A fixed batch, whose last group is padded here, moves float sums by a last bit.
    let (threads, batch) = (eval("@/q.onnx", &["--reference", VIT, "--threads", "2"]), eval("@/q8.onnx", &["--reference", VIT]));
    for key in ["samples", "top1", "top5", "agreement", "reference_top1"] {
        assert_eq!((&one[key], &one[key]), (&threads[key], &batch[key]), "{key}");
    }
    assert_eq!((&one["sqnr_db"], &one["max_abs_difference"]), (&threads["sqnr_db"], &threads["max_abs_difference"]));
    assert!((one["sqnr_db"].as_f64().unwrap() - batch["sqnr_db"].as_f64().unwrap()).abs() < 1e-3);
    let nothing = b.misused(&with(&["eval", VIT, "--data", "models/digits/calib/0080.png"], &IMAGES));
    assert!(nothing.contains("no labels, and there is no --reference"), "{nothing}");
    let same = eval(VIT, &["--reference", VIT]);
    assert_eq!((&same["max_abs_difference"], &same["agreement"]), (&0.0.into(), &1.0.into()));
    assert!(same["sqnr_db"].is_null());
}

#[test]
fn run_prints_classes_or_writes_arrays() {
    let b = Bench::new();
    let two = [format!("{TEST}/0021.png"), format!("{TEST}/0051.png")];
    let inputs = with(&["run", VIT, "--input", &two[0], &two[1]], &IMAGES);
    let text = b.ok(&with(&inputs, &["--top", "2"]));
    assert_eq!(text.lines().count(), 6, "{text}");
    let predictions = json(&b.ok(&with(&inputs, &["--top", "3", "--json"])));
    let classes: Vec<u64> = (0..2).map(|i| predictions[i]["top"][0]["class"].as_u64().unwrap()).collect();
    // The labels of these two images.
    let labels = std::fs::read_to_string(format!("{TEST}/labels.csv")).unwrap();
    for (name, class) in ["0021.png", "0051.png"].iter().zip(classes) {
        assert!(labels.lines().any(|l| l == format!("{name},{class}")), "{name} {class}");
    }
    b.ok(&with(&inputs, &["-o", "@/out.npz"]));
    let mut npz = ndarray_npy::NpzReader::new(std::fs::File::open(b.path("out.npz")).unwrap()).unwrap();
    let logits: ndarray::Array2<f32> = npz.by_name("logits").unwrap();
    assert_eq!(logits.shape(), [2, 10]);
    // Arrays are taken as they are, and that is said.
    let image = ndarray::Array4::<f32>::zeros((1, 3, 32, 32));
    ndarray_npy::write_npy(b.path("x.npy"), &image).unwrap();
    let out = b.run(&with(&["run", VIT, "--input", "@/x.npy"], &IMAGES));
    assert!(String::from_utf8_lossy(&out.stderr).contains("preprocessing is for images"), "{out:?}");
    assert!((f64::from(logits[[0, 1]]) - predictions[0]["top"][0]["logit"].as_f64().unwrap()).abs() < 1e-6);
}

#[test]
fn inspect_shows_a_model_in_four_forms() {
    let b = Bench::new();
    snapshot("inspect_vit", &b.ok(&["inspect", VIT]));
    snapshot("inspect_cnn", &b.ok(&["inspect", CNN]));
    let found = json(&b.ok(&["inspect", VIT, "--json"]));
    assert_eq!(found["blocks"].as_array().unwrap().len(), 4);
    assert_eq!((&found["blocks"][0]["dim"], &found["blocks"][0]["mlp_ratio"]), (&64.into(), &4.0.into()));
    // The exact text is the model: parsed and printed again it is the same.
    let text = b.ok(&["inspect", VIT, "--text"]);
    let model = vitq::ir::text::parse_model(&text).unwrap();
    assert_eq!(
        model.graph.ops().len(),
        found["ops"].as_object().unwrap().values().map(|n| n.as_u64().unwrap() as usize).sum::<usize>()
    );
    assert!(b.ok(&["inspect", VIT, "--text=elided"]).len() < text.len() / 4);
    let dot = b.ok(&["inspect", VIT, "--dot"]);
    assert!(dot.starts_with("digraph") && (0..4).all(|i| dot.contains(&format!("\"blocks.{i}\""))), "{dot}");
}

#[test]
fn diff_and_roundtrip() {
    let b = Bench::new();
    b.ok(&["roundtrip", VIT, "@/same.onnx"]);
    assert_eq!(b.ok(&["diff", VIT, "@/same.onnx"]), "no difference\n");
    b.ok(&["roundtrip", VIT, "@/outside.onnx", "--external-data"]);
    assert!(b.bytes("outside.onnx").len() < b.bytes("same.onnx").len() / 2 && b.path("outside.onnx.data").is_file());
    let found = json(&b.ok(&["inspect", "@/outside.onnx", "--json"]));
    assert_eq!(found["bytes"], b.bytes("outside.onnx").len() + b.bytes("outside.onnx.data").len());
    b.compile("integer", "q.onnx", &[]);
    let text = b.ok(&["diff", VIT, "@/q.onnx"]);
    assert!(text.contains("QuantizeLinear: 0 -> ") && text.contains("metadata vitq.target: integer"), "{text}");
    assert!(json(&b.ok(&["diff", VIT, "@/q.onnx", "--json"]))["op_counts"].is_array());
}

#[test]
fn colour_is_for_terminals_unless_asked_for() {
    let b = Bench::new();
    let stderr = |color: &str| String::from_utf8(b.run(&["inspect", "@/none.onnx", "--color", color]).stderr).unwrap();
    assert!(!stderr("auto").contains('\u{1b}') && !stderr("never").contains('\u{1b}'));
    assert!(stderr("always").contains("\u{1b}["));
}

#[test]
fn completions_are_printed_for_every_shell() {
    let b = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = b.ok(&["completions", shell]);
        assert!(text.contains("vitq") && text.contains("calib-limit"), "{shell}");
    }
}
