//! The IR as a model of tract: node by node with tract's own operator builders, so that weights go straight from the mapped
//! file into tract's tensors, with no protobuf message (and none of its size limits) in between.

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::model::ParsingContext;
use tract_onnx::tract_hir::internal::*;

use super::{EngineError, EngineOptions, InputSpec, convert, error, ops, support};
use crate::ir::{self, DType, Dim, NodeId, NodeKind, Value};

/// A model in tract's inference form.
pub(super) struct Loaded {
    pub(super) model: InferenceModel,
    pub(super) inputs: Vec<InputSpec>,
    /// The outlets of the values asked for, in the same order.
    pub(super) wanted: Vec<OutletId>,
}

/// Loads what the wanted values depend on. What reads one of the `walls` reads it behind an operator that tract cannot look through.
pub(super) fn load(
    model: &ir::Model,
    wanted: &[Value],
    walls: &BTreeSet<Value>,
    options: &EngineOptions,
) -> Result<Loaded, EngineError> {
    let g = &model.graph;
    let inputs = input_specs(g, options)?;
    let live = live(g, wanted);
    let has_function = |op: &ir::OpName| model.functions.iter().any(|f| f.id.op_type == op.op_type && f.id.domain == op.domain);
    let framework = tract_onnx::onnx();
    let proto = tract_onnx::pb::ModelProto::default();
    let ctx = ParsingContext {
        onnx_operator_set_version: model.opset(ir::AI_ONNX).unwrap_or(0),
        framework: &framework,
        model: &proto,
        parent_graphs: vec![],
        model_dir: None,
        template: InferenceModel::default(),
    };
    let mut loader = Loader { g, model: InferenceModel::default(), outlets: BTreeMap::new() };
    for (spec, &id) in inputs.iter().zip(g.inputs().iter().filter(|&&id| is_input(g, id))) {
        let fed = convert::datum_type(spec.dtype).unwrap_or(f32::datum_type());
        let fact = InferenceFact::dt_shape(fed, &spec.shape);
        let outlet = loader.model.add_source(spec.name.as_str(), fact).map_err(load_error)?;
        loader.outlets.insert(Value { node: id, port: 0 }, outlet);
    }
    for id in g.ops().into_iter().filter(|id| live.contains(id)) {
        support::check(g, id, has_function)?;
        if convert::constant(g, Value { node: id, port: 0 }).is_none() {
            loader.op(id, &ctx)?;
            walls.iter().filter(|v| v.node == id).try_for_each(|&v| loader.wall(v))?;
        }
    }
    let wanted = wanted.iter().map(|&v| loader.outlet(v)).collect::<Result<Vec<_>, _>>()?;
    Ok(Loaded { model: loader.model, inputs, wanted })
}

fn load_error(e: TractError) -> EngineError {
    EngineError::Load(error::one_line(&e))
}

/// Whether a listed graph input is fed by the caller; an initialiser that is listed too keeps its default.
fn is_input(g: &ir::Graph, id: NodeId) -> bool {
    matches!(g.get(id).map(|n| &n.kind), Some(NodeKind::Input))
}

/// Everything that the wanted values depend on.
fn live(g: &ir::Graph, wanted: &[Value]) -> BTreeSet<NodeId> {
    let mut live = BTreeSet::new();
    let mut stack: Vec<NodeId> = wanted.iter().map(|v| v.node).collect();
    while let Some(id) = stack.pop() {
        if live.insert(id) {
            stack.extend(g.inputs_of(id).into_iter().flatten().map(|v| v.node));
        }
    }
    live
}

struct Loader<'g> {
    g: &'g ir::Graph,
    model: InferenceModel,
    outlets: BTreeMap<Value, OutletId>,
}

impl Loader<'_> {
    /// The outlet of a value; a constant joins the model when something reads it.
    fn outlet(&mut self, value: Value) -> Result<OutletId, EngineError> {
        if let Some(&outlet) = self.outlets.get(&value) {
            return Ok(outlet);
        }
        let name = self.g.value_name(value);
        let Some(constant) = convert::constant(self.g, value) else {
            return Err(EngineError::Unsupported {
                node: self.g.describe(value.node),
                what: "sparse tensors are not implemented".to_owned(),
                advice: "store the tensor densely",
            });
        };
        let tensor = convert::tensor(&constant, || format!("the constant '{name}'"))?;
        let outlet = self.model.add_const(name, tensor).map_err(load_error)?;
        self.outlets.insert(value, outlet);
        Ok(outlet)
    }

    /// Adds an operator; its outputs are numbered without the absent ones, as tract does.
    fn op(&mut self, id: NodeId, ctx: &ParsingContext<'_>) -> Result<(), EngineError> {
        let Some(node) = self.g.get(id) else { return Ok(()) };
        let (op, inputs) = match ops::build(self.g, id)? {
            Some(built) => (built.op, built.inputs),
            None => (self.tract_op(id, ctx)?, self.g.inputs_of(id).into_iter().flatten().collect()),
        };
        let present: Vec<(u32, &String)> = (0..).zip(&node.outputs).filter(|(_, name)| !name.is_empty()).collect();
        let name = present.first().map_or("", |(_, name)| name.as_str());
        let facts = present.iter().map(|_| InferenceFact::default()).collect();
        let inputs = inputs.into_iter().map(|v| self.outlet(v)).collect::<Result<Vec<_>, _>>()?;
        let at = self.model.add_node(name, op, facts).map_err(load_error)?;
        for (port, outlet) in inputs.into_iter().enumerate() {
            self.model.add_edge(outlet, InletId::new(at, port)).map_err(load_error)?;
        }
        for (slot, (port, _)) in present.into_iter().enumerate() {
            self.outlets.insert(Value { node: id, port }, OutletId::new(at, slot));
        }
        Ok(())
    }

    fn wall(&mut self, value: Value) -> Result<(), EngineError> {
        let name = format!("{}.wall", self.g.value_name(value));
        let outlet = self.outlet(value)?;
        let at = self.model.add_node(name, ops::wall(), tvec![InferenceFact::default()]).map_err(load_error)?;
        self.model.add_edge(outlet, InletId::new(at, 0)).map_err(load_error)?;
        self.outlets.insert(value, OutletId::new(at, 0));
        Ok(())
    }

    fn tract_op(&self, id: NodeId, ctx: &ParsingContext<'_>) -> Result<Box<dyn InferenceOp>, EngineError> {
        let proto = convert::node(self.g, id)?;
        let refuse = |what: String| EngineError::Unsupported {
            node: self.g.describe(id),
            what,
            advice: "rewrite the node, or run the model in onnxruntime",
        };
        let build = ctx.framework.op_register.0.get(&proto.op_type);
        let build = build.ok_or_else(|| refuse("the operator is not implemented".to_owned()))?;
        let (op, _) = build(ctx, &proto).map_err(|e| refuse(error::one_line(&e)))?;
        Ok(op)
    }
}

/// Name, type and concrete shape of every graph input that a caller feeds.
fn input_specs(g: &ir::Graph, options: &EngineOptions) -> Result<Vec<InputSpec>, EngineError> {
    let ids: Vec<NodeId> = g.inputs().iter().copied().filter(|&id| is_input(g, id)).collect();
    let mut specs = Vec::with_capacity(ids.len());
    for id in ids {
        let value = Value { node: id, port: 0 };
        let name = g.value_name(value).to_owned();
        let fail = |what: &str| EngineError::ModelInput { name: name.clone(), what: what.to_owned() };
        let ty = g
            .info(value)
            .and_then(|i| i.tensor_type())
            .ok_or_else(|| fail("is no tensor of a known type; export the model again"))?;
        if !matches!(ty.dtype, DType::F32 | DType::F16) {
            return Err(fail(&format!("is {}, and only float inputs can be fed; export the model with a float input", ty.dtype)));
        }
        let shape = match options.input_shapes.get(&name) {
            Some(shape) => overridden(shape, ty.shape.as_deref()).map_err(|what| fail(&what))?,
            None => {
                let dims = ty.shape.as_deref().ok_or_else(|| fail("has no shape in the model; give its shape"))?;
                concrete(dims, options.batch).map_err(|what| fail(&what))?
            }
        };
        specs.push(InputSpec { name, dtype: ty.dtype, shape });
    }
    Ok(specs)
}

/// The batch takes the place of an open first axis, and of its name elsewhere.
fn concrete(dims: &[Dim], batch: usize) -> Result<Vec<usize>, String> {
    let of = |(i, d): (usize, &Dim)| match d {
        Dim::Value(_) => d.value().ok_or_else(|| format!("has the negative size {d} on axis {i}; export the model again")),
        Dim::Param(_) | Dim::Unknown if i == 0 => Ok(batch),
        Dim::Param(_) if Some(d) == dims.first() => Ok(batch),
        _ => Err(format!("has an open size ({d}) on axis {i}; give the input's shape, or export the model with fixed sizes")),
    };
    dims.iter().enumerate().map(of).collect()
}

fn overridden(shape: &[usize], dims: Option<&[Dim]>) -> Result<Vec<usize>, String> {
    if let Some(dims) = dims {
        let fits = |(d, &s): (&Dim, &usize)| !matches!(d, Dim::Value(_)) || d.value() == Some(s);
        if dims.len() != shape.len() || !dims.iter().zip(shape).all(fits) {
            let text = dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(format!("has shape [{text}], so the shape {shape:?} does not fit it"));
        }
    }
    Ok(shape.to_vec())
}
