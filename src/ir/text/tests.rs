#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod random;

use bytes::Bytes;

use super::*;
use crate::ir::{Attr, AttrValue, Attrs, Dim, Edit, NewOp, Stored, Subgraph, Tensor, TensorData, Value, ValueInfo};

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({ snapshot_path => "../../../snapshots/text", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

const HEADER: &str = "<ir_version: 8, opset_import: [\"\" : 17]>";

/// A small model with most of the syntax in it.
const SAMPLE: &str = r#"
# A comment.
<
  ir_version: 10,
  opset_import: ["" : 20, "ai.vitq" : 1],
  producer_name: "a \"tool\"", producer_version: "1", domain: "org.example", model_version: 3,
  doc_string: "two
lines", metadata_props: ["key": "value", "empty": ""]
>
"main graph" (float["batch size",3,?] x, int64[] any, float scalar, float[2] bias = {1, -2.5}) => (float[N,2] "/out/Add_output_0", y)
<
  float[N,3] "/a/MatMul_output_0",
  float[3,2] w = {0.1, 0.2, 0.3, -inf, nan, 1e-30},
  int8[9] q = {1, -2, 3, -4, 5, -6, 7, -8, 9},
  uint4[3] packed = {33, 3},
  float16[1] half = {15360}, string[2] s = {"a\\b", ""}, bool[2] b = {0, 1}, int64[0] none = {}
>
{
  ["/a/MatMul"] "/a/MatMul_output_0" = MatMul (x, w)
  [add] "/out/Add_output_0" = Add ("/a/MatMul_output_0", bias)
  [other name] y, "" = ai.vitq.Thing:variant <
    axis = -1, alpha = 0.5, mode = "nearest", perm = [0, 2, 1], scales: floats = [1, 2.5], none: ints = [],
    value = int64[2] {1, 2}, words = ["a", "b"], big = inf, whole: float = 3
  > ("/out/Add_output_0", "", q, packed, half, s, b, none)
}
<domain: "ai.vitq", opset_import: ["" : 20], overload: "variant", doc_string: "a function">
Thing <axis, alpha: float = 1.0> (a, float[N] c) => (d, e)
<int64[1] last>
{
  last = Constant <value = int64[1] {-1}> ()
  d = Relu <axis: int = @axis> (a)
  e = Identity (a)
}
"#;

fn sample() -> Model {
    parse_model(&SAMPLE.replace("[other name]", "[\"other name\"]")).unwrap()
}

#[test]
fn syntax_means_what_onnx_says() {
    let m = sample();
    let g = &m.graph;
    let tensor = |name: &str| g.get(g.value(name).unwrap().node).unwrap().tensor().unwrap().clone();
    assert_eq!(m.header.producer_name, "a \"tool\"");
    assert_eq!(m.header.doc, "two\nlines");
    assert_eq!(m.header.metadata, [("key".to_owned(), "value".to_owned()), ("empty".to_owned(), String::new())]);
    assert_eq!((m.header.ir_version, m.header.model_version, m.opset("ai.vitq")), (10, 3, Some(1)));
    assert_eq!(g.name, "main graph");
    assert_eq!(g.inputs().len(), 4);
    let shape = |name: &str| g.info_of(name).unwrap().tensor_type().unwrap().shape.clone();
    assert_eq!(shape("x"), Some(vec![Dim::Param("batch size".into()), Dim::Value(3), Dim::Unknown]));
    assert_eq!(shape("any"), None);
    assert_eq!(shape("scalar"), Some(vec![]));
    assert!(g.info_of("/a/MatMul_output_0").unwrap().listed);
    let w = tensor("w").to_vec::<f32>().unwrap();
    assert_eq!(w[..4], [0.1, 0.2, 0.3, f32::NEG_INFINITY]);
    assert!(w[4].is_nan() && w[5] == 1e-30);
    assert_eq!(tensor("q").to_vec::<i8>().unwrap(), [1, -2, 3, -4, 5, -6, 7, -8, 9]);
    assert_eq!((tensor("packed").bytes(), tensor("packed").shape), (&[33u8, 3][..], vec![3]));
    assert_eq!(tensor("half").to_f32().unwrap(), [1.0]);
    assert_eq!(tensor("s").data, TensorData::Strings(vec!["a\\b".into(), "".into()]));
    let thing = g.op(g.value("y").unwrap().node).unwrap();
    assert_eq!((thing.op.domain.as_str(), thing.op.overload.as_str(), thing.arity), ("ai.vitq", "variant", 8));
    assert_eq!(thing.name, "other name");
    assert_eq!(g.inputs_of(g.value("y").unwrap().node)[1], None);
    assert_eq!(thing.attrs.float("whole"), Some(3.0));
    assert_eq!(thing.attrs.get("scales"), Some(&AttrValue::Floats(vec![1.0, 2.5])));
    assert_eq!(thing.attrs.float("big"), Some(f32::INFINITY));
    assert_eq!(thing.attrs.tensor("value").unwrap().to_i64().unwrap(), [1, 2]);
    let f = &m.functions[0];
    assert_eq!((f.attributes.as_slice(), f.attribute_defaults.float("alpha")), (&["axis".to_owned()][..], Some(1.0)));
    assert!(f.body.info_of("c").unwrap().listed && f.body.info_of("last").unwrap().listed);
    let relu = f.body.op(f.body.value("d").unwrap().node).unwrap();
    assert_eq!(relu.attrs.get("axis"), Some(&AttrValue::Ref("axis".into(), 2)));
    assert_eq!(f.body.op(f.body.value("e").unwrap().node).unwrap().attrs.iter().count(), 0);
}

#[test]
fn styles() {
    let mut m = sample();
    let x = m.graph.inputs()[0];
    let mut e = Edit::new(&mut m.graph);
    let big = e.add_init(x, "big", Tensor::vector(&(0..100).map(|v| v as f32).collect::<Vec<_>>()));
    let y = e.add_op(x, NewOp::std("Neg", "big_neg").input(big));
    e.push_graph_output(Value { node: y, port: 0 });
    e.commit().unwrap();
    snapshot("lossless", &print_model(&sample(), &PrintOptions::lossless()));
    snapshot("elided", &print_model(&m, &PrintOptions::elided()));
    snapshot("snapshot", &print_model(&m, &PrintOptions::snapshot()));
    snapshot("snapshot_with_types", &print_graph(&m.graph, &PrintOptions::snapshot().with_value_types()));
    let cluster = |id| m.graph.op(id).filter(|op| op.name.starts_with('/')).map(|_| "block \"0\"".to_owned());
    snapshot("dot", &crate::ir::dot::print_dot(&m.graph, cluster));
}

#[test]
fn whole_models_round_trip() {
    let m = sample();
    let text = print_model(&m, &PrintOptions::lossless());
    let again = parse_model(&text).unwrap();
    assert_eq!(print_model(&again, &PrintOptions::lossless()), text);
    // The sample holds a NaN, whose bytes compare equal.
    assert_eq!(again, m);
}

#[test]
fn a_changed_weight_changes_the_digest() {
    let t = Tensor::vector(&[1.0f32, 2.0]);
    let mut others = vec![
        Tensor::vector(&[1.0f32, 2.0000002]),
        t.reshaped(&[2, 1]).unwrap(),
        Tensor::vector(&[1.0f32.to_bits() as i32, 2.0f32.to_bits() as i32]),
    ];
    let strings = |s: &[&'static str]| Tensor {
        dtype: DType::String,
        shape: vec![s.len()],
        data: TensorData::Strings(s.iter().map(|s| Bytes::from_static(s.as_bytes())).collect()),
        stored: Stored::Typed,
        doc: String::new(),
        metadata: vec![],
    };
    others.extend([strings(&["ab", "c"]), strings(&["a", "bc"])]);
    let all: std::collections::BTreeSet<String> = others.iter().chain([&t]).map(digest).collect();
    assert_eq!(all.len(), 6);
    // SHA-256 of "float", the dimension 2 as 8 little-endian bytes, and 1.0f32, 2.0f32 (from Python's hashlib).
    assert_eq!(digest(&t), "a59fcccd");
}

#[test]
fn what_is_left_out_is_said() {
    let mut m = sample();
    let x = m.graph.inputs()[0];
    m.graph.doc = "doc".into();
    let mut e = Edit::new(&mut m.graph);
    let nested = Subgraph { proto: Bytes::from_static(b"123"), captures: vec![] };
    let id = e.add_op(
        x,
        NewOp::std("If", "if")
            .input(Value { node: x, port: 0 })
            .attr("then_branch", AttrValue::Graph(nested.clone()))
            .attr("lists", AttrValue::Graphs(vec![nested]))
            .attr("odd name", AttrValue::String(Bytes::from_static(&[0xff, 0]))),
    );
    e.op_mut(id).unwrap().doc = "doc".into();
    e.push_graph_output(Value { node: id, port: 0 });
    e.commit().unwrap();
    let text = print_model(&m, &PrintOptions::lossless());
    snapshot("left_out", &text);
    let error = parse_model(&text).unwrap_err();
    assert!(error.message.contains("hold a graph"), "{error}");
}

#[test]
fn errors_name_the_place() {
    let cases = [
        ("", 1, 1, "the graph's name"),
        ("g (float x) => (y)\n{ y = Relu (z) }", 2, 3, "'z' is read"),
        ("g (float x) => (y)\n{ y = Relu (x)\n  y = Relu (x) }", 3, 3, "a second value is named 'y'"),
        ("g (float x) => (y)\n{ y = Relu (y) }", 1, 1, "cycle"),
        ("g (x, x) => (x) {}", 1, 7, "a second value is named 'x'"),
        ("g () => (x) <float[2] x = {1}> {}", 1, 27, "needs 8 bytes"),
        ("g () => (x) <float[2] x = [\"location\": \"elided\"]> {}", 1, 27, "print the graph with every element"),
        ("g () => (x) <float[N] x = {1}> {}", 1, 27, "must be known"),
        ("g () => (x) <int8[1] x = {128}> {}", 1, 27, "128 is out of range for int8"),
        ("g () => (x) <float x = {1e39}> {}", 1, 25, "expected an element of type float"),
        ("g () => (x) <string x = {1}> {}", 1, 26, "expected an element of type string"),
        ("g () => (x) <uint8 x = {1.0}> {}", 1, 25, "expected an element of type uint8"),
        ("g () => (x) <x = {1}> {}", 1, 18, "needs a type"),
        ("g (seq(float) x) => (x) {}", 1, 4, "dense tensors"),
        ("g () => (x) { x = Op <a = []> () }", 1, 27, "must be declared"),
        ("g () => (x) { x = Op <a = [1, 2.0]> () }", 1, 27, "list of ints holds a value of type float"),
        ("g () => (x) { x = Op <a: ints = 1> () }", 1, 33, "declared ints"),
        ("g () => (x) { x = Op <a: int = 1.5> () }", 1, 32, "declared int"),
        ("g () => (x) { x = Op <a: whole = 1> () }", 1, 26, "no attribute type"),
        ("g () => (x) { x = Op <a = 1, a = 2> () }", 1, 30, "given twice"),
        ("g () => (x) { x = Op <a = 99999999999999999999> () }", 1, 27, "64 bits"),
        ("g () => (x) { x = Op <a = \"é> () }", 1, 27, "closing quotation mark"),
        ("g () => (x) { x = Op <a = hex\"abc\"> () }", 1, 27, "even number"),
        ("g (float[2 x) => (x) {}", 1, 12, "expected ']', found 'x'"),
        ("g () = > () {}", 1, 6, "expected '=>'"),
        ("g () => () {} trailing", 1, 15, "the end of the text"),
    ];
    for (text, line, column, message) in cases {
        let e = parse_graph(text).unwrap_err();
        assert!((e.line, e.column) == (line, column) && e.message.contains(message), "{text:?}: {e}");
    }
    let e = parse_model("<ir_version: 8, colour: 3> g () => () {}").unwrap_err();
    assert_eq!(e.to_string(), "line 1, column 17: unknown header key 'colour'");
    assert!(parse_function("<metadata_props: []> F () => () {}").is_err());
}

#[test]
fn empty_names_and_lists_follow_onnx() {
    let g = parse_graph("g (x) => (y) { y = Op (, x, \"\",) \n z, = Op () \n = Op (x,) \"\" = Op (,) }").unwrap();
    let ops = g.ops();
    let shape: Vec<(usize, Vec<bool>)> =
        ops.iter().map(|&id| (g.get(id).unwrap().outputs.len(), g.inputs_of(id).iter().map(Option::is_some).collect())).collect();
    assert_eq!(shape, [(1, vec![false, true, false]), (1, vec![]), (0, vec![true]), (1, vec![false])]);
}

#[test]
fn hostile_texts_end_in_errors() {
    let deep = |open: &str| open.repeat(200_000);
    let texts = [
        format!("g () => (x) {{ x = Op <a = {}", deep("[")),
        format!("g () => (x) {{ x = Op <a = {}", deep("g () => () { x = Op <a = ")),
        format!("g ({}", deep("seq(")),
        format!("g () => (x) <float[{}1] x = {{}}> {{}}", deep("99999999,")),
        "g () => (x) <float[9223372036854775807,9223372036854775807] x = {}> {}".to_owned(),
        "g () => (x) <string[4611686018427387904,4] x = {}> {}".to_owned(),
        "g () => (x) <float[-1] x = {}> {}".to_owned(),
        format!("<opset_import: [{}", deep("\"a\" : 1,")),
    ];
    for t in &texts {
        assert!(parse_model(t).is_err());
        assert!(parse_function(t).is_err());
    }
}

#[test]
fn attributes_keep_their_order() {
    let mut attrs = Attrs::new();
    for (name, v) in [("b", 1), ("a", 2)] {
        attrs.push(Attr::new(name, AttrValue::Int(v)));
    }
    let g = parse_graph("g () => (x) { x = Op <b = 1, a = 2> () }").unwrap();
    assert_eq!(g.op(g.ops()[0]).unwrap().attrs, attrs);
}

/// The models of the shared folder, when the environment names one.
#[test]
fn real_models_round_trip() {
    let Some(root) = std::env::var_os("VITQ_SHARED").map(std::path::PathBuf::from) else {
        println!("skipped: VITQ_SHARED is not set");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(root.join("data/models")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let mut m = crate::onnx::read(&path).unwrap();
        let text = print_model(&m, &PrintOptions::lossless());
        let again = parse_model(&text).unwrap();
        forget_unsaid(&mut m.graph);
        m.header.extra = Bytes::new();
        m.header.spells_default_domain = false;
        assert!(again == m, "{} differs after a round trip through text", path.display());
        seen += 1;
    }
    assert!(seen > 0);
}

/// Drops what the text has no place for: how a file stored a tensor, documentation and metadata.
fn forget_unsaid(g: &mut Graph) {
    g.doc.clear();
    g.metadata.clear();
    g.quantization_annotations.clear();
    let ids = g.node_ids();
    let mut e = Edit::new(g);
    for id in ids {
        for name in e.get(id).map(|n| n.outputs.clone()).unwrap_or_default() {
            if let Some(info) = e.info_of(&name).cloned() {
                e.set_info_of(name, ValueInfo { doc: String::new(), metadata: vec![], ..info });
            }
        }
        if let Some(t) = e.get(id).and_then(|n| n.tensor()).cloned() {
            e.set_tensor(id, Tensor { stored: Stored::Raw, doc: String::new(), metadata: vec![], ..t });
        }
        if let Some(op) = e.op_mut(id) {
            let raw = |a: &Attr| match &a.value {
                AttrValue::Tensor(t) => AttrValue::Tensor(Tensor { stored: Stored::Raw, ..t.clone() }),
                v => v.clone(),
            };
            op.doc.clear();
            op.metadata.clear();
            op.attrs = op.attrs.iter().map(|a| (a.name.clone(), raw(a))).collect();
        }
    }
    e.finish().unwrap();
}

#[test]
fn header_is_needed_by_no_graph() {
    assert_eq!(parse_model(&format!("{HEADER} g () => () {{}}")).unwrap().opset(""), Some(17));
    assert_eq!(parse_model("g () => () {}").unwrap().opsets, []);
}
