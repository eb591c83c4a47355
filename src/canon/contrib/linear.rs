//! `FusedMatMul`, `FusedGemm` and `GemmFastGelu`.

use super::{Parts, biased, int, microsoft, number};
use crate::canon::weights;
use crate::ir::{AttrValue, DType, Edit, Tensor, Value};
use crate::pattern::{Facts, Match, Rule, any_of, var};

pub(super) fn rules() -> Vec<Rule> {
    let product = any_of([
        microsoft("FusedMatMul", [var("a"), var("b")]),
        // Its name in older releases.
        microsoft("TransposeMatMul", [var("a"), var("b")]),
    ]);
    vec![
        Rule::new("fused-matmul", "com.microsoft.FusedMatMul", product, check_matmul, build_matmul),
        Rule::new("fused-gemm", "com.microsoft.FusedGemm", microsoft("FusedGemm", [var("a"), var("b")]), check_gemm, build_gemm),
        Rule::new(
            "gemm-fast-gelu",
            "",
            microsoft("GemmFastGelu", [var("x"), var("w")]),
            |_, _| Ok(()),
            |edit, m, ()| {
                let mut parts = Parts::of(edit, m);
                let bias = parts.input(2);
                let product = parts.op("product", "MatMul", &[m.value("x"), m.value("w")]);
                let x = biased(&mut parts, "biased", product, bias);
                parts.gelu("", x, "tanh")
            },
        ),
    ]
}

/// An operand of a product: as it is, constant weights rearranged, or a transposition of its last two axes.
enum Operand {
    Same,
    Weights(Tensor),
    Transposed(Vec<i64>),
}

struct Product {
    a: Operand,
    b: Operand,
    /// What remains to be multiplied with the product.
    alpha: f32,
}

fn check_matmul(facts: Facts<'_>, m: &Match) -> Result<Product, String> {
    let flag = |name: &str| int(facts, m, name).unwrap_or(0) != 0;
    for name in ["transBatchA", "transBatchB"] {
        if flag(name) {
            return Err(format!("{name} = 0 expected"));
        }
    }
    let alpha = number(facts, m, "alpha").unwrap_or(1.0);
    let a = operand(facts, m, "a", flag("transA"))?;
    let text = |e: crate::ir::TensorError| e.to_string();
    let w = facts.graph.constant(m.value("b")).filter(|t| t.shape.len() == 2 && t.dtype == DType::F32);
    let Some(w) = w else { return Ok(Product { a, b: operand(facts, m, "b", flag("transB"))?, alpha }) };
    // The factor of a Linear belongs to its weights.
    let turned = if flag("transB") { weights::transpose(w).map_err(text)? } else { w.clone() };
    let b = match (flag("transB"), alpha) {
        (false, 1.0) => Operand::Same,
        (_, 1.0) => Operand::Weights(turned),
        _ => Operand::Weights(weights::scaled(&turned, alpha).map_err(text)?),
    };
    Ok(Product { a, b, alpha: 1.0 })
}

fn operand(facts: Facts<'_>, m: &Match, name: &str, transposed: bool) -> Result<Operand, String> {
    if !transposed {
        return Ok(Operand::Same);
    }
    let rank =
        facts.rank(Some(m.value(name))).ok_or_else(|| format!("a known rank of the transposed operand {name} expected"))?;
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    if rank < 2 {
        return Err(format!("a transposed operand {name} of two dimensions or more expected, found rank {rank}"));
    }
    perm.swap(rank - 2, rank - 1);
    Ok(Operand::Transposed(perm))
}

fn build_matmul(edit: &mut Edit<'_>, m: &Match, product: Product) -> Value {
    let mut parts = Parts::of(edit, m);
    let mut place = |operand: Operand, name: &str| match operand {
        Operand::Same => m.value(name),
        Operand::Weights(t) => {
            let stem = format!("{}.t", parts.edit.value_name(m.value(name)));
            parts.edit.add_init(parts.at, &stem, t)
        }
        Operand::Transposed(perm) => parts.transpose(&format!("{name}_transposed"), m.value(name), &perm),
    };
    let (a, b) = (place(product.a, "a"), place(product.b, "b"));
    if product.alpha == 1.0 {
        return parts.op("", "MatMul", &[a, b]);
    }
    let x = parts.op("product", "MatMul", &[a, b]);
    parts.times("", x, product.alpha)
}

/// The activation of a `FusedGemm` with its up to three parameters.
fn check_gemm(facts: Facts<'_>, m: &Match) -> Result<super::conv::Activation, String> {
    let op = facts.graph.op(m.root().node).ok_or("an operator expected")?;
    let given = ["activation_alpha", "activation_beta"].map(|name| number(facts, m, name));
    let params: Vec<f32> = given.into_iter().flatten().collect();
    super::conv::Activation::named(op.attrs.str("activation").unwrap_or(""), &params)
}

fn build_gemm(edit: &mut Edit<'_>, m: &Match, activation: super::conv::Activation) -> Value {
    let mut parts = Parts::of(edit, m);
    let bias = parts.input(2);
    let attrs = parts.edit.op(parts.at).map(|o| o.attrs.clone()).unwrap_or_default();
    let kept: Vec<(&str, AttrValue)> =
        ["alpha", "beta", "transA", "transB"].into_iter().filter_map(|name| attrs.get(name).map(|v| (name, v.clone()))).collect();
    let inputs: Vec<Value> = [m.value("a"), m.value("b")].into_iter().chain(bias).collect();
    let x = parts.with("gemm", "Gemm", &inputs, &kept);
    activation.add(&mut parts, x)
}
