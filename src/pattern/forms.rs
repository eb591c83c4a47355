//! How the exporter spelt what rules have rewritten.

use std::collections::{BTreeMap, BTreeSet};

use super::{Match, Rule};
use crate::ir::{Graph, NodeId, Value};

/// The labels ([`Pat::form`](super::Pat::form)) of the exporter's operators that went into each value that rules made, by the
/// value's name. A value that no rule made is as exported and not here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forms {
    by_value: BTreeMap<String, Vec<&'static str>>,
}

impl Forms {
    /// The labels of a value, consumers first; `None` when it is as exported.
    pub fn of(&self, value: &str) -> Option<&[&'static str]> {
        self.by_value.get(value).map(Vec::as_slice)
    }

    /// By node, to be followed through a pass, in which names change.
    pub(super) fn track(&self, graph: &Graph) -> Tracked {
        let node = |(name, labels): (&String, &Vec<&'static str>)| Some((graph.value(name)?.node, labels.clone()));
        Tracked(self.by_value.iter().filter_map(node).collect())
    }
}

/// The labels of the nodes that rules made.
#[derive(Debug)]
pub(super) struct Tracked(BTreeMap<NodeId, Vec<&'static str>>);

impl Tracked {
    /// Records a rewrite: the operators that it added bear the labels of what they replace. An operator that an earlier rewrite
    /// made hands on its own labels; one of the exporter's bears the pattern's.
    pub(super) fn record(&mut self, graph: &Graph, rule: &Rule, m: &Match, added: &[NodeId], new: Value) {
        let kept = self.kept(graph, m, added, new);
        let mut labels: Vec<&'static str> = Vec::new();
        for &id in m.operators().iter().filter(|id| !kept.contains(id)).chain([&new.node]) {
            let own = m.forms().iter().filter(|(n, _)| *n == id).map(|(_, label)| *label);
            let more: Vec<_> = self.0.get(&id).map_or_else(|| own.collect(), Clone::clone);
            for label in more {
                if !labels.contains(&label) {
                    labels.push(label);
                }
            }
        }
        if labels.is_empty() {
            labels.push(rule.name);
        }
        for &id in added.iter().chain([&new.node]) {
            self.0.insert(id, labels.clone());
        }
    }

    /// The matched operators that the result still reads.
    fn kept(&self, graph: &Graph, m: &Match, added: &[NodeId], new: Value) -> BTreeSet<NodeId> {
        let ours = |id: &NodeId| added.contains(id) || m.operators().contains(id);
        let (mut kept, mut stack) = (BTreeSet::new(), vec![new.node]);
        while let Some(id) = stack.pop() {
            if kept.insert(id) {
                stack.extend(graph.inputs_of(id).into_iter().flatten().map(|v| v.node).filter(|n| ours(n)));
            }
        }
        kept
    }

    /// By name again, without what is gone.
    pub(super) fn names(self, graph: &Graph) -> Forms {
        let mut by_value = BTreeMap::new();
        for (id, labels) in self.0 {
            for name in graph.get(id).iter().flat_map(|n| &n.outputs).filter(|n| !n.is_empty()) {
                by_value.insert(name.clone(), labels.clone());
            }
        }
        Forms { by_value }
    }
}
