//! Running a plan and observing it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ndarray::{ArrayD, ArrayViewD, IxDyn};
use tract_onnx::tract_core::internal::*;

use super::{Engine, EngineError, Watch, error, panic_text};

/// What observes a tap: its index in the engine's list, its shape, and its elements in row-major order.
pub type OnTap<'a> = &'a mut dyn FnMut(usize, &[usize], &[f32]);

/// A state that one thread runs an [`Engine`]'s plan in.
#[derive(Debug)]
pub struct Session<'e> {
    pub(super) engine: &'e Engine,
    pub(super) state: TypedSimpleState,
}

impl<'e> Session<'e> {
    pub(super) fn new(engine: &'e Engine) -> Result<Self, EngineError> {
        let state = engine.plan.spawn().map_err(|e| EngineError::Run(error::one_line(&e)))?;
        Ok(Session { engine, state })
    }

    /// Runs the model once on the named inputs. Every tap is shown to `on_tap` exactly once, in an order that depends on the
    /// plan alone: constants first, then as they are computed. A tap of float32 is shown in place; one of another element
    /// type is converted. Gives the outputs by name, in the model's order, converted to float32.
    ///
    /// # Errors
    /// When an input is missing, unknown or of another shape than [`Engine::inputs`] says, and when an operator fails.
    pub fn run(
        &mut self,
        inputs: &[(&str, ArrayViewD<'_, f32>)],
        on_tap: OnTap<'_>,
    ) -> Result<Vec<(String, ArrayD<f32>)>, EngineError> {
        let fed = self.feed(inputs)?;
        let result = catch_unwind(AssertUnwindSafe(|| self.run_plan(fed, on_tap)));
        let failure = match result {
            Ok(Ok(outputs)) => return Ok(outputs),
            Ok(Err(e)) => error::one_line(&e),
            Err(panic) => panic_text(&*panic),
        };
        // A run that stopped half-way leaves values behind.
        self.state = Session::new(self.engine)?.state;
        Err(EngineError::Run(failure))
    }

    /// The inputs in the plan's order, copied once.
    pub(super) fn feed(&self, inputs: &[(&str, ArrayViewD<'_, f32>)]) -> Result<TVec<TValue>, EngineError> {
        let specs = self.engine.inputs();
        if let Some((name, _)) = inputs.iter().find(|(n, _)| specs.iter().all(|s| s.name != *n)) {
            let known = specs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join("', '");
            return Err(EngineError::Feed(format!("the model has no input '{name}'; its inputs are '{known}'")));
        }
        let mut fed = tvec![];
        for spec in specs {
            let Some((_, view)) = inputs.iter().find(|(n, _)| *n == spec.name) else {
                return Err(EngineError::Feed(format!(
                    "the model input '{}' is not fed; it takes shape {:?}",
                    spec.name, spec.shape
                )));
            };
            if view.shape() != spec.shape {
                return Err(EngineError::Feed(format!(
                    "the model input '{}' takes shape {:?}, and an array of shape {:?} was given; resize or batch it accordingly",
                    spec.name,
                    spec.shape,
                    view.shape()
                )));
            }
            let rows = view.as_standard_layout();
            let typed = || -> TractResult<Tensor> {
                let tensor = Tensor::from_shape(&spec.shape, rows.as_slice().unwrap_or_default())?;
                let dtype = super::convert::datum_type(spec.dtype).unwrap_or(DatumType::F32);
                Ok(tensor.cast_to_dt(dtype)?.into_owned())
            };
            fed.push(typed().map_err(|e| EngineError::Feed(error::one_line(&e)))?.into_tvalue());
        }
        Ok(fed)
    }

    fn run_plan(&mut self, inputs: TVec<TValue>, on_tap: OnTap<'_>) -> TractResult<Vec<(String, ArrayD<f32>)>> {
        let Engine { plan, outputs: names, watch, constants, .. } = self.engine;
        for (index, outlet) in constants {
            if let Some(value) = &plan.model().outlet_fact(*outlet)?.konst {
                show(*index, value, on_tap)?;
            }
        }
        let outputs = self.state.run_plan_with_eval(inputs, |ctx, op_state, node, inputs| {
            let mut out = tract_onnx::tract_core::plan::eval(ctx, op_state, node, inputs)?;
            if let Some(w) = watch.get(node.id) {
                observe(w, &mut out, on_tap)?;
            }
            Ok::<_, TractError>(out)
        })?;
        names.iter().zip(outputs).map(|(name, value)| Ok((name.clone(), array(&value)?))).collect()
    }
}

fn observe(watch: &Watch, out: &mut TVec<TValue>, on_tap: OnTap<'_>) -> TractResult<()> {
    for tap in &watch.taps {
        if let Some(value) = out.get(tap.slot) {
            show(tap.index, value, on_tap)?;
        }
    }
    for &slot in &watch.free {
        if let Some(value) = out.get_mut(slot) {
            *value = Tensor::zero_dt(value.datum_type(), &[0])?.into_tvalue();
        }
    }
    Ok(())
}

fn show(index: usize, value: &Tensor, on_tap: OnTap<'_>) -> TractResult<()> {
    let value = value.cast_to::<f32>()?;
    on_tap(index, value.shape(), value.try_as_plain_ram()?.as_slice::<f32>()?);
    Ok(())
}

fn array(value: &Tensor) -> TractResult<ArrayD<f32>> {
    let value = value.cast_to::<f32>()?;
    let elements = value.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
    Ok(ArrayD::from_shape_vec(IxDyn(value.shape()), elements)?)
}
