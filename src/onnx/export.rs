//! The IR to `ModelProto`.

use prost::Message;

use super::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorAnnotation};
use super::{attr, tensor, types};
use crate::ir::{Function, Graph, Model, NodeId, NodeKind, OpsetImport, Value};

/// Exports a model; tensor contents are shared, not copied, unless the file stored them in typed fields.
pub fn to_proto(m: &Model) -> ModelProto {
    // `extra` was encoded at import from the same message type; nothing else writes it.
    let extra = ModelProto::decode(m.header.extra.clone()).unwrap_or_default();
    ModelProto {
        ir_version: m.header.ir_version,
        opset_import: export_opsets(&m.opsets, m.header.spells_default_domain),
        producer_name: m.header.producer_name.clone(),
        producer_version: m.header.producer_version.clone(),
        domain: m.header.domain.clone(),
        model_version: m.header.model_version,
        doc_string: m.header.doc.clone(),
        graph: Some(export_graph(&m.graph)),
        metadata_props: types::export_entries(&m.header.metadata),
        functions: m.functions.iter().map(export_function).collect(),
        ..extra
    }
}

fn export_opsets(list: &[OpsetImport], spell_default: bool) -> Vec<OperatorSetIdProto> {
    let domain = |o: &OpsetImport| (spell_default || !o.domain.is_empty()).then(|| o.domain.clone());
    list.iter().map(|o| OperatorSetIdProto { domain: domain(o), version: o.version }).collect()
}

fn export_function(f: &Function) -> FunctionProto {
    let g = export_graph(&f.body);
    FunctionProto {
        name: f.id.op_type.clone(),
        input: g.input.into_iter().map(|v| v.name).collect(),
        output: g.output.into_iter().map(|v| v.name).collect(),
        attribute: f.attributes.clone(),
        attribute_proto: attr::export(&f.attribute_defaults),
        node: g.node,
        doc_string: f.doc.clone(),
        opset_import: export_opsets(&f.opsets, true),
        domain: f.id.domain.clone(),
        overload: f.id.overload.clone(),
        value_info: g.value_info,
        metadata_props: types::export_entries(&f.metadata),
    }
}

fn export_graph(g: &Graph) -> GraphProto {
    let mut p = GraphProto {
        name: g.name.clone(),
        doc_string: g.doc.clone(),
        metadata_props: types::export_entries(&g.metadata),
        quantization_annotation: g
            .quantization_annotations
            .iter()
            .filter_map(|b| TensorAnnotation::decode(b.clone()).ok())
            .collect(),
        ..GraphProto::default()
    };
    let info = |v: Value| types::export_info(g.value_name(v), g.info(v));
    p.input = g.inputs().iter().map(|&id| info(Value { node: id, port: 0 })).collect();
    p.output = g.outputs().iter().map(|&v| types::export_info(g.value_name(v), g.output_info(v))).collect();
    p.value_info = g.listed().map(|(name, info)| types::export_info(name, Some(info))).collect();
    for id in g.topo() {
        let Some(node) = g.get(id) else { continue };
        match &node.kind {
            NodeKind::Input => {}
            NodeKind::Init(t) => p.initializer.push(tensor::export(Some(g.value_name(Value { node: id, port: 0 })), t)),
            NodeKind::SparseInit(bytes) => p.sparse_initializer.extend(SparseTensorProto::decode(bytes.clone())),
            NodeKind::Op(_) => p.node.extend(export_node(g, id)),
        }
    }
    p
}

fn export_node(g: &Graph, id: NodeId) -> Option<NodeProto> {
    let node = g.get(id)?;
    let op = node.op()?;
    // As for the model's `extra`.
    let extra = NodeProto::decode(op.extra.clone()).unwrap_or_default();
    Some(NodeProto {
        input: g.inputs_of(id).into_iter().map(|v| v.map_or_else(String::new, |v| g.value_name(v).to_owned())).collect(),
        output: node.outputs.clone(),
        name: op.name.clone(),
        op_type: op.op.op_type.clone(),
        domain: op.op.domain.clone(),
        overload: op.op.overload.clone(),
        attribute: attr::export(&op.attrs),
        doc_string: op.doc.clone(),
        metadata_props: types::export_entries(&op.metadata),
        ..extra
    })
}
