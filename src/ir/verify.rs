//! The graph's own invariants, checked after every committed edit and every import.

use std::collections::BTreeSet;

use petgraph::Direction;
use petgraph::visit::EdgeRef;

use super::{Graph, NodeKind, Value};

/// A broken invariant of a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Some nodes depend on themselves.
    #[error(
        "the graph has a cycle through {node}: its inputs depend on its own output, so it cannot be computed; export the model again"
    )]
    Cycle {
        /// A node on the cycle.
        node: String,
    },
    /// Two values have one name.
    #[error("two values are named '{name}' (the second is produced by {node}): value names must be unique within a graph")]
    DuplicateName {
        /// The name.
        name: String,
        /// The second producer.
        node: String,
    },
    /// A value that is read has no name.
    #[error("output {port} of {node} is read but has no name")]
    Unnamed {
        /// The producer.
        node: String,
        /// Its port.
        port: u32,
    },
    /// An edge leaves or enters a port that is not there, or two edges enter one port.
    #[error("{node}: {what}")]
    Port {
        /// The node.
        node: String,
        /// What is wrong.
        what: String,
    },
}

impl Graph {
    /// Checks every invariant of the container.
    ///
    /// # Errors
    /// The first broken invariant, in topological order of the nodes.
    pub fn verify(&self) -> Result<(), VerifyError> {
        let mut names = BTreeSet::new();
        for id in self.node_ids() {
            let node = &self.net[id];
            for name in node.outputs.iter().filter(|n| !n.is_empty()) {
                if !names.insert(name.as_str()) {
                    return Err(VerifyError::DuplicateName { name: name.clone(), node: self.describe(id) });
                }
            }
            let mut ports = BTreeSet::new();
            for e in self.net.edges_directed(id, Direction::Incoming) {
                let port = |what| Err(VerifyError::Port { node: self.describe(id), what });
                if !matches!(node.kind, NodeKind::Op(_)) {
                    return port("is not an operator and has an input".to_owned());
                }
                if !ports.insert(e.weight().dst) {
                    return port(format!("two values enter input port {}", e.weight().dst));
                }
                let from = Value { node: e.source(), port: e.weight().src };
                if self.net[from.node].outputs.len() <= from.port as usize {
                    return port(format!(
                        "input {} reads output {} of {}, which has fewer",
                        e.weight().dst,
                        from.port,
                        self.describe(from.node)
                    ));
                }
                if self.value_name(from).is_empty() {
                    return Err(VerifyError::Unnamed { node: self.describe(from.node), port: from.port });
                }
            }
        }
        for &value in &self.outputs {
            if self.value_name(value).is_empty() {
                return Err(VerifyError::Unnamed { node: self.describe(value.node), port: value.port });
            }
        }
        let order = self.topo();
        if order.len() < self.net.node_count() {
            let done: BTreeSet<_> = order.into_iter().collect();
            let stuck = self.node_ids().into_iter().find(|id| !done.contains(id));
            return Err(VerifyError::Cycle { node: stuck.map_or_else(String::new, |id| self.describe(id)) });
        }
        Ok(())
    }
}
