//! What several integration tests share: running a graph on made-up numbers.
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

pub mod block;
pub mod digits;

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};
use vitq::ir::{Dim, Model, Value};
use vitq::runtime::tract::{Engine, EngineOptions};

/// Numbers in [−1, 1) that look random and are the same everywhere (SplitMix64).
pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let next = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// The inputs' names and shapes; an open size becomes a number by its name.
pub fn input_shapes(model: &Model, sizes: &dyn Fn(&str) -> usize) -> BTreeMap<String, Vec<usize>> {
    let g = &model.graph;
    let inputs = g.inputs().iter().map(|&id| Value { node: id, port: 0 });
    inputs
        .map(|v| {
            let dims = g.info(v).and_then(|i| i.tensor_type()).and_then(|t| t.shape.clone()).unwrap();
            let size = |d: &Dim| match d {
                Dim::Value(n) => usize::try_from(*n).unwrap(),
                Dim::Param(name) => sizes(name),
                Dim::Unknown => sizes(""),
            };
            (g.value_name(v).to_owned(), dims.iter().map(size).collect())
        })
        .collect()
}

/// Made-up inputs of given shapes.
pub fn inputs(shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, ArrayD<f32>> {
    let arrays = shapes.iter().zip(1..).map(|((name, shape), seed)| {
        let data = numbers(seed, shape.iter().product());
        (name.clone(), ArrayD::from_shape_vec(IxDyn(shape), data).unwrap())
    });
    arrays.collect()
}

/// Runs a model; the outputs by name.
pub fn run(model: &Model, inputs: &BTreeMap<String, ArrayD<f32>>) -> Result<BTreeMap<String, ArrayD<f32>>, String> {
    let input_shapes = inputs.iter().map(|(n, a)| (n.clone(), a.shape().to_vec())).collect();
    let options = EngineOptions { input_shapes, ..EngineOptions::default() };
    let engine = Engine::new(model, &[], &options).map_err(|e| e.to_string())?;
    let fed: Vec<_> = engine.inputs().iter().map(|i| (i.name.as_str(), inputs[&i.name].view())).collect();
    let out = engine.session().and_then(|mut s| s.run(&fed, &mut |_, _, _| {})).map_err(|e| e.to_string())?;
    Ok(out.into_iter().collect())
}

/// The largest difference between two arrays of one shape, relative to the first's largest element.
pub fn relative_difference(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let largest = a.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    let difference = a.iter().zip(b).fold(0f64, |m, (x, y)| m.max((f64::from(*x) - f64::from(*y)).abs()));
    assert!(difference.is_finite() && largest.is_finite());
    difference / largest.max(1e-30)
}
