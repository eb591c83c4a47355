//! Where samples come from, and the parts of a data set that one run takes.

use crate::calib::error::Error;
use crate::calib::run::{Failure, Named};
use crate::calib::stats::Digest;
use std::fmt;
use std::str::FromStr;

/// Where samples come from.
pub trait SampleSource: Sync {
    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index of sample `i` in the whole data set: what identifies it when shards merge.
    fn index(&self, i: usize) -> u64 {
        i as u64
    }

    /// What a person calls sample `i`: its file name, say.
    fn name(&self, i: usize) -> String {
        format!("{}", self.index(i))
    }

    /// The model's inputs for sample `i`, or `None` if the source skips it (a corrupt file that the user said to skip).
    ///
    /// # Errors
    /// The sample cannot be read.
    fn get(&self, i: usize) -> Result<Option<Named>, Failure>;

    /// How many samples the whole data set has, of which this may be a part.
    fn total(&self) -> u64 {
        self.len() as u64
    }

    /// Whether this is a part of a larger set. A part may be empty; a whole set must not be.
    fn is_part(&self) -> bool {
        false
    }

    /// A digest of the whole sample list and its preprocessing, equal for all shards of it.
    fn digest(&self) -> Digest {
        Digest::default()
    }
}

/// One of several equal parts of a data set: every `of`-th sample, beginning with the one at `index`.
///
/// Parts are interleaved, so that their sizes differ by one sample at most and a folder sorted by class is spread over all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    index: usize,
    of: usize,
}

impl Part {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Part `index`, counted from 0, of `of`.
    ///
    /// # Errors
    /// `index` is not below `of`.
    pub fn new(index: usize, of: usize) -> Result<Self, Error> {
        if index < of {
            Ok(Self { index, of })
        } else {
            Err(Error::Option {
                name: "shard",
                found: format!("{}/{of}", index.saturating_add(1)),
                expected: "K/N with K between 1 and N",
            })
        }
    }

    /// Whether this is all of the data set.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.of == 1
    }
}

impl fmt::Display for Part {
    /// `K/N`, counted from 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

impl FromStr for Part {
    type Err = Error;

    /// Reads `K/N` with 1 ≤ K ≤ N.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Option { name: "shard", found: format!("'{text}'"), expected: "K/N with K between 1 and N" };
        let (k, n) = text.split_once('/').ok_or_else(wrong)?;
        let number = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<usize>().ok() } else { None };
        let (k, n) = (number(k).ok_or_else(wrong)?, number(n).ok_or_else(wrong)?);
        Self::new(k.checked_sub(1).ok_or_else(wrong)?, n)
    }
}

/// Some of a source's samples. What is left out still counts in [`SampleSource::total`].
pub struct Selection<'a> {
    source: &'a dyn SampleSource,
    positions: Vec<usize>,
}

impl<'a> Selection<'a> {
    /// The samples of a part.
    #[must_use]
    pub fn part(source: &'a dyn SampleSource, part: Part) -> Self {
        Self { source, positions: (part.index..source.len()).step_by(part.of).collect() }
    }

    /// Without the samples whose indices (ascending) are given.
    #[must_use]
    pub fn without(mut self, indices: &[u64]) -> Self {
        let source = self.source;
        self.positions.retain(|&i| indices.binary_search(&source.index(i)).is_err());
        self
    }

    /// The next samples, at most `n`, which are taken out of this selection.
    #[must_use]
    pub fn take(&mut self, n: usize) -> Self {
        let rest = self.positions.split_off(n.min(self.positions.len()));
        Self { source: self.source, positions: std::mem::replace(&mut self.positions, rest) }
    }

    /// The indices of all samples, ascending.
    #[must_use]
    pub fn indices(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.positions.iter().map(|&i| self.source.index(i)).collect();
        all.sort_unstable();
        all
    }

    fn inner(&self, i: usize) -> usize {
        self.positions.get(i).copied().unwrap_or(usize::MAX)
    }
}

impl SampleSource for Selection<'_> {
    fn len(&self) -> usize {
        self.positions.len()
    }
    fn index(&self, i: usize) -> u64 {
        self.source.index(self.inner(i))
    }
    fn name(&self, i: usize) -> String {
        self.source.name(self.inner(i))
    }
    fn get(&self, i: usize) -> Result<Option<Named>, Failure> {
        self.source.get(self.inner(i))
    }
    fn total(&self) -> u64 {
        self.source.total()
    }
    fn is_part(&self) -> bool {
        self.source.is_part() || self.positions.len() < self.source.len()
    }
    fn digest(&self) -> Digest {
        self.source.digest()
    }
}
