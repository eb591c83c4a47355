//! Quantiles of one sample, read off the worker's counts before a sketch absorbs them.
//!
//! The bits are those of `Histogram::quantile` on the sample's own sketch, without making either: what lies far from the quantile
//! is passed a page at a time.

use crate::calib::scratch::{Counted, Page};
use crate::calib::sketch::{PAGE, edge};

/// The `p` quantile of counted elements whose exact extremes are `lo` and `hi`; 0 of none.
pub(crate) fn quantile(counted: &Counted, (lo, hi): (f32, f32), p: f64) -> f64 {
    let Some(last) = counted.count.checked_sub(1) else { return 0.0 };
    let position = p.clamp(0.0, 1.0) * last as f64;
    let below = (position.floor() as u64).min(last);
    let fraction = position - below as f64;
    let at = |k| order_statistic(counted, (f64::from(lo), f64::from(hi)), k);
    let a = at(below);
    if fraction <= 0.0 || below == last {
        return a;
    }
    a + fraction * (at(below + 1) - a)
}

/// The element of rank `k` from below, counted from 0.
fn order_statistic(counted: &Counted, (lo, hi): (f64, f64), k: u64) -> f64 {
    let n = counted.count;
    if k == 0 {
        return lo;
    }
    if k + 1 >= n {
        return hi;
    }
    // Ascending: the negative pages as they are, zero, the positive ones from the last.
    let mut passed = 0;
    for page in &counted.negative {
        if k < passed + page.total {
            return inside(page, true, (passed, n), (lo, hi), k);
        }
        passed += page.total;
    }
    if k < passed + counted.zero {
        return 0.0;
    }
    passed += counted.zero;
    for page in counted.positive.iter().rev() {
        if k < passed + page.total {
            return inside(page, false, (passed, n), (lo, hi), k);
        }
        passed += page.total;
    }
    hi
}

/// The element of rank `k` in the page that holds it, `below` of all `n` elements being in those before.
fn inside(page: &Page, negative: bool, (mut below, n): (u64, u64), (lo, hi): (f64, f64), k: u64) -> f64 {
    for step in 0..PAGE {
        let j = if negative { PAGE - 1 - step } else { step };
        let count = page.counts.get(j).copied().map_or(0, u64::from);
        if below + count <= k {
            below += count;
            continue;
        }
        let edge = |j: usize| edge(page.exponent, j as f64 / PAGE as f64);
        let (mut from, mut to) = if negative { (-edge(j + 1), -edge(j)) } else { (edge(j), edge(j + 1)) };
        // The outermost bins end at the extremes.
        if below == 0 {
            from = from.max(lo).min(to);
        }
        if below + count == n {
            to = to.min(hi).max(from);
        }
        return from + (to - from) * (((k - below) as f64 + 0.5) / count as f64);
    }
    hi
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::extremes::finite_range;
    use crate::calib::scratch::Scratch;
    use crate::calib::sketch::Sketch;
    use proptest::prelude::*;

    fn any_f32() -> impl Strategy<Value = f32> {
        prop_oneof![
            6 => -10.0f32..10.0,
            1 => proptest::num::f32::NORMAL,
            1 => proptest::num::f32::SUBNORMAL,
            2 => prop_oneof![Just(0.0f32), Just(-0.0), Just(f32::MAX), Just(f32::MIN), Just(1.0), Just(-2.0)],
        ]
    }

    proptest! {
        #[test]
        fn equals_the_histograms(data in prop::collection::vec(any_f32(), 1..300), p in 0.0f64..=1.0) {
            let histogram = Sketch::from_slice(&data).unwrap().histogram(u32::MAX);
            let mut table = Scratch::default();
            let range = finite_range(&data).unwrap();
            table.tally(&data, range);
            for p in [p, 1.0 - p, 0.5, 0.99, 0.01, 1.0, 0.0] {
                let found = quantile(&table.counted, range, p);
                prop_assert_eq!(found.to_bits(), histogram.quantile(p).unwrap().to_bits(), "{} at {}", found, p);
            }
        }
    }
}
