//! Better ranges, site by site, each judged by its own damage at the model's outputs.

use super::damage::Walk;
use super::range::{Candidate, capped, finer, nudged, rescaled, scaled};
use crate::calib::Progress;
use crate::quant::{QuantPlan, Scheme, SitePlan};
use crate::runtime::tract::EngineError;

/// A site's damage must fall by this share for its range to be changed.
const WORTH: f64 = 0.05;
/// The widest channels are clipped by no more halvings.
const CAPS: u8 = 4;

/// What a site does alone.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Damage {
    /// The site's full name.
    pub site: String,
    /// Noise over signal at the outputs.
    pub noise: f64,
}

/// A site whose range was changed.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Change {
    /// The site's full name.
    pub site: String,
    /// The new range, in words.
    pub what: String,
    /// Noise over signal that the site did alone before.
    pub before: f64,
    /// And does now.
    pub after: f64,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let less = (1.0 - self.after / self.before) * 100.0;
        write!(f, "{}, for {less:.0} % less of its damage at the outputs", self.what)
    }
}

/// The damage of every activation site of a plan, in the order of the data flow.
///
/// # Errors
/// When an operator fails.
pub fn damages(walk: &mut Walk<'_>, plan: &QuantPlan, progress: &dyn Progress) -> Result<Vec<Damage>, EngineError> {
    each(walk, plan.sites.iter().filter(|s| s.rounds()).collect(), progress)
}

/// That of every site whose range [`refine`] may change, and of all others at once, which is nearly the sum of theirs.
///
/// # Errors
/// When an operator fails.
pub fn damages_to_refine(
    walk: &mut Walk<'_>,
    plan: &QuantPlan,
    progress: &dyn Progress,
) -> Result<(Vec<Damage>, f64), EngineError> {
    let (searched, mut others): (Vec<&SitePlan>, Vec<_>) = plan.sites.iter().filter(|s| s.rounds()).partition(|s| has_range(s));
    walk.order(&mut others, |s| &s.name);
    let others: Vec<(&str, Option<&Scheme>)> = others.into_iter().map(|s| (s.name.as_str(), Some(&s.scheme))).collect();
    let rest = if others.is_empty() { 0.0 } else { walk.noise_of(&others)? };
    Ok((each(walk, searched, progress)?, rest))
}

/// Whether a site has a range that may be changed. Of a class token the samples have one row each: fewer than its range was taken from. And
/// codes in two segments cut nothing off.
fn has_range(site: &SitePlan) -> bool {
    site.site.rows.is_none() && !matches!(site.scheme, Scheme::Piecewise { .. })
}

fn each(walk: &mut Walk<'_>, mut sites: Vec<&SitePlan>, progress: &dyn Progress) -> Result<Vec<Damage>, EngineError> {
    walk.order(&mut sites, |s| &s.name);
    let total = sites.len();
    let mut out = Vec::with_capacity(total);
    for (i, site) in sites.into_iter().enumerate() {
        out.push(Damage { site: site.name.clone(), noise: walk.damage(&site.name, &site.scheme)? });
        progress.tick(i + 1, total);
    }
    Ok(out)
}

/// Changes the ranges of those sites that do more damage than `least`, where that makes it less.
///
/// # Errors
/// When an operator fails.
pub fn refine(
    walk: &mut Walk<'_>,
    plan: &mut QuantPlan,
    damages: &[Damage],
    least: f64,
    progress: &dyn Progress,
) -> Result<Vec<Change>, EngineError> {
    let may_change = |d: &&Damage| d.noise > least && plan.site(&d.site).is_some_and(has_range);
    let chosen: Vec<&Damage> = damages.iter().filter(may_change).collect();
    let mut changes = Vec::new();
    for (i, damage) in chosen.iter().enumerate() {
        let Some(site) = plan.sites.iter_mut().find(|s| s.name == damage.site) else { continue };
        if let Some(((scheme, what), after)) = better(walk, site, damage.noise)? {
            let change = Change { site: site.name.clone(), what, before: damage.noise, after };
            site.scheme = scheme;
            site.searched(&change.to_string());
            changes.push(change);
        }
        progress.tick(i + 1, chosen.len());
    }
    Ok(changes)
}

/// The best scheme that a site can have, and its damage; `None` when that is its own.
fn better(walk: &mut Walk<'_>, site: &SitePlan, before: f64) -> Result<Option<(Candidate, f64)>, EngineError> {
    let mut best = Best { found: None, least: before * (1.0 - WORTH) };
    // Downhill in either direction in half octaves, for as long as it goes down, then a quarter to either side: quarters alone stop at
    // every ripple.
    let mut at = 0;
    for direction in [-2, 2] {
        while best.offer(walk, site, scaled(site, at + direction))? {
            at += direction;
        }
        if at != 0 {
            break;
        }
    }
    for quarter in [-1, 1] {
        best.offer(walk, site, scaled(site, at + quarter))?;
    }
    best.offer(walk, site, nudged(site))?;
    for lower in 1..=CAPS {
        if !best.offer(walk, site, capped(site, lower))? {
            break;
        }
    }
    for more in [-1, 1] {
        best.offer(walk, site, finer(site, more))?;
    }
    let scheme = best.found.as_ref().map_or(&site.scheme, |((scheme, _), _)| scheme).clone();
    for direction in [-1, 1] {
        let mut percent = direction;
        while best.offer(walk, site, rescaled(&scheme, percent))? {
            percent += direction;
        }
        if percent != direction {
            break;
        }
    }
    Ok(best.found)
}

/// The best candidate so far.
struct Best {
    found: Option<(Candidate, f64)>,
    /// What a better one has to stay below.
    least: f64,
}

impl Best {
    fn offer(&mut self, walk: &mut Walk<'_>, site: &SitePlan, candidate: Option<Candidate>) -> Result<bool, EngineError> {
        let Some(candidate) = candidate else { return Ok(false) };
        let after = walk.noise_below(&[(&site.name, Some(&candidate.0))], self.least)?;
        if let Some(after) = after {
            (self.found, self.least) = (Some((candidate, after)), after);
        }
        Ok(after.is_some())
    }
}
