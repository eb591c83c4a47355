//! Symbolic shape inference: element type, shape, and the contents of small integer tensors, for every value of a graph.
//!
//! Sizes are expressions ([`DimExpr`]), so that `Shape → Gather → Unsqueeze → Concat → Reshape` with a symbolic batch is
//! understood. What the file's `value_info` says fills gaps; where it contradicts what follows from the operators, it is
//! reported and not believed.

mod channels;
mod contents;
mod conv;
mod ctx;
mod dtype;
mod elementwise;
mod expr;
mod fact;
mod index;
mod layout;
mod linear;
mod reduce;
mod slice;
mod source;
mod table;
#[cfg(test)]
mod tests;

pub use expr::DimExpr;
pub use fact::{Contents, Fact, Shape};

use ctx::{Ctx, Stop};

use super::{Dim, Graph, NodeId, NodeKind, TensorType, Value};

/// Something of the model that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The node, for people.
    pub node: String,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.node, self.what)
    }
}

/// What is known of the values of a graph at the time of [`infer`]. Like node ids it does not outlive a pass.
#[derive(Debug, Clone, Default)]
pub struct Shapes {
    /// By node index, then output port.
    facts: Vec<Vec<Fact>>,
    problems: Vec<Problem>,
}

impl Shapes {
    /// What is known of a value; `None` for a value that did not exist.
    pub fn get(&self, value: Value) -> Option<&Fact> {
        self.facts.get(value.node.index())?.get(value.port as usize)
    }

    /// The shape of a value of known rank.
    pub fn shape(&self, value: Value) -> Option<&[DimExpr]> {
        self.get(value)?.shape.as_deref()
    }

    /// The sizes of a value whose shape is all numbers.
    pub fn sizes(&self, value: Value) -> Option<Vec<usize>> {
        self.get(value)?.sizes()
    }

    /// The rank of a value.
    pub fn rank(&self, value: Value) -> Option<usize> {
        self.shape(value).map(<[DimExpr]>::len)
    }

    /// The element type of a value.
    pub fn dtype(&self, value: Value) -> Option<super::DType> {
        self.get(value)?.dtype
    }

    /// The elements of a small integer or bool tensor.
    pub fn contents(&self, value: Value) -> Option<&Contents> {
        self.get(value)?.contents.as_ref()
    }

    /// What cannot be right, in topological order.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn set(&mut self, id: NodeId, facts: Vec<Fact>) {
        if let Some(slot) = self.facts.get_mut(id.index()) {
            *slot = facts;
        }
    }
}

/// Infers a graph whose default domain has the given operator set version. Takes time linear in the graph; never fails:
/// what cannot be inferred is unknown, what cannot be right is among [`Shapes::problems`].
pub fn infer(graph: &Graph, opset: i64) -> Shapes {
    let order = graph.topo();
    let slots = order.iter().map(|id| id.index() + 1).max().unwrap_or(0);
    let mut shapes = Shapes { facts: vec![Vec::new(); slots], problems: Vec::new() };
    for id in order {
        let Some(node) = graph.get(id) else { continue };
        let mut facts = match &node.kind {
            NodeKind::Input | NodeKind::SparseInit(_) => vec![Fact::default()],
            // A caller may pass other contents, but of the same shape.
            NodeKind::Init(t) => {
                let fact = Fact::of_tensor(t);
                let fixed = graph.constant(Value { node: id, port: 0 }).is_some();
                vec![if fixed { fact } else { Fact { contents: None, ..fact } }]
            }
            NodeKind::Op(op) => infer_op(&Ctx::new(graph, id, op, opset, &shapes)).unwrap_or_else(|what| {
                shapes.problems.push(Problem { node: graph.describe(id), what });
                vec![Fact::default(); node.outputs.len()]
            }),
        };
        for (port, fact) in facts.iter_mut().enumerate() {
            let value = Value { node: id, port: port as u32 };
            if let Some(declared) = graph.info(value).and_then(|i| i.tensor_type())
                && let Err(what) = reconcile(fact, declared, value)
            {
                let what = format!("value '{}' {what}; the recorded type is not used", graph.value_name(value));
                shapes.problems.push(Problem { node: graph.describe(id), what });
            }
        }
        shapes.set(id, facts);
    }
    shapes
}

/// The facts of an operator's outputs, or what is wrong with the node.
fn infer_op(c: &Ctx) -> Result<Vec<Fact>, String> {
    let mut facts = vec![Fact::default(); c.outputs];
    let Some(entry) = table::lookup(&c.op.op) else { return Ok(facts) };
    for (port, fact) in facts.iter_mut().enumerate() {
        fact.dtype = (entry.dtype)(c, port);
    }
    let shapes = match (entry.shape)(c) {
        Ok(shapes) => shapes,
        Err(Stop::Unknown) => return Ok(facts),
        Err(Stop::Wrong(what)) => return Err(what),
    };
    let contents = entry.contents.and_then(|f| f(c, &shapes)).unwrap_or_default();
    for (fact, shape) in facts.iter_mut().zip(shapes) {
        fact.shape = shape;
    }
    for (fact, contents) in facts.iter_mut().zip(contents) {
        // A miscount would be a defect of ours, and must not reach a rewrite.
        let count = fact.shape.as_deref().and_then(ctx::product).and_then(|p| p.as_size());
        fact.contents = contents.filter(|v| Some(v.len()) == count);
    }
    Ok(facts)
}

/// Fills what is unknown of a value from its recorded type.
fn reconcile(fact: &mut Fact, declared: &TensorType, value: Value) -> Result<(), String> {
    match fact.dtype {
        Some(found) if found != declared.dtype => {
            return Err(format!("is recorded as {} and computed as {found}", declared.dtype));
        }
        _ => {}
    }
    let Some(dims) = &declared.shape else {
        fact.dtype = Some(declared.dtype);
        return Ok(());
    };
    let place = |axis: usize| DimExpr::anonymous(value.node.index() as u32, value.port, axis as u32);
    let shape = match &fact.shape {
        None => dims.iter().enumerate().map(|(i, d)| from_dim(d).unwrap_or_else(|| place(i))).collect(),
        Some(shape) if shape.len() != dims.len() => {
            return Err(format!("is recorded with rank {} and computed with rank {}", dims.len(), shape.len()));
        }
        Some(shape) => {
            let mut merged = Vec::with_capacity(shape.len());
            for (axis, (found, d)) in shape.iter().zip(dims).enumerate() {
                merged.push(match (from_dim(d), found.as_const()) {
                    (Some(e), Some(n)) if e.as_const().is_some_and(|v| v != n) => {
                        return Err(format!("is recorded with size {e} on axis {axis} and computed with {n}"));
                    }
                    // Only a size that nothing else shares: a record may be older than a change of the graph's inputs.
                    (Some(e), None) if *found == place(axis) => e,
                    _ => found.clone(),
                });
            }
            merged
        }
    };
    fact.dtype = Some(declared.dtype);
    fact.shape = Some(shape);
    Ok(())
}

/// A recorded size; negative ones, which some exporters write for "any", say nothing.
fn from_dim(d: &Dim) -> Option<DimExpr> {
    match d {
        Dim::Value(v) if *v >= 0 => Some((*v).into()),
        Dim::Param(name) if !name.is_empty() => Some(DimExpr::symbol(name)),
        _ => None,
    }
}
