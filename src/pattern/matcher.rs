//! Matching a pattern against the computation of a value.

use super::Pat;
use super::dsl::PatNode;
use crate::ir::{Graph, NodeId, NodeKind, OpName, Value};

/// What the names of a pattern stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    root: Value,
    bound: Vec<(&'static str, Value)>,
    /// What the steps of chains made, by the chain's name, consumers first.
    listed: Vec<(&'static str, Value)>,
    /// The operators that matched, consumers first.
    path: Vec<NodeId>,
    forms: Vec<(NodeId, &'static str)>,
}

impl Match {
    /// The value that the pattern was matched against.
    pub fn root(&self) -> Value {
        self.root
    }

    /// The value of a name, if the alternative that matched binds it.
    pub fn get(&self, name: &str) -> Option<Value> {
        self.bound.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// The value of a name that every alternative of the pattern binds. The root stands in for a name that none does.
    pub fn value(&self, name: &str) -> Value {
        debug_assert!(self.get(name).is_some(), "the pattern binds no '{name}'");
        self.get(name).unwrap_or(self.root)
    }

    /// The values that the steps of a chain made, producers first; each once.
    pub fn list(&self, name: &str) -> Vec<Value> {
        let mut values: Vec<Value> = Vec::new();
        for &(_, v) in self.listed.iter().rev().filter(|(n, _)| *n == name) {
            if !values.contains(&v) {
                values.push(v);
            }
        }
        values
    }

    /// The operators that matched, consumers first.
    pub fn operators(&self) -> &[NodeId] {
        &self.path
    }

    /// The labels of the arms that matched, each with the operator that bears it, consumers first.
    pub fn forms(&self) -> &[(NodeId, &'static str)] {
        &self.forms
    }
}

/// Where a graph left a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// How many parts of the pattern, operators and leaves, had matched before.
    pub depth: usize,
    /// What was expected and what was found, with the node's name.
    pub what: String,
    /// The operators that had matched, root first.
    pub path: Vec<NodeId>,
}

/// Matches a pattern against the computation of a value.
///
/// # Errors
/// The deepest miss over all alternatives; the first of equals.
pub fn match_value<'g>(graph: &'g Graph, pattern: &'g Pat, value: Value) -> Result<Match, Miss> {
    match_given(graph, pattern, value, &[])
}

/// As [`match_value`], with some names of the pattern bound beforehand.
///
/// # Errors
/// As [`match_value`].
pub fn match_given<'g>(graph: &'g Graph, pattern: &'g Pat, value: Value, given: &[(&'static str, Value)]) -> Result<Match, Miss> {
    let mut state = State {
        graph,
        bound: given.to_vec(),
        listed: Vec::new(),
        chains: Vec::new(),
        in_step: false,
        path: Vec::new(),
        forms: Vec::new(),
        reader: None,
        matched: 0,
        nested: 0,
        visits: 0,
        deepest: None,
    };
    let mut found = None;
    state.value(pattern, value, &mut |s| {
        let (bound, listed) = (s.bound.clone(), s.listed.clone());
        found = Some(Match { root: value, bound, listed, path: s.path.clone(), forms: s.forms.clone() });
        true
    });
    found.ok_or_else(|| state.deepest.unwrap_or(Miss { depth: 0, what: String::new(), path: Vec::new() }))
}

struct State<'g> {
    graph: &'g Graph,
    bound: Vec<(&'static str, Value)>,
    listed: Vec<(&'static str, Value)>,
    /// The chains whose steps are being matched, the innermost last, and how much had matched before their first step.
    chains: Vec<(&'g Pat, usize)>,
    /// Whether what is matched is a step of a chain, which is no more than one of several things that might be there.
    in_step: bool,
    /// The operators that have matched so far.
    path: Vec<NodeId>,
    /// Labels of those that have one.
    forms: Vec<(NodeId, &'static str)>,
    /// The operator whose input is looked at. The last of `path` may be deep inside an earlier input.
    reader: Option<NodeId>,
    /// How many parts of the pattern have matched so far.
    matched: usize,
    /// How many parts are being matched, one inside the other.
    nested: usize,
    /// How many parts were looked at, in vain or not.
    visits: usize,
    deepest: Option<Miss>,
}

/// A block has some hundred parts; a graph that nests deeper, or offers more ways through, resembles none.
const MAX_NESTED: usize = 4_000;
const MAX_VISITS: usize = 20_000;
/// Below this much stack more is allocated.
const STACK_LEFT: usize = 256 << 10;
const STACK_MORE: usize = 4 << 20;

type Then<'a, 'g> = &'a mut dyn FnMut(&mut State<'g>) -> bool;

impl<'g> State<'g> {
    fn miss(&mut self, what: impl FnOnce(&Graph) -> String) -> bool {
        if !self.in_step && self.deepest.as_ref().is_none_or(|m| m.depth < self.matched) {
            self.deepest = Some(Miss { depth: self.matched, what: what(self.graph), path: self.path.clone() });
        }
        false
    }

    /// The reader on whose behalf the current value is looked at, for messages.
    fn at(&self) -> String {
        self.reader.map_or_else(String::new, |id| format!(", at {}", self.graph.describe(id)))
    }

    fn bind(&mut self, name: Option<&'static str>, value: Value, then: Then<'_, 'g>) -> bool {
        let seen = name.and_then(|name| self.bound.iter().find(|(n, _)| *n == name).copied());
        if let Some((name, seen)) = seen.filter(|(_, seen)| *seen != value) {
            let at = self.at();
            return self.miss(|g| {
                let (want, found) = (g.value_name(seen).to_owned(), g.value_name(value).to_owned());
                format!("'{want}' expected again as {name}, found '{found}'{at}")
            });
        }
        let fresh = name.filter(|_| seen.is_none());
        self.bound.extend(fresh.map(|name| (name, value)));
        self.matched += 1;
        let ok = then(self);
        if !ok {
            self.matched -= 1;
            if fresh.is_some() {
                self.bound.pop();
            }
        }
        ok
    }

    fn value(&mut self, pattern: &'g Pat, value: Value, then: Then<'_, 'g>) -> bool {
        if self.nested >= MAX_NESTED || self.visits >= MAX_VISITS {
            return self.miss(|g| format!("nothing so large expected, gave up at {}", g.describe(value.node)));
        }
        self.nested += 1;
        self.visits += 1;
        // What follows a match is called from inside it, so that the stack grows with the part of the graph that matches.
        let ok = stacker::maybe_grow(STACK_LEFT, STACK_MORE, || self.look(pattern, value, then));
        self.nested -= 1;
        ok
    }

    fn look(&mut self, pattern: &'g Pat, value: Value, then: Then<'_, 'g>) -> bool {
        match &pattern.node {
            PatNode::Var => self.bind(pattern.name, value, then),
            PatNode::Const(check, what) => {
                let at = self.at();
                let Some(tensor) = self.graph.constant(value) else {
                    return self.miss(|g| format!("{what} expected, found {}{at}", g.describe(value.node)));
                };
                match check(tensor) {
                    Ok(()) => self.bind(pattern.name, value, then),
                    Err(e) => self.miss(|_| format!("{e}{at}")),
                }
            }
            PatNode::Near(want) => {
                let at = self.at();
                match self.graph.constant(value).and_then(|t| t.scalar_f32()) {
                    Some(found) if (found - want).abs() <= want.abs() * 1e-3 => self.bind(pattern.name, value, then),
                    Some(found) => self.miss(|_| format!("constant {want} expected, found {found}{at}")),
                    None => self.miss(|g| format!("constant {want} expected, found {}{at}", g.describe(value.node))),
                }
            }
            PatNode::Any(alternatives) => {
                let reader = self.reader;
                alternatives.iter().any(|p| {
                    self.reader = reader;
                    self.alternative(p, pattern.name, value, then)
                })
            }
            PatNode::Chain { steps, inner } => self.chain(pattern, (steps, inner), value, then),
            PatNode::Hole => {
                let Some(chain) = self.chains.pop() else { return false };
                let (reader, in_step, matched) = (self.reader, self.in_step, self.matched);
                // Steps count for nothing: what the chain should end in is missed where it begins.
                (self.in_step, self.matched) = (false, chain.1);
                let ok = self.value(chain.0, value, &mut |s| {
                    s.chains.push(chain);
                    s.reader = reader;
                    let inside = std::mem::replace(&mut s.in_step, in_step);
                    let ok = then(s);
                    if !ok {
                        s.in_step = inside;
                        s.chains.pop();
                    }
                    ok
                });
                if !ok {
                    (self.in_step, self.matched) = (in_step, matched);
                    self.chains.push(chain);
                }
                ok
            }
            PatNode::Op { id: (domain, op_type), inputs, commute, port, check, form } => {
                let graph = self.graph;
                let op = match graph.get(value.node).map(|n| &n.kind) {
                    Some(NodeKind::Op(op)) if op.op.is_in(domain, op_type) => op,
                    _ => {
                        let at = self.at();
                        let want = OpName::new(domain, op_type);
                        return self.miss(|g| format!("{want} expected, found {}{at}", g.describe(value.node)));
                    }
                };
                self.path.push(value.node);
                self.forms.extend(form.map(|label| (value.node, label)));
                let ok = self.op(op, value, (inputs, *commute, *port, *check), pattern.name, then);
                if !ok {
                    self.path.pop();
                    form.and_then(|_| self.forms.pop());
                }
                ok
            }
        }
    }

    /// What ends the chain is tried first, so that the shortest chain wins.
    fn chain(&mut self, chain: &'g Pat, (steps, inner): (&'g [Pat], &'g Pat), value: Value, then: Then<'_, 'g>) -> bool {
        let (reader, matched) = (self.reader, self.matched);
        if self.value(inner, value, then) {
            return true;
        }
        steps.iter().any(|step| {
            self.reader = reader;
            let in_step = std::mem::replace(&mut self.in_step, true);
            self.chains.push((chain, matched));
            self.listed.extend(chain.name.map(|name| (name, value)));
            let depth = self.listed.len();
            let ok = self.value(step, value, &mut |s| {
                let outer = s.chains.pop();
                s.reader = reader;
                let inside = std::mem::replace(&mut s.in_step, in_step);
                let ok = then(s);
                if !ok {
                    s.in_step = inside;
                    s.chains.extend(outer);
                }
                ok
            });
            if !ok {
                self.in_step = in_step;
                self.chains.pop();
                self.listed.truncate(depth);
                if chain.name.is_some() {
                    self.listed.pop();
                }
            }
            ok
        })
    }

    fn alternative(&mut self, p: &'g Pat, name: Option<&'static str>, value: Value, then: Then<'_, 'g>) -> bool {
        let reader = self.reader;
        self.value(p, value, &mut |s| {
            s.reader = reader;
            s.bind(name, value, then)
        })
    }

    fn op(
        &mut self,
        op: &crate::ir::Op,
        value: Value,
        (inputs, commute, port, check): (&'g [Pat], bool, Option<u32>, Option<super::dsl::AttrCheck>),
        name: Option<&'static str>,
        then: Then<'_, 'g>,
    ) -> bool {
        // The other outputs of an operator are another thing than its value; those of a Split are equals.
        let port = port.or_else(|| (!op.op.is("Split")).then_some(0));
        if let Some(port) = port.filter(|&p| p != value.port) {
            return self.miss(|g| format!("output {port} of {} expected, found output {}", g.describe(value.node), value.port));
        }
        if let Some(Err(e)) = check.map(|c| c(op)) {
            let reader = self.reader.map_or_else(String::new, |id| format!(", read by {}", self.graph.describe(id)));
            return self.miss(|g| format!("{e}, at {}{reader}", g.describe(value.node)));
        }
        let found = self.graph.inputs_of(value.node);
        // What else is joined would be taken for what the pattern knows.
        if op.op.is("Concat") && found.len() != inputs.len() {
            return self.miss(|g| {
                format!("{} values joined expected, found {}, at {}", inputs.len(), found.len(), g.describe(value.node))
            });
        }
        let orders: &[[usize; 2]] = if commute { &[[0, 1], [1, 0]] } else { &[[0, 1]] };
        let depth = self.path.len();
        for order in orders {
            let pairs: Option<Vec<(&'g Pat, Value)>> = inputs
                .iter()
                .enumerate()
                .map(|(i, p)| {
                    let from = if i < 2 { order[i] } else { i };
                    found.get(from).copied().flatten().map(|v| (p, v))
                })
                .collect();
            let Some(mut pairs) = pairs else {
                return self
                    .miss(|g| format!("{} inputs expected, found {}, at {}", inputs.len(), found.len(), g.describe(value.node)));
            };
            // In a step, constants are a look away; what computes the other inputs may be a long walk.
            pairs.sort_by_key(|(p, _)| self.in_step && !matches!(p.node, PatNode::Const(..) | PatNode::Near(_)));
            if self.bind(name, value, &mut |s| s.inputs(value.node, &pairs, then)) {
                return true;
            }
            self.path.truncate(depth);
        }
        false
    }

    fn inputs(&mut self, reader: NodeId, pairs: &[(&'g Pat, Value)], then: Then<'_, 'g>) -> bool {
        match pairs.split_first() {
            None => then(self),
            Some(((p, v), rest)) => {
                self.reader = Some(reader);
                self.value(p, *v, &mut |s| s.inputs(reader, rest, then))
            }
        }
    }
}
