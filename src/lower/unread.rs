//! Rows that nothing reads are not computed.
//!
//! The head of most Vision Transformers reads the class token alone. What the last block makes of the patches is then read by nobody, but for
//! keys and values: the rows are picked behind those instead of before the head, and most of a block is saved. The same sums are
//! made as before, fewer of them; where they are of floats, a runtime may make those of one row in another order than those of many.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::shape::Shapes;
use crate::ir::{Edit, Graph, NewOp, NodeId, Tensor, Use, Value};
use crate::quant::plan::{Scheme, SitePlan};

/// Operators that look at one element of their first input at a time; what else they read is one number each.
const ELEMENTWISE: [&str; 8] = ["Clip", "Gelu", "Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Identity"];
/// Operators on two tensors, element by element.
const BINARY: [&str; 4] = ["Add", "Sub", "Mul", "Div"];

/// Picks the rows early that are all that is read of a value later. What is picked of a site's values becomes one of them, so that it has
/// their codes. Gives what has less to do.
pub(super) fn lower(edit: &mut Edit<'_>, shapes: &Shapes, sites: &mut [SitePlan]) -> Option<Narrowed> {
    let (rows, narrow) = Picked::find(edit, shapes)?;
    let mut picked: BTreeMap<(Value, usize), Value> = BTreeMap::new();
    for value in edit.ops().into_iter().map(|node| Value { node, port: 0 }) {
        let Some(&axis) = narrow.get(&value) else { continue };
        for (port, read) in reads(edit, shapes, value.node, axis, rows.of).into_iter().flatten().enumerate() {
            let (Read::Rows(axis), Some(input)) = (read, edit.input(value.node, port as u32)) else { continue };
            if !narrow.contains_key(&input) {
                let rows = *picked.entry((input, axis)).or_insert_with(|| rows.pick(edit, value.node, input, axis, sites));
                edit.set_input(value.node, port as u32, Some(rows));
            }
        }
        if edit.is_op(value.node, "Reshape") {
            rows.reshape(edit, value.node, axis);
        }
    }
    rows.renumber(edit);
    let values = narrow.into_keys().map(|v| edit.value_name(v).to_owned()).collect();
    Some(Narrowed { values, rows: [rows.first, rows.first + rows.count] })
}

/// What only some rows are left of.
pub(super) struct Narrowed {
    /// The values' names, of which each is what an operator makes.
    pub(super) values: BTreeSet<String>,
    /// The rows that are left, from one and up to another.
    pub(super) rows: [usize; 2],
}

impl Narrowed {
    /// Which of the rows that are left are some rows of the whole, and how many are left; none where they begin and end at one.
    pub(super) fn of(&self, rows: [usize; 2]) -> ([usize; 2], usize) {
        let [first, end] = self.rows;
        (rows.map(|row| row.clamp(first, end) - first), end - first)
    }
}

/// The rows that the operators at the end pick.
struct Picked {
    /// Of the value that they are picked of.
    axis: usize,
    /// The first, and how many, of how many.
    first: usize,
    count: usize,
    of: usize,
    /// The operators, and the index that each has.
    by: Vec<(NodeId, usize)>,
}

/// What an operator needs of an input for some rows of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// The same rows, on this axis.
    Rows(usize),
    /// All of it.
    Whole,
}

impl Picked {
    /// What is picked at the end and is worth it: of the last value of which nothing but Gathers of single rows read some, and whose
    /// operator can make them alone. With the values that need only these rows then.
    fn find(edit: &Edit<'_>, shapes: &Shapes) -> Option<(Picked, BTreeMap<Value, usize>)> {
        let gathers: Vec<NodeId> = edit.ops().into_iter().filter(|&id| edit.is_op(id, "Gather")).collect();
        gathers.into_iter().rev().find_map(|id| {
            let rows = Picked::of(edit, shapes, edit.input(id, 0)?)?;
            let narrow = rows.narrow(edit, shapes);
            (!narrow.is_empty()).then_some((rows, narrow))
        })
    }

    fn of(edit: &Edit<'_>, shapes: &Shapes, from: Value) -> Option<Picked> {
        let shape = shapes.shape(from)?;
        if edit.is_output(from) || edit.constant(from).is_some() {
            return None;
        }
        let mut found: Vec<(NodeId, usize, usize)> = Vec::new();
        for u in edit.uses(from) {
            let op = edit.op(u.node).filter(|_| edit.is_op(u.node, "Gather") && u.port == 0)?;
            let axis = normalised(op.attrs.int("axis").unwrap_or(0), shape.len())?;
            let index = edit.constant(edit.input(u.node, 1)?).filter(|t| t.shape.is_empty())?.to_i64().ok()?;
            let of = shape.get(axis)?.as_size()?;
            found.push((u.node, axis, normalised(*index.first()?, of)?));
        }
        let (_, axis, _) = *found.first()?;
        let of = shape[axis].as_size()?;
        let first = found.iter().map(|f| f.2).min()?;
        let count = found.iter().map(|f| f.2).max()? + 1 - first;
        // Channels are no rows, and neither are samples.
        let channels = shape.len().checked_sub(shapes.channels_from_end(edit, from))?;
        let all = found.iter().all(|f| f.1 == axis) && axis + 1 < shape.len() && axis > 0 && axis != channels;
        let by = found.into_iter().map(|(node, _, index)| (node, index)).collect();
        (all && count < of).then_some(Picked { axis, first, count, of, by })
    }

    /// The values of which only those rows are read and whose operators can make them alone, with the axis of the rows.
    fn narrow(&self, graph: &Graph, shapes: &Shapes) -> BTreeMap<Value, usize> {
        let mut narrow: BTreeMap<Value, usize> = BTreeMap::new();
        let pickers: BTreeSet<NodeId> = self.by.iter().map(|(node, _)| *node).collect();
        let asks = |narrow: &BTreeMap<Value, usize>, u: &Use| -> Option<usize> {
            if pickers.contains(&u.node) {
                return Some(self.axis);
            }
            let axis = *narrow.get(&Value { node: u.node, port: 0 })?;
            match reads(graph, shapes, u.node, axis, self.of)?.get(u.port as usize)? {
                Read::Rows(axis) => Some(*axis),
                Read::Whole => None,
            }
        };
        for id in graph.ops().into_iter().rev() {
            let value = Value { node: id, port: 0 };
            let uses = graph.uses(value);
            let mut axes = uses.iter().map(|u| asks(&narrow, u));
            let Some(axis) = axes.next().flatten().filter(|_| !graph.is_output(value)) else { continue };
            if axes.all(|other| other == Some(axis)) && reads(graph, shapes, id, axis, self.of).is_some() {
                narrow.insert(value, axis);
            }
        }
        narrow
    }

    /// The rows of a value that is needed whole elsewhere.
    fn pick(&self, edit: &mut Edit<'_>, reader: NodeId, value: Value, axis: usize, sites: &mut [SitePlan]) -> Value {
        let name = edit.value_name(value).to_owned();
        let mut number = |what: &str, n: usize| edit.add_init(reader, &format!("{name}_{what}"), Tensor::vector(&[n as i64]));
        let bounds = [number("read_from", self.first), number("read_to", self.first + self.count), number("read_axis", axis)];
        let rows = edit.fresh_name(&format!("{name}_read"));
        let slice = edit.add(reader, NewOp::std("Slice", &rows).input(value).inputs(bounds));
        // Log2 codes are a Softmax's own; an accumulator's rows are the accumulator's still. Rows that are a site of their own are taken
        // apart later.
        let whole = |s: &SitePlan| !s.site.weight && s.site.rows.is_none() && s.site.values.contains(&name);
        let coded = |s: &&mut SitePlan| whole(s) && !matches!(s.scheme, Scheme::Log2 { .. });
        if let Some(site) = sites.iter_mut().find(coded) {
            site.site.values.push(edit.value_name(slice).to_owned());
        }
        slice
    }

    /// The shape that a Reshape asks for, with fewer rows.
    fn reshape(&self, edit: &mut Edit<'_>, node: NodeId, axis: usize) {
        let Some(shape) = edit.input(node, 1) else { return };
        let Some(mut sizes) = edit.constant(shape).and_then(|t| t.to_i64().ok()) else { return };
        let Some(size) = sizes.get_mut(axis).filter(|size| **size > 0) else { return };
        *size = self.count as i64;
        let name = format!("{}_of_rows", edit.value_name(shape));
        let shape = edit.add_init(node, &name, Tensor::vector(&sizes));
        edit.set_input(node, 1, Some(shape));
    }

    /// The operators at the end count from the first row that there is now.
    fn renumber(&self, edit: &mut Edit<'_>) {
        for &(node, index) in &self.by {
            let name = format!("{}_index", edit.value_name(Value { node, port: 0 }));
            let index = edit.add_init(node, &name, Tensor::scalar((index - self.first) as i64));
            edit.set_input(node, 1, Some(index));
        }
    }
}

/// An index or axis that may count from the end.
fn normalised(index: i64, of: usize) -> Option<usize> {
    let index = if index < 0 { index + of as i64 } else { index };
    usize::try_from(index).ok().filter(|&i| i < of)
}

/// What an operator needs of each input for some of the `of` rows of its output; `None` for one that cannot make rows alone.
fn reads(graph: &Graph, shapes: &Shapes, node: NodeId, axis: usize, of: usize) -> Option<Vec<Read>> {
    let outputs = graph.get(node)?.outputs.len() as u32;
    let read = |value: Value| !graph.uses(value).is_empty() || graph.is_output(value);
    if (1..outputs).any(|port| read(Value { node, port })) {
        return None;
    }
    let reads = reads_of_first_output(graph, shapes, node, axis, of)?;
    // Constants are stored as they are.
    let stored = |port: usize| graph.input(node, port as u32).is_some_and(|v| graph.constant(v).is_some());
    (!reads.iter().enumerate().any(|(port, read)| *read != Read::Whole && stored(port))).then_some(reads)
}

fn reads_of_first_output(graph: &Graph, shapes: &Shapes, node: NodeId, axis: usize, of: usize) -> Option<Vec<Read>> {
    let op = graph.op(node)?;
    let out = shapes.shape(Value { node, port: 0 })?;
    let inputs = graph.inputs_of(node);
    let shape = |port: usize| inputs.get(port).copied().flatten().and_then(|v| shapes.shape(v));
    let is = |ops: &[&str]| ops.iter().any(|o| graph.is_op(node, o));
    let of_first = |axis: usize| {
        let mut reads = vec![Read::Whole; inputs.len()];
        *reads.first_mut()? = Read::Rows(axis);
        Some(reads)
    };
    let last = out.len().checked_sub(1)?;
    if out.get(axis)?.as_size() != Some(of) || axis == last {
        return None;
    }
    if is(&ELEMENTWISE) {
        return of_first(axis);
    }
    if is(&["LayerNormalization", "RMSNormalization", "Softmax"]) {
        let over = normalised(op.attrs.int("axis").unwrap_or(-1), out.len())?;
        return (over > axis).then(|| of_first(axis))?;
    }
    if is(&["Transpose"]) {
        let from = *op.attrs.ints("perm")?.get(axis)?;
        return of_first(usize::try_from(from).ok()?);
    }
    if is(&["MatMul"]) {
        // Rows of the left operand are rows of the product.
        let (left, right) = (shape(0)?, shape(1)?);
        return (axis + 1 == last && left.len() == out.len() && right.len() >= 2).then(|| of_first(axis))?;
    }
    if is(&["Reshape"]) {
        let from = shape(0)?;
        let fixed = graph.constant(inputs.get(1).copied().flatten()?)?.to_i64().ok()?;
        let same = |i: usize| Some(from.get(i)?.equals(out.get(i)?) == Some(true));
        // A size that stands for whatever is left may not be the rows'.
        let kept = (0..=axis).all(|i| same(i) == Some(true)) && fixed.get(axis).is_some_and(|&n| n >= 0);
        return kept.then(|| of_first(axis))?;
    }
    if is(&BINARY) {
        let operand = |port: usize| {
            let own = shape(port)?;
            let Some(at) = (axis + own.len()).checked_sub(out.len()) else { return Some(Read::Whole) };
            match own[at].as_size()? {
                1 => Some(Read::Whole),
                n if n == of => Some(Read::Rows(at)),
                _ => None,
            }
        };
        let reads = [operand(0)?, operand(1)?];
        // A bias stays with its product.
        let together = |port: usize| {
            let value = inputs[port]?;
            let biased = inputs[1 - port].is_some_and(|v| graph.constant(v).is_some());
            let Read::Rows(at) = reads[port] else { return Some(()) };
            let product = biased && (graph.is_op(value.node, "MatMul") || graph.is_op(value.node, "Conv"));
            let apart = product && (graph.use_count(value) > 1 || self::reads(graph, shapes, value.node, at, of).is_none());
            (!apart).then_some(())
        };
        together(0)?;
        together(1)?;
        return reads.iter().any(|read| matches!(read, Read::Rows(_))).then(|| reads.to_vec());
    }
    None
}
