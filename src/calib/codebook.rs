//! Few levels for many codes: the best `k` values on an integer grid for what falls on it.
//!
//! Lloyd and Max's quantiser (S. Lloyd, "Least squares quantization in PCM", 1982) in one dimension, where dynamic programming finds the
//! best levels exactly instead of a local optimum (X. Wu, "Optimal quantization by matrix searching", 1991): codes are cut into `k` runs, and a
//! run's level is the whole number next to its mean.

/// What fell on a grid of codes, in units of a code: weight, first and second moment of the values at each.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid(Vec<[f64; 3]>);

impl Grid {
    /// An empty grid of `codes` codes.
    #[must_use]
    pub fn new(codes: usize) -> Self {
        Self(vec![[0.0; 3]; codes])
    }

    /// Adds values that lie evenly from `lo` to `hi`, in units of a code; what is beyond the ends counts there, with its distance.
    pub fn add(&mut self, lo: f64, hi: f64, weight: f64) {
        let last = self.0.len().saturating_sub(1) as f64;
        // A code answers what is within a half of it.
        let (from, to) = ((lo + 0.5).floor().clamp(0.0, last), (hi + 0.5).floor().clamp(0.0, last));
        let width = hi - lo;
        for code in from as usize..=to as usize {
            let a = if code as f64 == from { lo } else { code as f64 - 0.5 };
            let b = if code as f64 == to { hi } else { code as f64 + 0.5 };
            let part = if width > 0.0 { weight * (b - a) / width } else { weight };
            let middle = 0.5 * (a + b);
            if let Some([w, m, q]) = self.0.get_mut(code) {
                *w += part;
                *m += part * middle;
                *q += part * (middle * middle + (b - a) * (b - a) / 12.0);
            }
        }
    }

    /// Adds a value, in units of a code.
    #[inline]
    pub fn add_value(&mut self, value: f64, weight: f64) {
        let last = self.0.len().saturating_sub(1) as f64;
        // What is cut off of a number that is not negative is what `floor` takes away.
        let code = (value + 0.5).clamp(0.0, last) as usize;
        if let Some([w, m, q]) = self.0.get_mut(code) {
            *w += weight;
            *m += weight * value;
            *q += weight * value * value;
        }
    }

    /// The `k` levels with the least squared error, ascending, and that error; fewer where fewer suffice.
    #[must_use]
    pub fn levels(&self, k: usize) -> (Vec<usize>, f64) {
        let n = self.0.len();
        let sums = |of: usize| -> Vec<f64> {
            std::iter::once(0.0)
                .chain(self.0.iter().scan(0.0, |sum, code| {
                    Some({
                        *sum += code[of];
                        *sum
                    })
                }))
                .collect()
        };
        let (w, m, q) = (sums(0), sums(1), sums(2));
        // A run of codes `a..b`: its level, and its error there.
        let run = |a: usize, b: usize| -> (usize, f64) {
            let (w, m, q) = (w[b] - w[a], m[b] - m[a], q[b] - q[a]);
            if w <= 0.0 {
                return (a, 0.0);
            }
            let level = (m / w).round_ties_even().clamp(0.0, (n - 1) as f64);
            (level as usize, (q - 2.0 * level * m + level * level * w).max(0.0))
        };
        // The least error of the codes before `b` in so many runs, and where the last of them begins.
        let mut least: Vec<f64> = (0..=n).map(|b| if b == 0 { 0.0 } else { run(0, b).1 }).collect();
        let mut begins = vec![vec![0usize; n + 1]];
        for _ in 1..k.clamp(1, n.max(1)) {
            let mut next = least.clone();
            let mut begin: Vec<usize> = vec![0; n + 1];
            for b in 1..=n {
                // No last run at all is as good as what fewer runs do.
                begin[b] = b;
                for a in (0..b).rev() {
                    let last = run(a, b).1;
                    let error = least[a] + last;
                    if error < next[b] {
                        (next[b], begin[b]) = (error, a);
                    }
                    // A longer run only errs more.
                    if last > next[b] {
                        break;
                    }
                }
            }
            least = next;
            begins.push(begin);
        }
        let (mut levels, mut b) = (Vec::new(), n);
        for begin in begins.iter().rev() {
            let a = begin[b];
            if a < b {
                // A run of codes on which nothing fell needs no level.
                levels.extend((w[b] > w[a]).then(|| run(a, b).0));
                b = a;
            }
        }
        levels.sort_unstable();
        levels.dedup();
        (levels, least[n])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    /// Every choice of `k` levels, by trying them all on the values.
    fn exhaustive(values: &[(f64, f64)], codes: usize, k: usize) -> f64 {
        fn go(values: &[(f64, f64)], codes: usize, chosen: &mut Vec<usize>, k: usize) -> f64 {
            let own = if chosen.is_empty() {
                f64::INFINITY
            } else {
                // A value goes the way of its code, of two levels as near to the lower.
                let error = |&(v, w): &(f64, f64)| {
                    let code = (v + 0.5).floor().clamp(0.0, codes as f64 - 1.0);
                    let level =
                        chosen.iter().copied().min_by(|a, b| (*a as f64 - code).abs().total_cmp(&(*b as f64 - code).abs()));
                    w * (v - level.unwrap() as f64).powi(2)
                };
                values.iter().map(error).sum()
            };
            if chosen.len() == k {
                return own;
            }
            let from = chosen.last().map_or(0, |l| l + 1);
            (from..codes).fold(own, |best, level| {
                chosen.push(level);
                let found = go(values, codes, chosen, k);
                chosen.pop();
                best.min(found)
            })
        }
        go(values, codes, &mut Vec::new(), k)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn no_levels_are_better(values in prop::collection::vec((-1.0f64..10.0, 0.1f64..3.0), 1..14), k in 1usize..4) {
            let codes = 9;
            let mut grid = Grid::new(codes);
            let mut points = grid.clone();
            values.iter().for_each(|&(v, w)| grid.add(v, v, w));
            values.iter().for_each(|&(v, w)| points.add_value(v, w));
            for (a, b) in grid.0.iter().flatten().zip(points.0.iter().flatten()) {
                prop_assert!((a - b).abs() <= 1e-9, "{grid:?} {points:?}");
            }
            let (levels, error) = grid.levels(k);
            prop_assert!(levels.len() <= k && levels.windows(2).all(|p| p[0] < p[1]) && levels.iter().all(|&l| l < codes));
            let best = exhaustive(&values, codes, k);
            prop_assert!(error <= best * (1.0 + 1e-9) + 1e-9, "{error} {best}");
        }

        #[test]
        fn an_even_run_is_many_values(lo in -2.0f64..8.0, width in 0.0f64..6.0) {
            let (mut run, mut many) = (Grid::new(8), Grid::new(8));
            run.add(lo, lo + width, 1.0);
            let n = 20_000;
            (0..n).for_each(|i| many.add(lo + width * (f64::from(i) + 0.5) / f64::from(n), lo + width * (f64::from(i) + 0.5) / f64::from(n), 1.0 / f64::from(n)));
            for (a, b) in run.0.iter().flatten().zip(many.0.iter().flatten()) {
                prop_assert!((a - b).abs() < 0.02, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_normal_distribution_has_the_levels_of_max() {
        // J. Max, "Quantizing for minimum distortion", 1960, table I: four levels at 0.4528 and 1.510 standard deviations.
        let mut grid = Grid::new(256);
        for i in -600..600 {
            let x = f64::from(i) / 100.0 + 0.005;
            grid.add(128.0 + 20.0 * (x - 0.005), 128.0 + 20.0 * (x + 0.005), (-0.5 * x * x).exp());
        }
        let (levels, _) = grid.levels(4);
        assert_eq!(levels, [128 - 30, 128 - 9, 128 + 9, 128 + 30]);
    }

    #[test]
    fn nothing_and_little_have_few_levels() {
        assert_eq!(Grid::new(256).levels(16), (vec![], 0.0));
        let mut grid = Grid::new(256);
        grid.add(3.0, 3.0, 1.0);
        assert_eq!(grid.levels(16), (vec![3], 0.0));
    }
}
