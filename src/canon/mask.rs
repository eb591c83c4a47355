//! Attention masks that mask nothing. Exporters of Hugging Face's models build one of trues for the whole batch; what it is
//! made of is one number spread over a symbolic batch, so folding leaves it.

use crate::ir::{Edit, Graph, NewOp, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, near, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let masked = op("Softmax", [op("Add", [var("a"), var("b")])]);
    // A row that is masked throughout would be NaN.
    let probabilities = op("Softmax", [var("scores")]).named("p");
    let guarded = op("Where", [op("IsNaN", [probabilities]), near(0.0), var("p")]);
    vec![
        Rule::new("mask-of-nothing", "", masked, check, softmax),
        Rule::new("unmasked-softmax-guard", "", guarded, check_guard, |_, m, ()| m.value("p")),
    ]
}

/// How deep a mask's own computation is looked into.
const DEPTH: usize = 16;

/// The one number that all elements of a value are, if that is plain to see.
pub(super) fn uniform(graph: &Graph, value: Value) -> Option<f64> {
    fn of_tensor(t: &Tensor) -> Option<f64> {
        let numbers: Vec<f64> = match t.to_i64() {
            Ok(v) => v.into_iter().map(|n| n as f64).collect(),
            Err(_) => t.to_f32().ok()?.into_iter().map(f64::from).collect(),
        };
        let first = *numbers.first()?;
        numbers.iter().all(|&n| n == first).then_some(first)
    }
    fn at(graph: &Graph, value: Value, depth: usize) -> Option<f64> {
        if let Some(t) = graph.constant(value) {
            return of_tensor(t);
        }
        let op = graph.op(value.node).filter(|_| depth > 0)?;
        let input = |port| at(graph, graph.input(value.node, port)?, depth - 1);
        if !op.op.canonical_domain().is_empty() {
            return None;
        }
        match op.op.op_type.as_str() {
            "Expand" | "Reshape" | "Unsqueeze" | "Squeeze" | "Transpose" | "Slice" | "Identity" | "Tile" => input(0),
            "Where" => {
                let chosen = if input(0)? != 0.0 { 1 } else { 2 };
                input(chosen)
            }
            "Not" => input(0).map(|v| if v == 0.0 { 1.0 } else { 0.0 }),
            "And" => Some(if input(0)? != 0.0 && input(1)? != 0.0 { 1.0 } else { 0.0 }),
            "ConstantOfShape" => op.attrs.tensor("value").map_or(Some(0.0), of_tensor),
            _ => None,
        }
    }
    at(graph, value, DEPTH)
}

/// The scores beside a mask of zeros that adds no dimension.
fn check(facts: Facts<'_>, m: &Match) -> Result<Value, String> {
    let (a, b) = (m.value("a"), m.value("b"));
    // A constant of zeros may be a bias that was never trained.
    let zeros = |v: Value| facts.graph.constant(v).is_none() && uniform(facts.graph, v) == Some(0.0);
    let (scores, mask) = if zeros(b) { (a, b) } else { (b, a) };
    if !zeros(mask) {
        return Err("a computed mask of zeros expected".to_owned());
    }
    let shape = |v: Value| facts.shapes.shape(v).ok_or("a known shape expected");
    let (x, mask) = (shape(scores)?, shape(mask)?);
    let fits =
        mask.len() <= x.len() && x.iter().rev().zip(mask.iter().rev()).all(|(x, mask)| mask.as_const() == Some(1) || mask == x);
    if fits { Ok(scores) } else { Err("a mask of the scores' shape expected".to_owned()) }
}

fn softmax(edit: &mut Edit<'_>, m: &Match, scores: Value) -> Value {
    let root = m.root();
    let name = edit.value_name(root).to_owned();
    let attrs = edit.op(root.node).map(|o| o.attrs.clone()).unwrap_or_default();
    edit.add(root.node, NewOp::std("Softmax", &name).input(scores).attrs(attrs))
}

/// A product of finite numbers is no NaN, and neither is its softmax.
fn check_guard(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let g = facts.graph;
    let mut scores = m.value("scores");
    // A finite factor is no mask.
    while ["Mul", "Div"].iter().any(|op| g.is_op(scores.node, op)) {
        let factor = |v: Value| g.constant(v).and_then(|t| t.scalar_f32()).is_some_and(|c| c.is_finite() && c != 0.0);
        let operands: Vec<Value> = g.inputs_of(scores.node).into_iter().flatten().collect();
        match operands[..] {
            [a, b] if factor(b) => scores = a,
            [a, b] if factor(a) && g.is_op(scores.node, "Mul") => scores = b,
            _ => break,
        }
    }
    if g.is_op(scores.node, "MatMul") { Ok(()) } else { Err("a softmax of unmasked scores expected".to_owned()) }
}
