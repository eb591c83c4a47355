//! The statistics file: `magic, format version, model digest, postcard payload, SHA-256 of all before`.
//!
//! The same content gives the same bytes. Counters are packed with run lengths for zeros (`0, run − 1` or the count itself, LEB128), since
//! most bins are empty. Reading trusts nothing: every length is bounded by the bytes present (an empty channel costs 8 bytes in the file and a
//! kilobyte in memory, which is the worst ratio), every invariant that the observers rely on is checked.

use crate::calib::channels::Channels;
use crate::calib::error::Error;
use crate::calib::rows::{ROW, Rows};
use crate::calib::sketch::{MAX_EXPONENT, PAGE, SHIFT, Sketch, split_key};
use crate::calib::sparse::Sparse;
use crate::calib::stats::{Digest, Recording, SampleRange, Stats, ValueStats};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The newest format that this version reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 5;
const MAGIC: &[u8; 8] = b"vitqstat";
const HEADER: usize = 8 + 4 + 32;
const CHECKSUM: usize = 32;
/// No counter reaches this; so sums of a few never overflow.
const COUNT_LIMIT: u64 = 1 << 56;

#[derive(Serialize, Deserialize)]
struct StatsWire {
    data: Digest,
    total: u64,
    samples: Vec<u64>,
    skipped: Vec<u64>,
    values: Vec<(String, ValueWire)>,
}

#[derive(Serialize, Deserialize)]
struct ValueWire {
    recording: Recording,
    shape: Option<Vec<u64>>,
    sketch: Option<SketchWire>,
    channels: Option<ChannelsWire>,
    /// One for each of the file's samples, in their order.
    samples: Vec<RangeWire>,
}

type RangeWire = (f32, f32, Vec<(f32, f32)>);

#[derive(Serialize, Deserialize)]
struct SketchWire {
    zero: u64,
    /// Ascending keys, packed counts.
    pages: Vec<(i16, Vec<u8>)>,
    /// The elements of the sparse outer bins, where they are kept, in the order of the bins: of each its lower bits, the upper ones being
    /// the bin.
    sparse: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct ChannelsWire {
    count: u64,
    lo: Vec<f32>,
    hi: Vec<f32>,
    /// All rows, packed together.
    rows: Option<Vec<u8>>,
}

impl Stats {
    /// The file's content. Equal statistics give equal bytes.
    ///
    /// # Errors
    /// None that is known; the encoder's own errors are passed on.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let wire = StatsWire {
            data: self.data,
            total: self.total,
            samples: self.samples.clone(),
            skipped: self.skipped.clone(),
            values: self.values.iter().map(|(name, value)| (name.clone(), value_out(value))).collect(),
        };
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.model.0);
        let mut bytes = postcard::to_extend(&wire, bytes).map_err(|e| Error::File(format!("it could not be encoded: {e}")))?;
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        Ok(bytes)
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// Not a statistics file, a newer format, truncated or damaged content, content that no calibration produces. Never panics.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let file = |what: &str| Error::File(what.to_owned());
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(file("it does not begin as one; give a file that `vitq calibrate` wrote"));
        };
        let version = rest.first_chunk::<4>().map(|v| u32::from_le_bytes(*v));
        match version {
            Some(FORMAT_VERSION) => {}
            Some(version) if version > FORMAT_VERSION => {
                return Err(Error::File(format!(
                    "its format is version {version}, and this vitq reads up to {FORMAT_VERSION}; update vitq, or calibrate again"
                )));
            }
            Some(0) => return Err(file("format version 0 does not exist; the file is damaged")),
            Some(version) => {
                return Err(Error::File(format!(
                    "its format is version {version}, of an earlier vitq, and this one reads version {FORMAT_VERSION}; calibrate again"
                )));
            }
            None => return Err(file("it is truncated; copy it again, or calibrate again")),
        }
        let split = bytes.len().checked_sub(CHECKSUM).filter(|&at| at >= HEADER);
        let Some((content, checksum)) = split.and_then(|at| bytes.split_at_checked(at)) else {
            return Err(file("it is truncated; copy it again, or calibrate again"));
        };
        if Sha256::digest(content).as_slice() != checksum {
            return Err(file("its checksum does not match, so it is truncated or damaged; copy it again, or calibrate again"));
        }
        let model = content.get(12..HEADER).and_then(|d| d.try_into().ok()).map(Digest);
        let (Some(model), Some(payload)) = (model, content.get(HEADER..)) else {
            return Err(file("it is truncated; copy it again, or calibrate again"));
        };
        decode(model, payload)
            .map_err(|what| Error::File(format!("{what}; the file was not written by vitq, so calibrate again")))
    }
}

fn decode(model: Digest, payload: &[u8]) -> Result<Stats, String> {
    let (wire, rest) =
        postcard::take_from_bytes::<StatsWire>(payload).map_err(|e| format!("its content is not readable ({e})"))?;
    if !rest.is_empty() {
        return Err(format!("{} bytes follow its content", rest.len()));
    }
    let ascending = |list: &[u64]| list.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
    if !ascending(&wire.samples) || !ascending(&wire.skipped) {
        return Err("its samples are out of order".into());
    }
    if wire.skipped.iter().any(|s| wire.samples.binary_search(s).is_ok()) {
        return Err("a sample is both seen and skipped".into());
    }
    let last = wire.samples.last().max(wire.skipped.last());
    if last.is_some_and(|&last| last >= wire.total) {
        return Err(format!("a sample lies beyond its {} samples", wire.total));
    }
    let mut values = BTreeMap::new();
    for (name, value) in wire.values {
        if values.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(format!("value `{name}` is out of order"));
        }
        let value = value_in(value, &wire.samples).map_err(|what| format!("value `{name}` {what}"))?;
        values.insert(name, value);
    }
    Ok(Stats { model, data: wire.data, total: wire.total, samples: wire.samples, skipped: wire.skipped, values })
}

fn value_out(value: &ValueStats) -> ValueWire {
    ValueWire {
        recording: value.recording.clone(),
        shape: value.shape.clone(),
        sketch: value.sketch.as_ref().map(|sketch| SketchWire {
            zero: sketch.zero,
            pages: sketch.pages.iter().map(|(key, page)| (key, pack(page.iter()))).collect(),
            sparse: sketch.sparse.iter().flat_map(|s| &s.bits).flat_map(|&bits| (bits as u16).to_le_bytes()).collect(),
        }),
        channels: value.channels.as_ref().map(|channels| ChannelsWire {
            count: channels.count,
            lo: channels.lo.clone(),
            hi: channels.hi.clone(),
            rows: channels.rows.as_ref().map(|rows| pack(rows.iter().map(u64::from))),
        }),
        samples: value.samples.iter().map(|s| (s.lo, s.hi, s.percentiles.clone())).collect(),
    }
}

fn value_in(wire: ValueWire, indices: &[u64]) -> Result<ValueStats, String> {
    wire.recording.check().map_err(|e| format!("was recorded with options that do not exist ({e})"))?;
    if wire.samples.len() != indices.len() {
        return Err(format!("has {} samples of {}", wire.samples.len(), indices.len()));
    }
    let mut samples = Vec::new();
    for (&index, (lo, hi, percentiles)) in indices.iter().zip(wire.samples) {
        let inside = |x: f32| lo <= x && x <= hi;
        let fits = ordered(lo, hi)
            && percentiles.len() == wire.recording.percentiles.len()
            && percentiles.iter().all(|&(a, b)| a <= b && inside(a) && inside(b));
        if !fits {
            return Err(format!("has an impossible range on sample {index}"));
        }
        samples.push(SampleRange { index, lo, hi, percentiles });
    }
    let mut value = ValueStats { sketch: None, channels: None, recording: wire.recording, shape: wire.shape, samples };
    let seen = !indices.is_empty();
    if value.shape.is_some() != seen {
        return Err("has a shape without samples, or samples without a shape".into());
    }
    if wire.sketch.is_some() != value.recording.sketch
        || wire.channels.is_some() != (seen && value.recording.channel_axis.is_some())
    {
        return Err("does not hold what its recording says".into());
    }
    let range = value.range();
    value.sketch = wire.sketch.map(|sketch| sketch_in(&sketch, value.recording.outliers, range)).transpose()?;
    value.channels = wire.channels.map(|channels| channels_in(channels, value.recording.channel_sketches, range)).transpose()?;
    Ok(value)
}

fn ordered(lo: f32, hi: f32) -> bool {
    lo <= hi && lo.is_finite() && hi.is_finite()
}

/// The exponent field of the larger magnitude.
fn exponent(lo: f32, hi: f32) -> u32 {
    lo.abs().max(hi.abs()).to_bits() >> 23
}

fn sketch_in(wire: &SketchWire, outliers: bool, range: Option<(f32, f32)>) -> Result<Sketch, String> {
    let damaged = || "has an impossible histogram".to_owned();
    let Some((min, max)) = range else {
        return if wire.zero == 0 && wire.pages.is_empty() && wire.sparse.is_empty() {
            Ok(Sketch::new(outliers))
        } else {
            Err(damaged())
        };
    };
    let mut sketch = Sketch { count: wire.zero, zero: wire.zero, min, max, ..Sketch::new(outliers) };
    sketch.pages.reserve(sketch.count);
    let mut last = None;
    for (key, packed) in &wire.pages {
        let (negative, page_exponent) = split_key(*key);
        let limit = if negative { exponent(min.min(0.0), 0.0) } else { exponent(0.0, max.max(0.0)) };
        let in_place = (1..=MAX_EXPONENT).contains(&page_exponent) && u32::from(page_exponent) <= limit;
        if !in_place || last.is_some_and(|last| last >= *key) {
            return Err(damaged());
        }
        last = Some(*key);
        let counts = unpack(packed, PAGE).ok_or_else(damaged)?;
        let total = counts.iter().fold(0, |sum: u64, &count| sum.saturating_add(count));
        sketch.count = sketch.count.saturating_add(total);
        if total == 0 {
            return Err(damaged());
        }
        sketch.pages.reserve(sketch.count);
        sketch.pages.add_all(*key, counts);
    }
    if sketch.count == 0 || sketch.count >= COUNT_LIMIT {
        return Err(damaged());
    }
    if outliers {
        sketch.sparse = Some(sparse_in(&sketch, &wire.sparse).ok_or_else(damaged)?);
    } else if !wire.sparse.is_empty() {
        return Err(damaged());
    }
    Ok(sketch)
}

/// As many elements as the sparse bins have, ascending, within the extremes.
fn sparse_in(sketch: &Sketch, lower: &[u8]) -> Option<Sparse> {
    let (mut rest, []) = lower.as_chunks::<2>() else {
        return None;
    };
    let mut sparse = Sparse::default();
    for (slot, count) in sketch.sparse_bins() {
        let (own, others) = rest.split_at_checked(count)?;
        rest = others;
        sparse.bits.extend(own.iter().map(|&bits| u32::from(slot) << SHIFT | u32::from(u16::from_le_bytes(bits))));
    }
    let inside = |&bits: &u32| (sketch.min..=sketch.max).contains(&f32::from_bits(bits));
    (rest.is_empty() && sparse.bits.is_sorted() && sparse.bits.iter().all(inside)).then_some(sparse)
}

fn channels_in(wire: ChannelsWire, sketches: bool, range: Option<(f32, f32)>) -> Result<Channels, String> {
    let damaged = || "has impossible channels".to_owned();
    let inside = |&x: &f32| range.is_some_and(|(lo, hi)| lo <= x && x <= hi);
    let fits = wire.lo.len() == wire.hi.len()
        && wire.rows.is_some() == sketches
        && (1..=u64::from(u32::MAX)).contains(&wire.count)
        && wire.lo.iter().zip(&wire.hi).all(|(&lo, &hi)| ordered(lo, hi))
        && wire.lo.iter().chain(&wire.hi).all(inside);
    if !fits {
        return Err(damaged());
    }
    let rows = match wire.rows {
        None => None,
        Some(packed) => {
            // A row's top is the exponent of its extremes, so it is not in the file.
            let tops = wire.lo.iter().zip(&wire.hi).map(|(&lo, &hi)| u16::try_from(exponent(lo, hi)).unwrap_or(MAX_EXPONENT));
            let counts = wire.lo.len().checked_mul(ROW).and_then(|n| unpack(&packed, n)).ok_or_else(damaged)?;
            Some(Rows::from_parts(tops.collect(), &counts, wire.count).ok_or_else(damaged)?)
        }
    };
    Ok(Channels { count: wire.count, lo: wire.lo, hi: wire.hi, rows })
}

/// Counts as LEB128, runs of zeros as `0, run − 1`.
fn pack(counts: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut zeros = 0u64;
    for count in counts {
        if count == 0 {
            zeros += 1;
            continue;
        }
        flush_zeros(&mut bytes, &mut zeros);
        leb128(&mut bytes, count);
    }
    flush_zeros(&mut bytes, &mut zeros);
    bytes
}

fn flush_zeros(bytes: &mut Vec<u8>, zeros: &mut u64) {
    if *zeros > 0 {
        bytes.push(0);
        leb128(bytes, *zeros - 1);
        *zeros = 0;
    }
}

fn leb128(bytes: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        bytes.push((x & 0x7f) as u8 | 0x80);
        x >>= 7;
    }
    bytes.push(x as u8);
}

/// Exactly `length` counts, using up all bytes. `None` for anything else.
fn unpack(bytes: &[u8], length: usize) -> Option<Vec<u64>> {
    let mut bytes = bytes.iter();
    let mut counts = Vec::new();
    while counts.len() < length {
        let x = unleb128(&mut bytes)?;
        if x == 0 {
            let run = usize::try_from(unleb128(&mut bytes)?).ok()?.checked_add(1)?;
            let end = counts.len().checked_add(run).filter(|&end| end <= length)?;
            counts.resize(end, 0);
        } else {
            counts.push(x);
        }
    }
    bytes.as_slice().is_empty().then_some(counts)
}

fn unleb128(bytes: &mut std::slice::Iter<'_, u8>) -> Option<u64> {
    let mut x = 0u64;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.next()?;
        x |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(x);
        }
    }
    None
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
