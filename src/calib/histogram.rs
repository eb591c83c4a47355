//! The form in which every observer reads counts: ascending, disjoint bins with f64 edges and exact extremes.

/// A run of values between two edges, taken as uniform inside; `lo == hi` is a single value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Lower edge.
    pub lo: f64,
    /// Upper edge.
    pub hi: f64,
    /// Elements inside; never zero.
    pub count: u64,
}

impl Bin {
    /// `count` elements at exactly `at`.
    #[must_use]
    pub fn point(at: f64, count: u64) -> Self {
        Self { lo: at, hi: at, count }
    }
}

/// Counts over ascending bins, and the exact extremes.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bins: Vec<Bin>,
    min: f64,
    max: f64,
    count: u64,
}

impl Histogram {
    /// From ascending, disjoint bins. The outermost edges are drawn in to the exact extremes.
    #[must_use]
    pub fn new(mut bins: Vec<Bin>, min: f64, max: f64) -> Self {
        if let Some(first) = bins.first_mut() {
            first.lo = first.lo.max(min).min(first.hi);
        }
        if let Some(last) = bins.last_mut() {
            last.hi = last.hi.min(max).max(last.lo);
        }
        let count = bins.iter().map(|b| b.count).sum();
        Self { bins, min, max, count }
    }

    /// The bins, ascending; none is empty.
    #[must_use]
    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    /// The exact minimum; infinity if there are no elements.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.min
    }

    /// The exact maximum; minus infinity if there are no elements.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.max
    }

    /// All elements.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest magnitude; 0 if there are no elements.
    #[must_use]
    pub fn max_abs(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.min.abs().max(self.max.abs()) }
    }

    /// Mean and variance, each bin's elements taken as spread evenly inside it; `None` without elements.
    #[must_use]
    pub fn moments(&self) -> Option<(f64, f64)> {
        let n = (self.count > 0).then_some(self.count as f64)?;
        let middle = |b: &Bin| 0.5 * (b.lo + b.hi);
        let mean = self.bins.iter().map(|b| b.count as f64 * middle(b)).sum::<f64>() / n;
        let squares = |b: &Bin| (middle(b) - mean).powi(2) + (b.hi - b.lo).powi(2) / 12.0;
        Some((mean, self.bins.iter().map(|b| b.count as f64 * squares(b)).sum::<f64>() / n))
    }

    /// From the least to the largest element, and at least so many standard deviations to either side of the mean; 0 without elements.
    #[must_use]
    pub fn reach(&self, deviations: f64) -> (f64, f64) {
        let Some((mean, variance)) = self.moments() else { return (0.0, 0.0) };
        let away = deviations * variance.sqrt();
        (self.min.min(mean - away), self.max.max(mean + away))
    }

    /// The `p` quantile, linear between order statistics as `numpy.quantile` and `torch.quantile` take it: position `p·(n − 1)`.
    ///
    /// Ranks are exact; inside a bin the elements are spread evenly. The result is within one bin's width of the true quantile's
    /// neighbouring order statistics. `p` is clamped to 0..1; `None` without elements.
    #[must_use]
    pub fn quantile(&self, p: f64) -> Option<f64> {
        let last = self.count.checked_sub(1)?;
        let position = p.clamp(0.0, 1.0) * last as f64;
        let below = (position.floor() as u64).min(last);
        let fraction = position - below as f64;
        let a = self.order_statistic(below);
        if fraction <= 0.0 || below == last {
            return Some(a);
        }
        let b = self.order_statistic(below + 1);
        Some(a + fraction * (b - a))
    }

    /// The element of rank `k` from below, counted from 0. The first and last are exact.
    fn order_statistic(&self, k: u64) -> f64 {
        if k == 0 {
            return self.min;
        }
        if k + 1 >= self.count {
            return self.max;
        }
        let mut below = 0;
        for b in &self.bins {
            if k < below + b.count {
                return b.lo + (b.hi - b.lo) * (((k - below) as f64 + 0.5) / b.count as f64);
            }
            below += b.count;
        }
        self.max
    }

    /// The same counts with all bins inside `±threshold` joined into one bin a side (and zero into neither).
    ///
    /// What is far below a quantisation step needs no resolution, and long tails towards zero would only cost time.
    #[must_use]
    pub fn lump_below(&self, threshold: f64) -> Self {
        let mut bins: Vec<Bin> = Vec::with_capacity(self.bins.len());
        for &b in &self.bins {
            let tiny = b.lo.abs().max(b.hi.abs()) <= threshold && b.lo != b.hi;
            match bins.last_mut() {
                Some(last)
                    if tiny
                        && last.lo != last.hi
                        && last.lo.abs().max(last.hi.abs()) <= threshold
                        && (last.lo < 0.0) == (b.lo < 0.0) =>
                {
                    last.hi = b.hi;
                    last.count += b.count;
                }
                _ => bins.push(b),
            }
        }
        Self { bins, min: self.min, max: self.max, count: self.count }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::sketch::Sketch;
    use proptest::prelude::*;

    /// `torch.quantile(x, p)` by sorting.
    pub(crate) fn sorted_quantile(data: &[f32], p: f64) -> (f64, f64, f64) {
        let mut sorted: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
        sorted.sort_by(f64::total_cmp);
        let position = p * (sorted.len() - 1) as f64;
        let (k, next) = (position.floor() as usize, position.ceil() as usize);
        (sorted[k] + (position - k as f64) * (sorted[next] - sorted[k]), sorted[k], sorted[next])
    }

    proptest! {
        #[test]
        fn quantile_is_within_the_bound_of_sorting(data in prop::collection::vec(-50.0f32..100.0, 1..400), p in 0.0f64..=1.0) {
            let histogram = Sketch::from_slice(&data).unwrap().histogram(7);
            let found = histogram.quantile(p).unwrap();
            let (expected, a, b) = sorted_quantile(&data, p);
            let bound = (a.abs().max(b.abs())) / 128.0 + 1e-9;
            prop_assert!((found - expected).abs() <= bound, "{} against {}", found, expected);
        }

        /// Within a bin elements are taken as spread evenly: mean and deviation are off by no more than a bin is wide.
        #[test]
        fn moments_are_those_of_the_data(data in prop::collection::vec(-50.0f32..100.0, 1..400)) {
            let (mean, variance) = Sketch::from_slice(&data).unwrap().histogram(7).moments().unwrap();
            let n = data.len() as f64;
            let exact = data.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let deviation = (data.iter().map(|&x| (f64::from(x) - exact).powi(2)).sum::<f64>() / n).sqrt();
            let bin = 100.0 / 128.0;
            prop_assert!((mean - exact).abs() <= bin && (variance.sqrt() - deviation).abs() <= bin, "{mean} {exact} {variance} {deviation}");
        }

        #[test]
        fn lumping_keeps_counts_and_the_far_bins(data in prop::collection::vec(-1.0f32..1.0, 1..200)) {
            let histogram = Sketch::from_slice(&data).unwrap().histogram(7);
            let lumped = histogram.lump_below(0.25);
            prop_assert_eq!(lumped.bins().iter().map(|b| b.count).sum::<u64>(), data.len() as u64);
            let far = |h: &Histogram| h.bins().iter().filter(|b| b.lo.abs().max(b.hi.abs()) > 0.25).copied().collect::<Vec<_>>();
            prop_assert_eq!(far(&histogram), far(&lumped));
            prop_assert!(lumped.bins().iter().filter(|b| b.lo.abs().max(b.hi.abs()) <= 0.25).count() <= 3);
        }
    }

    #[test]
    fn extremes_and_emptiness() {
        let one = Sketch::from_slice(&[3.3]).unwrap().histogram(7);
        assert_eq!(one.quantile(0.5), Some(f64::from(3.3f32)));
        assert_eq!(one.bins(), [Bin::point(f64::from(3.3f32), 1)]);
        let none = Sketch::default().histogram(7);
        assert_eq!(none.quantile(0.5), None);
        assert_eq!(none.max_abs(), 0.0);
        assert_eq!((one.moments(), none.moments()), (Some((f64::from(3.3f32), 0.0)), None));
        let two = Sketch::from_slice(&[-5.0, 7.0]).unwrap().histogram(7);
        assert_eq!((two.quantile(0.0), two.quantile(1.0)), (Some(-5.0), Some(7.0)));
        assert_eq!(two.quantile(0.5), Some(1.0));
    }
}
