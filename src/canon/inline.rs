//! Model-local functions: each call becomes the operators of the function's body.
//!
//! What the ONNX IR says of a call (onnx/docs/IR.md, "Functions"): inputs and outputs bind by position, an absent actual
//! input makes the formal one absent, and an attribute of the body that refers to an attribute which the call does not
//! give and which has no default is absent itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ir::{
    Attr, AttrValue, Attrs, Edit, Function, Graph, Model, NewOp, NodeId, NodeKind, Op, OpName, OpsetImport, Value, VerifyError,
};

/// Calls nested deeper than this are refused: no exporter writes them, and recursion must end.
const MAX_DEPTH: usize = 64;
/// More operators than this after inlining are refused: nested calls multiply, and a small file can ask for any number.
const MAX_OPS: usize = 1_000_000;

/// Why a model's functions cannot be inlined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InlineError {
    /// A function calls itself.
    #[error("the model-local function {0} calls itself: ONNX has no recursion, so the model cannot be computed; export it again")]
    Recursive(String),
    /// Calls are nested too deep.
    #[error("calls of model-local functions are nested deeper than {MAX_DEPTH} (in {0}): the file is damaged, export it again")]
    TooDeep(String),
    /// Too many operators.
    #[error(
        "inlining the model-local functions would give {0} operators, more than {MAX_OPS}: the file is damaged, export it again"
    )]
    TooLarge(usize),
    /// A nested graph inside a function, or given to one.
    #[error(
        "{place} has a nested graph (as If, Loop and Scan do), which vitq does not inline: export the model without functions, or \
         pass it through onnx.inliner.inline_local_functions first"
    )]
    Nested {
        /// The call, or the function and the node.
        place: String,
    },
    /// An operator means something else under the model's operator sets.
    #[error(
        "{place} is written for version {found} of the operator set '{domain}', and the model imports version {model}: {what}; export \
         the model with one version throughout"
    )]
    Opset {
        /// The function and the node.
        place: String,
        /// The operator set.
        domain: String,
        /// The function's version.
        found: i64,
        /// The model's version.
        model: i64,
        /// Why the operator cannot move.
        what: String,
    },
    /// A value that the function promises is not there.
    #[error(
        "{place} produces '{name}', which the function {function} takes from an input that the call leaves out; export the model again"
    )]
    NoValue {
        /// The call.
        place: String,
        /// The call's output.
        name: String,
        /// The function.
        function: String,
    },
    /// Inlining broke the graph.
    #[error("inlining model-local functions broke the graph: {0}; the functions' bodies are damaged, export the model again")]
    Verify(#[from] VerifyError),
}

/// Replaces every call of a model-local function in the main graph by the function's body, calls inside bodies included, and
/// drops the functions that nothing calls any more. Functions that `keep` picks stay, and so do calls of them.
///
/// A value inside a body is named after the call: `CALL/NAME`. Calls inside nested graphs are left alone, and then every
/// function stays. Returns the number of calls that were replaced; without any the model is untouched.
///
/// # Errors
/// On recursion, nested graphs inside bodies, and operators whose meaning depends on an operator set that function and model
/// import in different versions.
pub fn inline(model: &mut Model, keep: impl Fn(&OpName) -> bool) -> Result<usize, InlineError> {
    let functions: BTreeMap<OpName, &Function> =
        model.functions.iter().filter(|f| !keep(&f.id)).map(|f| (key(&f.id), f)).collect();
    let mut opsets = model.opsets.clone();
    let mut plan = Plan { functions: &functions, opsets: &mut opsets, sizes: BTreeMap::new(), path: Vec::new() };
    let size = plan.size(&model.graph)?;
    if plan.sizes.is_empty() {
        return Ok(0);
    }
    if size > MAX_OPS {
        return Err(InlineError::TooLarge(size));
    }
    let mut edit = Edit::new(&mut model.graph);
    let called = |edit: &Edit<'_>, id: NodeId| edit.op(id).and_then(|op| functions.get(&key(&op.op)).copied());
    let mut queue: VecDeque<NodeId> = edit.ops().into();
    let mut count = 0;
    while let Some(id) = queue.pop_front() {
        if let Some(f) = called(&edit, id) {
            queue.extend(expand(&mut edit, id, f)?);
            count += 1;
        }
    }
    // The calls themselves are dead now.
    edit.commit()?;
    model.opsets = opsets;
    drop_uncalled(model, keep);
    Ok(count)
}

/// An identity that does not depend on how the default domain is spelt.
fn key(op: &OpName) -> OpName {
    OpName { domain: op.canonical_domain().to_owned(), ..op.clone() }
}

/// What can be told before anything is changed.
struct Plan<'a> {
    functions: &'a BTreeMap<OpName, &'a Function>,
    opsets: &'a mut Vec<OpsetImport>,
    /// Operators of each function that is called, once all is inlined.
    sizes: BTreeMap<OpName, usize>,
    path: Vec<OpName>,
}

impl Plan<'_> {
    /// The operators of a graph once all is inlined.
    fn size(&mut self, g: &Graph) -> Result<usize, InlineError> {
        let mut size = 0usize;
        for op in g.ops().into_iter().filter_map(|id| g.op(id)) {
            let name = key(&op.op);
            size = size.saturating_add(match self.functions.get(&name) {
                Some(f) if op.attrs.subgraphs().next().is_some() => {
                    return Err(InlineError::Nested { place: format!("{} '{}'", f.id, op.name) });
                }
                Some(f) => self.size_of(name, f)?,
                None => 1,
            });
        }
        Ok(size)
    }

    fn size_of(&mut self, name: OpName, f: &Function) -> Result<usize, InlineError> {
        if let Some(&size) = self.sizes.get(&name) {
            return Ok(size);
        }
        if self.path.contains(&name) {
            return Err(InlineError::Recursive(f.id.to_string()));
        }
        if self.path.len() == MAX_DEPTH {
            return Err(InlineError::TooDeep(f.id.to_string()));
        }
        self.path.push(name.clone());
        let g = &f.body;
        for id in g.ops() {
            let Some(op) = g.op(id) else { continue };
            let place = || format!("the model-local function {}: {}", f.id, g.describe(id));
            if op.attrs.subgraphs().next().is_some() {
                return Err(InlineError::Nested { place: place() });
            }
            if !self.functions.contains_key(&key(&op.op)) {
                self.check_opset(f, op, place)?;
            }
        }
        if f.attribute_defaults.subgraphs().next().is_some() {
            return Err(InlineError::Nested { place: format!("the model-local function {}", f.id) });
        }
        let size = self.size(g)?;
        self.path.pop();
        self.sizes.insert(name, size);
        Ok(size)
    }

    /// Whether an operator of a body means the same in the model.
    fn check_opset(&mut self, f: &Function, op: &Op, place: impl Fn() -> String) -> Result<(), InlineError> {
        let domain = op.op.canonical_domain();
        let version = |list: &[OpsetImport]| list.iter().find(|o| canonical(&o.domain) == domain).map(|o| o.version);
        let Some(found) = version(&f.opsets) else { return Ok(()) };
        let Some(model) = version(self.opsets) else {
            self.opsets.push(OpsetImport { domain: domain.to_owned(), version: found });
            return Ok(());
        };
        let what = if found == model {
            return Ok(());
        } else if !domain.is_empty() {
            "nothing is known of the difference".to_owned()
        } else if found > model {
            "the model's version may lack what the function uses".to_owned()
        } else {
            match CHANGES.iter().find(|(name, at)| *name == op.op.op_type && found < *at && *at <= model) {
                Some((name, at)) => format!("{name} changed in version {at}"),
                None => return Ok(()),
            }
        };
        Err(InlineError::Opset { place: place(), domain: domain.to_owned(), found, model, what })
    }
}

fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Operators of the default domain that a version from 10 on took a form or a meaning away from (onnx/docs/Changelog.md):
/// a node for an older version may be another node, or none, from this version on.
const CHANGES: &[(&str, i64)] = &[
    ("BatchNormalization", 14),
    ("Clip", 11),
    ("DFT", 20),
    ("Dropout", 12),
    ("GridSample", 20),
    ("GroupNormalization", 21),
    ("Hardmax", 13),
    ("LogSoftmax", 13),
    ("Pad", 11),
    ("ReduceL1", 18),
    ("ReduceL2", 18),
    ("ReduceLogSum", 18),
    ("ReduceLogSumExp", 18),
    ("ReduceMax", 18),
    ("ReduceMean", 18),
    ("ReduceMin", 18),
    ("ReduceProd", 18),
    ("ReduceSum", 13),
    ("ReduceSumSquare", 18),
    ("Resize", 11),
    ("Slice", 10),
    ("Softmax", 13),
    ("Split", 13),
    ("Squeeze", 13),
    ("TopK", 10),
    ("Unsqueeze", 13),
    ("Upsample", 10),
];

/// Adds the body beside a call and makes the call's readers read it; returns the new operators.
fn expand(edit: &mut Edit<'_>, call: NodeId, f: &Function) -> Result<Vec<NodeId>, InlineError> {
    let Some((op, outputs)) = edit.get(call).and_then(|n| Some((n.op()?.clone(), n.outputs.clone()))) else { return Ok(vec![]) };
    let prefix =
        if op.name.is_empty() { outputs.iter().find(|n| !n.is_empty()).cloned().unwrap_or_default() } else { op.name.clone() };
    let inside = |name: &str| format!("{prefix}/{name}");
    let actual = edit.inputs_of(call);
    let mut values: BTreeMap<Value, Option<Value>> = BTreeMap::new();
    for (i, &node) in f.body.inputs().iter().enumerate() {
        values.insert(Value { node, port: 0 }, actual.get(i).copied().flatten());
    }
    let mut added = Vec::new();
    for id in f.body.topo() {
        let Some(node) = f.body.get(id) else { continue };
        let first = node.outputs.iter().find(|n| !n.is_empty()).map_or("", String::as_str);
        match &node.kind {
            // Files have no constants in functions; graphs made otherwise may.
            NodeKind::Init(t) => {
                let value = edit.add_init(call, &inside(first), t.clone());
                values.entry(Value { node: id, port: 0 }).or_insert(Some(value));
            }
            NodeKind::Input | NodeKind::SparseInit(_) => {}
            NodeKind::Op(inner) => {
                let name = inside(if inner.name.is_empty() { first } else { &inner.name });
                let mut new = NewOp::new(inner.op.clone(), &name).attrs(resolve(&inner.attrs, &op.attrs, &f.attribute_defaults));
                for read in f.body.inputs_of(id) {
                    new = new.maybe_input(read.and_then(|v| values.get(&v).copied().flatten()));
                }
                // An absent output between present ones gets a name that nothing reads; absent ones at the end stay away.
                let present = node.outputs.iter().rposition(|n| !n.is_empty()).map_or(0, |last| last + 1);
                for output in node.outputs.iter().take(present) {
                    new = new.output(&inside(if output.is_empty() { "unused" } else { output }));
                }
                let copy = edit.add_op(call, new);
                if let Some(content) = edit.op_mut(copy) {
                    content.doc.clone_from(&inner.doc);
                    content.metadata.clone_from(&inner.metadata);
                    content.extra = inner.extra.clone();
                }
                values.extend((0..present as u32).map(|port| (Value { node: id, port }, Some(Value { node: copy, port }))));
                added.push(copy);
            }
        }
    }
    let mut given = BTreeSet::new();
    for (port, (name, from)) in (0..).zip(outputs.iter().zip(f.body.outputs())).filter(|(_, (name, _))| !name.is_empty()) {
        let Some(mut value) = values.get(from).copied().flatten() else {
            return Err(InlineError::NoValue { place: edit.describe(call), name: name.clone(), function: f.id.to_string() });
        };
        // A value has one name: what the function hands through, or hands out twice, needs a second one.
        if !added.contains(&value.node) || !given.insert(value) {
            value = edit.add(call, NewOp::std("Identity", &inside(f.body.value_name(*from))).input(value));
        }
        edit.replace(Value { node: call, port }, value);
    }
    Ok(added)
}

/// The attributes of a body's operator with references replaced by what the call, or else the function's default, gives.
fn resolve(attrs: &Attrs, call: &Attrs, defaults: &Attrs) -> Attrs {
    let mut out = Attrs::new();
    for a in attrs.iter() {
        match &a.value {
            AttrValue::Ref(name, _) => {
                let given = call.iter().chain(defaults.iter()).find(|g| g.name == *name);
                if let Some(given) = given {
                    out.push(Attr { name: a.name.clone(), doc: a.doc.clone(), ..given.clone() });
                }
            }
            _ => out.push(a.clone()),
        }
    }
    out
}

/// Drops the functions that nothing can call any more, and the imports of operator sets that only they made.
fn drop_uncalled(model: &mut Model, keep: impl Fn(&OpName) -> bool) {
    let nested = |g: &Graph| g.ops().into_iter().filter_map(|id| g.op(id)).any(|op| op.attrs.subgraphs().next().is_some());
    let names = |g: &Graph| -> Vec<OpName> { g.ops().into_iter().filter_map(|id| g.op(id)).map(|op| key(&op.op)).collect() };
    let mut needed: BTreeSet<OpName> = BTreeSet::new();
    let mut open: Vec<OpName> = model.functions.iter().map(|f| key(&f.id)).filter(|id| keep(id)).collect();
    let mut opaque = nested(&model.graph);
    while let Some(id) = open.pop() {
        if let Some(f) = model.functions.iter().find(|f| key(&f.id) == id && !needed.contains(&id)) {
            opaque |= nested(&f.body);
            open.extend(names(&f.body));
            needed.insert(id);
        }
    }
    // What nested graphs call is not known here.
    if opaque {
        return;
    }
    let dropped: BTreeSet<String> =
        model.functions.iter().filter(|f| !needed.contains(&key(&f.id))).map(|f| f.id.domain.clone()).collect();
    model.functions.retain(|f| needed.contains(&key(&f.id)));
    let mut used: BTreeSet<String> = names(&model.graph).into_iter().map(|n| n.domain).collect();
    used.extend(model.functions.iter().map(|f| f.id.domain.clone()));
    model.opsets.retain(|o| canonical(&o.domain).is_empty() || used.contains(&o.domain) || !dropped.contains(&o.domain));
}

#[cfg(test)]
mod tests;
