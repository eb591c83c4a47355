//! Small models for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};

use super::{Engine, EngineOptions};
use crate::ir::{
    AI_VITQ, AttrValue, DType, Dim, Edit, Graph, Header, Model, NewOp, NodeId, NodeKind, OpsetImport, Tensor, Value, ValueInfo,
};

/// A graph of one float input `x`.
pub(super) struct Build {
    pub(super) graph: Graph,
    pub(super) anchor: NodeId,
}

impl Build {
    pub(super) fn new(dims: &[Dim]) -> Self {
        let mut graph = Graph::default();
        let mut edit = Edit::new(&mut graph);
        let anchor = edit.append(NodeKind::Input, 1, vec!["x".to_owned()]);
        edit.push_graph_input(anchor);
        edit.set_info(Value { node: anchor, port: 0 }, ValueInfo::tensor(DType::F32, Some(dims.to_vec())));
        Build { graph, anchor }
    }

    pub(super) fn fixed(shape: &[usize]) -> Self {
        Build::new(&shape.iter().map(|&d| Dim::Value(d as i64)).collect::<Vec<_>>())
    }

    pub(super) fn x(&self) -> Value {
        Value { node: self.anchor, port: 0 }
    }

    pub(super) fn init(&mut self, name: &str, t: Tensor) -> Value {
        Edit::new(&mut self.graph).add_init(self.anchor, name, t)
    }

    pub(super) fn op(&mut self, op: NewOp) -> Value {
        Value { node: Edit::new(&mut self.graph).add_op(self.anchor, op), port: 0 }
    }

    /// `op_type(inputs)` as a value named `name`.
    pub(super) fn std(&mut self, op_type: &str, name: &str, inputs: &[Value]) -> Value {
        self.op(NewOp::std(op_type, name).inputs(inputs.iter().copied()))
    }

    /// QuantizeLinear or DequantizeLinear with constants.
    pub(super) fn linear(
        &mut self,
        op_type: &str,
        name: &str,
        x: Value,
        scale: Tensor,
        zero: Option<Tensor>,
        axis: Option<i64>,
    ) -> Value {
        let scale = self.init(&format!("{name}.scale"), scale);
        let zero = zero.map(|z| self.init(&format!("{name}.zero"), z));
        let mut op = NewOp::std(op_type, name).input(x).input(scale).maybe_input(zero);
        if let Some(axis) = axis {
            op = op.attr("axis", AttrValue::Int(axis));
        }
        self.op(op)
    }

    pub(super) fn model(mut self, outputs: &[Value]) -> Model {
        let mut edit = Edit::new(&mut self.graph);
        for &v in outputs {
            edit.push_graph_output(v);
        }
        edit.commit().unwrap();
        let opset = |domain: &str, version| OpsetImport { domain: domain.to_owned(), version };
        Model { graph: self.graph, opsets: vec![opset("", 20), opset(AI_VITQ, 1)], functions: vec![], header: Header::default() }
    }
}

pub(super) fn array(shape: &[usize], values: &[f32]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).unwrap()
}

pub(super) fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

/// Outputs in order, and taps by name.
pub(super) fn run(model: &Model, taps: &[&str], x: &ArrayD<f32>) -> (Vec<ArrayD<f32>>, BTreeMap<String, ArrayD<f32>>) {
    let engine = Engine::new(model, &strings(taps), &EngineOptions::default()).unwrap();
    let mut seen = BTreeMap::new();
    let out = engine
        .session()
        .unwrap()
        .run(&[("x", x.view())], &mut |i, shape, v| {
            assert!(seen.insert(taps[i].to_owned(), array(shape, v)).is_none(), "{} was shown twice", taps[i]);
        })
        .unwrap();
    assert_eq!(seen.len(), taps.len());
    (out.into_iter().map(|(_, a)| a).collect(), seen)
}

pub(super) fn refused(model: &Model, taps: &[&str]) -> String {
    Engine::new(model, &strings(taps), &EngineOptions::default()).unwrap_err().to_string()
}

pub(super) fn values(a: &ArrayD<f32>) -> Vec<f32> {
    a.iter().copied().collect()
}
