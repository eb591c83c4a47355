//! The observer trait: a pure function from statistics to a range.

use crate::calib::error::Error;
use crate::calib::histogram::Histogram;
use crate::calib::stats::ValueStats;

/// The real interval that a quantiser's codes shall span. Whoever makes scale and zero point from it includes zero in it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Lower end, in the value's own unit.
    pub lo: f64,
    /// Upper end; not below `lo`.
    pub hi: f64,
}

impl Range {
    /// The range from `lo` to `hi`.
    #[must_use]
    pub fn new(lo: f64, hi: f64) -> Self {
        Self { lo, hi }
    }

    /// `±max(|lo|, |hi|)`: what a quantiser with zero point 0 has to span.
    #[must_use]
    pub fn symmetric(self) -> Self {
        let r = self.lo.abs().max(self.hi.abs());
        Self { lo: -r, hi: r }
    }

    /// The smallest range that holds this one and zero, which every ONNX quantiser represents exactly.
    #[must_use]
    pub fn with_zero(self) -> Self {
        Self { lo: self.lo.min(0.0), hi: self.hi.max(0.0) }
    }
}

/// The codes that a range is meant for: observers that weigh clipping against resolution need to know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    bits: u8,
    symmetric: bool,
}

impl Grid {
    /// `2^bits` codes with a zero point anywhere among them.
    ///
    /// # Errors
    /// `bits` outside of 2..=16.
    pub fn affine(bits: u8) -> Result<Self, Error> {
        Self::new(bits, false)
    }

    /// Codes `-(2^(bits−1) − 1)` to `2^(bits−1) − 1`, zero point 0.
    ///
    /// # Errors
    /// `bits` outside of 2..=16.
    pub fn symmetric(bits: u8) -> Result<Self, Error> {
        Self::new(bits, true)
    }

    fn new(bits: u8, symmetric: bool) -> Result<Self, Error> {
        if (2..=16).contains(&bits) {
            Ok(Self { bits, symmetric })
        } else {
            Err(Error::Option { name: "bits", found: bits.to_string(), expected: "between 2 and 16" })
        }
    }

    /// Width of a code.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Whether the zero point is 0.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        self.symmetric
    }

    /// The smallest and largest code: `0, 2^bits − 1` or `∓(2^(bits−1) − 1)`.
    #[must_use]
    pub fn codes(self) -> (i32, i32) {
        if self.symmetric {
            let top = (1 << (self.bits - 1)) - 1;
            (-top, top)
        } else {
            (0, (1 << self.bits) - 1)
        }
    }
}

/// Which part of a value a range is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The whole tensor.
    Tensor,
    /// One channel.
    Channel(usize),
    /// Several channels together: a head, a group.
    Channels(std::ops::Range<usize>),
}

/// What a range is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeQuery {
    /// Which part of the value.
    pub target: Target,
    /// The codes that will span the range. With a symmetric grid the range is symmetric.
    pub grid: Grid,
}

impl RangeQuery {
    /// Of the whole tensor.
    #[must_use]
    pub fn tensor(grid: Grid) -> Self {
        Self { target: Target::Tensor, grid }
    }
}

/// Chooses a quantisation range from statistics.
pub trait Observer {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// The range for `query`. A value that was constantly zero gives `[0, 0]`.
    ///
    /// # Errors
    /// The statistics do not hold what the observer needs, or its options are out of range.
    fn range(&self, values: &ValueStats, query: &RangeQuery) -> Result<Range, Error>;
}

/// The exact extremes of a target.
pub(crate) fn extremes(observer: &'static str, values: &ValueStats, target: &Target) -> Result<Range, Error> {
    let missing = |reason: String| Error::Observer { observer, reason };
    let found = match target {
        Target::Tensor => values.range(),
        Target::Channel(c) => channels(observer, values)?.range(*c),
        Target::Channels(group) => {
            let channels = channels(observer, values)?;
            group
                .clone()
                .map(|c| channels.range(c))
                .reduce(|a, b| a.zip(b).map(|((al, ah), (bl, bh))| (al.min(bl), ah.max(bh))))
                .flatten()
        }
    };
    let (lo, hi) = found.ok_or_else(|| missing(format!("the statistics hold no element of {}", words(target))))?;
    Ok(Range::new(f64::from(lo), f64::from(hi)))
}

/// The histogram of a target; never empty.
pub(crate) fn histogram(observer: &'static str, values: &ValueStats, target: &Target) -> Result<Histogram, Error> {
    let missing = |reason: String| Error::Observer { observer, reason };
    let found = match target {
        Target::Tensor => values
            .sketch()
            .ok_or_else(|| missing("only ranges were recorded for this value; calibrate again with its histogram".into()))?
            .histogram(u32::MAX),
        Target::Channel(_) | Target::Channels(_) => {
            let channels = channels(observer, values)?;
            if !channels.has_sketches() {
                return Err(missing(
                    "only ranges were recorded for this value's channels; calibrate again with channel histograms".into(),
                ));
            }
            match target {
                Target::Channel(c) => channels.histogram(*c),
                Target::Channels(group) => channels.group(group.clone()),
                Target::Tensor => None,
            }
            .ok_or_else(|| {
                missing(format!("the statistics do not have {}: there are {} channels", words(target), channels.len()))
            })?
        }
    };
    if found.count() == 0 {
        return Err(missing(format!("the statistics hold no element of {}", words(target))));
    }
    Ok(found)
}

fn channels<'a>(observer: &'static str, values: &'a ValueStats) -> Result<&'a super::channels::Channels, Error> {
    values.channels().ok_or_else(|| Error::Observer {
        observer,
        reason: "no channels were recorded for this value; calibrate again with its channel axis".into(),
    })
}

fn words(target: &Target) -> String {
    match target {
        Target::Tensor => "this value".into(),
        Target::Channel(c) => format!("channel {c}"),
        Target::Channels(group) => format!("channels {} to {}", group.start, group.end.saturating_sub(1)),
    }
}
