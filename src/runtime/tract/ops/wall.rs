//! The identity, opaque to tract: no change of axes moves across it, so what reads it reads the value in ONNX's own order.

use tract_onnx::tract_hir::internal::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wall;

impl Op for Wall {
    fn name(&self) -> StaticName {
        "Wall".into()
    }
    op_as_typed_op!();
}

impl EvalOp for Wall {
    op_out_of_plan!();
    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Wall {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }
    as_op!();
}

/// Of any element type and shape.
pub(in super::super) fn wall() -> Box<dyn InferenceOp> {
    inference_wrap(Wall, 1, |_, s, inputs, outputs| {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)
    })
}
