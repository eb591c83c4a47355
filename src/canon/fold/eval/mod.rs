//! Operators on constants, with the arithmetic of the operator's own element type.

mod arith;
mod cast;
mod layout;
mod make;
mod matmul;
mod reduce;
mod select;

use crate::ir::{DType, Op, OpName, Tensor};

pub(in crate::canon::fold) use matmul::ROOM as PRODUCT_ROOM;

/// An operator with its constant inputs.
pub(super) struct Call<'a> {
    pub(super) op: &'a Op,
    pub(super) opset: i64,
    pub(super) inputs: Vec<Option<&'a Tensor>>,
    pub(super) outputs: usize,
    /// The most bytes that a result may take.
    pub(super) limit: usize,
}

/// Computes every output; `None` leaves the operator as it is.
pub(super) type EvalFn = fn(&Call) -> Option<Vec<Tensor>>;

/// The function of an operator. Absent are those whose result an exporter did not mean as a constant (quantisation), and
/// those that no exporter leaves on constants.
pub(super) fn lookup(op: &OpName) -> Option<EvalFn> {
    if op.canonical_domain() != crate::ir::AI_ONNX {
        return None;
    }
    Some(match op.op_type.as_str() {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Max" | "Min" | "Sum" => arith::arithmetic,
        "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" => arith::comparison,
        "And" | "Or" | "Xor" => arith::logic,
        "Not" => arith::not,
        "Sqrt" | "Neg" | "Reciprocal" | "Exp" | "Log" | "Abs" | "Floor" | "Ceil" | "Round" | "Sign" | "Relu" | "Sigmoid"
        | "Tanh" | "Sin" | "Cos" => arith::unary,
        "Clip" => arith::clip,
        "Cast" => cast::cast,
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => layout::reinterpret,
        "Transpose" => layout::transpose,
        "Slice" => layout::slice,
        "Expand" => layout::expand,
        "Tile" => layout::tile,
        "Concat" => select::concat,
        "Split" => select::split,
        "Gather" => select::gather,
        "GatherND" => select::gather_nd,
        "Where" => select::where_,
        "ConstantOfShape" => make::constant_of_shape,
        "Range" => make::range,
        "Shape" => make::shape,
        "Size" => make::size,
        "ReduceSum" | "ReduceProd" | "ReduceMean" | "ReduceMax" | "ReduceMin" => reduce::reduce,
        "MatMul" => matmul::matmul,
        _ => return None,
    })
}

impl<'a> Call<'a> {
    fn input(&self, i: usize) -> Option<&'a Tensor> {
        self.inputs.get(i).copied().flatten()
    }

    fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.input(i)?.to_i64().ok()
    }

    /// A list that is an attribute in older operator sets and an input in newer ones; the inner `None` is absence.
    fn list(&self, attr: &str, i: usize) -> Option<Option<Vec<i64>>> {
        match (self.op.attrs.get(attr), self.input(i)) {
            (Some(_), _) => Some(Some(self.op.attrs.ints(attr)?.to_vec())),
            (None, Some(t)) => Some(Some(t.to_i64().ok()?)),
            (None, None) => Some(None),
        }
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.op.attrs.int(name).unwrap_or(default)
    }

    /// The number of elements of a result, if it stays within the limit.
    fn room(&self, shape: &[usize], dtype: DType) -> Option<usize> {
        let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (dtype.bytes_for(n)? <= self.limit).then_some(n)
    }
}

/// An axis that may count from the end.
fn axis(axis: i64, rank: usize) -> Option<usize> {
    let index = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(index).ok().filter(|i| *i < rank)
}

/// Bytes of one element, for types of whole bytes.
fn element_size(dtype: DType) -> Option<usize> {
    (dtype.bits() >= 8 && dtype.bits().is_multiple_of(8)).then(|| dtype.bits() / 8)
}

/// Row-major strides in elements.
fn strides(shape: &[usize]) -> Vec<isize> {
    let mut out = vec![0isize; shape.len()];
    let mut step = 1isize;
    for (slot, &d) in out.iter_mut().zip(shape).rev() {
        *slot = step;
        step = step.saturating_mul(d as isize);
    }
    out
}

/// The strides with which an operand is read under broadcasting, if it can be stretched to the shape.
fn broadcast_strides(operand: &[usize], out: &[usize]) -> Option<Vec<isize>> {
    let lead = out.len().checked_sub(operand.len())?;
    let own = strides(operand);
    let mut all = vec![0isize; lead];
    for ((&d, &n), s) in operand.iter().zip(out.iter().skip(lead)).zip(own) {
        all.push(match d {
            _ if d == n => s,
            1 => 0,
            _ => return None,
        });
    }
    Some(all)
}

/// Numpy's broadcasting of two shapes.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).and_then(|j| s.get(j).copied()).unwrap_or(1);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Calls `f` with the element offset of every position of a shape in row-major order.
fn walk(shape: &[usize], strides: &[isize], start: isize, mut f: impl FnMut(isize)) {
    let Some((&inner, outer)) = shape.split_last() else { return f(start) };
    let inner_step = strides.last().copied().unwrap_or(0);
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0usize; outer.len()];
    let mut base = start;
    loop {
        let mut at = base;
        for _ in 0..inner {
            f(at);
            at += inner_step;
        }
        // An odometer: the last outer axis that can advance does, those after it start again.
        let mut axis = outer.len();
        loop {
            let Some(k) = axis.checked_sub(1) else { return };
            axis = k;
            let (Some(i), Some(&n), Some(&s)) = (index.get_mut(k), outer.get(k), strides.get(k)) else { return };
            *i += 1;
            base += s;
            if *i < n {
                break;
            }
            base -= s * n as isize;
            *i = 0;
        }
    }
}
