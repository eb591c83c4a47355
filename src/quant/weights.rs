//! Scales of constants.

use super::params::{observer, positive_scale};
use super::plan::Scheme;
use crate::calib::observer::Target as Part;
use crate::calib::stats::{Recording, ValueStats};
use crate::calib::{Grid, RangeQuery};
use crate::config::schema::{CalibrationMode, Observer, SiteConfig};
use crate::ir::Tensor;
use crate::vit::Site;

/// The channel axis of a constant: the output channel of a Linear's `[in, out]` and of a convolution's `[out, in, …]`, the
/// last axis of anything else.
fn channel_axis(site: Site, shape: &[usize]) -> Option<usize> {
    match (site, shape.len()) {
        (_, 0) => None,
        (Site::Conv | Site::PatchEmbed, _) => Some(0),
        (_, n) => Some(n - 1),
    }
}

/// The scheme of a constant, and its smallest and largest element.
pub(super) fn scheme(site: Site, tensor: &Tensor, cfg: &SiteConfig) -> Result<(Scheme, [f32; 2]), String> {
    let data = tensor.to_f32().map_err(|e| e.to_string())?;
    let axis = match cfg.calibration_mode {
        CalibrationMode::LayerWise => None,
        CalibrationMode::ChannelWise => channel_axis(site, &tensor.shape),
    };
    let from_end = axis.and_then(|a| u8::try_from(tensor.shape.len() - a).ok());
    let recording = Recording {
        sketch: true,
        outliers: axis.is_none() && cfg.observer == Observer::Kl,
        channel_axis: from_end,
        channel_sketches: from_end.is_some() && cfg.observer != Observer::Minmax,
        percentiles: Vec::new(),
    };
    let text = |e: crate::calib::Error| e.to_string();
    let seen = ValueStats::from_samples(recording, [(tensor.shape.as_slice(), data.as_slice())]).map_err(text)?;
    let observer = observer(cfg, false).map_err(text)?;
    let grid = Grid::symmetric(cfg.bits).map_err(text)?;
    let parts: Vec<Part> = match axis {
        None => vec![Part::Tensor],
        Some(a) => (0..tensor.shape[a]).map(Part::Channel).collect(),
    };
    let steps = f64::from((1i32 << (cfg.bits - 1)) - 1);
    let scales = parts
        .into_iter()
        .map(|target| {
            let range = observer.range(&seen, &RangeQuery { target, grid }).map_err(text)?;
            Ok(positive_scale(range.symmetric().hi / steps))
        })
        .collect::<Result<Vec<f32>, String>>()?;
    let (lo, hi) = seen.range().unwrap_or((0.0, 0.0));
    Ok((Scheme::Weight { bits: cfg.bits, axis, scales }, [lo, hi]))
}
