#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::ir::text::{PrintOptions, parse_model, print_model};
use crate::ir::{Dim, Subgraph};

fn no(_: &OpName) -> bool {
    false
}

/// The model before and after, as the snapshot of a case shows them.
fn assert_inlined(name: &str, text: &str, calls: usize) -> Model {
    let before = parse_model(text).unwrap();
    let mut after = before.clone();
    assert_eq!(inline(&mut after, no).unwrap(), calls);
    let options = PrintOptions::snapshot();
    let shown = format!("{}\n=== inlined ===\n{}", print_model(&before, &options), print_model(&after, &options));
    insta::with_settings!({ snapshot_path => "../../../snapshots/inline", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, shown);
    });
    after
}

fn error(text: &str) -> InlineError {
    let before = parse_model(text).unwrap();
    let mut model = before.clone();
    let e = inline(&mut model, no).unwrap_err();
    assert!(model == before, "a refused model is untouched");
    e
}

/// A model with functions of domain `local`; both import version 18 of the default domain.
fn model(graph: &str, functions: &[&str]) -> String {
    let header = r#"<ir_version: 10, opset_import: ["" : 18, "local" : 1]>"#;
    let function = |f: &&str| format!("<domain: \"local\", opset_import: [\"\" : 18, \"local\" : 1]>\n{f}\n");
    format!("{header}\n{graph}\n{}", functions.iter().map(function).collect::<String>())
}

#[test]
fn nested_calls_with_attributes() {
    let m = assert_inlined(
        "nested_calls_with_attributes",
        &model(
            "g (float[N] x) => (float[N] y) <float[N] a> { [first] a = local.Twice (x)\n [second] y = local.Leaky <slope = 0.125> (a) }",
            &[
                "Leaky <slope> (p) => (q) { q = LeakyRelu <alpha: float = @slope> (p) }",
                "Twice <alpha: float = 0.25> (p) => (q) {\n [in] m = local.Leaky <slope = 0.5> (p)\n [out] q = Elu <alpha: float = @alpha> (m) }",
            ],
        ),
        3,
    );
    let (a, y) = (m.graph.value("a").unwrap(), m.graph.value("y").unwrap());
    assert_eq!(m.graph.op(a.node).unwrap().attrs.float("alpha"), Some(0.25));
    assert_eq!(m.graph.op(y.node).unwrap().attrs.float("alpha"), Some(0.125));
    // A value of the main graph keeps its name and what is known of it.
    assert_eq!(m.graph.info(a).unwrap().tensor_type().unwrap().shape, Some(vec![Dim::Param("N".into())]));
    assert!(m.functions.is_empty() && m.opset("local").is_none());
}

#[test]
fn one_function_twice_keeps_names_apart() {
    assert_inlined(
        "one_function_twice",
        &model(
            "g (float[3] x) => (float[3] z) { a = local.F (x)\n [named] b = local.F (a)\n [\"a/m\"] \"a/m\" = Neg (b)\n z = Add (\"a/m\", b) }",
            &["F (p) => (q) { m = Abs (p)\n q = Add (m, p) }"],
        ),
        2,
    );
}

#[test]
fn values_handed_through_and_handed_out_twice() {
    assert_inlined(
        "handed_through",
        &model(
            "g (float[3] x) => (float[3] a, float[3] b, float[3] c) { [call] a, b, c, \"\" = local.F (x) }",
            &["F (p) => (p, q, q, r) { q = Neg (p)\n r = Abs (q) }"],
        ),
        1,
    );
}

#[test]
fn absent_inputs_outputs_and_attributes() {
    let m = assert_inlined(
        "absent",
        &model(
            "g (float[3] x) => (float[3] y) { [call] y = local.F (x) }",
            &[
                "F <low, axis> (p, least, most) => (q) { c, \"\" = local.G <axis: int = @axis> (p, least, most)\n q = Softmax <axis: int = @axis> (c) }",
                "G <axis> (p, least, most) => (q, r) { q = Clip (p, least, most)\n r = Neg (q) }",
            ],
        ),
        2,
    );
    let y = m.graph.value("y").unwrap();
    assert!(m.graph.op(y.node).unwrap().attrs.is_empty());
    let clip = m.graph.input(y.node, 0).unwrap().node;
    assert_eq!(m.graph.inputs_of(clip)[1..], [None, None]);
}

#[test]
fn overloads_are_different_functions() {
    let text = |a: &str, b: &str| {
        format!(
            "<ir_version: 10, opset_import: [\"\" : 18, \"local\" : 1]>\n\
             g (float[3] x) => (float[3] y) {{ a = local.F:{a} (x)\n y = local.F:{b} (a) }}\n\
             <domain: \"local\", opset_import: [\"\" : 18], overload: \"neg\"> F (p) => (q) {{ q = Neg (p) }}\n\
             <domain: \"local\", opset_import: [\"\" : 18], overload: \"abs\"> F (p) => (q) {{ q = Abs (p) }}"
        )
    };
    let m = assert_inlined("overloads", &text("neg", "abs"), 2);
    assert!(m.graph.is_op(m.graph.value("a").unwrap().node, "Neg") && m.graph.is_op(m.graph.value("y").unwrap().node, "Abs"));
    // An overload that is not there is no call of the others.
    let mut m = parse_model(&text("neg", "none")).unwrap();
    assert_eq!(inline(&mut m, no).unwrap(), 1);
    assert_eq!(m.graph.op(m.graph.value("y").unwrap().node).unwrap().op.overload, "none");
}

#[test]
fn kept_functions_stay_with_what_they_call() {
    let text = model(
        "g (float[3] x) => (float[3] y) { a = local.Kept (x)\n y = local.Gone (a) }",
        &[
            "Kept (p) => (q) { q = local.Helper (p) }",
            "Helper (p) => (q) { q = Neg (p) }",
            "Gone (p) => (q) { m = local.Helper (p)\n q = local.Kept (m) }",
        ],
    );
    let mut m = parse_model(&text).unwrap();
    assert_eq!(inline(&mut m, |f| f.op_type == "Kept").unwrap(), 2);
    let names: Vec<_> = m.functions.iter().map(|f| f.id.op_type.as_str()).collect();
    assert_eq!(names, ["Kept", "Helper"]);
    assert_eq!(m.opset("local"), Some(1));
    let ops: Vec<_> = m.graph.ops().into_iter().map(|id| m.graph.op(id).unwrap().op.op_type.clone()).collect();
    assert_eq!(ops, ["Kept", "Neg", "Kept"]);
    // Our own operators stay when a model is brought to the canonical form.
    let ours = text
        .replace("local.Kept", "ai.vitq.Kept")
        .replacen("\"local\", ", "\"ai.vitq\", ", 1)
        .replace("\"local\" : 1", "\"local\" : 1, \"ai.vitq\" : 1");
    let mut m = parse_model(&ours).unwrap();
    let report = crate::canon::canonicalise(&mut m).unwrap();
    assert_eq!(report.applied.get("inline"), Some(&2));
    assert!(m.graph.ops().iter().any(|&id| m.graph.op(id).unwrap().op.is_in("ai.vitq", "Kept")));
}

#[test]
fn without_calls_nothing_changes() {
    let before =
        parse_model(&model("g (float[3] x) => (float[3] y) { dead = Neg (x)\n y = Abs (x) }", &["F (p) => (q) { q = Neg (p) }"]))
            .unwrap();
    let mut after = before.clone();
    assert_eq!(inline(&mut after, no).unwrap(), 0);
    assert!(after == before);
}

#[test]
fn recursion_is_refused() {
    let call = "g (float[3] x) => (float[3] y) { y = local.F (x) }";
    for functions in [
        &["F (p) => (q) { q = local.F (p) }"][..],
        &["F (p) => (q) { q = local.G (p) }", "G (p) => (q) { m = Neg (p)\n q = local.F (m) }"],
    ] {
        assert!(matches!(error(&model(call, functions)), InlineError::Recursive(f) if f == "local.F"));
    }
    // A function that is recursive and never called harms nobody.
    let mut m = parse_model(&model(call, &["F (p) => (q) { q = Neg (p) }", "G (p) => (q) { q = local.G (p) }"])).unwrap();
    assert_eq!(inline(&mut m, no).unwrap(), 1);
}

#[test]
fn deep_and_multiplying_calls_are_refused() {
    let chain = |n: usize, call: &dyn Fn(usize) -> String| {
        let mut functions: Vec<String> = (0..n).map(|i| format!("F{i} (p) => (q) {{ {} }}", call(i + 1))).collect();
        functions.push(format!("F{n} (p) => (q) {{ q = Neg (p) }}"));
        let functions: Vec<&str> = functions.iter().map(String::as_str).collect();
        model("g (float[3] x) => (float[3] y) { y = local.F0 (x) }", &functions)
    };
    let once = |i: usize| format!("q = local.F{i} (p)");
    let twice = |i: usize| format!("m = local.F{i} (p)\n q = local.F{i} (m)");
    let mut m = parse_model(&chain(MAX_DEPTH - 1, &once)).unwrap();
    assert_eq!(inline(&mut m, no).unwrap(), MAX_DEPTH);
    assert!(matches!(error(&chain(MAX_DEPTH, &once)), InlineError::TooDeep(_)));
    let mut m = parse_model(&chain(6, &twice)).unwrap();
    assert_eq!((inline(&mut m, no).unwrap(), m.graph.ops().len()), (127, 64));
    assert_eq!(error(&chain(40, &twice)), InlineError::TooLarge(1 << 40));
}

#[test]
fn a_function_of_an_older_opset_moves_where_nothing_changed() {
    let text = |model: i64, function: i64, body: &str| {
        format!(
            "<ir_version: 10, opset_import: [\"\" : {model}, \"local\" : 1]>\n\
             g (float[3] x) => (float[3] y) {{ y = local.F (x) }}\n\
             <domain: \"local\", opset_import: [\"\" : {function}]> F (p) => (q) {{ {body} }}"
        )
    };
    for (outer, inner, body, fits) in [
        (18, 18, "q = ReduceMean (p)", true),
        (18, 17, "q = ReduceMean (p)", false),
        (17, 13, "q = ReduceMean (p)", true),
        (20, 12, "q = Softmax (p)", false),
        (20, 13, "q = Softmax (p)", true),
        (20, 12, "q = Sigmoid (p)", true),
        (17, 18, "q = Sigmoid (p)", false),
    ] {
        let text = text(outer, inner, body);
        if fits {
            let mut m = parse_model(&text).unwrap();
            assert_eq!(inline(&mut m, no).unwrap(), 1);
            assert_eq!(m.opset(""), Some(outer));
        } else {
            let e = error(&text);
            assert!(matches!(e, InlineError::Opset { found, model, .. } if (found, model) == (inner, outer)), "{e}");
            assert!(e.to_string().contains("local.F"), "{e}");
        }
    }
}

#[test]
fn other_domains_come_along_in_one_version() {
    let text = |model: &str, version: i64| {
        format!(
            "<ir_version: 10, opset_import: [\"\" : 18, \"local\" : 1{model}]>\n\
             g (float[3] x) => (float[3] y) {{ y = local.F (x) }}\n\
             <domain: \"local\", opset_import: [\"\" : 18, \"org.example\" : {version}]> F (p) => (q) {{ q = org.example.Op (p) }}"
        )
    };
    let mut m = parse_model(&text("", 2)).unwrap();
    inline(&mut m, no).unwrap();
    assert_eq!((m.opset("org.example"), m.opset("local")), (Some(2), None));
    let mut m = parse_model(&text(", \"org.example\" : 2", 2)).unwrap();
    assert_eq!(inline(&mut m, no).unwrap(), 1);
    assert!(matches!(error(&text(", \"org.example\" : 3", 2)), InlineError::Opset { domain, .. } if domain == "org.example"));
}

#[test]
fn nested_graphs_are_refused_in_bodies_and_left_alone_outside() {
    let text = model(
        "g (float[3] x, bool c) => (float[3] y) { a = local.F (x)\n y = Op (a) }",
        &["F (p) => (q) { q = Neg (p) }", "G (p) => (q) { q = Abs (p) }"],
    );
    let nested = || AttrValue::Graph(Subgraph { proto: bytes::Bytes::new(), captures: vec!["a".into()] });
    // A node of the main graph that reads the call's output through its nested graph.
    let mut m = parse_model(&text).unwrap();
    let (a, reader) = (m.graph.value("a").unwrap(), m.graph.value("y").unwrap().node);
    let mut edit = Edit::new(&mut m.graph);
    edit.set_attr(reader, "body", nested());
    edit.connect(a, reader, 1);
    edit.commit().unwrap();
    assert_eq!(inline(&mut m, no).unwrap(), 1);
    let a = m.graph.value("a").unwrap();
    assert!(m.graph.is_op(a.node, "Neg") && m.graph.captures_of(reader) == [a]);
    // The nested graph may call any function, so all stay.
    assert_eq!((m.functions.len(), m.opset("local")), (2, Some(1)));

    let mut inside = parse_model(&text).unwrap();
    let id = inside.functions[0].body.ops()[0];
    Edit::new(&mut inside.functions[0].body).set_attr(id, "body", nested());
    assert!(matches!(inline(&mut inside, no), Err(InlineError::Nested { place }) if place.contains("local.F")));

    let mut given = parse_model(&text).unwrap();
    let id = given.graph.value("a").unwrap().node;
    Edit::new(&mut given.graph).set_attr(id, "body", nested());
    assert!(matches!(inline(&mut given, no), Err(InlineError::Nested { place }) if place.contains("local.F")));
}

#[test]
fn an_output_without_a_value_is_refused() {
    let text = model("g (float[3] x) => (float[3] y) { y = local.F (x) }", &["F (p, r) => (r) { q = Neg (p) }"]);
    let mut m = parse_model(&text).unwrap();
    assert!(matches!(inline(&mut m, no), Err(InlineError::NoValue { name, .. }) if name == "y"));
}
