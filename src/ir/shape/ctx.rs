//! What a shape function sees of its node.

use super::fact::Contents;
use super::{DimExpr, Fact, Shape, Shapes};
use crate::ir::{DType, Graph, NodeId, Op, Tensor, Value};

/// Why a shape function gives no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// Something it needs is not known.
    Unknown,
    /// The node is malformed: what is wrong.
    Wrong(String),
}

/// An answer of a shape function.
pub(super) type Known<T> = Result<T, Stop>;

/// Turns a missing piece of knowledge into [`Stop::Unknown`].
pub(super) fn known<T>(value: Option<T>) -> Known<T> {
    value.ok_or(Stop::Unknown)
}

/// A malformed node.
pub(super) fn wrong<T>(what: impl Into<String>) -> Known<T> {
    Err(Stop::Wrong(what.into()))
}

/// A node with the facts of its inputs.
pub(super) struct Ctx<'a> {
    pub(super) graph: &'a Graph,
    pub(super) id: NodeId,
    pub(super) op: &'a Op,
    pub(super) opset: i64,
    pub(super) outputs: usize,
    inputs: Vec<Option<Value>>,
    shapes: &'a Shapes,
}

impl<'a> Ctx<'a> {
    pub(super) fn new(graph: &'a Graph, id: NodeId, op: &'a Op, opset: i64, shapes: &'a Shapes) -> Self {
        let outputs = graph.get(id).map_or(0, |n| n.outputs.len());
        Ctx { graph, id, op, opset, outputs, inputs: graph.inputs_of(id), shapes }
    }

    pub(super) fn arity(&self) -> usize {
        self.inputs.len()
    }

    pub(super) fn has(&self, i: usize) -> bool {
        self.inputs.get(i).copied().flatten().is_some()
    }

    pub(super) fn fact(&self, i: usize) -> Option<&'a Fact> {
        self.shapes.get(self.inputs.get(i).copied().flatten()?)
    }

    pub(super) fn shape(&self, i: usize) -> Known<&'a [DimExpr]> {
        known(self.fact(i).and_then(|f| f.shape.as_deref()))
    }

    pub(super) fn dtype(&self, i: usize) -> Option<DType> {
        self.fact(i)?.dtype
    }

    pub(super) fn contents(&self, i: usize) -> Known<&'a Contents> {
        known(self.fact(i).and_then(|f| f.contents.as_ref()))
    }

    /// The contents of an integer input, all of them numbers.
    pub(super) fn const_ints(&self, i: usize) -> Known<Vec<i64>> {
        known(self.fact(i).and_then(Fact::const_contents))
    }

    /// The constant tensor of an input.
    pub(super) fn tensor(&self, i: usize) -> Option<&'a Tensor> {
        self.graph.constant(self.inputs.get(i).copied().flatten()?)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.op.attrs.int(name).unwrap_or(default)
    }

    /// A list that older operator sets keep in an attribute and newer ones in an input; `None` when it is absent.
    pub(super) fn list(&self, attr: &str, input: usize) -> Known<Option<Vec<i64>>> {
        if let Some(v) = self.op.attrs.ints(attr) {
            return Ok(Some(v.to_vec()));
        }
        if self.has(input) { self.const_ints(input).map(Some) } else { Ok(None) }
    }

    /// A size of an output of which nothing is known.
    pub(super) fn anon(&self, port: usize, axis: usize) -> DimExpr {
        DimExpr::anonymous(self.id.index() as u32, port as u32, axis as u32)
    }

    /// The size, or an anonymous one at that place.
    pub(super) fn or_anon(&self, e: Option<DimExpr>, port: usize, axis: usize) -> DimExpr {
        e.unwrap_or_else(|| self.anon(port, axis))
    }
}

/// An axis that may count from the end, as an index.
pub(super) fn axis(axis: i64, rank: usize) -> Known<usize> {
    let index = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    match index.and_then(|i| usize::try_from(i).ok()) {
        Some(i) if i < rank => Ok(i),
        _ => wrong(format!("axis {axis} is outside of rank {rank}")),
    }
}

/// Axes that may count from the end, as sorted indices without repetition.
pub(super) fn axes(list: &[i64], rank: usize) -> Known<Vec<usize>> {
    let mut v = list.iter().map(|&a| axis(a, rank)).collect::<Known<Vec<_>>>()?;
    v.sort_unstable();
    v.dedup();
    Ok(v)
}

/// The product of sizes.
pub(super) fn product<'e>(dims: impl IntoIterator<Item = &'e DimExpr>) -> Option<DimExpr> {
    dims.into_iter().try_fold(DimExpr::from(1), |n, d| n.mul(d))
}

/// The only shape of a node with one output.
pub(super) fn one(shape: Shape) -> Known<Vec<Option<Shape>>> {
    Ok(vec![Some(shape)])
}

/// The better known of two sizes that must be equal: a number, else a named size, else an anonymous one.
pub(super) fn unify(a: &DimExpr, b: &DimExpr) -> DimExpr {
    let grade = |e: &DimExpr| if e.as_const().is_some() { 0 } else { 1 + u8::from(e.is_anonymous()) };
    if grade(b) < grade(a) { b.clone() } else { a.clone() }
}
