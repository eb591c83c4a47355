//! Codebooks: which of the 8-bit codes of a value occur.

use super::affine_scheme;
use super::params::{positive_scale, ptf_scheme, range};
use super::plan::{Codes, Factors, Scheme, ZeroPoint};
use crate::calib::codebook::Grid;
use crate::calib::histogram::Histogram;
use crate::calib::ptf::Reach;
use crate::calib::{Error, ValueStats};
use crate::config::schema::SiteConfig;
use crate::parallel;

/// The grid's width.
pub(crate) const GRID_BITS: u8 = 8;

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

/// Where a channel's values are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Shape {
    /// Their mean.
    pub(crate) mean: f64,
    /// Their standard deviation.
    pub(crate) deviation: f64,
    /// How far they go from their mean.
    pub(crate) reach: f64,
}

/// The grid and the `2^bits` levels on it with the least squared error, by what calibration saw.
pub(super) fn scheme(seen: &ValueStats, cfg: &SiteConfig, signed: bool, kind: GridKind) -> Result<Scheme, Error> {
    let codes = Codes { bits: GRID_BITS, signed };
    let missing = || Error::Observer {
        observer: "codebook",
        reason: "the statistics hold no histograms of this value; calibrate again with this configuration".into(),
    };
    let grids = match kind {
        GridKind::Tensor => shrunk(&affine_scheme(range(seen, cfg)?, codes, false)),
        GridKind::Far { shared } => {
            shrunk(&ptf_scheme(seen, &SiteConfig { bits: GRID_BITS, ..cfg.clone() }, codes, Reach::Shared(shared))?)
        }
        GridKind::Spread => {
            let channels = seen.channels().filter(|c| c.has_sketches()).ok_or_else(missing)?;
            let shapes: Vec<Shape> = (0..channels.len()).filter_map(|c| channels.histogram(c)).map(|h| shape(&h)).collect();
            about_means(&shapes, cfg.max_exponent, codes)
        }
    };
    best(grids, cfg.bits, 1, |grid| fill(seen, grid)).ok_or_else(missing)
}

/// The best of some grids with its levels; `fill` says what falls on a grid. `None` when nothing does.
pub(crate) fn best(
    grids: Vec<Scheme>,
    bits: u8,
    threads: usize,
    fill: impl Fn(&Scheme) -> Option<Grid> + Sync,
) -> Option<Scheme> {
    let fits = parallel::map(grids.len(), threads, |i| {
        let grid = grids.get(i)?;
        let (Scheme::Affine { codes, .. } | Scheme::Ptf { codes, .. }) = grid else { return None };
        let (levels, error) = fill(grid)?.levels(1 << bits.clamp(1, GRID_BITS - 1));
        // At most 255, from the lowest code on.
        let levels: Vec<i32> = levels.into_iter().map(|level| level as i32 + codes.range().0).collect();
        (!levels.is_empty()).then(|| (Scheme::Codebook { grid: Box::new(grid.clone()), levels }, error))
    });
    fits.into_iter().flatten().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(scheme, _)| scheme)
}

/// `2^(n/2)` for a range of n.
fn half_octaves(range: std::ops::RangeInclusive<i32>) -> impl Iterator<Item = f64> {
    range.map(|n| (0.5 * f64::from(n)).exp2())
}

/// A grid, and the same with smaller steps, to a quarter; zero keeps its code.
pub(crate) fn shrunk(grid: &Scheme) -> Vec<Scheme> {
    let scaled = |part: f64| {
        let mut grid = grid.clone();
        if let Scheme::Affine { scale, .. } | Scheme::Ptf { scale, .. } = &mut grid {
            *scale = positive_scale(f64::from(*scale) * part);
        }
        grid
    };
    half_octaves(-4..=0).map(scaled).collect()
}

/// Grids with every channel's mean in the middle of the codes and its spread as its power of two. The codes of the first reach a
/// quarter of the way that the widest channel, so measured, goes from its mean; those of the last eight times as far: the
/// coarser the steps, the farther from zero a mean may lie.
pub(crate) fn about_means(shapes: &[Shape], max_exponent: u8, codes: Codes) -> Vec<Scheme> {
    half_octaves(-4..=6).map(|part| about_mean(shapes, max_exponent, codes, part)).collect()
}

fn about_mean(shapes: &[Shape], max_exponent: u8, codes: Codes, part: f64) -> Scheme {
    let widest = shapes.iter().map(|s| s.deviation).fold(0.0, f64::max);
    let least = widest / f64::from(1u32 << max_exponent.min(15));
    let exponent =
        |sd: f64| if sd > least && least > 0.0 { (sd / least).log2().round_ties_even().clamp(0.0, 15.0) as u8 } else { 0 };
    let mut exponents: Vec<u8> = shapes.iter().map(|s| exponent(s.deviation)).collect();
    let factor = |e: u8| f64::from(1u32 << e);
    let (low, high) = codes.range();
    let top = f64::from(high - low) / 2.0;
    let reach = shapes.iter().zip(&exponents).map(|(s, &e)| s.reach / factor(e)).fold(0.0, f64::max);
    let scale = positive_scale(part * reach / top);
    // A zero point is a code: a channel that lies far from zero and hardly moves has larger steps.
    for (shape, e) in shapes.iter().zip(&mut exponents) {
        while shape.mean.abs() > (top - 1.0) * f64::from(scale) * factor(*e) && *e < 15 {
            *e += 1;
        }
    }
    let middle = f64::from(low) + top.ceil();
    let zero = |(shape, &e): (&Shape, &u8)| {
        let code = middle - shape.mean / (f64::from(scale) * factor(e));
        code.round_ties_even().clamp(f64::from(low), f64::from(high)) as i32
    };
    let zero_point = ZeroPoint::of_channels(shapes.iter().zip(&exponents).map(zero).collect());
    Scheme::Ptf { codes, scale, zero_point, factors: Factors::powers_of_two(&exponents) }
}

/// A channel's by its histogram, whose bins are taken as even.
fn shape(histogram: &Histogram) -> Shape {
    if histogram.count() == 0 {
        return Shape::default();
    }
    let n = histogram.count() as f64;
    let sum = |f: fn(f64, f64) -> f64| histogram.bins().iter().map(|b| b.count as f64 * f(b.lo, b.hi)).sum::<f64>() / n;
    let (mean, second) = (sum(|a, b| 0.5 * (a + b)), sum(|a, b| (a * a + a * b + b * b) / 3.0));
    let reach = (histogram.max() - mean).max(mean - histogram.min());
    Shape { mean, deviation: (second - mean * mean).max(0.0).sqrt(), reach }
}

/// What calibration saw on a grid; `None` without histograms. A channel's error counts with the square of its steps.
fn fill(seen: &ValueStats, grid: &Scheme) -> Option<Grid> {
    let mut out = Grid::new(1 << GRID_BITS);
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
