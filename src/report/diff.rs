//! A readable diff of two models.
//!
//! Operators are matched by the names of the values they produce, then by node name and type; initialisers, functions and
//! header entries by name. The facts come first ([`ModelDiff`] serialises to JSON), a line diff of the two graphs'
//! [snapshot](crate::ir::text) text last.

mod compare;
mod display;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::ir::Model;
use crate::ir::text::{PrintOptions, print_model};

/// What differs between two models, `before` and `after`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelDiff {
    /// Header fields, operator sets, metadata entries, and the graph's inputs and outputs.
    pub header: Vec<FieldChange>,
    /// Operator types whose number differs.
    pub op_counts: Vec<OpCount>,
    /// Operators of `after` alone, in topological order.
    pub added: Vec<NodeRef>,
    /// Operators of `before` alone, in topological order.
    pub removed: Vec<NodeRef>,
    /// Operators of both that differ, in the topological order of `before`.
    pub changed: Vec<NodeChange>,
    /// Initialisers that differ, those of `before` in its order, then those of `after` alone.
    pub initialisers: Vec<InitialiserChange>,
    /// Model-local functions that differ.
    pub functions: Vec<FieldChange>,
    /// The unified diff of the snapshot-style text; empty when that is the same.
    pub text: String,
}

/// A named thing that differs; `None` where it is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct FieldChange {
    pub field: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// How many operators of one type there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct OpCount {
    pub op: String,
    pub before: usize,
    pub after: usize,
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeRef {
    /// The name of its first output, or of the node when it has none.
    pub name: String,
    /// Its type.
    pub op: String,
}

/// An operator that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeChange {
    /// The operator, as it is before.
    pub node: NodeRef,
    /// What differs: the operator type, the node's name, an input, an output or an attribute.
    pub changes: Vec<FieldChange>,
}

/// An initialiser that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InitialiserChange {
    /// Its name.
    pub name: String,
    /// Element type and shape (`float[192,768]`) before; `None` where it is absent.
    pub before: Option<String>,
    /// Element type and shape after; `None` where it is absent.
    pub after: Option<String>,
    /// The number of elements that differ, when type and shape are the same.
    pub differing: Option<usize>,
    /// The largest absolute difference of two elements, when type and shape are the same and the elements are numbers.
    /// A NaN on one side alone counts as an infinite difference, which JSON shows as null.
    pub max_abs_difference: Option<f64>,
}

impl ModelDiff {
    /// Compares two models; `context` is the number of unchanged lines around each change of the text.
    pub fn new(before: &Model, after: &Model, context: usize) -> ModelDiff {
        let options = PrintOptions::snapshot();
        let (a, b) = (print_model(before, &options), print_model(after, &options));
        let text = similar::TextDiff::from_lines(&a, &b).unified_diff().context_radius(context).to_string();
        let nodes = compare::nodes(&before.graph, &after.graph);
        ModelDiff {
            header: compare::header(before, after),
            op_counts: compare::op_counts(&before.graph, &after.graph),
            added: nodes.added,
            removed: nodes.removed,
            changed: nodes.changed,
            initialisers: compare::initialisers(&before.graph, &after.graph),
            functions: compare::functions(before, after),
            text,
        }
    }

    /// Whether nothing that is compared differs.
    pub fn is_empty(&self) -> bool {
        let lists = self.header.is_empty() && self.op_counts.is_empty() && self.added.is_empty() && self.removed.is_empty();
        lists && self.changed.is_empty() && self.initialisers.is_empty() && self.functions.is_empty() && self.text.is_empty()
    }
}
