//! Room above what calibration saw: as much as samples ask for that it did not see.
//!
//! An observer fits a range to the samples at hand, and the search measures damage on some of them. A new sample goes beyond that range in
//! some channel of some site, and what is cut off there is not like rounding: its errors point one way and add up. So ranges are
//! taken from three quarters of the samples and damage is measured on the others, all sites of a kind at once, since each alone does
//! little.

use std::collections::BTreeMap;

use super::clip::behind;
use super::{Calibration, Clip, PipelineError, Search, plan};
use crate::calib::run::Named;
use crate::calib::{Part, SampleSource, Stats};
use crate::quant::{QuantPlan, Scheme};
use crate::tune::objective::{Assignment, Distance, Objective};
use crate::tune::range::{step, widened};
use crate::tune::search::Change;
use crate::tune::widths::with_bits;
use crate::vit::Site;

/// One of so many parts of the samples is kept from calibration.
const PARTS: usize = 4;
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
    /// How many times as wide as three quarters of the samples say.
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

/// What is measured: the model on samples that the ranges of a plan have not seen.
struct Unseen {
    objective: Objective,
    /// Everything in float, massive activations clipped.
    background: Assignment,
    reference: Vec<Vec<f32>>,
    /// The plan's schemes, by site, in the width that they are wanted in.
    schemes: BTreeMap<String, Scheme>,
}

impl Search<'_> {
    /// Widens ranges where that lowers the damage of a kind of sites on samples that they were not taken from. Sites that are clipped
    /// or `fixed`, because a search chose their ranges, keep them. With fewer samples than there are parts nothing is done.
    ///
    /// # Errors
    /// When the model cannot be run, or a sample cannot be read.
    pub(super) fn headroom(&self, clips: &[Clip], fixed: &[Change], chosen: &mut QuantPlan) -> Result<Vec<Room>, PipelineError> {
        let inputs = self.unseen()?;
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let bar = (self.progress)("making room in ranges");
        let clipped = behind(self.source, clips)?;
        let stats = self.others(&clipped)?;
        if stats.samples().is_empty() {
            // None of them could be read, and that is allowed.
            return Ok(Vec::new());
        }
        let part = plan(&clipped, &stats, self.config, self.target, self.threads)?;
        let objective = self.objective(&part, &inputs)?;
        let mut background = objective.float();
        clips.iter().for_each(|clip| objective.clip(&mut background, &clip.site, clip.at));
        let reference = objective.outputs(&background).map_err(|e| self.failed(e))?;
        let mut kinds: BTreeMap<(Site, u8), Vec<String>> = BTreeMap::new();
        let mut schemes = BTreeMap::new();
        let keeps = |name: &str| clips.iter().any(|c| c.site == name) || fixed.iter().any(|c| c.site == name);
        // The steps of a site whose channels one plan divides and the other does not cannot be compared.
        let divided = |plan: &QuantPlan, name: &str| plan.reparameterized.iter().any(|r| r.site == name);
        let differ = |name: &str| divided(chosen, name) != divided(&part, name);
        for site in chosen.sites.iter().filter(|s| s.rounds() && !keeps(&s.name) && !differ(&s.name)) {
            if let Some((scheme, bits)) = part.site(&site.name).and_then(|p| alike(&p.scheme, &site.scheme)) {
                kinds.entry((site.site.site, bits)).or_default().push(site.name.clone());
                schemes.insert(site.name.clone(), scheme);
            }
        }
        let unseen = Unseen { objective, background, reference, schemes };
        let total = kinds.len();
        let mut rooms = Vec::new();
        for (done, (kind, sites)) in kinds.into_iter().enumerate() {
            if let Some(room) = self.room(&unseen, kind, &sites)? {
                widen(chosen, &sites, &unseen.schemes, &room);
                rooms.push(room);
            }
            bar.tick(done + 1, total);
        }
        Ok(rooms)
    }

    /// The first samples of the part that is kept from calibration.
    fn unseen(&self) -> Result<Vec<Named>, PipelineError> {
        let mut inputs = Vec::new();
        if self.samples.len() < PARTS {
            return Ok(inputs);
        }
        for g in (0..self.samples.len()).step_by(PARTS) {
            if inputs.len() * self.samples.batch() >= self.measured_on {
                break;
            }
            inputs.extend(self.samples.group_or_skip(g)?.map(|group| group.inputs));
        }
        Ok(inputs)
    }

    /// Statistics of all other parts.
    fn others(&self, source: &super::Source) -> Result<Stats, PipelineError> {
        let engine = super::engine_of(source, self.config, self.options)?;
        let (config, samples, threads) = (self.config, self.samples, self.threads);
        let calibration = Calibration { source, config, engine: &engine, samples, threads, progress: &() };
        let mut seen = calibration.run(Part::new(1, PARTS)?)?;
        for part in 2..PARTS {
            seen = seen.merge(calibration.run(Part::new(part, PARTS)?)?)?;
        }
        Ok(seen)
    }

    /// The factor that leaves a kind the least damage, if one is worth it: upwards for as long as it falls.
    fn room(&self, unseen: &Unseen, (kind, bits): (Site, u8), sites: &[String]) -> Result<Option<Room>, PipelineError> {
        let damage = |factor: f64| {
            let mut codes = unseen.background.clone();
            for name in sites {
                let scheme = unseen.schemes.get(name).and_then(|s| widened(s, factor));
                unseen.objective.set(&mut codes, name, scheme.as_ref());
            }
            let outputs = unseen.objective.outputs(&codes).map_err(|e| self.failed(e))?;
            Ok::<f64, PipelineError>(Distance::between(&unseen.reference, &outputs).ratio())
        };
        let before = damage(1.0)?;
        let mut best = (1.0, before);
        for _ in 0..STEPS {
            let factor = best.0 * STEP;
            let after = damage(factor)?;
            if after >= best.1 {
                break;
            }
            best = (factor, after);
        }
        let (factor, after) = best;
        Ok((after < before * (1.0 - WORTH)).then_some(Room { kind, bits, factor, before, after }))
    }
}

/// A scheme of the same form as another, in its width, and that width; `None` for forms without even steps.
fn alike(scheme: &Scheme, other: &Scheme) -> Option<(Scheme, u8)> {
    let (Scheme::Affine { codes, .. } | Scheme::Ptf { codes, .. }) = scheme else { return None };
    let bits = other.bits();
    let same_form = std::mem::discriminant(scheme) == std::mem::discriminant(other);
    let scheme = if codes.bits == bits { Some(scheme.clone()) } else { with_bits(scheme, bits) };
    scheme.filter(|_| same_form).map(|scheme| (scheme, bits))
}

/// Gives sites the steps that the room asks for, where all samples together do not give them as wide ones already.
fn widen(chosen: &mut QuantPlan, sites: &[String], part: &BTreeMap<String, Scheme>, room: &Room) {
    for site in chosen.sites.iter_mut().filter(|s| sites.contains(&s.name)) {
        let wanted = part.get(&site.name).and_then(step).map(|step| step * room.factor);
        let Some((wanted, now)) = wanted.zip(step(&site.scheme)) else { continue };
        if wanted > now
            && let Some(scheme) = widened(&site.scheme, wanted / now)
        {
            site.scheme = scheme;
            site.searched(&room.to_string());
        }
    }
}
