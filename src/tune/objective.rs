//! What a quantised model computes, and how far that is from the float model at its outputs, without lowering it: the float
//! model runs in the executor, and every site goes through its codes on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Sum;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::calib::run::Named;
use crate::ir::{CANONICAL_OPSET, Graph, Model, Tensor, shape};
use crate::parallel;
use crate::quant::fake::{FakeQuant, fake_constant};
use crate::quant::{QuantPlan, Scheme};
use crate::runtime::tract::{Engine, EngineError, EngineOptions, Schedule, Session, Snapshot};
use crate::vit::SiteRef;

/// Sums of floats in different orders differ by less than this part.
const SLACK: f64 = 1e-9;

/// What the outputs differ from the float model's by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// Σ ref² over all samples and outputs.
    pub signal: f64,
    /// Σ (ref − x)².
    pub noise: f64,
}

impl Distance {
    /// Of outputs from a reference, sample by sample.
    pub fn between(reference: &[Vec<f32>], outputs: &[Vec<f32>]) -> Distance {
        reference.iter().zip(outputs).map(|(a, b)| Distance::of(a, b)).sum()
    }

    /// The same for one sample.
    fn of(reference: &[f32], outputs: &[f32]) -> Distance {
        let found = reference.iter().zip(outputs).fold(Distance::default(), |d, (&a, &b)| {
            let (a, b) = (f64::from(a), f64::from(b));
            Distance { signal: d.signal + a * a, noise: d.noise + (a - b) * (a - b) }
        });
        // Nothing is farther away than what is no number.
        if found.noise.is_nan() { Distance { noise: f64::INFINITY, ..found } } else { found }
    }

    /// 10·log10(signal / noise), in dB.
    pub fn sqnr_db(self) -> f64 {
        10.0 * (self.signal / self.noise.max(f64::MIN_POSITIVE)).log10()
    }

    /// noise / signal.
    pub fn ratio(self) -> f64 {
        self.noise / self.signal.max(f64::MIN_POSITIVE)
    }
}

impl Sum for Distance {
    fn sum<I: Iterator<Item = Distance>>(all: I) -> Distance {
        all.fold(Distance::default(), |a, b| Distance { signal: a.signal + b.signal, noise: a.noise + b.noise })
    }
}

/// Every activation site's codes, by tap: `None` leaves it in float.
#[derive(Debug, Clone, Default)]
pub struct Assignment(Vec<Option<FakeQuant>>);

/// Every sample's values at one cut.
#[derive(Debug)]
pub struct Prefix {
    /// The cut.
    pub cut: usize,
    snapshots: Vec<Snapshot>,
}

/// A model to simulate on some samples.
pub struct Objective {
    engine: Engine,
    schedule: Schedule,
    inputs: Vec<Named>,
    sites: BTreeMap<String, Vec<usize>>,
    taps: usize,
    /// Where the channels of each tap are, counted from the end.
    channels: Vec<usize>,
    /// How many values are watched; their taps follow those of the sites.
    watched: usize,
    threads: usize,
}

/// The values that a simulation changes for a site: the first, and those at which something is joined to it.
fn changed<'a>(graph: &Graph, site: &'a SiteRef) -> Vec<&'a String> {
    let joins = |name: &&String| graph.value(name).is_some_and(|v| graph.is_op(v.node, "Concat"));
    let first = site.values.iter().take(1);
    first.chain(site.values.iter().skip(1).filter(joins)).collect()
}

impl Objective {
    /// Of a model whose constants are what their codes mean ([`with_constants`]).
    ///
    /// # Errors
    /// When the executor cannot run the model.
    pub fn new(
        model: &Model,
        sites: &[SiteRef],
        inputs: Vec<Named>,
        options: &EngineOptions,
        threads: usize,
    ) -> Result<Objective, EngineError> {
        Objective::watching(model, sites, &[], inputs, options, threads)
    }

    /// The same, with values by name that [`watch`](Objective::watch) shows as the sites' codes leave them.
    ///
    /// # Errors
    /// As [`Objective::new`].
    pub fn watching(
        model: &Model,
        sites: &[SiteRef],
        watched: &[String],
        inputs: Vec<Named>,
        options: &EngineOptions,
        threads: usize,
    ) -> Result<Objective, EngineError> {
        let mut taps: Vec<String> = Vec::new();
        let mut of_sites = BTreeMap::new();
        for site in sites.iter().filter(|s| !s.weight) {
            let values = changed(&model.graph, site);
            of_sites.insert(site.full_name(), (taps.len()..taps.len() + values.len()).collect());
            taps.extend(values.into_iter().cloned());
        }
        let sites = taps.len();
        let shapes = shape::infer(&model.graph, CANONICAL_OPSET);
        let channels = |name: &String| {
            let value = model.graph.value(name);
            value.map_or(1, |v| shapes.channels_from_end(&model.graph, v))
        };
        let channels = taps.iter().map(channels).collect();
        taps.extend_from_slice(watched);
        let engine = Engine::changeable(model, &taps, options)?;
        let schedule = engine.schedule(taps.len());
        Ok(Objective { engine, schedule, inputs, sites: of_sites, taps: sites, channels, watched: watched.len(), threads })
    }

    /// Everything in float.
    pub fn float(&self) -> Assignment {
        Assignment(vec![None; self.taps])
    }

    /// The codes of a plan's sites.
    pub fn assignment(&self, plan: &QuantPlan) -> Assignment {
        let mut all = self.float();
        for site in &plan.sites {
            self.set(&mut all, &site.name, Some(&site.scheme));
        }
        all
    }

    /// Gives a site other codes, or none.
    pub fn set(&self, assignment: &mut Assignment, site: &str, scheme: Option<&Scheme>) {
        for &tap in self.sites.get(site).into_iter().flatten() {
            if let Some(slot) = assignment.0.get_mut(tap) {
                *slot = scheme.and_then(FakeQuant::of);
            }
        }
    }

    /// Holds a site within ±`bound`, in float.
    pub fn clip(&self, assignment: &mut Assignment, site: &str, bound: f32) {
        for &tap in self.sites.get(site).into_iter().flatten() {
            if let Some(slot) = assignment.0.get_mut(tap) {
                *slot = Some(FakeQuant::clip(bound));
            }
        }
    }

    /// Whether a site has a value here: of a sum of which only the class token's row is left, the other rows' site has none.
    pub fn has(&self, site: &str) -> bool {
        self.sites.get(site).is_some_and(|taps| !taps.is_empty())
    }

    /// How many cuts there are.
    pub fn cuts(&self) -> usize {
        self.schedule.cuts()
    }

    /// The last cut before a site.
    pub fn cut_before(&self, site: &str) -> usize {
        self.schedule.cut_before(self.sites.get(site).map_or(&[], Vec::as_slice))
    }

    /// Every sample's values at a cut, from the beginning.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn prefix(&self, assignment: &Assignment, cut: usize) -> Result<Prefix, EngineError> {
        let snapshots = self.each(|s, i| self.begin(s, i, assignment, Some(cut)))?;
        Ok(Prefix { cut, snapshots })
    }

    /// Every sample's values at a later cut.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn advance(&self, from: &Prefix, assignment: &Assignment, cut: usize) -> Result<Prefix, EngineError> {
        let go = |s: &mut Session<'_>, i: usize| {
            s.resume(&from.snapshots[i], &self.schedule, Some(cut), &mut |t, shape, x| self.change(assignment, t, shape, x))
        };
        Ok(Prefix { cut, snapshots: self.each(go)? })
    }

    /// All outputs of every sample, flat.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn outputs(&self, assignment: &Assignment) -> Result<Vec<Vec<f32>>, EngineError> {
        self.each(|s, i| {
            let end = self.begin(s, i, assignment, None)?;
            Ok(s.outputs(&end)?.concat())
        })
    }

    /// How far the outputs are from a reference, run from a cut, before which the assignment is as it was when the prefix was made.
    /// `None` for noise above `most`, a bound to the last digits: samples that cannot change that are not run.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn distance_from(
        &self,
        from: &Prefix,
        assignment: &Assignment,
        reference: &[Vec<f32>],
        most: f64,
    ) -> Result<Option<Distance>, EngineError> {
        // Workers add to it in any order, so its last digits are not always the same.
        let so_far = Mutex::new(0.0);
        let noise = || so_far.lock().unwrap_or_else(PoisonError::into_inner);
        let distances = self.each(|s, i| {
            if *noise() > most * (1.0 + SLACK) {
                return Ok(None);
            }
            let end =
                s.resume(&from.snapshots[i], &self.schedule, None, &mut |t, shape, x| self.change(assignment, t, shape, x))?;
            let distance = Distance::of(reference.get(i).map_or(&[], Vec::as_slice), &s.outputs(&end)?.concat());
            *noise() += distance.noise;
            Ok(Some(distance))
        })?;
        Ok(distances.into_iter().collect::<Option<Vec<_>>>().map(|all| all.into_iter().sum()))
    }

    /// All outputs of every sample from a cut, with a watched value changed: `disturb` gets its shape and its elements.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn outputs_disturbed(
        &self,
        from: &Prefix,
        assignment: &Assignment,
        watched: usize,
        disturb: impl Fn(&[usize], &mut [f32]) + Sync,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let tap = self.taps + watched;
        self.each(|s, i| {
            let mut on_change = |t: usize, shape: &[usize], x: &mut [f32]| {
                self.change(assignment, t, shape, x);
                if t == tap {
                    disturb(shape, x);
                }
            };
            let end = s.resume(&from.snapshots[i], &self.schedule, None, &mut on_change)?;
            Ok(s.outputs(&end)?.concat())
        })
    }

    /// The watched values of every sample: `see` makes something of each (its number, shape and elements), and `take` gets what
    /// came of a sample, by number, one sample after the other in their order. It runs from a prefix, before which the assignment
    /// is as it was when that was made, and no further than these values need.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn watch<T: Send>(
        &self,
        from: &Prefix,
        assignment: &Assignment,
        watched: &BTreeSet<usize>,
        see: impl Fn(usize, &[usize], &[f32]) -> T + Sync,
        take: impl FnMut(Vec<(usize, T)>) + Send,
    ) -> Result<(), EngineError> {
        let taps: Vec<usize> = watched.iter().map(|w| self.taps + w).collect();
        let until = self.schedule.cut_after(&taps);
        let turn = Mutex::new((0usize, take));
        let next = Condvar::new();
        self.each(|s, i| {
            let mut seen = Vec::new();
            let mut on_change = |t: usize, shape: &[usize], x: &mut [f32]| {
                self.change(assignment, t, shape, x);
                if taps.contains(&t) {
                    seen.push((t - self.taps, see(t - self.taps, shape, x)));
                }
            };
            let run = s.resume(&from.snapshots[i], &self.schedule, until, &mut on_change);
            // Sums of floats depend on their order.
            let mut turn = next
                .wait_while(turn.lock().unwrap_or_else(PoisonError::into_inner), |t| t.0 != i)
                .unwrap_or_else(PoisonError::into_inner);
            if run.is_ok() {
                (turn.1)(seen);
            }
            turn.0 += 1;
            next.notify_all();
            run.map(drop)
        })?;
        Ok(())
    }

    /// The order of a watched value in the data flow: the last cut before it, and the step that computes it.
    pub fn place(&self, watched: usize) -> (usize, usize) {
        let tap = self.taps + watched.min(self.watched.saturating_sub(1));
        (self.schedule.cut_before(&[tap]), self.schedule.step(tap).unwrap_or(0))
    }

    fn begin(
        &self,
        session: &mut Session<'_>,
        i: usize,
        assignment: &Assignment,
        until: Option<usize>,
    ) -> Result<Snapshot, EngineError> {
        let views: Vec<_> = self.inputs[i].iter().map(|(name, array)| (name.as_str(), array.view())).collect();
        session.start(&views, &self.schedule, until, &mut |t, shape, x| self.change(assignment, t, shape, x))
    }

    /// What `run` gives for every sample, in their order, on all workers.
    fn each<T: Send>(
        &self,
        run: impl Fn(&mut Session<'_>, usize) -> Result<T, EngineError> + Sync,
    ) -> Result<Vec<T>, EngineError> {
        parallel::try_map(self.inputs.len(), self.threads, || self.engine.session(), run)
    }

    /// What a tap's codes make of its value.
    fn change(&self, assignment: &Assignment, tap: usize, shape: &[usize], data: &mut [f32]) {
        let Some(Some(fake)) = assignment.0.get(tap) else { return };
        match self.channels.get(tap) {
            Some(&from_end) if from_end > 1 => fake.apply_to_runs(data, shape.iter().rev().take(from_end - 1).product()),
            _ => fake.apply(data, shape.last().copied().unwrap_or(1)),
        }
    }
}

/// The constants of a plan as their codes mean them, by name.
///
/// # Errors
/// When a scheme does not fit its tensor.
pub fn fake_constants<'a>(
    plan: &'a QuantPlan,
    tensor: impl Fn(&str) -> Option<&'a Tensor>,
) -> Result<BTreeMap<String, Tensor>, String> {
    let mut out = BTreeMap::new();
    for (name, scheme) in plan.constants() {
        if let (Some(constant), Some(tensor)) = (scheme.constant(), tensor(name)) {
            out.insert(name.to_owned(), fake_constant(tensor, &constant)?);
        }
    }
    Ok(out)
}
