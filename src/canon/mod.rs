//! Many exporter forms in, one canonical form out.
//!
//! After [`canonicalise`] a graph is at opset 20, holds no foldable constant, and every LayerNorm, GELU, Linear and
//! attention that a rule knows has one spelling: `LayerNormalization`, `Gelu`, `MatMul` + `Add` with weights `[in, out]`, and
//! attention as three Linears (q, k, v) → `Reshape` → `Transpose` → `MatMul` → `Softmax` → `MatMul` with the scale folded
//! into q's weights. Halves are float32, and onnxruntime's fused operators are taken apart. A BatchNormalization behind a convolution or Linear is part of its weights.

mod attention;
mod axis;
mod batch_norm;
mod broadcast;
mod contrib;
mod float32;
pub mod fold;
mod gelu;
mod hard_swish;
pub mod inline;
mod layer_scale;
mod linear;
mod mask;
mod norm;
mod opset;
mod pool;
mod rows;
mod split;
mod sum;
mod weights;

use std::collections::BTreeMap;

use crate::ir::{AI_VITQ, Model, VerifyError, opset_needed};
use crate::pattern::{self, Forms, NearMiss, Rule};

pub use crate::ir::CANONICAL_OPSET;

/// What canonicalising did.
#[derive(Debug, Clone, Default)]
pub struct CanonReport {
    /// How often each rule applied.
    pub applied: BTreeMap<&'static str, usize>,
    /// How the exporter spelt what the rules rewrote.
    pub forms: Forms,
    /// Places where a rule all but matched.
    pub near_misses: Vec<NearMiss>,
}

/// Why a model has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum CanonError {
    /// An operator's version has no adapter.
    #[error("{place}: {what}")]
    Opset {
        /// The node, or the model.
        place: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Model-local functions cannot be inlined.
    #[error(transparent)]
    Inline(#[from] inline::InlineError),
    /// Folding failed.
    #[error(transparent)]
    Fold(#[from] fold::FoldError),
    /// A rewrite broke the graph.
    #[error("canonicalisation broke the graph, which is a defect of vitq: {0}; please report it with the model's export command")]
    Verify(#[from] VerifyError),
}

/// Brings a model to the canonical form.
///
/// # Errors
/// When the model imports no usable operator set, or calls functions that cannot be inlined.
pub fn canonicalise(model: &mut Model) -> Result<CanonReport, CanonError> {
    canonicalise_by(model, &[contrib_rules(), fuse_rules(), attention_rules()])
}

/// Brings a model to the form that the given rules leave, stage by stage; the first takes fused operators apart.
///
/// # Errors
/// As [`canonicalise`].
pub fn canonicalise_by(model: &mut Model, stages: &[Vec<Rule>]) -> Result<CanonReport, CanonError> {
    let mut report = CanonReport::default();
    // The functions of our own operators are what those operators mean, not something to look into.
    match inline::inline(model, |op| op.domain == AI_VITQ)? {
        0 => {}
        n => _ = report.applied.insert("inline", n),
    }
    contrib::refuse_layouts(&model.graph)?;
    match float32::widen(model)? {
        0 => {}
        n => _ = report.applied.insert("float32", n),
    }
    opset::adapt(model)?;
    fold::fold(model)?;
    for (i, stage) in stages.iter().enumerate() {
        let (applied, misses) = pattern::run(&mut model.graph, CANONICAL_OPSET, stage, &mut report.forms)?;
        // What a fused operator hid can be folded now.
        if i == 0 && !applied.is_empty() {
            fold::fold(model)?;
        }
        for (name, n) in applied {
            *report.applied.entry(name).or_default() += n;
        }
        report.near_misses.extend(misses);
    }
    fold::fold(model)?;
    // A younger operator that no rule took apart is kept as it is, with an operator set that has it.
    model.set_opset("", opset_needed(&model.graph));
    Ok(report)
}

/// Stage 3: onnxruntime's fused operators, taken apart.
pub fn contrib_rules() -> Vec<Rule> {
    contrib::rules()
}

/// Stage 4: fuse up.
pub fn fuse_rules() -> Vec<Rule> {
    let families = [
        norm::rules(),
        axis::rules(),
        broadcast::rules(),
        gelu::rules(),
        hard_swish::rules(),
        linear::rules(),
        rows::rules(),
        split::rules(),
        sum::rules(),
        layer_scale::rules(),
        batch_norm::rules(),
        pool::rules(),
        mask::rules(),
    ];
    families.into_iter().flatten().collect()
}

/// Stages 5 and 6: decompose `Attention`, unify the selection of q, k, v and the scale.
pub fn attention_rules() -> Vec<Rule> {
    attention::rules()
}
