//! Rows that nothing reads are not computed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::config::Config;
use vitq::ir::text::{PrintOptions, parse_model, print_model};
use vitq::ir::{Edit, Model};
use vitq::lower::{LowerReport, lower, prepare};
use vitq::quant::{Scheme, Target, make_plan};
use vitq::runtime::tract::{Engine, EngineOptions};
use vitq::{canon, vit};

/// The block of `tiny`, its text changed.
fn changed(changes: &[(&str, &str)]) -> (Model, LowerReport) {
    let mut text = print_model(&tiny().0, &PrintOptions::lossless());
    for (old, new) in changes {
        assert!(text.contains(old), "{text}");
        text = text.replace(old, new);
    }
    lowered_text(&text, Target::Integer)
}

/// Rows are picked whether or not they have codes of their own; here they have not.
fn same_codes() -> Config {
    variant("default: {class_token_codes: false}")
}

fn lowered_text(text: &str, target: Target) -> (Model, LowerReport) {
    let mut model = parse_model(text).unwrap();
    canon::canonicalise(&mut model).unwrap();
    let (vit, config) = (vit::recognise(&model.graph), same_codes());
    let plan = make_plan(&facts(&model, &vit), &stats(&model, &vit, &config), &config, target, 1).unwrap();
    let report = lower(&mut model, &plan).unwrap();
    (model, report)
}

/// A few operators on the image's rows, `w` of 4 × 4, a bias `b` for each channel and one number `p` for each element.
fn rows(nodes: &str, output: &str) -> (Model, LowerReport) {
    rows_for(nodes, output, Target::Integer)
}

fn rows_for(nodes: &str, output: &str, target: Target) -> (Model, LowerReport) {
    let tensors = [("w", &[4, 4][..]), ("b", &[4]), ("p", &[1, 1, 4, 4]), ("k", &[1, 1, 3, 3])]
        .map(|(name, shape)| tensor(name, shape, 1.0));
    let text = format!(
        "<ir_version: 9, opset_import: [\"\" : 20]>\ng (float[1, 1, 4, 4] image) => ({output})\n\
         <int64 first = {{0}}, int64 one = {{1}}, int64[3] heads = {{1, 2, 2}}, int64 three = {{3}}, int64[2] both = {{1, 3}},\n int64[5] cut = {{1, 1, 4, 2, 2}}, int64[4] whole = {{1, 1, 4, 4}}, int64[4] left = {{1, 1, -1, 4}},\n{}>\n\
         {{\n  {nodes}\n}}",
        tensors.join(",\n")
    );
    lowered_text(&text, target)
}

const ROW: &str = "float[1, 1, 4] y";

fn logits(model: &Model) -> Vec<f32> {
    let engine = Engine::new(model, &[], &EngineOptions::default()).unwrap();
    let mut session = engine.session().unwrap();
    let mut run = |i| session.run(&[("image", Images::image(i).view())], &mut |_, _, _| {}).unwrap();
    (0..4).flat_map(|i| run(i)[0].1.iter().copied().collect::<Vec<_>>()).collect()
}

fn ops(model: &Model, op: &str) -> usize {
    model.graph.ops().into_iter().filter(|&id| model.graph.is_op(id, op)).count()
}

#[test]
fn the_last_block_computes_the_class_token_alone_and_the_same_numbers() {
    let (some, report) = changed(&[]);
    assert_eq!(ops(&some, "Slice"), 2);
    assert!(report.narrowed >= 20, "{report:?}");
    // Whoever asks for the last LayerNorm has every row of it computed.
    let (all, report) = changed(&[("float[batch,3] logits", "float[batch,3] logits, float[batch,4,4] last")]);
    assert_eq!((ops(&all, "Slice"), report.narrowed), (0, 0));
    for (a, b) in logits(&some).into_iter().zip(logits(&all)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn floats_alone_are_the_same_with_fewer_rows() {
    let model = tiny().0;
    let mut narrow = model.clone();
    let mut edit = Edit::new(&mut narrow.graph);
    assert!(prepare(&mut edit, &mut [], true).unwrap() > 4);
    edit.commit().unwrap();
    let (all, few) = (logits(&model), logits(&narrow));
    assert!(!all.is_empty() && all.len() == few.len());
    assert!(all.iter().zip(&few).all(|(a, b)| (a - b).abs() < 1e-5), "{all:?} {few:?}");
    let mut edit = Edit::new(&mut narrow.graph);
    assert_eq!(prepare(&mut edit, &mut [], true).unwrap(), 0);
}

#[test]
fn what_is_picked_of_a_site_has_its_codes() {
    let (model, plan, report) = lowered(&same_codes(), Target::Integer);
    assert!(matches!(plan.site("embed").unwrap().scheme, Scheme::Ptf { .. }));
    let of = |name: &str| model.graph.constant(model.graph.value(name).unwrap()).unwrap().clone();
    for parameter in ["scale", "zero_point"] {
        assert_eq!(of(&format!("x_read_{parameter}")), of(&format!("x_{parameter}")));
    }
    assert!(report.notes.is_empty(), "{report:?}");
}

#[test]
fn a_mean_reads_every_row() {
    let (model, report) = changed(&[
        ("int64 first = {0}", "int64[1] over = {1}"),
        ("Gather <axis = 1> (last, first)", "ReduceMean <keepdims = 0> (last, over)"),
    ]);
    assert_eq!((ops(&model, "Slice"), report.narrowed), (0, 0));
}

#[test]
fn rows_are_picked_before_the_first_operator_that_makes_them_alone() {
    let picked = |nodes: &str, output: &str| {
        let (model, report) = rows(nodes, output);
        (report.narrowed, ops(&model, "Slice"))
    };
    // Linear, bias and activation.
    let linear = "m = MatMul (image, w)\n  a = Add (m, b)\n  r = Relu (a)\n";
    assert_eq!(picked(&format!("{linear}  y = Gather <axis = 2> (r, three)"), ROW), (3, 1));
    // Of two tokens those between them too; of the first and the last nothing is saved.
    let two = |a: &str, b: &str| {
        format!("{linear}  s = Gather <axis = 2> (r, {a})\n  t = Gather <axis = 2> (r, {b})\n  y = Add (s, t)")
    };
    assert_eq!(picked(&two("one", "three"), ROW), (3, 1));
    assert_eq!(picked(&two("one", "one"), ROW), (3, 1));
    // A channel is no row.
    assert_eq!(picked(&format!("{linear}  y = Gather <axis = 3> (r, one)"), ROW), (0, 0));
    // A constant with a row for each is stored as it is, and a Softmax over rows reads all of them.
    assert_eq!(picked("m = MatMul (image, w)\n  a = Add (m, p)\n  r = Relu (a)\n  y = Gather <axis = 2> (r, one)", ROW), (1, 1));
    assert_eq!(picked("m = MatMul (image, w)\n  r = Softmax <axis = 2> (m)\n  y = Gather <axis = 2> (r, one)", ROW), (0, 0));
    // Channels are cut and joined; a size that stands for whatever is left may not be the rows'.
    let cut = |back: &str| {
        format!("{linear}  c = Reshape (r, cut)\n  d = Sigmoid (c)\n  e = Reshape (d, {back})\n  y = Gather <axis = 2> (e, one)")
    };
    assert_eq!(picked(&cut("whole"), ROW), (6, 1));
    assert_eq!(picked(&cut("left"), ROW), (0, 0));
    // Of what a convolution makes no rows are made alone, but of its sum.
    let sum = "c = Conv <pads = [1, 1, 1, 1]> (image, k)\n  s = Add (image, c)\n";
    assert_eq!(picked(&format!("{sum}  y = Gather <axis = 2> (s, one)"), ROW), (1, 2));
    // The second axis are its channels.
    assert_eq!(
        picked(&format!("{sum}  y = Gather <axis = 1> (c, first)\n  z = Relu (s)"), "float[1, 4, 4] y, float[1, 1, 4, 4] z"),
        (0, 0)
    );
    // A head that picks one of several rows of its own does not hide the tokens.
    let heads = format!("{linear}  t = Gather <axis = 2> (r, one)\n  h = Reshape (t, heads)\n  y = Gather <axis = 1> (h, one)");
    assert_eq!(picked(&heads, "float[1, 2] y"), (3, 1));
    // Rows are read elsewhere too.
    let more = "float[1, 1, 4] y, float[1, 1, 4, 4] z";
    assert_eq!(picked(&format!("{linear}  y = Gather <axis = 2> (r, one)\n  z = MatMul (r, w)"), more), (0, 0));
    assert_eq!(picked(&format!("{linear}  y = Gather <axis = 2> (r, one)\n  z = Sigmoid (a)"), more), (1, 1));
    // Several rows at once stay as they are.
    assert_eq!(picked(&format!("{linear}  y = Gather <axis = 2> (r, both)"), "float[1, 1, 2, 4] y"), (0, 0));
}

#[test]
fn picked_rows_are_the_rows() {
    let linear = "m = MatMul (image, w)\n  a = Add (m, b)\n  r = Relu (a)\n  c = Reshape (r, cut)\n  d = Sigmoid (c)\n  e = Reshape (d, whole)\n";
    let tail = "  s = Gather <axis = 2> (e, one)\n  t = Gather <axis = 2> (e, three)\n  y = Sub (s, t)";
    let sum = "c = Conv <pads = [1, 1, 1, 1]> (image, k)\n  s = Add (image, c)\n  y = Gather <axis = 2> (s, three)";
    for target in [Target::Integer, Target::OnnxRuntime] {
        for (nodes, kept, narrowed) in [(format!("{linear}{tail}"), "e", 6), (sum.to_owned(), "s", 1)] {
            let (some, report) = rows_for(&nodes, ROW, target);
            assert_eq!(report.narrowed, narrowed, "{target}: {nodes}");
            let (all, report) = rows_for(&nodes, &format!("{ROW}, float[1, 1, 4, 4] {kept}"), target);
            assert_eq!(report.narrowed, 0);
            assert_eq!(logits(&some), logits(&all), "{target}: {nodes}");
        }
    }
}
