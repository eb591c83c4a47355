//! Attention: `Attention` taken apart, one selection of q, k and v, one scale.

use super::weights;
use crate::ir::{AttrValue, DType, Edit, Graph, NewOp, NodeId, Op, Tensor, Use, Value};
use crate::pattern::{Facts, Match, Pat, Rule, any_of, chain, commute, constant, konst, op, rest, scalar, var};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "attention-op",
            "Attention",
            op("Attention", [var("q"), var("k"), var("v")]).form("Attention"),
            check_attention_op,
            build_attention_op,
        ),
        Rule::new("scale-out-of-scores", "", scaled_operand(), different_operands, build_scale_after_matmul),
        Rule::new(
            "scale-out-of-transpose",
            "",
            op("Transpose", [times_scalar(var("x")).form("Mul before Transpose").named("factor")]).named("t"),
            factor,
            build_scale_after_transpose,
        ),
        Rule::new("merge-scales", "", times_scalar_as(times_scalar(product()), "c2"), two_factors, build_scale),
        Rule::new("scale-as-mul", "", op("Div", [product(), scalar("c")]).form("Div on scores"), divisor, build_scale),
        Rule::new(
            "squeeze-before-transpose",
            "",
            op("Squeeze", [op("Transpose", [var("x")]).named("t"), konst("axes")]),
            squeezed_transpose,
            build_squeezed_transpose,
        ),
        Rule::new("separate-qkv", "Split", selection(), check_selection, build_selection),
        Rule::new("fold-scale-into-q", "", scaled_scores(), check_scaled_scores, build_scaled_scores),
        Rule::new(
            "fold-scale-into-query",
            "",
            op("Mul", [op("MatMul", [konst("query"), var("kt")]), scalar("c")]),
            check_scaled_query,
            |edit, m, query| {
                let (at, name) = (m.root().node, edit.value_name(m.root()).to_owned());
                let query = edit.add_init(at, &format!("{name}_query"), query);
                edit.add(at, NewOp::std("MatMul", &name).inputs([query, m.value("kt")]))
            },
        ),
    ]
}

/// Products of two activations.
fn product() -> Pat {
    op("MatMul", [var("a"), var("b")]).named("product")
}

fn times_scalar(p: Pat) -> Pat {
    times_scalar_as(p, "c")
}

fn times_scalar_as(p: Pat, name: &'static str) -> Pat {
    commute("Mul", p, scalar(name))
}

fn constant_of(facts: Facts<'_>, m: &Match, name: &str) -> Result<f32, String> {
    let value = m.get(name).ok_or_else(|| format!("a factor {name} expected"))?;
    let float = facts.graph.constant(value).filter(|t| t.dtype == DType::F32).and_then(|t| t.scalar_f32());
    float.ok_or_else(|| "a float32 factor expected".to_owned())
}

fn perm_is(op: &Op, want: &[i64]) -> bool {
    op.attrs.ints("perm") == Some(want)
}

fn float(value: f32) -> Tensor {
    Tensor::scalar(value)
}

// `Attention` of opset 23: q, k, v [B, H, N, D], softmax(q·kᵀ · scale)·v.

fn check_attention_op(facts: Facts<'_>, m: &Match) -> Result<(f32, Option<Value>), String> {
    let id = m.root().node;
    let op = facts.graph.op(id).ok_or("an operator expected")?;
    let inputs = facts.graph.inputs_of(id).iter().filter(|v| v.is_some()).count();
    let mask = facts.graph.input(id, 3).filter(|&mask| !masks_nothing(facts, mask));
    let added = mask.is_none_or(|mask| facts.shapes.get(mask).and_then(|f| f.dtype) == Some(DType::F32));
    let expected = if facts.graph.input(id, 3).is_some() { 4 } else { 3 };
    let flag = |name: &str| op.attrs.int(name).unwrap_or(0) != 0;
    if inputs != expected || !added || flag("is_causal") || op.attrs.float("softcap").unwrap_or(0.0) != 0.0 || m.root().port != 0
    {
        return Err("Attention without past, causality, soft cap and a mask of truth values expected".to_owned());
    }
    let heads = |name: &str| op.attrs.int(name);
    if heads("q_num_heads").is_some() || heads("kv_num_heads").is_some() {
        return Err("Attention on [batch, heads, tokens, width] expected, found packed heads".to_owned());
    }
    let heads = |name: &str| facts.shapes.shape(m.value(name)).and_then(|s| s.get(1));
    if let (Some(q), Some(k)) = (heads("q"), heads("k"))
        && q != k
    {
        return Err(format!("as many heads of k and v as of q expected, found {k} and {q}"));
    }
    match op.attrs.float("scale") {
        Some(s) => Ok((s, mask)),
        None => facts
            .last_dim(m.value("q"))
            .map(|d| ((1.0 / (d as f64).sqrt()) as f32, mask))
            .ok_or_else(|| "a known head width expected, to know the scale".to_owned()),
    }
}

/// A mask of trues, or one of zeros that is added to the scores.
fn masks_nothing(facts: Facts<'_>, mask: Value) -> bool {
    let nothing = if facts.shapes.get(mask).and_then(|f| f.dtype) == Some(DType::Bool) { 1.0 } else { 0.0 };
    super::mask::uniform(facts.graph, mask) == Some(nothing)
}

fn build_attention_op(edit: &mut Edit<'_>, m: &Match, (scale, mask): (f32, Option<Value>)) -> Value {
    let at = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let stem = |part: &str| format!("{name}.{part}");
    let perm = AttrValue::Ints(vec![0, 1, 3, 2]);
    let kt = edit.add(at, NewOp::std("Transpose", &stem("k_transposed")).input(m.value("k")).attr("perm", perm));
    let scores = edit.add(at, NewOp::std("MatMul", &stem("scores")).inputs([m.value("q"), kt]));
    let c = edit.add_init(at, &stem("scale"), float(scale));
    let scaled = edit.add(at, NewOp::std("Mul", &stem("scaled")).inputs([scores, c]));
    let scaled = match mask {
        Some(mask) => edit.add(at, NewOp::std("Add", &stem("masked")).inputs([scaled, mask])),
        None => scaled,
    };
    let p = edit.add(at, NewOp::std("Softmax", &stem("softmax")).input(scaled).attr("axis", AttrValue::Int(-1)));
    edit.add(at, NewOp::std("MatMul", &name).inputs([p, m.value("v")]))
}

// Scales travel outwards until one sits between the scores and the softmax.

fn scaled_operand() -> Pat {
    let by = |p: Pat, [mul, div]: [&'static str; 2]| {
        any_of([times_scalar(p.clone()).form(mul), op("Div", [p, scalar("d")]).form(div)]).named("factor")
    };
    any_of([
        op("MatMul", [by(var("a"), ["Mul on q", "Div on q"]), var("b")]),
        op("MatMul", [var("a"), by(var("b"), ["Mul on k", "Div on k"])]),
    ])
}

fn different_operands(facts: Facts<'_>, m: &Match) -> Result<f32, String> {
    // A learnt query has heads of its own; weights are matrices.
    let weights = |name: &str| facts.graph.constant(m.value(name)).is_some_and(|t| t.shape.len() < 3);
    if weights("a") || weights("b") {
        return Err("a product of two activations expected".to_owned());
    }
    let rank = |v| facts.rank(Some(v));
    let factor = ["c", "d"].iter().find_map(|n| m.get(n)).and_then(rank);
    // A product of vectors drops dimensions that a factor might bring back.
    let operands = rank(m.value("a")).min(rank(m.value("b")));
    if rank(m.root()) > rank(m.value("a")).max(rank(m.value("b"))) || factor > operands {
        return Err("a factor of fewer dimensions than the product expected".to_owned());
    }
    match m.get("c") {
        Some(_) => constant_of(facts, m, "c"),
        None => constant_of(facts, m, "d").map(|d| 1.0 / d),
    }
}

fn build_scale_after_matmul(edit: &mut Edit<'_>, m: &Match, c: f32) -> Value {
    let at = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let new = like(edit, at, "MatMul", &format!("{name}_unscaled"));
    let product = edit.add(at, new.inputs([m.value("a"), m.value("b")]));
    scale(edit, m, product, c)
}

/// An operator in the place of another, whose name it takes over so that messages speak of what the file has.
fn like(edit: &Edit<'_>, old: NodeId, op_type: &str, output: &str) -> NewOp {
    let name = edit.op(old).map(|op| op.name.as_str()).filter(|n| !n.is_empty()).unwrap_or(output);
    NewOp::std(op_type, name).output(output)
}

/// The factor, behind what it was a part of.
fn scale(edit: &mut Edit<'_>, m: &Match, x: Value, c: f32) -> Value {
    let (at, name) = (m.root().node, edit.value_name(m.root()).to_owned());
    let from = m.get("factor").unwrap_or(m.root()).node;
    let new = like(edit, from, "Mul", &format!("{name}_scaled"));
    let c = edit.add_init(at, &format!("{name}_scale"), float(c));
    edit.add(at, new.inputs([x, c]))
}

fn factor(facts: Facts<'_>, m: &Match) -> Result<f32, String> {
    facts.same_shape(m, "x")?;
    constant_of(facts, m, "c")
}

fn build_scale_after_transpose(edit: &mut Edit<'_>, m: &Match, c: f32) -> Value {
    let at = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let attrs = edit.op(at).map(|o| o.attrs.clone()).unwrap_or_default();
    let new = like(edit, at, "Transpose", &format!("{name}_unscaled"));
    let t = edit.add(at, new.input(m.value("x")).attrs(attrs));
    scale(edit, m, t, c)
}

fn two_factors(facts: Facts<'_>, m: &Match) -> Result<f32, String> {
    facts.same_shape(m, "product")?;
    // In f64, so that √s · √s gives back s.
    Ok((f64::from(constant_of(facts, m, "c")?) * f64::from(constant_of(facts, m, "c2")?)) as f32)
}

fn divisor(facts: Facts<'_>, m: &Match) -> Result<f32, String> {
    facts.same_shape(m, "product")?;
    constant_of(facts, m, "c").map(|c| 1.0 / c)
}

fn build_scale(edit: &mut Edit<'_>, m: &Match, c: f32) -> Value {
    scale(edit, m, m.value("product"), c)
}

// q, k or v picked from one joint Linear becomes a Linear of its own.

fn joint_linear() -> Pat {
    let product = || op("MatMul", [var("x"), konst("w")]);
    any_of([op("Add", [product(), konst("bias")]), product()]).named("joint")
}

/// From `[3, batch, heads, tokens, width]`, or as it is, `[batch, tokens, 3, heads, width]`: onnxruntime moves the
/// transposition behind the selection.
fn selection() -> Pat {
    let reshaped = || op("Reshape", [joint_linear(), konst("shape")]);
    let stacked = || any_of([op("Transpose", [reshaped()]).named("permuted"), reshaped()]);
    any_of([
        op("Gather", [stacked(), scalar("index")]).form("Gather").named("gather"),
        op("Squeeze", [op("Split", [stacked()]).form("Split").named("split"), konst("squeezed")]),
        op(
            "Squeeze",
            [
                op("Slice", [stacked(), scalar("start"), scalar("end"), scalar("axis")]).form("Slice").named("slice"),
                konst("squeezed"),
            ],
        ),
    ])
}

/// The axes to squeeze and the permutation when the squeeze comes first.
type Squeezed = (Vec<i64>, Vec<i64>);

fn squeezed_transpose(facts: Facts<'_>, m: &Match) -> Result<Squeezed, String> {
    let op = facts.graph.op(m.value("t").node).ok_or("an operator expected")?;
    let perm = op.attrs.ints("perm").ok_or("a permutation expected")?;
    let rank = perm.len() as i64;
    let axes = facts.graph.constant(m.value("axes")).and_then(|t| t.to_i64().ok()).ok_or("constant axes expected")?;
    let axes: Vec<usize> = axes.iter().filter_map(|&a| usize::try_from(if a < 0 { a + rank } else { a }).ok()).collect();
    let first: Vec<i64> = axes.iter().filter_map(|&a| perm.get(a).copied()).collect();
    if axes.is_empty() || first.len() != axes.len() {
        return Err("axes of the transposed value expected".to_owned());
    }
    let kept = perm.iter().filter(|p| !first.contains(p));
    Ok((first.clone(), kept.map(|p| p - first.iter().filter(|f| *f < p).count() as i64).collect()))
}

fn build_squeezed_transpose(edit: &mut Edit<'_>, m: &Match, (axes, perm): Squeezed) -> Value {
    let at = m.root().node;
    let name = edit.value_name(m.root()).to_owned();
    let axes = edit.add_init(at, &format!("{name}_axes"), Tensor::vector(&axes));
    let squeezed = edit.add(at, NewOp::std("Squeeze", &format!("{name}_squeezed")).inputs([m.value("x"), axes]));
    edit.add(at, NewOp::std("Transpose", &name).input(squeezed).attr("perm", AttrValue::Ints(perm)))
}

struct Selection {
    part: &'static str,
    /// Whether the selection gives `[batch, heads, tokens, width]` rather than `[batch, tokens, heads, width]`.
    heads_first: bool,
    /// `[batch, tokens, heads, width]`, with the first two as the joint Reshape has them.
    shape: [i64; 4],
    w: Tensor,
    bias: Option<Tensor>,
}

fn check_selection(facts: Facts<'_>, m: &Match) -> Result<Selection, String> {
    let g = facts.graph;
    let permuted = m.get("permuted");
    if let Some((at, op)) = permuted.and_then(|v| Some((v.node, g.op(v.node)?)))
        && !perm_is(op, &[2, 0, 3, 1, 4])
    {
        let found = op.attrs.ints("perm").unwrap_or_default();
        return Err(format!("perm [2, 0, 3, 1, 4] expected, found {found:?} at {}", g.describe(at)));
    }
    // The axis of q, k and v.
    let stack = if permuted.is_some() { 0 } else { 2 };
    let on_stack = |axis: i64| axis == stack || axis == stack - 5;
    let int = |name: &str| m.get(name).and_then(|v| g.constant(v)).and_then(|t| t.to_i64().ok()).and_then(|v| v.first().copied());
    if m.get("squeezed")
        .and_then(|v| g.constant(v))
        .is_some_and(|t| !matches!(t.to_i64().as_deref(), Ok([axis]) if on_stack(*axis)))
    {
        return Err(format!("Squeeze of axis {stack} expected"));
    }
    let shape = g.constant(m.value("shape")).and_then(|t| t.to_i64().ok()).unwrap_or_default();
    // q, k, v; or k and v alone, where the query comes from elsewhere.
    let [batch, tokens, count @ 2..=3, heads, head_dim] = shape[..] else {
        return Err(format!("Reshape to [batch, tokens, 3, heads, width] expected, found {shape:?}"));
    };
    let names: &[&'static str] = if count == 3 { &["q", "k", "v"] } else { &["k", "v"] };
    let parts = names.len();
    let index = if let Some(gather) = m.get("gather") {
        if m.get("index").and_then(|v| g.constant(v)).is_none_or(|t| !t.shape.is_empty()) {
            return Err("Gather of a single index, which drops the axis, expected".to_owned());
        }
        if !on_stack(g.op(gather.node).and_then(|o| o.attrs.int("axis")).unwrap_or(0)) {
            return Err(format!("Gather on axis {stack} expected"));
        }
        int("index")
    } else if let Some(split) = m.get("split") {
        if !on_stack(g.op(split.node).and_then(|o| o.attrs.int("axis")).unwrap_or(0))
            || g.get(split.node).map(|n| n.outputs.len()) != Some(parts)
        {
            return Err(format!("Split in {parts} on axis {stack} expected"));
        }
        Some(i64::from(split.port))
    } else {
        sliced(g, m, count, int, on_stack)
    };
    let index = index.and_then(|i| usize::try_from(if i < 0 { i + count } else { i }).ok()).filter(|&i| i < parts);
    let picker = ["gather", "split", "slice"].iter().find_map(|name| m.get(name)).unwrap_or(m.root());
    let picks = || format!("one of q, k, v, picked at a constant place of axis 0, expected, found {}", g.describe(picker.node));
    let index = index.ok_or_else(picks)?;
    let w = g.constant(m.value("w")).ok_or("constant weights expected")?;
    // One of the two may be left to be computed.
    let part = w.shape.get(1).and_then(|&n| i64::try_from(n / parts).ok()).unwrap_or(0);
    let (heads, head_dim) = match (heads, head_dim) {
        (-1, d) if d > 0 => (part / d, d),
        (h, -1) if h > 0 => (h, part / h),
        known => known,
    };
    let width = heads.checked_mul(head_dim).and_then(|w| usize::try_from(w).ok()).unwrap_or(0);
    let joint = width.checked_mul(parts).filter(|&n| n > 0);
    if joint.is_none() || w.shape.len() != 2 || w.shape.get(1).copied() != joint {
        return Err(format!("weights [in, {parts} × {heads} × {head_dim}] expected, found {:?}", w.shape));
    }
    let text = |e: crate::ir::TensorError| e.to_string();
    let bias = m.get("bias").and_then(|b| g.constant(b));
    Ok(Selection {
        part: names[index],
        heads_first: permuted.is_some(),
        shape: [batch, tokens, heads, head_dim],
        w: weights::columns(w, index * width, width).map_err(text)?,
        bias: bias.map(|b| weights::columns(b, index * width, width)).transpose().map_err(text)?,
    })
}

/// The index that a Slice of length one along the axis of `count` picks.
fn sliced(g: &Graph, m: &Match, count: i64, int: impl Fn(&str) -> Option<i64>, on_stack: impl Fn(i64) -> bool) -> Option<i64> {
    let steps = m.get("slice").and_then(|v| g.input(v.node, 4));
    let unit = steps.is_none_or(|v| g.constant(v).is_some_and(|t| t.to_i64().ok().as_deref() == Some(&[1])));
    let place = |i: i64| if i < 0 { i.saturating_add(count) } else { i.min(count) };
    let (start, end) = (place(int("start")?), place(int("end")?));
    (unit && int("axis").is_some_and(on_stack) && start + 1 == end).then_some(start)
}

fn build_selection(edit: &mut Edit<'_>, m: &Match, s: Selection) -> Value {
    let at = m.root().node;
    let joint = edit.value_name(m.value("joint")).to_owned();
    let w_name = edit.value_name(m.value("w")).to_owned();
    let name = |what: &str| format!("{joint}.{}{what}", s.part);
    let w = edit.add_init(at, &format!("{w_name}.{}", s.part), s.w);
    let mut linear =
        edit.add(at, NewOp::std("MatMul", &name(if s.bias.is_some() { "_matmul" } else { "" })).inputs([m.value("x"), w]));
    if let Some(bias) = s.bias {
        let b = edit.add_init(at, &name("_bias"), bias);
        linear = edit.add(at, NewOp::std("Add", &name("")).inputs([linear, b]));
    }
    let shape = edit.add_init(at, &name("_shape"), Tensor::vector(&s.shape));
    let heads = edit.add(at, NewOp::std("Reshape", &name("_heads")).inputs([linear, shape]));
    if !s.heads_first {
        return heads;
    }
    edit.add(at, NewOp::std("Transpose", &name("_heads_first")).input(heads).attr("perm", AttrValue::Ints(vec![0, 2, 1, 3])))
}

// The one scale goes into q's Linear, where it costs nothing and leaves q·kᵀ next to its quantiser.

fn scaled_scores() -> Pat {
    let product = op("MatMul", [var("x"), konst("w")]).named("product");
    let linear = any_of([op("Add", [product.clone(), konst("bias")]), product]).named("linear");
    // A LayerNormalization of q is scaled by its γ and β.
    let normed = op("LayerNormalization", [var("x"), konst("w"), konst("bias")]).named("linear");
    let rms_normed = op("RMSNormalization", [var("x"), konst("w")]).named("linear");
    // All that may lie between is linear in q: heads, a rotary embedding.
    let q = chain("path", linear_in_q(), any_of([linear, normed, rms_normed]));
    let scores = op("MatMul", [q, var("kt")]).named("scores");
    // Talking heads have transposed the scores before they are scaled.
    let moved = op("Transpose", [scores.clone()]).named("moved");
    op("Mul", [any_of([scores, moved]), scalar("c")]).form("Mul on scores")
}

/// Operators that a factor passes through.
fn linear_in_q() -> [Pat; 10] {
    [
        op("Reshape", [rest()]),
        op("Transpose", [rest()]),
        op("Unsqueeze", [rest()]),
        op("Squeeze", [rest()]),
        op("Slice", [rest()]),
        op("Split", [rest()]),
        op("Neg", [rest()]),
        commute("Mul", rest(), constant()),
        op("Concat", [rest(), rest()]),
        op("Add", [rest(), rest()]),
    ]
}

fn check_scaled_scores(facts: Facts<'_>, m: &Match) -> Result<(Tensor, Option<Tensor>), String> {
    let g = facts.graph;
    let inside: Vec<Value> = ["product", "linear"].iter().filter_map(|n| m.get(n)).chain(m.list("path")).collect();
    let scores = m.value("scores");
    // kᵀ may be q again: a product with itself would be scaled twice.
    let reader_inside = |u: &Use| (u.node == scores.node && u.port == 0) || inside.iter().any(|v| v.node == u.node);
    // Every part that a Split on the way makes, too: k and v may be others of the same.
    let ports = |id: NodeId| g.get(id).map_or(0, |n| n.outputs.len() as u32);
    let made = inside.iter().flat_map(|v| (0..ports(v.node)).map(|port| Value { node: v.node, port }));
    for value in made {
        let ours = inside.contains(&value) || g.use_count(value) == 0;
        if !ours || g.is_output(value) || !g.uses(value).iter().all(&reader_inside) {
            return Err(format!(
                "'{}' to be read for the scores only expected, so that q alone can be scaled",
                g.value_name(value)
            ));
        }
    }
    for value in [Some(scores), m.get("moved")].into_iter().flatten() {
        if g.use_count(value) != 1 {
            return Err(format!("'{}' to be read once expected, so that q alone can be scaled", g.value_name(value)));
        }
    }
    facts.same_shape(m, if m.get("moved").is_some() { "moved" } else { "scores" })?;
    let c = constant_of(facts, m, "c")?;
    let scaled = |name: &str| m.get(name).and_then(|v| g.constant(v)).map(|t| weights::scaled(t, c)).transpose();
    let w = scaled("w").map_err(|e| e.to_string())?.ok_or("constant weights expected")?;
    Ok((w, scaled("bias").map_err(|e| e.to_string())?))
}

/// A learnt query that a fixed batch has left constant, with its factor.
fn check_scaled_query(facts: Facts<'_>, m: &Match) -> Result<Tensor, String> {
    facts.same_shape(m, "kt")?;
    let query = facts.graph.constant(m.value("query")).filter(|t| t.shape.len() > 2).ok_or("a learnt query expected")?;
    weights::scaled(query, constant_of(facts, m, "c")?).map_err(|e| e.to_string())
}

fn build_scaled_scores(edit: &mut Edit<'_>, m: &Match, (w, bias): (Tensor, Option<Tensor>)) -> Value {
    let linear = m.value("linear");
    // The product of a Linear, or the LayerNormalization.
    let (at, bias_port) = m.get("product").map_or((linear.node, 2), |p| (p.node, 1));
    let replace = |edit: &mut Edit<'_>, node, port, old: Value, tensor| {
        let name = format!("{}.scaled", edit.value_name(old));
        if edit.use_count(old) == 1 {
            // Nothing else reads it: the unscaled copy goes at once, not only when the pass ends.
            edit.set_tensor(old.node, tensor);
            edit.rename(old, &name);
        } else {
            let new = edit.add_init(at, &name, tensor);
            edit.set_input(node, port, Some(new));
        }
    };
    replace(edit, at, 1, m.value("w"), w);
    if let Some(bias) = bias {
        replace(edit, linear.node, bias_port, m.value("bias"), bias);
    }
    // None of them is what the file called by its name any more.
    let mut values: Vec<Value> = m.get("product").into_iter().chain([linear]).chain(m.list("path")).collect();
    values.dedup();
    for value in values {
        let stem = format!("{}.scaled", edit.value_name(value));
        edit.rename(value, &stem);
    }
    m.get("moved").unwrap_or_else(|| m.value("scores"))
}
