//! Ranges become scales and zero points.

use super::plan::{Codes, Factors, Scheme, ZeroPoint};
use crate::calib::channels::Channels;
use crate::calib::kl::Kl;
use crate::calib::minmax::Minmax;
use crate::calib::omse::Omse;
use crate::calib::percentile::Percentile;
use crate::calib::piecewise::{self, PiecewiseOptions};
use crate::calib::ptf::{self, PtfOptions, Reach};
use crate::calib::{Error as CalibError, Grid, Observer, Range, RangeQuery, ValueStats};
use crate::config::schema::{CalibrationMode, Observer as ObserverKind, SiteConfig};

/// The observer that an entry asks for.
pub(super) fn observer(cfg: &SiteConfig, moving_average: bool) -> Result<Box<dyn Observer>, CalibError> {
    Ok(match cfg.observer {
        ObserverKind::Minmax => Box::new(Minmax),
        ObserverKind::Percentile => {
            Box::new(Percentile::new(cfg.percentile_alpha, moving_average.then_some(cfg.percentile_sigma))?)
        }
        ObserverKind::Omse => Box::new(Omse),
        ObserverKind::Kl => Box::new(Kl::new(cfg.kl_bins)?),
    })
}

pub(super) fn grid(cfg: &SiteConfig) -> Result<Grid, CalibError> {
    if cfg.symmetric { Grid::symmetric(cfg.bits) } else { Grid::affine(cfg.bits) }
}

pub(super) fn range(seen: &ValueStats, cfg: &SiteConfig) -> Result<Range, CalibError> {
    observer(cfg, true)?.range(seen, &RangeQuery::tensor(grid(cfg)?))
}

/// Scale and zero point of a range, as ONNX's affine quantisation needs them: zero is a code.
pub(crate) fn affine_scheme(range: Range, codes: Codes, symmetric: bool) -> Scheme {
    let (low, high) = codes.range();
    let middle = if codes.signed { 0 } else { 1 << (codes.bits - 1) };
    if symmetric {
        let bound = range.lo.abs().max(range.hi.abs());
        let steps = f64::from((1i32 << (codes.bits - 1)) - 1);
        return Scheme::Affine { codes, scale: positive_scale(bound / steps), zero_point: middle };
    }
    let range = range.with_zero();
    let scale = positive_scale((range.hi - range.lo) / f64::from(high - low));
    let zero = f64::from(low) - range.lo / f64::from(scale);
    let zero_point = zero.round_ties_even().clamp(f64::from(low), f64::from(high)) as i32;
    Scheme::Affine { codes, scale, zero_point }
}

/// A scale as f32; a tensor that is always 0 gets 1.
pub(super) fn positive_scale(scale: f64) -> f32 {
    let scale = scale as f32;
    if scale.is_finite() && scale >= f32::MIN_POSITIVE { scale } else { 1.0 }
}

pub(super) fn ptf_scheme(seen: &ValueStats, cfg: &SiteConfig, codes: Codes, reach: Reach) -> Result<Scheme, CalibError> {
    ptf_fit(seen, cfg, codes, reach).map(|(scheme, _)| scheme)
}

/// Codes with small steps in the middle and large ones beyond, or those that lie evenly: whichever have the least squared error.
pub(super) fn piecewise_scheme(seen: &ValueStats, cfg: &SiteConfig, codes: Codes) -> Result<Scheme, CalibError> {
    let (even, error) = ptf_fit(seen, cfg, codes, Reach::Seen)?;
    let histograms = |c: &Channels| (0..c.len()).map(|at| c.histogram(at)).collect::<Option<Vec<_>>>();
    let options = PiecewiseOptions { bits: cfg.bits, max_exponent: cfg.max_exponent, mantissa_bits: cfg.ptf_mantissa_bits };
    let fit = seen.channels().and_then(histograms).and_then(|channels| piecewise::fit(&channels, options));
    let Some(fit) = fit.filter(|fit| fit.squared_error < error) else { return Ok(even) };
    let grid = Scheme::Ptf {
        codes: Codes { bits: fit.segments.level_bits(), signed: true },
        scale: positive_scale(fit.base),
        zero_point: ZeroPoint::of_channels(fit.zero_points),
        factors: Factors::new(&fit.exponents, cfg.ptf_mantissa_bits, &fit.mantissas),
    };
    Ok(Scheme::Piecewise { grid: Box::new(grid), segments: fit.segments })
}

/// And the squared error.
fn ptf_fit(seen: &ValueStats, cfg: &SiteConfig, codes: Codes, reach: Reach) -> Result<(Scheme, f64), CalibError> {
    let own_zero_points = cfg.calibration_mode == CalibrationMode::ChannelWise;
    let options = PtfOptions {
        bits: cfg.bits,
        max_exponent: cfg.max_exponent,
        mantissa_bits: cfg.ptf_mantissa_bits,
        search: cfg.ptf_search,
        own_zero_points,
        reach,
    };
    // The search weighs clipping against resolution itself, channel by channel.
    let clipped = if options.search && cfg.observer == ObserverKind::Omse { None } else { Some(range(seen, cfg)?) };
    let found = ptf::from_stats(seen, clipped, &[], options)?;
    let fit = found.ptf;
    let offset = if codes.signed { 1i32 << (codes.bits - 1) } else { 0 };
    let scheme = Scheme::Ptf {
        codes,
        scale: positive_scale(fit.base),
        zero_point: ZeroPoint::of_channels(fit.zero_points).map(|z| z - offset),
        factors: Factors::new(&fit.exponents, cfg.ptf_mantissa_bits, &fit.mantissas),
    };
    Ok((scheme, found.squared_error))
}
