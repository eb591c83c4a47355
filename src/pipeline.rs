//! The way through, step by step: what the command line and the tests call.
//!
//! ```text
//! load ─▶ Source ─▶ calibrate ─▶ Stats ─▶ plan ─▶ QuantPlan ─▶ lower ─▶ Model ─▶ evaluate ─▶ Evaluation
//! ```
//!
//! Each step takes what the one before it gave, or what a file of it holds; nothing here prints. The one decision made here needs
//! the whole way: [`ClipSearch`] compares plans by what the lowered models compute.

mod adjust;
mod calibrate;
mod clip;
mod constants;
mod error;
mod evaluate;
mod headroom;
mod levels;
mod load;
mod quantise;
mod reparameterize;
mod resume;
mod samples;
mod search;
mod tune;

pub use adjust::{Adjust, Adjusted, asks_to_adjust};
pub use calibrate::{Calibration, Kept, calibrate, engine_of, observed};
pub use clip::{Clip, ClipSearch, Clipped};
pub use constants::{constants_path, with_plan_constants, write_constants};
pub use error::PipelineError;
pub use evaluate::{Evaluation, SampleOutputs, evaluate, evaluate_kept, forward, is_quantised, runnable, top};
pub use levels::has_codebooks;
pub use load::{Source, data_files, digest, encoded_bytes, file_bytes, load, op_counts, read};
pub use quantise::{
    fix_batch, lower, merge_stats, missing_note, plan, read_plan, read_stats, unknown_names, unsearched, violations, write_plan,
    write_stats,
};
pub use samples::{DataOptions, Feed, Samples};
pub use search::{Found, MEASURED_ON, Search};
pub use tune::first_samples;
