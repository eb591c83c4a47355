//! A worker's counting table, in which a tensor is counted before its value's statistics are locked.

use crate::calib::extremes::{NonFinite, finite_range, finite_ranges};
use crate::calib::sketch::{MANTISSA_BITS, PAGE, SHIFT, page_slot, top_of};
use crate::simd::widest;

/// All bins: sign, 8 exponent bits, mantissa bits.
const SLOTS: usize = 1 << (9 + MANTISSA_BITS);
const LANES: usize = 4;
/// Elements that are counted before the table is emptied: no lane's counter can exceed 16 bits.
const PORTION: usize = LANES * u16::MAX as usize;
/// A cache line more than the bins: counters of one bin that lay whole memory pages apart would be taken for one another by the processor's
/// store buffer.
const STRIDE: usize = SLOTS + 32;

/// The counts of one tensor, by page: a sign's exponent.
///
/// They are made in a table of every bin there is, indexed by the float's upper 16 bits without a branch. It has four lanes, so that
/// runs of one value (zeros, say) do not wait for their own stores. Half a mebibyte, of which one tensor touches so little that all lanes
/// of it stay in the first-level cache: 16-bit counters, taken over by wider ones before they can overflow.
#[derive(Debug)]
pub struct Scratch {
    table: Vec<u16>,
    /// What was counted last.
    pub(crate) counted: Counted,
    /// The extremes of each [`BLOCK`](crate::calib::extremes::BLOCK) of what was ranged last, if they were asked for.
    pub(crate) extremes: Vec<(f32, f32)>,
}

/// The pages of a tensor that are not empty.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Elements in all.
    pub(crate) count: u64,
    /// Elements that are zero or subnormal.
    pub(crate) zero: u64,
    /// Descending by exponent.
    pub(crate) negative: Vec<Page>,
    /// Descending by exponent.
    pub(crate) positive: Vec<Page>,
}

/// The counters of one sign's exponent.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) exponent: u16,
    pub(crate) total: u64,
    pub(crate) counts: [u32; PAGE],
}

impl Page {
    /// Takes its place among pages that descend by exponent, or adds to the one that has it.
    #[inline(always)]
    fn join(self, pages: &mut Vec<Page>) {
        let place = pages.iter().rposition(|known| known.exponent >= self.exponent);
        match place.and_then(|at| pages.get_mut(at)).filter(|known| known.exponent == self.exponent) {
            Some(known) => {
                known.total += self.total;
                known.counts.iter_mut().zip(&self.counts).for_each(|(sum, count)| *sum += count);
            }
            None => pages.insert(place.map_or(0, |at| at + 1), self),
        }
    }
}

impl Counted {
    pub(crate) fn clear(&mut self) {
        (self.count, self.zero) = (0, 0);
        self.negative.clear();
        self.positive.clear();
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self { table: vec![0; LANES * STRIDE], counted: Counted::default(), extremes: Vec::new() }
    }
}

impl Scratch {
    /// Elements that may be counted at once: pages have counters of 32 bits.
    pub(crate) const LIMIT: usize = u32::MAX as usize;

    /// The exact extremes of `data`; with `blocks`, those of its blocks are noted too.
    ///
    /// # Errors
    /// It holds NaN or infinity.
    pub(crate) fn range(&mut self, data: &[f32], blocks: bool) -> Result<(f32, f32), NonFinite> {
        if blocks { finite_ranges(data, &mut self.extremes) } else { finite_range(data) }
    }

    /// Counts `data`, at most [`Scratch::LIMIT`] finite elements within `range`. The table is empty afterwards.
    pub(crate) fn tally(&mut self, data: &[f32], range: (f32, f32)) {
        self.counted.clear();
        for portion in data.chunks(PORTION) {
            self.count(portion);
            widest(
                #[inline(always)]
                || self.collect(portion.len() as u64, range),
            );
        }
    }

    fn count(&mut self, data: &[f32]) {
        let (lanes, _) = self.table.as_chunks_mut::<STRIDE>();
        let [a, b, c, d] = lanes else {
            return;
        };
        let (quads, rest) = data.as_chunks::<LANES>();
        for [p, q, r, s] in quads {
            a[(p.to_bits() >> SHIFT) as usize] += 1;
            b[(q.to_bits() >> SHIFT) as usize] += 1;
            c[(r.to_bits() >> SHIFT) as usize] += 1;
            d[(s.to_bits() >> SHIFT) as usize] += 1;
        }
        for (x, lane) in rest.iter().zip([a, b, c]) {
            lane[(x.to_bits() >> SHIFT) as usize] += 1;
        }
    }

    /// Moves the table's counts into the pages.
    #[inline(always)]
    fn collect(&mut self, count: u64, (lo, hi): (f32, f32)) {
        let Self { table, counted, .. } = self;
        let zero = [false, true].into_iter().filter_map(|negative| drain(table, negative, 0)).map(|page| page.total).sum::<u64>();
        counted.count += count;
        counted.zero += zero;
        // Downwards from each side's extreme until every element is accounted for: the table's other pages are empty.
        let (lowest, highest) = (top_of(lo.min(0.0), 0.0), top_of(0.0, hi.max(0.0)));
        let mut left = count - zero;
        let mut exponent = lowest.max(highest);
        while left > 0 && exponent > 0 {
            for (negative, top, pages) in [(false, highest, &mut counted.positive), (true, lowest, &mut counted.negative)] {
                if exponent <= top
                    && let Some(page) = drain(table, negative, exponent)
                {
                    left -= page.total;
                    page.join(pages);
                }
            }
            exponent -= 1;
        }
        debug_assert_eq!(left, 0, "an element outside of the given extremes");
    }

    /// What is noted of a bin since the last tally.
    #[inline(always)]
    pub(crate) fn get(&self, slot: u16) -> u16 {
        self.table.get(usize::from(slot)).copied().unwrap_or_default()
    }

    /// Notes something of a bin; 0, which takes it back, has to follow before the next tally.
    pub(crate) fn set(&mut self, slot: u16, note: u16) {
        if let Some(place) = self.table.get_mut(usize::from(slot)) {
            *place = note;
        }
    }
}

/// Takes one page out of the table, leaving zeros. `None` if it was empty.
#[inline(always)]
fn drain(table: &mut [u16], negative: bool, exponent: u16) -> Option<Page> {
    let start = usize::from(page_slot(negative, exponent));
    let mut counts = [0u32; PAGE];
    for lane in table.chunks_exact(STRIDE) {
        for (sum, count) in counts.iter_mut().zip(lane.get(start..start + PAGE).unwrap_or_default()) {
            *sum += u32::from(*count);
        }
    }
    if counts.iter().fold(0, |any, count| any | count) == 0 {
        return None;
    }
    for lane in table.chunks_exact_mut(STRIDE) {
        lane.get_mut(start..start + PAGE).unwrap_or_default().fill(0);
    }
    Some(Page { exponent, total: counts.iter().map(|&count| u64::from(count)).sum(), counts })
}
