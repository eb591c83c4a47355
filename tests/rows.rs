//! Linears become Gemms on rows where the target adds biases there.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::ir::text::{PrintOptions, parse_model, print_model};
use vitq::ir::{Model, NodeId};
use vitq::lower::lower;
use vitq::quant::{Target, make_plan};
use vitq::runtime::tract::{Engine, EngineOptions};
use vitq::{canon, vit};

fn is_linear(model: &Model, id: NodeId) -> bool {
    let product = model.graph.input(id, 0).map(|v| v.node);
    model.graph.is_op(id, "Add") && product.is_some_and(|p| model.graph.is_op(p, "MatMul"))
}

/// Gemms, and Linears that are still a MatMul and an Add.
fn forms(model: &Model) -> (usize, usize) {
    let ops = model.graph.ops();
    let gemms = ops.iter().filter(|&&id| model.graph.is_op(id, "Gemm"));
    (gemms.count(), ops.iter().filter(|&&id| is_linear(model, id)).count())
}

#[test]
fn every_linear_of_a_block_on_onnxruntime_alone() {
    for (target, found) in [(Target::OnnxRuntime, (7, 0)), (Target::Integer, (0, 7))] {
        assert_eq!(forms(&lowered(&preset("int8"), target).0), found, "{target}");
    }
}

#[test]
fn codes_of_sixteen_bits_stay_with_their_matmul() {
    // onnxruntime has no integer Gemm of them.
    let (model, ..) = lowered(&variant("layers: {norm1: {bit_type: {bits: 16}}}"), Target::OnnxRuntime);
    assert_eq!(forms(&model), (4, 3));
}

/// A Linear on an image of that shape, then more, in no block.
fn parsed(shape: &str, more: &str) -> Model {
    let tensors = [("w", &[4, 3][..]), ("w2", &[3, 3]), ("b", &[3]), ("b2", &[3]), ("row", &[1, 4, 3])]
        .map(|(name, shape)| tensor(name, shape, 1.0));
    let text = format!(
        "<ir_version: 9, opset_import: [\"\" : 20]>\ng (float[{shape}, 4] image) => (float[{shape}, 3] y)\n<{}>\n{{\n  p = MatMul (image, w)\n  \
         a = Add (p, b)\n{more}}}",
        tensors.join(",\n")
    );
    let mut model = parse_model(&text).unwrap();
    canon::canonicalise(&mut model).unwrap();
    model
}

/// The same lowered, by a plan of it with fixed sizes.
fn general(shape: &str, more: &str) -> Model {
    let (fixed, mut model) = (parsed("1, 1, 4", more), parsed(shape, more));
    let (vit, config) = (vit::recognise(&fixed.graph), preset("int8"));
    let plan = make_plan(&facts(&fixed, &vit), &stats(&fixed, &vit, &config), &config, Target::OnnxRuntime, 1).unwrap();
    lower(&mut model, &plan).unwrap();
    model
}

#[test]
fn rows_reach_through_what_looks_at_single_elements() {
    let model = general("N, 1, 4", "  g = Relu (a)\n  p2 = MatMul (g, w2)\n  y = Add (p2, b2)\n");
    snapshot("rows", &print_model(&model, &PrintOptions::snapshot()));
    // Between the Gemms nothing is reshaped; the output has its name and shape.
    let reshapes = model.graph.ops().into_iter().filter(|&id| model.graph.is_op(id, "Reshape")).count();
    assert_eq!((forms(&model), reshapes), ((2, 0), 2));
    assert_eq!(model.graph.value("y"), model.graph.outputs().first().copied());
}

#[test]
fn two_unknown_sizes_leave_no_way_back_from_rows() {
    let linear = "  y = Relu (a)\n";
    assert_eq!(forms(&general("N, 1, 4", linear)), (1, 0));
    assert_eq!(forms(&general("1, 1, T", linear)), (1, 0));
    assert_eq!(forms(&general("N, 1, T", linear)), (0, 1));
}

#[test]
fn a_gemm_computes_what_its_linear_did() {
    // The integer target keeps the Linear; with the same codes the two differ by the order of additions alone.
    let (float, plan) = planned(&preset("int8"), Target::OnnxRuntime);
    let run = |target: Target| {
        let mut model = float.clone();
        let mut plan = plan.clone();
        plan.target = target;
        lower(&mut model, &plan).unwrap();
        let engine = Engine::new(&model, &[], &EngineOptions::default()).unwrap();
        let mut session = engine.session().unwrap();
        let image = Images::image(3);
        let outputs = session.run(&[("image", image.view())], &mut |_, _, _| {}).unwrap();
        (forms(&model).0, outputs[0].1.iter().copied().collect::<Vec<f32>>())
    };
    let ((gemms, found), (none, expected)) = (run(Target::OnnxRuntime), run(Target::Integer));
    assert_eq!((gemms, none), (7, 0));
    for (x, y) in found.iter().zip(&expected) {
        assert!((x - y).abs() < 1e-5, "{found:?} {expected:?}");
    }
}

#[test]
fn a_stream_of_rows_keeps_its_names_and_its_outputs_shape() {
    let (model, ..) = lowered(&preset("int8"), Target::OnnxRuntime);
    for name in ["n1", "q", "proj", "r1", "n2", "fc1", "act", "fc2", "r2", "last"] {
        assert!(model.graph.value(name).is_some(), "{name}");
    }
    // The patches in a row, where the stream begins, q, k and v cut into heads, what attention gives back, and where it ends;
    // where the class token's row is cut out of the norm's output and of the stream, there and back.
    let reshapes = ops(&model).get("Reshape").copied();
    assert_eq!(reshapes, Some(7 + 3));
}

#[test]
fn a_sum_with_something_of_another_shape_is_made_in_its_own() {
    // A row is added to every sample.
    let model = general("N, 1, 4", "  g = Relu (a)\n  p2 = MatMul (g, w2)\n  c = Add (p2, b2)\n  y = Add (c, row)\n");
    let adds_row = |&id: &NodeId| model.graph.is_op(id, "Add") && model.graph.input(id, 1) == model.graph.value("row");
    let sum = model.graph.ops().into_iter().find(adds_row).unwrap();
    assert_eq!(forms(&model).0, 2);
    assert!(model.graph.is_op(model.graph.input(sum, 0).unwrap().node, "Reshape"));
}

#[test]
fn a_linear_without_a_bias_is_a_gemm_of_two_inputs() {
    let model = general("N, 1, 4", "  g = Relu (a)\n  y = MatMul (g, w2)\n");
    assert_eq!((forms(&model), ops(&model).get("MatMul")), ((2, 0), None));
}
