//! Codebooks: which of the 8-bit codes of a value occur.

use super::affine_scheme;
use super::params::{positive_scale, ptf_scheme, range};
use super::plan::{Codes, Factors, Scheme, ZeroPoint};
use crate::calib::channels::Channels;
use crate::calib::codebook::Grid;
use crate::calib::histogram::Histogram;
use crate::calib::{Error, ValueStats};
use crate::config::schema::SiteConfig;

/// The grid's width.
const BITS: u8 = 8;
/// Grids that are tried: the range, and smaller ones by half octaves.
const SHRINKS: [f64; 5] = [1.0, std::f64::consts::FRAC_1_SQRT_2, 0.5, 0.5 * std::f64::consts::FRAC_1_SQRT_2, 0.25];

/// How a codebook's grid is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum GridKind {
    /// One scale for the tensor.
    Tensor,
    /// Zero points at the channels' means and factors by their spread, so that the levels serve all channels alike.
    Spread,
    /// As PTF without a codebook has it, this share of the channels with one factor: a few stand far out.
    Far {
        /// The share.
        shared: f64,
    },
}

/// The grid and the `2^bits` levels on it with the least squared error.
pub(super) fn scheme(seen: &ValueStats, cfg: &SiteConfig, signed: bool, kind: GridKind) -> Result<Scheme, Error> {
    let codes = Codes { bits: BITS, signed };
    let grid = match kind {
        GridKind::Tensor => affine_scheme(range(seen, cfg)?, codes, false),
        GridKind::Far { shared } => ptf_scheme(seen, &SiteConfig { bits: BITS, ..cfg.clone() }, codes, shared)?,
        GridKind::Spread => spread(seen, cfg, codes)?,
    };
    let k = 1usize << cfg.bits.min(BITS - 1);
    let fits = SHRINKS.iter().filter_map(|&shrink| {
        let grid = scaled(&grid, shrink)?;
        let (levels, error) = fill(seen, &grid)?.levels(k);
        let low = codes.range().0;
        // At most 255.
        let levels: Vec<i32> = levels.into_iter().map(|level| level as i32 + low).collect();
        Some((Scheme::Codebook { grid: Box::new(grid), levels }, error))
    });
    let best = fits.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(scheme, _)| scheme);
    best.filter(|s| !matches!(s, Scheme::Codebook { levels, .. } if levels.is_empty())).ok_or_else(|| Error::Observer {
        observer: "codebook",
        reason: "the statistics hold no histogram of this value; calibrate again with this configuration".into(),
    })
}

/// A grid whose steps are `factor` times as large; an affine one keeps the code of zero where its range is shortened on both sides.
fn scaled(grid: &Scheme, factor: f64) -> Option<Scheme> {
    let mut grid = grid.clone();
    let (Scheme::Affine { scale, .. } | Scheme::Ptf { scale, .. }) = &mut grid else { return None };
    *scale = positive_scale(f64::from(*scale) * factor);
    Some(grid)
}

/// Mean and standard deviation of a histogram, its bins taken as even.
fn moments(histogram: &Histogram) -> (f64, f64) {
    let n = histogram.count().max(1) as f64;
    let sum = |f: fn(f64, f64) -> f64| histogram.bins().iter().map(|b| b.count as f64 * f(b.lo, b.hi)).sum::<f64>() / n;
    let (first, second) = (sum(|a, b| 0.5 * (a + b)), sum(|a, b| (a * a + a * b + b * b) / 3.0));
    (first, (second - first * first).max(0.0).sqrt())
}

/// Every channel's mean as its zero point, its spread as its power of two; the widest channel, so measured, spans the codes.
fn spread(seen: &ValueStats, cfg: &SiteConfig, codes: Codes) -> Result<Scheme, Error> {
    let missing = || Error::Observer {
        observer: "codebook",
        reason: "the statistics hold no channel histograms of this value; calibrate again with them".into(),
    };
    let channels = seen.channels().filter(|c| c.has_sketches()).ok_or_else(missing)?;
    let shapes: Vec<(f64, f64, f64)> = (0..channels.len()).map(|c| shape(channels, c)).collect();
    let widest = shapes.iter().map(|s| s.1).fold(0.0, f64::max);
    let least = widest / f64::from(1u32 << cfg.max_exponent.min(15));
    let exponent = |sd: f64| if sd > least && least > 0.0 { (sd / least).log2().round().clamp(0.0, 15.0) as u8 } else { 0 };
    let exponents: Vec<u8> = shapes.iter().map(|s| exponent(s.1)).collect();
    let top = f64::from(codes.range().1 - codes.range().0) / 2.0;
    let factor = |e: u8| f64::from(1u32 << e);
    let reach = shapes.iter().zip(&exponents).map(|(s, &e)| s.2 / factor(e)).fold(0.0, f64::max);
    let scale = positive_scale(reach / top);
    let (low, high) = codes.range();
    let middle = f64::from(low) + top.ceil();
    let zero = |mean: f64, e: u8| {
        let code = middle - mean / (f64::from(scale) * factor(e));
        code.round_ties_even().clamp(f64::from(low), f64::from(high)) as i32
    };
    let zero_points = shapes.iter().zip(&exponents).map(|(s, &e)| zero(s.0, e)).collect();
    let factors = Factors::powers_of_two(&exponents);
    Ok(Scheme::Ptf { codes, scale, zero_point: ZeroPoint::of_channels(zero_points), factors })
}

/// A channel's mean, its standard deviation, and how far it goes from its mean.
fn shape(channels: &Channels, c: usize) -> (f64, f64, f64) {
    let Some(histogram) = channels.histogram(c).filter(|h| h.count() > 0) else { return (0.0, 0.0, 0.0) };
    let (mean, sd) = moments(&histogram);
    (mean, sd, (histogram.max() - mean).max(mean - histogram.min()))
}

/// What calibration saw on a grid; `None` without histograms. A channel's error counts with the square of its steps.
fn fill(seen: &ValueStats, grid: &Scheme) -> Option<Grid> {
    let mut out = Grid::new(1 << BITS);
    let mut add = |histogram: &Histogram, scale: f64, zero: i32, low: i32| {
        let code = |x: f64| x / scale + f64::from(zero - low);
        histogram.bins().iter().for_each(|b| out.add(code(b.lo), code(b.hi), b.count as f64 * scale * scale));
    };
    match grid {
        Scheme::Affine { codes, scale, zero_point } => {
            add(&seen.sketch()?.histogram(u32::MAX), f64::from(*scale), *zero_point, codes.range().0);
        }
        Scheme::Ptf { codes, scale, zero_point, factors } => {
            let channels = seen.channels()?;
            for (c, (s, z)) in factors.scales(*scale)?.into_iter().zip(zero_point.as_slice().iter().cycle()).enumerate() {
                add(&channels.histogram(c)?, f64::from(s), *z, codes.range().0);
            }
        }
        _ => return None,
    }
    Some(out)
}
