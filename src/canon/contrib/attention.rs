//! `Attention` and `MultiHeadAttention` of onnxruntime.

use super::{Parts, biased, first_output, int, microsoft, number, without};
use crate::canon::weights;
use crate::ir::{Edit, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, konst, var};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "packed-attention",
            "com.microsoft.Attention",
            microsoft("Attention", [var("x"), konst("w")]),
            check_packed,
            build_packed,
        ),
        Rule::new(
            "multi-head-attention",
            "com.microsoft.MultiHeadAttention",
            microsoft("MultiHeadAttention", [var("q"), var("k"), var("v")]),
            check_multi_head,
            build_multi_head,
        ),
    ]
}

/// What q·kᵀ is divided by is the root of the head width, unless an attribute says otherwise.
fn scale(facts: Facts<'_>, m: &Match, width: i64) -> Result<f32, String> {
    match number(facts, m, "scale").filter(|&s| s != 0.0) {
        Some(scale) => Ok(scale),
        None if width > 0 => Ok((1.0 / (width as f64).sqrt()) as f32),
        None => Err("a known head width expected, to know the scale".to_owned()),
    }
}

fn plain(facts: Facts<'_>, m: &Match) -> Result<i64, String> {
    first_output(m)?;
    for flag in ["unidirectional", "do_rotary"] {
        if int(facts, m, flag).unwrap_or(0) != 0 {
            return Err(format!("{flag} = 0 expected"));
        }
    }
    let outputs = facts.graph.get(m.root().node).map_or(0, |n| n.outputs.len()) as u32;
    if (1..outputs).any(|port| facts.graph.use_count(Value { port, ..m.root() }) > 0) {
        return Err("no reader of the present keys and values expected".to_owned());
    }
    int(facts, m, "num_heads").filter(|&h| h > 0).ok_or_else(|| "num_heads expected".to_owned())
}

/// One of q, k, v of an `Attention`: its share of the weights and biases.
struct Part {
    weights: Tensor,
    bias: Option<Tensor>,
    head_dim: i64,
}

struct Packed {
    heads: i64,
    parts: [Part; 3],
    scale: f32,
}

fn check_packed(facts: Facts<'_>, m: &Match) -> Result<Packed, String> {
    let heads = plain(facts, m)?;
    without(facts, m, &[(3, "mask"), (4, "past keys and values"), (6, "length of past keys and values")])?;
    let g = facts.graph;
    let w = g.constant(m.value("w")).filter(|t| t.shape.len() == 2).ok_or("weights [in, q + k + v] expected")?;
    let joint = w.shape.last().copied().unwrap_or(0);
    let bias = match g.input(m.root().node, 2) {
        Some(b) => Some(g.constant(b).filter(|t| t.shape == [joint]).ok_or("a constant bias [q + k + v] expected")?),
        None => None,
    };
    let sizes: Vec<usize> = match g.op(m.root().node).and_then(|o| o.attrs.ints("qkv_hidden_sizes")) {
        Some(sizes) if !sizes.is_empty() => sizes.iter().map(|&s| usize::try_from(s).unwrap_or(0)).collect(),
        _ => vec![joint / 3; 3],
    };
    let divided = |n: usize| i64::try_from(n).ok().filter(|&n| n > 0 && n % heads == 0).map(|n| n / heads);
    let known = sizes.len() == 3 && sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) == Some(joint);
    let widths: Vec<i64> = sizes.iter().filter_map(|&n| divided(n)).collect();
    let [Some(q), Some(k), Some(v)] = [0, 1, 2].map(|i| widths.get(i).copied().filter(|_| known)) else {
        return Err(format!(
            "sizes of q, k and v that divide into {heads} heads and add up to {joint} expected, found {sizes:?}"
        ));
    };
    let part = |i: usize, head_dim: i64| -> Result<Part, String> {
        let (from, width) = (sizes.iter().take(i).sum(), sizes.get(i).copied().unwrap_or(0));
        let cut = |t: &Tensor| weights::columns(t, from, width).map_err(|e| e.to_string());
        Ok(Part { weights: cut(w)?, bias: bias.map(cut).transpose()?, head_dim })
    };
    Ok(Packed { heads, parts: [part(0, q)?, part(1, k)?, part(2, v)?], scale: scale(facts, m, q)? })
}

fn build_packed(edit: &mut Edit<'_>, m: &Match, packed: Packed) -> Value {
    let mut parts = Parts::of(edit, m);
    let w_name = parts.edit.value_name(m.value("w")).to_owned();
    let mut names = ["q", "k", "v"].into_iter();
    let qkv = packed.parts.map(|part| {
        let name = names.next().unwrap_or_default();
        let w = parts.edit.add_init(parts.at, &format!("{w_name}.{name}"), part.weights);
        let mut linear = parts.op(&format!("{name}_product"), "MatMul", &[m.value("x"), w]);
        if let Some(bias) = part.bias {
            let b = parts.constant(&format!("{name}_bias"), bias);
            linear = parts.op(name, "Add", &[linear, b]);
        }
        heads_first(&mut parts, name, linear, [0, 0, packed.heads, part.head_dim])
    });
    let bias = parts.input(5);
    attend(&mut parts, qkv, packed.scale, bias)
}

/// `[batch, tokens, heads · width]` as `[batch, heads, tokens, width]`.
fn heads_first(parts: &mut Parts<'_, '_>, name: &str, x: Value, shape: [i64; 4]) -> Value {
    let shape = parts.constant(&format!("{name}_shape"), Tensor::vector(&shape));
    let heads = parts.op(&format!("{name}_heads"), "Reshape", &[x, shape]);
    parts.transpose(&format!("{name}_heads_first"), heads, &[0, 2, 1, 3])
}

/// softmax(q·kᵀ · scale + bias) · v with the heads joined again.
fn attend(parts: &mut Parts<'_, '_>, [q, k, v]: [Value; 3], scale: f32, bias: Option<Value>) -> Value {
    let kt = parts.transpose("k_transposed", k, &[0, 1, 3, 2]);
    let scores = parts.op("scores", "MatMul", &[q, kt]);
    let scaled = parts.times("scaled", scores, scale);
    let scores = biased(parts, "biased", scaled, bias);
    let p = parts.softmax("softmax", scores);
    let context = parts.op("context", "MatMul", &[p, v]);
    let back = parts.transpose("context_back", context, &[0, 2, 1, 3]);
    let shape = parts.constant("joined_shape", Tensor::vector(&[0i64, 0, -1]));
    parts.op("", "Reshape", &[back, shape])
}

struct MultiHead {
    heads: i64,
    scale: f32,
    /// The shares of q, k and v in the bias.
    biases: Option<[Tensor; 3]>,
    /// Whether k and v come as `[batch, heads, tokens, width]`.
    split: bool,
}

fn check_multi_head(facts: Facts<'_>, m: &Match) -> Result<MultiHead, String> {
    let heads = plain(facts, m)?;
    without(facts, m, &[(4, "key padding mask"), (6, "past keys"), (7, "past values"), (8, "length of past keys and values")])?;
    let ranks = ["q", "k", "v"].map(|name| facts.rank(Some(m.value(name))));
    let split = match ranks {
        [Some(3), Some(3), Some(3)] => false,
        [Some(3), Some(4), Some(4)] => true,
        _ => return Err(format!("q, k and v [batch, tokens, width] each expected, found ranks {ranks:?}")),
    };
    let width = |name: &str| facts.last_dim(m.value(name)).ok_or_else(|| format!("a known width of {name} expected"));
    let (q, v) = (width("q")?, width("v")?);
    let v = if split { v.saturating_mul(usize::try_from(heads).unwrap_or(0)) } else { v };
    let biases = match facts.graph.input(m.root().node, 3) {
        None => None,
        Some(b) => {
            let b = facts.graph.constant(b).filter(|t| t.shape == [2 * q + v]).ok_or("a constant bias [q + k + v] expected")?;
            let cut = |from, width| weights::columns(b, from, width).map_err(|e| e.to_string());
            Some([cut(0, q)?, cut(q, q)?, cut(2 * q, v)?])
        }
    };
    let head_dim = i64::try_from(q).ok().filter(|n| n % heads == 0).map_or(0, |n| n / heads);
    Ok(MultiHead { heads, scale: scale(facts, m, head_dim)?, biases, split })
}

fn build_multi_head(edit: &mut Edit<'_>, m: &Match, a: MultiHead) -> Value {
    let mut parts = Parts::of(edit, m);
    let mut biases = a.biases.map_or([None, None, None], |b| b.map(Some)).into_iter();
    let qkv = ["q", "k", "v"].map(|name| {
        let mut x = m.value(name);
        let bias = biases.next().flatten();
        if a.split && name != "q" {
            return match bias {
                None => x,
                Some(b) => {
                    // The bias of [heads · width] beside [batch, heads, tokens, width].
                    let width = b.len() / usize::try_from(a.heads).unwrap_or(1).max(1);
                    let shaped = b.reshaped(&[usize::try_from(a.heads).unwrap_or(1), 1, width]).unwrap_or(b);
                    let b = parts.constant(&format!("{name}_bias"), shaped);
                    parts.op(name, "Add", &[x, b])
                }
            };
        }
        if let Some(bias) = bias {
            let b = parts.constant(&format!("{name}_bias"), bias);
            x = parts.op(name, "Add", &[x, b]);
        }
        heads_first(&mut parts, name, x, [0, 0, a.heads, -1])
    });
    let bias = parts.input(5);
    attend(&mut parts, qkv, a.scale, bias)
}
