//! `ModelProto` to the IR.

use std::collections::HashMap;

use prost::Message;

use super::external::{self, DataFiles};
use super::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use super::{OnnxError, attr, tensor, types};
use crate::ir::{Edit, Function, Graph, Header, Model, NodeId, NodeKind, Op, OpName, OpsetImport, Value};

/// The newest IR version whose every field the schema in `proto/` has.
pub const MAX_IR_VERSION: i64 = 14;

/// Imports a decoded model; external tensor data comes from `files`.
///
/// # Errors
/// When the model is of a newer IR version, has no graph, or is malformed: the error names the place.
pub fn from_proto(mut p: ModelProto, files: &dyn DataFiles) -> Result<Model, OnnxError> {
    if p.ir_version > MAX_IR_VERSION {
        return Err(OnnxError::IrVersion { found: p.ir_version, max: MAX_IR_VERSION });
    }
    let graph = p.graph.take().ok_or(OnnxError::NoGraph)?;
    let functions = std::mem::take(&mut p.functions).into_iter().map(|f| import_function(f, files)).collect::<Result<_, _>>()?;
    for info in &mut p.training_info {
        for g in info.initialization.iter_mut().chain(&mut info.algorithm) {
            external::embed_graph(g, files)?;
        }
    }
    let extra = ModelProto { training_info: p.training_info, configuration: p.configuration, ..ModelProto::default() };
    let spells_default_domain = p.opset_import.iter().any(|o| o.domain.as_deref() == Some(""));
    Ok(Model {
        graph: import_graph(graph, files, Ends::Described)?,
        opsets: import_opsets(p.opset_import),
        functions,
        header: Header {
            ir_version: p.ir_version,
            producer_name: p.producer_name,
            producer_version: p.producer_version,
            domain: p.domain,
            model_version: p.model_version,
            doc: p.doc_string,
            metadata: types::import_entries(p.metadata_props),
            spells_default_domain,
            extra: extra.encode_to_vec().into(),
        },
    })
}

fn import_opsets(list: Vec<OperatorSetIdProto>) -> Vec<OpsetImport> {
    list.into_iter().map(|o| OpsetImport { domain: o.domain.unwrap_or_default(), version: o.version }).collect()
}

fn import_function(f: FunctionProto, files: &dyn DataFiles) -> Result<Function, OnnxError> {
    let place = format!("function '{}.{}'", f.domain, f.name);
    let named = |name: String| ValueInfoProto { name, ..ValueInfoProto::default() };
    let body = GraphProto {
        name: f.name.clone(),
        node: f.node,
        input: f.input.into_iter().map(named).collect(),
        output: f.output.into_iter().map(named).collect(),
        value_info: f.value_info,
        ..GraphProto::default()
    };
    Ok(Function {
        id: OpName { domain: f.domain, op_type: f.name, overload: f.overload },
        attributes: f.attribute,
        attribute_defaults: attr::import(f.attribute_proto, &place, files)?,
        opsets: import_opsets(f.opset_import),
        body: import_graph(body, files, Ends::Named)?,
        doc: f.doc_string,
        metadata: types::import_entries(f.metadata_props),
    })
}

/// What a file says of a graph's inputs and outputs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Types and documentation, in their own lists.
    Described,
    /// Names alone: what else is known of a function's parameters is in `value_info`.
    Named,
}

/// Imports one graph.
fn import_graph(g: GraphProto, files: &dyn DataFiles, ends: Ends) -> Result<Graph, OnnxError> {
    let mut graph = Graph::default();
    graph.name = g.name;
    graph.doc = g.doc_string;
    graph.metadata = types::import_entries(g.metadata_props);
    graph.quantization_annotations = g.quantization_annotation.iter().map(|a| a.encode_to_vec().into()).collect();
    let mut importer = Importer { edit: Edit::new(&mut graph), ord: 0, values: HashMap::new(), files };
    // Initialisers keep their own order, graph inputs theirs: an initialiser that is also an input is one node.
    let defaults: std::collections::HashSet<String> = g.initializer.iter().filter_map(|t| t.name.clone()).collect();
    let mut input_names = Vec::with_capacity(g.input.len());
    for v in g.input {
        let (name, info) = types::import_info(v, false);
        if !defaults.contains(&name) {
            importer.define(NodeKind::Input, vec![name.clone()])?;
        }
        if ends == Ends::Described {
            importer.edit.set_info_of(name.clone(), info);
        }
        input_names.push(name);
    }
    for t in g.initializer {
        let name = t.name.clone().unwrap_or_default();
        let tensor = tensor::import(t, files)?;
        importer.define(NodeKind::Init(tensor), vec![name])?;
    }
    for mut s in g.sparse_initializer {
        external::embed_sparse(&mut s, files)?;
        let name = s.values.as_ref().and_then(|t| t.name.clone()).unwrap_or_default();
        importer.define(NodeKind::SparseInit(s.encode_to_vec().into()), vec![name])?;
    }
    for name in &input_names {
        let id = importer.resolve(name, || format!("graph input '{name}'"))?.node;
        importer.edit.push_graph_input(id);
    }
    importer.nodes(g.node)?;
    for v in g.output {
        let (name, info) = types::import_info(v, false);
        let value = importer.resolve(&name, || format!("graph output '{name}'"))?;
        importer.edit.push_graph_output(value);
        if ends == Ends::Described {
            importer.edit.describe_output(name, info);
        }
    }
    for v in g.value_info {
        let (name, info) = types::import_info(v, true);
        importer.edit.describe_listed(name, info);
    }
    importer.edit.finish()?;
    Ok(graph)
}

struct Importer<'a> {
    edit: Edit<'a>,
    ord: u64,
    values: HashMap<String, Value>,
    files: &'a dyn DataFiles,
}

impl Importer<'_> {
    fn define(&mut self, kind: NodeKind, outputs: Vec<String>) -> Result<NodeId, OnnxError> {
        let id = self.edit.append(kind, self.ord, outputs.clone());
        self.ord += 1;
        for (port, name) in (0..).zip(outputs) {
            if !name.is_empty() && self.values.insert(name.clone(), Value { node: id, port }).is_some() {
                return Err(OnnxError::malformed(
                    self.edit.describe(id),
                    format!(
                        "produces '{name}', which another node already produces; value names must be unique, export the model again"
                    ),
                ));
            }
        }
        Ok(id)
    }

    fn resolve(&self, name: &str, place: impl Fn() -> String) -> Result<Value, OnnxError> {
        self.values.get(name).copied().ok_or_else(|| {
            OnnxError::malformed(
                place(),
                format!("reads '{name}', which nothing in the graph produces; the file is damaged or was cut, export it again"),
            )
        })
    }

    fn nodes(&mut self, nodes: Vec<NodeProto>) -> Result<(), OnnxError> {
        let mut pending = Vec::with_capacity(nodes.len());
        for n in nodes {
            let place = if n.name.is_empty() { format!("a {} node", n.op_type) } else { format!("{} '{}'", n.op_type, n.name) };
            let attrs = attr::import(n.attribute, &place, self.files)?;
            let extra = NodeProto { device_configurations: n.device_configurations, ..NodeProto::default() };
            let captures: Vec<String> = attrs.subgraphs().flat_map(|g| g.captures.iter().cloned()).collect();
            let op = Op {
                op: OpName { domain: n.domain, op_type: n.op_type, overload: n.overload },
                name: n.name,
                attrs,
                arity: n.input.len(),
                doc: n.doc_string,
                metadata: types::import_entries(n.metadata_props),
                extra: extra.encode_to_vec().into(),
            };
            let id = self.define(NodeKind::Op(op), n.output)?;
            pending.push((id, n.input, captures));
        }
        for (id, inputs, captures) in pending {
            let arity = inputs.len();
            for (port, name) in (0..).zip(inputs) {
                if !name.is_empty() {
                    let value = self.resolve(&name, || self.edit.describe(id))?;
                    self.edit.connect(value, id, port);
                }
            }
            for (port, name) in (arity as u32..).zip(captures) {
                let value = self.resolve(&name, || format!("a nested graph of {}", self.edit.describe(id)))?;
                self.edit.connect(value, id, port);
            }
        }
        Ok(())
    }
}
