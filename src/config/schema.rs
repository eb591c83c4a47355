//! The configuration's vocabulary as plain types.
//!
//! A configuration is partial: every value may be left out. [`Config::resolve`] answers for one site by laying the
//! levels over each other, the most specific last: built-in default of the site, `default`, the section's `default`, the
//! site's entry, the entry of the site in one block.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::defaults;
pub use super::origin::{Key, Source};
use super::preprocess::Preprocessing;
use crate::vit::Site;

/// Weights of the Linear layers, and the LayerNorm outputs.
pub const LAYERS: &str = "layers";
/// Activations of the attention and the MLP.
pub const ATTN_LAYER: &str = "attn_layer";
/// The residual sums.
pub const RESIDUAL_LAYER: &str = "residual_layer";
/// What the other three leave out: activations between two integer steps, and everything outside the blocks.
pub const EXTRA_LAYER: &str = "extra_layer";

/// Every section, in the order of a single file.
pub const SECTIONS: [&str; 4] = [LAYERS, ATTN_LAYER, RESIDUAL_LAYER, EXTRA_LAYER];

/// Every site as `(section, name)`, in the order of the data flow.
pub const SITES: [(&str, &str); Site::ALL.len()] = {
    let mut all = [("", ""); Site::ALL.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = (Site::ALL[i].section().key(), Site::ALL[i].name());
        i += 1;
    }
    all
};

/// Sites that are not in every block: those around the blocks, and those of the general rules.
pub const OUTSIDE_BLOCKS: [&str; 16] = [
    "input",
    "patch_embed",
    "embed",
    "norm",
    "head",
    "head_output",
    "layer_input",
    "conv",
    "conv_output",
    "linear",
    "linear_output",
    "add_output",
    "mul_output",
    "concat_output",
    "pool_output",
    "act_output",
];

/// Sites that are weights.
pub const WEIGHTS: [&str; 8] = ["attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2", "patch_embed", "head", "conv", "linear"];

/// The section of a site; `None` for a name that is no site.
pub fn section_of(site: &str) -> Option<&'static str> {
    SITES.iter().find(|(_, name)| *name == site).map(|(section, _)| *section)
}

/// How many scales a tensor has (`calibration_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationMode {
    /// One for the tensor.
    LayerWise,
    /// One for each channel: the output channel of a weight, the last axis of an activation.
    ChannelWise,
}

/// How a range is taken from what was observed (`observer_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Observer {
    /// Smallest and largest value.
    #[serde(rename = "MinmaxObserver")]
    Minmax,
    /// Quantiles 1 − alpha and alpha of each sample, moved towards by sigma.
    #[serde(rename = "PercentileObserver")]
    Percentile,
    /// The clip with the smallest squared error.
    #[serde(rename = "OmseObserver")]
    Omse,
    /// The clip with the smallest Kullback-Leibler divergence of the histogram.
    #[serde(rename = "KLObserver")]
    Kl,
}

/// What a code stands for (`quantization_method`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Method {
    /// `scale · (q − zp)`.
    Uniform,
    /// `2^(−q / 2^r)` with `r` fraction bits; the softmax output (`intSoft`) only.
    Log2,
    /// A power-of-two factor: `base · 2^α_c · (q − zp)`, with α_c chosen for each channel (FQ-ViT, arXiv 2111.13824,
    /// eq. 9). Activations other than the scores and the softmax.
    #[serde(rename = "PTF")]
    Ptf,
    /// One of `2^bits` levels on a grid of 8-bit codes (affine, or PTF where the channels allow it), those with the least squared
    /// error. Weights, and activations that are neither scores nor probabilities.
    Codebook,
}

/// How weights become codes (`weight_rounding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Each to the nearest code.
    Nearest,
    /// So that the errors of one input channel make up for those of others (GPTQ, arXiv 2210.17323), on scales searched for the
    /// same error. Weights of Linears; others are rounded to nearest.
    Gptq,
}

impl Rounding {
    /// Every way of rounding by its name in the file.
    pub const NAMES: [(&'static str, Self); 2] = [("nearest", Self::Nearest), ("gptq", Self::Gptq)];
}

impl CalibrationMode {
    /// Every mode by its name in the file.
    pub const NAMES: [(&'static str, Self); 2] = [("layer_wise", Self::LayerWise), ("channel_wise", Self::ChannelWise)];
}

impl Observer {
    /// Every observer by its name in the file.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("MinmaxObserver", Self::Minmax),
        ("PercentileObserver", Self::Percentile),
        ("OmseObserver", Self::Omse),
        ("KLObserver", Self::Kl),
    ];
}

impl Method {
    /// Every method by its name in the file.
    pub const NAMES: [(&'static str, Self); 4] =
        [("Uniform", Self::Uniform), ("Log2", Self::Log2), ("PTF", Self::Ptf), ("Codebook", Self::Codebook)];

    /// Whether a site can be quantised this way: Log2 needs values in [0, 1], PTF needs channels that the next step can
    /// shift apart and that are the last axis, as those of images are not.
    pub fn suits(self, site: &str) -> bool {
        match self {
            Self::Uniform => true,
            Self::Log2 => site == "intSoft",
            Self::Codebook => !matches!(site, "intSoft" | "kv_act" | "input" | "head_output"),
            Self::Ptf => {
                let general = Site::from_name(site).is_some_and(Site::is_general);
                // The patch embedding's entry is that of its weights, and of its output.
                !general && (site == "patch_embed" || !WEIGHTS.contains(&site)) && !matches!(site, "intSoft" | "kv_act")
            }
        }
    }
}

/// What one entry says; `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Entry {
    /// `calibration_mode`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_mode: Option<CalibrationMode>,
    /// `bit_type.bits`, 4 to 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// `bit_type.signed`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<bool>,
    /// `bit_type.symmetric`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// `observer_type`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<Observer>,
    /// `quantization_method`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// `percentile_alpha`, in (0.5, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile_alpha: Option<f64>,
    /// `percentile_sigma`, in (0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile_sigma: Option<f64>,
    /// `kl_bins` or `kv_bins`, 128 to 16384: what the observer takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_bins: Option<u32>,
    /// `log2_fraction_bits`, 0 to 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log2_fraction_bits: Option<u8>,
    /// `log2_normalize`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log2_normalize: Option<bool>,
    /// `ptf_search`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ptf_search: Option<bool>,
    /// `keep_accumulator`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_accumulator: Option<bool>,
    /// `class_token_codes`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_token_codes: Option<bool>,
    /// `ptf_piecewise`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ptf_piecewise: Option<bool>,
    /// `reparameterize`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reparameterize: Option<bool>,
    /// `max_exponent`, 0 to 15.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_exponent: Option<u8>,
    /// `ptf_mantissa_bits`, 0 to 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ptf_mantissa_bits: Option<u8>,
    /// `group_size`, 0 or 2 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u16>,
    /// `weight_rounding`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_rounding: Option<Rounding>,
    /// `bias_correction`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias_correction: Option<bool>,
    /// `float`; for an activation also the opposite of `output_quant_enable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float: Option<bool>,
    /// `output_quant_enable`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_quant_enable: Option<bool>,
}

/// One section of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// For every site of the section.
    pub default: Entry,
    /// For one site in every block, or outside the blocks.
    pub sites: BTreeMap<String, Entry>,
    /// For one site in one block.
    pub blocks: BTreeMap<usize, BTreeMap<String, Entry>>,
}

/// What may be chosen by its effect on the model's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Search {
    /// Whether massive activations are clipped.
    pub clip: bool,
    /// Whether the ranges of the sites that do most damage are changed.
    pub ranges: bool,
    /// Whether ranges are widened as samples ask for that calibration did not see.
    pub headroom: bool,
    /// Sites are widened to 16 bits until the outputs are predicted to have this SQNR, in dB; `None` widens nothing.
    pub widen_to_db: Option<f64>,
    /// Sites are widened to 16 bits for as long as the products cost at most so many times what they cost before
    /// (multiply-accumulates × bits × bits), 1 to 4; `None` widens nothing, or whatever `widen_to_db` wants.
    pub widen_to_cost: Option<f64>,
    /// On a target that mixes integers and float: the share of the multiply-accumulates that may be left in float, 0 to 1.
    pub float_share: f64,
}

impl Default for Search {
    fn default() -> Self {
        Search { clip: true, ranges: true, headroom: true, widen_to_db: None, widen_to_cost: None, float_share: 0.05 }
    }
}

impl Search {
    /// Whether sites are widened.
    pub fn widens(&self) -> bool {
        self.widen_to_db.is_some() || self.widen_to_cost.is_some()
    }
}

/// A whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The preset's name or the path it was read from.
    pub name: String,
    /// For every site.
    pub default: Entry,
    /// Weights and LayerNorm outputs.
    pub layers: Section,
    /// Activations.
    pub attn_layer: Section,
    /// Residual sums.
    pub residual_layer: Section,
    /// Everything else.
    pub extra_layer: Section,
    /// What may be chosen by its effect on the model's outputs.
    pub search: Search,
    /// How the model wants its images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocessing>,
    /// See [`Config::notes`].
    pub notes: Vec<String>,
}

/// What a configuration says of one site; nothing is left open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteConfig {
    /// One scale or one a channel.
    pub calibration_mode: CalibrationMode,
    /// Width of a code, 4 to 16.
    pub bits: u8,
    /// Whether codes run from −2^(bits−1) (signed) or from 0.
    pub signed: bool,
    /// Whether the zero point is fixed at 0 (symmetric) or chosen (affine).
    pub symmetric: bool,
    /// How the range is found.
    pub observer: Observer,
    /// What a code stands for.
    pub method: Method,
    /// Upper quantile of [`Observer::Percentile`], in (0.5, 1]; the lower one is 1 − alpha.
    pub percentile_alpha: f64,
    /// Weight of the newest sample in the moving average of [`Observer::Percentile`], in (0, 1].
    pub percentile_sigma: f64,
    /// Histogram bins of [`Observer::Kl`].
    pub kl_bins: u32,
    /// Fraction bits r of [`Method::Log2`], 0 to 4; where none are given, as many as leave the codes 31 octaves.
    pub log2_fraction_bits: u8,
    /// Whether [`Method::Log2`] divides the values of a row by their sum.
    pub log2_normalize: bool,
    /// Largest exponent α_c of [`Method::Ptf`], 0 to 15.
    pub max_exponent: u8,
    /// Bits of a channel's mantissa of [`Method::Ptf`], 0 (powers of two) to 3.
    pub ptf_mantissa_bits: u8,
    /// Whether [`Method::Ptf`] searches base and zero points for the least squared error; otherwise they are those of the
    /// tensor's range, one zero point for all channels, as published.
    pub ptf_search: bool,
    /// Whether a product that only additions read stays in its int32 accumulator until the sum gets codes.
    pub keep_accumulator: bool,
    /// Whether the class token's row of a sum of [`Method::Ptf`] has codes of its own, with scales for its values alone.
    pub class_token_codes: bool,
    /// Whether the codes of a sum of [`Method::Ptf`] may have small steps in the middle and large ones beyond a breakpoint.
    pub ptf_piecewise: bool,
    /// Whether a LayerNorm's output, of [`Method::Ptf`] on a target without an operator for that, has the scales of its channels moved
    /// into the LayerNorm and the weights that read it.
    pub reparameterize: bool,
    /// Elements of a weight of 4 to 7 even bits that share an integer factor; 0: none do. Nothing to an activation.
    pub group_size: u16,
    /// How weights become codes; nothing to an activation.
    pub weight_rounding: Rounding,
    /// Whether the bias of a Linear makes up for what quantisation does to its mean output; nothing to an activation.
    pub bias_correction: bool,
    /// Whether the site stays in float.
    pub float: bool,
    /// Where each value comes from; a key that is missing has its built-in default.
    pub sources: BTreeMap<Key, Source>,
}

impl SiteConfig {
    /// Where a value comes from.
    pub fn source(&self, key: Key) -> Source {
        self.sources.get(&key).copied().unwrap_or(Source::BuiltIn)
    }

    /// Whether the configuration gives a value, for this site alone or by a `default`.
    pub fn is_given(&self, key: Key) -> bool {
        self.source(key) != Source::BuiltIn
    }

    fn apply(&mut self, site: &str, entry: &Entry, source: Source) {
        macro_rules! take {
            ($field:ident, $key:ident, $value:expr) => {
                if let Some(value) = $value {
                    self.$field = value;
                    self.sources.insert(Key::$key, source);
                }
            };
        }
        take!(calibration_mode, CalibrationMode, entry.calibration_mode);
        take!(bits, Bits, entry.bits);
        take!(signed, Signed, entry.signed);
        // `signed` alone decides symmetry too: a signed code was always symmetric where only `signed` could be written.
        take!(symmetric, Symmetric, entry.symmetric.or(entry.signed));
        take!(observer, Observer, entry.observer);
        take!(method, Method, entry.method.filter(|m| m.suits(site)));
        take!(percentile_alpha, PercentileAlpha, entry.percentile_alpha);
        take!(percentile_sigma, PercentileSigma, entry.percentile_sigma);
        take!(kl_bins, KlBins, entry.kl_bins);
        take!(log2_fraction_bits, Log2FractionBits, entry.log2_fraction_bits);
        take!(log2_normalize, Log2Normalize, entry.log2_normalize);
        take!(ptf_search, PtfSearch, entry.ptf_search);
        take!(keep_accumulator, KeepAccumulator, entry.keep_accumulator);
        take!(class_token_codes, ClassTokenCodes, entry.class_token_codes);
        take!(ptf_piecewise, PtfPiecewise, entry.ptf_piecewise);
        take!(reparameterize, Reparameterize, entry.reparameterize);
        take!(max_exponent, MaxExponent, entry.max_exponent);
        take!(ptf_mantissa_bits, PtfMantissaBits, entry.ptf_mantissa_bits);
        let weight = WEIGHTS.contains(&site);
        take!(group_size, GroupSize, entry.group_size.filter(|_| weight));
        take!(weight_rounding, WeightRounding, entry.weight_rounding.filter(|_| weight));
        take!(bias_correction, BiasCorrection, entry.bias_correction.filter(|_| weight));
        let disabled = entry.output_quant_enable.filter(|_| !WEIGHTS.contains(&site)).map(|on| !on);
        take!(float, Float, entry.float.or(disabled));
    }
}

impl Config {
    /// The section of that name; an empty one for a name that is none.
    pub fn section(&self, name: &str) -> &Section {
        match name {
            LAYERS => &self.layers,
            ATTN_LAYER => &self.attn_layer,
            RESIDUAL_LAYER => &self.residual_layer,
            EXTRA_LAYER => &self.extra_layer,
            _ => {
                static EMPTY: std::sync::OnceLock<Section> = std::sync::OnceLock::new();
                EMPTY.get_or_init(Section::default)
            }
        }
    }

    pub(super) fn section_mut(&mut self, name: &str) -> Option<&mut Section> {
        match name {
            LAYERS => Some(&mut self.layers),
            ATTN_LAYER => Some(&mut self.attn_layer),
            RESIDUAL_LAYER => Some(&mut self.residual_layer),
            EXTRA_LAYER => Some(&mut self.extra_layer),
            _ => None,
        }
    }

    /// Everything that is said of a site, in block `block` or (for `None`) outside the blocks or in any block.
    ///
    /// Priority, highest first: the block's entry, the site's entry, the section's default, `default`, the built-in
    /// default of the site. Keys are merged one by one, those of `bit_type` too. A method that cannot apply to the site
    /// (Log2 from `default` on a weight) is passed over. A name that is no site has the built-in default of an activation
    /// under the file's `default`.
    pub fn resolve(&self, block: Option<usize>, site: &str) -> SiteConfig {
        let mut result = defaults::built_in(site);
        result.apply(site, &self.default, Source::Default);
        let section = self.section(section_of(site).unwrap_or_default());
        result.apply(site, &section.default, Source::Section);
        if let Some(entry) = section.sites.get(site) {
            result.apply(site, entry, Source::Site);
        }
        let block = block.and_then(|b| section.blocks.get(&b)).and_then(|entries| entries.get(site));
        if let Some(entry) = block {
            result.apply(site, entry, Source::Block);
        }
        if !result.is_given(Key::Log2FractionBits) {
            result.log2_fraction_bits = defaults::log2_fraction_bits(result.bits);
        }
        result
    }

    /// What was accepted but has no effect, one sentence each, with file and line.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What entries `blocks.<i>.<site>` name: blocks, and sites in them.
    pub fn named_in_blocks(&self) -> impl Iterator<Item = (usize, &str)> {
        let entries = SECTIONS.iter().flat_map(|s| &self.section(s).blocks);
        entries.flat_map(|(&block, sites)| sites.keys().map(move |site| (block, site.as_str())))
    }
}
