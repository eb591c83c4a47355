//! The integer kernels at the shapes of ViT-Tiny.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use vitq::quant::tables::layer_norm::{LayerNormSpec, LayerNormTables};
use vitq::quant::tables::log_softmax::{LogRounding, LogSoftmaxTables};
use vitq::quant::tables::{CodeType, Ptf};
use vitq::runtime::kernels::layer_norm::{PtfLayerNorm, ptf_layer_norm};
use vitq::runtime::kernels::log_softmax::{LogIntSoftmax, log_int_softmax};
use vitq::runtime::kernels::lut::lookup;
use vitq::runtime::kernels::requantize::Requantizer;

fn codes(count: usize) -> Vec<i8> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as i8
        })
        .collect()
}

fn kernels(c: &mut Criterion) {
    let table: Vec<i8> = codes(256);
    let x = codes(197 * 768);
    c.bench_function("LutGelu 1x197x768", |b| {
        b.iter(|| lookup(&x, &table).unwrap());
    });

    let t = LogSoftmaxTables::new(0.05, 197, 4, 0, LogRounding::Logarithm).unwrap();
    let softmax = LogIntSoftmax {
        exp_table: &t.exp_table,
        log_step: t.log_step,
        mantissa_table: &t.mantissa_table,
        bias: t.bias,
        shift: t.shift,
        top: t.top,
    };
    let x = codes(3 * 197 * 197);
    c.bench_function("LogIntSoftmax 1x3x197x197", |b| {
        b.iter(|| log_int_softmax(&x, 197, &softmax).unwrap());
    });

    let ones = [1.0; 192];
    let t = LayerNormTables::new(&LayerNormSpec {
        gamma: &ones,
        beta: &ones,
        eps: 1e-6,
        input: Ptf { scale: 0.01, zero_points: &[0; 192], multipliers: &[8; 192] },
        input_type: CodeType::Int8,
        output: Ptf { scale: 0.03, zero_points: &[0], multipliers: &[] },
        output_range: (-128, 127),
    })
    .unwrap();
    let norm = PtfLayerNorm {
        x_zero_points: &[0i8; 192],
        multiplier: &t.multiplier,
        eps: t.eps,
        gamma: &t.gamma,
        beta: &t.beta,
        shift: t.shift,
        y_range: [-128i8, 127],
    };
    let x = codes(197 * 192);
    c.bench_function("PtfLayerNorm 1x197x192", |b| {
        b.iter(|| ptf_layer_norm(&x, &norm).unwrap());
    });

    let requantizer = Requantizer::new(1_518_500_250, 40, 3, -128, 127).unwrap();
    let accumulators: Vec<i32> = codes(197 * 768).iter().map(|&v| i32::from(v) << 12).collect();
    c.bench_function("Requantize 1x197x768", |b| {
        b.iter(|| accumulators.iter().map(|&a| requantizer.apply(a) as i8).collect::<Vec<i8>>());
    });
}

criterion_group!(benches, kernels);
criterion_main!(benches);
