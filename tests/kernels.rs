//! Builders and kernels together, against arithmetic in f64.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use vitq::quant::tables::layer_norm::{LayerNormSpec, LayerNormTables};
use vitq::quant::tables::log_softmax::{LogRounding, LogSoftmaxTables, log_dequantize_table};
use vitq::quant::tables::lut::{Activation, activation_table};
use vitq::quant::tables::requantize::multiplier_and_shift;
use vitq::quant::tables::{Affine, CodeType, Ptf};
use vitq::runtime::kernels::layer_norm::{PtfLayerNorm, ptf_layer_norm};
use vitq::runtime::kernels::log_softmax::{LogIntSoftmax, log_int_softmax};
use vitq::runtime::kernels::lut::lookup;
use vitq::runtime::kernels::requantize::Requantizer;

fn softmax_constants(t: &LogSoftmaxTables) -> LogIntSoftmax<'_> {
    LogIntSoftmax {
        exp_table: &t.exp_table,
        log_step: t.log_step,
        mantissa_table: &t.mantissa_table,
        bias: t.bias,
        shift: t.shift,
        top: t.top,
    }
}

#[test]
fn gelu_of_every_code_is_the_rounded_gelu() {
    let input = Affine { scale: 0.06, zero_point: -20 };
    let output = Affine { scale: 0.03, zero_point: -122 };
    let table = activation_table(Activation::Gelu, input, CodeType::Int8, output, (-128, 127)).unwrap();
    let codes: Vec<i8> = (-128..=127).collect();
    for (code, y) in codes.iter().zip(lookup(&codes, &table).unwrap()) {
        let x = 0.06 * (f64::from(*code) + 20.0);
        // Abramowitz and Stegun 7.1.26: erf to 1.5e-7.
        let (t, z) = (x.abs() / 2f64.sqrt(), x.signum());
        let p = 1.0 / (1.0 + 0.327_591_1 * t);
        let series = p * (0.254_829_592 + p * (-0.284_496_736 + p * (1.421_413_741 + p * (-1.453_152_027 + p * 1.061_405_429))));
        let gelu = 0.5 * x * (1.0 + z * (1.0 - series * (-t * t).exp()));
        let exact = (gelu / 0.03 - 122.0).clamp(-128.0, 127.0);
        assert!((f64::from(y) - exact).abs() <= 0.5001, "{code}: {y} {exact}");
    }
}

proptest! {
    /// A requantised accumulator is the product's nearest code.
    #[test]
    fn requantised_accumulators_are_within_half_a_code(acc: i32, exponent in -30.0f64..0.0, zero in -128i32..128) {
        let ratio = exponent.exp2();
        let (multiplier, shift) = multiplier_and_shift(ratio).unwrap();
        let requantizer = Requantizer::new(multiplier, shift, zero, i32::MIN, i32::MAX).unwrap();
        let exact = f64::from(acc) * ratio + f64::from(zero);
        // Half a code and the multiplier's own rounding, 2^-31 of the product.
        let bound = 0.5 + f64::from(acc).abs() * ratio * 2f64.powi(-31) + 1e-6;
        let exact = exact.clamp(f64::from(i32::MIN), f64::from(i32::MAX));
        prop_assert!((f64::from(requantizer.apply(acc)) - exact).abs() <= bound);
    }

    /// Dequantised codes are within the factor that a step of the code allows.
    #[test]
    fn softmax_codes_stand_for_the_probabilities(
        row in proptest::collection::vec(any::<i8>(), 1..300),
        scale in 0.001f64..2.0,
        bits in 4u32..=8,
        r in 0u32..=4,
    ) {
        let t = LogSoftmaxTables::new(scale, row.len(), bits, r, LogRounding::Logarithm).unwrap();
        let values = log_dequantize_table(bits, r).unwrap();
        let codes = log_int_softmax(&row, row.len(), &softmax_constants(&t)).unwrap();
        let value = lookup(&codes, &values).unwrap();
        let sum: f64 = row.iter().map(|&q| (scale * f64::from(q)).exp()).sum();
        let steps = f64::from(1 << r);
        // Below this the table's f32 has no full precision, or no value at all.
        let smallest = (-f64::from(t.top - 1) / steps).exp2().max(f64::from(f32::MIN_POSITIVE));
        let factor = (0.53 / steps).exp2();
        for (&q, &v) in row.iter().zip(&value) {
            let p = (scale * f64::from(q)).exp() / sum;
            if v == 0.0 {
                prop_assert!(p < smallest);
            } else if v >= f32::MIN_POSITIVE {
                let ratio = p / f64::from(v);
                prop_assert!(ratio < factor && ratio > 1.0 / factor, "{p} {v}");
            }
        }
    }

    /// LayerNorm of any codes with any exponents is within one code of LayerNorm in f64.
    #[test]
    fn layer_norm_is_within_one_code(
        channels in 16usize..300,
        seed: u64,
        spread in 1i64..20_000,
        wide in 0u32..=8,
        zero in -1000i32..1000,
        own_zeros: bool,
    ) {
        let mut state = seed | 1;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as i64
        };
        let x: Vec<i16> = (0..channels).map(|_| (random() % (2 * spread + 1) - spread) as i16).collect();
        let factors: Vec<u32> = (0..channels).map(|_| (1 + random() as u32 % 7) << (random() % i64::from(wide / 2 + 1))).collect();
        let zeros: Vec<i16> = (0..if own_zeros { channels } else { 1 }).map(|c| zero as i16 - (c % 7) as i16 * 150).collect();
        let zero = |c: usize| i32::from(*zeros.get(c).unwrap_or(&zeros[0]));
        let gamma: Vec<f64> = (0..channels).map(|_| (random() % 4000 - 1000) as f64 / 1000.0).collect();
        let beta: Vec<f64> = (0..channels).map(|_| (random() % 2000 - 1000) as f64 / 1000.0).collect();
        let (scale, eps) = (0.02, 1e-6);
        let t = LayerNormTables::new(&LayerNormSpec {
            gamma: &gamma,
            beta: &beta,
            eps,
            input: Ptf { scale, zero_points: &zeros.iter().map(|&z| z.into()).collect::<Vec<i32>>(), multipliers: &factors },
            input_type: CodeType::Int16,
            output: Ptf { scale: 0.04, zero_points: &[7], multipliers: &[] },
            output_range: (-128, 127),
        }).unwrap();
        let y = ptf_layer_norm(&x, &PtfLayerNorm {
            x_zero_points: &zeros,
            multiplier: &t.multiplier,
            eps: t.eps,
            gamma: &t.gamma,
            beta: &t.beta,
            shift: t.shift,
            y_range: [-128i8, 127],
        }).unwrap();
        let real: Vec<f64> = x.iter().zip(&factors).enumerate()
            .map(|(c, (&q, &f))| scale * f64::from(f) * f64::from(i32::from(q) - zero(c)))
            .collect();
        let mean = real.iter().sum::<f64>() / channels as f64;
        let variance = real.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / channels as f64;
        for c in 0..channels {
            let z = (real[c] - mean) / (variance + eps).sqrt();
            let exact = ((z * gamma[c] + beta[c]) / 0.04 + 7.0).clamp(-128.0, 127.0);
            prop_assert!((f64::from(y[c]) - exact).abs() <= 0.51, "{} {exact}", y[c]);
        }
    }
}

/// The builders state the op's widths on their own (`quant` does not import the runtime); what they make must be accepted up
/// to the limit and just not beyond it.
#[test]
fn builders_and_kernels_agree_on_the_limits() {
    for channels in [1usize, 192, 768, 16384] {
        let (gamma, beta) = (vec![1.0; channels], vec![0.5; channels]);
        for input_type in [CodeType::Int8, CodeType::Uint8, CodeType::Int16, CodeType::Uint16] {
            for exponent in 0..=15 {
                let multipliers = vec![1u32 << exponent; channels];
                let zero_point = if input_type == CodeType::Uint16 { 65535 } else { 0 };
                let spec = LayerNormSpec {
                    gamma: &gamma,
                    beta: &beta,
                    eps: 1e-6,
                    input: Ptf { scale: 0.01, zero_points: &[zero_point], multipliers: &multipliers },
                    input_type,
                    output: Ptf { scale: 1e-4, zero_points: &[0], multipliers: &[] },
                    output_range: (-32768, 32767),
                };
                let multiplier = vec![1i64 << exponent; channels];
                let zeros = vec![0i64; channels];
                let built = LayerNormTables::new(&spec);
                let (m, g, b, eps, shift) = match &built {
                    Ok(t) => (&t.multiplier, &t.gamma, &t.beta, t.eps, t.shift),
                    Err(_) => (&multiplier, &zeros, &zeros, 0, 0),
                };
                macro_rules! accepted {
                    ($type:ty) => {
                        ptf_layer_norm::<$type, i16>(
                            &[],
                            &PtfLayerNorm {
                                x_zero_points: &[zero_point as $type],
                                multiplier: m,
                                eps,
                                gamma: g,
                                beta: b,
                                shift,
                                y_range: [i16::MIN, i16::MAX],
                            },
                        )
                        .is_ok()
                    };
                }
                let accepted = match input_type {
                    CodeType::Int8 => accepted!(i8),
                    CodeType::Uint8 => accepted!(u8),
                    CodeType::Int16 => accepted!(i16),
                    CodeType::Uint16 => accepted!(u16),
                };
                assert_eq!(built.is_ok(), accepted, "{channels} {input_type:?} {exponent}");
            }
        }
    }
    let t = LogSoftmaxTables::new(100.0, 32767, 8, 0, LogRounding::Probability).unwrap();
    let x = vec![0i8; 32767];
    assert!(log_int_softmax(&x, 32767, &softmax_constants(&t)).is_ok());
}
