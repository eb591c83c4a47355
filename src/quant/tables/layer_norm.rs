//! The constants of `PtfLayerNorm`.

use super::{CodeType, Ptf, TableError, check_finite, check_range};

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
    /// The input.
    pub input: Ptf<'a>,
    /// The type of the input's codes.
    pub input_type: CodeType,
    /// The output.
    pub output: Ptf<'a>,
    /// The lowest and the highest output code, which may be narrower than the output's type.
    pub output_range: (i32, i32),
}

/// The constants of one `PtfLayerNorm`, in the order of the op's inputs, owned. Meanings and shapes:
/// `runtime::kernels::layer_norm::PtfLayerNorm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNormTables {
    /// The input's zero point, one or `[C]`.
    pub x_zero_points: Vec<i32>,
    /// `[C]`: the input's factors.
    pub multiplier: Vec<i64>,
    /// `round(C² · eps / scale²)`.
    pub eps: i64,
    /// `[C]`: `round(γ_c / s_c · 2^(shift − 24))`, s_c being the output's scale in the channel.
    pub gamma: Vec<i64>,
    /// `[C]`: `round(β_c / s_c · 2^shift) + (zp_c << shift) + 2^(shift − 1)`.
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
        let channels = 0..spec.gamma.len();
        let multiplier: Vec<i64> = channels.clone().map(|c| i64::from(spec.input.channel(c).0)).collect();
        let eps = spec.integer_eps(&multiplier)?;
        let steps = |c: usize| spec.output.scale * f64::from(spec.output.channel(c).0);
        let codes = |values: &[f64]| -> Vec<f64> { values.iter().enumerate().map(|(c, v)| v / steps(c)).collect() };
        let (gamma, beta) = (codes(spec.gamma), codes(spec.beta));
        let zero_points: Vec<i32> = channels.map(|c| spec.output.channel(c).1).collect();
        let largest_gamma = largest(&gamma);
        // Half a code for the rounding, and the zero point.
        let largest_beta = largest(&beta) + zero_points.iter().fold(0.0, |m, &z| f64::from(z).abs().max(m)) + 1.0;
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
        let offset = |zero_point: i32| (i64::from(zero_point) << shift) + (1i64 << (shift - 1));
        Ok(Self {
            x_zero_points: spec.input.zero_points.to_vec(),
            multiplier,
            eps,
            gamma: gamma.iter().map(|v| fixed(v, fraction_bits)).collect(),
            beta: beta.iter().zip(zero_points).map(|(v, z)| fixed(v, shift) + offset(z)).collect(),
            shift: u64::from(shift),
            y_range: spec.output_range,
        })
    }
}

impl LayerNormSpec<'_> {
    fn check(&self) -> Result<(), TableError> {
        let channels = self.gamma.len();
        check_range("the number of channels", i64::try_from(channels).unwrap_or(i64::MAX), 1..=1 << 14, "1 to 16384")?;
        if self.beta.len() != channels {
            return Err(TableError::Length { what: "beta", found: self.beta.len(), expected: channels });
        }
        self.input.check("the input's scale", "the list of the input's zero points", channels)?;
        self.output.check("the output's scale", "the list of the output's zero points", channels)?;
        check_finite("gamma", self.gamma)?;
        check_finite("beta", self.beta)?;
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(TableError::Parameter { what: "epsilon", found: self.eps, needed: "finite and not below 0" });
        }
        let (low, high) = self.input_type.range();
        let codes = i64::from(low)..=i64::from(high);
        for &zero_point in self.input.zero_points {
            check_range("the input's zero point", i64::from(zero_point), codes.clone(), "a code of the input's type")?;
        }
        let codes = -(1i64 << 15)..=(1i64 << 16) - 1;
        let needed = "a code of at most 16 bits";
        for &zero_point in self.output.zero_points {
            check_range("the output's zero point", i64::from(zero_point), codes.clone(), needed)?;
        }
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
        let farthest = |c: usize| {
            let zero_point = self.input.channel(c).1;
            (zero_point - low).max(high - zero_point)
        };
        let squares: i128 = multiplier.iter().enumerate().map(|(c, &m)| (i128::from(farthest(c)) * i128::from(m)).pow(2)).sum();
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

    fn spec<'a>(gamma: &'a [f64], multipliers: &'a [u32]) -> LayerNormSpec<'a> {
        LayerNormSpec {
            gamma,
            beta: gamma,
            eps: 1e-6,
            input: Ptf { scale: 0.01, zero_points: &[3], multipliers },
            input_type: CodeType::Int8,
            output: Ptf { scale: 0.03125, zero_points: &[-5], multipliers: &[] },
            output_range: (-128, 127),
        }
    }

    #[test]
    fn constants_are_the_parameters_in_fixed_point() {
        let t = LayerNormTables::new(&spec(&[1.0, -0.5], &[1, 8])).unwrap();
        assert_eq!(t.multiplier, [1, 8]);
        // 4 · 1e-6 / 1e-4 is below one half.
        assert_eq!(t.eps, 0);
        assert_eq!((t.shift, t.y_range, &*t.x_zero_points), (44, (-128, 127), &[3][..]));
        assert_eq!(t.gamma, [32 << 20, -(16 << 20)]);
        let half = 1i64 << 43;
        assert_eq!(t.beta, [(27 << 44) + half, (-21 << 44) + half]);
        let fine = Ptf { scale: 1e-4, zero_points: &[3], multipliers: &[] };
        let gamma = [1.0, 1.0];
        let s = LayerNormSpec { input: fine, ..spec(&gamma, &[1, 1]) };
        // 4 · 1e-6 / 1e-8.
        assert_eq!(LayerNormTables::new(&s).unwrap().eps, 400);
    }

    #[test]
    fn a_channel_of_the_output_has_its_steps_and_its_zero_point() {
        let gamma = [1.0, -0.5];
        let plain = LayerNormTables::new(&spec(&gamma, &[1, 8])).unwrap();
        let output = Ptf { scale: 0.03125, zero_points: &[-5, 7], multipliers: &[1, 4] };
        let t = LayerNormTables::new(&LayerNormSpec { output, ..spec(&gamma, &[1, 8]) }).unwrap();
        assert_eq!((t.gamma[0], t.beta[0]), (plain.gamma[0], plain.beta[0]));
        assert_eq!(t.gamma[1] * 4, plain.gamma[1]);
        // -0.5 / 0.125 + 7, and a half.
        assert_eq!((t.shift, t.beta[1]), (44, (3 << 44) + (1 << 43)));
    }

    #[test]
    fn a_steep_gamma_gets_fewer_fractional_bits() {
        let t = LayerNormTables::new(&spec(&[1000.0, 1.0], &[1, 1])).unwrap();
        assert!(t.gamma[0] <= 1 << 29 && t.gamma[0] > 1 << 28);
        assert_eq!(t.gamma[0], 32_000 << (t.shift - 24));
        assert!(LayerNormTables::new(&spec(&[1e9, 1.0], &[1, 1])).is_err());
    }

    #[test]
    fn what_could_overflow_is_refused() {
        let (gamma, factors) = (vec![1.0; 768], vec![1u32 << 7; 768]);
        let narrow = spec(&gamma, &factors);
        assert!(LayerNormTables::new(&narrow).is_ok());
        let wide = LayerNormSpec { input_type: CodeType::Int16, ..narrow };
        let error = LayerNormTables::new(&wide).unwrap_err();
        assert!(matches!(error, TableError::TooWide { .. }), "{error}");
        let six = vec![1u32 << 6; 768];
        let fits = LayerNormSpec { input: Ptf { multipliers: &six, ..wide.input }, ..wide };
        assert!(LayerNormTables::new(&fits).is_ok());
        let mut few = vec![1u32; 768];
        few[41] = 1 << 8;
        let fits = LayerNormSpec { input: Ptf { multipliers: &few, ..wide.input }, ..wide };
        assert!(LayerNormTables::new(&fits).is_ok());
    }

    #[test]
    fn bad_parameters_are_refused() {
        let good = spec(&[1.0, 1.0], &[1, 1]);
        let bad = |s: LayerNormSpec<'_>| assert!(LayerNormTables::new(&s).is_err(), "{s:?}");
        bad(spec(&[f64::NAN, 1.0], &[1, 1]));
        bad(spec(&[1.0, 1.0], &[1]));
        bad(spec(&[1.0, 1.0], &[1, 1 << 19]));
        bad(spec(&[1.0, 1.0], &[1, 0]));
        bad(spec(&[], &[]));
        bad(LayerNormSpec { eps: -1.0, ..good });
        bad(LayerNormSpec { eps: 1e30, ..good });
        bad(LayerNormSpec { output_range: (5, 4), ..good });
        bad(LayerNormSpec { output_range: (0, 65536), ..good });
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            bad(LayerNormSpec { input: Ptf { scale, ..good.input }, ..good });
            bad(LayerNormSpec { output: Ptf { scale, ..good.output }, ..good });
        }
        for zero_points in [&[128][..], &[0, 128], &[0, 0, 0], &[]] {
            bad(LayerNormSpec { input: Ptf { zero_points, ..good.input }, ..good });
        }
        for zero_points in [&[0, 65536][..], &[0, 0, 0], &[]] {
            bad(LayerNormSpec { output: Ptf { zero_points, ..good.output }, ..good });
        }
    }
}
