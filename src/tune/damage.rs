//! What the codes of one site do to the model's outputs, everything else being in float.
//!
//! Errors of different sites hardly depend on each other, so the noise at the outputs is nearly the sum of what each site does
//! alone. That makes a site's own damage the measure by which its parameters are chosen: it sees everything downstream, and,
//! unlike the difference that a site makes in a model full of noise, a few samples determine it.

use super::objective::{Assignment, Distance, Objective, Prefix};
use crate::quant::Scheme;
use crate::runtime::tract::EngineError;

/// Goes through a model from its beginning to its end, and measures sites on the way.
pub struct Walk<'a> {
    objective: &'a Objective,
    background: Assignment,
    /// What outputs are compared with.
    reference: Vec<Vec<f32>>,
    /// Σ of its squares.
    signal: f64,
    prefix: Prefix,
}

impl<'a> Walk<'a> {
    /// At the model's beginning. `background` is what stays as it is: everything in float, or clipped. What it puts out is what
    /// outputs are compared with.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn new(objective: &'a Objective, background: Assignment) -> Result<Walk<'a>, EngineError> {
        let reference = objective.outputs(&background)?;
        Walk::toward(objective, background, reference)
    }

    /// The same, compared with other outputs.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn toward(objective: &'a Objective, background: Assignment, reference: Vec<Vec<f32>>) -> Result<Walk<'a>, EngineError> {
        let prefix = objective.prefix(&background, 0)?;
        let signal = Distance::between(&reference, &reference).signal;
        Ok(Walk { objective, background, reference, signal, prefix })
    }

    /// Keeps the sites that this walk meets, in the order in which it does.
    pub fn order<T>(&self, sites: &mut Vec<T>, name: impl Fn(&T) -> &str) {
        sites.retain(|s| self.objective.has(name(s)));
        sites.sort_by_key(|s| self.objective.cut_before(name(s)));
    }

    /// Noise over signal of the outputs when a site has these codes, or none, and all else is as in the background. Sites
    /// should come in [order](Walk::order):
    /// to go back costs a run from the beginning.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn noise(&mut self, site: &str, scheme: Option<&Scheme>) -> Result<f64, EngineError> {
        self.noise_of(&[(site, scheme)])
    }

    /// The same for several sites at once.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn noise_of(&mut self, sites: &[(&str, Option<&Scheme>)]) -> Result<f64, EngineError> {
        Ok(self.noise_below(sites, f64::INFINITY)?.unwrap_or(f64::INFINITY))
    }

    /// The same if it is below a bound. Less is computed where it is not.
    ///
    /// # Errors
    /// As [`Walk::noise`].
    pub fn noise_below(&mut self, sites: &[(&str, Option<&Scheme>)], bound: f64) -> Result<Option<f64>, EngineError> {
        let cut = sites.iter().map(|(site, _)| self.objective.cut_before(site)).min().unwrap_or(0);
        if cut > self.prefix.cut {
            self.prefix = self.objective.advance(&self.prefix, &self.background, cut)?;
        } else if cut < self.prefix.cut {
            self.prefix = self.objective.prefix(&self.background, cut)?;
        }
        let mut alone = self.background.clone();
        sites.iter().for_each(|(site, scheme)| self.objective.set(&mut alone, site, *scheme));
        let most = bound * self.signal;
        let found = self.objective.distance_from(&self.prefix, &alone, &self.reference, most)?;
        Ok(found.map(Distance::ratio).filter(|&noise| noise < bound))
    }

    /// What a site does with these codes.
    ///
    /// # Errors
    /// As [`Walk::noise`].
    pub fn damage(&mut self, site: &str, scheme: &Scheme) -> Result<f64, EngineError> {
        self.noise(site, Some(scheme))
    }
}
