//! What was parsed to a graph. Values may be read before the line that produces them, as in onnx.

use std::collections::HashMap;

use super::TextError;
use super::lex::Lexer;
use crate::ir::{Edit, Graph, NodeId, NodeKind, Op, Tensor, Value, ValueInfo};

/// A graph as its text gives it; positions are byte offsets.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) inputs: Vec<(String, ValueInfo, usize)>,
    pub(super) outputs: Vec<(String, ValueInfo, usize)>,
    pub(super) infos: Vec<(String, ValueInfo)>,
    pub(super) inits: Vec<(String, Tensor, usize)>,
    pub(super) nodes: Vec<DraftNode>,
}

/// An operator as its text gives it.
#[derive(Debug)]
pub(super) struct DraftNode {
    pub(super) op: Op,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) at: usize,
}

struct Builder<'a, 'l> {
    edit: Edit<'a>,
    lexer: &'a Lexer<'l>,
    ord: u64,
    values: HashMap<String, Value>,
}

impl Draft {
    /// The graph; `at` is where an error of the whole is reported.
    pub(super) fn build(self, lexer: &Lexer<'_>, at: usize) -> Result<Graph, TextError> {
        let mut graph = Graph { name: self.name, ..Graph::default() };
        let mut b = Builder { edit: Edit::new(&mut graph), lexer, ord: 0, values: HashMap::new() };
        let defaults: std::collections::HashSet<String> = self.inits.iter().map(|(n, ..)| n.clone()).collect();
        for (name, info, at) in &self.inputs {
            if !defaults.contains(name) {
                b.define(NodeKind::Input, vec![name.clone()], *at)?;
            }
            b.edit.set_info_of(name.clone(), info.clone());
        }
        for (name, tensor, at) in self.inits {
            b.define(NodeKind::Init(tensor), vec![name], at)?;
        }
        for (name, _, at) in &self.inputs {
            let id = b.resolve(name, *at)?.node;
            if b.edit.inputs().contains(&id) {
                return Err(lexer.error(*at, format!("the input '{name}' is listed twice; remove one")));
            }
            b.edit.push_graph_input(id);
        }
        let mut pending = Vec::with_capacity(self.nodes.len());
        for n in self.nodes {
            pending.push((b.define(NodeKind::Op(n.op), n.outputs, n.at)?, n.inputs, n.at));
        }
        for (id, inputs, at) in pending {
            for (port, name) in (0..).zip(inputs) {
                if !name.is_empty() {
                    let value = b.resolve(&name, at)?;
                    b.edit.connect(value, id, port);
                }
            }
        }
        for (name, info, at) in self.outputs {
            let value = b.resolve(&name, at)?;
            b.edit.push_graph_output(value);
            if b.edit.info_of(&name).is_none() || info.ty.is_some() {
                b.edit.describe_output(name, info);
            }
        }
        for (name, info) in self.infos {
            if b.edit.info_of(&name).is_none_or(|known| !known.listed) {
                b.edit.describe_listed(name, info);
            }
        }
        b.edit.finish().map_err(|e| lexer.error(at, e.to_string()))?;
        Ok(graph)
    }
}

impl Builder<'_, '_> {
    fn define(&mut self, kind: NodeKind, outputs: Vec<String>, at: usize) -> Result<NodeId, TextError> {
        if outputs.iter().all(String::is_empty) && !matches!(kind, NodeKind::Op(_)) {
            return Err(self.lexer.error(at, "inputs and initialisers need a name"));
        }
        let id = self.edit.append(kind, self.ord, outputs.clone());
        self.ord += 1;
        for (port, name) in (0..).zip(outputs) {
            let value = Value { node: id, port };
            if !name.is_empty() && self.values.insert(name.clone(), value).is_some() {
                return Err(self.lexer.error(at, format!("a second value is named '{name}'; value names must be unique")));
            }
        }
        Ok(id)
    }

    fn resolve(&self, name: &str, at: usize) -> Result<Value, TextError> {
        self.values.get(name).copied().ok_or_else(|| {
            self.lexer.error(at, format!("'{name}' is read, and nothing produces it; correct the name or declare it as an input"))
        })
    }
}
