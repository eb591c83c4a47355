//! Calibration: what values a network's tensors take, and the quantisation ranges that follow from it.
//!
//! One pass over the samples fills one mergeable artefact; every observer is a pure function of that artefact, evaluated when a
//! plan is made. So one calibration serves every observer, bit width and target, and shards computed anywhere merge exactly.
//!
//! ```text
//! samples ─ run (workers, one session each) ─▶ Stats { value name → ValueStats { sketch, channels, per-sample ranges } }
//! ValueStats ─ minmax | percentile | omse | kl ─▶ Range          ValueStats ─ ptf ─▶ Ptf { base, zero point, exponents }
//! ```
//!
//! | file | idea |
//! | --- | --- |
//! | [`sketch`] | the histogram whose bins are the float's own leading bits, one a tensor |
//! | [`scratch`] | the table in which a worker counts one tensor |
//! | [`extremes`] | the exact extremes of a slice |
//! | `sparse` | the elements of its sparse outer bins, exactly |
//! | `own` | one sample's own quantiles |
//! | [`channels`] | exact ranges and compact sketches, one a channel |
//! | `rows` | the counters of those sketches |
//! | [`histogram`] | the common form that every observer reads: ascending bins with f64 edges |
//! | [`stats`] | the artefact: recording, merging, checking |
//! | [`codec`] | its file format |
//! | [`source`] | where samples come from, and parts of them |
//! | [`run`] | the driver: samples in parallel over sessions of the runtime's trait |
//! | [`observer`] | the trait, the range, what a range is asked for |
//! | [`distortion`] | the exact squared error of quantising a histogram |
//! | [`minmax`], [`percentile`], [`omse`], [`kl`], [`ptf`] | the observers |
//! | [`piecewise`] | small steps where most values are, large ones beyond |
//!
//! # What merges exactly
//!
//! Counts are integers and extremes are exact, so everything except the moving average is independent of the order of samples.
//! The moving average depends on the order by definition; it is kept as per-sample ranges, sorted by sample index, and applied when
//! a range is asked for. Its batch is therefore one sample, and it too gives the same result for every split into shards.

pub mod channels;
pub mod codebook;
pub mod codec;
pub mod distortion;
pub mod error;
pub mod extremes;
pub mod histogram;
pub mod kl;
mod logarithm;
pub mod minmax;
pub mod observer;
pub mod omse;
mod own;
mod pages;
pub mod percentile;
pub mod piecewise;
pub mod ptf;
mod rows;
pub mod run;
pub mod scratch;
pub mod sketch;
pub mod source;
mod sparse;
pub mod stats;

pub use error::Error;
pub use histogram::Histogram;
pub use observer::{Grid, Observer, Range, RangeQuery, Target};
pub use run::{Forward, ForwardSession, Progress, TapSpec, calibrate, resume};
pub use sketch::Sketch;
pub use source::{Part, SampleSource, Selection};
pub use stats::{Digest, Stats, ValueStats};
