//! The elements of small integer tensors, so that arithmetic on shapes is followed.

use super::ctx::{self, Ctx};
use super::fact::{Contents, MAX_CONTENTS};
use super::{DimExpr, Shape, slice, source};
use crate::ir::{AttrValue, DType};

type Element = Option<DimExpr>;

/// The contents of every output, given their shapes; `None` when nothing is known.
pub(super) type ContentsFn = fn(&Ctx, &[Option<Shape>]) -> Option<Vec<Option<Contents>>>;

fn single(contents: Contents) -> Option<Vec<Option<Contents>>> {
    Some(vec![Some(contents)])
}

/// The number of elements of output 0, if it is known and small.
fn count(shapes: &[Option<Shape>]) -> Option<usize> {
    let n = ctx::product(shapes.first()?.as_ref()?)?.as_size()?;
    (n <= MAX_CONTENTS).then_some(n)
}

/// Sizes of a shape in numbers.
fn sizes(shape: &[DimExpr]) -> Option<Vec<usize>> {
    shape.iter().map(DimExpr::as_size).collect()
}

/// `Constant`.
pub(super) fn constant(c: &Ctx, _: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    match &c.op.attrs.iter().find(|a| a.name.starts_with("value"))?.value {
        AttrValue::Tensor(t) => single(super::Fact::of_tensor(t).contents?),
        AttrValue::Int(v) => single(vec![Some((*v).into())]),
        AttrValue::Ints(v) if v.len() <= MAX_CONTENTS => single(v.iter().map(|&n| Some(n.into())).collect()),
        _ => None,
    }
}

/// `Shape`.
pub(super) fn shape(c: &Ctx, _: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let x = c.shape(0).ok()?;
    let (start, end) = source::shape_range(c, x.len());
    single(x.get(start..end)?.iter().cloned().map(Some).collect())
}

/// `Size`.
pub(super) fn size(c: &Ctx, _: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    single(vec![Some(ctx::product(c.shape(0).ok()?)?)])
}

/// The elements of input 0 in the same order: `Reshape`, `Squeeze`, `Unsqueeze`, `Flatten`, `Identity`.
pub(super) fn same(c: &Ctx, _: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    single(c.contents(0).ok()?.clone())
}

/// `Cast` between int32 and int64, and from bool.
pub(super) fn cast(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let to = DType::from_onnx(i32::try_from(c.op.attrs.int("to")?).ok()?)?;
    match to {
        DType::I32 | DType::I64 => same(c, shapes),
        DType::Bool => single(c.contents(0).ok()?.iter().map(|e| flag(e.as_ref()?.equals(&0.into()).map(|z| !z))).collect()),
        _ => None,
    }
}

/// `Transpose` of a vector.
pub(super) fn transpose(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    if c.shape(0).ok()?.len() <= 1 { same(c, shapes) } else { None }
}

/// `Concat` of vectors.
pub(super) fn concat(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    if shapes.first()?.as_ref()?.len() != 1 {
        return None;
    }
    let mut out = Vec::new();
    for i in 0..c.arity() {
        match (c.contents(i), c.shape(i)) {
            (Ok(v), _) => out.extend(v.iter().cloned()),
            // One unknown part leaves the others known.
            (Err(_), Ok([n])) => out.extend(vec![None; n.as_size().filter(|n| *n <= MAX_CONTENTS)?]),
            _ => return None,
        }
        if out.len() > MAX_CONTENTS {
            return None;
        }
    }
    single(out)
}

/// `Split` of a vector.
pub(super) fn split(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let x = c.contents(0).ok()?;
    let mut at = 0usize;
    let mut out = Vec::new();
    for shape in shapes {
        let [n] = shape.as_deref()? else { return None };
        let end = at.checked_add(n.as_size()?)?;
        out.push(Some(x.get(at..end)?.to_vec()));
        at = end;
    }
    Some(out)
}

/// `Slice` of a vector.
pub(super) fn slice(c: &Ctx, _: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let x = c.contents(0).ok()?;
    if c.shape(0).ok()?.len() != 1 {
        return None;
    }
    match slice::cuts(c, 1).ok()?.as_slice() {
        [] => single(x.clone()),
        [cut] => {
            let at = cut.positions(x.len() as i64)?;
            single(at.into_iter().map(|i| x.get(usize::try_from(i).ok()?).cloned()).collect::<Option<_>>()?)
        }
        _ => None,
    }
}

/// `Gather` from a vector.
pub(super) fn gather(c: &Ctx, _: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let x = c.contents(0).ok()?;
    if c.shape(0).ok()?.len() != 1 {
        return None;
    }
    let pick = |i: i64| -> Option<Element> {
        let i = if i < 0 { i.checked_add(x.len() as i64)? } else { i };
        x.get(usize::try_from(i).ok()?).cloned()
    };
    single(c.const_ints(1).ok()?.into_iter().map(pick).collect::<Option<_>>()?)
}

/// `ConstantOfShape` with an integer value.
pub(super) fn constant_of_shape(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let n = count(shapes)?;
    let value = super::Fact::of_tensor(c.op.attrs.tensor("value")?).contents?.first()?.clone();
    single(vec![value; n])
}

/// `Range` of integers in numbers.
pub(super) fn range(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let n = count(shapes)?;
    let first = |i: usize| c.contents(i).ok()?.first().cloned().flatten();
    let (start, delta) = (first(0)?, first(2)?);
    single((0..n).map(|i| start.add(&delta.times(i as i64)?)).collect())
}

/// `Expand` and `Tile` of one element.
pub(super) fn repeat(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let n = count(shapes)?;
    match c.contents(0).ok()?.as_slice() {
        [one] => single(vec![one.clone(); n]),
        many if many.len() == n => single(many.to_vec()),
        _ => None,
    }
}

/// `ReduceProd`, `ReduceSum`, `ReduceMax`, `ReduceMin` of a whole vector.
pub(super) fn reduce(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let x = c.contents(0).ok()?;
    if count(shapes)? != 1 || c.shape(0).ok()?.len() > 1 {
        return None;
    }
    let all: Vec<&DimExpr> = x.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let numbers = || all.iter().map(|e| e.as_const()).collect::<Option<Vec<i64>>>();
    single(vec![Some(match c.op.op.op_type.as_str() {
        "ReduceProd" => ctx::product(all)?,
        "ReduceSum" => all.into_iter().try_fold(DimExpr::from(0), |s, d| s.add(d))?,
        "ReduceMax" => numbers()?.into_iter().max()?.into(),
        "ReduceMin" => numbers()?.into_iter().min()?.into(),
        _ => return None,
    })])
}

/// Elementwise arithmetic, comparison and logic, with broadcasting.
pub(super) fn elementwise(c: &Ctx, shapes: &[Option<Shape>]) -> Option<Vec<Option<Contents>>> {
    let n = count(shapes)?;
    let out = sizes(shapes.first()?.as_ref()?)?;
    let inputs: Vec<(&Contents, Vec<usize>)> =
        (0..c.arity()).map(|i| Some((c.contents(i).ok()?, sizes(c.shape(i).ok()?)?))).collect::<Option<_>>()?;
    let f = function(&c.op.op.op_type, c.op.attrs.int("fmod").unwrap_or(0) != 0)?;
    let element = |index: usize| -> Element {
        let args: Vec<Element> =
            inputs.iter().map(|(v, shape)| v.get(broadcast_index(index, &out, shape)).cloned().flatten()).collect();
        f(&args)
    };
    single((0..n).map(element).collect())
}

/// The row-major index into a broadcast operand for a row-major index into the result.
fn broadcast_index(mut index: usize, out: &[usize], operand: &[usize]) -> usize {
    let (mut at, mut stride) = (0, 1);
    for (i, &n) in out.iter().rev().enumerate() {
        let coordinate = index % n.max(1);
        index /= n.max(1);
        if let Some(&m) = operand.len().checked_sub(i + 1).and_then(|k| operand.get(k)) {
            at += if m == 1 { 0 } else { coordinate * stride };
            stride *= m;
        }
    }
    at
}

fn flag(b: Option<bool>) -> Element {
    b.map(|b| i64::from(b).into())
}

fn truth(e: &Element) -> Option<bool> {
    e.as_ref()?.equals(&0.into()).map(|zero| !zero)
}

fn function(op: &str, fmod: bool) -> Option<fn(&[Element]) -> Element> {
    fn two(args: &[Element], f: impl Fn(&DimExpr, &DimExpr) -> Element) -> Element {
        match args {
            [Some(a), Some(b)] => f(a, b),
            _ => None,
        }
    }
    fn fold(args: &[Element], f: impl Fn(&DimExpr, &DimExpr) -> Element) -> Element {
        let (first, rest) = args.split_first()?;
        rest.iter().try_fold(first.clone()?, |a, b| f(&a, b.as_ref()?))
    }
    Some(match op {
        "Add" => |a| two(a, DimExpr::add),
        "Sub" => |a| two(a, DimExpr::sub),
        "Mul" => |a| two(a, DimExpr::mul),
        "Div" => |a| two(a, quotient),
        "Mod" if !fmod => |a| two(a, |x, y| x.modulo(y.as_const()?)),
        "Neg" => |a| a.first()?.as_ref()?.neg(),
        "Abs" => |a| {
            let x = a.first()?.as_ref()?;
            if x.at_least(0) { Some(x.clone()) } else { x.as_const()?.checked_abs().map(DimExpr::from) }
        },
        "Sum" => |a| fold(a, DimExpr::add),
        "Max" => |a| fold(a, |x, y| x.less(y).map(|less| if less { y.clone() } else { x.clone() })),
        "Min" => |a| fold(a, |x, y| x.less(y).map(|less| if less { x.clone() } else { y.clone() })),
        "Equal" => |a| two(a, |x, y| flag(x.equals(y))),
        "Less" => |a| two(a, |x, y| flag(x.less(y))),
        "Greater" => |a| two(a, |x, y| flag(y.less(x))),
        "LessOrEqual" => |a| two(a, |x, y| flag(y.less(x).map(|v| !v))),
        "GreaterOrEqual" => |a| two(a, |x, y| flag(x.less(y).map(|v| !v))),
        "Not" => |a| flag(truth(a.first()?).map(|v| !v)),
        "And" => |a| flag(a.iter().map(truth).try_fold(true, |s, v| Some(s & v?))),
        "Or" => |a| flag(a.iter().map(truth).try_fold(false, |s, v| Some(s | v?))),
        "Where" => |a| match a {
            [cond, yes, no] => match truth(cond) {
                Some(true) => yes.clone(),
                Some(false) => no.clone(),
                None if yes == no => yes.clone(),
                None => None,
            },
            _ => None,
        },
        _ => return None,
    })
}

/// Integer division, which truncates toward zero.
fn quotient(x: &DimExpr, y: &DimExpr) -> Element {
    match (x.as_const(), y.as_const()) {
        (Some(a), Some(b)) => a.checked_div(b).map(DimExpr::from),
        (None, Some(b)) if x.at_least(0) => x.floor_div(b),
        (None, None) if y.at_least(1) => x.div_exact(y),
        _ => None,
    }
}
