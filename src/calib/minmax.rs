//! The exact extremes: clips nothing, trusts every outlier.

use crate::calib::error::Error;
use crate::calib::observer::{Observer, Range, RangeQuery, extremes};
use crate::calib::stats::ValueStats;

/// `[min, max]` over all samples, exact. Works on ranges alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Minmax;

impl Observer for Minmax {
    fn name(&self) -> &'static str {
        "MinmaxObserver"
    }

    fn range(&self, values: &ValueStats, query: &RangeQuery) -> Result<Range, Error> {
        let range = extremes(self.name(), values, &query.target)?;
        Ok(if query.grid.is_symmetric() { range.symmetric() } else { range })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::observer::{Grid, Target};
    use crate::calib::stats::Recording;

    #[test]
    fn extremes_of_tensor_channels_and_groups() {
        let a = [1.0f32, -2.0, 3.0, 0.5, 4.0, -1.0];
        let b = [0.0f32, 9.0, -3.0, 0.0, 0.0, 0.0];
        let shape = [2usize, 3];
        let recording = Recording { sketch: false, ..Recording::with_channels(1, false) };
        let stats = ValueStats::from_samples(recording, [(&shape[..], &a[..]), (&shape[..], &b[..])]).unwrap();
        let affine = Grid::affine(8).unwrap();
        let range = |target, grid| Minmax.range(&stats, &RangeQuery { target, grid });
        assert_eq!(range(Target::Tensor, affine).unwrap(), Range::new(-3.0, 9.0));
        assert_eq!(range(Target::Channel(0), affine).unwrap(), Range::new(0.0, 1.0));
        assert_eq!(range(Target::Channels(1..3), affine).unwrap(), Range::new(-3.0, 9.0));
        assert_eq!(range(Target::Channel(2), Grid::symmetric(8).unwrap()).unwrap(), Range::new(-3.0, 3.0));
        assert!(range(Target::Channel(3), affine).is_err());
        assert!(range(Target::Channels(2..4), affine).is_err());
    }
}
