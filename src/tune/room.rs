//! Room above what calibration saw: ranges as wide as samples ask for that they were not taken from.
//!
//! A new sample goes beyond a range in some channel of some site, and what is cut off there is not like rounding: its errors point one way
//! and add up. Each site alone does little, so all sites of a kind are measured at once.

use std::collections::BTreeMap;

use super::damage::Walk;
use super::range::{step, widened};
use super::widths::with_bits;
use crate::calib::Progress;
use crate::quant::{QuantPlan, Scheme};
use crate::runtime::tract::EngineError;
use crate::vit::Site;

/// Ranges are widened in steps of this factor, an eighth of an octave.
const STEP: f64 = 1.090_507_732_665_257_7;
/// They are at most doubled.
const STEPS: usize = 8;
/// The damage of a kind must fall by this share.
const WORTH: f64 = 0.05;

/// A kind of sites with wider ranges.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Room {
    /// The kind.
    pub kind: Site,
    /// The width of its codes.
    pub bits: u8,
    /// How many times as wide as the part of the samples says.
    pub factor: f64,
    /// Noise over signal that all sites of the kind did together before, on the other samples.
    pub before: f64,
    /// And do now.
    pub after: f64,
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Room { kind, bits, factor, before, after } = self;
        let less = (1.0 - after / before) * 100.0;
        let kind = kind.name();
        write!(f, "{factor:.2} times the range that three quarters of the samples give, for {less:.0} % less damage ")?;
        write!(f, "of all {kind} of {bits} bits on the others")
    }
}

/// Widens the ranges of a plan. `part` is a plan of the same configuration from a part of the samples, the walk is on others, and sites that
/// `keeps` names stay as they are.
///
/// # Errors
/// When an operator fails.
pub fn make_room(
    walk: &mut Walk<'_>,
    plan: &mut QuantPlan,
    part: &QuantPlan,
    keeps: &dyn Fn(&str) -> bool,
    progress: &dyn Progress,
) -> Result<Vec<Room>, EngineError> {
    // By kind and width: the sites of both plans, with the scheme of the part in the plan's width.
    let mut kinds: BTreeMap<(Site, u8), Vec<(String, Scheme)>> = BTreeMap::new();
    // The steps of a site whose channels one plan divides and the other does not cannot be compared.
    let divides = |plan: &QuantPlan, name: &str| plan.reparameterized.iter().any(|r| r.site == name);
    // A class token's ranges reach farther than calibration saw already.
    for site in plan.sites.iter().filter(|s| s.rounds() && s.site.rows.is_none() && !keeps(&s.name)) {
        let other = part.site(&site.name).filter(|_| divides(plan, &site.name) == divides(part, &site.name));
        if let Some(scheme) = other.and_then(|other| in_width_of(&other.scheme, &site.scheme)) {
            kinds.entry((site.site.site, scheme.bits())).or_default().push((site.name.clone(), scheme));
        }
    }
    let total = kinds.len();
    let mut rooms = Vec::new();
    for (done, ((kind, bits), sites)) in kinds.into_iter().enumerate() {
        if let Some(room) = best(walk, kind, bits, &sites)? {
            sites.iter().for_each(|(name, scheme)| widen(plan, name, scheme, &room));
            rooms.push(room);
        }
        progress.tick(done + 1, total);
    }
    Ok(rooms)
}

/// The factor that leaves a kind the least damage, if one is worth it: upwards for as long as it falls.
fn best(walk: &mut Walk<'_>, kind: Site, bits: u8, sites: &[(String, Scheme)]) -> Result<Option<Room>, EngineError> {
    let mut damage = |factor: f64, bound: f64| {
        let wide: Vec<Option<Scheme>> = sites.iter().map(|(_, scheme)| widened(scheme, factor)).collect();
        let named: Vec<_> = sites.iter().zip(&wide).map(|((name, _), scheme)| (name.as_str(), scheme.as_ref())).collect();
        walk.noise_below(&named, bound)
    };
    let Some(before) = damage(1.0, f64::INFINITY)? else { return Ok(None) };
    let (mut factor, mut after) = (1.0, before);
    for _ in 0..STEPS {
        let Some(next) = damage(factor * STEP, after)? else { break };
        (factor, after) = (factor * STEP, next);
    }
    Ok((after < before * (1.0 - WORTH)).then_some(Room { kind, bits, factor, before, after }))
}

/// A scheme with even steps, in the width of another of its form.
fn in_width_of(scheme: &Scheme, other: &Scheme) -> Option<Scheme> {
    // Two segments become even steps where they become wider.
    let scheme = if scheme.bits() == other.bits() { scheme.clone() } else { with_bits(scheme, other.bits())? };
    (step(&scheme).is_some() && std::mem::discriminant(&scheme) == std::mem::discriminant(other)).then_some(scheme)
}

/// Gives a site the steps that the room asks for, unless all samples together give it as wide ones already.
fn widen(plan: &mut QuantPlan, name: &str, part: &Scheme, room: &Room) {
    let Some(site) = plan.sites.iter_mut().find(|s| s.name == name) else { return };
    let Some((part, now)) = step(part).zip(step(&site.scheme)) else { return };
    let wanted = part * room.factor;
    if wanted > now
        && let Some(scheme) = widened(&site.scheme, wanted / now)
    {
        site.scheme = scheme;
        site.searched(&room.to_string());
    }
}
