//! Constant folding and the resolution of shape arithmetic, keeping symbolic sizes symbolic.
//!
//! Exporters leave much that is known before any image is seen: `Constant` nodes, `Identity` on shared weights, casts and
//! scales of attention as arithmetic on constants, and above all the shape arithmetic of `view` and `expand`. Folding turns
//! what is constant into initialisers, gives `Reshape` constant targets (with 0 or −1 for a symbolic batch), shortens what
//! must stay symbolic, and removes what does nothing.

mod constant;
mod eval;
mod shapes;
mod simplify;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::ir::shape::{self, Shapes};
use crate::ir::{Edit, Graph, Model, NodeId, NodeKind, Tensor, Value, VerifyError};

/// More rounds than this are not needed by any real export: each resolves one layer of arithmetic through floats.
const MAX_ROUNDS: usize = 12;
/// A result may be as large as this, or as the constants it comes from; products may be larger.
const SMALL: usize = 64 << 10;

/// What folding did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoldReport {
    /// Rounds until nothing changed.
    pub rounds: usize,
    /// Whether a round without changes was reached; if not, running again may fold more.
    pub converged: bool,
    /// How often each kind of change was made.
    pub changes: BTreeMap<&'static str, usize>,
    /// What was left alone on purpose, with the reason.
    pub left_alone: Vec<String>,
    /// What shape inference found contradictory, after folding.
    pub problems: Vec<String>,
}

/// Folding produced a broken graph.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The graph breaks an invariant.
    #[error("folding constants left an invalid graph: {0}; please report this model")]
    Verify(#[from] VerifyError),
}

/// Folds the main graph of a model until nothing changes. Bodies of functions and nested graphs are left alone.
///
/// # Errors
/// When the graph was, or becomes, invalid.
pub fn fold(model: &mut Model) -> Result<FoldReport, FoldError> {
    let opset = model.opset("").unwrap_or(1);
    let mut report = FoldReport::default();
    while report.rounds < MAX_ROUNDS && !report.converged {
        let known = shape::infer(&model.graph, opset);
        let ops = model.graph.ops();
        let edit = Edit::new(&mut model.graph);
        let mut round = Round { edit, shapes: known, opset, report: &mut report, changed: false };
        let sources = round.sources();
        for id in ops {
            round.visit(id, &sources);
        }
        let changed = round.changed;
        round.edit.commit()?;
        report.rounds += 1;
        report.converged = !changed;
    }
    let g = &model.graph;
    for id in g.ops() {
        if g.op(id).is_some_and(|op| op.attrs.subgraphs().next().is_some()) {
            report.left_alone.push(format!("{}: nested graphs are not folded", g.describe(id)));
        }
    }
    let overridable = g.inputs().iter().filter(|&&id| g.get(id).is_some_and(|n| n.tensor().is_some())).count();
    if overridable > 0 {
        report.left_alone.push(format!("{overridable} initializers that are graph inputs too: a caller may override them"));
    }
    report.problems = shape::infer(g, opset).problems().iter().map(ToString::to_string).collect();
    Ok(report)
}

/// One pass over the operators in topological order. Facts stay true through it, because no value changes its meaning and
/// nodes are removed only at its end.
struct Round<'g, 'r> {
    edit: Edit<'g>,
    shapes: Shapes,
    opset: i64,
    report: &'r mut FoldReport,
    changed: bool,
}

impl Round<'_, '_> {
    /// The graph, for reading: `Edit::op` adds an operator.
    fn graph(&self) -> &Graph {
        &self.edit
    }

    fn visit(&mut self, id: NodeId, sources: &shapes::Sources) {
        let Some(node) = self.edit.get(id) else { return };
        let Some(op) = node.op() else { return };
        let ports = node.outputs.len() as u32;
        let outputs = || (0..ports).map(|port| Value { node: id, port });
        if op.attrs.subgraphs().next().is_some() || outputs().all(|v| self.edit.use_count(v) == 0) {
            return;
        }
        if op.op.is("Constant") {
            if let Some(t) = constant::tensor(&op.attrs) {
                self.make_init(Value { node: id, port: 0 }, t, "Constant nodes made initializers");
            }
            return;
        }
        let known: Vec<(Value, Tensor)> =
            outputs().filter_map(|v| Some((v, shapes::constant_contents(&self.shapes, v)?))).collect();
        if known.len() == ports as usize {
            for (value, tensor) in known {
                self.make_init(value, tensor, "shape values resolved");
            }
            return;
        }
        if let Some(results) = self.evaluate(id) {
            for (value, tensor) in outputs().collect::<Vec<_>>().into_iter().zip(results) {
                self.make_init(value, tensor, "operators evaluated");
            }
            return;
        }
        if !self.simplify(id) {
            self.reshape_target(id);
            self.shorten_shape_inputs(id, sources);
        }
    }

    /// The results of an operator whose inputs are all constant.
    fn evaluate(&self, id: NodeId) -> Option<Vec<Tensor>> {
        let op = self.graph().op(id)?;
        let function = eval::lookup(&op.op)?;
        let inputs: Vec<Option<&Tensor>> = self
            .edit
            .inputs_of(id)
            .into_iter()
            .map(|v| v.map(|v| self.edit.constant(v).ok_or(())).transpose())
            .collect::<Result<_, ()>>()
            .ok()?;
        let outputs = self.edit.get(id)?.outputs.len();
        let sizes = || inputs.iter().flatten().map(|t| t.bytes().len());
        let largest = sizes().max().unwrap_or(0);
        let limit = match op.op.op_type.as_str() {
            // A cast of a weight may widen it: an element grows to 8 bytes at most.
            "Cast" => largest.saturating_mul(8),
            "Concat" => sizes().sum(),
            // A table of angles, each for the two elements that it turns.
            "Expand" | "Tile" => largest.saturating_mul(4),
            "MatMul" | "Gather" | "GatherND" => largest.max(eval::PRODUCT_ROOM),
            _ => largest,
        }
        .max(SMALL);
        let call = eval::Call { op, opset: self.opset, inputs, outputs, limit };
        let results = function(&call)?;
        (results.len() == outputs && results.iter().all(|t| t.bytes().len() <= limit)).then_some(results)
    }

    /// Makes a value an initialiser, which takes over the name.
    fn make_init(&mut self, value: Value, tensor: Tensor, kind: &'static str) {
        let name = self.edit.value_name(value).to_owned();
        if name.is_empty() || self.edit.use_count(value) == 0 {
            return;
        }
        let init = self.edit.add_init(value.node, &name, tensor);
        self.edit.replace(value, init);
        self.count(kind);
    }

    fn count(&mut self, kind: &'static str) {
        *self.report.changes.entry(kind).or_insert(0) += 1;
        self.changed = true;
    }

    /// Whether the name of a value must stay with it: graph inputs and outputs, and values that nested graphs read by name.
    fn is_pinned(&self, value: Value) -> bool {
        let input = matches!(self.edit.get(value.node).map(|n| &n.kind), Some(NodeKind::Input))
            || self.edit.inputs().contains(&value.node);
        input
            || self.edit.is_output(value)
            || self.edit.uses(value).iter().any(|u| self.graph().op(u.node).is_some_and(|op| u.port as usize >= op.arity))
    }

    /// Makes the readers of `old` read `new`, which means the same. `new` keeps its name unless `old`'s must stay; when both
    /// must, nothing is done.
    fn bypass(&mut self, old: Value, new: Value) -> bool {
        match (self.is_pinned(old), self.is_pinned(new)) {
            (true, true) => return false,
            (true, false) => self.edit.replace(old, new),
            (false, _) => self.edit.replace_uses(old, new, |_| true),
        }
        true
    }
}
