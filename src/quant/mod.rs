//! Decides every quantisation parameter; touches no graph.
//!
//! [`make_plan`] turns statistics, a configuration and a [`Target`] into a [`QuantPlan`]: an artefact that a person can
//! read, edit and diff, and that [`lower`](crate::lower) applies without deciding anything.

pub(crate) mod codebook;
pub mod fake;
mod params;
pub mod plan;
mod policy;
pub mod reparameterize;
pub mod tables;
mod target;
mod weights;

pub(crate) use params::affine_scheme;
pub use plan::{
    Codes, Constant, ConstantCodes, Factors, FloatSite, Groups, PlanError, QuantPlan, Reparameterized, Scheme, SitePlan,
    ZeroPoint,
};
pub use policy::{ModelFacts, PolicyError, make_plan, recordings};
pub use target::Target;
