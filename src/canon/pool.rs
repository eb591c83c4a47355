//! A mean over an image's rows and columns is a pool, which integer runtimes have; a pool that rounds its size up is one with
//! more padding, which every runtime has.

use crate::ir::{AttrValue, DType, NewOp, Value};
use crate::pattern::{Facts, Match, Rule, any_of, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let rounded_up = any_of([op("AveragePool", [var("x")]), op("MaxPool", [var("x")])]);
    let padded = Rule::new("pool-rounds-down", "", rounded_up, check_rounded_up, |edit, m, pads| {
        let (root, name) = (m.root(), edit.value_name(m.root()).to_owned());
        let Some(op) = edit.op(root.node).cloned() else { return root };
        let new = NewOp::std(&op.op.op_type, &name).inputs([m.value("x")]).attrs(op.attrs);
        edit.add(root.node, new.attr("ceil_mode", AttrValue::Int(0)).attr("pads", AttrValue::Ints(pads)))
    });
    let pool = Rule::new("mean-as-pool", "", op("ReduceMean", [var("x")]).form("ReduceMean"), check, |edit, m, ()| {
        let name = edit.value_name(m.root()).to_owned();
        edit.add(m.root().node, NewOp::std("GlobalAveragePool", &name).inputs([m.value("x")]))
    });
    vec![pool, padded]
}

/// The pads with which a pool that rounds down has the windows of one that rounds up. Padding neither counts in a mean nor
/// is a maximum.
fn check_rounded_up(facts: Facts<'_>, m: &Match) -> Result<Vec<i64>, String> {
    let op = facts.graph.op(m.root().node).ok_or("an operator expected")?;
    let outputs = facts.graph.get(m.root().node).map_or(0, |n| n.outputs.len());
    let kernel = op.attrs.ints("kernel_shape").unwrap_or_default();
    let of = |name: &str, n: usize, default| op.attrs.ints(name).map_or_else(|| vec![default; n], <[i64]>::to_vec);
    let (n, ceil) = (kernel.len(), op.attrs.int("ceil_mode").unwrap_or(0) != 0);
    let explicit = op.attrs.str("auto_pad").is_none_or(|p| p == "NOTSET");
    if !ceil || outputs != 1 || !explicit || of("dilations", n, 1).iter().any(|&d| d != 1) {
        return Err("a pool with ceil_mode = 1, explicit pads and no dilation expected".to_owned());
    }
    let (strides, mut pads) = (of("strides", n, 1), of("pads", 2 * n, 0));
    let shape = facts.shapes.shape(m.value("x")).ok_or("a known shape expected")?;
    // What no real pool has would overflow.
    let sane = |v: &[i64]| v.iter().all(|&n| (0..1 << 24).contains(&n));
    if strides.len() != n || pads.len() != 2 * n || !sane(kernel) || !sane(&strides) || !sane(&pads) {
        return Err("as many strides as the kernel has axes, and twice as many pads, expected".to_owned());
    }
    for i in 0..n {
        let size =
            shape.get(2 + i).and_then(|d| d.as_const()).filter(|&n| n < 1 << 32).ok_or("known rows and columns expected")?;
        let (begin, end) = (pads[i], pads[n + i]);
        let (stride, kernel) = (strides[i].max(1), kernel[i]);
        let mut windows = (size + begin + end - kernel + stride - 1).div_euclid(stride) + 1;
        if (windows - 1) * stride >= size + begin {
            // No window begins behind the image.
            windows -= 1;
        }
        let more = ((windows - 1) * stride + kernel - (size + begin + end)).max(0);
        if more > 0 && op.attrs.int("count_include_pad").unwrap_or(0) != 0 {
            return Err("padding that does not count expected".to_owned());
        }
        pads[n + i] += more;
    }
    Ok(pads)
}

/// Axes 2 and 3 of four, kept with size 1.
fn check(facts: Facts<'_>, m: &Match) -> Result<(), String> {
    let id = m.root().node;
    let op = facts.graph.op(id).ok_or("an operator expected")?;
    if facts.shapes.dtype(m.value("x")).is_some_and(|d| d != DType::F32) {
        return Err("a mean of float32 values expected".to_owned());
    }
    if op.attrs.int("keepdims").unwrap_or(1) != 1 {
        return Err("ReduceMean with keepdims = 1 expected".to_owned());
    }
    let axes = |v: Value| facts.graph.constant(v).and_then(|t| t.to_i64().ok());
    let axes = op.attrs.ints("axes").map(<[i64]>::to_vec).or_else(|| axes(facts.graph.input(id, 1)?)).unwrap_or_default();
    let mut axes: Vec<i64> = axes.into_iter().map(|a| if a < 0 { a + 4 } else { a }).collect();
    axes.sort_unstable();
    match facts.rank(Some(m.value("x"))) {
        Some(4) if axes == [2, 3] => Ok(()),
        rank => Err(format!("a mean over axes 2 and 3 of 4 expected, found {axes:?} of {rank:?}")),
    }
}
