//! onnxruntime's fused operators (`com.microsoft`), taken apart into standard ones.
//!
//! onnxruntime writes them when it saves an optimised graph, and its transformer optimiser makes them on purpose. The sites of
//! a block lie inside them, and no other runtime has them. What they compute is defined by onnxruntime's
//! `docs/ContribOperators.md`. Files that hold operators of its memory layouts are refused ([`refuse_layouts`]): how their
//! weights are blocked depends on the processor that saved them and is not written down.

mod activation;
mod attention;
mod bias;
mod conv;
mod linear;
mod norm;

use super::CanonError;
use crate::ir::{AttrValue, COM_MICROSOFT, Edit, Graph, NewOp, NodeId, Tensor, Value};
use crate::pattern::{Facts, Match, Pat, Rule, op_in};

/// Every rule of this stage.
pub(super) fn rules() -> Vec<Rule> {
    let families = [attention::rules(), norm::rules(), activation::rules(), bias::rules(), linear::rules(), conv::rules()];
    families.into_iter().flatten().collect()
}

/// Refuses operators of onnxruntime's own memory layouts.
pub(super) fn refuse_layouts(graph: &Graph) -> Result<(), CanonError> {
    let blocked = |domain: &str, op_type: &str| match domain {
        "com.microsoft.nchwc" | "com.ms.internal.nhwc" => true,
        COM_MICROSOFT => op_type.starts_with("Nhwc"),
        _ => false,
    };
    match graph.ops().into_iter().find(|&id| graph.op(id).is_some_and(|o| blocked(o.op.canonical_domain(), &o.op.op_type))) {
        None => Ok(()),
        Some(id) => Err(CanonError::Opset {
            place: graph.describe(id),
            what: "has its data and weights in a memory layout that onnxruntime chose for the machine that saved the model: \
                   give vitq the model as it was before, or save it again with graph_optimization_level = ORT_ENABLE_EXTENDED"
                .to_owned(),
        }),
    }
}

fn microsoft<const N: usize>(op_type: &'static str, inputs: [Pat; N]) -> Pat {
    op_in(COM_MICROSOFT, op_type, inputs)
}

/// Whether an optional input is there.
fn has(facts: Facts<'_>, m: &Match, port: u32) -> bool {
    facts.graph.input(m.root().node, port).is_some()
}

/// Refuses optional inputs by their ports, each with what it is.
fn without(facts: Facts<'_>, m: &Match, inputs: &[(u32, &str)]) -> Result<(), String> {
    match inputs.iter().find(|(port, _)| has(facts, m, *port)) {
        None => Ok(()),
        Some((port, what)) => Err(format!("no {what} expected, found '{}'", {
            let value = facts.graph.input(m.root().node, *port);
            value.map_or("", |v| facts.graph.value_name(v))
        })),
    }
}

/// A match's root is the operator's first output.
fn first_output(m: &Match) -> Result<(), String> {
    match m.root().port {
        0 => Ok(()),
        port => Err(format!("the first output alone to be read expected, found a reader of output {port}")),
    }
}

fn int(facts: Facts<'_>, m: &Match, name: &str) -> Option<i64> {
    facts.graph.op(m.root().node)?.attrs.int(name)
}

fn number(facts: Facts<'_>, m: &Match, name: &str) -> Option<f32> {
    facts.graph.op(m.root().node)?.attrs.float(name)
}

/// The operators that a fused one becomes, each named after it.
struct Parts<'e, 'g> {
    edit: &'e mut Edit<'g>,
    at: NodeId,
    name: String,
}

impl<'e, 'g> Parts<'e, 'g> {
    fn of(edit: &'e mut Edit<'g>, m: &Match) -> Self {
        let (at, name) = (m.root().node, edit.value_name(m.root()).to_owned());
        Parts { edit, at, name }
    }

    fn input(&self, port: u32) -> Option<Value> {
        self.edit.input(self.at, port)
    }

    /// An operator in the middle.
    fn op(&mut self, part: &str, op_type: &str, inputs: &[Value]) -> Value {
        self.with(part, op_type, inputs, &[])
    }

    fn with(&mut self, part: &str, op_type: &str, inputs: &[Value], attrs: &[(&str, AttrValue)]) -> Value {
        let stem = if part.is_empty() { self.name.clone() } else { format!("{}.{part}", self.name) };
        let new = NewOp::std(op_type, &stem).inputs(inputs.iter().copied());
        let new = attrs.iter().fold(new, |new, (name, value)| new.attr(name, value.clone()));
        self.edit.add(self.at, new)
    }

    fn constant(&mut self, part: &str, tensor: Tensor) -> Value {
        let stem = format!("{}.{part}", self.name);
        self.edit.add_init(self.at, &stem, tensor)
    }

    fn scalar(&mut self, part: &str, value: f32) -> Value {
        self.constant(part, Tensor::scalar(value))
    }

    /// `x` times a number.
    fn times(&mut self, part: &str, x: Value, factor: f32) -> Value {
        let c = self.scalar(&format!("{part}.factor"), factor);
        self.op(part, "Mul", &[x, c])
    }

    fn gelu(&mut self, part: &str, x: Value, approximate: &'static str) -> Value {
        self.with(part, "Gelu", &[x], &[("approximate", text(approximate))])
    }

    fn transpose(&mut self, part: &str, x: Value, perm: &[i64]) -> Value {
        self.with(part, "Transpose", &[x], &[("perm", AttrValue::Ints(perm.to_vec()))])
    }

    fn softmax(&mut self, part: &str, x: Value) -> Value {
        self.with(part, "Softmax", &[x], &[("axis", AttrValue::Int(-1))])
    }
}

fn text(value: &'static str) -> AttrValue {
    AttrValue::String(bytes::Bytes::from_static(value.as_bytes()))
}

/// `x` plus a bias, on that side of the sum where a Linear has its own.
fn biased(parts: &mut Parts<'_, '_>, part: &str, x: Value, bias: Option<Value>) -> Value {
    match bias {
        Some(b) => parts.op(part, "Add", &[x, b]),
        None => x,
    }
}
