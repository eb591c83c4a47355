//! What a text leaves out, counted for the comment above it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::is_identifier;
use crate::ir::{AttrValue, Attrs, Function, Graph, Model, NodeKind, Op, Tensor, TensorData, Type};

const DOCS: &str = "documentation strings";
const METADATA: &str = "metadata entries";
const NESTED: &str = "nested graphs, sparse or type attributes, shown as empty graphs named elided_…";
const SPARSE: &str = "sparse initialisers";
const TYPES: &str = "types of values that are no dense tensors";
const DENOTATIONS: &str = "types' denotations";
const ANNOTATIONS: &str = "quantisation annotations";
const EXTRA: &str = "training or device configurations";
/// Written, but only our own parser reads it.
const OURS: &str = "names, byte strings or lists of tensors that onnx's own parser does not read";

/// Counts by kind.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<&'static str, usize>);

impl Notes {
    fn add(&mut self, what: &'static str, n: usize) {
        if n > 0 {
            *self.0.entry(what).or_default() += n;
        }
    }

    /// Comment lines, none when nothing is left out.
    pub(super) fn comment(&self) -> String {
        let mut out = String::new();
        for (what, n) in self.0.iter().filter(|(what, _)| **what != OURS) {
            let _ = writeln!(out, "# Left out of this text: {n} {what}");
        }
        if let Some(n) = self.0.get(OURS) {
            let _ = writeln!(out, "# In this text: {n} {OURS}");
        }
        out
    }

    pub(super) fn model(&mut self, m: &Model) {
        self.add(EXTRA, usize::from(!m.header.extra.is_empty()));
        self.graph(&m.graph);
        for f in &m.functions {
            self.function(f);
        }
    }

    pub(super) fn function(&mut self, f: &Function) {
        self.add(METADATA, f.metadata.len());
        self.add(OURS, usize::from(!f.id.overload.is_empty() && !is_identifier(&f.id.overload)));
        self.attrs(&f.attribute_defaults);
        self.graph(&f.body);
    }

    pub(super) fn graph(&mut self, g: &Graph) {
        self.add(DOCS, usize::from(!g.doc.is_empty()));
        self.add(METADATA, g.metadata.len());
        self.add(ANNOTATIONS, g.quantization_annotations.len());
        for id in g.node_ids() {
            let Some(node) = g.get(id) else { continue };
            match &node.kind {
                NodeKind::Input => {}
                NodeKind::SparseInit(_) => self.add(SPARSE, 1),
                NodeKind::Init(t) => self.tensor(t),
                NodeKind::Op(op) => self.op(op),
            }
            for info in node.outputs.iter().filter_map(|n| g.info_of(n)) {
                self.add(DOCS, usize::from(!info.doc.is_empty()));
                self.add(METADATA, info.metadata.len());
                match &info.ty {
                    Some(Type::Other(_)) => self.add(TYPES, 1),
                    Some(Type::Tensor(t)) => self.add(DENOTATIONS, t.denotations.iter().filter(|d| !d.is_empty()).count()),
                    None => {}
                }
            }
        }
    }

    fn tensor(&mut self, t: &Tensor) {
        self.add(DOCS, usize::from(!t.doc.is_empty()));
        self.add(METADATA, t.metadata.len());
        if let TensorData::Strings(list) = &t.data {
            self.add(OURS, list.iter().filter(|s| std::str::from_utf8(s).is_err()).count());
        }
    }

    fn op(&mut self, op: &Op) {
        self.add(DOCS, usize::from(!op.doc.is_empty()));
        self.add(METADATA, op.metadata.len());
        self.add(EXTRA, usize::from(!op.extra.is_empty()));
        let domain = op.op.domain.split('.').filter(|_| !op.op.domain.is_empty());
        let plain = domain.chain([op.op.op_type.as_str()]).all(is_identifier);
        let overload = op.op.overload.is_empty() || is_identifier(&op.op.overload);
        self.add(OURS, usize::from(!plain || !overload));
        self.attrs(&op.attrs);
    }

    fn attrs(&mut self, attrs: &Attrs) {
        for a in attrs.iter() {
            self.add(DOCS, usize::from(!a.doc.is_empty()));
            self.add(OURS, usize::from(!is_identifier(&a.name)));
            match &a.value {
                AttrValue::Graph(_) | AttrValue::Opaque(_) => self.add(NESTED, 1),
                AttrValue::Graphs(list) => self.add(NESTED, list.len()),
                AttrValue::Tensor(t) => self.tensor(t),
                AttrValue::Tensors(list) => {
                    self.add(OURS, 1);
                    list.iter().for_each(|t| self.tensor(t));
                }
                AttrValue::String(s) => self.add(OURS, usize::from(std::str::from_utf8(s).is_err())),
                AttrValue::Strings(list) => self.add(OURS, list.iter().filter(|s| std::str::from_utf8(s).is_err()).count()),
                _ => {}
            }
        }
    }
}
