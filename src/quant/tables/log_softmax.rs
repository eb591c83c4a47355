//! The constants of `LogIntSoftmax` and the tables of `LogDequantize` and `LogNormalize`.

use super::{TableError, check_positive, check_range};

/// Fractional bits of the op's logarithms.
const F: u32 = 18;
/// The largest number of fractional bits of the exponential table.
const EXP_BITS_MAX: u32 = 24;

/// Where between two neighbouring codes the rounding changes from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogRounding {
    /// Half way in the logarithm: the smallest relative error.
    #[default]
    Logarithm,
    /// Half way in the probability: the smallest absolute error.
    Probability,
    /// Half way in the reciprocal, sum / exp: what FQ-ViT's `log_round` does (arXiv 2111.13824).
    Reciprocal,
}

impl LogRounding {
    /// The offset added before the floor, in code steps of `2^−r` octaves: `1 − t` where a code's step ends at `t`.
    pub fn offset(self, r: u32) -> f64 {
        let steps = f64::from(1u32 << r.min(16));
        // The next code is this factor away.
        let factor = libm::exp2(-1.0 / steps);
        match self {
            Self::Logarithm => 0.5,
            Self::Probability => 1.0 + steps * libm::log2(f64::midpoint(1.0, factor)),
            Self::Reciprocal => 1.0 - steps * libm::log2(f64::midpoint(1.0, 1.0 / factor)),
        }
    }
}

/// The constants of one `LogIntSoftmax`, in the order of the op's inputs, owned. Meanings and shapes:
/// `runtime::kernels::log_softmax::LogIntSoftmax`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSoftmaxTables {
    /// `[256]`: `round(2^B · exp(−scale · d))`.
    pub exp_table: Vec<i32>,
    /// `round(2^18 · scale · log2 e)`, at most 2^22.
    pub log_step: i32,
    /// `[1024]`: `round(2^18 · log2(1 + (i + ½) / 1024))`.
    pub mantissa_table: Vec<i32>,
    /// `round(2^(18−r) · offset) − B · 2^18`.
    pub bias: i32,
    /// `18 − r`.
    pub shift: u32,
    /// `2^bits − 1`.
    pub top: i32,
}

impl LogSoftmaxTables {
    /// Constants for 8-bit scores of scale `scale` in rows of `n`, with codes of `bits` bits (4 to 8) in steps of `2^−r`
    /// octaves (r 0 to 4).
    ///
    /// B, the fractional bits of the exponentials, is the largest up to 24 for which `n · 2^B < 2^31`. A scale above 11,
    /// where neighbouring scores differ by more than a factor of 2^16, counts as that.
    ///
    /// # Errors
    /// [`TableError::Parameter`] for a scale, length, width or r out of range.
    pub fn new(scale: f64, n: usize, bits: u32, r: u32, rounding: LogRounding) -> Result<Self, TableError> {
        check_positive("the scale of the scores", scale)?;
        check_codes(bits, r)?;
        check_row(n)?;
        let exp_bits = whole_bits(n, EXP_BITS_MAX);
        let one = f64::from(1u32 << exp_bits);
        let unit = f64::from(1u32 << F);
        let exp_table = (0..256).map(|d| (one * libm::exp(-scale * f64::from(d))).round_ties_even() as i32).collect();
        let log_step = (unit * scale * std::f64::consts::LOG2_E).round_ties_even();
        let mantissa_table =
            (0..1024).map(|i| (unit * libm::log2(1.0 + (f64::from(i) + 0.5) / 1024.0)).round_ties_even() as i32).collect();
        let shift = F - r;
        let offset = (f64::from(1u32 << shift) * rounding.offset(r)).round_ties_even() as i32;
        Ok(Self {
            exp_table,
            log_step: log_step.min(f64::from(1 << 22)) as i32,
            mantissa_table,
            bias: offset - ((exp_bits as i32) << F),
            shift,
            top: (1 << bits) - 1,
        })
    }
}

/// The value of every log2 code of `bits` bits (4 to 8), `[2^bits]`: `2^(−k / 2^r)`, and 0 for the top code.
/// Values below 2^−149 are 0 in f32 too (8 bits with r = 0 reach 2^−254).
///
/// # Errors
/// [`TableError::Parameter`] for a width or r out of range.
pub fn log_dequantize_table(bits: u32, r: u32) -> Result<Vec<f32>, TableError> {
    check_codes(bits, r)?;
    let top = (1u32 << bits) - 1;
    Ok((0..=top).map(|code| if code == top { 0.0 } else { libm::exp2(-f64::from(code) / f64::from(1u32 << r)) as f32 }).collect())
}

/// What every log2 code of `bits` bits (4 to 8) weighs in a row of `n` that is divided by its sum, `[2^bits]`:
/// `round(2^F · 2^(−k / 2^r))`, and 0 for the top code.
///
/// F is the largest up to 20 for which `n · 2^F < 2^31`: a weight is exact in float32, and no row overflows.
///
/// # Errors
/// [`TableError::Parameter`] for a width, r or length out of range.
pub fn log_normalize_table(bits: u32, r: u32, n: usize) -> Result<Vec<i32>, TableError> {
    const WEIGHT_BITS_MAX: u32 = 20;
    check_row(n)?;
    let one = f64::from(1u32 << whole_bits(n, WEIGHT_BITS_MAX));
    check_codes(bits, r)?;
    let (top, steps) = ((1u32 << bits) - 1, f64::from(1u32 << r));
    let weight = |code: u32| (one * libm::exp2(-f64::from(code) / steps)).round_ties_even() as i32;
    Ok((0..=top).map(|code| if code == top { 0 } else { weight(code) }).collect())
}

/// The most bits, up to `most`, with which `n` ones sum to less than 2^31.
fn whole_bits(n: usize, most: u32) -> u32 {
    (0..=most).rev().find(|&b| (n as u64) << b < 1 << 31).unwrap_or(0)
}

/// From 2^15 on, 16 bits would be left for the largest value of a row.
fn check_row(n: usize) -> Result<(), TableError> {
    check_range("the length of a softmax row", i64::try_from(n).unwrap_or(i64::MAX), 1..=(1 << 15) - 1, "1 to 32767")
}

fn check_codes(bits: u32, r: u32) -> Result<(), TableError> {
    check_range("the width of a log2 code", i64::from(bits), 4..=8, "4 to 8 bits")?;
    check_range("r, the steps of a log2 code as 2^r an octave,", i64::from(r), 0..=4, "0 to 4")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_full_row_of_maxima_stays_below_2_to_the_31() {
        for n in [1usize, 2, 127, 128, 129, 197, 577, 1024, 32767] {
            let t = LogSoftmaxTables::new(0.1, n, 8, 0, LogRounding::Logarithm).unwrap();
            assert!(i64::from(t.exp_table[0]) * (n as i64) < 1 << 31, "{n}");
            // And is as large as it can be.
            let next = i64::from(t.exp_table[0]) * 2;
            assert!(next > 1 << 24 || next * n as i64 >= 1 << 31, "{n}");
            assert_eq!(t.bias, (1 << 17) - ((t.exp_table[0].ilog2() as i32) << 18));
        }
    }

    #[test]
    fn rounding_offsets_put_the_boundary_half_way() {
        for r in 0..=4 {
            let steps = f64::from(1 << r);
            let value = |t: f64| (-t / steps).exp2();
            let end = |rounding: LogRounding| 1.0 - rounding.offset(r);
            assert!((end(LogRounding::Logarithm) - 0.5).abs() < 1e-12);
            let p = value(end(LogRounding::Probability));
            assert!((p - f64::midpoint(1.0, value(1.0))).abs() < 1e-12);
            let q = value(end(LogRounding::Reciprocal)).recip();
            assert!((q - f64::midpoint(1.0, value(1.0).recip())).abs() < 1e-12);
        }
        // log2(3/2), the boundary of FQ-ViT.
        assert!((LogRounding::Reciprocal.offset(0) - (1.0 - 1.5f64.log2())).abs() < 1e-15);
    }

    #[test]
    fn dequantised_codes_halve_every_2_to_the_r_steps() {
        let t = log_dequantize_table(4, 0).unwrap();
        assert_eq!(t.len(), 16);
        assert_eq!((t[0], t[1], t[14], t[15]), (1.0, 0.5, 1.0 / 16384.0, 0.0));
        let t = log_dequantize_table(8, 3).unwrap();
        assert_eq!((t[8], t[16], t[255]), (0.5, 0.25, 0.0));
        assert!((f64::from(t[4]) - 0.5f64.sqrt()).abs() < 1e-7);
        let t = log_normalize_table(4, 0, 197).unwrap();
        assert_eq!((t.len(), t[0], t[1], t[14], t[15]), (16, 1 << 20, 1 << 19, 1 << 6, 0));
        let t = log_normalize_table(8, 3, 32767).unwrap();
        assert_eq!((t[0], t[8], t[4], t[255]), (1 << 16, 1 << 15, 46341, 0));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let new = |scale, n, bits, r| LogSoftmaxTables::new(scale, n, bits, r, LogRounding::default());
        assert!(new(0.1, 197, 4, 0).is_ok());
        for (scale, n, bits, r) in [
            (0.0, 197, 4, 0),
            (f64::NAN, 197, 4, 0),
            (0.1, 0, 4, 0),
            (0.1, 1 << 15, 4, 0),
            (0.1, 197, 3, 0),
            (0.1, 197, 9, 0),
            (0.1, 197, 4, 5),
        ] {
            assert!(new(scale, n, bits, r).is_err(), "{scale} {n} {bits} {r}");
        }
        assert!(log_dequantize_table(3, 0).is_err());
        assert!(log_normalize_table(3, 0, 197).is_err() && log_normalize_table(4, 0, 0).is_err());
        assert_eq!(new(50.0, 197, 4, 0).unwrap().log_step, 1 << 22);
    }
}
