#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::quant::Constant;
use proptest::prelude::*;

/// Σ x xᵀ of these rows.
fn moments(rows: &[Vec<f64>]) -> Vec<f64> {
    let n = rows[0].len();
    (0..n * n).map(|at| rows.iter().map(|x| x[at / n] * x[at % n]).sum()).collect()
}

/// H with the damping of the paper.
fn damped(h: &[f64], n: usize) -> Vec<f64> {
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    let mut out = h.to_vec();
    (0..n).for_each(|i| out[i * n + i] += 0.01 * mean);
    out
}

/// e H eᵀ.
fn loss(h: &[f64], n: usize, w: &[f32], kept: &[f32]) -> f64 {
    let e: Vec<f64> = w.iter().zip(kept).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    (0..n * n).map(|at| e[at / n] * h[at] * e[at % n]).sum()
}

/// The inverse by Gauss and Jordan, with pivots.
fn inverse(h: &[f64], n: usize) -> Vec<Vec<f64>> {
    let mut a: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..2 * n).map(|j| if j < n { h[i * n + j] } else { f64::from(u8::from(j - n == i)) }).collect())
        .collect();
    for k in 0..n {
        let pivot = (k..n).max_by(|&p, &q| a[p][k].abs().total_cmp(&a[q][k].abs())).unwrap();
        a.swap(k, pivot);
        let d = a[k][k];
        a[k].iter_mut().for_each(|x| *x /= d);
        for i in (0..n).filter(|&i| i != k) {
            let f = a[i][k];
            let row = a[k].clone();
            a[i].iter_mut().zip(&row).for_each(|(x, r)| *x -= f * r);
        }
    }
    a.into_iter().map(|row| row[n..].to_vec()).collect()
}

/// GPTQ as the paper has it, equations 2 and 3: after each channel all that follow are changed by the inverse of what is left of
/// H. No factorisation is shared with the code under test.
fn published(h: &[f64], n: usize, w: &[f32], scale: f32, nearest: impl Fn(f64) -> f64) -> Vec<i32> {
    let kept = made_up(h, n, w, |_, x| nearest(x / f64::from(scale)) * f64::from(scale));
    kept.into_iter().map(|x| (x / f64::from(scale)).round() as i32).collect()
}

/// The same with codes ±top and a step for each input channel.
fn by_factors(h: &[f64], n: usize, w: &[f32], step: impl Fn(usize) -> f64, top: f64) -> Vec<f32> {
    let nearest = |channel: usize, x: f64| (x / step(channel)).round_ties_even().clamp(-top, top) * step(channel);
    made_up(h, n, w, nearest).into_iter().map(|x| x as f32).collect()
}

/// Of both, what the weights become; `nearest` rounds the value of a channel.
fn made_up(h: &[f64], n: usize, w: &[f32], nearest: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let h = damped(h, n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| h[b * n + b].total_cmp(&h[a * n + a]).then(a.cmp(&b)));
    let mut w: Vec<f64> = w.iter().map(|&v| f64::from(v)).collect();
    let mut kept = vec![0.0; n];
    for k in 0..n {
        let left = &order[k..];
        let m = left.len();
        let part: Vec<f64> = (0..m * m).map(|at| h[left[at / m] * n + left[at % m]]).collect();
        let inverse = inverse(&part, m);
        let q = left[0];
        kept[q] = nearest(q, w[q]);
        let error = (w[q] - kept[q]) / inverse[0][0];
        for (j, &channel) in left.iter().enumerate() {
            w[channel] -= error * inverse[0][j];
        }
    }
    kept
}

fn rows(n: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
    prop::collection::vec(prop::collection::vec(-2.0f64..2.0, n), 1..3 * n)
}

fn case() -> impl Strategy<Value = (usize, Vec<Vec<f64>>, Vec<f32>)> {
    (1usize..9).prop_flat_map(|n| (Just(n), rows(n), prop::collection::vec(-1.0f32..1.0, n)))
}

/// The smallest loss of all codes within ±top on one scale.
fn least(h: &[f64], n: usize, w: &[f32], scale: f32, top: i32) -> f64 {
    let base = 2 * top + 1;
    let all = (0..base.pow(n as u32)).map(|mut at| {
        let kept: Vec<f32> = (0..n)
            .map(|_| {
                let code = at % base - top;
                at /= base;
                code as f32 * scale
            })
            .collect();
        loss(h, n, w, &kept)
    });
    all.fold(f64::INFINITY, f64::min)
}

proptest! {
    /// The scale that is found, rounded by the paper's own equations, gives the same codes.
    #[test]
    fn codes_are_those_of_the_paper(
        (n, rows, w) in case(), bits in 3u8..6, levels in prop::option::of(prop::collection::btree_set(-127i32..=127, 2..17)),
    ) {
        let h = moments(&rows);
        let to = match &levels {
            None => ConstantCodes::of_width(bits),
            Some(levels) => ConstantCodes::of_levels(&levels.iter().copied().collect::<Vec<_>>()),
        };
        let (codes, scale) = Feedback::new(&h, n).round(&w, 1e6, &Rounder::new(&to));
        let top = f64::from(to.top());
        let expected = published(&h, n, &w, scale, |x| {
            let code = x.clamp(-top, top).round_ties_even();
            let next = |levels: &std::collections::BTreeSet<i32>| {
                levels.iter().map(|&l| f64::from(l)).min_by(|a, b| (a - code).abs().total_cmp(&(b - code).abs()))
            };
            levels.as_ref().and_then(next).unwrap_or(code)
        });
        // A tie, or all but one, may fall either way in other arithmetic; then both lose the same.
        if codes != expected {
            let kept = |codes: &[i32]| codes.iter().map(|&c| c as f32 * scale).collect::<Vec<_>>();
            let h = damped(&h, n);
            let (a, b) = (loss(&h, n, &w, &kept(&codes)), loss(&h, n, &w, &kept(&expected)));
            prop_assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-9), "{codes:?} {expected:?} {a} {b}");
        }
    }

    /// Never beaten by rounding to nearest on the scale given, and never better than the best of all codes.
    #[test]
    fn between_nearest_and_the_best((n, rows, w) in (1usize..5).prop_flat_map(|n| (Just(n), rows(n), prop::collection::vec(-1.0f32..1.0, n))), shrink in 0.3f32..1.2) {
        let h = moments(&rows);
        let top = 3;
        let d = damped(&h, n);
        let largest = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        prop_assume!(largest > 1e-3);
        let given = largest / 3.0 * shrink;
        let out = round(&w, &[given], &Feedback::new(&h, n), &ConstantCodes::of_width(3), 1);
        let found = loss(&d, n, &w, &out.weights);
        let nearest: Vec<f32> = w.iter().map(|v| (v / given).round_ties_even().clamp(-3.0, 3.0) * given).collect();
        prop_assert!(found <= loss(&d, n, &w, &nearest) * (1.0 + 1e-5) + 1e-9);
        let best = least(&d, n, &w, out.scales[0], top);
        prop_assert!(found >= best * (1.0 - 1e-5) - 1e-9, "{found} {best}");
        // In one dimension there is nothing to make up for.
        if n == 1 {
            prop_assert!((found - best).abs() <= 1e-5 * best + 1e-9);
        }
    }

    /// With nothing to make up for each weight is rounded on its own, at any magnitude of the moments.
    #[test]
    fn diagonal_moments_round_to_nearest(diagonal in prop::collection::vec(0.01f64..100.0, 1..12), bits in 3u8..9, seed in prop::collection::vec(-1.0f32..1.0, 12)) {
        let n = diagonal.len();
        let w = &seed[..n];
        let mut h = vec![0.0; n * n];
        (0..n).for_each(|i| h[i * n + i] = diagonal[i]);
        let out = round(w, &[1e6], &Feedback::new(&h, n), &ConstantCodes::of_width(bits), 1);
        let (scale, top) = (f64::from(out.scales[0]), f64::from((1i32 << (bits - 1)) - 1));
        for (x, kept) in w.iter().zip(&out.weights) {
            let nearest = (f64::from(*x) / scale).round_ties_even().clamp(-top, top) * scale;
            prop_assert!((nearest - f64::from(*kept)).abs() <= 1e-6 * scale.max(nearest.abs()), "{x} {kept} {nearest}");
        }
    }

    /// A group's factor is the one with the least squared error of rounding to nearest, each input channel's counted by D, or by 1 for the
    /// last way.
    #[test]
    fn factors_are_the_best_of_all((n, rows, w) in case(), bits in 4u8..8, size in 2usize..5, unit in 1e-3f32..0.2) {
        let feedback = Feedback::new(&moments(&rows), n);
        let groups = Groups { bits, size };
        let scales: [f64; TRIED] = std::array::from_fn(|i| f64::from(unit) * (1.0 - 0.02 * i as f64));
        let factors = feedback.factors(&w, &scales, &Rounder::new(&ConstantCodes::of_groups(groups)), groups);
        prop_assert_eq!(factors.len(), n.div_ceil(size));
        let top = f64::from(groups.top());
        for (g, factors) in factors.iter().enumerate() {
            for (i, found) in factors.iter().enumerate() {
                let error = |factor: f64| -> f64 {
                    let of_group = feedback.order.iter().zip(&feedback.weight).filter(|(channel, _)| **channel / size == g);
                    let missed = of_group.map(|(&channel, d)| {
                        let (w, step) = (f64::from(w[channel]), scales[i] * factor);
                        let missed = w - (w / step).clamp(-top, top).round_ties_even() * step;
                        missed * missed * if i == TRIED - 1 { 1.0 } else { *d }
                    });
                    missed.sum()
                };
                prop_assert!((1.0..=f64::from(groups.largest_factor())).contains(found) && found.fract() == 0.0);
                for f in (1..=groups.largest_factor()).map(f64::from) {
                    prop_assert!(error(*found) <= error(f) * (1.0 + 1e-9) + 1e-15, "group {g}, scale {i}: {found}, {f}");
                }
            }
        }
    }

    /// With the factors that it has on the scale that is found, a channel is what the paper's own equations make of it, and rounding to nearest
    /// on the scale given loses no less.
    #[test]
    fn groups_are_rounded_as_the_paper_has_it((n, rows, w) in case(), bits in 4u8..8, size in 2usize..5, shrink in 0.3f32..1.2) {
        let h = moments(&rows);
        let groups = Groups { bits, size };
        let largest = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        prop_assume!(largest > 1e-3);
        let given = largest / groups.largest() as f32 * shrink;
        let codes = ConstantCodes::of_groups(groups);
        let feedback = Feedback::new(&h, n);
        let out = round(&w, &[given], &feedback, &codes, 1);
        let plain = |scale: f32| {
            let constant = Constant { axis: Some(1), scales: &[scale], codes: codes.clone() };
            let tensor = crate::ir::Tensor::new(&[n, 1], &w).unwrap();
            crate::quant::fake::fake_constant(&tensor, &constant).unwrap().to_f32().unwrap()
        };
        let d = damped(&h, n);
        let found = loss(&d, n, &w, &out.weights);
        prop_assert!(found <= loss(&d, n, &w, &plain(given)) * (1.0 + 1e-5) + 1e-9);
        // All ways on that scale have the same factors but the last, which is rounding to nearest.
        let scale = f64::from(out.scales[0]);
        let factors = feedback.factors(&w, &[scale; TRIED], &Rounder::new(&codes), groups);
        let expected = by_factors(&h, n, &w, |channel| scale * factors[channel / size][0], f64::from(groups.top()));
        let same = |kept: &[f32]| kept.iter().zip(&out.weights).all(|(a, b)| f64::from((a - b).abs()) <= 1e-5 * scale);
        // A tie may fall either way in other arithmetic; then both lose the same.
        let as_good = |kept: &[f32]| (loss(&d, n, &w, kept) - found).abs() <= 1e-6 * found.max(1e-9);
        prop_assert!(same(&plain(out.scales[0])) || same(&expected) || as_good(&expected), "{out:?} {expected:?}");
    }

    /// What lowering does to the result, rounding to nearest on the plan's scales, changes nothing.
    #[test]
    fn nearest_gives_the_codes_back(
        (n, rows, w) in case(), bits in 3u8..9, levels in prop::option::of(prop::collection::btree_set(-127i32..=127, 2..17)),
        size in prop::option::of(2usize..6),
    ) {
        let codes = match (levels, size) {
            (_, Some(size)) => ConstantCodes::of_groups(Groups { bits: bits.clamp(4, 7), size }),
            (None, _) => ConstantCodes::of_width(bits),
            (Some(levels), _) => ConstantCodes::of_levels(&levels.into_iter().collect::<Vec<_>>()),
        };
        let out = round(&w, &[1e6], &Feedback::new(&moments(&rows), n), &codes, 1);
        let tensor = crate::ir::Tensor::new(&[n, 1], &out.weights).unwrap();
        let again = crate::quant::fake::fake_constant(&tensor, &Constant { axis: Some(1), scales: &out.scales, codes }).unwrap();
        prop_assert_eq!(again.to_f32().unwrap(), out.weights);
    }

    #[test]
    fn threads_change_nothing(rows in rows(6), w in prop::collection::vec(-1.0f32..1.0, 6 * 5)) {
        let feedback = Feedback::new(&moments(&rows), 6);
        let four = ConstantCodes::of_width(4);
        let one = round(&w, &[1e6; 5], &feedback, &four, 1);
        for threads in [2, 3, 8] {
            prop_assert_eq!(&round(&w, &[1e6; 5], &feedback, &four, threads), &one);
        }
        // And a channel does not know of the others.
        for c in 0..5 {
            let alone: Vec<f32> = w.iter().skip(c).step_by(5).copied().collect();
            let alone = round(&alone, &[1e6], &feedback, &four, 1);
            prop_assert_eq!(alone.scales[0], one.scales[c]);
            prop_assert_eq!(alone.weights, one.weights.iter().skip(c).step_by(5).copied().collect::<Vec<_>>());
        }
    }
}

/// On inputs that move together the whole does better than its parts: over many channels, by far.
#[test]
fn correlated_inputs_gain() {
    let n = 24;
    let mut seed = 7u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f64 / f64::from(1 << 24) * 2.0 - 1.0
    };
    let rows: Vec<Vec<f64>> = (0..200)
        .map(|_| {
            let common = next();
            (0..n).map(|_| common + 0.3 * next()).collect()
        })
        .collect();
    let h = moments(&rows);
    let feedback = Feedback::new(&h, n);
    let (mut gptq, mut nearest) = (0.0, 0.0);
    for _ in 0..50 {
        let w: Vec<f32> = (0..n).map(|_| next() as f32).collect();
        let out = round(&w, &[1e6], &feedback, &ConstantCodes::of_width(4), 1);
        let scale = out.scales[0];
        let plain: Vec<f32> = w.iter().map(|v| (v / scale).round_ties_even().clamp(-7.0, 7.0) * scale).collect();
        gptq += loss(&h, n, &w, &out.weights);
        nearest += loss(&h, n, &w, &plain);
    }
    assert!(gptq < 0.5 * nearest, "{gptq} {nearest}");
}

#[test]
fn nothing_to_round() {
    // Weights of 0, an input that is never there, and no input at all.
    let feedback = Feedback::new(&[0.0; 4], 2);
    let four = ConstantCodes::of_width(4);
    assert_eq!(round(&[0.0, 0.0], &[1e6], &feedback, &four, 2), Rounded { weights: vec![0.0, 0.0], scales: vec![1.0] });
    let out = round(&[1.0, -0.5], &[1e6], &feedback, &ConstantCodes::of_width(8), 1);
    assert!(out.weights.iter().zip([1.0, -0.5]).all(|(a, b): (&f32, f32)| (a - b).abs() <= out.scales[0]));
    assert_eq!(round(&[], &[], &Feedback::new(&[], 0), &four, 2), Rounded { weights: vec![], scales: vec![] });
}
