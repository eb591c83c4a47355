//! Where 8 bits do not hold: sites that are widened, or left in float, by the damage that they do.

use std::collections::{BTreeMap, BTreeSet};

use super::cost::Cost;
use super::search::Damage;
use crate::quant::plan::{Codes, Factors, FloatSite, Scheme, Segments};
use crate::quant::{QuantPlan, SitePlan};

/// A width that was changed, and why.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Widening {
    /// The site's full name.
    pub site: String,
    /// Bits now; `None` for float.
    pub bits: Option<u8>,
    /// The share of all damage at the outputs that this site did alone, 0 to 1.
    pub share: f64,
}

impl std::fmt::Display for Widening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = self.share * 100.0;
        let share = if percent < 0.5 { "less than 1 %".to_owned() } else { format!("{percent:.0} %") };
        match self.bits {
            Some(bits) => write!(f, "{bits} bits: with fewer it does {share} of all damage at the outputs"),
            None => write!(f, "float: in integers it does {share} of all damage at the outputs"),
        }
    }
}

/// Exponents of a wider code give up this much, and mantissas go up to the next power of two: what they do, the additional bits do.
const BITS_FROM_EXPONENTS: u8 = 4;

/// The scheme of an activation with other bits over the same range; `None` for one that has no other width here.
pub fn with_bits(scheme: &Scheme, bits: u8) -> Option<Scheme> {
    let ratio = |from: u8| (f64::from((1u32 << from) - 1) / f64::from((1u32 << bits) - 1)) as f32;
    match scheme {
        Scheme::Affine { codes, scale, zero_point } => {
            let new = Codes { bits, ..*codes };
            let ((low, _), (new_low, new_high)) = (codes.range(), new.range());
            let ratio = ratio(codes.bits);
            let middle = |c: Codes| if c.signed { 0 } else { 1 << (c.bits - 1) };
            // Symmetric stays symmetric; otherwise the lowest code keeps its meaning.
            let zero = if *zero_point == middle(*codes) {
                middle(new)
            } else {
                (f64::from(new_low) + f64::from(zero_point - low) / f64::from(ratio)).round_ties_even() as i32
            };
            Some(Scheme::Affine { codes: new, scale: scale * ratio, zero_point: zero.clamp(new_low, new_high) })
        }
        Scheme::Ptf { codes, scale, zero_point, factors } => {
            let more = bits.checked_sub(codes.bits)?;
            let give = more.min(BITS_FROM_EXPONENTS);
            let rounded = factors.exponents()?.into_iter().zip(factors.mantissas()?).map(|(e, m)| e + u8::from(m > 0));
            let exponents: Vec<u8> = rounded.map(|e| e.saturating_sub(give)).collect();
            let scale = scale / f32::from(1u16 << (more - give));
            Some(Scheme::Ptf {
                codes: Codes { bits, ..*codes },
                scale,
                zero_point: zero_point.map(|z| z << more),
                factors: Factors::powers_of_two(&exponents),
            })
        }
        Scheme::Codebook { grid, .. } => with_bits(grid, bits),
        Scheme::Piecewise { grid, segments } => with_bits(&filled(grid, *segments)?, bits),
        Scheme::Weight { .. } | Scheme::Groups { .. } | Scheme::Log2 { .. } | Scheme::Accumulator => None,
    }
}

/// The grid of codes in two segments with steps as small as its own width allows over the range of the levels: all channels' by one factor, so
/// that one whose zero lies far out keeps the others' steps from becoming as small as they could.
fn filled(grid: &Scheme, segments: Segments) -> Option<Scheme> {
    let Scheme::Ptf { codes, scale, zero_point, factors } = grid else { return None };
    let (low, high) = codes.range();
    let farthest = zero_point.as_slice().iter().map(|z| z.abs()).fold(segments.level(segments.top()), i32::max);
    let finer = f64::from(high) / f64::from(farthest.max(1));
    let zero_point = zero_point.map(|z| ((f64::from(z) * finer).round_ties_even() as i32).clamp(low, high));
    let scale = (f64::from(*scale) / finer) as f32;
    Some(Scheme::Ptf { codes: *codes, scale, zero_point, factors: factors.clone() })
}

/// How far sites are widened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// The noise over signal that is enough.
    pub noise: f64,
    /// How many times what the model's products cost they may cost at most, in [`Cost::mac_bits`].
    pub cost: f64,
}

/// The widths of a plan's sites, by name.
pub fn bits_of(plan: &QuantPlan) -> BTreeMap<String, u8> {
    plan.sites.iter().map(|s| (s.name.clone(), s.scheme.bits())).collect()
}

/// Widens the sites that do most until what the others do is predicted to be little enough: the sum of their damage alone and
/// of `rest`, that of everything that has no width to choose (the weights). A site whose products would cost too much with more
/// bits is passed over. Gives the sites, and the noise over signal that is predicted to be left.
pub fn widen(plan: &mut QuantPlan, damages: &[Damage], rest: f64, cost: &Cost, bits: u8, goal: Goal) -> (Vec<Widening>, f64) {
    let all: f64 = damages.iter().map(|d| d.noise).sum::<f64>() + rest;
    let mut widths = bits_of(plan);
    let most = cost.mac_bits(&widths) as f64 * goal.cost;
    let mut order: Vec<&Damage> = damages.iter().collect();
    order.sort_by(|a, b| b.noise.total_cmp(&a.noise));
    let mut left = all;
    let mut out = Vec::new();
    for damage in order {
        if left <= goal.noise {
            break;
        }
        let Some(site) = plan.sites.iter_mut().find(|s| s.name == damage.site && may_widen(s)) else { continue };
        let Some(scheme) = with_bits(&site.scheme, bits).filter(|_| site.scheme.bits() < bits) else { continue };
        let before = widths.insert(site.name.clone(), bits);
        if cost.mac_bits(&widths) as f64 > most {
            before.map(|b| widths.insert(site.name.clone(), b));
            continue;
        }
        let widening = Widening { site: site.name.clone(), bits: Some(bits), share: damage.noise / all };
        site.scheme = scheme;
        site.searched(&widening.to_string());
        left -= damage.noise;
        out.push(widening);
    }
    (out, left)
}

/// Whether a site may have more bits: the integer softmax reads and writes codes of at most 8.
pub fn may_widen(site: &SitePlan) -> bool {
    !matches!(site.site.site, crate::vit::Site::KvAct | crate::vit::Site::IntSoft)
}

/// Leaves sites in float for as long as that costs no more than `share` of the model's multiply-accumulates, those first that
/// take most damage away for their cost, unless that leaves no room for one that takes away more. A site is worth it if its products'
/// sites do at least `worth` of the damage that is left.
///
/// Nothing more is left in float once the rest is predicted to leave `enough_db` at the outputs.
pub fn leave_in_float(
    plan: &mut QuantPlan,
    damages: &[Damage],
    cost: &Cost,
    share: f64,
    worth: f64,
    enough_db: f64,
) -> Vec<Widening> {
    let enough = 10f64.powf(-enough_db / 10.0);
    let all: f64 = damages.iter().map(|d| d.noise).sum();
    let noise = |name: &String| damages.iter().find(|d| d.site == *name).map_or(0.0, |d| d.noise);
    let mut allowed = (cost.macs() as f64 * share) as u64;
    let mut out: Vec<Widening> = Vec::new();
    let mut done: BTreeSet<String> = BTreeSet::new();
    loop {
        let left: f64 = damages.iter().filter(|d| !done.contains(&d.site)).map(|d| d.noise).sum();
        if left <= enough {
            break;
        }
        let group = |d: &Damage| {
            let (macs, sites) = cost.with(&d.site);
            let gain: f64 = sites.iter().map(&noise).sum();
            let fits = macs > 0 && macs <= allowed && gain >= worth * left && sites.contains(&d.site);
            fits.then_some(Group { gain, macs, sites })
        };
        let groups: Vec<Group> = damages.iter().filter(|d| !done.contains(&d.site)).filter_map(group).collect();
        let Some(Group { macs, sites, .. }) = next(&groups, allowed).cloned() else { break };
        allowed -= macs;
        for name in sites {
            let Some(at) = plan.sites.iter().position(|s| s.name == name) else { continue };
            let site = plan.sites.remove(at);
            let weights = site.site.weight;
            let widening = Widening { site: name.clone(), bits: None, share: noise(&name) / all };
            let reason = if weights { "what it multiplies stays in float".to_owned() } else { widening.to_string() };
            plan.float.push(FloatSite { name: name.clone(), site: site.site.site, reason });
            if !weights {
                out.push(widening);
            }
            done.insert(name);
        }
    }
    out
}

/// Sites that would be left in float together.
#[derive(Debug, Clone)]
struct Group {
    /// The damage that takes away.
    gain: f64,
    /// The multiply-accumulates that are in float then.
    macs: u64,
    sites: BTreeSet<String>,
}

/// The group that takes most damage away for its cost, unless one that takes away more no longer fits behind it: then that one.
fn next(groups: &[Group], allowed: u64) -> Option<&Group> {
    let per_mac = |g: &Group| g.gain / g.macs as f64;
    let best = groups.iter().max_by(|a, b| per_mac(a).total_cmp(&per_mac(b)))?;
    let left = allowed.saturating_sub(best.macs);
    let shut_out = groups.iter().filter(|g| g.gain > best.gain && g.macs > left);
    shut_out.max_by(|a, b| a.gain.total_cmp(&b.gain)).or(Some(best))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::plan::ZeroPoint;

    /// A cheap group must not take the room of one that does far more.
    #[test]
    fn what_takes_most_damage_away_is_not_shut_out_by_what_is_cheap() {
        let chosen = |groups: &[(f64, u64)], allowed| {
            let group = |&(gain, macs): &(f64, u64)| Group { gain, macs, sites: BTreeSet::new() };
            next(&groups.iter().map(group).collect::<Vec<_>>(), allowed).map(|g| g.macs)
        };
        let groups = [(2.0, 7), (5.0, 29), (1.0, 20)];
        assert_eq!(chosen(&groups, 34), Some(29));
        // Both fit: the one with most for its cost first.
        assert_eq!(chosen(&groups, 36), Some(7));
        // One that does less is no reason.
        assert_eq!(chosen(&[(2.0, 7), (1.9, 29)], 30), Some(7));
        assert_eq!(chosen(&[], 30), None);
    }

    /// Two segments become even codes that reach as far and are finer, about the same middles.
    #[test]
    fn segments_become_even_codes_over_their_range() {
        let segments = Segments { bits: 8, breakpoint: 96, shift: 2 };
        let codes = Codes { bits: 12, signed: true };
        for (zeros, exponents) in [([0, 50], [0, 5]), ([-1500, 7], [4, 4])] {
            let factors = Factors::new(&exponents, 2, &[0, 3]);
            let zero_point = ZeroPoint::Channels(zeros.to_vec());
            let grid = Scheme::Ptf { codes, scale: 0.5, zero_point, factors: factors.clone() };
            let wide = with_bits(&Scheme::Piecewise { grid: Box::new(grid), segments }, 16);
            let Some(Scheme::Ptf { codes, scale, zero_point, factors: wide }) = wide else { unreachable!("{wide:?}") };
            let each = factors.scales(0.5).into_iter().flatten().zip(wide.scales(scale).into_iter().flatten());
            for (((before, after), zero), z) in each.zip(zero_point.as_slice()).zip(zeros) {
                let (middle, reach) = (-before * z as f32, before * segments.level(segments.top()) as f32);
                let (low, high) = codes.range();
                let end = |code: i32| after * (code - zero) as f32;
                assert!(end(low) <= middle - 0.98 * reach && end(high) >= middle + 0.98 * reach, "{before} {after} {zero}");
                assert!(after <= before, "{after} for {before}");
            }
        }
    }

    #[test]
    fn a_small_share_is_not_called_none() {
        let said = |share, bits| Widening { site: "embed".into(), bits, share }.to_string();
        assert_eq!(said(0.004, Some(16)), "16 bits: with fewer it does less than 1 % of all damage at the outputs");
        assert_eq!(said(0.006, None), "float: in integers it does 1 % of all damage at the outputs");
        assert_eq!(said(0.93, None), "float: in integers it does 93 % of all damage at the outputs");
    }
}
