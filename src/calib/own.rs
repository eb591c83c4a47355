//! Quantiles of one sample, read off the worker's counting table before it is absorbed.
//!
//! The bits are those of `Histogram::quantile` on the sample's own sketch, without making either: what lies far from the quantile
//! is counted a page at a time, and a quantile near an end is looked for from that end.

use crate::calib::scratch::Scratch;
use crate::calib::sketch::{MAX_EXPONENT, PAGE, edge};

/// A page of the table: all of one sign and exponent, ascending, or descending if negative.
#[derive(Clone, Copy)]
struct Page {
    negative: bool,
    exponent: u16,
}

/// The `p` quantile of a table's `n` elements, whose exact extremes are `lo` and `hi`; 0 of an empty table.
pub(crate) fn quantile(table: &Scratch, n: u64, (lo, hi): (f32, f32), p: f64) -> f64 {
    let Some(last) = n.checked_sub(1) else { return 0.0 };
    let position = p.clamp(0.0, 1.0) * last as f64;
    let below = (position.floor() as u64).min(last);
    let fraction = position - below as f64;
    let at = |k| order_statistic(table, n, (f64::from(lo), f64::from(hi)), k);
    let a = at(below);
    if fraction <= 0.0 || below == last {
        return a;
    }
    a + fraction * (at(below + 1) - a)
}

/// The element of rank `k` from below, counted from 0.
fn order_statistic(table: &Scratch, n: u64, (lo, hi): (f64, f64), k: u64) -> f64 {
    if k == 0 {
        return lo;
    }
    if k + 1 >= n {
        return hi;
    }
    let from_above = k > n / 2;
    // Elements between the end that the search begins at and the bin that is looked at, and how many of them `k` is past.
    let (mut passed, rank) = (0, if from_above { n - 1 - k } else { k });
    let largest = lo.abs().max(hi.abs()) as f32;
    let top = u16::try_from(largest.to_bits() >> 23).unwrap_or(MAX_EXPONENT).min(MAX_EXPONENT);
    let outer = (0..=top).rev().map(|exponent| Page { negative: !from_above, exponent });
    let inner = (0..=top).map(|exponent| Page { negative: from_above, exponent });
    for page in outer.chain(inner) {
        let counts = table.page(page.negative, page.exponent);
        let total = counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        if passed + total <= rank {
            passed += total;
            continue;
        }
        if page.exponent == 0 {
            return 0.0;
        }
        // Bins go outwards where the search does.
        let outwards = page.negative == from_above;
        for step in 0..PAGE {
            let j = if outwards { step } else { PAGE - 1 - step };
            let count = counts.get(j).copied().map_or(0, u64::from);
            if passed + count <= rank {
                passed += count;
                continue;
            }
            let below = if from_above { n - passed - count } else { passed };
            let edge = |j: usize| edge(page.exponent, j as f64 / PAGE as f64);
            let (mut from, mut to) = if page.negative { (-edge(j + 1), -edge(j)) } else { (edge(j), edge(j + 1)) };
            // The outermost bins end at the extremes.
            if below == 0 {
                from = from.max(lo).min(to);
            }
            if below + count == n {
                to = to.min(hi).max(from);
            }
            return from + (to - from) * (((k - below) as f64 + 0.5) / count as f64);
        }
    }
    hi
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::calib::sketch::{Sketch, finite_range};
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
            table.tally(&data);
            let range = finite_range(&data).unwrap();
            for p in [p, 1.0 - p, 0.5, 0.99, 0.01, 1.0, 0.0] {
                let found = quantile(&table, data.len() as u64, range, p);
                prop_assert_eq!(found.to_bits(), histogram.quantile(p).unwrap().to_bits(), "{} at {}", found, p);
            }
        }
    }
}
