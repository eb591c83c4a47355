//! What compiling did.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result};

use super::text::{bytes, count, decibels, entry, layers, percent, row, seconds, sites};
use crate::quant::{QuantPlan, Scheme};

/// How many sites have one scheme.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SchemeCount {
    /// `affine`, `ptf`, `log2` or `weight`.
    pub scheme: &'static str,
    /// Code width.
    pub bits: u8,
    /// Sites.
    pub sites: usize,
}

/// Sites with one remark in common: left in float for one reason, or quantised otherwise than configured for one reason.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SiteGroup {
    /// Why.
    pub reason: String,
    /// Their full names.
    pub sites: Vec<String>,
}

impl Display for SiteGroup {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}: {}", sites(self.sites.iter().map(String::as_str)), self.reason)
    }
}

/// How far the emitted model is from the float model, both run on calibration samples.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Samples compared.
    pub samples: usize,
    /// Samples there were.
    pub of: usize,
    /// Signal to quantisation noise of the logits in dB; `None` when nothing differs.
    pub sqnr_db: Option<f64>,
    /// Share of the samples with the same highest logit, 0 to 1.
    pub agreement: Option<f64>,
}

/// The parts of the emitted graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Lowered {
    /// Values that pass through a Q/DQ pair.
    pub pairs: usize,
    /// Constants stored as integers, biases excluded.
    pub weights: usize,
    /// Biases stored as int32.
    pub biases: usize,
    /// Custom integer ops.
    pub custom_ops: usize,
    /// Operators that compute only the rows that are read of them.
    pub narrowed: usize,
    /// What could not be done as planned.
    pub notes: Vec<String>,
}

/// One phase of the work.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// The summary of a compilation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CompileSummary {
    /// The model file.
    pub model: String,
    /// The emitted file.
    pub output: String,
    /// The target's name.
    pub target: String,
    /// The configuration's name or path.
    pub config: String,
    /// Samples that were calibrated on.
    pub calibration_samples: usize,
    /// Blocks recognised.
    pub blocks: usize,
    /// Heads of a block's attention.
    pub heads: usize,
    /// Convolutions in no block, quantised by the general rules.
    pub convolutions: usize,
    /// Linears in no block, quantised by the general rules.
    pub linears: usize,
    /// How often each canonicalisation rule applied: the exporter's forms.
    pub rules: BTreeMap<String, usize>,
    /// Places where a block or a rule all but matched.
    pub near_misses: Vec<String>,
    /// Quantised sites by scheme and width.
    pub quantised: Vec<SchemeCount>,
    /// Sites left in float by reason.
    pub float: Vec<SiteGroup>,
    /// Sites quantised otherwise than configured, by reason.
    pub adjusted: Vec<SiteGroup>,
    /// What the search chose instead of what calibration alone says, site by site, in the order of the data flow.
    pub searched: Vec<SiteGroup>,
    /// The emitted graph.
    pub lowered: Lowered,
    /// Notes on the configuration and the data.
    pub notes: Vec<String>,
    /// Distance from the float model.
    pub quality: Quality,
    /// Bytes of the model, external data included.
    pub bytes_before: u64,
    /// Bytes of the emitted model, external data included.
    pub bytes_after: u64,
    /// Where the time went.
    pub phases: Vec<Phase>,
    /// Wall-clock seconds in all.
    pub seconds: f64,
    /// The largest resident set of the process in bytes, where the system tells it.
    pub peak_memory_bytes: Option<u64>,
}

/// The order in which schemes are listed.
const ORDER: [&str; 8] = ["weight", "groups", "affine", "ptf", "piecewise", "codebook", "log2", "accumulator"];

/// Quantised sites of a plan by scheme and width.
pub fn quantised(plan: &QuantPlan) -> Vec<SchemeCount> {
    let name = |s: &Scheme| match s {
        Scheme::Weight { .. } => "weight",
        Scheme::Groups { .. } => "groups",
        Scheme::Affine { .. } => "affine",
        Scheme::Ptf { .. } => "ptf",
        Scheme::Piecewise { .. } => "piecewise",
        Scheme::Codebook { .. } => "codebook",
        Scheme::Log2 { .. } => "log2",
        Scheme::Accumulator => "accumulator",
    };
    let mut counts: BTreeMap<(usize, &'static str, u8), usize> = BTreeMap::new();
    for site in &plan.sites {
        let name = name(&site.scheme);
        let place = ORDER.iter().position(|n| *n == name).unwrap_or_default();
        *counts.entry((place, name, site.scheme.bits())).or_default() += 1;
    }
    counts.into_iter().map(|((_, scheme, bits), sites)| SchemeCount { scheme, bits, sites }).collect()
}

/// Sites of a plan left in float, by reason.
pub fn left_in_float(plan: &QuantPlan) -> Vec<SiteGroup> {
    group(plan.float.iter().map(|f| (f.reason.as_str(), f.name.as_str())))
}

/// Sites of a plan that are quantised otherwise than configured, by reason.
pub fn adjusted(plan: &QuantPlan) -> Vec<SiteGroup> {
    group(plan.sites.iter().filter_map(|s| Some((s.note.as_deref()?, s.name.as_str()))))
}

/// What a search chose in a plan.
pub fn searched(plan: &QuantPlan) -> Vec<SiteGroup> {
    group(plan.sites.iter().filter_map(|s| Some((s.search.as_deref()?, s.name.as_str()))))
}

fn group<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<SiteGroup> {
    let mut groups: Vec<SiteGroup> = Vec::new();
    for (reason, site) in rows {
        match groups.iter_mut().find(|g| g.reason == reason) {
            Some(g) => g.sites.push(site.to_owned()),
            None => groups.push(SiteGroup { reason: reason.to_owned(), sites: vec![site.to_owned()] }),
        }
    }
    groups
}

impl Display for CompileSummary {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        row(f, "Model", &format!("{} → {}", self.model, self.output))?;
        row(f, "Target", &format!("{}, configuration {}", self.target, self.config))?;
        let blocks = match self.blocks {
            0 => "none".to_owned(),
            n => format!("{n} recognised, {} each", count(self.heads, "head")),
        };
        let found: Vec<String> = [Some(blocks), layers(self.convolutions, self.linears)].into_iter().flatten().collect();
        row(f, "Blocks", &found.join("; "))?;
        let rules: Vec<String> = self.rules.iter().map(|(name, n)| format!("{name} {n}")).collect();
        row(f, "Rules", if rules.is_empty() { "none was needed".to_owned() } else { rules.join(", ") }.as_str())?;
        if !self.near_misses.is_empty() {
            row(f, "Near misses", &count(self.near_misses.len(), "place"))?;
            self.near_misses.iter().try_for_each(|n| entry(f, n))?;
        }
        self.fmt_sites(f)?;
        self.fmt_search(f)?;
        let l = &self.lowered;
        let mut graph = format!(
            "{} Q/DQ pairs, {} integer constants, {} int32 biases, {} custom ops",
            l.pairs, l.weights, l.biases, l.custom_ops
        );
        if l.narrowed > 0 {
            graph.push_str(&format!("; {} operators compute only the rows that are read", l.narrowed));
        }
        row(f, "Graph", &graph)?;
        l.notes.iter().chain(&self.notes).try_for_each(|n| entry(f, n))?;
        self.fmt_quality(f)?;
        let ratio = if self.bytes_before > 0 { self.bytes_after as f64 / self.bytes_before as f64 * 100.0 } else { 0.0 };
        row(f, "Size", &format!("{} → {} ({ratio:.0} %)", bytes(self.bytes_before), bytes(self.bytes_after)))?;
        let phases: Vec<String> =
            self.phases.iter().filter(|p| p.seconds >= 0.005).map(|p| format!("{} {}", p.name, seconds(p.seconds))).collect();
        row(f, "Time", &format!("{}: {}", seconds(self.seconds), phases.join(", ")))?;
        match self.peak_memory_bytes {
            Some(m) => row(f, "Memory", &format!("{} at its peak", bytes(m))),
            None => Ok(()),
        }
    }
}

impl CompileSummary {
    fn fmt_sites(&self, f: &mut Formatter<'_>) -> Result {
        let total: usize = self.quantised.iter().map(|q| q.sites).sum();
        let float: usize = self.float.iter().map(|g| g.sites.len()).sum();
        let show = |q: &SchemeCount| match q.scheme {
            "groups" => format!("{} weight of {} bits in groups", q.sites, q.bits),
            scheme => format!("{} {scheme} of {} bits", q.sites, q.bits),
        };
        let schemes: Vec<String> = self.quantised.iter().map(show).collect();
        row(f, "Quantised", &format!("{total} of {}: {}", count(total + float, "site"), schemes.join(", ")))?;
        for g in &self.adjusted {
            entry(f, &g.to_string())?;
        }
        row(f, "Float", &if float == 0 { "no site".to_owned() } else { count(float, "site") })?;
        for g in &self.float {
            entry(f, &g.to_string())?;
        }
        Ok(())
    }

    /// The sites that the search changed, a line each; of many the first.
    fn fmt_search(&self, f: &mut Formatter<'_>) -> Result {
        const SHOWN: usize = 12;
        let total: usize = self.searched.iter().map(|g| g.sites.len()).sum();
        if total == 0 {
            return Ok(());
        }
        row(f, "Search", &format!("{} changed by the effect on the outputs", count(total, "site")))?;
        for g in self.searched.iter().take(SHOWN) {
            entry(f, &g.to_string())?;
        }
        let rest: usize = self.searched.iter().skip(SHOWN).map(|g| g.sites.len()).sum();
        if rest > 0 { entry(f, &format!("and {rest} more: --save-plan writes them all")) } else { Ok(()) }
    }

    fn fmt_quality(&self, f: &mut Formatter<'_>) -> Result {
        let q = &self.quality;
        let distance = q.sqnr_db.map_or("identical".to_owned(), |db| format!("SQNR {}", decibels(db)));
        let agreement = q.agreement.map_or(String::new(), |a| format!(", top-1 agreement {}", percent(a)));
        let on = format!("{} of {}", q.samples, count(q.of, "calibration sample"));
        row(f, "Logits", &format!("{distance}{agreement} against the float model"))?;
        row(f, "", &format!("on {on}"))
    }
}
