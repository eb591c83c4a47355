//! Which sites do most damage, and what wider codes buy.

use std::fmt::{Display, Formatter, Result};

use super::summary::decibels;

/// One site, quantised alone.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SiteSensitivity {
    /// The full name.
    pub site: String,
    /// Code width.
    pub bits: u8,
    /// Noise over signal at the outputs when this site alone is quantised.
    pub noise: f64,
    /// Its share of the sum of all, 0 to 1.
    pub share: f64,
    /// By how much noise over signal is less when everything but this site is quantised; below 0 where it makes up for others, or
    /// where rounding elsewhere falls otherwise: few samples leave that to chance.
    pub on_top: f64,
}

/// A point of the frontier: the sites that do most, widened.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FrontierPoint {
    /// The site that is widened here; the ones before it are too. Empty for none.
    pub widened: String,
    /// How many are.
    pub sites: usize,
    /// Predicted SQNR of the outputs, in dB.
    pub sqnr_db: f64,
    /// Bits of all weights together, factors of groups included.
    pub weight_bits: u64,
    /// Σ multiply-accumulates × bits of one operand × bits of the other, of one sample; products with the factors of groups, one a group, are
    /// not counted.
    pub mac_bits: u64,
}

/// What `vitq analyze` found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sensitivity {
    /// Activation sites, those first that do most.
    pub sites: Vec<SiteSensitivity>,
    /// Noise over signal of all weights together.
    pub weights: f64,
    /// Noise over signal of the whole plan, measured.
    pub measured: f64,
    /// From nothing widened on. The scores' codes and the softmax's have one width only and are in no point.
    pub frontier: Vec<FrontierPoint>,
}

impl Display for Sensitivity {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        const SHOWN: usize = 20;
        writeln!(
            f,
            "{:<34}{:>5}{:>12}{:>9}{:>9}   outputs with it and all above at 16 bits",
            "Site", "bits", "alone", "share", "on top"
        )?;
        for site in self.sites.iter().take(SHOWN) {
            let point = self.frontier.iter().find(|p| p.widened == site.site);
            let alone = decibels(-10.0 * site.noise.max(1e-30).log10());
            writeln!(
                f,
                "{:<34}{:>5}{:>12}{:>7.1} %{:>7.1} %   {}",
                site.site,
                site.bits,
                alone,
                site.share * 100.0,
                site.on_top / self.measured.max(f64::MIN_POSITIVE) * 100.0,
                point.map_or_else(|| "has no other width".to_owned(), |p| decibels(p.sqnr_db))
            )?;
        }
        if self.sites.len() > SHOWN {
            let rest: f64 = self.sites.iter().skip(SHOWN).map(|s| s.share).sum();
            writeln!(f, "{} more sites do {:.1} % together", self.sites.len() - SHOWN, rest * 100.0)?;
        }
        let weights = decibels(-10.0 * self.weights.max(1e-30).log10());
        let now = self.frontier.first().map_or(f64::NAN, |p| p.sqnr_db);
        let measured = decibels(-10.0 * self.measured.max(1e-30).log10());
        writeln!(f, "Weights alone {weights}. Predicted of the whole model: {}, measured: {measured}", decibels(now))?;
        writeln!(
            f,
            "alone: this site's codes, all else in float; on top: of all noise, what goes when this site is left in float"
        )
    }
}
