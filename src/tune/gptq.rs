//! Rounding that knows what the weights are multiplied with: errors of one input channel are made up for in those that follow.
//!
//! GPTQ (Frantar et al., arXiv 2210.17323, equations 2 and 3) minimises `(w − ŵ)·H·(w − ŵ)ᵀ` for each output channel, with H the
//! second moments of the Linear's input, one input channel after the other. Here it is written as LDLQ (QuIP, Chee et al.,
//! arXiv 2307.13304, equation 4), which computes the same (its theorem 6) without H's inverse: with `H = (U + 1)·D·(U + 1)ᵀ`, U strictly
//! upper triangular,
//!
//! ```text
//! ŵ_k = Q(w_k + Σ_{j<k} (w_j − ŵ_j) · U_jk)
//! ```
//!
//! and the loss is `Σ_k D_k · r_k²`, r_k being what is rounded away at k. So many scales are tried at the cost of one product each.

use crate::parallel;
use crate::quant::{ConstantCodes, Groups};
use crate::simd::widest;

/// What is added to H's diagonal: this part of its mean, as in the paper's section 3.3.
const DAMPING: f64 = 0.01;
/// How many ways of rounding are tried for an output channel: on so many scales but one, and to nearest on the scale given.
const TRIED: usize = 32;
/// The i-th scale is that of the largest magnitude times `1 − STEP · i`.
const STEP: f64 = 0.02;

/// Input channels in the order in which they are rounded, and how the error of one is seen in the others.
#[derive(Debug, Clone)]
pub struct Feedback {
    /// Input channels, those with the largest second moment first.
    order: Vec<usize>,
    /// D.
    weight: Vec<f64>,
    /// Column k of U, without what is below its diagonal, at `k·(k−1)/2`.
    columns: Vec<f64>,
}

impl Feedback {
    /// Of the second moments of `n` input channels, `n × n`, symmetric and positive semi-definite.
    pub fn new(moments: &[f64], n: usize) -> Feedback {
        let diagonal = |i: usize| moments.get(i * n + i).copied().unwrap_or(0.0);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)).then(a.cmp(&b)));
        let mean = (0..n).map(diagonal).sum::<f64>() / n.max(1) as f64;
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        // The last channel is eliminated first: row i of `a` is column i of U when its turn is over.
        let mut a: Vec<Vec<f64>> =
            order.iter().enumerate().map(|(k, &i)| order[..=k].iter().map(|&j| moments[i * n + j]).collect()).collect();
        for (k, row) in a.iter_mut().enumerate() {
            row[k] += damping;
        }
        let mut weight = vec![0.0; n];
        for k in (0..n).rev() {
            let (before, rest) = a.split_at_mut(k);
            let Some(row) = rest.first_mut() else { continue };
            // What rounding of the moments left must not make a weight negative.
            let d = row[k].max(damping);
            weight[k] = d;
            row.truncate(k);
            widest(
                #[inline(always)]
                || {
                    for (i, target) in before.iter_mut().enumerate() {
                        let factor = row[i] / d;
                        for (t, r) in target.iter_mut().zip(&*row) {
                            *t -= factor * r;
                        }
                    }
                },
            );
            row.iter_mut().for_each(|x| *x /= d);
        }
        Feedback { order, weight, columns: a.concat() }
    }

    /// Codes and scale of one output channel's weights, in the input channels' order, with the least loss among the scales tried
    /// and rounding to nearest on the scale `given`.
    fn round(&self, w: &[f32], given: f32, to: &Rounder) -> (Vec<i32>, f32) {
        let largest = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let full = f64::from(largest) / to.largest;
        if !(full.is_finite() && full as f32 >= f32::MIN_POSITIVE * 4.0) {
            return (vec![0; w.len()], 1.0);
        }
        let mut scales: [f32; TRIED] = std::array::from_fn(|i| (full * (1.0 - STEP * i as f64)) as f32);
        scales[TRIED - 1] = given;
        let n = self.order.len();
        let mut errors = vec![[0.0f64; TRIED]; n];
        let mut codes = vec![[0.0f64; TRIED]; n];
        let mut loss = [0.0f64; TRIED];
        widest(
            #[inline(always)]
            || self.try_all(w, &scales, to, &mut errors, &mut codes, &mut loss),
        );
        let best = (0..TRIED).fold(0, |best, i| if loss[i] < loss[best] { i } else { best });
        let mut out = vec![0; w.len()];
        for (&channel, code) in self.order.iter().zip(&codes) {
            out[channel] = code[best] as i32;
        }
        (out, scales[best])
    }

    #[inline(always)]
    fn try_all(
        &self,
        w: &[f32],
        scales: &[f32; TRIED],
        to: &Rounder,
        errors: &mut [[f64; TRIED]],
        codes: &mut [[f64; TRIED]],
        loss: &mut [f64; TRIED],
    ) {
        let scales = scales.map(f64::from);
        let (factors, size) = match to.groups {
            Some(groups) => (self.factors(w, &scales, to, groups), groups.size),
            None => (vec![[1.0; TRIED]], w.len().max(1)),
        };
        // The last way is to round each weight on its own.
        let mut made_up = [1.0; TRIED];
        made_up[TRIED - 1] = 0.0;
        let mut start = 0;
        for (k, (&channel, &weight)) in self.order.iter().zip(&self.weight).enumerate() {
            let (w, factor) = (f64::from(w[channel]), &factors[channel / size]);
            let mut seen = [0.0; TRIED];
            for (u, error) in self.columns[start..start + k].iter().zip(&*errors) {
                for (x, e) in seen.iter_mut().zip(error) {
                    *x += u * e;
                }
            }
            start += k;
            let mut nearest = [0.0; TRIED];
            for i in 0..TRIED {
                nearest[i] = (w + made_up[i] * seen[i]) / (scales[i] * factor[i]);
            }
            to.round(&mut nearest);
            for i in 0..TRIED {
                let code = nearest[i] * factor[i];
                let error = w - code * scales[i];
                codes[k][i] = code;
                errors[k][i] = error;
                loss[i] += weight * (error + seen[i]) * (error + seen[i]);
            }
        }
    }

    /// The factor of each group of input channels on each scale: rounding to nearest with it has the least squared error, counted by D, or by 1
    /// for the last way.
    #[inline(always)]
    fn factors(&self, w: &[f32], scales: &[f64; TRIED], to: &Rounder, groups: Groups) -> Vec<[f64; TRIED]> {
        let mut weights = vec![0.0; w.len()];
        for (&channel, &weight) in self.order.iter().zip(&self.weight) {
            weights[channel] = weight;
        }
        let mut out = Vec::with_capacity(w.len().div_ceil(groups.size));
        for (w, weights) in w.chunks(groups.size).zip(weights.chunks(groups.size)) {
            let (mut best, mut least) = ([1.0; TRIED], [f64::INFINITY; TRIED]);
            for factor in (1..=groups.largest_factor()).map(f64::from) {
                let (steps, mut errors) = (scales.map(|s| s * factor), [0.0f64; TRIED]);
                for (&w, &weight) in w.iter().zip(weights) {
                    let (w, mut nearest) = (f64::from(w), [0.0; TRIED]);
                    let mut by = [weight; TRIED];
                    by[TRIED - 1] = 1.0;
                    for i in 0..TRIED {
                        nearest[i] = w / steps[i];
                    }
                    to.round(&mut nearest);
                    for i in 0..TRIED {
                        let missed = w - nearest[i] * steps[i];
                        errors[i] += by[i] * missed * missed;
                    }
                }
                for i in 0..TRIED {
                    if errors[i] < least[i] {
                        (least[i], best[i]) = (errors[i], factor);
                    }
                }
            }
            out.push(best);
        }
        out
    }
}

/// Codes to round to, for many values side by side.
struct Rounder {
    /// The largest code: of the width, or of a group's before its factor.
    top: f64,
    /// The largest magnitude of all codes, factors included.
    largest: f64,
    /// How input channels share factors.
    groups: Option<Groups>,
    /// Of a codebook, the lowest level; above each of these codes, so much is added to it.
    lowest: f64,
    steps: Vec<(f64, f64)>,
}

impl Rounder {
    fn new(codes: &ConstantCodes) -> Rounder {
        let (top, levels) = (f64::from(codes.groups().map_or(codes.top(), Groups::top)), codes.levels());
        let steps = levels.windows(2).map(|pair| (f64::from((pair[0] + pair[1]).div_euclid(2)), f64::from(pair[1] - pair[0])));
        Rounder {
            top,
            largest: f64::from(codes.largest()),
            groups: codes.groups(),
            lowest: levels.first().map_or(0.0, |&l| f64::from(l)),
            steps: steps.collect(),
        }
    }

    /// As [`ConstantCodes::round_half_even`]; in groups, the code without its factor.
    #[inline(always)]
    fn round(&self, x: &mut [f64; TRIED]) {
        for x in &mut *x {
            *x = x.clamp(-self.top, self.top).round_ties_even();
        }
        if !self.steps.is_empty() {
            let mut levels = [self.lowest; TRIED];
            for (above, step) in &self.steps {
                for (level, x) in levels.iter_mut().zip(&*x) {
                    *level += if x > above { *step } else { 0.0 };
                }
            }
            *x = levels;
        }
    }
}

/// Weights on the grid of their scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// `scale_c · code`, `[in, out]`: rounding to nearest on the same scales gives the codes back.
    pub weights: Vec<f32>,
    /// One scale an output channel.
    pub scales: Vec<f32>,
}

/// Rounds a Linear's weights `[in, out]` to these codes. `feedback` is that of the input's second
/// moments. An output channel loses no more than by rounding to nearest on its scale among `scales`, one each.
pub fn round(weights: &[f32], scales: &[f32], feedback: &Feedback, codes: &ConstantCodes, threads: usize) -> Rounded {
    let outputs = scales.len();
    let to = Rounder::new(codes);
    let channel = |c: usize| {
        let column: Vec<f32> = weights.iter().skip(c).step_by(outputs.max(1)).copied().collect();
        feedback.round(&column, scales[c], &to)
    };
    let rounded = parallel::map(outputs, threads, channel);
    let mut out = Rounded { weights: vec![0.0; weights.len()], scales: Vec::with_capacity(outputs) };
    for (c, (codes, scale)) in rounded.into_iter().enumerate() {
        for (slot, code) in out.weights.iter_mut().skip(c).step_by(outputs.max(1)).zip(codes) {
            *slot = code as f32 * scale;
        }
        out.scales.push(scale);
    }
    out
}

#[cfg(test)]
mod tests;
