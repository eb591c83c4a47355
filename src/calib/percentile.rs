//! Percentiles: clips the rarest values.
//!
//! FQ-ViT's PercentileObserver takes, batch by batch, `torch.quantile` at alpha and 1 − alpha and a moving average of both,
//! `new = old + sigma·(cur − old)`. With a sigma, each sample is a batch, in the order of sample indices; without one, the quantile is that of all
//! elements of all samples together, which no order or batch size can change.

use crate::calib::error::Error;
use crate::calib::observer::{Observer, Range, RangeQuery, Target, extremes, histogram};
use crate::calib::stats::ValueStats;

/// `[1 − alpha quantile, alpha quantile]`. Within one bin of the exact order statistics: a relative 2^-7 for a tensor, 2^-3 for a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentile {
    alpha: f64,
    sigma: Option<f64>,
}

impl Percentile {
    /// `alpha` is the upper quantile (FQ-ViT: 0.99999), `sigma` the weight of each new sample in the moving average (FQ-ViT: 0.01).
    ///
    /// # Errors
    /// `alpha` not in (0.5, 1], `sigma` not in (0, 1].
    pub fn new(alpha: f64, sigma: Option<f64>) -> Result<Self, Error> {
        if !(alpha > 0.5 && alpha <= 1.0) {
            return Err(Error::Option {
                name: "percentile_alpha",
                found: alpha.to_string(),
                expected: "above 0.5 and at most 1",
            });
        }
        if let Some(sigma) = sigma
            && !(sigma > 0.0 && sigma <= 1.0)
        {
            return Err(Error::Option { name: "percentile_sigma", found: sigma.to_string(), expected: "above 0 and at most 1" });
        }
        Ok(Self { alpha, sigma })
    }

    fn moving_average(self, values: &ValueStats, sigma: f64) -> Result<Range, Error> {
        // alpha = 1 is a moving average of the extremes, which are always there.
        let recorded = values.recording().percentiles.iter().position(|&a| a == self.alpha);
        let of_sample = |s: &crate::calib::stats::SampleRange| match recorded {
            Some(at) => s.percentiles.get(at).copied(),
            None => (self.alpha == 1.0).then_some((s.lo, s.hi)),
        };
        let mut average: Option<Range> = None;
        for sample in values.samples() {
            let (lo, hi) = of_sample(sample).ok_or_else(|| Error::Observer {
                observer: self.name(),
                reason: format!(
                    "a moving average needs each sample's own quantiles, which were recorded at {:?} and not at {}; calibrate again with this percentile_alpha, or leave percentile_sigma out",
                    values.recording().percentiles,
                    self.alpha
                ),
            })?;
            let (lo, hi) = (f64::from(lo), f64::from(hi));
            average = Some(match average {
                None => Range::new(lo, hi),
                Some(old) => Range::new(old.lo + sigma * (lo - old.lo), old.hi + sigma * (hi - old.hi)),
            });
        }
        match average {
            Some(range) => Ok(range),
            None => extremes(self.name(), values, &Target::Tensor),
        }
    }
}

impl Observer for Percentile {
    fn name(&self) -> &'static str {
        "PercentileObserver"
    }

    fn range(&self, values: &ValueStats, query: &RangeQuery) -> Result<Range, Error> {
        let range = match self.sigma {
            Some(sigma) if query.target == Target::Tensor => self.moving_average(values, sigma)?,
            Some(_) => {
                return Err(Error::Observer {
                    observer: self.name(),
                    reason: "the moving average exists for whole tensors only; leave percentile_sigma out for channel-wise calibration".into(),
                });
            }
            None if self.alpha == 1.0 => extremes(self.name(), values, &query.target)?,
            None => {
                let histogram = histogram(self.name(), values, &query.target)?;
                let at = |p| histogram.quantile(p).unwrap_or(0.0);
                Range::new(at(1.0 - self.alpha), at(self.alpha))
            }
        };
        Ok(if query.grid.is_symmetric() { range.symmetric() } else { range })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::observer::Grid;
    use crate::calib::stats::Recording;
    use proptest::prelude::*;

    fn quantile(data: &[f32], p: f64) -> f64 {
        let mut sorted: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
        sorted.sort_by(f64::total_cmp);
        let position = p * (sorted.len() - 1) as f64;
        let k = position.floor() as usize;
        sorted[k] + (position - k as f64) * (sorted[(k + 1).min(sorted.len() - 1)] - sorted[k])
    }

    proptest! {
        #[test]
        fn equals_sorting_and_averaging(
            samples in prop::collection::vec(prop::collection::vec(-30.0f32..60.0, 50..200), 1..8),
            alpha in 0.7f64..1.0, sigma in 0.01f64..1.0,
        ) {
            let recording = Recording { percentiles: vec![alpha], ..Recording::default() };
            let shapes: Vec<[usize; 1]> = samples.iter().map(|s| [s.len()]).collect();
            let stats = ValueStats::from_samples(recording, shapes.iter().zip(&samples).map(|(s, d)| (&s[..], &d[..]))).unwrap();
            let query = RangeQuery::tensor(Grid::affine(8).unwrap());
            let bound = 60.0 / 128.0;

            let found = Percentile::new(alpha, None).unwrap().range(&stats, &query).unwrap();
            let all = samples.concat();
            prop_assert!((found.hi - quantile(&all, alpha)).abs() <= bound);
            prop_assert!((found.lo - quantile(&all, 1.0 - alpha)).abs() <= bound);

            let (mut lo, mut hi) = (quantile(&samples[0], 1.0 - alpha), quantile(&samples[0], alpha));
            for s in &samples[1..] {
                hi += sigma * (quantile(s, alpha) - hi);
                lo += sigma * (quantile(s, 1.0 - alpha) - lo);
            }
            let found = Percentile::new(alpha, Some(sigma)).unwrap().range(&stats, &query).unwrap();
            prop_assert!((found.hi - hi).abs() <= bound && (found.lo - lo).abs() <= bound, "{:?} against {} {}", found, lo, hi);

            let symmetric = RangeQuery::tensor(Grid::symmetric(8).unwrap());
            let found = Percentile::new(alpha, None).unwrap().range(&stats, &symmetric).unwrap();
            prop_assert_eq!(found.lo, -found.hi);
        }
    }

    #[test]
    fn the_average_of_extremes_is_exact_and_ordered() {
        let samples = [[0.0f32, 4.0], [-2.0, 8.0], [-4.0, 0.0]];
        let shape = [2usize];
        let stats = ValueStats::from_samples(Recording::default(), samples.iter().map(|s| (&shape[..], &s[..]))).unwrap();
        let query = RangeQuery::tensor(Grid::affine(8).unwrap());
        let found = Percentile::new(1.0, Some(0.5)).unwrap().range(&stats, &query).unwrap();
        assert_eq!(found, Range::new(-2.5, 3.0));
        assert_eq!(Percentile::new(1.0, None).unwrap().range(&stats, &query).unwrap(), Range::new(-4.0, 8.0));
    }

    #[test]
    fn what_was_not_recorded_is_an_error() {
        let shape = [2usize, 1];
        let data = [1.0f32, 2.0];
        let stats = ValueStats::from_samples(Recording::with_channels(1, false), [(&shape[..], &data[..])]).unwrap();
        let query = |target| RangeQuery { target, grid: Grid::affine(8).unwrap() };
        let with_sigma = Percentile::new(0.99, Some(0.1)).unwrap();
        assert!(with_sigma.range(&stats, &query(Target::Tensor)).unwrap_err().to_string().contains("percentile_alpha"));
        assert!(with_sigma.range(&stats, &query(Target::Channel(0))).is_err());
        let plain = Percentile::new(0.99, None).unwrap();
        assert!(plain.range(&stats, &query(Target::Channel(0))).unwrap_err().to_string().contains("channel histograms"));
        assert!(Percentile::new(0.3, None).is_err());
        assert!(Percentile::new(f64::NAN, None).is_err());
        assert!(Percentile::new(0.99, Some(0.0)).is_err());
    }
}
