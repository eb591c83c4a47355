//! `LogIntSoftmax`: softmax of 8-bit scores as a log2 code.

use super::{Code8, KernelError, check_length, check_range};

const OP: &str = "LogIntSoftmax";

/// Fractional bits of every logarithm inside the op.
pub const LOG_FRACTION_BITS: u32 = 18;
/// Entries of the exponential table: one for every distance between two 8-bit scores.
pub const EXP_ENTRIES: usize = 256;
/// Address bits of the mantissa table.
pub const MANTISSA_BITS: u32 = 10;
/// The largest `log_step`, 16 in the log2 domain: 255 of them stay below 2^30.
pub const LOG_STEP_MAX: i32 = 1 << 22;
/// The largest magnitude of `bias`.
pub const BIAS_MAX: i32 = 1 << 25;

/// The constants of one `LogIntSoftmax`, in the order of the op's inputs. F is [`LOG_FRACTION_BITS`].
#[derive(Debug, Clone, Copy)]
pub struct LogIntSoftmax<'a> {
    /// `[256]`: `round(2^B · exp(−scale · d))` for the distance `d` of a score below its row's maximum. B is chosen so that a
    /// row of N scores sums to less than 2^31.
    pub exp_table: &'a [i32],
    /// `round(2^F · scale · log2 e)`: what one step of distance adds to −log2 of the probability. `0..=2^22`.
    pub log_step: i32,
    /// `[1024]`: `round(2^F · log2(1 + (i + ½) / 1024))`, the fraction of log2 from the ten bits below the leading one.
    pub mantissa_table: &'a [i32],
    /// The rounding offset (½ of a code step rounds to nearest in the log domain) minus `B · 2^F`.
    pub bias: i32,
    /// `F − r`, in `0..=18`: the code is in steps of `2^−r` of log2.
    pub shift: u32,
    /// The top code, `2^b − 1`, in `1..=255`: it means 0.
    pub top: i32,
}

/// Softmax over rows of `n` scores; the code `k < top` means `2^(−k / 2^r)`, the code `top` means 0.
///
/// For a row with maximum m and every score q of it:
///
/// ```text
/// d = m − q                                             0..=255
/// S = Σ exp_table[d]                                    below 2^31
/// p = floor(log2 S),  i = the ten bits of S below its leading one
/// L = p · 2^F + mantissa_table[i]                       2^F · log2 S
/// code = min(max(d · log_step + L + bias, 0) >> shift, top)
/// ```
///
/// This is the Log-Int-Softmax of FQ-ViT (arXiv 2111.13824, section 3.3) with two departures. The exponential of I-BERT
/// (arXiv 2101.01321, algorithm 2) is a second-order polynomial; on 8-bit scores a table of 256 entries holds the exponential
/// itself, rounded once. And −log2(exp / sum) is taken as a difference of logarithms, in which the exponential's is linear in
/// the code, so that no quotient is rounded before its logarithm and no division is needed.
///
/// # Errors
/// [`KernelError`] for constants of a wrong length or out of range, for a length of `x` that is no multiple of `n`, and for a
/// row whose exponentials sum to 2^31 or more.
pub fn log_int_softmax<X: Code8>(x: &[X], n: usize, constants: &LogIntSoftmax<'_>) -> Result<Vec<u8>, KernelError> {
    constants.check()?;
    if n == 0 || !x.len().is_multiple_of(n) {
        return Err(KernelError::Length {
            op: OP,
            input: "x",
            found: x.len(),
            expected: format!("a multiple of the last axis ({n}), which must not be 0,"),
        });
    }
    let mut codes = Vec::with_capacity(x.len());
    for row in x.chunks_exact(n) {
        let highest = row.iter().map(|q| q.value()).max().unwrap_or(0);
        let sum: i64 = row.iter().map(|q| i64::from(constants.exponential(highest - q.value()))).sum();
        let Ok(sum) = i32::try_from(sum) else {
            return Err(KernelError::Overflow {
                op: OP,
                what: "the sum of a row's exponentials",
                reached: i128::from(sum),
                limit: i128::from(i32::MAX),
                advice: "exp_table was built for shorter rows; rebuild it with this row length",
            });
        };
        let offset = constants.log2(sum) + constants.bias;
        for q in row {
            let t = (highest - q.value()) as i32 * constants.log_step + offset;
            codes.push(((t.max(0) >> constants.shift).min(constants.top)) as u8);
        }
    }
    Ok(codes)
}

impl LogIntSoftmax<'_> {
    /// With these bounds |d · log_step + L + bias| ≤ 255·2^22 + 31·2^18 + 2^25 < 2^31.
    fn check(&self) -> Result<(), KernelError> {
        check_length(OP, "exp_table", self.exp_table.len(), EXP_ENTRIES)?;
        check_length(OP, "mantissa_table", self.mantissa_table.len(), 1 << MANTISSA_BITS)?;
        for (index, &entry) in self.exp_table.iter().enumerate() {
            // The maximum's own exponential must count, or the sum has no logarithm.
            let low = i64::from(index == 0);
            check_range(OP, "exp_table", i64::from(entry), low, i64::from(i32::MAX))?;
        }
        for &entry in self.mantissa_table {
            check_range(OP, "mantissa_table", i64::from(entry), 0, 1 << LOG_FRACTION_BITS)?;
        }
        check_range(OP, "log_step", i64::from(self.log_step), 0, i64::from(LOG_STEP_MAX))?;
        let bias_max = i64::from(BIAS_MAX);
        check_range(OP, "bias", i64::from(self.bias), -bias_max, bias_max)?;
        check_range(OP, "shift", i64::from(self.shift), 0, i64::from(LOG_FRACTION_BITS))?;
        check_range(OP, "top", i64::from(self.top), 1, 255)
    }

    /// The exponential at a distance; distances of 8-bit codes are always in the table.
    fn exponential(&self, distance: i64) -> i32 {
        usize::try_from(distance).ok().and_then(|d| self.exp_table.get(d)).copied().unwrap_or(0)
    }

    /// `2^F · log2(sum)` for `sum ≥ 1`.
    fn log2(&self, sum: i32) -> i32 {
        let exponent = sum.max(1).ilog2();
        // The leading one moves to bit 30, the ten bits below it choose the entry.
        let normal = (sum as u32) << (30 - exponent);
        let index = (normal >> (30 - MANTISSA_BITS)) & ((1 << MANTISSA_BITS) - 1);
        let fraction = self.mantissa_table.get(index as usize).copied();
        ((exponent as i32) << LOG_FRACTION_BITS) + fraction.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
