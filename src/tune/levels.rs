//! The levels of a codebook chosen again on the values themselves, their first rows weighted by what the outputs depend on them.

use super::rows;
use crate::calib::Range;
use crate::calib::codebook::Grid;
use crate::quant::affine_scheme;
use crate::quant::codebook::{GRID_BITS, Shape, about_means, best, shrunk};
use crate::quant::plan::Scheme;

/// The values of one sample: shape and elements.
pub type Seen = (Vec<usize>, Vec<f32>);

/// How a codebook is chosen again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refit {
    /// Weight of a first row; that of another row is 1.
    pub first: f64,
    /// Whether factors and zero points of channels are the values' too, and not kept.
    pub channels: bool,
    /// The largest exponent of a channel.
    pub max_exponent: u8,
    /// Workers.
    pub threads: usize,
}

impl Refit {
    /// A scheme with as many bits for the same site; `None` for one that is no codebook, or where nothing was seen.
    pub fn run(&self, scheme: &Scheme, seen: &[Seen]) -> Option<Scheme> {
        let Scheme::Codebook { grid, .. } = scheme else { return None };
        let grids = match &**grid {
            Scheme::Affine { codes, .. } => {
                let all = || seen.iter().flat_map(|(_, x)| x);
                let (lo, hi) = all().fold((0.0f32, 0.0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
                shrunk(&affine_scheme(Range::new(lo.into(), hi.into()), *codes, false))
            }
            Scheme::Ptf { codes, .. } if self.channels => about_means(&self.shapes(seen)?, self.max_exponent, *codes),
            other => vec![other.clone()],
        };
        best(grids, scheme.bits(), self.threads, |grid| self.fill(seen, grid))
    }

    /// The rows of all samples with their weights.
    fn rows<'s>(&self, seen: &'s [Seen]) -> impl Iterator<Item = (&'s [f32], f64)> {
        let first = self.first;
        seen.iter().flat_map(move |(shape, x)| {
            let rows = x.chunks(shape.last().copied().unwrap_or(1).max(1)).enumerate();
            rows.map(move |(i, row)| (row, rows::weight_of_row(i, shape, first)))
        })
    }

    fn shapes(&self, seen: &[Seen]) -> Option<Vec<Shape>> {
        let channels = *seen.first()?.0.last()?;
        let (mut total, mut sums) = (0.0, vec![(0.0f64, 0.0f64); channels]);
        for (row, weight) in self.rows(seen) {
            total += weight;
            for ((first, second), &x) in sums.iter_mut().zip(row) {
                let x = f64::from(x);
                *first += weight * x;
                *second += weight * x * x;
            }
        }
        let mut shapes: Vec<Shape> = sums
            .into_iter()
            .map(|(first, second)| {
                let mean = first / total;
                Shape { mean, deviation: (second / total - mean * mean).max(0.0).sqrt(), reach: 0.0 }
            })
            .collect();
        for (row, _) in self.rows(seen) {
            for (shape, &x) in shapes.iter_mut().zip(row) {
                shape.reach = shape.reach.max((f64::from(x) - shape.mean).abs());
            }
        }
        Some(shapes)
    }

    fn fill(&self, seen: &[Seen], grid: &Scheme) -> Option<Grid> {
        let (codes, scales, zeros) = match grid {
            Scheme::Affine { codes, scale, zero_point } => (codes, vec![*scale], vec![*zero_point]),
            Scheme::Ptf { codes, scale, zero_point, factors } => (codes, factors.scales(*scale)?, zero_point.as_slice().to_vec()),
            _ => return None,
        };
        let mut out = Grid::new(1 << GRID_BITS);
        let low = codes.range().0;
        // Scale and offset of each element of a row: no iterator that begins again in the innermost loop.
        let both = scales.iter().cycle().zip(zeros.iter().cycle());
        let both = both.map(|(&scale, zero)| (f64::from(scale), f64::from(zero - low)));
        let meaning: Vec<(f64, f64)> = both.take(seen.first()?.0.last().copied().unwrap_or(1).max(1)).collect();
        for (row, weight) in self.rows(seen) {
            for (&x, &(scale, offset)) in row.iter().zip(&meaning) {
                out.add_value(f64::from(x) / scale + offset, weight * scale * scale);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::quant::fake::FakeQuant;
    use crate::quant::plan::Codes;

    /// Rows of a class token far from the others, whose channels differ in mean and width.
    fn seen() -> Vec<Seen> {
        let mut state = 1u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        };
        let value =
            |row: usize, c: usize, u: f32| if row == 0 { 5.0 + u } else { (c as f32 - 1.5) + u * [0.5, 1.0, 3.0, 8.0][c] };
        let sample = (0..40).flat_map(|row| (0..4).map(move |c| (row, c)));
        (0..6).map(|_| (vec![1, 40, 4], sample.clone().map(|(row, c)| value(row, c, uniform())).collect())).collect()
    }

    fn error(scheme: &Scheme, seen: &[Seen], first: bool) -> f64 {
        let fake = FakeQuant::of(scheme).unwrap();
        let one = |(_, x): &Seen| {
            let mut y = x.clone();
            fake.apply(&mut y, 4);
            let pairs = x.iter().zip(&y).enumerate().filter(|(i, _)| (i / 4 == 0) == first);
            pairs.map(|(_, (a, b))| f64::from(a - b).powi(2)).sum::<f64>()
        };
        seen.iter().map(one).sum()
    }

    #[test]
    fn a_weight_on_first_rows_is_felt_there() {
        let codes = Codes { bits: 8, signed: true };
        let affine = Scheme::Affine { codes, scale: 0.1, zero_point: 0 };
        let ptf = about_means(&[Shape { mean: 0.0, deviation: 1.0, reach: 4.0 }; 4], 7, codes).remove(0);
        for grid in [affine, ptf] {
            let scheme = Scheme::Codebook { grid: Box::new(grid), levels: (-8..8).collect() };
            let refit = |first| Refit { first, channels: true, max_exponent: 7, threads: 2 }.run(&scheme, &seen()).unwrap();
            let (even, heavy) = (refit(1.0), refit(100.0));
            assert_eq!((even.bits(), heavy.bits()), (4, 4));
            assert!(error(&heavy, &seen(), true) < 0.5 * error(&even, &seen(), true), "{even:?} {heavy:?}");
            assert!(error(&even, &seen(), false) < error(&heavy, &seen(), false), "{even:?} {heavy:?}");
            assert!(error(&even, &seen(), false) < error(&scheme, &seen(), false));
        }
    }

    #[test]
    fn what_is_no_codebook_stays() {
        let refit = Refit { first: 1.0, channels: true, max_exponent: 7, threads: 1 };
        let affine = Scheme::Affine { codes: Codes { bits: 8, signed: true }, scale: 0.1, zero_point: 0 };
        assert_eq!(refit.run(&affine, &seen()), None);
        assert_eq!(refit.run(&Scheme::Codebook { grid: Box::new(affine), levels: vec![0, 1] }, &[]), None);
    }
}
