//! A worker's counting table, in which a tensor is counted before its value's statistics are locked.

use crate::calib::sketch::{MANTISSA_BITS, PAGE, SHIFT, Sketch, page_slot};

/// All bins: sign, 8 exponent bits, mantissa bits.
const SLOTS: usize = 1 << (9 + MANTISSA_BITS);
const LANES: usize = 4;

/// A worker's counting table: every bin there is, indexed by the float's upper 16 bits without a branch.
///
/// A mebibyte, of which one tensor touches little; four lanes, so that runs of one value (zeros, say) do not wait for their own stores.
#[derive(Debug)]
pub struct Scratch {
    table: Vec<u32>,
    pub(crate) filled: u64,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { table: vec![0; LANES * SLOTS], filled: 0 }
    }
}

impl Scratch {
    /// Elements that may be counted before the table is drained: its counters are 32 bits wide.
    pub(crate) const LIMIT: usize = u32::MAX as usize;

    /// Counts `data`, at most [`Scratch::LIMIT`] finite elements, into the empty table.
    pub(crate) fn tally(&mut self, data: &[f32]) {
        self.filled += data.len() as u64;
        let (lanes, _) = self.table.as_chunks_mut::<SLOTS>();
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
        for x in rest {
            a[(x.to_bits() >> SHIFT) as usize] += 1;
        }
    }

    /// The counters of one page (a sign's exponent).
    #[inline(always)]
    pub(crate) fn page(&self, negative: bool, exponent: u16) -> [u32; PAGE] {
        let start = page_start(negative, exponent);
        let mut counts = [0; PAGE];
        for lane in self.table.chunks_exact(SLOTS) {
            for (sum, count) in counts.iter_mut().zip(lane.get(start..start + PAGE).unwrap_or_default()) {
                *sum += count;
            }
        }
        counts
    }

    /// What is noted of a bin while the table is empty.
    #[inline(always)]
    pub(crate) fn get(&self, slot: u16) -> u32 {
        self.table.get(usize::from(slot)).copied().unwrap_or_default()
    }

    /// Notes something of a bin while the table is empty; 0 takes it back.
    pub(crate) fn set(&mut self, slot: u16, note: u32) {
        if let Some(place) = self.table.get_mut(usize::from(slot)) {
            *place = note;
        }
    }

    /// Forgets all counts, of elements within `range`.
    pub(crate) fn clear(&mut self, range: (f32, f32)) {
        Sketch::default().absorb(range, &[], self);
    }

    /// Takes one page out of the table, leaving zeros: its counters and their sum. `None` if it was empty.
    #[inline(always)]
    pub(crate) fn drain(&mut self, negative: bool, exponent: u16) -> Option<([u32; PAGE], u64)> {
        let counts = self.page(negative, exponent);
        if counts.iter().fold(0, |any, count| any | count) == 0 {
            return None;
        }
        let start = page_start(negative, exponent);
        for lane in self.table.chunks_exact_mut(SLOTS) {
            lane.get_mut(start..start + PAGE).unwrap_or_default().fill(0);
        }
        Some((counts, counts.iter().map(|&count| u64::from(count)).sum()))
    }
}

fn page_start(negative: bool, exponent: u16) -> usize {
    usize::from(page_slot(negative, exponent))
}
