//! Where the values of a site come from.

use serde::{Deserialize, Serialize};

/// The values that an entry can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// `calibration_mode`
    CalibrationMode,
    /// `bit_type.bits`
    Bits,
    /// `bit_type.signed`
    Signed,
    /// `bit_type.symmetric`
    Symmetric,
    /// `observer_type`
    Observer,
    /// `quantization_method`
    Method,
    /// `percentile_alpha`
    PercentileAlpha,
    /// `percentile_sigma`
    PercentileSigma,
    /// `kl_bins`
    KlBins,
    /// `log2_fraction_bits`
    Log2FractionBits,
    /// `log2_normalize`
    Log2Normalize,
    /// `ptf_search`
    PtfSearch,
    /// `keep_accumulator`
    KeepAccumulator,
    /// `class_token_codes`
    ClassTokenCodes,
    /// `ptf_piecewise`
    PtfPiecewise,
    /// `reparameterize`
    Reparameterize,
    /// `max_exponent`
    MaxExponent,
    /// `ptf_mantissa_bits`
    PtfMantissaBits,
    /// `group_size`
    GroupSize,
    /// `weight_rounding`
    WeightRounding,
    /// `bias_correction`
    BiasCorrection,
    /// `float`
    Float,
}

/// Where a value of a [`SiteConfig`](super::SiteConfig) comes from; the later, the more specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nothing was said: the site's built-in default.
    BuiltIn,
    /// The file's `default`.
    Default,
    /// The `default` of the site's section.
    Section,
    /// The site's entry.
    Site,
    /// The entry `blocks.<i>.<site>`.
    Block,
}
