//! What a site is when nothing is said of it.

use std::collections::BTreeMap;

use super::schema::{CalibrationMode, Method, Observer, Rounding, SiteConfig, WEIGHTS};

/// The built-in default of a site: 8 bits; weights symmetric with one scale for each output channel, activations affine
/// with one scale, the residual stream and what is added to it PTF, the softmax Log2. Ranges are those of the smallest and
/// largest value, but for a few sites with long tails.
pub(super) fn built_in(site: &str) -> SiteConfig {
    let activation = SiteConfig {
        calibration_mode: CalibrationMode::LayerWise,
        bits: 8,
        signed: true,
        symmetric: false,
        observer: Observer::Minmax,
        method: Method::Uniform,
        // FQ-ViT's values; used only where a PercentileObserver is asked for.
        percentile_alpha: 0.99999,
        percentile_sigma: 0.01,
        kl_bins: 2048,
        log2_fraction_bits: log2_fraction_bits(8),
        log2_normalize: false,
        // FQ-ViT has 3; the residual stream of augreg ViTs spans more powers of two than that.
        max_exponent: 7,
        ptf_mantissa_bits: 0,
        ptf_search: true,
        keep_accumulator: true,
        class_token_codes: true,
        ptf_piecewise: true,
        reparameterize: true,
        group_size: 0,
        weight_rounding: Rounding::Nearest,
        bias_correction: false,
        float: false,
        sources: BTreeMap::new(),
    };
    match site {
        "patch_embed" => {
            // Weights, and what only the sum with the positions reads.
            let (method, observer, calibration_mode) = (Method::Ptf, Observer::Omse, CalibrationMode::ChannelWise);
            SiteConfig { calibration_mode, symmetric: true, observer, method, ptf_mantissa_bits: 3, ..activation }
        }
        _ if WEIGHTS.contains(&site) => {
            SiteConfig { calibration_mode: CalibrationMode::ChannelWise, symmetric: true, ..activation }
        }
        // The residual stream and what is added to it: a few channels are tens of times larger than the others. Only sums and
        // LayerNorms read them, which take any factor.
        "residual1" | "residual2" | "embed" | "attn_proj_output" | "mlp_act2" => {
            let calibration_mode = CalibrationMode::ChannelWise;
            SiteConfig { method: Method::Ptf, calibration_mode, ptf_mantissa_bits: 3, ..activation }
        }
        // What is normalised of the stream, and the hidden unit of an MLP that writes such a channel: Linears read powers of two as
        // shifts.
        "norm1" | "mlp_fc1_output" => {
            SiteConfig { method: Method::Ptf, calibration_mode: CalibrationMode::ChannelWise, ..activation }
        }
        // A few large values, which cost less when they are cut than the resolution that they take.
        "kv_act" => SiteConfig { observer: Observer::Omse, ..activation },
        "norm2" | "mlp_act" => {
            let calibration_mode = CalibrationMode::ChannelWise;
            SiteConfig { observer: Observer::Omse, method: Method::Ptf, calibration_mode, ..activation }
        }
        "intSoft" => SiteConfig { method: Method::Log2, signed: false, ..activation },
        _ => activation,
    }
}

/// Fraction bits of a log2 code: 2^b codes in steps of 2^−r reach down to 2^−(2^(b − r)). With 8 bits' r = 3, codes of 4 bits
/// would end at 2^−1.9, and every probability of a row without a winner would be 0.
pub(super) fn log2_fraction_bits(bits: u8) -> u8 {
    bits.clamp(5, 8) - 5
}
