//! The invariants of ARCHITECTURE.md, each by its number. The fifth has its tests in blocks.rs and lowering.rs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use vitq::ir::text::{PrintOptions, parse_model, print_graph, print_model};
use vitq::ir::{AttrValue, Attrs, Edit, Graph, Model, NewOp, NodeKind, Op, OpName, Subgraph, Tensor, Use, Value, VerifyError};
use vitq::runtime::tract::{Engine, EngineOptions};
use vitq::vit::{Section, Site, recognise};
use vitq::{canon, onnx};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model(body: &str) -> Model {
    parse_model(&format!("<ir_version: 9, opset_import: [\"\" : 20]>\n{body}")).unwrap()
}

fn names(graph: &Graph, values: &[Option<Value>]) -> Vec<String> {
    values.iter().map(|v| v.map_or("-", |v| graph.value_name(v)).to_owned()).collect()
}

#[test]
fn invariant_1_parallel_edges_are_two_reads() {
    let mut m = model("g (float[2] d, float[2] e) => (float[2] y) { y = Mul (d, d) }");
    let g = &m.graph;
    let (d, y) = (g.value("d").unwrap(), g.value("y").unwrap().node);
    assert_eq!(g.uses(d), [Use { node: y, port: 0 }, Use { node: y, port: 1 }]);
    assert_eq!(names(g, &g.inputs_of(y)), ["d", "d"]);
    // One of the two goes elsewhere, whichever; the other stays.
    for port in [0, 1] {
        let mut one = m.clone();
        let mut edit = Edit::new(&mut one.graph);
        let e = edit.value("e").unwrap();
        edit.redirect(Use { node: y, port }, e);
        edit.commit().unwrap();
        let wanted = if port == 0 { ["e", "d"] } else { ["d", "e"] };
        assert_eq!(names(&one.graph, &one.graph.inputs_of(y)), wanted);
    }
    let mut edit = Edit::new(&mut m.graph);
    let e = edit.value("e").unwrap();
    edit.replace_uses(d, e, |_| true);
    edit.commit().unwrap();
    assert_eq!(names(&m.graph, &m.graph.inputs_of(y)), ["e", "e"]);
}

#[test]
fn invariant_1_inputs_are_read_by_port_whatever_the_order_of_edges() {
    let mut m = model("g (float[2] a, float[2] b) => (float[2] y) { y = Sub (a, b) }");
    let y = m.graph.value("y").unwrap().node;
    let mut edit = Edit::new(&mut m.graph);
    let (a, b) = (edit.value("a").unwrap(), edit.value("b").unwrap());
    // The newest edge is the first that petgraph lists.
    edit.set_input(y, 1, None);
    edit.set_input(y, 0, None);
    edit.set_input(y, 1, Some(b));
    edit.set_input(y, 0, Some(a));
    edit.commit().unwrap();
    assert_eq!(names(&m.graph, &m.graph.inputs_of(y)), ["a", "b"]);
}

#[test]
fn invariant_1_a_missing_port_is_an_absent_input() {
    let m = model("g (float[2] x) => (float[2] y) <float top = {1}> { y = Clip (x, , top) }");
    let y = m.graph.value("y").unwrap().node;
    assert_eq!(names(&m.graph, &m.graph.inputs_of(y)), ["x", "-", "top"]);
    assert_eq!(m.graph.input(y, 1), None);
    let text = print_model(&m, &PrintOptions::lossless());
    assert_eq!(parse_model(&text).unwrap(), m);
}

#[test]
fn invariant_1_captured_values_are_uses_of_the_enclosing_node() {
    let mut m = model("g (bool c, float[2] x) => (float[2] y) { t = Relu (x) \n y = Identity (x) }");
    let mut edit = Edit::new(&mut m.graph);
    let (c, t, y) = (edit.value("c").unwrap(), edit.value("t").unwrap(), edit.value("y").unwrap());
    let branch = AttrValue::Graph(Subgraph { proto: bytes::Bytes::new(), captures: vec!["t".to_owned()] });
    let chosen = edit.add(y.node, NewOp::std("If", "chosen").input(c).attr("then_branch", branch));
    edit.connect(t, chosen.node, 1);
    edit.push_graph_output(chosen);
    edit.commit().unwrap();
    // The sweep kept what only the nested graph reads.
    assert_eq!(m.graph.value("t"), Some(t));
    assert_eq!(m.graph.captures_of(chosen.node), [t]);
    assert_eq!(m.graph.inputs_of(chosen.node), [Some(c)]);
    // And folding does not take its name away.
    let mut folded = m.clone();
    canon::fold::fold(&mut folded).unwrap();
    assert!(folded.graph.value("t").is_some());
}

/// x → a, b → y with the nodes appended and connected in any order; their places in the file are the same.
fn diamond(order: &[usize], reverse_edges: bool) -> Graph {
    let op = |op_type: &str, arity| {
        NodeKind::Op(Op {
            op: OpName::std(op_type),
            name: String::new(),
            attrs: Attrs::new(),
            arity,
            doc: String::new(),
            metadata: Vec::new(),
            extra: bytes::Bytes::new(),
        })
    };
    let mut graph = Graph::default();
    let mut edit = Edit::new(&mut graph);
    // Indices that are recycled below.
    let waste: Vec<_> =
        (0..3).map(|i| edit.append(NodeKind::Init(Tensor::scalar(1.0f32)), 90 + i, vec![format!("waste{i}")])).collect();
    edit.remove(waste[1]);
    let mut ids = BTreeMap::new();
    for &i in order {
        let (kind, name) = [
            (NodeKind::Input, "x"),
            (op("Relu", 1), "a"),
            (op("Neg", 1), "b"),
            (op("Add", 2), "y"),
            (NodeKind::Init(Tensor::scalar(2.0f32)), "c"),
            (op("Mul", 2), "z"),
        ][i]
            .clone();
        ids.insert(name, edit.append(kind, i as u64, vec![name.to_owned()]));
        // A node's index goes to the next one that is added.
        if i == 2 {
            edit.remove(waste[0]);
        }
    }
    let mut edges = vec![("x", "a", 0), ("x", "b", 0), ("a", "y", 0), ("b", "y", 1), ("y", "z", 0), ("c", "z", 1)];
    if reverse_edges {
        edges.reverse();
    }
    for (from, to, port) in edges {
        edit.connect(Value { node: ids[from], port: 0 }, ids[to], port);
    }
    edit.push_graph_input(ids["x"]);
    edit.push_graph_output(Value { node: ids["z"], port: 0 });
    edit.commit().unwrap();
    graph
}

#[test]
fn invariant_2_order_does_not_come_from_the_history_of_insertions() {
    let wanted = print_graph(&diamond(&[0, 1, 2, 3, 4, 5], false), &PrintOptions::snapshot());
    for order in [[5, 4, 3, 2, 1, 0], [3, 1, 5, 0, 2, 4], [2, 1, 0, 5, 4, 3]] {
        for reverse in [false, true] {
            let graph = diamond(&order, reverse);
            assert_eq!(print_graph(&graph, &PrintOptions::snapshot()), wanted);
            let topo: Vec<&str> = graph.topo().iter().map(|&id| graph.get(id).unwrap().outputs[0].as_str()).collect();
            assert_eq!(topo, ["x", "a", "b", "y", "c", "z"]);
        }
    }
}

fn digits() -> Model {
    onnx::read(&root().join("models/digits/vit_digits.onnx")).unwrap()
}

fn canonical_digits() -> Model {
    let mut m = digits();
    canon::canonicalise(&mut m).unwrap();
    m
}

#[test]
fn invariant_2_the_same_model_gives_the_same_bytes() {
    let bytes = || onnx::encode(&canonical_digits()).unwrap();
    assert!(bytes() == bytes());
}

/// A name that a value of the file has means the same number in the canonical graph.
#[test]
fn invariant_3_a_name_keeps_its_meaning() {
    let (before, after) = (digits(), canonical_digits());
    let named = |m: &Model| -> BTreeSet<String> {
        let g = &m.graph;
        g.ops().into_iter().flat_map(|id| g.get(id).unwrap().outputs.clone()).filter(|n| !n.is_empty()).collect()
    };
    let common: Vec<String> = named(&before).intersection(&named(&after)).cloned().collect();
    assert!(common.len() > 50, "{}", common.len());
    let run = |m: &Model| -> BTreeMap<usize, Vec<f32>> {
        let engine = Engine::new(m, &common, &EngineOptions::default()).unwrap();
        let input = &engine.inputs()[0];
        let image =
            ndarray::ArrayD::from_shape_vec(input.shape.clone(), common::numbers(5, input.shape.iter().product())).unwrap();
        let mut seen = BTreeMap::new();
        let mut session = engine.session().unwrap();
        session.run(&[(input.name.as_str(), image.view())], &mut |i, _, v| drop(seen.insert(i, v.to_vec()))).unwrap();
        seen
    };
    let (before, after) = (run(&before), run(&after));
    let mut changed = Vec::new();
    for (i, name) in common.iter().enumerate() {
        let largest = before[&i].iter().fold(1e-30f32, |m, v| m.max(v.abs()));
        let difference = before[&i].iter().zip(&after[&i]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        if before[&i].len() != after[&i].len() || difference > largest * 1e-4 {
            changed.push(format!("{name}: {}", difference / largest));
        }
    }
    assert!(changed.is_empty(), "{changed:#?}");
}

#[test]
fn invariant_3_inputs_outputs_and_replaced_values_keep_their_names() {
    let (before, after) = (digits(), canonical_digits());
    let ends = |m: &Model| -> Vec<String> {
        let g = &m.graph;
        let inputs = g.inputs().iter().map(|&id| g.value_name(Value { node: id, port: 0 }).to_owned());
        inputs.chain(g.outputs().iter().map(|&v| g.value_name(v).to_owned())).collect()
    };
    assert_eq!(ends(&before), ends(&after));
    // Every fused LayerNorm and Gelu has the name that its last operator had in the file.
    let fused = |op: &str| {
        after.graph.ops().into_iter().filter(move |_| true).filter(|&id| after.graph.is_op(id, op)).collect::<Vec<_>>()
    };
    for id in [fused("LayerNormalization"), fused("Gelu")].concat() {
        let name = &after.graph.get(id).unwrap().outputs[0];
        assert!(before.graph.value(name).is_some(), "{name}");
    }
}

#[test]
fn invariant_4_commit_sweeps_what_no_output_needs() {
    let mut m = model("g (float[2] x, float[2] unused) => (float[2] y) <float c = {1}> { y = Relu (x) }");
    assert!(m.graph.value("c").is_some(), "reading keeps everything");
    let mut edit = Edit::new(&mut m.graph);
    let x = edit.value("x").unwrap();
    let dead = edit.add(x.node, NewOp::std("Neg", "dead").input(x));
    edit.add(x.node, NewOp::std("Neg", "deader").input(dead));
    edit.commit().unwrap();
    for gone in ["c", "dead", "deader"] {
        assert_eq!(m.graph.value(gone), None, "{gone}");
    }
    // A graph input is the caller's, read or not.
    assert!(m.graph.value("unused").is_some());
}

#[test]
fn invariant_4_commit_separates_the_names_of_added_operators() {
    let mut m = model("g (float[2] x) => (float[2] y) { a = Relu (x) \n b = Relu (a) \n y = Add (a, b) }");
    let [a, b, y] = ["a", "b", "y"].map(|name| m.graph.value(name).unwrap().node);
    let mut edit = Edit::new(&mut m.graph);
    for twin in [a, b] {
        edit.op_mut(twin).unwrap().name = "twin".to_owned();
    }
    for port in [0, 1] {
        let read = edit.input(y, port).unwrap();
        let negated = edit.add(y, NewOp::std("Neg", "shared").input(read));
        edit.set_input(y, port, Some(negated));
    }
    let read = edit.input(y, 0).unwrap();
    let last = edit.add(y, NewOp::std("Abs", "twin").input(read));
    edit.set_input(y, 0, Some(last));
    edit.commit().unwrap();
    let mut names: Vec<&str> = m.graph.ops().into_iter().map(|id| m.graph.op(id).unwrap().name.as_str()).collect();
    names.retain(|n| !n.is_empty());
    names.sort_unstable();
    // What came with the file keeps its names, good or bad.
    assert_eq!(names, ["shared", "shared_1", "twin", "twin", "twin_1"]);
}

#[test]
fn invariant_4_commit_verifies() {
    let start = || model("g (float[2] x) => (float[2] y) { a = Relu (x) \n y = Add (a, x) }");
    let mut m = start();
    let mut edit = Edit::new(&mut m.graph);
    let (a, y) = (edit.value("a").unwrap(), edit.value("y").unwrap());
    edit.set_input(a.node, 0, Some(y));
    let error = edit.commit().unwrap_err();
    assert!(matches!(error, VerifyError::Cycle { .. }), "{error}");

    let mut m = start();
    let mut edit = Edit::new(&mut m.graph);
    let y = edit.value("y").unwrap();
    let twin = edit.append(NodeKind::Init(Tensor::vector(&[1f32, 2.0])), 7, vec!["x".to_owned()]);
    edit.set_input(y.node, 0, Some(Value { node: twin, port: 0 }));
    let error = edit.commit().unwrap_err();
    assert!(matches!(error, VerifyError::DuplicateName { .. }), "{error}");

    let mut m = start();
    let mut edit = Edit::new(&mut m.graph);
    let (a, y) = (edit.value("a").unwrap(), edit.value("y").unwrap());
    edit.connect(a, y.node, 1);
    let error = edit.commit().unwrap_err();
    assert!(matches!(error, VerifyError::Port { .. }), "{error}");

    let mut m = start();
    let mut edit = Edit::new(&mut m.graph);
    let (a, y) = (edit.value("a").unwrap(), edit.value("y").unwrap());
    edit.set_input(y.node, 0, Some(Value { port: 3, ..a }));
    let error = edit.commit().unwrap_err();
    assert!(matches!(error, VerifyError::Port { .. }), "{error}");
}

#[test]
fn invariant_6_sites_are_a_closed_list_with_names_of_their_own() {
    let names: BTreeSet<&str> = Site::ALL.iter().map(|s| s.name()).collect();
    assert_eq!((Site::ALL.len(), names.len()), (39, 39));
    for &site in Site::ALL {
        assert_eq!(Site::from_name(site.name()), Some(site));
        // The compiler asks for a new arm here when a section is added.
        let key = match site.section() {
            Section::Layers => "layers",
            Section::AttnLayer => "attn_layer",
            Section::ResidualLayer => "residual_layer",
            Section::ExtraLayer => "extra_layer",
        };
        assert_eq!(site.section().key(), key);
    }
    assert_eq!(Site::from_name("attn_qkv "), None);
}

/// Every case of tests/rewrites with one line left out, with its numbers changed, or cut short: an error or a graph.
#[test]
fn invariant_7_damaged_models_do_not_panic() {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(root().join("tests/rewrites")).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    let (mut tried, mut understood) = (0, 0);
    let mut attempt = |text: &str| {
        tried += 1;
        let Ok(mut m) = parse_model(text) else { return };
        if canon::canonicalise(&mut m).is_ok() {
            let _ = recognise(&m.graph);
            understood += 1;
        }
    };
    for path in entries {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for skip in 0..lines.len() {
            let rest: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != skip).map(|(_, l)| *l).collect();
            attempt(&rest.join("\n"));
        }
        for (from, to) in [
            ("perm = [", "perm = [9, "),
            ("perm = [", "perm = [-1, "),
            ("perm = [0, ", "perm = ["),
            ("axis = 0", "axis = 77"),
            ("axes = [", "axes = [-9223372036854775808, "),
            ("{0, 0, 3, 2, 2}", "{0, 0, 3, 0, 2}"),
            ("{0, 0, 3, 2, 2}", "{-1, -1, 3, 2, 2}"),
            ("{0, 0, 3, 2, 2}", "{0, 0, 3, 9223372036854775807, 9223372036854775807}"),
            ("float[4, 12] w", "float[12, 4] w"),
            ("float[12] b", "float[3, 4] b"),
            ("int64 zero", "int32 zero"),
            ("float c = {", "double c = {"),
            ("{0.5}", "{nan}"),
            ("{2}", "{0}"),
            ("float[batch", "float["),
            ("float[batch, 5, 4] x", "float x"),
            (": 17]", ": 1000]"),
            ("{9223372036854775807}", "{-9223372036854775808}"),
            ("alpha = 2.0", "alpha = 2"),
        ] {
            if text.contains(from) {
                attempt(&text.replace(from, to));
            }
        }
    }
    assert!(tried > 700 && understood > 100, "{tried} tried, {understood} understood");
}

/// `f32::round` rounds half away from zero, which nothing of ours means: every rounding says what it does with a half.
#[test]
fn invariant_8_rounding_is_named() {
    // A share of histogram bins, never negative; a ratio for people.
    const MEANT: [&str; 2] = ["calib/kl.rs", "report/summary/inspect.rs"];
    fn walk(folder: &Path, found: &mut Vec<String>) {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let exempt = ["tests", "tests.rs", "testing.rs"].iter().any(|t| path.iter().any(|p| p == *t));
                if exempt || MEANT.iter().any(|m| path.ends_with(m)) {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                let lines = code.lines().enumerate().filter(|(_, l)| l.contains(".round()") && !l.trim_start().starts_with("//"));
                found.extend(lines.map(|(i, l)| format!("{}:{}: {}", path.display(), i + 1, l.trim())));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("src"), &mut found);
    assert!(found.is_empty(), "{found:#?}");
}
