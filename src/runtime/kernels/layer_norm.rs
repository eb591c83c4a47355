//! `PtfLayerNorm`: LayerNorm of codes that have a multiplier a channel, integers only.

use super::isqrt::isqrt;
use super::{Code, KernelError, check_length, check_range};

const OP: &str = "PtfLayerNorm";

/// The variance, with its factor C² and eps, stays below 2 to this power.
pub const VARIANCE_BITS: u32 = 62;
/// log2 of the reciprocal's numerator.
pub const RECIPROCAL_BITS: u32 = 54;
/// Fractional bits of the normalised value, (x − mean) / standard deviation.
pub const NORMALISED_FRACTION_BITS: u32 = 24;
/// The longest row.
pub const CHANNELS_MAX: usize = 1 << 14;
/// The largest magnitude of an entry of `gamma`.
pub const GAMMA_MAX: i64 = 1 << 29;
/// The largest magnitude of an entry of `beta`.
pub const BETA_MAX: i64 = 1 << 61;
/// The largest output shift.
pub const SHIFT_MAX: u32 = 44;
/// The largest multiplier of a channel: four bits of a mantissa, and exponents up to 15.
pub const MULTIPLIER_MAX: i64 = (1 << 19) - 1;

/// The constants of one `PtfLayerNorm`, in the order of the op's inputs.
#[derive(Debug, Clone, Copy)]
pub struct PtfLayerNorm<'a, X, Y> {
    /// The input's zero point: one, or `[C]`.
    pub x_zero_points: &'a [X],
    /// `[C]`: the channel's factor, a power of two or a small integer times one. `1..2^19`.
    pub multiplier: &'a [i64],
    /// `round(C² · eps / unit²)`, the unit being the scale of multiplier 1; at least 0.
    pub eps: i64,
    /// `[C]`: `round(γ_c / s_out · 2^(shift − 24))`, at most 2^29 in magnitude.
    pub gamma: &'a [i64],
    /// `[C]`: `round(β_c / s_out · 2^shift) + (zp_out << shift) + half`, at most 2^61 in magnitude.
    pub beta: &'a [i64],
    /// Fractional bits of the last sum, `0..=44`.
    pub shift: u64,
    /// The lowest and the highest output code, which may be narrower than the type.
    pub y_range: [Y; 2],
}

/// LayerNorm over rows of C codes, C being the length of `multiplier`.
///
/// For a row of codes q:
///
/// ```text
/// x_c = (q_c − zp_c) · multiplier_c                  S1 = Σ x_c      S2 = Σ x_c²
/// V   = max(C · S2 − S1² + eps, 1)                   C² · variance, in 1 .. 2^62
/// n   = the count of 4^j > V for j = 1..=30          so that V · 4^n is in [2^60, 2^62)
/// s   = floor(sqrt(V << 2n))                         31 bits in every row
/// R   = floor((2^54 + floor(s / 2)) / s)             the one division of the row
/// z_c = round_half_up((C · x_c − S1) · R / 2^(30−n)) 24 fractional bits
/// y_c = clamp((z_c · gamma_c + beta_c) >> shift, y_range)
/// ```
///
/// Factors of channels are FQ-ViT's (arXiv 2111.13824, section 3.2), where they are powers of two. Normalising V before the root gives root and
/// reciprocal the same relative precision in every row, from a nearly constant one to a saturated one, with constants that do
/// not depend on the data.
///
/// Nothing overflows, for any codes. With X_c the largest |x_c|, the op refuses constants unless `C · Σ X_c² + eps < 2^62`;
/// then `S1² ≤ C · S2 < 2^62`, `(C · x_c)² ≤ C · (C · Σ X²) < 2^76`, and because the deviations `D_c = C·x_c − S1` sum to 0 and
/// their squares to at most `C · V`, `D_c² ≤ (C − 1) · V`, hence `|D_c · R| ≤ sqrt(C − 1) · 2^(54−n) · (1 + 2^−23) < 2^(61−n)`
/// for `C ≤ 2^14`, `|z_c| ≤ 2^31` and `|z_c · gamma_c + beta_c| ≤ 2^60 + 2^61`.
///
/// # Errors
/// [`KernelError`] for constants of a wrong length or out of range and for a length of `x` that is no multiple of C.
pub fn ptf_layer_norm<X: Code, Y: Code>(x: &[X], constants: &PtfLayerNorm<'_, X, Y>) -> Result<Vec<Y>, KernelError> {
    constants.check()?;
    let channels = constants.multiplier.len();
    if !x.len().is_multiple_of(channels) {
        return Err(KernelError::Length {
            op: OP,
            input: "x",
            found: x.len(),
            expected: format!("a multiple of the {channels} channels"),
        });
    }
    let zero_points: Vec<i64> = constants.zero_points().collect();
    let [low, high] = constants.y_range.map(Code::value);
    let count = channels as i64;
    let mut values = vec![0i64; channels];
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(channels) {
        let (mut sum, mut sum_square) = (0i64, 0i64);
        for (((value, q), zero_point), multiplier) in values.iter_mut().zip(row).zip(&zero_points).zip(constants.multiplier) {
            *value = (q.value() - zero_point) * multiplier;
            sum += *value;
            sum_square += *value * *value;
        }
        let variance = (count * sum_square - sum * sum + constants.eps).max(1);
        // In 0..=30: variance is at least 1 and below 2^62.
        let n = variance.leading_zeros().saturating_sub(64 - VARIANCE_BITS) / 2;
        let root = i64::from(isqrt((variance as u64) << (2 * n)));
        let reciprocal = ((1i64 << RECIPROCAL_BITS) + root / 2) / root;
        let down = RECIPROCAL_BITS - NORMALISED_FRACTION_BITS - n;
        let half = (1i64 << down) >> 1;
        for ((value, gamma), beta) in values.iter().zip(constants.gamma).zip(constants.beta) {
            let normalised = ((count * value - sum) * reciprocal + half) >> down;
            let code = (normalised * gamma + beta) >> constants.shift;
            y.push(Y::saturating_from(code.clamp(low, high)));
        }
    }
    Ok(y)
}

impl<X: Code, Y: Code> PtfLayerNorm<'_, X, Y> {
    /// The zero point of each channel.
    fn zero_points(&self) -> impl Iterator<Item = i64> {
        self.x_zero_points.iter().cycle().take(self.multiplier.len()).map(|z| z.value())
    }

    fn check(&self) -> Result<(), KernelError> {
        let channels = self.multiplier.len();
        if channels == 0 || channels > CHANNELS_MAX {
            return Err(KernelError::Length {
                op: OP,
                input: "multiplier",
                found: channels,
                expected: format!("1 to {CHANNELS_MAX}"),
            });
        }
        if self.x_zero_points.len() != 1 {
            check_length(OP, "x_zero_point", self.x_zero_points.len(), channels)?;
        }
        check_length(OP, "gamma", self.gamma.len(), channels)?;
        check_length(OP, "beta", self.beta.len(), channels)?;
        check_range(OP, "eps", self.eps, 0, (1 << VARIANCE_BITS) - 1)?;
        check_range(OP, "shift", i64::try_from(self.shift).unwrap_or(i64::MAX), 0, i64::from(SHIFT_MAX))?;
        for &gamma in self.gamma {
            check_range(OP, "gamma", gamma, -GAMMA_MAX, GAMMA_MAX)?;
        }
        for &beta in self.beta {
            check_range(OP, "beta", beta, -BETA_MAX, BETA_MAX)?;
        }
        let [low, high] = self.y_range.map(Code::value);
        check_range(OP, "y_range", low, Y::LOWEST, high)?;
        let mut squares = 0i128;
        for (&multiplier, zero_point) in self.multiplier.iter().zip(self.zero_points()) {
            check_range(OP, "multiplier", multiplier, 1, MULTIPLIER_MAX)?;
            let farthest = i128::from((zero_point - X::LOWEST).max(X::HIGHEST - zero_point));
            let largest = farthest * i128::from(multiplier);
            squares += largest * largest;
        }
        let reached = squares * channels as i128 + i128::from(self.eps);
        let limit = (1i128 << VARIANCE_BITS) - 1;
        if reached > limit {
            return Err(KernelError::Overflow {
                op: OP,
                what: "the variance term C · Σ x² + eps",
                reached,
                limit,
                advice: "use smaller exponents for the widest channels, or fewer bits at the input",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
