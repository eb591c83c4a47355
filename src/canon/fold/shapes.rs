//! Shape arithmetic: what is known becomes constant, what stays symbolic becomes short.

use std::collections::{BTreeMap, BTreeSet};

use super::Round;
use crate::ir::shape::{DimExpr, Shapes};
use crate::ir::{AttrValue, DType, NewOp, NodeId, NodeKind, Tensor, Value};

/// Longer chains of shape arithmetic are not measured.
const MAX_CHAIN: usize = 64;

/// Where a symbolic size can be read: an axis of a value.
pub(super) type Sources = BTreeMap<DimExpr, (Value, usize)>;

/// The tensor of an integer or bool value all of whose elements are known numbers.
pub(super) fn constant_contents(shapes: &Shapes, value: Value) -> Option<Tensor> {
    let fact = shapes.get(value)?;
    let (numbers, sizes) = (fact.const_contents()?, fact.sizes()?);
    match fact.dtype? {
        DType::I64 => Tensor::new(&sizes, &numbers).ok(),
        DType::I32 => {
            let narrow: Vec<i32> = numbers.iter().map(|&n| i32::try_from(n).ok()).collect::<Option<_>>()?;
            Tensor::new(&sizes, &narrow).ok()
        }
        DType::Bool => {
            let bytes: Vec<u8> = numbers.iter().map(|&n| u8::from(n != 0)).collect();
            Tensor::from_bytes(DType::Bool, sizes, bytes.into()).ok()
        }
        _ => None,
    }
}

/// A constant `Reshape` target that gives `output` from `input` (with `allowzero` off): numbers, 0 where an axis keeps its
/// symbolic size, −1 for at most one other. `None` when that is not enough.
pub(super) fn constant_target(input: &[DimExpr], output: &[DimExpr]) -> Option<Vec<i64>> {
    let mut free = false;
    let mut size = |(i, d): (usize, &DimExpr)| match d.as_const() {
        Some(n) => (n > 0).then_some(n),
        None if input.get(i) == Some(d) => Some(0),
        None if free => None,
        None => {
            free = true;
            Some(-1)
        }
    };
    output.iter().enumerate().map(&mut size).collect()
}

impl Round<'_, '_> {
    /// The symbolic sizes of graph inputs and the first place of each.
    pub(super) fn sources(&self) -> Sources {
        let mut sources = Sources::new();
        for &id in self.edit.inputs() {
            let value = Value { node: id, port: 0 };
            if matches!(self.edit.get(id).map(|n| &n.kind), Some(NodeKind::Input)) {
                add_sources(&mut sources, &self.shapes, value);
            }
        }
        sources
    }

    /// Gives a `Reshape` whose target is symbolic a constant one.
    pub(super) fn reshape_target(&mut self, id: NodeId) {
        if !self.edit.is_op(id, "Reshape") {
            return;
        }
        let target = || {
            let (x, target) = (self.edit.input(id, 0)?, self.edit.input(id, 1)?);
            if self.edit.constant(target).is_some() {
                return None;
            }
            // The target must be known in full: the output's own shape may come from what the file merely claims.
            self.shapes.contents(target)?.iter().all(Option::is_some).then_some(())?;
            constant_target(self.shapes.shape(x)?, self.shapes.shape(Value { node: id, port: 0 })?)
        };
        let Some(target) = target() else { return };
        self.set_target(id, &target);
        self.count("Reshape targets made constant");
    }

    /// Sets the target of a `Reshape`, in which 0 copies a size.
    pub(super) fn set_target(&mut self, id: NodeId, target: &[i64]) {
        let name = format!("{}_shape", self.edit.value_name(Value { node: id, port: 0 }));
        let init = self.edit.add_init(id, &name, Tensor::vector(target));
        self.edit.set_input(id, 1, Some(init));
        if let Some(op) = self.edit.op_mut(id) {
            op.attrs.remove("allowzero");
        }
    }

    /// Rebuilds the shape arithmetic in front of an operator in its shortest form, where that is shorter.
    pub(super) fn shorten_shape_inputs(&mut self, id: NodeId, sources: &Sources) {
        let follows = |v: Value| self.shapes.contents(v).is_some();
        if follows(Value { node: id, port: 0 }) {
            return;
        }
        for (port, value) in (0u32..).zip(self.edit.inputs_of(id)) {
            let Some(value) = value.filter(|&v| self.graph().op(v.node).is_some()) else { continue };
            let Some(contents) = self.symbolic_vector(value) else { continue };
            let Some((length, sources)) = self.chain(value, sources) else { continue };
            let Some(parts) = parts(&contents, &sources) else { continue };
            if self.cost(&parts) < length {
                let short = self.build(value, &parts);
                self.edit.set_input(id, port, Some(short));
                self.count("shape chains shortened");
            }
        }
    }

    /// The elements of an int64 vector, known in full and not all numbers.
    fn symbolic_vector(&self, value: Value) -> Option<Vec<DimExpr>> {
        let fact = self.shapes.get(value)?;
        let all: Vec<DimExpr> = fact.contents.as_ref()?.iter().cloned().collect::<Option<_>>()?;
        let vector = fact.dtype == Some(DType::I64) && fact.shape.as_ref()?.len() == 1;
        (vector && all.iter().any(|e| e.as_const().is_none())).then_some(all)
    }

    /// The number of operators of the shape arithmetic behind a value, and the sizes that it can read: those of graph inputs,
    /// then those of the values it reads now.
    fn chain(&self, value: Value, inputs: &Sources) -> Option<(usize, Sources)> {
        let (mut seen, mut stack, mut sources) = (BTreeSet::new(), vec![value.node], inputs.clone());
        while let Some(id) = stack.pop() {
            if self.graph().op(id).is_none() || !seen.insert(id) {
                continue;
            }
            if seen.len() > MAX_CHAIN {
                return None;
            }
            let reads = self.edit.inputs_of(id).into_iter().flatten();
            if self.edit.is_op(id, "Shape") || self.edit.is_op(id, "Size") {
                reads.for_each(|x| add_sources(&mut sources, &self.shapes, x));
            } else {
                stack.extend(reads.map(|v| v.node));
            }
        }
        Some((seen.len(), sources))
    }

    fn cost(&self, parts: &[Part]) -> usize {
        let runs = parts.iter().filter(|p| matches!(p, Part::Sizes { .. })).count();
        let values: BTreeSet<Value> = parts.iter().filter_map(Part::value).collect();
        let reads = if self.opset >= 15 { runs } else { runs + values.len() };
        reads + usize::from(parts.len() > 1)
    }

    fn build(&mut self, old: Value, parts: &[Part]) -> Value {
        let stem = self.edit.value_name(old).to_owned();
        let anchor = old.node;
        let mut shapes: BTreeMap<Value, Value> = BTreeMap::new();
        let mut values = Vec::with_capacity(parts.len());
        for part in parts {
            values.push(match part {
                Part::Numbers(v) => self.edit.add_init(anchor, &format!("{stem}_sizes"), Tensor::vector(v)),
                &Part::Sizes { value, start, end } if self.opset >= 15 => {
                    let new = NewOp::std("Shape", &format!("{stem}_size")).input(value);
                    let new = new.attr("start", AttrValue::Int(start as i64)).attr("end", AttrValue::Int(end as i64));
                    self.edit.add(anchor, new)
                }
                &Part::Sizes { value, start, end } => {
                    let shape = match shapes.get(&value) {
                        Some(&shape) => shape,
                        None => self.edit.add(anchor, NewOp::std("Shape", &format!("{stem}_source")).input(value)),
                    };
                    shapes.insert(value, shape);
                    let axes: Vec<i64> = (start..end).map(|i| i as i64).collect();
                    let axes = self.edit.add_init(anchor, &format!("{stem}_axes"), Tensor::vector(&axes));
                    let new = NewOp::std("Gather", &format!("{stem}_size")).input(shape).input(axes);
                    self.edit.add(anchor, new.attr("axis", AttrValue::Int(0)))
                }
            });
        }
        match values.as_slice() {
            [only] => *only,
            _ => {
                let new = NewOp::std("Concat", &format!("{stem}_short")).inputs(values);
                self.edit.add(anchor, new.attr("axis", AttrValue::Int(0)))
            }
        }
    }
}

fn add_sources(sources: &mut Sources, shapes: &Shapes, value: Value) {
    for (axis, d) in shapes.shape(value).unwrap_or_default().iter().enumerate() {
        if d.as_const().is_none() {
            sources.entry(d.clone()).or_insert((value, axis));
        }
    }
}

/// A part of a shape vector.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Numbers(Vec<i64>),
    /// Consecutive axes of one value.
    Sizes {
        value: Value,
        start: usize,
        end: usize,
    },
}

impl Part {
    fn value(&self) -> Option<Value> {
        match self {
            Part::Numbers(_) => None,
            Part::Sizes { value, .. } => Some(*value),
        }
    }
}

/// The fewest parts in order; `None` when a size can be read nowhere.
fn parts(contents: &[DimExpr], sources: &Sources) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for d in contents {
        match (d.as_const(), parts.last_mut()) {
            (Some(n), Some(Part::Numbers(v))) => v.push(n),
            (Some(n), _) => parts.push(Part::Numbers(vec![n])),
            (None, last) => {
                let &(value, axis) = sources.get(d)?;
                match last {
                    Some(Part::Sizes { value: v, end, .. }) if *v == value && *end == axis => *end += 1,
                    _ => parts.push(Part::Sizes { value, start: axis, end: axis + 1 }),
                }
            }
        }
    }
    Some(parts)
}
