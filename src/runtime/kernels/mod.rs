//! The integer reference of the custom ops of domain `ai.vitq`, version 1.
//!
//! Nothing here uses floating point: inputs are codes and integer constants, and every output is exact, the same on every
//! machine. The ONNX function bodies in `src/lower/functions` compute the same bits; the builders in
//! [`crate::quant::tables`] make the constants. A kernel never panics: constants that could overflow its fixed widths are
//! refused with a [`KernelError`], whatever the data.
//!
//! | op | kernel | what it computes |
//! | --- | --- | --- |
//! | `Lut`, `LutGelu`, `LogDequantize` | [`lut::lookup`] | a table read by the bits of a code |
//! | `ChannelLut`, `ChannelLutGelu` | [`lut::lookup_by_channel`] | a row of a table for each channel, read by the bits of a code |
//! | `LogIntSoftmax` | [`log_softmax::log_int_softmax`] | softmax as a log2 code |
//! | `LogNormalize` | [`log_normalize::log_normalize`] | log2 codes as weights, and the sums of their rows |
//! | `PtfLayerNorm` | [`layer_norm::ptf_layer_norm`] | LayerNorm of codes with a power-of-two multiplier a channel |
//! | – | [`requantize::Requantizer`] | int32 accumulator to code |

pub mod isqrt;
pub mod layer_norm;
pub mod log_normalize;
pub mod log_softmax;
pub mod lut;
pub mod requantize;

/// Why a kernel refused its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An input has the wrong number of elements.
    #[error(
        "{op}: input `{input}` has {found} elements where {expected} are needed; give it the length that the op's \
         documentation names, or rebuild the constants for this shape"
    )]
    Length {
        /// The op's name.
        op: &'static str,
        /// The input's name in the op's signature.
        input: &'static str,
        /// What was given.
        found: usize,
        /// What the op needs, in words.
        expected: String,
    },
    /// A constant lies outside the range for which the kernel's fixed widths are proved not to overflow.
    #[error(
        "{op}: input `{input}` holds {found}, outside {low} to {high}, where the op's integer widths are proved to \
         suffice; rebuild it with the builders in `quant::tables`"
    )]
    Range {
        /// The op's name.
        op: &'static str,
        /// The input's name in the op's signature.
        input: &'static str,
        /// The offending value.
        found: i64,
        /// The lowest value allowed.
        low: i64,
        /// The highest value allowed.
        high: i64,
    },
    /// A code has no entry in its table.
    #[error(
        "{op}: element {index} of the input holds code {code}, but the table answers {first} to {last}; the table and the \
         producer of the codes were made for different bit widths"
    )]
    NoEntry {
        /// The op's name.
        op: &'static str,
        /// Position in the flattened input.
        index: usize,
        /// The code.
        code: i64,
        /// The lowest code that has an entry.
        first: i64,
        /// The highest.
        last: i64,
    },
    /// Constants that are each in range would overflow together.
    #[error("{op}: {what} can reach {reached}, above the limit {limit}; {advice}")]
    Overflow {
        /// The op's name.
        op: &'static str,
        /// The quantity that would overflow.
        what: &'static str,
        /// The bound that the constants give.
        reached: i128,
        /// The limit that the kernel's widths set.
        limit: i128,
        /// What to do.
        advice: &'static str,
    },
}

mod sealed {
    pub trait Sealed {}
}

/// An integer type that holds codes: `i8`, `u8`, `i16`, `u16`.
pub trait Code: Copy + Ord + sealed::Sealed {
    /// Number of different codes, 2^bits.
    const COUNT: usize;
    /// The lowest code.
    const LOWEST: i64;
    /// The highest code.
    const HIGHEST: i64;
    /// The code's value.
    fn value(self) -> i64;
    /// The code's bits read as an unsigned number, in `0..COUNT`.
    fn bits(self) -> usize;
    /// The code nearest to `value`.
    fn saturating_from(value: i64) -> Self;
}

/// A [`Code`] of eight bits: `i8`, `u8`.
pub trait Code8: Code {}

macro_rules! code {
    ($($t:ty, $unsigned:ty;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Code for $t {
            const COUNT: usize = <$unsigned>::MAX as usize + 1;
            const LOWEST: i64 = <$t>::MIN as i64;
            const HIGHEST: i64 = <$t>::MAX as i64;
            fn value(self) -> i64 {
                i64::from(self)
            }
            fn bits(self) -> usize {
                usize::from(self as $unsigned)
            }
            fn saturating_from(value: i64) -> Self {
                value.clamp(Self::LOWEST, Self::HIGHEST) as $t
            }
        }
    )*};
}

code! {
    i8, u8;
    u8, u8;
    i16, u16;
    u16, u16;
}

impl Code8 for i8 {}
impl Code8 for u8 {}

/// Refuses `found` unless it lies in `low..=high`.
fn check_range(op: &'static str, input: &'static str, found: i64, low: i64, high: i64) -> Result<(), KernelError> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(KernelError::Range { op, input, found, low, high })
}

/// Refuses a length other than `expected`.
fn check_length(op: &'static str, input: &'static str, found: usize, expected: usize) -> Result<(), KernelError> {
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Length { op, input, found, expected: expected.to_string() })
}

#[cfg(test)]
mod tests;
