#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::collections::BTreeMap;

use ndarray::ArrayD;

use super::testing::{Build, array, refused, run, strings, values};
use super::{Engine, EngineError, EngineOptions};
use crate::ir::{AttrValue, Dim, Edit, Graph, NewOp, OpName, Tensor};

/// DQ(W) of a constant is computed once: the plan holds no DequantizeLinear, and the weight's value is a constant tap.
#[test]
fn dequantised_weights_are_folded() {
    let mut b = Build::fixed(&[1, 2]);
    let w = b.init("w", Tensor::new(&[2, 2], &[1i8, 2, 3, 4]).unwrap());
    let dq = b.linear("DequantizeLinear", "dq", w, Tensor::vector(&[0.5f32, 2.0]), Some(Tensor::vector(&[0i8, 1])), Some(1));
    let y = b.op(NewOp::std("MatMul", "y").input(b.x()).input(dq));
    let model = b.model(&[y]);
    let engine = Engine::new(&model, &strings(&["dq"]), &EngineOptions::default()).unwrap();
    let names: Vec<String> = engine.plan.model().nodes().iter().map(|n| n.op.name().into_owned()).collect();
    assert!(!names.iter().any(|n| n == "DequantizeLinear"), "{names:?}");
    let (out, taps) = run(&model, &["dq", "w"], &array(&[1, 2], &[1.0, 10.0]));
    assert_eq!(values(&taps["dq"]), [0.5, 2.0, 1.5, 6.0]);
    assert_eq!(values(&taps["w"]), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(&out[0]), [15.5, 62.0]);
}

/// MatMul + Add + Relu becomes one kernel; with taps each value is still seen, and the output's bits stay the same.
#[test]
fn taps_show_values_that_optimisation_would_fuse() {
    let mut b = Build::fixed(&[2, 2]);
    let w = b.init("w", Tensor::new(&[2, 2], &[1.0f32, -1.0, 2.0, 0.5]).unwrap());
    let bias = b.init("b", Tensor::vector(&[0.5f32, -3.0]));
    let mm = b.op(NewOp::std("MatMul", "mm").input(b.x()).input(w));
    let add = b.std("Add", "add", &[mm, bias]);
    let relu = b.std("Relu", "relu", &[add]);
    let t = b.op(NewOp::std("Transpose", "t").input(relu).attr("perm", AttrValue::Ints(vec![1, 0])));
    let y = b.std("MatMul", "y", &[t, relu]);
    let model = b.model(&[y]);
    let x = array(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let plain = run(&model, &[], &x);
    let (out, taps) = run(&model, &["x", "mm", "add", "relu", "t", "y", "b"], &x);
    assert_eq!(values(&taps["x"]), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(&taps["mm"]), [5.0, 0.0, 11.0, -1.0]);
    assert_eq!(values(&taps["add"]), [5.5, -3.0, 11.5, -4.0]);
    assert_eq!(values(&taps["relu"]), [5.5, 0.0, 11.5, 0.0]);
    assert_eq!(values(&taps["t"]), [5.5, 11.5, 0.0, 0.0]);
    assert_eq!(taps["t"].shape(), [2, 2]);
    assert_eq!(values(&taps["b"]), [0.5, -3.0]);
    assert_eq!(values(&taps["y"]), [162.5, 0.0, 0.0, 0.0]);
    assert_eq!(out, plain.0);
}

/// A tap that no output depends on is computed for its own sake; a name may be asked for twice.
#[test]
fn dead_ends_and_repeated_names_can_be_tapped() {
    let mut b = Build::fixed(&[2]);
    let y = b.std("Neg", "y", &[b.x()]);
    let mut model = b.model(&[y]);
    let x = model.graph.value("x").unwrap();
    let mut edit = Edit::new(&mut model.graph);
    edit.add_op(x.node, NewOp::std("Exp", "side").input(x));
    edit.finish().unwrap();
    let engine = Engine::new(&model, &strings(&["side", "y", "side"]), &EngineOptions::default()).unwrap();
    let mut session = engine.session().unwrap();
    for _ in 0..2 {
        let mut seen = vec![0; 3];
        let out = session
            .run(&[("x", array(&[2], &[0.0, 0.0]).view())], &mut |i, _, v| {
                seen[i] += 1;
                assert_eq!(v, if i == 1 { [-0.0; 2] } else { [1.0; 2] });
            })
            .unwrap();
        assert_eq!(seen, [1, 1, 1]);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].0, "y");
    }
}

#[test]
fn an_open_batch_takes_the_size_asked_for() {
    let mut b = Build::new(&[Dim::Param("N".to_owned()), Dim::Value(2)]);
    let y = b.std("Neg", "y", &[b.x()]);
    let model = b.model(&[y]);
    let engine = Engine::new(&model, &[], &EngineOptions { batch: 3, ..EngineOptions::default() }).unwrap();
    assert_eq!(engine.inputs()[0].shape, [3, 2]);
    assert_eq!(engine.outputs(), ["y"]);
    let mut session = engine.session().unwrap();
    let text = session.run(&[("x", array(&[1, 2], &[0.0; 2]).view())], &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(text.contains("'x' takes shape [3, 2], and an array of shape [1, 2]"), "{text}");
    let text = session.run(&[("z", array(&[3, 2], &[0.0; 6]).view())], &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(text.contains("no input 'z'; its inputs are 'x'"), "{text}");
    let text = session.run(&[], &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(text.contains("'x' is not fed"), "{text}");
}

#[test]
fn other_open_axes_need_a_shape() {
    let model = || {
        let mut b = Build::new(&[Dim::Value(1), Dim::Param("H".to_owned())]);
        let y = b.std("Neg", "y", &[b.x()]);
        b.model(&[y])
    };
    let text = refused(&model(), &[]);
    assert!(text.contains("'x' has an open size (H) on axis 1"), "{text}");
    let with = |shape: &[usize]| {
        let input_shapes = BTreeMap::from([("x".to_owned(), shape.to_vec())]);
        Engine::new(&model(), &[], &EngineOptions { batch: 1, input_shapes })
    };
    assert_eq!(with(&[1, 5]).unwrap().inputs()[0].shape, [1, 5]);
    assert!(with(&[2, 5]).unwrap_err().to_string().contains("has shape [1, H], so the shape [2, 5] does not fit"));
}

#[test]
fn what_is_not_implemented_is_named() {
    let unary = |op: NewOp| {
        let mut b = Build::fixed(&[1, 4]);
        let x = b.x();
        let y = b.op(op.input(x));
        b.model(&[y])
    };
    let text = refused(&unary(NewOp::std("Hardmax", "h")), &[]);
    assert!(
        text.starts_with("Hardmax 'h' cannot be run: the operator Hardmax of the standard domain is not implemented; "),
        "{text}"
    );
    let text = refused(&unary(NewOp::new(OpName::new("com.microsoft", "Gelu"), "g")), &[]);
    assert!(text.contains("the operator Gelu of domain 'com.microsoft' is not implemented"), "{text}");
    let text = refused(&unary(NewOp::std("Relu", "r").attr("ceiling", AttrValue::Int(6))), &[]);
    assert!(text.contains("Relu 'r'") && text.contains("attribute 'ceiling' is not implemented"), "{text}");
    let text = refused(&unary(NewOp::std("Gelu", "g").attr("approximate", AttrValue::String("sigmoid".into()))), &[]);
    assert!(text.contains("the value 'sigmoid' of its attribute 'approximate'"), "{text}");
    let text = refused(&unary(NewOp::std("Cast", "c").attr("to", AttrValue::Int(16))), &[]);
    assert!(text.contains("the value 16 of its attribute 'to'"), "{text}");
    let mut model = unary(NewOp::new(OpName::new("local", "F"), "f"));
    model.functions.push(crate::ir::Function {
        id: OpName::new("local", "F"),
        attributes: vec![],
        attribute_defaults: crate::ir::Attrs::new(),
        opsets: vec![],
        body: Graph::default(),
        doc: String::new(),
        metadata: vec![],
    });
    assert!(refused(&model, &[]).contains("inline the model's functions first"));
    let mut b = Build::fixed(&[2]);
    let w = b.init("w", Tensor::vector(&[half::bf16::ONE, half::bf16::ONE]));
    let y = b.op(NewOp::std("Add", "y").input(b.x()).input(w));
    assert!(refused(&b.model(&[y]), &[]).contains("the constant 'w' cannot be run: element type bfloat16"));
    let mut b = Build::fixed(&[1, 4]);
    let q = b.op(NewOp::std("QuantizeLinear", "q").input(b.x()).input(b.x()));
    assert!(refused(&b.model(&[q]), &[]).contains("its input 'x' is computed by the graph"));
}

/// What nothing asked for depends on need not be implemented.
#[test]
fn dead_operators_are_not_held_against_the_model() {
    let mut b = Build::fixed(&[2]);
    let y = b.std("Neg", "y", &[b.x()]);
    let mut model = b.model(&[y]);
    let x = model.graph.value("x").unwrap();
    let mut edit = Edit::new(&mut model.graph);
    edit.add_op(x.node, NewOp::std("Hardmax", "dead").input(x));
    edit.finish().unwrap();
    assert_eq!(values(&run(&model, &[], &array(&[2], &[1.0, 2.0])).0[0]), [-1.0, -2.0]);
    assert!(refused(&model, &["dead"]).contains("Hardmax 'dead'"));
}

#[test]
fn an_unknown_tap_suggests_the_nearest_name() {
    let mut b = Build::fixed(&[2]);
    let y = b.std("Neg", "blocks.0.norm1", &[b.x()]);
    let error = Engine::new(&b.model(&[y]), &strings(&["blocks.0.norm2"]), &EngineOptions::default()).unwrap_err();
    assert_eq!(
        error,
        EngineError::UnknownTap { name: "blocks.0.norm2".to_owned(), hint: "; the nearest name is 'blocks.0.norm1'".to_owned() }
    );
}

#[test]
fn contradicting_shapes_are_an_error() {
    let mut b = Build::fixed(&[2, 3]);
    let w = b.init("w", Tensor::new(&[4, 1], &[0.0f32; 4]).unwrap());
    let y = b.op(NewOp::std("MatMul", "y").input(b.x()).input(w));
    assert!(matches!(Engine::new(&b.model(&[y]), &[], &EngineOptions::default()), Err(EngineError::Load(_))));
}

/// One engine in several threads: the same bits as alone.
#[test]
fn threads_share_one_engine() {
    const fn shared<T: Send + Sync>() {}
    shared::<Engine>();
    let mut b = Build::fixed(&[16, 32]);
    let w: Vec<f32> = (0..32 * 32).map(|i| ((i * 37 % 97) as f32 - 48.0) / 50.0).collect();
    let w = b.init("w", Tensor::new(&[32, 32], &w).unwrap());
    let mm = b.op(NewOp::std("MatMul", "mm").input(b.x()).input(w));
    let y = b.op(NewOp::std("Softmax", "y").input(mm).attr("axis", AttrValue::Int(-1)));
    let engine = Engine::new(&b.model(&[y]), &strings(&["mm"]), &EngineOptions::default()).unwrap();
    let inputs: Vec<ArrayD<f32>> =
        (0..8).map(|k| array(&[16, 32], &(0..512).map(|i| ((i * 13 + k * 7) % 29) as f32 / 7.0).collect::<Vec<_>>())).collect();
    let bits = |session: &mut super::Session<'_>, x: &ArrayD<f32>| -> Vec<u32> {
        let mut all = Vec::new();
        let out = session.run(&[("x", x.view())], &mut |_, _, v| all.extend(v.iter().map(|v| v.to_bits()))).unwrap();
        all.extend(out[0].1.iter().map(|v| v.to_bits()));
        all
    };
    let mut alone = engine.session().unwrap();
    let expected: Vec<Vec<u32>> = inputs.iter().map(|x| bits(&mut alone, x)).collect();
    std::thread::scope(|s| {
        for t in 0..3 {
            let (engine, inputs, expected) = (&engine, &inputs, &expected);
            s.spawn(move || {
                let mut session = engine.session().unwrap();
                for i in (0..8).map(|i| (i * 3 + t) % 8) {
                    assert_eq!(bits(&mut session, &inputs[i]), expected[i]);
                }
            });
        }
    });
}

/// The calibration driver reaches the same plan through its own trait.
#[test]
fn the_engine_serves_the_calibration_driver() {
    use crate::calib::run::Forward;
    let mut b = Build::fixed(&[2]);
    let mid = b.std("Neg", "mid", &[b.x()]);
    let y = b.std("Exp", "y", &[mid]);
    let engine = Engine::new(&b.model(&[y]), &strings(&["mid"]), &EngineOptions::default()).unwrap();
    let mut session = Forward::session(&engine).unwrap();
    let mut seen = Vec::new();
    let out =
        session.run(&[("x".to_owned(), array(&[2], &[0.0, 2.0]))], &mut |i, shape, v| seen.push((i, shape.to_vec(), v.to_vec())));
    assert_eq!(values(&out.unwrap()[0])[0], 1.0);
    assert_eq!(seen, [(0, vec![2], vec![-0.0, -2.0])]);
    assert!(session.run(&[], &mut |_, _, _| {}).err().unwrap().to_string().contains("'x' is not fed"));
}
