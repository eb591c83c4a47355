//! Running parts of a plan again: what the search for better parameters does thousands of times.
//!
//! Where a single value is alive (between two blocks, say), a run can be cut: the value is kept, and what comes after is run from
//! it again and again with other parameters, without what comes before.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ndarray::ArrayViewD;
use tract_onnx::tract_core::internal::*;

use super::{Engine, EngineError, Session, error, panic_text};

/// What changes a tap's elements while the plan runs: the tap's index in the engine's list, its shape, and its elements in
/// row-major order. What it leaves there is what the operators behind it read.
pub type OnChange<'a> = &'a mut dyn FnMut(usize, &[usize], &mut [f32]);

/// The values that are alive at a cut: what the rest of a run needs of what came before.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The first step that is still to run.
    step: usize,
    /// By node of the plan.
    alive: BTreeMap<usize, TVec<Arc<Tensor>>>,
}

/// When the values of a plan are computed and dropped, and where a run of it may be cut.
#[derive(Debug)]
pub struct Schedule {
    /// Steps of the plan before which one value alone is alive, ascending; the first is 0, before everything.
    cuts: Vec<usize>,
    /// By tap: the step that computes it, `None` for a constant one.
    taps: Vec<Option<usize>>,
    /// By step: the nodes whose values it is the last to read.
    last_reads: Vec<Vec<usize>>,
}

impl Schedule {
    /// How many cuts there are; they are counted from 0, and the first is the beginning.
    pub fn cuts(&self) -> usize {
        self.cuts.len()
    }

    /// The first cut before which all of these taps are computed; `None` when that is the end.
    pub fn cut_after(&self, taps: &[usize]) -> Option<usize> {
        let last = taps.iter().filter_map(|&t| self.taps.get(t).copied().flatten()).max()?;
        let cut = self.cuts.partition_point(|&s| s <= last);
        (cut < self.cuts.len()).then_some(cut)
    }

    /// The step that computes a tap, `None` for a constant one: the order of the data flow.
    pub fn step(&self, tap: usize) -> Option<usize> {
        self.taps.get(tap).copied().flatten()
    }

    /// The last cut behind which all of these taps are computed.
    pub fn cut_before(&self, taps: &[usize]) -> usize {
        let first = taps.iter().filter_map(|&t| self.taps.get(t).copied().flatten()).min().unwrap_or(0);
        self.cuts.partition_point(|&s| s <= first).saturating_sub(1)
    }
}

impl Engine {
    /// When this engine computes what. `taps` is the length of the list of taps that it was made with.
    pub fn schedule(&self, taps: usize) -> Schedule {
        let (model, order) = (self.plan.model(), self.plan.order_without_consts());
        let mut step_of = vec![None; model.nodes().len()];
        for (step, &node) in order.iter().enumerate() {
            step_of[node] = Some(step);
        }
        let end = order.len();
        // The model's own: what stands behind them are taps that nothing reads.
        let outputs = model.outputs.get(..self.outputs.len()).unwrap_or_default();
        let mut last_reads = vec![Vec::new(); end + 1];
        // How many values more are alive before a step than before the one ahead of it.
        let mut change = vec![0i64; end + 2];
        for (step, &node) in order.iter().enumerate() {
            let readers = model.node(node).outputs.iter().flat_map(|o| &o.successors).filter_map(|s| step_of[s.node]);
            let last = if outputs.iter().any(|o| o.node == node) { end } else { readers.max().unwrap_or(step) };
            last_reads[last].push(node);
            change[step + 1] += 1;
            change[last + 1] -= 1;
        }
        let alive = change.iter().scan(0, |n, c| {
            *n += c;
            Some(*n)
        });
        let cuts = alive.take(end).enumerate().filter(|&(step, n)| step == 0 || n == 1).map(|(step, _)| step).collect();
        let mut of_taps = vec![None; taps];
        for (node, watch) in self.watch.iter().enumerate() {
            for tap in &watch.taps {
                if let Some(slot) = of_taps.get_mut(tap.index) {
                    *slot = step_of[node];
                }
            }
        }
        Schedule { cuts, taps: of_taps, last_reads }
    }
}

impl Session<'_> {
    /// Runs the model on the named inputs up to a cut (below [`Schedule::cuts`]), or to its end for `None`.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn start(
        &mut self,
        inputs: &[(&str, ArrayViewD<'_, f32>)],
        schedule: &Schedule,
        until: Option<usize>,
        on_change: OnChange<'_>,
    ) -> Result<Snapshot, EngineError> {
        let fed = self.feed(inputs)?;
        self.caught(|session| {
            session.state.set_inputs(fed)?;
            session.part(0, schedule, until, on_change)
        })
    }

    /// Goes on from a snapshot, up to a cut, or to the end for `None`.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn resume(
        &mut self,
        from: &Snapshot,
        schedule: &Schedule,
        until: Option<usize>,
        on_change: OnChange<'_>,
    ) -> Result<Snapshot, EngineError> {
        self.caught(|session| {
            session.ready()?;
            for (&node, values) in &from.alive {
                session.state.set_values(node, values.iter().map(|v| v.clone().into_tvalue()).collect())?;
            }
            session.part(from.step, schedule, until, on_change)
        })
    }

    /// The model's outputs in a snapshot of its end, flat and in float32, in the model's order.
    ///
    /// # Errors
    /// When the snapshot is not one of the end.
    pub fn outputs(&self, end: &Snapshot) -> Result<Vec<Vec<f32>>, EngineError> {
        let of = |o: &OutletId| -> TractResult<Vec<f32>> {
            let value = end.alive.get(&o.node).and_then(|v| v.get(o.slot)).context("the run has not reached its end")?;
            Ok(value.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        };
        let outputs = self.engine.plan.model().outputs.iter().take(self.engine.outputs.len());
        outputs.map(of).collect::<TractResult<_>>().map_err(|e| EngineError::Run(error::one_line(&e)))
    }

    fn caught(&mut self, run: impl FnOnce(&mut Self) -> TractResult<Snapshot>) -> Result<Snapshot, EngineError> {
        let result = catch_unwind(AssertUnwindSafe(|| run(self)));
        let failure = match result {
            Ok(Ok(snapshot)) => return Ok(snapshot),
            Ok(Err(e)) => error::one_line(&e),
            Err(panic) => panic_text(&*panic),
        };
        self.state = Session::new(self.engine)?.state;
        Err(EngineError::Run(failure))
    }

    /// Has the state hold the plan's constants, which a first input brings along.
    fn ready(&mut self) -> TractResult<()> {
        if self.state.turn_state.values.is_empty() {
            let model = self.engine.plan.model();
            let Some(&input) = model.inputs.first() else { return Ok(()) };
            let fact = model.outlet_fact(input)?;
            let zeros = Tensor::zero_dt(fact.datum_type, fact.shape.as_concrete().unwrap_or(&[]))?;
            self.state.set_input(0, zeros.into_tvalue())?;
        }
        Ok(())
    }

    fn part(
        &mut self,
        first: usize,
        schedule: &Schedule,
        until: Option<usize>,
        on_change: OnChange<'_>,
    ) -> TractResult<Snapshot> {
        let Engine { plan, watch, .. } = self.engine;
        let order = plan.order_without_consts();
        let until = until.and_then(|c| schedule.cuts.get(c).copied()).unwrap_or(order.len());
        for (step, &id) in order.iter().enumerate().take(until).skip(first) {
            let inputs = self.state.prepare_inputs(id)?;
            for &read in schedule.last_reads.get(step).into_iter().flatten().filter(|&&n| n != id) {
                self.state.turn_state.values[read] = None;
            }
            self.state.compute_one_with_inputs(id, inputs)?;
            if let Some(w) = watch.get(id)
                && let Some(out) = self.state.turn_state.values[id].as_mut()
            {
                for tap in &w.taps {
                    if let Some(value) = out.get_mut(tap.slot) {
                        change(tap.index, value, on_change)?;
                    }
                }
            }
            if schedule.last_reads.get(step).is_some_and(|read| read.contains(&id)) {
                self.state.turn_state.values[id] = None;
            }
        }
        let mut alive = BTreeMap::new();
        for &id in order {
            if let Some(values) = self.state.turn_state.values[id].take() {
                alive.insert(id, values.into_iter().map(|v| v.into_arc_tensor()).collect());
            }
        }
        Ok(Snapshot { step: until, alive })
    }
}

fn change(index: usize, value: &mut TValue, on_change: OnChange<'_>) -> TractResult<()> {
    if value.datum_type() != DatumType::F32 {
        return Ok(());
    }
    let empty = Tensor::zero_dt(DatumType::F32, &[0])?.into_tvalue();
    let mut tensor = std::mem::replace(value, empty).into_tensor();
    let shape: TVec<usize> = tensor.shape().into();
    on_change(index, &shape, tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
    *value = tensor.into_tvalue();
    Ok(())
}
