//! Where the channels of an activation are.

use super::Shapes;
use crate::ir::{Graph, Value};

impl Shapes {
    /// The axis of a value's channels, counted from the end: 1, the last, but for what a convolution makes, whose channels are the second
    /// axis until a Transpose moves them. `shapes` are those of `graph` as it is.
    pub fn channels_from_end(&self, graph: &Graph, value: Value) -> usize {
        const LAST: usize = 1;
        if graph.is_op(value.node, "Conv") {
            return self.rank(value).map_or(LAST, |rank| rank.saturating_sub(1).max(LAST));
        }
        let moves = ["Reshape", "Flatten", "Transpose", "Slice"].iter().any(|op| graph.is_op(value.node, op));
        let Some(input) = graph.input(value.node, 0).filter(|_| moves) else { return LAST };
        let from_end = self.channels_from_end(graph, input);
        if from_end == LAST || graph.is_op(value.node, "Slice") {
            return from_end;
        }
        let (Some(before), Some(after)) = (self.shape(input), self.shape(value)) else { return LAST };
        let axis = before.len() - from_end.min(before.len());
        let moved = if graph.is_op(value.node, "Transpose") {
            graph.op(value.node).and_then(|op| op.attrs.ints("perm")).and_then(|perm| perm.iter().position(|&a| a == axis as i64))
        } else {
            // What is before the channels is kept, and they are.
            (before.get(..=axis) == after.get(..=axis)).then_some(axis)
        };
        moved.and_then(|axis| after.len().checked_sub(axis)).unwrap_or(LAST)
    }
}
