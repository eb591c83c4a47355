//! A Linear whose output is cut into parts becomes a Linear for each: gate and value of a GLU, q, k, v and the MLP of a block
//! whose branches share one projection.

use super::weights;
use crate::ir::{Graph, NewOp, NodeId, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, any_of, konst, op, scalar, var};

pub(super) fn rules() -> Vec<Rule> {
    let linear = || {
        let product = op("MatMul", [var("x"), konst("w")]);
        any_of([op("Add", [product.clone(), konst("bias")]), product]).named("linear")
    };
    let part = any_of([
        op("Split", [linear()]).form("Split"),
        op("Slice", [linear(), scalar("start"), scalar("end"), scalar("axis")]).form("Slice").named("slice"),
    ]);
    vec![Rule::new("separate-linears", "", part, check, |edit, m, (from, w, bias)| {
        let at = m.root().node;
        let (linear, old) = (edit.value_name(m.value("linear")).to_owned(), edit.value_name(m.value("w")).to_owned());
        let name = |what: &str| format!("{linear}.{from}{what}");
        let w = edit.add_init(at, &format!("{old}.{from}"), w);
        let stem = name(if bias.is_some() { "_matmul" } else { "" });
        let product = edit.add(at, NewOp::std("MatMul", &stem).inputs([m.value("x"), w]));
        match bias {
            None => product,
            Some(bias) => {
                let bias = edit.add_init(at, &name("_bias"), bias);
                edit.add(at, NewOp::std("Add", &name("")).inputs([product, bias]))
            }
        }
    })]
}

type Part = (usize, Tensor, Option<Tensor>);

fn check(facts: Facts<'_>, m: &Match) -> Result<Part, String> {
    let g = facts.graph;
    let linear = m.value("linear");
    let cut = |id: NodeId| g.is_op(id, "Split") || g.is_op(id, "Slice");
    // Were the whole read too, it would be computed twice.
    if g.is_output(linear) || !g.uses(linear).iter().all(|u| u.port == 0 && cut(u.node)) {
        return Err(format!("'{}' to be read in parts only expected", g.value_name(linear)));
    }
    let w = g.constant(m.value("w")).filter(|w| w.shape.len() == 2).ok_or("weights [in, out] expected")?;
    let columns = w.shape[1];
    let rank = facts.rank(Some(linear)).ok_or("a known rank expected")? as i64;
    let (from, width) = match m.get("slice") {
        Some(slice) => sliced(g, m, slice, columns, rank),
        None => split(g, m.root(), columns, rank),
    }
    .ok_or("parts of the last axis at constant places expected")?;
    let text = |e: crate::ir::TensorError| e.to_string();
    let bias = m.get("bias").and_then(|b| g.constant(b));
    if let Some(bias) = bias.filter(|b| b.shape != [columns]) {
        return Err(format!("a bias of {columns} elements expected, found shape {:?}", bias.shape));
    }
    let bias = bias.map(|b| weights::columns(b, from, width)).transpose().map_err(text)?;
    Ok((from, weights::columns(w, from, width).map_err(text)?, bias))
}

fn ints(g: &Graph, v: Option<Value>) -> Option<Vec<i64>> {
    g.constant(v?)?.to_i64().ok()
}

/// Where a part that a Split makes begins, and its width.
fn split(g: &Graph, part: Value, columns: usize, rank: i64) -> Option<(usize, usize)> {
    let axis = g.op(part.node)?.attrs.int("axis").unwrap_or(0);
    let parts = g.get(part.node)?.outputs.len();
    let sizes: Vec<usize> = match g.input(part.node, 1) {
        Some(sizes) => ints(g, Some(sizes))?.into_iter().map(|n| usize::try_from(n).ok()).collect::<Option<_>>()?,
        // The last part of an uneven Split is smaller.
        None => {
            let size = columns.div_ceil(parts.max(1));
            (0..parts).map(|i| size.min(columns.saturating_sub(i * size))).collect()
        }
    };
    let last = axis == -1 || axis == rank - 1;
    let whole = sizes.iter().copied().try_fold(0usize, usize::checked_add) == Some(columns);
    let at = part.port as usize;
    (last && whole && sizes.len() == parts).then(|| (sizes[..at].iter().sum(), sizes[at]))
}

/// Where a part that a Slice picks begins, and its width.
fn sliced(g: &Graph, m: &Match, slice: Value, columns: usize, rank: i64) -> Option<(usize, usize)> {
    let one = |name: &str| ints(g, m.get(name))?.first().copied();
    let step = g.input(slice.node, 4).map_or(Some(1), |v| ints(g, Some(v))?.first().copied());
    let width = i64::try_from(columns).ok()?;
    let place = |i: i64| if i < 0 { i.saturating_add(width).max(0) } else { i.min(width) };
    let (axis, from, to) = (one("axis")?, place(one("start")?), place(one("end")?));
    let last = axis == -1 || axis == rank - 1;
    let from_to = (usize::try_from(from).ok()?, usize::try_from(to - from).ok().filter(|&n| n > 0)?);
    (last && step == Some(1)).then_some(from_to)
}
