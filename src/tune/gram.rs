//! Moments of what a Linear reads: mean and `x·xᵀ` over tokens and samples, each token with its weight.

use ndarray::ArrayView2;

/// What the values weighed together, their mean, and `Σ w·(x − mean)·(x − mean)ᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    total: f64,
    mean: Vec<f64>,
    /// `n × n`.
    products: Vec<f64>,
}

impl Moments {
    /// Of the rows of one sample, which are of `n` channels, each with its `weight`, above 0. Products are summed in float32, about
    /// the mean: nothing is lost where the mean is large.
    pub fn of(data: &[f32], n: usize, weight: impl Fn(usize) -> f64) -> Moments {
        let n = n.max(1);
        let rows = data.len() / n;
        let weighted = || data.chunks_exact(n).enumerate().map(|(i, row)| (row, weight(i)));
        let total: f64 = weighted().map(|(_, w)| w).sum();
        let mut mean = vec![0.0f64; n];
        for (row, w) in weighted() {
            mean.iter_mut().zip(row).for_each(|(m, &x)| *m += w * f64::from(x));
        }
        mean.iter_mut().for_each(|m| *m /= if total > 0.0 { total } else { 1.0 });
        let mut moved = Vec::with_capacity(rows * n);
        for (row, w) in weighted() {
            let root = w.sqrt();
            moved.extend(row.iter().zip(&mean).map(|(&x, m)| (root * (f64::from(x) - m)) as f32));
        }
        let products = match ArrayView2::from_shape((rows, n), &moved) {
            Ok(x) => x.t().dot(&x).iter().map(|&p| f64::from(p)).collect(),
            Err(_) => vec![0.0; n * n],
        };
        Moments { total, mean, products }
    }

    /// Adds those of other values of as many channels (Chan et al., "Updating formulae and a pairwise algorithm", 1979, equation
    /// 2.1). The order in which samples are added shows in the last bits.
    pub fn merge(&mut self, other: &Moments) {
        let total = self.total + other.total;
        if other.total == 0.0 || self.mean.len() != other.mean.len() {
            return;
        }
        let apart: Vec<f64> = self.mean.iter().zip(&other.mean).map(|(a, b)| b - a).collect();
        let weight = self.total * other.total / total;
        let n = apart.len().max(1);
        for ((row, added), of_row) in self.products.chunks_exact_mut(n).zip(other.products.chunks_exact(n)).zip(&apart) {
            let of_row = weight * of_row;
            row.iter_mut().zip(added).zip(&apart).for_each(|((a, b), d)| *a += b + of_row * d);
        }
        self.mean.iter_mut().zip(&apart).for_each(|(m, d)| *m += d * other.total / total);
        self.total = total;
    }

    /// The mean of every channel.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// `E[(x − m)·(x − m)ᵀ]`, `n × n`, where m is 0, or the mean if `about_mean`: what a Linear's error depends on when its
    /// bias makes up for the mean.
    pub fn second(&self, about_mean: bool) -> Vec<f64> {
        let total = if self.total > 0.0 { self.total } else { 1.0 };
        let rows = self.products.chunks_exact(self.mean.len().max(1)).zip(&self.mean);
        let moved = |a: f64, b: f64| if about_mean { 0.0 } else { a * b };
        rows.flat_map(|(row, &a)| row.iter().zip(&self.mean).map(move |(p, &b)| p / total + moved(a, b))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against plain sums in f64, far from 0, cut into samples anywhere.
        #[test]
        fn as_defined(
            n in 1usize..6,
            data in prop::collection::vec(-1.0f32..1.0, 6..120),
            far in -100.0f32..100.0,
            at in 0usize..20,
            first in 0.1f64..30.0,
        ) {
            let rows: Vec<Vec<f32>> = data.chunks_exact(n).map(|r| r.iter().map(|x| x + far).collect()).collect();
            let (a, b) = rows.split_at(at.min(rows.len()));
            let weight = |i: usize| if i == 0 { first } else { 1.0 };
            let mut found = Moments::of(&a.concat(), n, weight);
            found.merge(&Moments::of(&b.concat(), n, weight));
            let weighted: Vec<(&Vec<f32>, f64)> = [a, b].iter().flat_map(|part| part.iter().zip((0..).map(weight))).collect();
            let total: f64 = weighted.iter().map(|(_, w)| w).sum();
            let mean = |c: usize| weighted.iter().map(|(r, w)| w * f64::from(r[c])).sum::<f64>() / total;
            for c in 0..n {
                prop_assert!((found.mean()[c] - mean(c)).abs() < 1e-4);
            }
            for about_mean in [false, true] {
                let second = found.second(about_mean);
                for (i, j) in (0..n * n).map(|at| (at / n, at % n)) {
                    let (mi, mj) = if about_mean { (mean(i), mean(j)) } else { (0.0, 0.0) };
                    let product = |(r, w): &(&Vec<f32>, f64)| w * (f64::from(r[i]) - mi) * (f64::from(r[j]) - mj);
                    let exact = weighted.iter().map(product).sum::<f64>() / total;
                    // Only the mean's own square is as large as the values are far.
                    let bound = if about_mean { 1e-4 } else { 1e-4 * (1.0 + f64::from(far.abs())) };
                    prop_assert!((second[i * n + j] - exact).abs() < bound, "{} {exact}", second[i * n + j]);
                }
            }
        }
    }
}
