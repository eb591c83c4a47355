#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::ir::text::parse_model;

const BEFORE: &str = r#"
<ir_version: 8, opset_import: ["" : 17], metadata_props: ["author": "a", "gone": "x"]>
g (float[N,2] x) => (float[N,2] y)
<
  float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {0.5, -0.5}, float[2] same = {1, 2}, int8[3] codes = {-128, 0, 127},
  float[2] reshaped = {1, 2}, float[1] dropped = {1}, uint64[1] wide = {18446744073709551615}, float[1] broken = {1},
  string[2] words = {"a", "b"}, int64[2] axes = {0, 1}
>
{
  ["/mm"] "/mm_output_0" = MatMul (x, w)
  [add] sum = Add ("/mm_output_0", b)
  [norm] normal = Custom <axis = 1, eps = 0.5, old = 1> (sum, same, codes)
  [gone] gone = Relu (normal)
  [keep] kept = Op (gone, reshaped, dropped, wide, broken, words, axes)
  y = Identity (kept)
}
<domain: "ai.vitq", opset_import: ["" : 17]> F (x) => (y) { y = Relu (x) }
<domain: "ai.vitq", opset_import: ["" : 17]> G (x) => (y) { y = Relu (x) }
"#;

const AFTER: &str = r#"
<ir_version: 10, opset_import: ["" : 20, "ai.vitq" : 1], metadata_props: ["author": "b", "new": "y"]>
g (float[N,2] x) => (float[N,2] y)
<
  float[2,2] w = {1.0, 2.25, 3.0, 3.0}, float[2] b = {0.5, -0.5}, float[2] same = {1, 2}, int8[3] codes = {127, 0, 127},
  float[2,1] reshaped = {1, 2}, uint64[1] wide = {0}, float[1] broken = {nan}, float[1] extra = {2},
  string[2] words = {"a", "c"}, int32[2] axes = {0, 1}
>
{
  ["/mm"] "/mm_output_0" = MatMul (x, w)
  [add] sum = Add (b, "/mm_output_0")
  [norm] normal = Custom <axis = 2, eps = 0.5, added = "s"> (sum, same, "", codes)
  [keep] kept_new = Op (normal, reshaped, extra, wide, broken, words, axes)
  ["quantise"] codes_out = ai.vitq.Q (kept_new)
  y = ai.vitq.D (codes_out)
}
<domain: "ai.vitq", opset_import: ["" : 17]> F (x) => (y) { h = Relu (x) y = Neg (h) }
<domain: "ai.vitq", opset_import: ["" : 17]> H (x) => (y) { y = Relu (x) }
"#;

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({ snapshot_path => "../../../snapshots/diff", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

fn models() -> (Model, Model) {
    (parse_model(BEFORE).unwrap(), parse_model(AFTER).unwrap())
}

#[test]
fn reads_well() {
    let (a, b) = models();
    let d = ModelDiff::new(&a, &b, 1);
    snapshot("models", &d.to_string());
    snapshot("models_json", &serde_json::to_string_pretty(&d).unwrap());
}

#[test]
fn facts() {
    let (a, b) = models();
    let d = ModelDiff::new(&a, &b, 1);
    let by_name = |n: &str| d.initialisers.iter().find(|c| c.name == n);
    let numbers = |n: &str| by_name(n).map(|c| (c.differing, c.max_abs_difference));
    assert_eq!(numbers("w"), Some((Some(2), Some(1.0))));
    assert_eq!(numbers("codes"), Some((Some(1), Some(255.0))));
    assert_eq!(numbers("wide"), Some((Some(1), Some(u64::MAX as f64))));
    assert_eq!(numbers("broken"), Some((Some(1), Some(f64::INFINITY))));
    assert_eq!(numbers("words"), Some((Some(1), None)));
    assert_eq!(numbers("reshaped"), Some((None, None)));
    assert_eq!(numbers("same"), None);
    assert_eq!(by_name("dropped").unwrap().after, None);
    assert_eq!(by_name("extra").unwrap().before, None);
    let names = |list: &[NodeRef]| list.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&d.removed), names(&d.added)), (vec!["gone".to_owned()], vec!["codes_out".to_owned()]));
    let changed: Vec<&str> = d.changed.iter().map(|c| c.node.name.as_str()).collect();
    assert_eq!(changed, ["sum", "normal", "kept", "y"]);
    let counts: Vec<(&str, usize, usize)> = d.op_counts.iter().map(|c| (c.op.as_str(), c.before, c.after)).collect();
    assert_eq!(counts, [("Identity", 1, 0), ("Relu", 1, 0), ("ai.vitq.D", 0, 1), ("ai.vitq.Q", 0, 1)]);
}

#[test]
fn nothing_differs_from_itself() {
    for m in [models().0, models().1] {
        let d = ModelDiff::new(&m, &m, 3);
        assert!(d.is_empty());
        assert_eq!(d.to_string(), "no difference\n");
    }
}

#[test]
fn every_single_change_is_seen() {
    let edits = [
        ("ir_version: 8", "ir_version: 9"),
        ("\"\" : 17", "\"\" : 18"),
        ("\"author\": \"a\"", "\"author\": \"c\""),
        ("float[N,2] x", "float[M,2] x"),
        ("axis = 1", "axis = 3"),
        ("eps = 0.5", "eps = 0.50000006"),
        ("[add] sum", "[plus] sum"),
        ("Add (\"/mm_output_0\", b)", "Add (b, \"/mm_output_0\")"),
        ("{0.5, -0.5}", "{0.5, -0.50000006}"),
        ("{1.0, 2.0, 3.0, 4.0}", "{1.0, 2.0, 3.0, 4.0000005}"),
        ("Relu (x) }", "Neg (x) }"),
    ];
    let before = parse_model(BEFORE).unwrap();
    for (from, to) in edits {
        let text = BEFORE.replacen(from, to, 1);
        assert_ne!(text, BEFORE, "{from}");
        assert!(!ModelDiff::new(&before, &parse_model(&text).unwrap(), 3).is_empty(), "{from} -> {to}");
    }
}

#[test]
fn long_sections_are_cut_and_say_so() {
    let many: String = (0..300).map(|i| format!("v{i} = Relu (x)\n")).collect();
    let a = parse_model("g (x) => (x) {}").unwrap();
    let b = parse_model(&format!("g (x) => (x) {{ {many} }}")).unwrap();
    let d = ModelDiff::new(&a, &b, 3);
    let short = d.to_string();
    assert!(
        short.contains("operators added: 300\n") && short.contains("  … 280 more entries\n") && short.contains(" more lines\n")
    );
    assert!(short.lines().count() < 250);
    let full = format!("{d:#}");
    assert!(!full.contains('…') && full.lines().count() > 600);
}
