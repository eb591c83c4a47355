//! Plans and lowered graphs of a vision transformer of one block: every scheme on both targets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::config::Config;
use vitq::ir::text::{PrintOptions, print_model};
use vitq::ir::{DType, Edit, Model, NewOp, Tensor};
use vitq::lower::lower;
use vitq::quant::{Factors, QuantPlan, Scheme, SitePlan, Target, ZeroPoint};
use vitq::runtime::tract::{Engine, EngineOptions};

#[test]
fn the_plan_of_each_target() {
    for target in [Target::Integer, Target::OnnxRuntime] {
        let (_, plan) = planned(&preset("int8"), target);
        snapshot(&format!("plan_{target}"), &plan.to_text());
    }
}

#[test]
fn the_graph_of_each_target() {
    for target in [Target::Integer, Target::OnnxRuntime] {
        let (model, _, report) = lowered(&preset("int8"), target);
        // The graph alone: function bodies have files of their own. Without the build's version.
        let text = print_model(&Model { functions: Vec::new(), ..model.clone() }, &PrintOptions::snapshot());
        snapshot(&format!("graph_{target}"), &format!("{text}\n{report:#?}\n"));
        let found = sqnr(&model);
        assert!(found > 20.0, "{target}: {found} dB");
    }
}

#[test]
fn the_integer_target_leaves_nothing_in_float() {
    let (model, plan, report) = lowered(&preset("int8"), Target::Integer);
    assert!(plan.float.is_empty() && report.notes.is_empty(), "{:?} {:?}", plan.float, report.notes);
    let counts = ops(&model);
    for (op, n) in
        [("ai.vitq.PtfLayerNorm", 4), ("ai.vitq.LogIntSoftmax", 1), ("ai.vitq.LogDequantize", 1), ("ai.vitq.LutGelu", 1)]
    {
        assert_eq!(counts.get(op), Some(&n), "{op}: {counts:?}");
    }
    for op in ["LayerNormalization", "Softmax", "Gelu"] {
        assert_eq!(counts.get(op), None);
    }
    // Every constant that carries the network is an integer; the floats left are scales and the tables of log2 codes.
    let floats = model
        .graph
        .node_ids()
        .into_iter()
        .filter_map(|id| model.graph.get(id))
        .filter(|n| n.tensor().is_some_and(|t| t.dtype == DType::F32));
    for node in floats {
        let name = &node.outputs[0];
        assert!(name.ends_with("_scale") || name.ends_with("_values"), "{name} is a float");
    }
    assert_eq!(model.functions.len(), 4);
    assert_eq!((model.opset(""), model.opset("ai.vitq"), model.header.ir_version), (Some(20), Some(1), 9));
}

#[test]
fn the_onnxruntime_target_has_no_custom_op() {
    let (model, plan, report) = lowered(&preset("int8"), Target::OnnxRuntime);
    assert!(model.functions.is_empty() && model.opset("ai.vitq").is_none() && report.custom_ops == 0);
    assert!(plan.float.iter().all(|f| !f.reason.is_empty()));
    assert_eq!(plan.sites.len() + plan.float.len(), 28);
    // No scale a channel on an activation: it would not fuse.
    assert!(plan.sites.iter().all(|s| matches!(s.scheme, Scheme::Affine { .. } | Scheme::Weight { .. })));
}

fn affine_sites(plan: &QuantPlan) -> impl Iterator<Item = (&SitePlan, u8, bool, f32, i32)> {
    plan.sites.iter().filter_map(|s| match s.scheme {
        Scheme::Affine { codes, scale, zero_point } => Some((s, codes.bits, codes.signed, scale, zero_point)),
        _ => None,
    })
}

#[test]
fn unsigned_codes() {
    let yaml = "default: {bit_type: {bits: 8, signed: false, symmetric: false}}";
    let (model, plan, _) = lowered(&variant(yaml), Target::Integer);
    assert!(affine_sites(&plan).count() > 8);
    assert!(affine_sites(&plan).all(|(_, bits, signed, _, zero)| bits == 8 && !signed && (0..=255).contains(&zero)));
    let zero = model.graph.value("logits_zero_point").and_then(|v| model.graph.constant(v)).unwrap();
    assert_eq!(zero.dtype, DType::U8);
    assert!(sqnr(&model) > 20.0);
}

#[test]
fn symmetric_codes() {
    for (signed, middle) in [(true, 0), (false, 128)] {
        let yaml =
            format!("default: {{observer_type: MinmaxObserver, bit_type: {{bits: 8, signed: {signed}, symmetric: true}}}}");
        let (model, plan, _) = lowered(&variant(&yaml), Target::Integer);
        for (site, .., scale, zero) in affine_sites(&plan).filter(|(s, ..)| s.name != "patch_embed") {
            assert_eq!(zero, middle, "{}", site.name);
            let bound = site.observed[0].abs().max(site.observed[1].abs());
            assert!((f64::from(scale) * 127.0 / f64::from(bound) - 1.0).abs() < 1e-6, "{}", site.name);
        }
        assert!(sqnr(&model) > 20.0);
    }
}

#[test]
fn six_bits_are_clipped_inside_eight() {
    let yaml = "default: {bit_type: {bits: 6, signed: true, symmetric: false}}";
    let (model, plan, _) = lowered(&variant(yaml), Target::OnnxRuntime);
    let ops = ops(&model);
    assert_eq!(ops.get("Clip"), ops.get("QuantizeLinear"));
    let bound = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap().to_i64().unwrap();
    let unsigned = plan.site("blocks.0.norm1").is_some_and(|s| matches!(s.scheme, Scheme::Affine { codes, .. } if !codes.signed));
    assert_eq!((bound("n1_low"), bound("n1_high")), if unsigned { (vec![0], vec![63]) } else { (vec![-32], vec![31]) });
    let weights = bound("fc1_w_quantized");
    assert!(weights.iter().all(|w| w.abs() <= 31) && weights.iter().any(|w| w.abs() == 31));
    let found = sqnr(&model);
    assert!((10.0..35.0).contains(&found), "{found} dB");
}

#[test]
fn twelve_bits_are_bounded_before_sixteen() {
    let yaml = "default: {bit_type: {bits: 12, signed: true, symmetric: false}}";
    let (model, plan, _) = lowered(&variant(yaml), Target::OnnxRuntime);
    let ops = ops(&model);
    let pairs = ops.get("QuantizeLinear");
    // onnxruntime has no Clip of 16-bit integers.
    assert_eq!((pairs.is_some(), ops.get("Clip"), ops.get("Max"), ops.get("Min")), (true, None, pairs, pairs));
    let found = sqnr(&model);
    assert!(found > 45.0, "{found} dB");
    let site = plan.site("blocks.0.norm1").unwrap();
    let Scheme::Affine { codes, scale, zero_point } = site.scheme else { panic!("an affine site") };
    let (low, high) = codes.range();
    let bound = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap().to_f32().unwrap()[0];
    for (name, code) in [("n1_low", low), ("n1_high", high)] {
        let quantised = f64::from(bound(name) / scale).round_ties_even() as i32 + zero_point;
        assert_eq!(quantised, code, "{name} is the outermost code");
    }
}

#[test]
fn sixteen_bits_need_opset_21() {
    let yaml = "default: {bit_type: {bits: 16, signed: true, symmetric: false}}";
    let (model, plan, _) = lowered(&variant(yaml), Target::OnnxRuntime);
    assert_eq!((model.opset(""), model.header.ir_version), (Some(21), 10));
    assert!(affine_sites(&plan).all(|(_, bits, ..)| bits == 16));
    assert_eq!(ops(&model).get("Clip"), None);
    let found = sqnr(&model);
    assert!(found > 60.0, "{found} dB");
}

#[test]
fn sixteen_bits_whose_dequantizer_a_custom_op_replaced_need_opset_21_too() {
    let yaml = "extra_layer: {mlp_fc1_output: {bit_type: {bits: 16, symmetric: false}}}";
    let (model, ..) = lowered(&variant(yaml), Target::Integer);
    assert!(ops(&model).contains_key("ai.vitq.LutGelu"), "{:?}", ops(&model));
    assert_eq!(model.opset(""), Some(21));
}

#[test]
fn log2_codes_of_four_and_eight_bits() {
    for (bits, r, least) in [(4, 0, 8.0), (8, 3, 20.0)] {
        let yaml = format!(
            "attn_layer: {{intSoft: {{bit_type: {{bits: {bits}, signed: false}}, quantization_method: Log2, log2_fraction_bits: {r}}}}}"
        );
        let (model, plan, _) = lowered(&variant(&yaml), Target::Integer);
        assert_eq!(
            plan.site("blocks.0.intSoft").unwrap().scheme,
            Scheme::Log2 { bits, fraction_bits: r, scale: 1.0, normalized: false }
        );
        let constant = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap();
        assert_eq!(constant("probs_top").to_i64().unwrap(), [(1 << bits) - 1]);
        let values = constant("probs_values").to_f32().unwrap();
        assert_eq!((values.len(), values[0], values[1 << r], values[(1 << bits) - 1]), (1 << bits, 1.0, 0.5, 0.0));
        let found = sqnr(&model);
        assert!(found > least, "{bits} bits: {found} dB");
    }
}

#[test]
fn normalised_log2_codes_sum_to_one() {
    let yaml = |normalize: bool| {
        format!("attn_layer: {{intSoft: {{bit_type: {{bits: 4}}, quantization_method: Log2, log2_normalize: {normalize}}}}}")
    };
    let (model, plan, report) = lowered(&variant(&yaml(true)), Target::Integer);
    let scheme = Scheme::Log2 { bits: 4, fraction_bits: 0, scale: 1.0, normalized: true };
    assert_eq!(plan.site("blocks.0.intSoft").unwrap().scheme, scheme);
    let count =
        |op: &str| model.graph.ops().into_iter().filter(|&id| model.graph.op(id).unwrap().op.is_in("ai.vitq", op)).count();
    assert_eq!((count("LogNormalize"), count("LogDequantize"), report.custom_ops), (1, 0, 6));
    let (plain, _, _) = lowered(&variant(&yaml(false)), Target::Integer);
    let sums = |model: &Model| {
        let engine = Engine::new(model, &["probs".to_owned()], &EngineOptions::default()).unwrap();
        let mut sums = Vec::new();
        let mut see = |_: usize, shape: &[usize], x: &[f32]| {
            sums.extend(x.chunks(shape[shape.len() - 1]).map(|row| row.iter().map(|&p| f64::from(p)).sum::<f64>()));
        };
        let mut session = engine.session().unwrap();
        (0..4).for_each(|i| _ = session.run(&[("image", Images::image(i).view())], &mut see).unwrap());
        sums
    };
    assert!(sums(&model).iter().all(|s| (s - 1.0).abs() < 1e-6) && !sums(&model).is_empty());
    assert!(sums(&plain).iter().any(|s| (s - 1.0).abs() > 0.01));
}

#[test]
fn log2_codes_reach_far_enough_whatever_their_width() {
    for (bits, r) in [(4, 0), (5, 0), (6, 1), (7, 2), (8, 3)] {
        let yaml = format!("attn_layer: {{intSoft: {{bit_type: {{bits: {bits}}}}}}}");
        let (_, plan) = planned(&variant(&yaml), Target::Integer);
        assert_eq!(
            plan.site("blocks.0.intSoft").unwrap().scheme,
            Scheme::Log2 { bits, fraction_bits: r, scale: 1.0, normalized: false }
        );
    }
}

#[test]
fn ptf_is_kept_from_values_without_a_channel_axis_and_noted() {
    let yaml = "default: {quantization_method: PTF, bit_type: {signed: false, symmetric: false}, keep_accumulator: false}";
    let (model, plan, _) = lowered(&variant(yaml), Target::Integer);
    for (name, ptf, note) in [
        ("input", false, Some("last axis")),
        ("blocks.0.attn_qkv_output.k", false, Some("last axis")),
        ("blocks.0.sv_attn", false, Some("last axis")),
        ("blocks.0.norm2", true, Some("signed")),
        // No hidden unit stands far out.
        ("blocks.0.mlp_act", false, None),
        ("blocks.0.mlp_act2", true, None),
    ] {
        let site = plan.site(name).unwrap();
        assert_eq!(matches!(site.scheme, Scheme::Ptf { .. }), ptf, "{name}");
        assert_eq!(site.note.is_some(), note.is_some(), "{name}: {:?}", site.note);
        assert!(note.is_none_or(|n| site.note.as_ref().unwrap().contains(n)), "{name}: {:?}", site.note);
    }
    assert!(sqnr(&model) > 15.0);
    let (_, plan) = planned(&variant(yaml), Target::OnnxRuntime);
    assert!(plan.site("blocks.0.norm2").unwrap().note.as_ref().unwrap().contains("PTF"));
}

#[test]
fn one_scale_a_channel_or_one_a_tensor_for_weights() {
    for (mode, per_channel) in [("channel_wise", true), ("layer_wise", false)] {
        let yaml = format!("layers: {{mlp_fc1: {{calibration_mode: {mode}}}}}");
        let (model, plan, _) = lowered(&variant(&yaml), Target::OnnxRuntime);
        let Scheme::Weight { axis, scales, bits } = &plan.site("blocks.0.mlp_fc1").unwrap().scheme else { panic!() };
        assert_eq!((*axis, scales.len(), *bits), if per_channel { (Some(1), 8, 8) } else { (None, 1, 8) });
        let shape = &model.graph.constant(model.graph.value("fc1_w_scale").unwrap()).unwrap().shape;
        assert_eq!(shape.as_slice(), if per_channel { &[8][..] } else { &[] });
        // The codes against f64: the largest element of each channel is ±127, and every element the nearest code.
        let (float, _) = tiny();
        let w = float.graph.constant(float.graph.value("fc1_w").unwrap()).unwrap().to_f32().unwrap();
        let codes = model.graph.constant(model.graph.value("fc1_w_quantized").unwrap()).unwrap().to_i64().unwrap();
        for (i, (w, q)) in w.iter().zip(&codes).enumerate() {
            let scale = f64::from(scales[if per_channel { i % 8 } else { 0 }]);
            assert!((f64::from(*w) - scale * *q as f64).abs() <= scale * 0.500_001, "{i}");
        }
        assert!(codes.iter().any(|q| q.abs() == 127) && codes.iter().all(|q| q.abs() <= 127));
    }
}

#[test]
fn ptf_exponents_become_a_scale_a_channel() {
    let (mut model, mut plan) = planned(&preset("int8"), Target::Integer);
    let site = site(&mut plan, "blocks.0.residual1.class"); // all that is computed of a last block's sum
    let Scheme::Ptf { factors, scale, zero_point, .. } = &mut site.scheme else { panic!("{:?}", site.scheme) };
    assert_eq!((factors.exponents.len(), factors.mantissa_bits), (4, 3));
    (*factors, *scale, *zero_point) = (powers("0123"), 0.03125, ZeroPoint::Channels(vec![-9, 0, 7, 127]));
    lower(&mut model, &plan).unwrap();
    let constant = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap();
    assert_eq!(constant("r1_scale").to_f32().unwrap(), [0.03125, 0.0625, 0.125, 0.25]);
    assert_eq!(constant("n2_multiplier").to_i64().unwrap(), [1, 2, 4, 8]);
    for name in ["r1_zero_point", "n2_x_zero_point"] {
        assert_eq!(constant(name).to_i64().unwrap(), [-9, 0, 7, 127], "{name}");
    }
    for name in ["r1_quantized", "r1_dequantized"] {
        let id = model.graph.value(name).unwrap().node;
        assert_eq!(model.graph.op(id).unwrap().attrs.int("axis"), Some(-1), "{name}");
    }
}

#[test]
fn mantissas_are_integer_multipliers_of_a_finer_unit() {
    let (mut model, mut plan) = planned(&preset("int8"), Target::Integer);
    let site = plan.sites.iter_mut().find(|s| s.name == "blocks.0.residual1.class").unwrap();
    let Scheme::Ptf { factors, scale, .. } = &mut site.scheme else { panic!("{:?}", site.scheme) };
    (*factors, *scale) = (Factors::new(&[0, 1, 2, 3], 2, &[0, 1, 2, 3]), 0.03125);
    assert_eq!((factors.exponents.as_str(), factors.mantissas.as_str()), ("0123", "0123"));
    lower(&mut model, &plan).unwrap();
    let constant = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap();
    assert_eq!(constant("r1_scale").to_f32().unwrap(), [1.0, 2.5, 6.0, 14.0].map(|f| f * 0.03125));
    assert_eq!(constant("n2_multiplier").to_i64().unwrap(), [4, 10, 24, 56]);
}

/// The convolution's channels are its second axis, until they are the last.
#[test]
fn the_patch_embedding_has_a_scale_for_each_of_its_channels() {
    let requantised = variant("extra_layer: {patch_embed: {keep_accumulator: false}}");
    let (model, plan, _) = lowered(&requantised, Target::Integer);
    let site = plan.site("patch_embed").unwrap();
    assert!(matches!(site.scheme, Scheme::Ptf { .. }), "{:?}", site);
    let axis = |name: &String| {
        let value = model.graph.value(&format!("{name}_quantized")).unwrap();
        model.graph.op(value.node).unwrap().attrs.int("axis").unwrap()
    };
    let axes: Vec<i64> = site.site.values.iter().map(axis).collect();
    assert_eq!(axes.first(), Some(&-3));
    assert_eq!(axes.last(), Some(&-1), "{:?}", site.site.values);
    assert!(sqnr(&model) > 20.0);
}

/// CLIP's norm before the first block is a residual stream, with a scale for each channel.
#[test]
fn a_layer_norm_may_write_a_scale_a_channel() {
    let (model, plan) = planned(&variant("layers: {norm2: {quantization_method: Uniform}}"), Target::Integer);
    let with = |digits: &str| {
        let (mut model, mut plan) = (model.clone(), plan.clone());
        let site = plan.sites.iter_mut().find(|s| s.name == "blocks.0.norm2").unwrap();
        let Scheme::Affine { codes, scale, zero_point } = site.scheme.clone() else { panic!("{:?}", site.scheme) };
        // Coarser steps in some channels, the finest as they were: no code clips.
        site.scheme = Scheme::Ptf { codes, scale, zero_point: ZeroPoint::Tensor(zero_point), factors: powers(digits) };
        let report = lower(&mut model, &plan).unwrap();
        assert_eq!(ops(&model).get("ai.vitq.PtfLayerNorm"), Some(&4), "{:?}", report.notes);
        sqnr(&model)
    };
    let (same, mixed) = (with("0000"), with("0230"));
    assert!(same > 20.0 && mixed > 25.0, "{same} and {mixed} dB");
    assert!(same > mixed, "coarser steps show: {same} and {mixed} dB");
}

/// One scale for each of the tensors of the MLP, whatever the preset says; codes of `bits` before its GELU.
fn uniform_around_gelu(bits: u8) -> Config {
    variant(&format!(
        "layers: {{norm2: {{quantization_method: Uniform}}}}\n\
         attn_layer: {{mlp_act: {{quantization_method: Uniform}}}}\n\
         extra_layer: {{mlp_fc1_output: {{quantization_method: Uniform, bit_type: {{bits: {bits}, signed: true, symmetric: false}}}}}}"
    ))
}

/// Gives a site exponents and leaves its base as it was: no code clips, and some channels have coarser steps.
fn with_exponents(plan: &mut QuantPlan, name: &str, digits: &str) {
    let site = site(plan, name);
    let Scheme::Affine { codes, scale, zero_point } = site.scheme.clone() else { panic!("{:?}", site.scheme) };
    site.scheme = Scheme::Ptf { codes, scale, zero_point: ZeroPoint::Tensor(zero_point), factors: powers(digits) };
}

/// Powers of two, a hexadecimal digit a channel.
fn powers(digits: &str) -> Factors {
    Factors { exponents: digits.to_owned(), ..Factors::default() }
}

/// The lines of a lowered graph that name one of `words`.
fn lines(model: &Model, words: &[&str]) -> String {
    let text = print_model(&Model { functions: Vec::new(), ..model.clone() }, &PrintOptions::snapshot());
    let found = text.lines().filter(|l| words.iter().any(|w| l.contains(w)));
    found.map(|l| format!("{}\n", l.trim_end())).collect()
}

#[test]
fn a_gelu_between_codes_with_exponents_is_a_table_of_a_row_for_each_pair() {
    let (fc1, act) = ("blocks.0.mlp_fc1_output", "blocks.0.mlp_act");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 4] = [
        ("both sides", &[(fc1, "01201000"), (act, "00110001")], "ChannelLutGelu"),
        ("the input alone", &[(fc1, "10000002")], "ChannelLutGelu"),
        ("the output alone", &[(act, "01000000")], "ChannelLutGelu"),
        // A near miss: exponents, and no two channels differ.
        ("one pair", &[(fc1, "11111111"), (act, "00000000")], "LutGelu"),
    ];
    let (model, plan) = planned(&uniform_around_gelu(8), Target::Integer);
    let mut text = String::new();
    for (what, sites, op) in cases {
        let (mut model, mut plan) = (model.clone(), plan.clone());
        for (name, digits) in sites {
            with_exponents(&mut plan, name, digits);
        }
        let report = lower(&mut model, &plan).unwrap();
        assert!(report.notes.is_empty(), "{what}: {:?}", report.notes);
        assert_eq!(ops(&model).get(&format!("ai.vitq.{op}")), Some(&1), "{what}: {:?}", ops(&model));
        assert_eq!(ops(&model).get("Gelu"), None, "{what}");
        assert!(model.functions.iter().any(|f| f.body.name == op), "{what}");
        let found = sqnr(&model);
        assert!(found > 20.0, "{what}: {found} dB");
        text += &format!("{what}:\n{}\n", lines(&model, &["act_table", "act_rows", "act_codes"]));
    }
    snapshot("channel_lut", &text);
}

/// The rows of wide codes are long: up to 16 of them are a table, and one more is left to the float operator.
#[test]
fn wide_codes_have_a_table_of_sixteen_rows_at_most() {
    for (fc1, act, note) in [
        ("0123012301230123000", "0000111122223333000", None),
        ("0123012301230123400", "0000111122223333000", Some("stays in float between its codes")),
    ] {
        let (mut model, mut plan) = planned_with(19, &uniform_around_gelu(16), Target::Integer);
        with_exponents(&mut plan, "blocks.0.mlp_fc1_output", fc1);
        with_exponents(&mut plan, "blocks.0.mlp_act", act);
        let report = lower(&mut model, &plan).unwrap();
        let refused = note.is_some();
        assert_eq!(ops(&model).get("Gelu"), refused.then_some(&1), "{:?}", ops(&model));
        assert_eq!(ops(&model).get("ai.vitq.ChannelLutGelu"), (!refused).then_some(&1));
        assert_eq!(report.notes.len(), usize::from(refused), "{:?}", report.notes);
        for n in &report.notes {
            assert!(n.starts_with("Gelu (producing 'act')") && n.contains(note.unwrap()) && n.contains("2^20"), "{n}");
        }
    }
}

/// Exponents shift the codes of a product's input, so that the bias is in units of the base, not of any channel.
#[test]
fn biases_after_codes_with_exponents_are_in_units_of_the_base() {
    let (mut model, mut plan) = planned(&uniform_around_gelu(8), Target::Integer);
    with_exponents(&mut plan, "blocks.0.norm2", "3120");
    with_exponents(&mut plan, "blocks.0.mlp_act", "21000001");
    let report = lower(&mut model, &plan).unwrap();
    assert_eq!((report.biases, report.notes.len()), (9, 0), "{report:?}");
    let (float, _) = tiny();
    for (input, weight, bias) in [("norm2", "mlp_fc1", "fc1_b"), ("mlp_act", "mlp_fc2", "fc2_b")] {
        let Scheme::Ptf { scale: base, .. } = plan.site(&format!("blocks.0.{input}")).unwrap().scheme else { panic!() };
        let Scheme::Weight { scales, .. } = &plan.site(&format!("blocks.0.{weight}")).unwrap().scheme else { panic!() };
        let constant = |m: &Model, name: &str| m.graph.constant(m.graph.value(name).unwrap()).unwrap().clone();
        let b = constant(&float, bias).to_f32().unwrap();
        let codes = constant(&model, &format!("{bias}_quantized"));
        assert_eq!(codes.dtype, DType::I32);
        for (c, q) in codes.to_i64().unwrap().into_iter().enumerate() {
            let unit = f64::from(base) * f64::from(scales[c]);
            assert!((f64::from(b[c]) - unit * q as f64).abs() <= unit * 0.5001, "{bias} {c}");
        }
    }
}

#[test]
fn biases_are_int32_in_units_of_both_scales() {
    let (model, plan, report) = lowered(&preset("int8"), Target::OnnxRuntime);
    // The convolution, q, k, v, the projection, both Linears of the MLP, the classifier.
    assert_eq!((report.biases, report.notes.len()), (8, 0), "{report:?}");
    let constant = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap();
    let Scheme::Affine { scale: x, .. } = plan.site("blocks.0.norm2").unwrap().scheme else { panic!() };
    let Scheme::Weight { scales, .. } = &plan.site("blocks.0.mlp_fc1").unwrap().scheme else { panic!() };
    let (float, _) = tiny();
    let b = float.graph.constant(float.graph.value("fc1_b").unwrap()).unwrap().to_f32().unwrap();
    let codes = constant("fc1_b_quantized");
    assert_eq!(codes.dtype, DType::I32);
    for (c, q) in codes.to_i64().unwrap().into_iter().enumerate() {
        let unit = f64::from(x) * f64::from(scales[c]);
        assert!((f64::from(b[c]) - unit * q as f64).abs() <= unit * 0.5001, "{c}");
    }
}

#[test]
fn a_bias_that_does_not_fit_stays_in_float_and_is_noted() {
    let (mut model, plan) = planned(&preset("int8"), Target::OnnxRuntime);
    let mut edit = Edit::new(&mut model.graph);
    let id = edit.value("fc1_b").unwrap().node;
    edit.set_tensor(id, Tensor::vector(&[1e9f32, 0., 0., 0., 0., 0., 0., 0.]));
    edit.commit().unwrap();
    let report = lower(&mut model, &plan).unwrap();
    assert_eq!(report.biases, 7);
    let why = "its bias stays in float: it takes more than half of 32 bits in units of input scale × weight scale";
    assert_eq!(report.notes, [format!("Add (producing 'fc1'): {why}")]);
    let fc1 = model.graph.value("fc1").unwrap();
    let bias = model.graph.input(fc1.node, 1).unwrap();
    assert_eq!(model.graph.value_name(bias), "fc1_b");
}

#[test]
fn outputs_keep_their_names_and_shapes_are_read_from_the_float_value() {
    let (mut model, plan) = planned(&preset("int8"), Target::Integer);
    let mut edit = Edit::new(&mut model.graph);
    let fc1 = edit.value("fc1").unwrap();
    let size = edit.add(fc1.node, NewOp::std("Shape", "fc1_shape").input(fc1));
    edit.push_graph_output(size);
    edit.commit().unwrap();
    lower(&mut model, &plan).unwrap();
    let g = &model.graph;
    let names: Vec<&str> = g.outputs().iter().map(|&v| g.value_name(v)).collect();
    assert_eq!(names, ["logits", "fc1_shape"]);
    assert!(g.is_op(g.outputs()[0].node, "DequantizeLinear"));
    let read = g.input(g.value("fc1_shape").unwrap().node, 0).unwrap();
    assert!(g.is_op(read.node, "Add"), "{}", g.describe(read.node));
}

/// Whatever a configuration does, a site is in the plan once: quantised or in float with a reason.
#[test]
fn every_site_is_decided_once() {
    let yaml = "attn_layer: {mlp_act: {float: true}, kv_act: {bit_type: {bits: 16}}}";
    for target in [Target::Integer, Target::OnnxRuntime] {
        let (_, plan) = planned(&variant(yaml), target);
        let (_, vit) = tiny();
        let mut names: Vec<String> =
            plan.sites.iter().map(|s| s.name.clone()).chain(plan.float.iter().map(|f| f.name.clone())).collect();
        // Rows of a sum have codes of their own, or go with the others.
        let listed = vit.sites.iter().filter(|s| target == Target::Integer || s.rows.is_none());
        let mut wanted: Vec<String> = listed.map(|s| s.full_name()).collect();
        names.sort();
        wanted.sort();
        assert_eq!(names, wanted);
        assert!(plan.float.iter().any(|f| f.name == "blocks.0.mlp_act" && f.reason == "the configuration says so"));
    }
}
