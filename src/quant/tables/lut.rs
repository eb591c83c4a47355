//! An elementwise function of a quantised tensor as a table.

use super::{Affine, CodeType, TableError, check_finite, check_positive};

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
}
