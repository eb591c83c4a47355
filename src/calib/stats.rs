//! The artefact of calibration: what every tapped value looked like over which samples. Mergeable exactly, whatever the split.

use crate::calib::channels::{Channels, Layout};
use crate::calib::error::Error;
use crate::calib::extremes::NonFinite;
use crate::calib::own;
use crate::calib::run::TapSpec;
use crate::calib::scratch::Scratch;
use crate::calib::sketch::Sketch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A SHA-256 digest; zero where there is nothing to tell apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is recorded of a value. Statistics merge only where this is equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// Whether the tensor sketch is kept. Without it only [`minmax`](crate::calib::minmax) works, at a third of the cost.
    pub sketch: bool,
    /// Whether the sketch, if there is one, keeps the elements of its sparse outer bins, which [`kl`](crate::calib::kl) needs.
    pub outliers: bool,
    /// The channel axis counted from the end (1 is the last): per-channel extremes are kept. `None`: no channels.
    pub channel_axis: Option<u8>,
    /// Whether each channel has a compact sketch too: PTF and channel-wise observers other than min/max.
    pub channel_sketches: bool,
    /// For each `alpha` here, every sample's own `1 − alpha` and `alpha` quantiles are kept: what a percentile with a moving average needs.
    /// Ascending, each above 0.5 and at most 1.
    pub percentiles: Vec<f64>,
}

impl Default for Recording {
    fn default() -> Self {
        Self { sketch: true, outliers: true, channel_axis: None, channel_sketches: false, percentiles: Vec::new() }
    }
}

impl Recording {
    /// The tensor sketch, the ranges of the channels on `axis_from_end`, and their sketches if asked for.
    #[must_use]
    pub fn with_channels(axis_from_end: u8, sketches: bool) -> Self {
        Self { channel_axis: Some(axis_from_end), channel_sketches: sketches, ..Self::default() }
    }

    /// Whether the options make sense.
    ///
    /// # Errors
    /// Percentiles out of range or out of order, a channel axis of 0, channel sketches without an axis.
    pub fn check(&self) -> Result<(), Error> {
        let in_range = self.percentiles.iter().all(|&alpha| alpha > 0.5 && alpha <= 1.0);
        let ascending = self.percentiles.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        if !(in_range && ascending) {
            return Err(Error::Option {
                name: "percentile_alpha",
                found: format!("{:?}", self.percentiles),
                expected: "above 0.5 and at most 1, each value once, ascending",
            });
        }
        if self.channel_axis == Some(0) || (self.channel_sketches && self.channel_axis.is_none()) {
            return Err(Error::Option {
                name: "channel axis",
                found: format!("{:?}", self.channel_axis),
                expected: "counted from the end, starting at 1, wherever channels are recorded",
            });
        }
        Ok(())
    }
}

/// One sample's own extremes and recorded quantiles.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRange {
    /// The sample's index in the whole data set.
    pub index: u64,
    /// Exact minimum.
    pub lo: f32,
    /// Exact maximum.
    pub hi: f32,
    /// For each alpha of [`Recording::percentiles`], the `1 − alpha` and `alpha` quantiles.
    pub percentiles: Vec<(f32, f32)>,
}

/// Everything known about one value.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueStats {
    pub(crate) recording: Recording,
    /// One sample's shape; a dimension that differed between samples is 0. `None` before any sample.
    pub(crate) shape: Option<Vec<u64>>,
    pub(crate) sketch: Option<Sketch>,
    /// `None` if not recorded, or before any sample.
    pub(crate) channels: Option<Channels>,
    /// Ascending by index.
    pub(crate) samples: Vec<SampleRange>,
}

/// Why a tensor could not be recorded; the caller knows the names.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    NonFinite(NonFinite),
    Shape(String),
    TooMany { limit: u64, place: &'static str },
    Twice,
}

/// What can be computed of one tensor before its value's statistics are locked.
pub(crate) struct Observation {
    range: SampleRange,
}

impl Observation {
    pub(crate) fn new(recording: &Recording, index: u64, data: &[f32], scratch: &mut Scratch) -> Result<Self, Refusal> {
        if data.is_empty() {
            return Err(Refusal::Shape("it has no element".into()));
        }
        if data.len() >= Scratch::LIMIT {
            return Err(Refusal::TooMany { limit: Scratch::LIMIT as u64, place: "in one tensor" });
        }
        let (lo, hi) = scratch.range(data, recording.sketch && recording.outliers).map_err(Refusal::NonFinite)?;
        // The counts wait in the scratch table for the value's sketch.
        if recording.sketch || !recording.percentiles.is_empty() {
            scratch.tally(data, (lo, hi));
        }
        let at = |p| own::quantile(&scratch.counted, (lo, hi), p) as f32;
        let percentiles = recording.percentiles.iter().map(|&alpha| (at(1.0 - alpha), at(alpha))).collect();
        Ok(Self { range: SampleRange { index, lo, hi, percentiles } })
    }
}

impl ValueStats {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(recording: Recording) -> Self {
        Self {
            sketch: recording.sketch.then(|| Sketch::new(recording.outliers)),
            recording,
            shape: None,
            channels: None,
            samples: Vec::new(),
        }
    }

    /// Statistics of tensors at hand, one a sample: `(shape, elements)`. For tests, tools and constants; models go through
    /// [`calibrate`](crate::calib::calibrate).
    ///
    /// # Errors
    /// A tensor is empty, holds NaN or infinity, or does not fit its shape or channel axis.
    pub fn from_samples<'a>(
        recording: Recording,
        tensors: impl IntoIterator<Item = (&'a [usize], &'a [f32])>,
    ) -> Result<Self, Error> {
        recording.check()?;
        let mut scratch = Scratch::default();
        let mut stats = Self::new(recording);
        for (index, (shape, data)) in tensors.into_iter().enumerate() {
            let index = index as u64;
            stats
                .check(shape, data)
                .and_then(|()| Observation::new(&stats.recording, index, data, &mut scratch))
                .and_then(|seen| stats.record(seen, shape, data, &mut scratch))
                .map_err(|refusal| refusal.named("tensor", &index.to_string(), shape, data))?;
        }
        Ok(stats)
    }

    /// Whether a tensor fits its shape and the channels seen so far.
    pub(crate) fn check(&self, shape: &[usize], data: &[f32]) -> Result<(), Refusal> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(data.len()) {
            return Err(Refusal::Shape(format!("{} elements were delivered", data.len())));
        }
        if let Some(before) = &self.shape
            && before.len() != shape.len()
        {
            return Err(Refusal::Shape(format!("{} dimensions were seen before", before.len())));
        }
        if let Some(axis) = self.recording.channel_axis {
            let Some(layout) = Layout::new(shape, usize::from(axis)) else {
                return Err(Refusal::Shape(format!("its channels should be on axis -{axis}")));
            };
            if let Some(channels) = &self.channels {
                if channels.len() != layout.channels {
                    return Err(Refusal::Shape(format!("{} channels were seen before on axis -{axis}", channels.len())));
                }
                if channels.count() + (layout.outer * layout.inner) as u64 > u64::from(u32::MAX) {
                    return Err(Refusal::TooMany { limit: u64::from(u32::MAX), place: "in one channel over all samples" });
                }
            }
        }
        Ok(())
    }

    /// Takes over an observation of a tensor that [`check`](Self::check) has accepted.
    pub(crate) fn record(
        &mut self,
        seen: Observation,
        shape: &[usize],
        data: &[f32],
        scratch: &mut Scratch,
    ) -> Result<(), Refusal> {
        let Observation { range } = seen;
        let place = self.samples.partition_point(|s| s.index < range.index);
        if self.samples.get(place).is_some_and(|s| s.index == range.index) {
            return Err(Refusal::Twice);
        }
        if let Some(sketch) = &mut self.sketch {
            sketch.absorb((range.lo, range.hi), data, scratch);
        }
        if let Some(layout) = self.recording.channel_axis.and_then(|axis| Layout::new(shape, usize::from(axis))) {
            let sketches = self.recording.channel_sketches;
            let channels = self.channels.get_or_insert_with(|| Channels::new(layout.channels, sketches));
            if !channels.extend(data, layout) {
                return Err(Refusal::Shape("its channels do not fit those seen before".into()));
            }
        }
        let shape = shape.iter().map(|&d| d as u64).collect();
        self.shape = common_shape(self.shape.take(), Some(shape));
        self.samples.insert(place, range);
        Ok(())
    }

    /// What was recorded.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// One sample's shape; a dimension that differed between samples is 0. `None` before any sample.
    #[must_use]
    pub fn shape(&self) -> Option<&[u64]> {
        self.shape.as_deref()
    }

    /// The histogram of all elements, if recorded.
    #[must_use]
    pub fn sketch(&self) -> Option<&Sketch> {
        self.sketch.as_ref()
    }

    /// The channels' statistics, if recorded.
    #[must_use]
    pub fn channels(&self) -> Option<&Channels> {
        self.channels.as_ref()
    }

    /// Each sample's own ranges, ascending by sample index.
    #[must_use]
    pub fn samples(&self) -> &[SampleRange] {
        &self.samples
    }

    /// The exact extremes over all samples; `None` before any sample.
    #[must_use]
    pub fn range(&self) -> Option<(f32, f32)> {
        self.samples.iter().map(|s| (s.lo, s.hi)).reduce(|(al, ah), (bl, bh)| (al.min(bl), ah.max(bh)))
    }

    /// Merges another shard's statistics of the same value. Exact, commutative and associative.
    fn merge(&mut self, other: Self, name: &str) -> Result<(), Error> {
        let differs = |what: String| {
            Error::Merge(format!("`{name}` {what}; take all shards from one command line, changing only the shard"))
        };
        if self.recording != other.recording {
            return Err(differs("was recorded with other options".into()));
        }
        if let (Some(a), Some(b)) = (&self.shape, &other.shape)
            && a.len() != b.len()
        {
            return Err(differs(format!("has {} dimensions in one and {} in the other", a.len(), b.len())));
        }
        if let (Some(a), Some(b)) = (&self.channels, &other.channels)
            && a.len() != b.len()
        {
            return Err(differs(format!("has {} channels in one and {} in the other", a.len(), b.len())));
        }
        match (&mut self.channels, other.channels) {
            (Some(channels), Some(more)) => {
                if !channels.merge(&more) {
                    return Err(Error::TooMany {
                        value: name.into(),
                        limit: u64::from(u32::MAX),
                        place: "in one channel over all samples",
                    });
                }
            }
            (channels @ None, more) => *channels = more,
            (Some(_), None) => {}
        }
        if let (Some(sketch), Some(more)) = (&mut self.sketch, &other.sketch) {
            sketch.merge(more);
        }
        self.shape = common_shape(self.shape.take(), other.shape);
        self.samples.extend(other.samples);
        self.samples.sort_by_key(|s| s.index);
        Ok(())
    }
}

impl Refusal {
    /// The user's error: the value's name, the sample's name, the tensor.
    pub(crate) fn named(self, value: &str, sample: &str, shape: &[usize], data: &[f32]) -> Error {
        let (value, sample) = (value.to_owned(), sample.to_owned());
        match self {
            Self::NonFinite(NonFinite { nan, infinite }) => {
                Error::NonFinite { value, sample, nan, infinite, total: data.len() as u64 }
            }
            Self::Shape(expected) => Error::Shape { value, sample, shape: shape.to_vec(), expected },
            Self::TooMany { limit, place } => Error::TooMany { value, limit, place },
            Self::Twice => Error::TapCount { value, sample, times: 2 },
        }
    }
}

/// The dimensions that two shapes of one rank agree on; 0 elsewhere.
fn common_shape(a: Option<Vec<u64>>, b: Option<Vec<u64>>) -> Option<Vec<u64>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.into_iter().zip(b).map(|(a, b)| if a == b { a } else { 0 }).collect()),
        (a, b) => a.or(b),
    }
}

/// The statistics of a model over a set of samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    pub(crate) model: Digest,
    pub(crate) data: Digest,
    pub(crate) total: u64,
    pub(crate) samples: Vec<u64>,
    pub(crate) skipped: Vec<u64>,
    pub(crate) values: BTreeMap<String, ValueStats>,
}

impl Stats {
    /// Statistics of `model` (the digest of the file that was calibrated) over `data` (the digest of the sample list and
    /// preprocessing), which has `total` samples; nothing seen yet.
    #[must_use]
    pub fn new(model: Digest, data: Digest, total: u64) -> Self {
        Self { model, data, total, samples: Vec::new(), skipped: Vec::new(), values: BTreeMap::new() }
    }

    /// The model's digest.
    #[must_use]
    pub fn model(&self) -> Digest {
        self.model
    }

    /// The digest of the sample list and preprocessing.
    #[must_use]
    pub fn data(&self) -> Digest {
        self.data
    }

    /// How many samples the whole data set has. Statistics of a shard hold fewer.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many samples of the whole data set were neither seen nor skipped: those of the shards that are not merged yet.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.total.saturating_sub((self.samples.len() + self.skipped.len()) as u64)
    }

    /// Indices of all samples that were seen or skipped, ascending.
    #[must_use]
    pub fn covered(&self) -> Vec<u64> {
        let mut all = [self.samples.as_slice(), &self.skipped].concat();
        all.sort_unstable();
        all
    }

    /// Indices of the samples seen, ascending.
    #[must_use]
    pub fn samples(&self) -> &[u64] {
        &self.samples
    }

    /// Indices of the samples that the source skipped, ascending.
    #[must_use]
    pub fn skipped(&self) -> &[u64] {
        &self.skipped
    }

    /// One value's statistics, by its name in the graph.
    #[must_use]
    pub fn get(&self, value: &str) -> Option<&ValueStats> {
        self.values.get(value)
    }

    /// All values, by name.
    #[must_use]
    pub fn values(&self) -> &BTreeMap<String, ValueStats> {
        &self.values
    }

    /// Whether these are statistics of the model at hand.
    ///
    /// # Errors
    /// The digests differ.
    pub fn check_model(&self, model: Digest) -> Result<(), Error> {
        if self.model == model {
            Ok(())
        } else {
            Err(Error::OtherModel { expected: model.to_string(), found: self.model.to_string() })
        }
    }

    /// Whether these are statistics of one run: of this model, data set and recordings.
    ///
    /// # Errors
    /// What differs, in words.
    pub fn check_run(&self, model: Digest, data: Digest, taps: &[TapSpec]) -> Result<(), Error> {
        self.check_model(model)?;
        let other = |what: &str| Error::OtherRun(what.to_owned());
        if self.data != data {
            return Err(other("other samples or another preprocessing"));
        }
        let same = |tap: &TapSpec| self.values.get(&tap.value).is_some_and(|value| value.recording == tap.recording);
        if self.values.len() != taps.len() || !taps.iter().all(same) {
            return Err(other("another configuration, which records other values"));
        }
        Ok(())
    }

    /// The statistics of both shards. Exact: any split of the samples, merged in any order, gives the same bytes.
    ///
    /// # Errors
    /// Different models, data sets, values or recordings; a sample that is in both; a counter at its limit.
    pub fn merge(mut self, other: Self) -> Result<Self, Error> {
        if self.model != other.model {
            return Err(Error::Merge(format!(
                "they describe two models (digests {} and {}); calibrate every shard on the same file",
                self.model, other.model
            )));
        }
        if self.data != other.data {
            return Err(Error::Merge(
                "their sample lists or preprocessing differ; give every shard the same samples and options, changing only the shard".into(),
            ));
        }
        if self.total != other.total {
            return Err(Error::Merge(format!("one is of a data set of {} samples, the other of {}", self.total, other.total)));
        }
        let (mine, theirs) = (self.covered(), other.covered());
        let twice: Vec<u64> = mine.into_iter().filter(|i| theirs.binary_search(i).is_ok()).collect();
        if let Some(first) = twice.first() {
            let what = match twice.len() {
                1 => format!("sample {first} (counted from 0) is in both"),
                n => format!("{n} samples are in both, the first of them sample {first} (counted from 0)"),
            };
            return Err(Error::Merge(format!("{what}; give each shard once, all of one number of shards")));
        }
        let lone = self.values.keys().find(|name| !other.values.contains_key(*name));
        if let Some(name) = lone.or_else(|| other.values.keys().find(|name| !self.values.contains_key(*name))) {
            return Err(Error::Merge(format!(
                "`{name}` is in one only; take all shards with one version of the compiler and one configuration"
            )));
        }
        self.samples.extend(other.samples);
        self.samples.sort_unstable();
        self.skipped.extend(other.skipped);
        self.skipped.sort_unstable();
        for (name, more) in other.values {
            if let Some(value) = self.values.get_mut(&name) {
                value.merge(more, &name)?;
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
pub(crate) mod tests;
