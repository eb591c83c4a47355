//! The executor as the calibration driver sees it.

use ndarray::{ArrayD, ArrayViewD};

use super::{Engine, Session};
use crate::calib::run::{Failure, Forward, ForwardSession, OnValue};

impl Forward for Engine {
    fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> {
        Ok(Box::new(Engine::session(self)?))
    }
}

impl ForwardSession for Session<'_> {
    fn run(&mut self, inputs: &[(String, ArrayD<f32>)], on_value: &mut OnValue<'_>) -> Result<Vec<ArrayD<f32>>, Failure> {
        let views: Vec<(&str, ArrayViewD<'_, f32>)> = inputs.iter().map(|(name, a)| (name.as_str(), a.view())).collect();
        let outputs = Session::run(self, &views, &mut |index, shape, values| on_value(index, shape, values))?;
        Ok(outputs.into_iter().map(|(_, array)| array).collect())
    }
}
