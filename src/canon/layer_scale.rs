//! LayerScale (Touvron et al., "Going deeper with image transformers", eq. 4): the factor of each channel of a residual
//! branch goes into the Linear before it, or into γ and β of a LayerNorm there.

use super::weights;
use crate::ir::{NewOp, Tensor};
use crate::pattern::{Facts, Match, Rule, any_of, commute, konst, op, var};

pub(super) fn rules() -> Vec<Rule> {
    let product = op("MatMul", [var("x"), konst("w")]).named("product");
    let normed = op("LayerNormalization", [var("x"), konst("w"), konst("bias")]).named("norm");
    let linear = any_of([op("Add", [product.clone(), konst("bias")]), product, normed]).named("linear");
    vec![Rule::new("layer-scale", "", commute("Mul", linear, konst("gamma")).form("LayerScale"), check, |edit, m, (w, bias)| {
        let (root, anchor) = (m.root(), m.root().node);
        let name = edit.value_name(root).to_owned();
        let init = |edit: &mut crate::ir::Edit<'_>, old: &str, tensor| {
            let stem = format!("{}.scaled", edit.value_name(m.value(old)));
            edit.add_init(anchor, &stem, tensor)
        };
        let w = init(edit, "w", w);
        if let (Some(norm), Some(bias)) = (m.get("norm"), &bias) {
            let bias = init(edit, "bias", bias.clone());
            let attrs = edit.op(norm.node).map(|o| o.attrs.clone()).unwrap_or_default();
            return edit.add(anchor, NewOp::std("LayerNormalization", &name).inputs([m.value("x"), w, bias]).attrs(attrs));
        }
        let product = edit.add(anchor, NewOp::std("MatMul", &format!("{name}_matmul")).inputs([m.value("x"), w]));
        match bias {
            None => product,
            Some(bias) => {
                let bias = init(edit, "bias", bias);
                edit.add(anchor, NewOp::std("Add", &format!("{name}_bias")).inputs([product, bias]))
            }
        }
    })]
}

/// Factors one a column of the weights, and a Linear that nothing else reads: it would have to be kept beside its scaled copy.
fn check(facts: Facts<'_>, m: &Match) -> Result<(Tensor, Option<Tensor>), String> {
    let g = facts.graph;
    for value in ["product", "linear"].iter().filter_map(|name| m.get(name)) {
        if g.use_count(value) != 1 {
            return Err(format!("'{}' to be read once expected, so that it can be scaled", g.value_name(value)));
        }
    }
    facts.same_shape(m, "linear")?;
    let (gamma, w) = (g.constant(m.value("gamma")), g.constant(m.value("w")));
    let (gamma, w) = (gamma.ok_or("a constant factor expected")?, w.ok_or("constant weights expected")?);
    let width = match (&w.shape[..], m.get("norm")) {
        (&[_, width], None) | (&[width], Some(_)) => width,
        _ => return Err(format!("weights [in, out], or a LayerNorm's [channels], expected, found {:?}", w.shape)),
    };
    if gamma.len() != width || gamma.shape.last() != Some(&width) {
        return Err(format!("a factor for each of {width} channels expected, found a constant of shape {:?}", gamma.shape));
    }
    let text = |e: crate::ir::TensorError| e.to_string();
    let gamma = gamma.to_vec::<f32>().map_err(text)?;
    let bias = m.get("bias").and_then(|b| g.constant(b));
    if let Some(bias) = bias.filter(|b| b.shape != [width]) {
        return Err(format!("a bias of {width} elements expected, found shape {:?}", bias.shape));
    }
    let bias = bias.map(|b| weights::scaled_columns(b, &gamma)).transpose().map_err(text)?;
    Ok((weights::scaled_columns(w, &gamma).map_err(text)?, bias))
}
