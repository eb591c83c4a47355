//! The reference executor: runs a model in tract, for calibration, for float evaluation and to simulate quantised models.
//! The only place that names tract.
//!
//! An [`Engine`] is one optimised plan that threads share; each thread runs it in a [`Session`] of its own. Values asked for
//! as *taps* are shown to a callback while the plan runs and are kept no longer than the plan itself needs them, so that
//! memory does not grow with their number. Results do not depend on the number of threads or of taps' readers.

mod build;
mod convert;
mod error;
mod forward;
mod ops;
mod replay;
mod session;
mod support;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_onnx::tract_core::internal::{OutletId, TypedModel, TypedSimplePlan};
use tract_onnx::tract_hir::internal::InferenceModelExt;

pub use error::EngineError;
pub use replay::{OnChange, Schedule, Snapshot};
pub use session::{OnTap, Session};

use crate::ir::{DType, Model, Value};

/// How a model is made concrete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// The size of an open first axis of an input.
    pub batch: usize,
    /// Whole shapes of inputs by name, where open axes other than the first have to be settled.
    pub input_shapes: BTreeMap<String, Vec<usize>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { batch: 1, input_shapes: BTreeMap::new() }
    }
}

/// A model input that a caller feeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its element type: float, or float16, into which what is fed is rounded.
    pub dtype: DType,
    /// Its concrete shape.
    pub shape: Vec<usize>,
}

/// Where a tap is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tap {
    slot: usize,
    /// The index in the caller's list.
    index: usize,
}

/// What the observer needs to know of one node of the plan.
#[derive(Debug, Clone, Default)]
struct Watch {
    taps: Vec<Tap>,
    /// Outputs that nothing but the observer reads: they are freed as soon as it has seen them.
    free: Vec<usize>,
}

/// One optimised plan of a model.
#[derive(Debug)]
pub struct Engine {
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<InputSpec>,
    outputs: Vec<String>,
    /// By node of the plan.
    watch: Vec<Watch>,
    /// Taps whose value optimisation found to be constant.
    constants: Vec<(usize, OutletId)>,
}

impl Engine {
    /// Loads a model and optimises it such that every tap stays observable. `taps` are names of values; a name may recur.
    /// Weights are copied once, out of `model`. Constants are folded, so a DequantizeLinear of a weight costs nothing a run.
    ///
    /// # Errors
    /// When a node, an attribute or an element type is not implemented (the error names the node), a tap names no value, an
    /// input's shape stays open, or shapes contradict each other.
    pub fn new(model: &Model, taps: &[String], options: &EngineOptions) -> Result<Engine, EngineError> {
        // tract panics on some malformed graphs; a user's file must end in an error instead.
        catch_unwind(AssertUnwindSafe(|| Engine::load(model, taps, &BTreeSet::new(), options)))
            .unwrap_or_else(|panic| Err(EngineError::Load(panic_text(&*panic))))
            .map(|(engine, _)| engine)
    }

    /// The same, where what is put in a tap's place ([`Session::resume`]) is what the operators behind it read. tract may read the
    /// output of a patch convolution before its axes are in ONNX's order, past the tap. Found are taps that nothing reads any more.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn changeable(model: &Model, taps: &[String], options: &EngineOptions) -> Result<Engine, EngineError> {
        let load = || -> Result<Engine, EngineError> {
            let mut walls = BTreeSet::new();
            loop {
                let (engine, passed) = Engine::load(model, taps, &walls, options)?;
                let before = walls.len();
                walls.extend(passed);
                if walls.len() == before {
                    return Ok(engine);
                }
            }
        };
        catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| Err(EngineError::Load(panic_text(&*panic))))
    }

    /// Behind the values of `walls` nothing reads past them. Also gives the taps that have readers in the graph and none in the plan.
    fn load(
        model: &Model,
        taps: &[String],
        walls: &BTreeSet<Value>,
        options: &EngineOptions,
    ) -> Result<(Engine, Vec<Value>), EngineError> {
        let g = &model.graph;
        let real = g.outputs().len();
        let mut wanted: Vec<Value> = g.outputs().to_vec();
        for name in taps {
            wanted.push(g.value(name).ok_or_else(|| unknown_tap(model, name))?);
        }
        let loaded = build::load(model, &wanted, walls, options)?;
        let mut pins: Vec<OutletId> = loaded.wanted.clone();
        pins.sort_unstable();
        pins.dedup();
        let place = |o: &OutletId| pins.binary_search(o).unwrap_or_default();
        let places: Vec<usize> = loaded.wanted.iter().map(place).collect();
        let failed = |e| EngineError::Load(error::one_line(&e));
        let optimised = optimise(loaded.model, &pins).map_err(failed)?;
        let pinned = optimised.outputs.clone();
        let outlets: Vec<OutletId> = places.iter().filter_map(|&p| pinned.get(p).copied()).collect();
        let outputs: Vec<OutletId> = outlets.iter().take(real).copied().collect();
        let is_passed = |&(&v, &o): &(&Value, &OutletId)| {
            let computed = optimised.outlet_fact(o).is_ok_and(|f| f.konst.is_none());
            computed && optimised.outlet_successors(o).is_empty() && !g.uses(v).is_empty()
        };
        let passed = wanted.iter().zip(&outlets).skip(real).filter(is_passed).map(|(&v, _)| v).collect();
        let engine = Engine::plan(optimised, &outputs, outlets.get(real..).unwrap_or_default()).map_err(failed)?;
        let names = g.outputs().iter().map(|&v| g.value_name(v).to_owned()).collect();
        Ok((Engine { inputs: loaded.inputs, outputs: names, ..engine }, passed))
    }

    /// Un-pins the taps: the plan computes the real outputs and, of the taps, those that nothing else leads to.
    fn plan(mut model: TypedModel, outputs: &[OutletId], taps: &[OutletId]) -> Result<Engine, tract_onnx::prelude::TractError> {
        let mut watch = vec![Watch::default(); model.nodes().len()];
        let mut constants = Vec::new();
        let mut kept = outputs.to_vec();
        for (index, &outlet) in taps.iter().enumerate() {
            if model.outlet_fact(outlet)?.konst.is_some() {
                constants.push((index, outlet));
                continue;
            }
            let Some(w) = watch.get_mut(outlet.node) else { continue };
            w.taps.push(Tap { slot: outlet.slot, index });
            if model.outlet_successors(outlet).is_empty() && !kept.contains(&outlet) {
                kept.push(outlet);
                w.free.push(outlet.slot);
            }
        }
        model.select_output_outlets(&kept)?;
        Ok(Engine { plan: TypedSimplePlan::new(model)?, inputs: vec![], outputs: vec![], watch, constants })
    }

    /// The inputs to feed, in the model's order.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.inputs
    }

    /// The names of the outputs, in the model's order.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// A state to run the plan in; one for each thread.
    ///
    /// # Errors
    /// When an operator cannot prepare its state.
    pub fn session(&self) -> Result<Session<'_>, EngineError> {
        Session::new(self)
    }
}

/// Analyses and optimises with every pinned outlet as an output: nothing is fused across it.
fn optimise(
    mut model: tract_onnx::tract_hir::internal::InferenceModel,
    pins: &[OutletId],
) -> Result<TypedModel, tract_onnx::prelude::TractError> {
    model.select_output_outlets(pins)?;
    model.into_typed()?.into_optimized()
}

fn unknown_tap(model: &Model, name: &str) -> EngineError {
    let g = &model.graph;
    let names = g.node_ids().into_iter().flat_map(|id| g.get(id).map_or(&[][..], |n| &n.outputs));
    let scored = names.map(|n| (strsim::normalized_levenshtein(n, name), n)).filter(|(s, _)| *s > 0.6);
    let near = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = near.map_or_else(String::new, |(_, n)| format!("; the nearest name is '{n}'"));
    EngineError::UnknownTap { name: name.to_owned(), hint }
}

/// What a panic said, as one line.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it stopped without a reason").split_whitespace().collect::<Vec<_>>().join(" ")
}
