//! The constants of `PtfLayerNorm`.

use super::{Affine, CodeType, TableError, check_finite, check_positive, check_range};

/// Fractional bits of the op's normalised value.
const F: u32 = 24;
/// log2 of the limit of `C · Σ x² + eps`.
const VARIANCE_BITS: u32 = 62;
/// log2 of the largest |gamma| that the op takes.
const GAMMA_BITS: u32 = 29;
/// log2 of the largest |beta| that the op takes.
const BETA_BITS: u32 = 61;
/// The most fractional bits of `gamma`: the output shift ends at 44.
const GAMMA_FRACTION_BITS_MAX: u32 = 20;

/// The real parameters of one LayerNorm on quantised input and output.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormSpec<'a> {
    /// `[C]`: LayerNorm's weight.
    pub gamma: &'a [f64],
    /// `[C]`: LayerNorm's bias.
    pub beta: &'a [f64],
    /// LayerNorm's epsilon, in squared units of the real input.
    pub eps: f64,
    /// The input: `real = scale · 2^exponent_c · (code − zero_point)`.
    pub input: Affine,
    /// `[C]`: the exponents, 0 to 15.
    pub exponents: &'a [u32],
    /// The type of the input's codes.
    pub input_type: CodeType,
    /// The output: `real = scale · (code − zero_point)`.
    pub output: Affine,
    /// The lowest and the highest output code, which may be narrower than the output's type.
    pub output_range: (i32, i32),
}

/// The constants of one `PtfLayerNorm`, in the order of the op's inputs, owned. Meanings and shapes:
/// `runtime::kernels::layer_norm::PtfLayerNorm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNormTables {
    /// The input's zero point.
    pub x_zero_point: i32,
    /// `[C]`: `2^exponent_c`.
    pub multiplier: Vec<i64>,
    /// `round(C² · eps / scale²)`.
    pub eps: i64,
    /// `[C]`: `round(γ_c / s_out · 2^(shift − 24))`.
    pub gamma: Vec<i64>,
    /// `[C]`: `round(β_c / s_out · 2^shift) + (zp_out << shift) + 2^(shift − 1)`.
    pub beta: Vec<i64>,
    /// Fractional bits of the last sum, 24 to 44.
    pub shift: u64,
    /// The lowest and the highest output code.
    pub y_range: (i32, i32),
}

impl LayerNormTables {
    /// Makes the constants. `shift` is the largest that lets every |gamma| stay within 2^29 and every |beta| within 2^61.
    ///
    /// No input codes of the declared type can overflow the op's 64-bit integers: with X_c the largest `|x_c|`,
    /// `C · Σ X_c² + eps` is computed here and must be below 2^62. The rest follows from it; the proof stands at the kernel.
    /// For 8-bit input every exponent up to 8 passes up to 16384 channels. For 16-bit input with all channels at the largest
    /// exponent α, `C · 2^(15 + α)` must stay below 2^31 or so (α ≤ 8 at 192 channels, ≤ 6 at 768); a few wide channels among
    /// narrow ones may have more.
    ///
    /// # Errors
    /// [`TableError`] for parameters that are not finite, of unequal length, out of range, or too wide.
    pub fn new(spec: &LayerNormSpec<'_>) -> Result<Self, TableError> {
        spec.check()?;
        let multiplier: Vec<i64> = spec.exponents.iter().map(|&e| 1i64 << e).collect();
        let eps = spec.integer_eps(&multiplier)?;
        let codes = |values: &[f64]| -> Vec<f64> { values.iter().map(|v| v / spec.output.scale).collect() };
        let (gamma, beta) = (codes(spec.gamma), codes(spec.beta));
        let zero_point = f64::from(spec.output.zero_point);
        let largest_gamma = largest(&gamma);
        // Half a code for the rounding, and the zero point.
        let largest_beta = largest(&beta) + zero_point.abs() + 1.0;
        let fraction_bits = (0..=GAMMA_FRACTION_BITS_MAX).rev().find(|&bits| {
            libm::scalbn(largest_gamma, bits as i32) <= f64::from(1u32 << GAMMA_BITS)
                && libm::scalbn(largest_beta, (bits + F) as i32) <= (1u64 << BETA_BITS) as f64
        });
        let Some(fraction_bits) = fraction_bits else {
            return Err(TableError::TooWide {
                what: "gamma / output scale, or beta / output scale times 2^24,",
                bits: libm::log2(largest_gamma.max(libm::scalbn(largest_beta, -8))),
                limit: GAMMA_BITS,
                advice: "the output scale is far too small for this LayerNorm; calibrate the site again",
            });
        };
        let shift = F + fraction_bits;
        let fixed = |v: &f64, bits: u32| libm::scalbn(*v, bits as i32).round_ties_even() as i64;
        let offset = (i64::from(spec.output.zero_point) << shift) + (1i64 << (shift - 1));
        Ok(Self {
            x_zero_point: spec.input.zero_point,
            multiplier,
            eps,
            gamma: gamma.iter().map(|v| fixed(v, fraction_bits)).collect(),
            beta: beta.iter().map(|v| fixed(v, shift) + offset).collect(),
            shift: u64::from(shift),
            y_range: spec.output_range,
        })
    }
}

impl LayerNormSpec<'_> {
    fn check(&self) -> Result<(), TableError> {
        let channels = self.gamma.len();
        check_range("the number of channels", i64::try_from(channels).unwrap_or(i64::MAX), 1..=1 << 14, "1 to 16384")?;
        for (what, found) in [("beta", self.beta.len()), ("the list of exponents", self.exponents.len())] {
            if found != channels {
                return Err(TableError::Length { what, found, expected: channels });
            }
        }
        check_finite("gamma", self.gamma)?;
        check_finite("beta", self.beta)?;
        check_positive("the input's scale", self.input.scale)?;
        check_positive("the output's scale", self.output.scale)?;
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(TableError::Parameter { what: "epsilon", found: self.eps, needed: "finite and not below 0" });
        }
        for &exponent in self.exponents {
            check_range("an exponent", i64::from(exponent), 0..=15, "0 to 15")?;
        }
        let (low, high) = self.input_type.range();
        check_range(
            "the input's zero point",
            i64::from(self.input.zero_point),
            i64::from(low)..=i64::from(high),
            "a code of the input's type",
        )?;
        let codes = -(1i64 << 15)..=(1i64 << 16) - 1;
        let needed = "a code of at most 16 bits";
        check_range("the output's zero point", i64::from(self.output.zero_point), codes.clone(), needed)?;
        let (low, high) = self.output_range;
        check_range("the lowest output code", i64::from(low), codes.clone(), needed)?;
        check_range(
            "the highest output code",
            i64::from(high),
            i64::from(low)..=*codes.end(),
            "a code of at most 16 bits and not below the lowest",
        )
    }

    /// `eps` in units of C² times a squared code, after checking that the variance term fits.
    fn integer_eps(&self, multiplier: &[i64]) -> Result<i64, TableError> {
        let channels = multiplier.len();
        let (low, high) = self.input_type.range();
        let farthest = (self.input.zero_point - low).max(high - self.input.zero_point);
        let squares: i128 = multiplier.iter().map(|&m| (i128::from(farthest) * i128::from(m)).pow(2)).sum();
        let count = channels as f64;
        let eps = (count * count * self.eps / (self.input.scale * self.input.scale)).round_ties_even();
        let reached = (squares * channels as i128) as f64 + eps;
        // One part in 2^40 of slack for the conversion to f64.
        let limit = libm::scalbn(1.0, VARIANCE_BITS as i32) * (1.0 - libm::scalbn(1.0, -40));
        if !reached.is_finite() || reached >= limit {
            return Err(TableError::TooWide {
                what: "the variance term C · Σ x² + eps of a LayerNorm",
                bits: libm::log2(reached),
                limit: VARIANCE_BITS,
                advice: "use smaller exponents or fewer bits at its input, or a larger input scale",
            });
        }
        Ok(eps as i64)
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| v.abs().max(m))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn spec<'a>(gamma: &'a [f64], exponents: &'a [u32]) -> LayerNormSpec<'a> {
        LayerNormSpec {
            gamma,
            beta: gamma,
            eps: 1e-6,
            input: Affine { scale: 0.01, zero_point: 3 },
            exponents,
            input_type: CodeType::Int8,
            output: Affine { scale: 0.03125, zero_point: -5 },
            output_range: (-128, 127),
        }
    }

    #[test]
    fn constants_are_the_parameters_in_fixed_point() {
        let t = LayerNormTables::new(&spec(&[1.0, -0.5], &[0, 3])).unwrap();
        assert_eq!(t.multiplier, [1, 8]);
        // 4 · 1e-6 / 1e-4 is below one half.
        assert_eq!(t.eps, 0);
        assert_eq!((t.shift, t.y_range, t.x_zero_point), (44, (-128, 127), 3));
        assert_eq!(t.gamma, [32 << 20, -(16 << 20)]);
        let half = 1i64 << 43;
        assert_eq!(t.beta, [(27 << 44) + half, (-21 << 44) + half]);
        let coarse = Affine { scale: 1e-4, zero_point: 3 };
        let gamma = [1.0, 1.0];
        let s = LayerNormSpec { input: coarse, ..spec(&gamma, &[0, 0]) };
        // 4 · 1e-6 / 1e-8.
        assert_eq!(LayerNormTables::new(&s).unwrap().eps, 400);
    }

    #[test]
    fn a_steep_gamma_gets_fewer_fractional_bits() {
        let t = LayerNormTables::new(&spec(&[1000.0, 1.0], &[0, 0])).unwrap();
        assert!(t.gamma[0] <= 1 << 29 && t.gamma[0] > 1 << 28);
        assert_eq!(t.gamma[0], 32_000 << (t.shift - 24));
        assert!(LayerNormTables::new(&spec(&[1e9, 1.0], &[0, 0])).is_err());
    }

    #[test]
    fn what_could_overflow_is_refused() {
        let (gamma, exponents) = (vec![1.0; 768], vec![7u32; 768]);
        let narrow = spec(&gamma, &exponents);
        assert!(LayerNormTables::new(&narrow).is_ok());
        let wide = LayerNormSpec { input_type: CodeType::Int16, ..narrow };
        let error = LayerNormTables::new(&wide).unwrap_err();
        assert!(matches!(error, TableError::TooWide { .. }), "{error}");
        let six = vec![6u32; 768];
        let fits = LayerNormSpec { exponents: &six, ..wide };
        assert!(LayerNormTables::new(&fits).is_ok());
        let mut few = vec![0u32; 768];
        few[41] = 8;
        let fits = LayerNormSpec { exponents: &few, ..wide };
        assert!(LayerNormTables::new(&fits).is_ok());
    }

    #[test]
    fn bad_parameters_are_refused() {
        let good = spec(&[1.0, 1.0], &[0, 0]);
        let bad = |s: LayerNormSpec<'_>| assert!(LayerNormTables::new(&s).is_err(), "{s:?}");
        bad(spec(&[f64::NAN, 1.0], &[0, 0]));
        bad(spec(&[1.0, 1.0], &[0]));
        bad(spec(&[1.0, 1.0], &[0, 16]));
        bad(spec(&[], &[]));
        bad(LayerNormSpec { eps: -1.0, ..good });
        bad(LayerNormSpec { eps: 1e30, ..good });
        bad(LayerNormSpec { output_range: (5, 4), ..good });
        bad(LayerNormSpec { output_range: (0, 65536), ..good });
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let affine = Affine { scale, zero_point: 0 };
            bad(LayerNormSpec { input: affine, ..good });
            bad(LayerNormSpec { output: affine, ..good });
        }
        let far = Affine { scale: 1.0, zero_point: 128 };
        bad(LayerNormSpec { input: far, ..good });
    }
}
