//! Everything that can go wrong in calibration, in words a user can act on.

/// Why a calibration, a merge, a statistics file or an observer failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor held NaN or infinity.
    #[error(
        "value `{value}` holds {nan} NaN and {infinite} infinite elements of {total} on sample {sample}: the float model itself \
         overflows there, so no quantisation range exists; check the preprocessing (mean, std, scale) and run the float model on that sample"
    )]
    NonFinite {
        /// Name of the value in the graph.
        value: String,
        /// Which sample: its index and name.
        sample: String,
        /// NaN elements.
        nan: u64,
        /// Infinite elements.
        infinite: u64,
        /// All elements of the tensor.
        total: u64,
    },
    /// A tensor's shape does not fit its tap or the samples before it.
    #[error(
        "value `{value}` has shape {shape:?} on sample {sample}, but {expected}: calibrate with inputs of one size, on the model the taps were made for"
    )]
    Shape {
        /// Name of the value.
        value: String,
        /// Which sample.
        sample: String,
        /// The shape that came.
        shape: Vec<usize>,
        /// What was expected instead.
        expected: String,
    },
    /// More elements than the counters hold.
    #[error("value `{value}`: more than {limit} elements {place}; calibrate on fewer samples")]
    TooMany {
        /// Name of the value.
        value: String,
        /// The counter's limit.
        limit: u64,
        /// In which counter.
        place: &'static str,
    },
    /// The runtime did not deliver a tap, or delivered it twice.
    #[error(
        "value `{value}` was delivered {times} times on sample {sample} instead of once: the executor's taps do not fit the graph; report this as a bug, with the model"
    )]
    TapCount {
        /// Name of the value.
        value: String,
        /// Which sample.
        sample: String,
        /// How many times it came.
        times: u32,
    },
    /// The runtime delivered a tap that was not asked for.
    #[error(
        "the executor delivered tap {index} of {taps} on sample {sample}: its taps do not fit the request; report this as a bug, with the model"
    )]
    UnknownTap {
        /// The index that came.
        index: usize,
        /// How many taps there are.
        taps: usize,
        /// Which sample.
        sample: String,
    },
    /// One name tapped twice.
    #[error("value `{0}` is tapped twice: name every value once")]
    DuplicateTap(String),
    /// The executor could not start.
    #[error("the executor could not start: {0}")]
    Session(String),
    /// The executor failed on a sample.
    #[error("the model failed on sample {sample}: {reason}")]
    Forward {
        /// Which sample.
        sample: String,
        /// The executor's words.
        reason: String,
    },
    /// A sample could not be read.
    #[error("sample {sample} could not be read: {reason}")]
    Sample {
        /// Which sample.
        sample: String,
        /// The source's words.
        reason: String,
    },
    /// No sample was observed.
    #[error(
        "there is nothing to calibrate on: the source has no usable sample ({skipped} skipped); give a folder with images or arrays"
    )]
    NoSamples {
        /// Samples that the source chose to skip.
        skipped: usize,
    },
    /// The caller asked to stop.
    #[error("calibration was interrupted after {done} of {total} samples; nothing was written")]
    Cancelled {
        /// Samples finished.
        done: usize,
        /// Samples asked for.
        total: usize,
    },
    /// Statistics of different origin were merged.
    #[error("these statistics cannot be merged: {0}")]
    Merge(String),
    /// Statistics met a model that they do not describe.
    #[error(
        "the statistics were taken from another model (its digest is {found}, this model's is {expected}); calibrate this model, or give the model that was calibrated"
    )]
    OtherModel {
        /// Digest of the model at hand, in hex.
        expected: String,
        /// Digest in the statistics, in hex.
        found: String,
    },
    /// Statistics of another run where those of this one were expected.
    #[error("the statistics were taken with {0} than this run has; repeat the options of that run, or start anew elsewhere")]
    OtherRun(String),
    /// A statistics file could not be read.
    #[error("this is not a readable statistics file: {0}")]
    File(String),
    /// An observer was asked for what the statistics do not hold.
    #[error("{observer}: {reason}")]
    Observer {
        /// The observer's name.
        observer: &'static str,
        /// What is missing and how to get it.
        reason: String,
    },
    /// An observer's option is out of range.
    #[error("{name} is {found}, but must be {expected}")]
    Option {
        /// The option's name in the configuration.
        name: &'static str,
        /// The value given.
        found: String,
        /// The values allowed.
        expected: &'static str,
    },
}
