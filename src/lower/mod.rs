//! Applies a plan to a canonical graph; decides nothing.
//!
//! 1. [`unread`]: rows that nothing reads are not computed: the last block's patches where the head reads the class token alone.
//! 2. [`apart`]: rows with codes of their own become values of their own: the class token's.
//! 3. [`qdq`]: every constant of the plan becomes integers behind a DequantizeLinear, every other value passes through a
//!    QuantizeLinear and a DequantizeLinear; biases become int32 with the product of the scales around them.
//!    So do the constants that a plan adds to an accumulator.
//! 4. [`rows`]: where the target has a kernel for it, Linears become Gemms on rows that add their int32 biases themselves.
//! 5. [`custom`]: where the target has custom ops, DequantizeLinear → LayerNormalization, Softmax or Gelu → QuantizeLinear
//!    becomes one integer op of domain `ai.vitq`, whose function body travels with the model.

mod apart;
mod bias;
mod custom;
mod expand;
mod functions;
mod qdq;
mod rows;
mod unread;

use std::collections::BTreeMap;

use crate::ir::{AI_VITQ, CANONICAL_OPSET, DType, Edit, Model, VerifyError, opset_needed, shape};
use crate::quant::plan::{Groups, Scheme, SitePlan};
use crate::quant::{PlanError, QuantPlan};
use crate::vit::SiteRef;

pub use functions::{function, function_names};

/// What lowering did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct LowerReport {
    /// Values that pass through a Q/DQ pair.
    pub pairs: usize,
    /// Constants stored as integers, biases excluded.
    pub weights: usize,
    /// Biases stored as int32.
    pub biases: usize,
    /// Custom integer ops.
    pub custom_ops: usize,
    /// Operators that compute only the rows that are read of them.
    pub narrowed: usize,
    /// What could not be done as planned, with the reason.
    pub notes: Vec<String>,
}

/// Why a plan cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// The plan names a value that the graph does not have.
    #[error(
        "the plan's site {site} names the value '{value}', which the model does not have: the plan was edited or made for another model; make it again with `vitq plan`"
    )]
    UnknownValue {
        /// The site.
        site: String,
        /// The value.
        value: String,
    },
    /// The plan has a site that the model has not, or with other values.
    #[error(
        "the plan's site {site} is none of the model's, or has another kind, part or other values there: the plan was edited or made for another model; make it again with `vitq plan`"
    )]
    UnknownSite {
        /// The site.
        site: String,
    },
    /// The plan's parameters do not fit the tensor.
    #[error(
        "the plan's site {site} does not fit its tensor '{value}': {what}; correct the plan or make it again with `vitq plan`"
    )]
    Misfit {
        /// The site.
        site: String,
        /// The value.
        value: String,
        /// What is wrong.
        what: String,
    },
    /// The plan is of another model or version.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Lowering broke the graph.
    #[error("lowering broke the graph, which is a defect of vitq: {0}; please report it with the plan")]
    Verify(#[from] VerifyError),
    /// A function body that travels with vitq does not parse.
    #[error("the built-in function {name} is damaged, which is a defect of vitq: {what}")]
    Function {
        /// The function.
        name: String,
        /// What the parser said.
        what: String,
    },
}

/// Changes a canonical graph as [`lower`] does before any value gets codes, for those who give them otherwise: rows that nothing reads are not
/// computed, if `skip_unread` says so, and rows with codes of their own are apart, under the names that the sites have then. Other values keep
/// theirs; what is known of shapes is forgotten. Gives the number of operators with less to do.
///
/// # Errors
/// When a site's rows are none of its value.
pub fn prepare(edit: &mut Edit<'_>, sites: &mut [SiteRef], skip_unread: bool) -> Result<usize, LowerError> {
    let shapes = shape::infer(edit, CANONICAL_OPSET);
    let narrowed = if skip_unread { unread::lower(edit, &shapes, &mut []) } else { None };
    let joined = apart::lower(edit, &shapes, &mut sites.iter_mut().collect::<Vec<_>>(), narrowed.as_ref())?;
    if narrowed.is_some() || !joined.is_empty() {
        edit.clear_value_infos();
    }
    Ok(narrowed.map_or(0, |n| n.values.len()))
}

/// Applies a plan to a canonical model.
///
/// # Errors
/// When the plan does not fit the model.
pub fn lower(model: &mut Model, plan: &QuantPlan) -> Result<LowerReport, LowerError> {
    let mut report = LowerReport::default();
    let mut edit = Edit::new(&mut model.graph);
    let mut sites = plan.sites.clone();
    let whole = shape::infer(&edit, CANONICAL_OPSET);
    let narrowed = unread::lower(&mut edit, &whole, &mut sites);
    report.narrowed = narrowed.as_ref().map_or(0, |n| n.values.len());
    let joined =
        apart::lower(&mut edit, &whole, &mut sites.iter_mut().map(|s| &mut s.site).collect::<Vec<_>>(), narrowed.as_ref())?;
    // What the file says of shapes fills the gaps of inference.
    let shapes = shape::infer(&edit, CANONICAL_OPSET);
    edit.clear_value_infos();
    let axes = qdq::channel_axes(&edit, &shapes, &sites);
    let mut quantised = qdq::Quantised::default();
    let coded = || sites.iter().filter(|s| s.scheme != Scheme::Accumulator);
    for site in coded().filter(|s| s.site.weight) {
        qdq::lower_constant(&mut edit, site, &mut quantised)?;
        report.weights += 1;
    }
    let looked_up = |s: &&SitePlan| !s.site.weight && matches!(s.scheme, Scheme::Codebook { .. } | Scheme::Piecewise { .. });
    if let Some(site) = coded().find(looked_up).filter(|_| !plan.target.has_custom_ops()) {
        return Err(qdq::misfit(site, "", format!("{} has no operator for a table of codes", plan.target)));
    }
    for site in coded().filter(|s| !s.site.weight) {
        report.pairs += qdq::lower_values(&mut edit, site, &shapes, &axes, &mut quantised)?;
    }
    bias::lower(&mut edit, &quantised, &mut report);
    let (constants, products): (Vec<_>, Vec<_>) =
        sites.iter().filter(|s| s.scheme == Scheme::Accumulator).partition(|s| s.site.weight);
    if let Some(site) = products.first().filter(|_| !plan.target.keeps_accumulators()) {
        report
            .notes
            .push(format!("{}: {} keeps no accumulators, so it is a float until the sum has codes", site.name, plan.target));
    }
    let named: Vec<&String> = constants.iter().flat_map(|s| &s.site.values).collect();
    let mut added = Vec::new();
    for site in products {
        added.extend(bias::lower_accumulated(&mut edit, site, &named, &axes, &quantised, &mut report)?);
    }
    if let Some(site) = constants.into_iter().find(|s| !s.site.values.iter().all(|v| added.contains(v))) {
        return Err(qdq::misfit(site, "", "it is not added to the accumulator of a product that the plan leaves unrounded"));
    }
    if plan.target.adds_biases_in_gemm() {
        rows::lower(&mut edit, &quantised, &shapes);
    }
    if plan.target.has_custom_ops() {
        custom::lower(&mut edit, &quantised, &shapes, &joined, &mut report)?;
    }
    custom::report_float_softmaxes(&edit, &quantised, &mut report);
    expand::rms_norms(&mut edit);
    edit.commit()?;
    finish(model, plan, &quantised.groups)?;
    Ok(report)
}

/// Operator sets, functions and header of the lowered model.
fn finish(model: &mut Model, plan: &QuantPlan, groups: &BTreeMap<String, Groups>) -> Result<(), LowerError> {
    let used: Vec<&'static str> = functions::function_names()
        .filter(|name| model.graph.ops().into_iter().any(|id| model.graph.op(id).is_some_and(|o| o.op.is_in(AI_VITQ, name))))
        .collect();
    // Only 4 and 16 bit codes need opset 21; onnxruntime 1.18 loads Q/DQ up to 20.
    let wide = |t: DType| matches!(t, DType::I16 | DType::U16 | DType::I4 | DType::U4);
    let needs_21 = model.graph.ops().into_iter().any(|id| {
        let zero_point = model.graph.input(id, 2).and_then(|v| model.graph.constant(v));
        // A pair that a custom op takes over has lost its DequantizeLinear, or its QuantizeLinear.
        let pair = model.graph.is_op(id, "QuantizeLinear") || model.graph.is_op(id, "DequantizeLinear");
        pair && zero_point.is_some_and(|t| wide(t.dtype))
    });
    let needed = opset_needed(&model.graph).max(if needs_21 { 21 } else { CANONICAL_OPSET });
    // More only when canonicalisation had to leave a younger operator.
    let opset = needed;
    model.set_opset("", opset);
    if !used.is_empty() {
        model.set_opset(AI_VITQ, 1);
    }
    for name in used {
        let mut f = functions::function(name)?;
        for o in &mut f.opsets {
            // A model and its functions must agree on the default domain.
            if o.domain.is_empty() {
                o.version = opset;
            }
        }
        model.functions.push(f);
    }
    let header = &mut model.header;
    header.ir_version = match opset {
        ..=20 => 9,
        21 => 10,
        // The file that had the younger operator knew.
        _ => header.ir_version.max(10),
    };
    header.producer_name = "vitq".to_owned();
    header.producer_version = env!("CARGO_PKG_VERSION").to_owned();
    let note = |key: &str, value: &str| (format!("vitq.{key}"), value.to_owned());
    header.metadata.retain(|(key, _)| !key.starts_with("vitq."));
    header.metadata.extend([note("target", plan.target.name()), note("config", &plan.config), note("model", &plan.model)]);
    if !groups.is_empty() {
        // The codes alone do not tell. Names and numbers: nothing in it has a failing serialiser.
        header.metadata.push(note("groups", &serde_json::to_string(groups).unwrap_or_default()));
    }
    Ok(())
}
