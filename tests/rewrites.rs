//! Every exporter form of tests/rewrites through canonicalisation: the graph before and after as text, in
//! snapshots/rewrites; the same numbers out; and no rule that the cases could do without.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use ndarray::ArrayD;
use vitq::canon::{self, CanonError, CanonReport};
use vitq::ir::text::{PrintOptions, parse_model, print_model};
use vitq::ir::{AttrValue, DType, Edit, Model, Node, OpName, Subgraph};
use vitq::pattern::Rule;

/// What must come of a case.
enum Expect {
    /// These rules apply.
    Rules(&'static [&'static str]),
    /// The rule does not apply. A near miss says this of it, unless the rule reports none.
    Not(&'static str, &'static str),
    /// What folding leaves: this operator.
    Keeps(&'static str),
    /// No rule has anything to do.
    Nothing,
    /// The opset adapters alone change the graph, such that its text has this.
    Adapted(&'static str),
    /// An error that says this.
    Error(&'static str),
}
use Expect::{Adapted, Error, Keeps, Not, Nothing, Rules};

const CASES: &[(&str, Expect)] = &[
    ("attention_divisor_vector_near_miss", Not("scale-as-mul", "")),
    ("attention_flat_keys_cut_near_miss", Keeps("Reshape (turned, back_shape)")),
    ("attention_flat_keys_near_miss", Keeps("Reshape (turned, back_shape)")),
    ("attention_gather_list_near_miss", Not("separate-qkv", "Gather of a single index")),
    ("attention_gather_scale_on_q", Rules(&["separate-qkv", "scale-out-of-scores", "fold-scale-into-q"])),
    ("attention_head_width_computed", Rules(&["separate-qkv", "scale-out-of-scores", "fold-scale-into-q"])),
    ("attention_key_scale_vector_near_miss", Not("scale-out-of-transpose", "")),
    ("attention_keys_and_values", Rules(&["separate-qkv"])),
    ("attention_learnt_query", Rules(&["scale-out-of-scores", "fold-scale-into-query"])),
    ("attention_learnt_query_near_miss", Not("fold-scale-into-query", "")),
    (
        "attention_near_miss_permutation",
        Not("separate-qkv", "perm [2, 0, 3, 1, 4] expected, found [2, 0, 1, 3, 4] at Transpose (producing 'permuted')"),
    ),
    ("attention_op", Rules(&["attention-op"])),
    ("attention_op_added_mask", Rules(&["attention-op"])),
    ("attention_op_mask_of_trues", Rules(&["attention-op"])),
    ("attention_op_near_miss_causal", Not("attention-op", "causality")),
    ("attention_op_near_miss_grouped", Not("attention-op", "as many heads of k and v as of q expected, found 2 and 4")),
    ("attention_op_scaled", Rules(&["attention-op"])),
    ("attention_q_read_twice_near_miss", Not("fold-scale-into-q", "")),
    ("attention_rows_joined", Rules(&["separate-qkv"])),
    ("attention_scale_divides_q", Rules(&["separate-qkv", "scale-out-of-scores", "fold-scale-into-q"])),
    ("attention_scale_foreign_join_near_miss", Not("fold-scale-into-q", "")),
    ("attention_scale_gram_near_miss", Not("fold-scale-into-q", "")),
    ("attention_scale_into_norm", Rules(&["fold-scale-into-q"])),
    ("attention_scale_on_k", Rules(&["separate-qkv", "scale-out-of-transpose", "scale-out-of-scores", "fold-scale-into-q"])),
    ("attention_scale_through_rotation", Rules(&["fold-scale-into-q"])),
    ("attention_scale_vector_near_miss", Not("scale-out-of-scores", "")),
    ("attention_slice_in_place", Rules(&["separate-qkv"])),
    ("attention_slice_scale_on_both", Rules(&["separate-qkv", "scale-out-of-scores", "merge-scales", "fold-scale-into-q"])),
    ("attention_slice_to_the_end", Rules(&["separate-qkv"])),
    ("attention_split_divided_scores", Rules(&["separate-qkv", "scale-as-mul", "fold-scale-into-q"])),
    ("attention_split_in_place", Rules(&["separate-qkv", "squeeze-before-transpose"])),
    ("attention_split_in_place_near_miss", Not("separate-qkv", "axis 2 expected")),
    ("attention_squeeze_axis_near_miss", Not("separate-qkv", "Squeeze of axis 0 expected")),
    ("attention_two_factors_near_miss", Not("merge-scales", "")),
    ("batch_norm_after_conv", Rules(&["fold-batch-norm"])),
    ("batch_norm_after_grouped_conv", Rules(&["fold-batch-norm"])),
    ("batch_norm_after_linear", Rules(&["fold-batch-norm"])),
    ("batch_norm_near_miss_rank", Not("fold-batch-norm", "a Linear of rank 2 before it expected, found rank Some(3)")),
    ("batch_norm_near_miss_read_twice", Not("fold-batch-norm", "as the only reader of 'c' expected, found 2")),
    ("batch_norm_near_miss_relu", Not("fold-batch-norm", "found Relu")),
    ("contrib_attention", Rules(&["packed-attention", "fold-scale-into-q"])),
    ("contrib_attention_near_miss_mask", Not("packed-attention", "no mask expected, found 'm'")),
    ("contrib_attention_sizes", Rules(&["packed-attention"])),
    ("contrib_attention_without_bias", Rules(&["packed-attention"])),
    ("contrib_bias_add", Rules(&["bias-add"])),
    ("contrib_bias_softmax", Rules(&["bias-softmax"])),
    ("contrib_bias_softmax_near_miss", Not("bias-softmax", "a softmax over the last axis expected, found axis 2")),
    ("contrib_bias_split_gelu", Rules(&["bias-split-gelu"])),
    ("contrib_fused_conv", Rules(&["fused-conv"])),
    ("contrib_fused_conv_activations", Rules(&["fused-conv"])),
    ("contrib_fused_conv_near_miss", Not("fused-conv", "a known activation expected, found 'Mystery'")),
    ("contrib_fused_gemm", Rules(&["fused-gemm", "linear-from-gemm"])),
    ("contrib_fused_gemm_near_miss", Not("fused-gemm", "a known activation expected, found 'Mystery'")),
    ("contrib_fused_matmul", Rules(&["fused-matmul"])),
    ("contrib_fused_matmul_near_miss", Not("fused-matmul", "transBatchA = 0 expected")),
    ("contrib_fused_matmul_weights", Rules(&["fused-matmul"])),
    ("contrib_gelu", Rules(&["bias-gelu", "fast-gelu", "quick-gelu"])),
    ("contrib_gemm_fast_gelu", Rules(&["gemm-fast-gelu"])),
    ("contrib_memory_layout", Error("graph_optimization_level = ORT_ENABLE_EXTENDED")),
    ("contrib_multi_head_attention", Rules(&["multi-head-attention"])),
    ("contrib_multi_head_attention_biased_scores", Rules(&["multi-head-attention"])),
    ("contrib_multi_head_attention_heads_first", Rules(&["multi-head-attention"])),
    ("contrib_multi_head_attention_near_miss", Not("multi-head-attention", "no key padding mask expected, found 'm'")),
    ("contrib_near_miss_other_domain", Not("bias-add", "")),
    ("contrib_near_miss_other_domain", Not("bias-gelu", "")),
    ("contrib_near_miss_other_domain", Not("bias-split-gelu", "")),
    ("contrib_near_miss_other_domain", Not("fast-gelu", "")),
    ("contrib_near_miss_other_domain", Not("gemm-fast-gelu", "")),
    ("contrib_near_miss_other_domain", Not("quick-gelu", "")),
    ("contrib_rms_norm", Rules(&["simplified-layer-norm", "rms-norm"])),
    ("contrib_rms_norm_near_miss", Not("simplified-layer-norm", "a norm over the last axis expected, found axis 1")),
    ("contrib_silu", Rules(&["quick-gelu"])),
    ("contrib_skip_layer_norm", Rules(&["skip-layer-norm"])),
    ("contrib_skip_layer_norm_linear", Rules(&["skip-layer-norm"])),
    ("contrib_skip_layer_norm_near_miss", Not("skip-layer-norm", "the mean and the deviation to have no reader expected")),
    ("contrib_skip_layer_norm_plain", Rules(&["skip-layer-norm", "layer-norm-beta"])),
    ("contrib_skip_rms_norm", Rules(&["skip-rms-norm"])),
    ("contrib_skip_rms_norm_near_miss", Not("skip-rms-norm", "the mean and the deviation to have no reader expected")),
    ("expand_is_broadcast", Rules(&["expand-is-broadcast"])),
    ("expand_is_broadcast_itself_near_miss", Not("expand-is-broadcast", "")),
    ("expand_is_broadcast_near_miss", Not("expand-is-broadcast", "")),
    ("float32_brain", Rules(&["float32"])),
    ("float32_inside", Rules(&["float32"])),
    ("float32_interface", Rules(&["float32"])),
    ("float32_weights", Rules(&["float32"])),
    ("fold_bias_network", Keeps("y = Add (x, bounded)")),
    ("gelu_erf_divided", Rules(&["gelu-erf"])),
    ("gelu_erf_dynamo", Rules(&["gelu-erf"])),
    ("gelu_erf_torchscript", Rules(&["gelu-erf"])),
    ("gelu_near_miss_constant", Not("gelu-erf", "constant 1.4142135 expected, found 1.5, at Div (producing 'a')")),
    ("gelu_near_miss_other_input", Not("gelu-erf", "'z' expected again as x, found 'x', at Div (producing 'a')")),
    ("gelu_near_miss_rank", Not("gelu-erf", "rank 2 expected, as x has, found rank 4, at Mul (producing 'y')")),
    ("gelu_near_miss_third", Not("gelu-erf", "constant 2 expected, found 3, at Div (producing 'y')")),
    ("gelu_tanh", Rules(&["gelu-tanh"])),
    ("gelu_tanh_near_miss", Not("gelu-tanh", "constant 0.044715 expected, found 0.05, at Mul (producing 'c')")),
    ("gelu_tanh_product", Rules(&["gelu-tanh"])),
    ("hard_swish", Rules(&["hard-swish"])),
    ("hard_swish_near_miss", Not("hard-swish", "")),
    ("last_axis", Rules(&["last-axis"])),
    ("last_axis_mean_near_miss", Not("last-axis", "")),
    ("last_axis_near_miss", Not("last-axis", "")),
    ("layer_norm_axes_input", Rules(&["layer-norm"])),
    ("layer_norm_beta", Rules(&["layer-norm-beta"])),
    ("layer_norm_beta_near_miss", Not("layer-norm-beta", "")),
    ("layer_norm_decomposed", Rules(&["layer-norm"])),
    ("layer_norm_last_axis_counted", Rules(&["layer-norm"])),
    ("layer_norm_near_miss_axis", Not("layer-norm", "last axis expected, found axes [1] at ReduceMean (producing 'mean')")),
    ("layer_norm_near_miss_cube", Not("layer-norm", "constant 2 expected, found 3, at Pow (producing 'square')")),
    ("layer_norm_near_miss_one_gamma", Not("layer-norm", "gamma for 4 channels expected, found 1 elements")),
    ("layer_norm_near_miss_two_axes", Not("layer-norm", "found axes [1, 2] at ReduceMean (producing 'mean')")),
    ("layer_norm_plain", Rules(&["layer-norm-plain"])),
    ("layer_norm_plain_beta", Rules(&["layer-norm-plain"])),
    ("layer_norm_plain_gamma", Rules(&["layer-norm-plain"])),
    ("layer_norm_plain_near_miss", Not("layer-norm-plain", "")),
    ("layer_norm_twice_centred", Rules(&["layer-norm"])),
    ("layer_scale", Rules(&["layer-scale"])),
    ("layer_scale_after_norm", Rules(&["layer-scale"])),
    ("layer_scale_near_miss_read_twice", Not("layer-scale", "")),
    ("layer_scale_near_miss_tokens", Not("layer-scale", "")),
    ("layer_scale_vector_near_miss", Not("layer-scale", "")),
    ("layer_scale_without_bias", Rules(&["layer-scale"])),
    ("linear_bias_last", Rules(&["linear-bias-last"])),
    ("linear_bias_last_near_miss", Not("linear-bias-last", "")),
    ("linear_from_gemm", Rules(&["linear-from-gemm"])),
    ("linear_from_gemm_near_miss", Not("linear-from-gemm", "transA = 0 expected, at Gemm (producing 'y')")),
    ("linear_from_gemm_row_bias", Rules(&["linear-from-gemm"])),
    ("linear_from_gemm_without_bias", Rules(&["linear-from-gemm"])),
    ("linear_without_bias", Nothing),
    ("mask_of_nothing", Rules(&["mask-of-nothing"])),
    ("mask_of_nothing_near_miss", Not("mask-of-nothing", "")),
    ("mean_as_pool", Rules(&["mean-as-pool"])),
    ("mean_as_pool_counted_from_the_end", Rules(&["mean-as-pool"])),
    ("mean_as_pool_near_miss_dropped", Not("mean-as-pool", "")),
    ("mean_as_pool_near_miss_rank", Not("mean-as-pool", "")),
    ("merge_transposes", Keeps("y = Transpose <perm = [0, 2, 3, 1]> (x)")),
    ("merge_transposes_near_miss", Keeps("y = Transpose <perm = [0, 1, 3, 2]> (r)")),
    ("merge_transposes_shared", Keeps("y = Transpose <perm = [0, 2, 3, 1]> (x)")),
    ("merge_transposes_unit_axis", Keeps("y = Transpose <perm = [0, 1, 3, 2]> (y_squeezed)")),
    ("opset_axes", Adapted("Squeeze (x, s_axes)")),
    ("opset_clip_pad_slice", Adapted("c = Clip (x, c_min, c_max)")),
    ("opset_near_miss_upsample", Error("Upsample (producing 'y'): means something else in opset 9")),
    ("opset_softmax_last_axis", Adapted("Softmax <axis = -1> (x)")),
    ("opset_softmax_near_miss_flattened", Error("over axis 1 of a value of rank 4, which flattens its input")),
    ("opset_split", Adapted("c, d = Split <axis = 1, num_outputs = 2> (x)")),
    ("opset_split_17", Adapted("c, d = Split <axis = 1, num_outputs = 2> (x)")),
    ("pool_rounds_down", Rules(&["pool-rounds-down"])),
    ("pool_rounds_down_near_miss", Not("pool-rounds-down", "")),
    ("pool_rounds_down_strides_near_miss", Not("pool-rounds-down", "")),
    ("rms_norm", Rules(&["rms-norm"])),
    ("rms_norm_divided", Rules(&["rms-norm"])),
    ("rms_norm_near_miss_tokens", Not("rms-norm", "")),
    ("rows_linear", Rules(&["linear-on-rows"])),
    ("rows_linear_near_miss", Not("linear-on-rows", "")),
    ("rows_linear_to_heads", Rules(&["linear-on-rows"])),
    ("scale_of_sum", Rules(&["scale-of-sum"])),
    ("scale_of_sum_near_miss", Not("scale-of-sum", "")),
    ("separate_linears_near_miss", Not("separate-linears", "")),
    ("separate_linears_near_miss_axis", Not("separate-linears", "")),
    ("separate_linears_slices", Rules(&["separate-linears"])),
    ("separate_linears_split", Rules(&["separate-linears"])),
    ("squeeze_before_transpose_near_miss", Not("squeeze-before-transpose", "")),
    ("sum_of_stack", Rules(&["sum-of-stack"])),
    ("sum_of_stack_near_miss", Not("sum-of-stack", "")),
    ("unmasked_softmax_guard", Rules(&["mask-of-nothing", "unmasked-softmax-guard"])),
    ("unmasked_softmax_guard_near_miss", Not("unmasked-softmax-guard", "")),
];

/// The rules whose near misses are too common to report.
const SILENT: &[&str] = &[
    "linear-bias-last",
    "scale-out-of-scores",
    "scale-out-of-transpose",
    "merge-scales",
    "scale-as-mul",
    "fold-scale-into-q",
    "fold-scale-into-query",
    "expand-is-broadcast",
    "hard-swish",
    "last-axis",
    "pool-rounds-down",
    "rms-norm",
    "scale-of-sum",
    "separate-linears",
    "sum-of-stack",
    "mean-as-pool",
    "layer-scale",
    "bias-add",
    "bias-gelu",
    "bias-split-gelu",
    "fast-gelu",
    "gemm-fast-gelu",
    "layer-norm-beta",
    "layer-norm-plain",
    "linear-on-rows",
    "mask-of-nothing",
    "quick-gelu",
    "squeeze-before-transpose",
    "unmasked-softmax-guard",
];

/// Near misses that the executor does not run either.
const NOT_RUN: &[&str] = &["last_axis_mean_near_miss", "pool_rounds_down_near_miss", "pool_rounds_down_strides_near_miss"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/rewrites")
}

fn text_of(stem: &str) -> String {
    std::fs::read_to_string(folder().join(format!("{stem}.onnxtxt"))).unwrap()
}

fn parsed(stem: &str) -> Model {
    parse_model(&text_of(stem)).unwrap_or_else(|e| panic!("{stem}: {e}"))
}

fn show(model: &Model) -> String {
    // Every number of these small graphs, so that a wrong weight shows.
    let text = print_model(model, &PrintOptions { max_elements: Some(64), ..PrintOptions::snapshot() });
    text.lines().filter(|l| !l.starts_with("ir_version")).fold(String::new(), |out, l| out + l + "\n")
}

fn canonical(stem: &str) -> Result<(Model, CanonReport), CanonError> {
    let mut model = parsed(stem);
    canon::canonicalise(&mut model).map(|report| (model, report))
}

#[test]
fn every_file_is_a_case_and_every_case_a_file() {
    let entries = std::fs::read_dir(folder()).unwrap();
    let files: BTreeSet<String> = entries.map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    let cases: BTreeSet<String> = CASES.iter().map(|(stem, _)| (*stem).to_owned()).collect();
    assert_eq!(files, cases);
    // A file may be a near miss of several rules.
    assert!(CASES.is_sorted_by_key(|(stem, _)| *stem));
}

#[test]
fn every_case_before_and_after() {
    for (stem, _) in CASES {
        let comment: String = text_of(stem).lines().take_while(|l| l.starts_with('#')).fold(String::new(), |s, l| s + l + "\n");
        assert!(!comment.is_empty(), "{stem} says nothing of itself");
        let mut out = format!("{comment}\nbefore\n\n{}\nafter\n\n", show(&parsed(stem)));
        match canonical(stem) {
            Ok((after, report)) => {
                out.push_str(&show(&after));
                let _ = writeln!(out, "\nrules applied: {}", if report.applied.is_empty() { "none" } else { "" });
                for (rule, n) in &report.applied {
                    let _ = writeln!(out, "  {n} × {rule}");
                }
                for miss in &report.near_misses {
                    let _ = writeln!(out, "near miss around {}: {miss}", miss.tell);
                }
            }
            Err(e) => {
                let _ = writeln!(out, "error: {e}");
            }
        }
        insta::with_settings!({ snapshot_path => "../snapshots/rewrites", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(*stem, out);
        });
    }
}

#[test]
fn every_case_does_as_expected() {
    for (stem, expect) in CASES {
        let result = canonical(stem);
        let applied = result.as_ref().map(|(_, r)| r.applied.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
        match (expect, &result) {
            (Rules(rules), Ok(_)) => {
                for rule in *rules {
                    assert!(applied.contains(rule), "{stem}: {rule} did not apply, only {applied:?}");
                }
            }
            (Not(rule, says), Ok((_, report))) => {
                assert!(!applied.contains(rule), "{stem}: {rule} applied");
                let misses: Vec<String> = report.near_misses.iter().filter(|m| m.rule == *rule).map(|m| m.what.clone()).collect();
                assert_eq!(says.is_empty(), SILENT.contains(rule), "{stem}");
                assert!(says.is_empty() || misses.iter().any(|m| m.contains(says)), "{stem}: {misses:#?}");
            }
            (Keeps(has), Ok((after, _))) => assert!(show(after).contains(has), "{stem}: {}", show(after)),
            (Nothing, Ok((after, _))) => {
                assert!(applied.is_empty(), "{stem}: {applied:?}");
                assert_eq!(show(after).replace("opset: ai.onnx 20", "opset: ai.onnx 17"), show(&parsed(stem)));
            }
            (Adapted(has), Ok((after, _))) => {
                assert!(applied.is_empty(), "{stem}: {applied:?}");
                assert!(show(after).contains(has), "{stem}: {}", show(after));
            }
            (Error(says), Err(e)) => assert!(e.to_string().contains(says), "{stem}: {e}"),
            (_, result) => panic!("{stem}: {:?}", result.as_ref().map(|(_, r)| r)),
        }
    }
}

/// softmax(q·kᵀ · scale)·v in f64, for the operator that the executor does not know.
fn attention(inputs: &BTreeMap<String, ArrayD<f32>>, scale: f64, bias: &[f32]) -> ArrayD<f32> {
    let (q, k, v) = (&inputs["q"], &inputs["k"], &inputs["v"]);
    let (n, d) = (q.shape()[2], q.shape()[3]);
    ArrayD::from_shape_fn(v.raw_dim(), |at| {
        let (b, h, row, out) = (at[0], at[1], at[2], at[3]);
        let product = |j: usize| (0..d).map(|i| f64::from(q[[b, h, row, i]]) * f64::from(k[[b, h, j, i]])).sum::<f64>();
        let score = |j: usize| scale * product(j) + bias.get(j).copied().map_or(0.0, f64::from);
        let weights: Vec<f64> = (0..n).map(|j| score(j).exp()).collect();
        let sum: f64 = (0..n).map(|j| weights[j] * f64::from(v[[b, h, j, out]])).sum();
        (sum / weights.iter().sum::<f64>()) as f32
    })
}

/// What onnxruntime computes on a case that holds its own operators (contrib.py).
fn contributed(stem: &str) -> Option<BTreeMap<String, ArrayD<f32>>> {
    let text = std::fs::read_to_string(folder().with_file_name("contrib.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let array = |v: &serde_json::Value| {
        let list = |key: &str| v[key].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
        let shape: Vec<usize> = list("shape").iter().map(|&d| d as usize).collect();
        ArrayD::from_shape_vec(shape, list("data").iter().map(|&x| x as f32).collect()).unwrap()
    };
    Some(all.get(stem)?.as_object().unwrap().iter().map(|(name, v)| (name.clone(), array(v))).collect())
}

/// Whether the executor does not know some operator or element type.
fn is_foreign(model: &Model) -> bool {
    let brain = |id| model.graph.get(id).and_then(Node::tensor).is_some_and(|t| t.dtype == DType::BF16);
    if model.graph.node_ids().into_iter().any(brain) {
        return true;
    }
    let standard = |op: &OpName| {
        op.canonical_domain().is_empty() && !["SimplifiedLayerNormalization", "IsNaN"].contains(&op.op_type.as_str())
    };
    model.graph.ops().into_iter().any(|id| !standard(&model.graph.op(id).unwrap().op))
}

/// Means and maxima of windows of two by two, those at the edge cut off.
fn pools(x: &ArrayD<f32>) -> BTreeMap<String, ArrayD<f32>> {
    let (rows, n) = (x.shape()[2], x.shape()[2].div_ceil(2));
    let shape = [x.shape()[0], x.shape()[1], n, n];
    let window = |at: &ndarray::IxDyn| -> Vec<f32> {
        let inside = |i: usize| (2 * i)..(2 * i + 2).min(rows);
        inside(at[2]).flat_map(|r| inside(at[3]).map(move |c| (r, c))).map(|(r, c)| x[[at[0], at[1], r, c]]).collect()
    };
    let pooled = |of: fn(&[f32]) -> f32| ArrayD::from_shape_fn(shape.to_vec(), |at| of(&window(&at)));
    let mean = |w: &[f32]| (w.iter().map(|&v| f64::from(v)).sum::<f64>() / w.len() as f64) as f32;
    let max = |w: &[f32]| w.iter().copied().fold(f32::MIN, f32::max);
    BTreeMap::from([("y".to_owned(), pooled(mean)), ("z".to_owned(), pooled(max))])
}

/// Whatever rules do, and where they rightly do nothing: the numbers are the same.
#[test]
fn every_case_keeps_its_meaning() {
    let size = |name: &str| match name {
        "batch" | "a" => 2,
        "rows" => 10,
        "b" => 3,
        "c" => 4,
        _ => 5,
    };
    for (stem, expect) in CASES {
        let Ok((after, _)) = canonical(stem) else { continue };
        if matches!(expect, Not("attention-op", _)) {
            assert!(show(&after).contains("opset: ai.onnx 23"), "{stem} needs the operator set of Attention");
            continue;
        }
        if is_foreign(&after) {
            assert!(matches!(expect, Not(..)), "{stem} keeps an operator that it should not");
            continue;
        }
        let before = parsed(stem);
        let inputs = common::inputs(&common::input_shapes(&before, &size));
        let op = before.graph.ops().into_iter().find_map(|id| before.graph.op(id).filter(|o| o.op.is("Attention")));
        let wanted = match op {
            Some(op) => {
                let scale = op.attrs.float("scale").map_or(0.5, f64::from);
                let bias = before.graph.value("bias").and_then(|v| before.graph.constant(v));
                let bias = bias.map(|t| t.to_f32().unwrap()).unwrap_or_default();
                BTreeMap::from([("y".to_owned(), attention(&inputs, scale, &bias))])
            }
            None if is_foreign(&before) => contributed(stem).unwrap_or_else(|| panic!("{stem} is not in contrib.json")),
            // Nor pools that round their size up.
            None if *stem == "pool_rounds_down" => pools(&inputs["x"]),
            None if NOT_RUN.contains(stem) => continue,
            // The executor has no GatherND: what it picks is tested beside its folding.
            None if before.graph.ops().iter().any(|&id| before.graph.is_op(id, "GatherND")) => continue,
            None => common::run(&before, &inputs).unwrap_or_else(|e| panic!("{stem}, before: {e}")),
        };
        let found = common::run(&after, &inputs).unwrap_or_else(|e| panic!("{stem}, after: {e}"));
        assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{stem}");
        for (name, a) in &wanted {
            let difference = common::relative_difference(a, &found[name]);
            // What was computed in halves was rounded to them.
            let close = if stem.starts_with("float32_in") { 1e-3 } else { 1e-5 };
            assert!(difference <= close, "{stem}: '{name}' differs by {difference}");
            assert!(a.iter().any(|v| Some(v) != a.first()), "{stem}: '{name}' is constant, which proves nothing");
        }
    }
}

fn stages(without: &str) -> [Vec<Rule>; 3] {
    [canon::contrib_rules(), canon::fuse_rules(), canon::attention_rules()]
        .map(|rules| rules.into_iter().filter(|r| r.name != without).collect())
}

#[test]
fn no_rule_can_be_removed() {
    let graph = |stem: &str, without: &str| {
        let mut model = parsed(stem);
        canon::canonicalise_by(&mut model, &stages(without)).map(|_| show(&model)).ok()
    };
    let whole: BTreeMap<&str, Option<String>> = CASES.iter().map(|(stem, _)| (*stem, graph(stem, ""))).collect();
    for rule in stages("").iter().flatten() {
        let changed = CASES.iter().filter(|(stem, _)| graph(stem, rule.name) != whole[stem]).count();
        assert!(changed > 0, "no case shows what {} is for", rule.name);
    }
}

#[test]
fn every_rule_has_a_case_and_a_near_miss() {
    for rule in stages("").iter().flatten() {
        let case = CASES.iter().any(|(_, e)| matches!(e, Rules(rules) if rules.contains(&rule.name)));
        let miss = CASES.iter().any(|(_, e)| matches!(e, Not(name, _) if *name == rule.name));
        assert!(case && miss, "{}: case {case}, near miss {miss}", rule.name);
    }
}

#[test]
fn canonicalising_twice_changes_nothing() {
    for (stem, _) in CASES {
        let Ok((once, _)) = canonical(stem) else { continue };
        let mut twice = once.clone();
        canon::canonicalise(&mut twice).unwrap();
        assert_eq!(show(&once), show(&twice), "{stem}");
    }
}

#[test]
fn old_and_strange_operator_sets_are_refused() {
    let refusal = |version: i64| {
        let mut model = parsed("linear_without_bias");
        model.set_opset("", version);
        canon::canonicalise(&mut model).unwrap_err().to_string()
    };
    assert_eq!(refusal(8), "the model: uses opset 8, older than 9: re-export it with opset 17 or later");
    let mut none = parsed("linear_without_bias");
    none.opsets.clear();
    let error = canon::canonicalise(&mut none).unwrap_err().to_string();
    assert!(error.contains("imports no version of the default operator set"), "{error}");
}

/// Nobody looks into a nested graph, so that its operators would silently mean something else.
#[test]
fn nested_graphs_of_old_operator_sets_are_refused() {
    let mut model = parsed("linear_without_bias");
    let id = model.graph.ops()[0];
    let body = Subgraph { proto: bytes::Bytes::new(), captures: Vec::new() };
    Edit::new(&mut model.graph).set_attr(id, "body", AttrValue::Graph(body));
    let error = canon::canonicalise(&mut model.clone()).unwrap_err().to_string();
    assert!(error.contains("has a nested graph, and nested graphs of opset 17 are not brought to opset 20"), "{error}");
    model.set_opset("", 18);
    canon::canonicalise(&mut model).unwrap();
}

/// Weights in float16 would come back as float32 and not fit the operators around them.
#[test]
fn weights_of_another_type_are_not_rearranged() {
    let text = text_of("linear_from_gemm").replace("float[", "double[");
    let mut model = parse_model(&text).unwrap();
    let report = canon::canonicalise(&mut model).unwrap();
    assert!(report.applied.is_empty(), "{:?}", report.applied);
    assert!(report.near_misses.iter().any(|m| m.rule == "linear-from-gemm"), "{:?}", report.near_misses);
    let gemm = model.graph.ops()[0];
    assert_eq!(model.graph.op(gemm).unwrap().attrs.get("transB"), Some(&AttrValue::Int(1)));
}

/// As many ways as 2^40 lead back from the product: the matcher gives up, and does it in no time.
#[test]
fn a_graph_with_too_many_ways_is_left_alone() {
    let mut text = String::from(
        "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[2, 3, 4] x, float[2, 4, 3] kt) => (float[2, 3, 3] y)\n",
    );
    text.push_str("<float c = {0.5}>\n{\n  a0 = Relu (x)\n");
    for i in 1..=40 {
        text.push_str(&format!("  a{i} = Add (a{}, a{})\n", i - 1, i - 1));
    }
    text.push_str("  scores = MatMul (a40, kt)\n  y = Mul (scores, c)\n}\n");
    let mut model = vitq::ir::text::parse_model(&text).unwrap();
    let report = canon::canonicalise(&mut model).unwrap();
    assert!(report.applied.is_empty(), "{:?}", report.applied);
}
