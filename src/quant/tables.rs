//! The constants of the integer ops, made from real parameters at compile time.
//!
//! Everything the `ai.vitq` ops need travels as integer tables and constants; here they are computed in f64. Exponentials,
//! logarithms and erf come from the `libm` crate, so that the same parameters give the same tables on every machine.
//!
//! - [`lut`] – an activation as a table (`Lut`, `LutGelu`), or as one for each pair of exponents (`ChannelLut`, `ChannelLutGelu`)
//! - [`log_softmax`] – `LogIntSoftmax` and the tables of `LogDequantize` and `LogNormalize`
//! - [`layer_norm`] – `PtfLayerNorm`
//! - [`requantize`] – a real ratio as multiplier and shift

pub mod layer_norm;
pub mod log_softmax;
pub mod lut;
pub mod requantize;

/// Why constants could not be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TableError {
    /// A real parameter is not finite, not positive where it must be, or out of range.
    #[error("{what} is {found}, but must be {needed}; check the calibration of this site or the plan's entry for it")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// Its value.
        found: f64,
        /// What it must be.
        needed: &'static str,
    },
    /// Per-channel parameters differ in length.
    #[error("{what} has {found} entries, but {expected} are needed, one for each channel; check the plan's entry for this site")]
    Length {
        /// The parameter.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The number of channels.
        expected: usize,
    },
    /// The integer widths of the op do not suffice for these parameters.
    #[error("{what} can reach 2^{bits:.1}, but the op has room for 2^{limit}; {advice}")]
    TooWide {
        /// The quantity.
        what: &'static str,
        /// log2 of its bound.
        bits: f64,
        /// log2 of the limit.
        limit: u32,
        /// What to change.
        advice: &'static str,
    },
}

/// The integer type that holds codes in a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeType {
    /// Signed, 8 bits.
    Int8,
    /// Unsigned, 8 bits.
    Uint8,
    /// Signed, 16 bits.
    Int16,
    /// Unsigned, 16 bits.
    Uint16,
}

impl CodeType {
    /// The lowest and the highest code of the type.
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Int8 => (-128, 127),
            Self::Uint8 => (0, 255),
            Self::Int16 => (-32768, 32767),
            Self::Uint16 => (0, 65535),
        }
    }
}

/// Affine parameters of one tensor: `real = scale · (code − zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// The scale, positive and finite; the f32 of the model, widened.
    pub scale: f64,
    /// The zero point.
    pub zero_point: i32,
}

/// Parameters of a tensor whose channels have factors (PTF, arXiv 2111.13824, eq. 9, where they are powers of two):
/// `real = scale · multiplier_c · (code − zero_point_c)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ptf<'a> {
    /// The scale of multiplier 1, positive and finite.
    pub scale: f64,
    /// The zero point, one or `[C]`.
    pub zero_points: &'a [i32],
    /// `[C]`: the multipliers, 1 to 2^19 − 1; none at all: 1 for every channel.
    pub multipliers: &'a [u32],
}

impl Ptf<'_> {
    /// Multiplier and zero point of a channel.
    fn channel(&self, c: usize) -> (u32, i32) {
        let zero_point = if let &[one] = self.zero_points { Some(one) } else { self.zero_points.get(c).copied() };
        (self.multipliers.get(c).copied().unwrap_or(1), zero_point.unwrap_or(0))
    }

    /// The number of channels, if something says it.
    fn channels(&self) -> Option<usize> {
        (!self.multipliers.is_empty()).then_some(self.multipliers.len())
    }

    fn check(&self, scale: &'static str, zero_points: &'static str, channels: usize) -> Result<(), TableError> {
        check_positive(scale, self.scale)?;
        for (what, found, expected) in [
            ("the list of factors", self.multipliers.len(), if self.multipliers.is_empty() { 0 } else { channels }),
            (zero_points, self.zero_points.len(), if self.zero_points.len() == 1 { 1 } else { channels }),
        ] {
            if found != expected {
                return Err(TableError::Length { what, found, expected });
            }
        }
        self.multipliers.iter().try_for_each(|&m| check_range("a factor", i64::from(m), 1..=(1 << 19) - 1, "1 to 2^19 - 1"))
    }
}

fn check_positive(what: &'static str, found: f64) -> Result<(), TableError> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(TableError::Parameter { what, found, needed: "finite and above 0" })
}

fn check_finite(what: &'static str, values: &[f64]) -> Result<(), TableError> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(&found) => Err(TableError::Parameter { what, found, needed: "finite" }),
    }
}

fn check_range(
    what: &'static str,
    found: i64,
    range: std::ops::RangeInclusive<i64>,
    needed: &'static str,
) -> Result<(), TableError> {
    if range.contains(&found) {
        return Ok(());
    }
    Err(TableError::Parameter { what, found: found as f64, needed })
}
