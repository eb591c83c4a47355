//! Which operator set a graph needs.

use super::{CANONICAL_OPSET, Graph};

/// Operators that are younger than the canonical operator set, and the set they came with.
const YOUNGER: [(&str, i64); 8] = [
    // Of another meaning than its namesake of opset 18, which no exporter wrote.
    ("GroupNormalization", 21),
    ("Attention", 23),
    ("RMSNormalization", 23),
    ("RotaryEmbedding", 23),
    ("Swish", 24),
    ("TensorScatter", 24),
    ("BitCast", 26),
    ("CumProd", 26),
];

/// The operator set that the graph needs: the canonical one, unless a younger operator was left as it is.
pub fn opset_needed(graph: &Graph) -> i64 {
    let since = |id| YOUNGER.iter().find(|(name, _)| graph.is_op(id, name)).map(|(_, since)| *since);
    graph.ops().into_iter().filter_map(since).max().unwrap_or(CANONICAL_OPSET)
}
