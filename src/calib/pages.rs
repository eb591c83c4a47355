//! The counters of a sketch: pages of them, each of the bins that share one sign and exponent.

use crate::calib::sketch::{PAGE, PageKey};

/// The pages that are not empty, ascending with the values they hold.
///
/// What counting a tensor costs beside the counting itself is mostly to have the counters in the cache. So they have 32 bits while no bin can
/// have more elements than that, and lie one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pages {
    keys: Vec<PageKey>,
    counts: Counts,
}

/// Narrow exactly while all elements together fit 32 bits, so that equal contents are equal.
#[derive(Debug, Clone, PartialEq)]
enum Counts {
    Narrow(Vec<[u32; PAGE]>),
    Wide(Vec<[u64; PAGE]>),
}

/// The counters of one page, from the smallest magnitude.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Page<'a> {
    Narrow(&'a [u32; PAGE]),
    Wide(&'a [u64; PAGE]),
}

impl<'a> Page<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = u64> + 'a {
        let (narrow, wide) = match self {
            Page::Narrow(counts) => (&counts[..], &[][..]),
            Page::Wide(counts) => (&[][..], &counts[..]),
        };
        narrow.iter().copied().map(u64::from).chain(wide.iter().copied())
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self { keys: Vec::new(), counts: Counts::Narrow(Vec::new()) }
    }
}

impl Pages {
    /// Makes room for `count` elements in all.
    #[inline(always)]
    pub(crate) fn reserve(&mut self, count: u64) {
        if let Counts::Narrow(pages) = &self.counts
            && count > u64::from(u32::MAX)
        {
            self.counts = Counts::Wide(pages.iter().map(|page| page.map(u64::from)).collect());
        }
    }

    /// Adds to the counters of a page, for which there is [room](Self::reserve), and returns it.
    #[inline(always)]
    pub(crate) fn add(&mut self, key: PageKey, counts: &[u32; PAGE]) -> Page<'_> {
        let at = self.place(key);
        match &mut self.counts {
            Counts::Narrow(pages) => {
                let page = &mut pages[at];
                page.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                Page::Narrow(page)
            }
            Counts::Wide(pages) => {
                let page = &mut pages[at];
                page.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += u64::from(count));
                Page::Wide(page)
            }
        }
    }

    /// Adds to the counters of a page, for which there is [room](Self::reserve).
    pub(crate) fn add_all(&mut self, key: PageKey, counts: impl IntoIterator<Item = u64>) {
        let at = self.place(key);
        match &mut self.counts {
            // Room for all elements is room for those of a bin.
            Counts::Narrow(pages) => pages[at].iter_mut().zip(counts).for_each(|(sum, count)| *sum += count as u32),
            Counts::Wide(pages) => pages[at].iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
        }
    }

    /// The pages with their keys, ascending with the values they hold.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (PageKey, Page<'_>)> {
        self.keys.iter().enumerate().map(|(at, &key)| {
            let page = match &self.counts {
                Counts::Narrow(pages) => Page::Narrow(&pages[at]),
                Counts::Wide(pages) => Page::Wide(&pages[at]),
            };
            (key, page)
        })
    }

    /// Where a page is, which is made if there is none.
    #[inline(always)]
    fn place(&mut self, key: PageKey) -> usize {
        match self.keys.binary_search(&key) {
            Ok(at) => at,
            Err(at) => {
                self.keys.insert(at, key);
                match &mut self.counts {
                    Counts::Narrow(pages) => pages.insert(at, [0; PAGE]),
                    Counts::Wide(pages) => pages.insert(at, [0; PAGE]),
                }
                at
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Of few and of many elements, added in any order and merged, against sums of 128 bits in a map.
        #[test]
        fn pages_add_up_whatever_their_width(
            parts in prop::collection::vec((-3i16..3, 0usize..PAGE, 0u32..), 1..9), cut in 0usize..9, turn in 0usize..9,
        ) {
            let mut exact: BTreeMap<PageKey, Vec<u128>> = BTreeMap::new();
            let total = |parts: &[(i16, usize, u32)]| parts.iter().map(|p| u64::from(p.2)).sum::<u64>();
            let pages = |parts: &[(i16, usize, u32)]| {
                let mut pages = Pages::default();
                pages.reserve(total(parts));
                for &(key, at, count) in parts {
                    let mut counts = [0; PAGE];
                    counts[at] = count;
                    let sum = pages.add(key, &counts).iter().nth(at).unwrap();
                    assert!(sum >= u64::from(count));
                }
                pages
            };
            for &(key, at, count) in &parts {
                exact.entry(key).or_insert_with(|| vec![0; PAGE])[at] += u128::from(count);
            }
            let mut turned = parts.clone();
            turned.rotate_left(turn % parts.len());
            let (a, b) = turned.split_at(cut.min(turned.len()));
            let mut merged = pages(a);
            merged.reserve(total(&parts));
            for (key, page) in pages(b).iter() {
                merged.add_all(key, page.iter());
            }
            prop_assert_eq!(&merged, &pages(&parts));
            let found: Vec<(PageKey, Vec<u128>)> = merged.iter().map(|(key, page)| (key, page.iter().map(u128::from).collect())).collect();
            prop_assert_eq!(found, exact.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(matches!(merged.counts, Counts::Narrow(_)), total(&parts) <= u64::from(u32::MAX));
        }
    }
}
