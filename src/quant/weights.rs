//! Scales of constants, and levels of those that have few.

use super::codebook::GRID_BITS;
use super::params::{observer, positive_scale};
use super::plan::groups::PRODUCT_BITS;
use super::plan::{Groups, Scheme, channel_axis};
use crate::calib::observer::Target as Part;
use crate::calib::stats::{Recording, ValueStats};
use crate::calib::{Grid, RangeQuery, codebook};
use crate::config::schema::{CalibrationMode, Method, Observer, SiteConfig};
use crate::ir::Tensor;
use crate::vit::Site;

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
    let codebook = cfg.method == Method::Codebook && cfg.bits < GRID_BITS;
    let groups = Groups { bits: cfg.bits, size: usize::from(cfg.group_size) };
    let groups = (!codebook && axis.is_some() && groups.is_valid()).then_some(groups);
    let bits = match groups {
        Some(_) => PRODUCT_BITS,
        None if codebook => GRID_BITS,
        None => cfg.bits,
    };
    let grid = Grid::symmetric(bits).map_err(text)?;
    let parts: Vec<Part> = match axis {
        None => vec![Part::Tensor],
        Some(a) => (0..tensor.shape[a]).map(Part::Channel).collect(),
    };
    let steps = f64::from(groups.map_or((1i32 << (bits - 1)) - 1, Groups::largest));
    let scales = parts
        .into_iter()
        .map(|target| {
            let range = observer.range(&seen, &RangeQuery { target, grid }).map_err(text)?;
            Ok(positive_scale(range.symmetric().hi / steps))
        })
        .collect::<Result<Vec<f32>, String>>()?;
    let (lo, hi) = seen.range().unwrap_or((0.0, 0.0));
    let levels = codebook.then(|| levels(&data, axis.map(|a| &tensor.shape[a + 1..]), &scales, cfg.bits));
    let scheme = Scheme::Weight { bits, axis, scales };
    let scheme = match (levels, groups) {
        (Some(levels), _) => Scheme::Codebook { grid: Box::new(scheme), levels },
        (None, Some(groups)) => Scheme::Groups { grid: Box::new(scheme), groups },
        (None, None) => scheme,
    };
    Ok((scheme, [lo, hi]))
}

/// The `2^bits` codes of [`GRID_BITS`] bits with the least squared error of these values. `inner` are the dimensions after that of the scales.
/// 0 is one of them where a channel has no other value: its scale says nothing of how small its weights are.
fn levels(data: &[f32], inner: Option<&[usize]>, scales: &[f32], bits: u8) -> Vec<i32> {
    let top = (1i32 << (GRID_BITS - 1)) - 1;
    let run = inner.map_or(data.len(), |dims| dims.iter().product()).max(1);
    let mut seen = codebook::Grid::new(2 * top as usize + 1);
    let mut largest = vec![0.0f32; scales.len()];
    let channels = (0..scales.len()).cycle();
    for (values, c) in data.chunks(run).zip(channels) {
        let scale = f64::from(scales[c]);
        for value in values {
            largest[c] = largest[c].max(value.abs());
            seen.add_value(f64::from(*value) / scale + f64::from(top), scale * scale);
        }
    }
    let (levels, _) = seen.levels(1 << bits);
    let mut levels: Vec<i32> = levels.into_iter().map(|level| level as i32 - top).collect();
    let nothing = largest.iter().any(|&m| m < f32::MIN_POSITIVE * (4 * top) as f32);
    if let Some(least) = levels.iter_mut().min_by_key(|level| level.abs()).filter(|_| nothing) {
        *least = 0;
    }
    if let [one] = levels[..] {
        // A codebook has two levels at least.
        levels.push(if one < top { one + 1 } else { one - 1 });
        levels.sort_unstable();
    }
    levels
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::config::schema::Config;
    use crate::quant::fake::fake_constant;

    fn levels_for(shape: &[usize], data: &[f32]) -> (Scheme, Vec<f32>) {
        let cfg = SiteConfig { bits: 4, method: Method::Codebook, ..Config::default().resolve(None, "mlp_fc1") };
        let tensor = Tensor::new(shape, data).unwrap();
        let (scheme, _) = scheme(Site::MlpFc1, &tensor, &cfg).unwrap();
        let kept = fake_constant(&tensor, &scheme.constant().unwrap()).unwrap().to_f32().unwrap();
        (scheme, kept)
    }

    /// Of the values on their own scales: where they have but few, nothing is lost but the grid's rounding.
    #[test]
    fn few_values_are_kept() {
        let values = [-1.0f32, -0.9, -0.2, -0.1, 0.05, 0.3, 0.7, 1.0];
        let data: Vec<f32> = (0..64).map(|i| values[(i * 5 + i / 8) % 8] * if i % 2 == 0 { 1.0 } else { 20.0 }).collect();
        let (_, kept) = levels_for(&[32, 2], &data);
        for (i, (x, k)) in data.iter().zip(&kept).enumerate() {
            assert!((x - k).abs() <= 0.5001 / 127.0 * if i % 2 == 0 { 1.0 } else { 20.0 }, "{i}: {x} {k}");
        }
    }

    /// A channel without a weight keeps none, whatever the levels of the others are.
    #[test]
    fn a_channel_of_zeros_stays_one() {
        let data: Vec<f32> = (0..300).map(|i| if i % 3 == 1 { 0.0 } else { ((i * 37 % 101) as f32 - 50.3) / 50.0 }).collect();
        let (scheme, kept) = levels_for(&[100, 3], &data);
        assert!(kept.iter().skip(1).step_by(3).all(|&k| k == 0.0), "{scheme:?}");
        let (scheme, kept) = levels_for(&[4, 2], &[0.0; 8]);
        assert!(
            kept.iter().all(|&k| k == 0.0) && matches!(&scheme, Scheme::Codebook { levels, .. } if levels.len() == 2),
            "{scheme:?}"
        );
    }
}
