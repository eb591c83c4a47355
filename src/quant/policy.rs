//! Statistics, configuration and target rules become a plan.

use std::collections::{BTreeMap, BTreeSet};

use super::codebook::{self, GridKind};
use super::params::{affine_scheme, piecewise_scheme, ptf_scheme, range};
use super::plan::{Codes, FloatSite, PLAN_VERSION, QuantPlan, Reparameterized, Scheme, SitePlan};
use super::reparameterize::divided_range;
use super::{Target, weights};
use crate::calib::channels::Channels;
use crate::calib::ptf::Reach;
use crate::calib::stats::Recording;
use crate::calib::{Error as CalibError, Range, Stats, TapSpec, ValueStats};
use crate::config::schema::{CalibrationMode, Config, Key, Method, Observer as ObserverKind, SiteConfig, Source};
use crate::ir::Tensor;
use crate::parallel;
use crate::vit::{Accumulated, Norm, Site, SiteRef};

/// What a plan needs to know of a model, besides its statistics.
#[derive(Debug, Clone)]
pub struct ModelFacts {
    /// SHA-256 of the canonical model, in hexadecimal.
    pub digest: String,
    /// The sites.
    pub sites: Vec<SiteRef>,
    /// Full names of the sites that a MatMul or convolution reads.
    pub multiplied: BTreeSet<String>,
    /// Full names of the sites whose sum can be made in a product's accumulator.
    pub accumulated: BTreeMap<String, Accumulated>,
    /// What is around the sites that are a LayerNorm's output which only Linears read, by their full names.
    pub norms: BTreeMap<String, Norm>,
    /// Sites whose channels' scales stand in the constants already.
    pub reparameterized: Vec<Reparameterized>,
    /// The constants that are sites, by name.
    pub constants: BTreeMap<String, Tensor>,
    /// Full names of the sites that a GELU alone reads.
    pub before_gelu: BTreeSet<String>,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The statistics lack a value.
    #[error(
        "the statistics have nothing of {site} (value '{value}'): they were recorded for another configuration or model; run `vitq calibrate` again"
    )]
    Missing {
        /// The site.
        site: String,
        /// The value.
        value: String,
    },
    /// An observer failed.
    #[error("no range for {site}: {source}")]
    Observer {
        /// The site.
        site: String,
        /// Why.
        #[source]
        source: CalibError,
    },
    /// A weight cannot be quantised.
    #[error("the weights {site} cannot be quantised: {what}")]
    Weight {
        /// The site.
        site: String,
        /// Why.
        what: String,
    },
}

/// What calibration must record for a configuration: every activation site, whatever the target, so that one set of
/// statistics serves them all.
pub fn recordings(sites: &[SiteRef], config: &Config) -> Vec<TapSpec> {
    let mut taps: BTreeMap<String, TapSpec> = BTreeMap::new();
    for site in sites.iter().filter(|s| !s.weight) {
        let cfg = config.resolve(site.block, site.site.name());
        if site.rows.is_some() && !has_own_rows(&cfg) {
            continue;
        }
        let codebook = cfg.method == Method::Codebook;
        let ptf = cfg.method == Method::Ptf || codebook && has_channels(site.site);
        let recording = Recording {
            // Where massive activations begin, their tail is looked at.
            sketch: codebook
                || !matches!(cfg.observer, ObserverKind::Minmax)
                || matches!(site.site, Site::MlpAct | Site::MlpGate),
            outliers: cfg.observer == ObserverKind::Kl,
            channel_axis: ptf.then_some(1),
            // Hidden units share a range, unless the configuration says otherwise: only who stands out of it has to be known.
            channel_sketches: ptf && (codebook || !is_hidden(site.site, &cfg)),
            percentiles: if cfg.observer == ObserverKind::Percentile { vec![cfg.percentile_alpha] } else { Vec::new() },
        };
        let value = site.observed().to_owned();
        taps.entry(value.clone()).or_insert(TapSpec { value, recording });
    }
    taps.into_values().collect()
}

/// Whether some rows of a site have codes of their own, where the target can.
fn has_own_rows(cfg: &SiteConfig) -> bool {
    cfg.class_token_codes && cfg.method == Method::Ptf && !cfg.float
}

/// The share of an MLP's hidden units that have one exponent: all but the few that are much larger than the others.
const SHARED: f64 = 0.95;
/// How far a class token reaches is not known from fewer rows.
const FEWEST_ROWS: u64 = 8;
/// A class token has a row or two a sample, so that its channels reach farther than they were seen to: of a normal distribution one value in 150 000 is
/// more than so many standard deviations from the mean.
const DEVIATIONS: f64 = 4.5;
/// A hidden unit is much larger when its range is this many times the largest of the others'.
const MASSIVE: f64 = 6.0;
/// GELU of what lies below is within [`GELU_TAIL`] of 0.
const GELU_FLOOR: f64 = -3.5;
/// |GELU(−3.5)| is 0.0008.
const GELU_TAIL: f64 = 1e-3;

/// Decides every site, on so many threads: the plan does not depend on their number.
///
/// # Errors
/// When the statistics do not hold what the configuration needs.
pub fn make_plan(
    facts: &ModelFacts,
    stats: &Stats,
    config: &Config,
    target: Target,
    threads: usize,
) -> Result<QuantPlan, PolicyError> {
    let mut plan = QuantPlan {
        version: PLAN_VERSION,
        model: facts.digest.clone(),
        target,
        config: config.name.clone(),
        constants: None,
        reparameterized: facts.reparameterized.clone(),
        sites: Vec::new(),
        float: Vec::new(),
    };
    let decide = |(): &mut (), i: usize| facts.sites.get(i).map(|site| decide(facts, stats, site, config, target)).transpose();
    for decided in parallel::try_map(facts.sites.len(), threads, || Ok(()), decide)?.into_iter().flatten() {
        match decided {
            Decided::Codes(site) => plan.sites.push(*site),
            Decided::Float(site) => plan.float.push(site),
            Decided::Together(None) => {}
            Decided::Together(Some(note)) => {
                // Their sum is decided just before.
                if let Some(sum) = plan.sites.last_mut() {
                    sum.note = Some(sum.note.take().map_or(note.clone(), |known| format!("{known}; {note}")));
                }
            }
        }
    }
    Ok(plan)
}

/// What becomes of a site.
enum Decided {
    Codes(Box<SitePlan>),
    Float(FloatSite),
    /// Some rows of a site, which go with the others, and what of that is to be told.
    Together(Option<String>),
}

fn decide(facts: &ModelFacts, stats: &Stats, site: &SiteRef, config: &Config, target: Target) -> Result<Decided, PolicyError> {
    let cfg = config.resolve(site.block, site.site.name());
    let multiplied = facts.multiplied.contains(&site.full_name());
    if site.rows.is_some() && (!has_own_rows(&cfg) || multiplied || !target.has_custom_ops()) {
        return Ok(Decided::Together(None));
    }
    let seen = site.rows.and_then(|_| stats.get(site.observed())?.channels()).map(Channels::count);
    if let Some(rows) = seen.filter(|&n| n < FEWEST_ROWS) {
        let note = format!(
            "its class token has no codes of its own: {rows} rows do not tell how far it reaches, {FEWEST_ROWS} do: calibrate on more samples"
        );
        return Ok(Decided::Together(Some(note)));
    }
    let reason = if cfg.float { Some("the configuration says so") } else { target.keeps_float(site, multiplied) };
    if let Some(reason) = reason {
        return Ok(Decided::Float(FloatSite { name: site.full_name(), site: site.site, reason: reason.to_owned() }));
    }
    if is_accumulated(facts, site, config, target) {
        return accumulator(facts, stats, site).map(|site| Decided::Codes(Box::new(site)));
    }
    let planned = if site.weight { weight(facts, site, &cfg) } else { activation(facts, stats, site, config, &cfg, target) };
    planned.map(|site| Decided::Codes(Box::new(site)))
}

/// Whether a site needs no codes of its own, as the configuration of the product's site says, and all around it has some.
fn is_accumulated(facts: &ModelFacts, site: &SiteRef, config: &Config, target: Target) -> bool {
    let Some(found) = facts.accumulated.get(&site.full_name()).filter(|_| target.keeps_accumulators()) else { return false };
    let of = |name: &String| {
        let site = facts.sites.iter().find(|s| s.full_name() == *name)?;
        Some(config.resolve(site.block, site.site.name())).filter(|cfg| !cfg.float)
    };
    of(&found.product).is_some_and(|cfg| cfg.keep_accumulator) && found.beside.iter().all(|name| of(name).is_some())
}

fn accumulator(facts: &ModelFacts, stats: &Stats, site: &SiteRef) -> Result<SitePlan, PolicyError> {
    let (name, value) = (site.full_name(), site.observed());
    let observed = if site.weight {
        let tensor = facts.constants.get(value).and_then(|t| t.to_f32().ok()).unwrap_or_default();
        tensor.iter().fold([0.0, 0.0], |[lo, hi]: [f32; 2], &x| [lo.min(x), hi.max(x)])
    } else {
        let range = stats.get(value).and_then(ValueStats::range);
        range.map(|(lo, hi)| [lo, hi]).ok_or_else(|| PolicyError::Missing { site: name.clone(), value: value.to_owned() })?
    };
    Ok(SitePlan { name, site: site.clone(), scheme: Scheme::Accumulator, observed, note: None, search: None })
}

fn weight(facts: &ModelFacts, site: &SiteRef, cfg: &SiteConfig) -> Result<SitePlan, PolicyError> {
    let name = site.full_name();
    let missing = || PolicyError::Weight { site: name.clone(), what: "the model has no such constant".to_owned() };
    let mut cfg = cfg.clone();
    if site.site == Site::Embed && cfg.source(Key::CalibrationMode) < Source::Site {
        // The name is the sum's, whose channels PTF tells apart; its constant part has a scale for each.
        cfg.calibration_mode = CalibrationMode::ChannelWise;
    }
    let tensor = site.values.first().and_then(|v| facts.constants.get(v)).ok_or_else(missing)?;
    let (scheme, observed) =
        weights::scheme(site.site, tensor, &cfg).map_err(|what| PolicyError::Weight { site: name.clone(), what })?;
    // Of all weights a `default` speaks, those of 8 bits among them.
    let meant = cfg.bits < 8 || cfg.source(Key::GroupSize) >= Source::Site;
    let in_vain = cfg.group_size > 0 && meant && !matches!(scheme, Scheme::Groups { .. });
    let mut notes = Vec::new();
    if in_vain {
        notes.push("no factors for groups: group_size is for channel_wise scales, 4 to 7 bits and the method Uniform".to_owned());
    }
    note_idle_codebook(&cfg, &mut notes);
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(SitePlan { name, site: site.clone(), scheme, observed, note, search: None })
}

/// Says so where a codebook was asked for of this very site, and it has 8 bits or more.
fn note_idle_codebook(cfg: &SiteConfig, notes: &mut Vec<String>) {
    if cfg.method == Method::Codebook && cfg.bits >= 8 && cfg.source(Key::Method) >= Source::Site {
        notes.push(format!("even codes: a codebook is for fewer than 8 bits, and the site has {}", cfg.bits));
    }
}

fn activation(
    facts: &ModelFacts,
    stats: &Stats,
    site: &SiteRef,
    config: &Config,
    cfg: &SiteConfig,
    target: Target,
) -> Result<SitePlan, PolicyError> {
    let name = site.full_name();
    let value = site.observed();
    let missing = || PolicyError::Missing { site: name.clone(), value: value.to_owned() };
    let failed = |source| PolicyError::Observer { site: name.clone(), source };
    let seen = stats.get(value).ok_or_else(missing)?;
    let (lo, hi) = seen.range().ok_or_else(missing)?;
    let mut notes: Vec<String> = Vec::new();
    let signed = target.signed(site).unwrap_or(cfg.signed);
    let mut codes = Codes { bits: cfg.bits, signed };
    if let Some(moved) = facts.reparameterized.iter().find(|r| r.site == name) {
        // Its channels reach more or less alike: no observer is asked what to clip.
        let (lo, hi) = divided_range(seen, &moved.factors).ok_or_else(missing)?;
        let note = Some(
            "one scale for the tensor, by its smallest and largest value: those of its channels stand in the LayerNorm and the weights that read it".to_owned(),
        );
        let scheme = affine_scheme(Range::new(lo, hi), codes, cfg.symmetric);
        return Ok(SitePlan { name, site: target.coded(site), scheme, observed: [lo as f32, hi as f32], note, search: None });
    }
    // What calibration saw of a hidden unit says little of its range, since most are seldom active: an exponent of its own is for
    // those units alone that stand far out.
    note_idle_codebook(cfg, &mut notes);
    let codebook = cfg.method == Method::Codebook && cfg.bits < 8 && codebook_possible(target, &mut notes);
    let hidden = codebook && is_hidden_site(site.site) || is_hidden(site.site, cfg);
    let ptf = (cfg.method == Method::Ptf || codebook && has_channels(site.site))
        && (!hidden || has_massive_channel(seen))
        && ptf_possible(site, facts, cfg.is_given(Key::Method), target, &mut notes)
        && channels_fit(facts, site, seen, &mut notes);
    if ptf && !codes.signed && matches!(site.site, Site::Norm1 | Site::Norm2 | Site::MlpAct | Site::Norm) {
        // onnxruntime fuses an unsigned DequantizeLinear with the MatMul that reads it, and then refuses a zero point a channel.
        codes.signed = true;
        notes.push("signed codes: onnxruntime refuses a MatMul of unsigned ones with a scale a channel".to_owned());
    }
    let log2 = cfg.method == Method::Log2 && log2_possible(facts, config, site, cfg, target, &mut notes);
    let scheme = if log2 {
        let (fraction_bits, normalized) = (cfg.log2_fraction_bits, cfg.log2_normalize);
        Scheme::Log2 { bits: cfg.bits, fraction_bits, scale: 1.0, normalized }
    } else if codebook {
        let kind = match (ptf, hidden) {
            (false, _) => GridKind::Tensor,
            (true, true) => GridKind::Far { shared: SHARED },
            (true, false) => GridKind::Spread,
        };
        codebook::scheme(seen, cfg, codes.signed, kind).map_err(failed)?
    } else if ptf {
        let mut cfg = cfg.clone();
        if cfg.ptf_mantissa_bits > 0 && facts.multiplied.contains(&name) {
            cfg.ptf_mantissa_bits = 0;
            notes.push("powers of two, without mantissas: a Linear reads them as shifts".to_owned());
        }
        let reach = match (site.rows.is_some(), hidden) {
            (true, _) => Reach::Deviations(DEVIATIONS),
            (_, true) => Reach::Shared(SHARED),
            _ => Reach::Seen,
        };
        if is_piecewise(site, &cfg, reach, &mut notes) {
            piecewise_scheme(seen, &cfg, codes).map_err(failed)?
        } else {
            ptf_scheme(seen, &cfg, codes, reach).map_err(failed)?
        }
    } else {
        // The entry `patch_embed` speaks of the convolution's weights; its output shares the name and the width.
        let of_weights = site.site == Site::PatchEmbed;
        // With PTF it speaks of zero points.
        let scale_a_channel = cfg.calibration_mode == CalibrationMode::ChannelWise && cfg.method != Method::Ptf;
        if scale_a_channel && cfg.is_given(Key::CalibrationMode) && !of_weights {
            notes.push("one scale for the tensor, not one a channel: the operator after it adds its channels up".to_owned());
        }
        // Few log2 codes span the probabilities; as many uniform ones would not.
        let codes = if cfg.method == Method::Log2 { Codes { bits: codes.bits.max(8), ..codes } } else { codes };
        let mut range = range(seen, cfg).map_err(failed)?;
        if site.observe.is_some() && site.rows.is_none() {
            // What a mask hides must lie below all that it leaves: e^-12 of the largest probability is none of 8 bits.
            const HIDDEN: f64 = 12.0;
            range.lo = range.lo.min(f64::from(lo)) - HIDDEN;
        }
        // Where that is less than a quarter of a step of what GELU puts out, which reaches as far, codes below are wasted.
        let step = range.hi / f64::from((1u32 << codes.bits) - 1);
        if facts.before_gelu.contains(&name) && step >= 4.0 * GELU_TAIL {
            range.lo = range.lo.max(GELU_FLOOR);
        }
        let symmetric = cfg.symmetric && !of_weights;
        affine_scheme(range, codes, symmetric)
    };
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(SitePlan { name, site: target.coded(site), scheme, observed: [lo, hi], note, search: None })
}

/// Whether a site's codes may have two segments: a residual sum's, which only sums and LayerNorms read, where each channel reaches as
/// far as it was seen to, and nobody asks for another reach.
fn is_piecewise(site: &SiteRef, cfg: &SiteConfig, reach: Reach, notes: &mut Vec<String>) -> bool {
    if !site.site.is_sum() || !cfg.ptf_piecewise || reach != Reach::Seen {
        return false;
    }
    let needed = if !(cfg.ptf_search && cfg.calibration_mode == CalibrationMode::ChannelWise) {
        "calibration_mode: channel_wise and ptf_search: true"
    } else if cfg.bits > 8 {
        "8 bits or fewer"
    } else if !cfg.signed {
        "signed codes"
    } else if !matches!(cfg.observer, ObserverKind::Minmax | ObserverKind::Omse) {
        "an observer that cuts nothing off unless the squared error says so: MinmaxObserver, OmseObserver"
    } else {
        return true;
    };
    if cfg.is_given(Key::PtfPiecewise) {
        notes.push(format!("codes lie evenly, not in two segments: those need {needed}"));
    }
    false
}

/// Whether a site's channels are the hidden units of an MLP.
fn is_hidden_site(site: Site) -> bool {
    matches!(site, Site::MlpFc1Output | Site::MlpAct)
}

/// Whether they are, and nobody asked for an exponent for each.
fn is_hidden(site: Site, cfg: &SiteConfig) -> bool {
    is_hidden_site(site) && cfg.source(Key::Method) < Source::Site
}

/// Whether a channel reaches [`MASSIVE`] times as far as nearly all others.
fn has_massive_channel(seen: &ValueStats) -> bool {
    let Some(channels) = seen.channels() else { return false };
    let span = |c: usize| channels.range(c).map_or(0.0, |(lo, hi)| f64::from(lo.abs().max(hi.abs())));
    let mut spans: Vec<f64> = (0..channels.len()).map(span).collect();
    spans.sort_by(f64::total_cmp);
    let at = (spans.len() as f64 * SHARED) as usize;
    match (spans.get(at), spans.last()) {
        (Some(usual), Some(largest)) => *largest >= MASSIVE * usual,
        _ => false,
    }
}

/// Whether a value's channels are on a known axis of all its carriers.
fn has_channels(site: Site) -> bool {
    !matches!(site, Site::Input | Site::AttnQkvOutput | Site::KvAct | Site::IntSoft | Site::SvAttn)
}

/// A codebook needs an operator that takes codes to levels.
fn codebook_possible(target: Target, notes: &mut Vec<String>) -> bool {
    let possible = target.has_custom_ops();
    if !possible {
        notes.push(format!("uniform codes, not a codebook: {target} has no operator for those"));
    }
    possible
}

/// Whether the channels that calibration saw of the patch embedding, tokens joined, are those of its convolution.
fn channels_fit(facts: &ModelFacts, site: &SiteRef, seen: &ValueStats, notes: &mut Vec<String>) -> bool {
    if site.site != Site::PatchEmbed {
        return true;
    }
    let weights = facts.sites.iter().find(|s| s.site == Site::PatchEmbed && s.weight);
    let filters = weights.and_then(|s| s.values.first()).and_then(|v| facts.constants.get(v)).and_then(|t| t.shape.first());
    let fit = filters.copied() == seen.channels().map(Channels::len);
    if !fit {
        notes.push("one scale for the tensor, not PTF: its last axis is not one of the convolution's channels".to_owned());
    }
    fit
}

/// Whether a value gets a factor a channel: its channels must be on a known axis of all its carriers, and what reads it must take
/// a scale a channel.
fn ptf_possible(site: &SiteRef, facts: &ModelFacts, given: bool, target: Target, notes: &mut Vec<String>) -> bool {
    let multiplied = facts.multiplied.contains(&site.full_name());
    let last_axis_is_channels = has_channels(site.site);
    if !last_axis_is_channels {
        notes.push("one scale for the tensor, not PTF: its last axis is not one of channels all the way".to_owned());
    } else if multiplied && site.site.is_sum() {
        notes.push("one scale for the tensor, not PTF: without a LayerNorm between, a Linear adds its channels up".to_owned());
        return false;
    } else if !target.has_custom_ops() && given {
        notes.push(format!("one scale for the tensor, not PTF: {target} would run a scale a channel in float"));
    }
    last_axis_is_channels && target.has_custom_ops()
}

/// Whether a softmax becomes log2 codes: the integer op reads 8-bit scores and writes 8-bit codes.
fn log2_possible(
    facts: &ModelFacts,
    config: &Config,
    site: &SiteRef,
    cfg: &SiteConfig,
    target: Target,
    notes: &mut Vec<String>,
) -> bool {
    if !target.has_custom_ops() {
        notes.push(format!("uniform codes of at least 8 bits, not log2: {target} has no operator for those"));
        return false;
    }
    let scores = facts.sites.iter().find(|s| s.site == Site::KvAct && s.block == site.block);
    let scores = scores.map(|s| config.resolve(s.block, s.site.name()));
    let narrow = scores.is_some_and(|s| s.bits <= 8 && !s.float) && cfg.bits <= 8;
    if !narrow {
        notes.push(
            "uniform codes of at least 8 bits, not log2: the integer softmax needs kv_act and intSoft of at most 8 bits"
                .to_owned(),
        );
    }
    narrow
}
