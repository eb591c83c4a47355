//! An elementwise function of a quantised tensor as a table.

use std::collections::BTreeSet;

use super::{Affine, CodeType, Ptf, TableError, check_finite, check_positive};

/// The activations that a model may hold, as functions of a real number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the normal distribution's Φ.
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · clamp(x/6 + 1/2, 0, 1)`.
    HardSwish,
}

impl Activation {
    /// The activation at `x`. GELU comes from erfc, which keeps its relative precision on the negative side, where
    /// `1 + erf` cancels.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Self::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Self::GeluTanh => {
                let root = libm::sqrt(2.0 * std::f64::consts::FRAC_1_PI);
                0.5 * x * (1.0 + libm::tanh(root * (x + 0.044_715 * x * x * x)))
            }
            Self::Silu => x * sigmoid(x),
            Self::QuickGelu => x * sigmoid(1.702 * x),
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => libm::tanh(x),
            Self::Relu => x.max(0.0),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// A table of output codes, one for every code of `input_type`, in two's complement order (entry `i` answers the code whose
/// bits are `i`): `clamp(round_half_even(f(real) / output.scale) + output.zero_point, range)`.
///
/// `range` is the lowest and highest output code, which may be narrower than the output's type.
///
/// # Errors
/// [`TableError::Parameter`] for a scale that is not finite and positive, an empty range, or an `f` that is NaN somewhere.
pub fn lut_table(
    f: impl Fn(f64) -> f64,
    input: Affine,
    input_type: CodeType,
    output: Affine,
    range: (i32, i32),
) -> Result<Vec<i32>, TableError> {
    check_positive("the input's scale", input.scale)?;
    check_positive("the output's scale", output.scale)?;
    if range.0 > range.1 {
        return Err(TableError::Parameter {
            what: "the highest output code",
            found: f64::from(range.1),
            needed: "at least the lowest output code",
        });
    }
    let (low, high) = input_type.range();
    (0..=high)
        .chain(low..0)
        .map(|code| {
            let x = input.scale * (f64::from(code) - f64::from(input.zero_point));
            let y = f(x);
            if y.is_nan() {
                return Err(TableError::Parameter { what: "the activation of a code", found: y, needed: "a number" });
            }
            let code = (y / output.scale).round_ties_even() + f64::from(output.zero_point);
            // `as` saturates, and the clamped value is an integer within i32.
            Ok(code.clamp(f64::from(range.0), f64::from(range.1)) as i32)
        })
        .collect()
}

/// The table of an [`Activation`], by [`lut_table`].
///
/// # Errors
/// As [`lut_table`].
pub fn activation_table(
    activation: Activation,
    input: Affine,
    input_type: CodeType,
    output: Affine,
    range: (i32, i32),
) -> Result<Vec<i32>, TableError> {
    check_finite("the input's scale", &[input.scale])?;
    lut_table(|x| activation.eval(x), input, input_type, output, range)
}

/// The table of `ChannelLut` and `ChannelLutGelu`: a row for every meaning of codes that occurs, and the row of each channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelTables {
    /// The rows one after another, each as [`lut_table`] makes it.
    pub entries: Vec<i32>,
    /// The number of rows, at least 1.
    pub count: usize,
    /// For each channel its row, in `0..count`.
    pub rows: Vec<i32>,
}

/// log2 of the largest number of entries of a [`ChannelTables`]: 4096 rows for 8-bit codes, 16 for 16-bit codes.
pub const CHANNEL_TABLE_BITS: u32 = 20;

/// The tables of an [`Activation`] between codes with a factor, and perhaps a zero point, for each channel. Each
/// combination that occurs is a row; they ascend.
///
/// # Errors
/// As [`lut_table`]; [`TableError::Length`] when both sides have factors and differ in their number;
/// [`TableError::Parameter`] when neither has any; [`TableError::TooWide`] when the rows have more than
/// 2^[`CHANNEL_TABLE_BITS`] entries together.
pub fn channel_tables(
    activation: Activation,
    input: Ptf<'_>,
    input_type: CodeType,
    output: Ptf<'_>,
    range: (i32, i32),
) -> Result<ChannelTables, TableError> {
    let Some(channels) = input.channels().or(output.channels()) else {
        return Err(TableError::Parameter { what: "the number of factors", found: 0.0, needed: "one for each channel" });
    };
    input.check("the input's scale", "the list of the input's zero points", channels)?;
    output.check("the output's scale", "the list of the output's zero points", channels)?;
    let pairs: Vec<_> = (0..channels).map(|c| (input.channel(c), output.channel(c))).collect();
    let distinct: Vec<_> = BTreeSet::from_iter(pairs.iter().copied()).into_iter().collect();
    let (low, high) = input_type.range();
    let bits = ((f64::from(high) - f64::from(low) + 1.0) * distinct.len() as f64).log2();
    if bits > f64::from(CHANNEL_TABLE_BITS) {
        return Err(TableError::TooWide {
            what: "the number of the table's entries",
            bits,
            limit: CHANNEL_TABLE_BITS,
            advice: "there is a row for each pair of an input's and an output's factor (and zero point): give the input codes of 8 bits, or one of the two a single scale",
        });
    }
    let affine = |side: Ptf<'_>, (factor, zero_point): (u32, i32)| Affine { scale: side.scale * f64::from(factor), zero_point };
    let mut entries = Vec::new();
    for &(x, y) in &distinct {
        entries.extend(activation_table(activation, affine(input, x), input_type, affine(output, y), range)?);
    }
    // Every pair is among the distinct ones, of which there are at most 2^16.
    let row = |pair| distinct.binary_search(pair).unwrap_or_default() as i32;
    Ok(ChannelTables { entries, count: distinct.len(), rows: pairs.iter().map(row).collect() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// Reference values computed with 40 digits.
    #[test]
    fn activations_have_their_known_values() {
        let close = |a: Activation, x: f64, y: f64| {
            let got = a.eval(x);
            assert!((got - y).abs() <= 4e-16 + 4e-15 * y.abs(), "{a:?}({x}) = {got}, not {y}");
        };
        close(Activation::Gelu, 0.0, 0.0);
        close(Activation::Gelu, 1.0, 0.8413447460685429);
        close(Activation::Gelu, -1.0, -0.15865525393145705);
        close(Activation::Gelu, -6.0, -5.9195258702261885e-09);
        close(Activation::GeluTanh, 1.0, 0.8411919906082767);
        close(Activation::Silu, -2.0, -0.23840584404423512);
        close(Activation::QuickGelu, 0.5, 0.35038843660638014);
        close(Activation::Sigmoid, 3.0, 0.9525741268224333);
        close(Activation::Tanh, 0.25, 0.24491866240370913);
        close(Activation::Relu, 0.25, 0.25);
        close(Activation::Relu, -0.25, 0.0);
        close(Activation::HardSwish, 1.0, 2.0 / 3.0);
        close(Activation::HardSwish, -3.5, 0.0);
        close(Activation::HardSwish, 3.5, 3.5);
    }

    #[test]
    fn a_table_answers_every_code_in_order_of_bits_and_rounds_half_to_even() {
        let input = Affine { scale: 0.5, zero_point: 3 };
        let output = Affine { scale: 1.0, zero_point: -10 };
        let table = lut_table(|x| x, input, CodeType::Int8, output, (-20, 30)).unwrap();
        assert_eq!(table.len(), 256);
        let at = |code: i8| table[usize::from(code as u8)];
        assert_eq!((at(3), at(5), at(1)), (-10, -9, -11));
        // 0.5 → 0, 1.5 → 2, −0.5 → 0.
        assert_eq!((at(4), at(6), at(2)), (-10, -8, -10));
        assert_eq!((at(127), at(-128)), (30, -20));
    }

    #[test]
    fn unsigned_and_wide_tables_have_their_length() {
        let a = Affine { scale: 1.0, zero_point: 0 };
        let wide = lut_table(|x| x, a, CodeType::Uint16, a, (0, 65535)).unwrap();
        assert!(wide.iter().zip(0..).all(|(&y, x)| y == x));
        assert_eq!(wide.len(), 65536);
        let wide = lut_table(|x| x, a, CodeType::Int16, a, (-32768, 32767)).unwrap();
        assert_eq!((wide[32768], wide[65535], wide.len()), (-32768, -1, 65536));
    }

    #[test]
    fn an_infinite_value_saturates_and_a_nan_is_an_error() {
        let a = Affine { scale: 1.0, zero_point: 0 };
        let table = lut_table(|x| 1.0 / x, a, CodeType::Uint8, a, (0, 255)).unwrap();
        assert_eq!(table[0], 255);
        assert!(lut_table(|x| 0.0 / x, a, CodeType::Uint8, a, (0, 255)).is_err());
        assert!(lut_table(|x| x, a, CodeType::Uint8, a, (1, 0)).is_err());
        let zero = Affine { scale: 0.0, zero_point: 0 };
        assert!(lut_table(|x| x, zero, CodeType::Uint8, a, (0, 255)).is_err());
        assert!(lut_table(|x| x, a, CodeType::Uint8, zero, (0, 255)).is_err());
    }

    /// The GELU by its Taylor series around 0, in f64: Φ(x) = 1/2 + φ(0) Σ (−1)^n x^(2n+1) / (2^n n! (2n+1)).
    fn gelu_by_series(x: f64) -> f64 {
        let (mut power, mut sum) = (x, x);
        for n in 1..120 {
            power *= -x * x / (2.0 * f64::from(n));
            sum += power / f64::from(2 * n + 1);
        }
        x * (0.5 + sum / (2.0 * std::f64::consts::PI).sqrt())
    }

    #[test]
    fn a_channel_reads_and_writes_in_its_own_steps() {
        let (base_x, base_y) = (0.004, 0.003);
        let (a, b) = ([1u32, 8, 1, 8, 2], [4u32, 1, 4, 2, 1]);
        // (1, 4), (2, 1), (8, 1), (8, 2); with zero points of their own the first and third channel differ too.
        for (zeros, count, rows) in [(&[5][..], 4, [0, 2, 0, 3, 1]), (&[5, 5, -9, 5, 5], 5, [1, 3, 0, 4, 2])] {
            let input = Ptf { scale: base_x, zero_points: &[-20], multipliers: &a };
            let output = Ptf { scale: base_y, zero_points: zeros, multipliers: &b };
            let t = channel_tables(Activation::Gelu, input, CodeType::Int8, output, (-128, 127)).unwrap();
            assert_eq!((t.count, t.entries.len(), t.rows.as_slice()), (count, count * 256, &rows[..]));
            for (c, &row) in t.rows.iter().enumerate() {
                let zero = f64::from(*zeros.get(c).unwrap_or(&5));
                for code in -128i32..=127 {
                    let real = base_x * f64::from(a[c]) * f64::from(code + 20);
                    let exact = (gelu_by_series(real) / (base_y * f64::from(b[c])) + zero).clamp(-128.0, 127.0);
                    let y = t.entries[256 * row as usize + usize::from(code as i8 as u8)];
                    assert!((f64::from(y) - exact).abs() <= 0.500_001, "channel {c} code {code}: {y} {exact}");
                }
            }
        }
    }

    #[test]
    fn exponents_on_one_side_are_enough() {
        let side = Affine { scale: 0.02, zero_point: 0 };
        let make = |a: &[u32], b: &[u32]| {
            let with = |multipliers| Ptf { scale: 0.02, zero_points: &[0], multipliers };
            channel_tables(Activation::Tanh, with(a), CodeType::Uint8, with(b), (0, 255))
        };
        assert_eq!(make(&[2, 1, 2], &[]).unwrap(), make(&[2, 1, 2], &[1, 1, 1]).unwrap());
        assert_eq!(make(&[], &[16, 1]).unwrap(), make(&[1, 1], &[16, 1]).unwrap());
        assert_eq!(make(&[], &[16, 1]).unwrap().rows, [1, 0]);
        let single = make(&[1, 1], &[]).unwrap();
        assert_eq!((single.count, single.rows.as_slice()), (1, &[0, 0][..]));
        assert_eq!(single.entries, activation_table(Activation::Tanh, side, CodeType::Uint8, side, (0, 255)).unwrap());
        assert!(make(&[], &[]).is_err() && make(&[1, 2], &[1]).is_err() && make(&[1], &[1, 2]).is_err());
    }

    #[test]
    fn sixteen_bits_have_sixteen_rows() {
        fn with(multipliers: &[u32]) -> Ptf<'_> {
            Ptf { scale: 1e-4, zero_points: &[0], multipliers }
        }
        let make = |n: u8, input_type| {
            let outputs: Vec<u32> = (0..n).map(|e| 1 << (e / 12)).collect();
            let inputs: Vec<u32> = (0..n).map(|e| 1 << (e % 12)).collect();
            channel_tables(Activation::Relu, with(&inputs), input_type, with(&outputs), (-128, 127))
        };
        assert_eq!(make(16, CodeType::Int16).unwrap().count, 16);
        assert_eq!(make(17, CodeType::Int8).unwrap().count, 17);
        for wide in [CodeType::Int16, CodeType::Uint16] {
            let text = make(17, wide).unwrap_err().to_string();
            assert!(text.contains("2^20") && text.contains("8 bits"), "{text}");
        }
    }
}
