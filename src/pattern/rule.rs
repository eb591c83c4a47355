//! Rewrite rules and the driver that applies them to a fixpoint.

use std::collections::BTreeMap;

use super::{Forms, Match, Miss, Pat, match_value};
use crate::ir::shape::{self, Shapes};
use crate::ir::{Edit, Graph, NodeId, Value, VerifyError};

/// What a rule's check may look at.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Shapes of the values that were there when the pass began.
    pub shapes: &'a Shapes,
}

impl Facts<'_> {
    /// The rank of a value, where it is known.
    pub fn rank(&self, value: Option<Value>) -> Option<usize> {
        self.shapes.rank(value?)
    }

    /// Checks that the root has the shape of a bound value, as far as both are known: a constant of one element and many
    /// dimensions would add dimensions that the rewrite loses.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn same_shape(&self, m: &Match, name: &str) -> Result<(), String> {
        let (root, part) = (self.shapes.shape(m.root()), self.shapes.shape(m.value(name)));
        match (root, part) {
            (Some(a), Some(b)) if a.len() != b.len() => {
                Err(format!("a value of rank {} expected, as {name} has, found rank {}", b.len(), a.len()))
            }
            _ => Ok(()),
        }
    }

    /// The size of a value's last dimension, where it is known.
    pub fn last_dim(&self, value: Value) -> Option<usize> {
        self.shapes.shape(value)?.last()?.as_const().and_then(|d| usize::try_from(d).ok())
    }
}

type Build = Box<dyn FnOnce(&mut Edit<'_>) -> Value>;
type Apply = Box<dyn Fn(Facts<'_>, &Match) -> Result<Build, String>>;

/// A rewrite: what to look for, what else must hold, what to put in its place.
pub struct Rule {
    /// The rule's name, shown by `inspect` and in the log of applied rules.
    pub name: &'static str,
    /// An operator type that makes a value worth mentioning when the pattern all but matches around it.
    tell: &'static str,
    pattern: Pat,
    roots: Option<Vec<&'static str>>,
    apply: Apply,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rule").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A place where a rule all but matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// The rule.
    pub rule: &'static str,
    /// The node that gave the place away, described.
    pub tell: String,
    /// What was expected and found.
    pub what: String,
}

impl std::fmt::Display for NearMiss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

impl Rule {
    /// A rule. `check` looks at the match and returns what `build` needs, or says why the match does not count; `build`
    /// adds operators and returns the value that takes the root's place.
    pub fn new<T: 'static>(
        name: &'static str,
        tell: &'static str,
        pattern: Pat,
        check: fn(Facts<'_>, &Match) -> Result<T, String>,
        build: fn(&mut Edit<'_>, &Match, T) -> Value,
    ) -> Rule {
        let roots = pattern.roots();
        let apply: Apply = Box::new(move |facts, m| {
            let checked = check(facts, m)?;
            let m = m.clone();
            Ok(Box::new(move |edit: &mut Edit<'_>| build(edit, &m, checked)))
        });
        Rule { name, tell, pattern, roots, apply }
    }

    fn could_root(&self, op_type: &str) -> bool {
        self.roots.as_ref().is_none_or(|r| r.contains(&op_type))
    }
}

/// Applies rules until none matches; returns how often each applied, and the near misses that remain, one for each node
/// that a rule's tell names. `forms` learns how the exporter spelt what was rewritten.
///
/// # Errors
/// When a rewrite breaks an invariant of the graph, which is a defect of the rule.
pub fn run(
    graph: &mut Graph,
    opset: i64,
    rules: &[Rule],
    forms: &mut Forms,
) -> Result<(BTreeMap<&'static str, usize>, Vec<NearMiss>), VerifyError> {
    /// No chain of our rules is longer; a cycle of rules ends here.
    const MAX_ROUNDS: usize = 32;
    let mut applied = BTreeMap::new();
    for _ in 0..MAX_ROUNDS {
        if round(graph, opset, rules, &mut applied, forms)? == 0 {
            break;
        }
    }
    let misses = near_misses(graph, opset, rules);
    Ok((applied, misses))
}

/// One pass over the graph in topological order; the number of rewrites.
fn round(
    graph: &mut Graph,
    opset: i64,
    rules: &[Rule],
    applied: &mut BTreeMap<&'static str, usize>,
    forms: &mut Forms,
) -> Result<usize, VerifyError> {
    let mut count = 0;
    let order = graph.ops();
    let shapes = shape::infer(graph, opset);
    let mut tracked = forms.track(graph);
    let mut edit = Edit::new(graph);
    for id in order {
        let outputs = edit.get(id).map_or(0, |n| n.outputs.len()) as u32;
        for port in 0..outputs {
            let root = Value { node: id, port };
            // An earlier rewrite of this pass has left the value without a reader.
            if edit.use_count(root) == 0 {
                continue;
            }
            for rule in rules {
                if !edit.op(id).is_some_and(|o| o.op.canonical_domain().is_empty() && rule.could_root(&o.op.op_type)) {
                    continue;
                }
                let Ok(m) = match_value(&edit, &rule.pattern, root) else { continue };
                let Ok(build) = (rule.apply)(Facts { graph: &edit, shapes: &shapes }, &m) else { continue };
                let before = edit.added().len();
                let new = build(&mut edit);
                edit.replace(root, new);
                tracked.record(&edit, rule, &m, edit.added().get(before..).unwrap_or_default(), new);
                *applied.entry(rule.name).or_default() += 1;
                count += 1;
                break;
            }
        }
    }
    edit.commit()?;
    *forms = tracked.names(graph);
    Ok(count)
}

/// A `tell` close behind the last of several operators that matched: the miss came before the pattern reached it.
fn just_behind(graph: &Graph, miss: &Miss, tell: &str) -> Option<NodeId> {
    /// Fewer operators in a row are in many computations.
    const MATCHED: usize = 3;
    const STEPS: usize = 3;
    let mut level: Vec<NodeId> = miss.path.last().filter(|_| miss.path.len() >= MATCHED).into_iter().copied().collect();
    for _ in 0..STEPS {
        level = level.iter().flat_map(|&id| graph.inputs_of(id)).flatten().map(|v| v.node).collect();
        if let Some(&found) = level.iter().find(|&&id| graph.is_op(id, tell)) {
            return Some(found);
        }
    }
    None
}

fn near_misses(graph: &Graph, opset: i64, rules: &[Rule]) -> Vec<NearMiss> {
    let shapes = shape::infer(graph, opset);
    let mut out = Vec::new();
    for rule in rules.iter().filter(|r| !r.tell.is_empty()) {
        let mut best: BTreeMap<usize, Miss> = BTreeMap::new();
        for id in graph.ops() {
            if !graph.op(id).is_some_and(|o| rule.could_root(&o.op.op_type)) {
                continue;
            }
            let root = Value { node: id, port: 0 };
            let miss = match match_value(graph, &rule.pattern, root) {
                Err(miss) => miss,
                Ok(m) => match (rule.apply)(Facts { graph, shapes: &shapes }, &m) {
                    Err(what) => Miss { depth: usize::MAX, what: format!("{what}, at {}", graph.describe(id)), path: vec![id] },
                    Ok(_) => continue,
                },
            };
            let tell =
                miss.path.iter().find(|&&n| graph.is_op(n, rule.tell)).copied().or_else(|| just_behind(graph, &miss, rule.tell));
            let tell = tell.or_else(|| (miss.depth == usize::MAX).then_some(id));
            if let Some(tell) = tell {
                let known = best.get(&tell.index());
                if known.is_none_or(|k| k.depth < miss.depth) {
                    best.insert(tell.index(), miss);
                }
            }
        }
        out.extend(best.into_iter().map(|(tell, miss)| NearMiss {
            rule: rule.name,
            tell: graph.describe(NodeId::new(tell)),
            what: miss.what,
        }));
    }
    out
}
