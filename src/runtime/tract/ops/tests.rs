#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use crate::ir::{AI_VITQ, AttrValue, DType, NewOp, OpName, Tensor, Value};
use crate::runtime::tract::convert;
use crate::runtime::tract::testing::{Build, array, refused, run, values};

#[test]
fn quantize_rounds_ties_to_even_and_saturates() {
    let mut b = Build::fixed(&[10]);
    let q = b.linear("QuantizeLinear", "q", b.x(), Tensor::scalar(0.5f32), Some(Tensor::scalar(3i8)), None);
    let model = b.model(&[q]);
    // x / 0.5 = 0.5, 1.5, 2.5, −0.5, −1.5, 1000, −1000, NaN, inf, −inf
    let x = array(&[10], &[0.25, 0.75, 1.25, -0.25, -0.75, 500.0, -500.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    assert_eq!(values(&run(&model, &[], &x).0[0]), [3.0, 5.0, 5.0, 3.0, 1.0, 127.0, -128.0, -128.0, 127.0, -128.0]);
}

#[test]
fn quantize_divides_by_the_scale() {
    // Codes half-way between two integers, give or take the rounding of float32: product and quotient fall on different sides.
    let scale = 0.3f32;
    let xs: Vec<f32> = (0..256).map(|i| scale * (i as f32 + 0.5)).collect();
    let differ = xs.iter().filter(|&&x| (x / scale).round_ties_even() != (x * scale.recip()).round_ties_even()).count();
    assert!(differ > 0, "the inputs do not tell a division from a multiplication");
    let mut b = Build::fixed(&[256]);
    let q = b.linear("QuantizeLinear", "q", b.x(), Tensor::scalar(scale), Some(Tensor::scalar(0u16)), None);
    let expected: Vec<f32> = xs.iter().map(|&x| (x / scale).round_ties_even()).collect();
    assert_eq!(values(&run(&b.model(&[q]), &[], &array(&[256], &xs)).0[0]), expected);
}

#[test]
fn codes_of_every_type_saturate_at_their_own_limits() {
    let nibble = |dtype, byte: u8| Tensor::from_bytes(dtype, vec![], vec![byte].into()).unwrap();
    let cases = [
        (Tensor::scalar(1u8), [0.0, 255.0]),
        (Tensor::scalar(-1i8), [-128.0, 127.0]),
        (Tensor::scalar(7i16), [-32768.0, 32767.0]),
        (Tensor::scalar(9u16), [0.0, 65535.0]),
        // −2 and 5 in four bits
        (nibble(DType::I4, 0x0e), [-8.0, 7.0]),
        (nibble(DType::U4, 0x05), [0.0, 15.0]),
    ];
    for (zero, [low, high]) in cases {
        let zp = convert::integers(&zero).unwrap()[0] as f32;
        let mut b = Build::fixed(&[3]);
        let q = b.linear("QuantizeLinear", "q", b.x(), Tensor::scalar(1.0f32), Some(zero.clone()), None);
        let d = b.linear("DequantizeLinear", "d", q, Tensor::scalar(0.25f32), Some(zero.clone()), None);
        let (out, _) = run(&b.model(&[q, d]), &[], &array(&[3], &[-1e9, 2.0, 1e9]));
        assert_eq!(values(&out[0]), [low, 2.0 + zp, high], "{}", zero.dtype);
        assert_eq!(values(&out[1]), [(low - zp) * 0.25, 0.5, (high - zp) * 0.25], "{}", zero.dtype);
    }
}

#[test]
fn scales_run_along_an_axis() {
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    for (axis, channel) in [(1i64, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]), (-2, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])] {
        let mut b = Build::fixed(&[2, 3, 2]);
        let (scale, zero) = (Tensor::vector(&[1.0f32, 2.0, 4.0]), Tensor::vector(&[0u8, 10, 100]));
        let q = b.linear("QuantizeLinear", "q", b.x(), scale.clone(), Some(zero.clone()), Some(axis));
        let d = b.linear("DequantizeLinear", "d", q, scale, Some(zero), Some(axis));
        let (out, _) = run(&b.model(&[q, d]), &[], &array(&[2, 3, 2], &x));
        let (scales, zeros) = ([1.0f32, 2.0, 4.0], [0.0f32, 10.0, 100.0]);
        let codes: Vec<f32> = x.iter().zip(channel).map(|(x, c)| (x / scales[c]).round_ties_even() + zeros[c]).collect();
        let reals: Vec<f32> = codes.iter().zip(channel).map(|(q, c)| (q - zeros[c]) * scales[c]).collect();
        assert_eq!(values(&out[0]), codes);
        assert_eq!(values(&out[1]), reals);
    }
    // The last axis takes another path.
    let mut b = Build::fixed(&[2, 2]);
    let (scale, zero) = (Tensor::vector(&[1.0f32, 2.0]), Tensor::vector(&[0i8, -3]));
    let q = b.linear("QuantizeLinear", "q", b.x(), scale, Some(zero), Some(-1));
    assert_eq!(values(&run(&b.model(&[q]), &[], &array(&[2, 2], &[1.0, 2.0, 3.0, 5.0])).0[0]), [1.0, -2.0, 3.0, -1.0]);
}

#[test]
fn scales_that_do_not_fit_the_axis_are_refused() {
    let mut b = Build::fixed(&[2, 3]);
    let q = b.linear("QuantizeLinear", "q", b.x(), Tensor::vector(&[1.0f32, 2.0]), Some(Tensor::vector(&[0u8, 0])), Some(1));
    let text = refused(&b.model(&[q]), &[]);
    assert!(text.contains("2 scales along axis 1 of shape [2, 3]"), "{text}");
}

/// The shape that aborts tract's own operators: a code of one type, dequantised, a unary, quantised to another type.
#[test]
fn a_unary_between_two_code_types_survives() {
    let mut b = Build::fixed(&[3]);
    let q = b.linear("QuantizeLinear", "q", b.x(), Tensor::scalar(0.5f32), Some(Tensor::scalar(128u8)), None);
    let d = b.linear("DequantizeLinear", "d", q, Tensor::scalar(0.5f32), Some(Tensor::scalar(128u8)), None);
    let relu = b.std("Relu", "relu", &[d]);
    let q2 = b.linear("QuantizeLinear", "q2", relu, Tensor::scalar(0.25f32), Some(Tensor::scalar(-128i8)), None);
    let d2 = b.linear("DequantizeLinear", "d2", q2, Tensor::scalar(0.25f32), Some(Tensor::scalar(-128i8)), None);
    let (out, taps) = run(&b.model(&[d2]), &["relu", "q2"], &array(&[3], &[-3.0, 1.25, 7.0]));
    assert_eq!(values(&taps["relu"]), [0.0, 1.0, 7.0]);
    assert_eq!(values(&taps["q2"]), [-128.0, -124.0, -100.0]);
    assert_eq!(values(&out[0]), [0.0, 1.0, 7.0]);
}

#[test]
fn int32_bias_is_dequantised_without_a_zero_point() {
    let mut b = Build::fixed(&[2]);
    let bias = b.init("bias", Tensor::vector(&[-7i32, 1 << 20]));
    let dq = b.linear("DequantizeLinear", "dq", bias, Tensor::vector(&[0.5f32, 0.25]), None, Some(0));
    let y = b.op(NewOp::std("Add", "y").input(b.x()).input(dq));
    assert_eq!(values(&run(&b.model(&[y]), &[], &array(&[2], &[1.0, 1.0])).0[0]), [-2.5, 262_145.0]);
}

#[test]
fn packed_int4_weights_unpack_low_nibble_first() {
    let mut b = Build::fixed(&[3]);
    let w = b.init("w", Tensor::from_bytes(DType::I4, vec![3], vec![0xf8u8, 0x07].into()).unwrap());
    let zero = Tensor::from_bytes(DType::I4, vec![], vec![0u8].into()).unwrap();
    let dq = b.linear("DequantizeLinear", "dq", w, Tensor::scalar(2.0f32), Some(zero), None);
    let y = b.op(NewOp::std("Add", "y").input(b.x()).input(dq));
    assert_eq!(values(&run(&b.model(&[y]), &[], &array(&[3], &[0.0; 3])).0[0]), [-16.0, -2.0, 14.0]);
}

/// erf in f64 by its Taylor series, which converges for the arguments used here.
fn erf_f64(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// Every activation is within 1e-5 of f64, relative to the largest magnitude.
#[test]
fn activations_are_accurate() {
    let xs: Vec<f32> = (-400..=400).map(|i| i as f32 / 100.0).collect();
    let tanh_gelu = |x: f64| 0.5 * x * (1.0 + (f64::sqrt(2.0 / std::f64::consts::PI) * (x + 0.044715 * x * x * x)).tanh());
    type Case<'a> = (&'a str, Option<&'a str>, &'a dyn Fn(f64) -> f64);
    let cases: [Case<'_>; 6] = [
        ("Erf", None, &erf_f64),
        ("Gelu", Some("none"), &|x| 0.5 * x * (1.0 + erf_f64(x / std::f64::consts::SQRT_2))),
        ("Gelu", Some("tanh"), &tanh_gelu),
        ("Tanh", None, &f64::tanh),
        ("Sigmoid", None, &|x| 1.0 / (1.0 + (-x).exp())),
        ("Exp", None, &f64::exp),
    ];
    for (op_type, approximate, f) in cases {
        let mut b = Build::fixed(&[xs.len()]);
        let mut op = NewOp::std(op_type, "y").input(b.x());
        if let Some(a) = approximate {
            op = op.attr("approximate", AttrValue::String(a.to_owned().into()));
        }
        let y = b.op(op);
        let out = run(&b.model(&[y]), &[], &array(&[xs.len()], &xs)).0;
        let worst = xs.iter().zip(&out[0]).map(|(x, y)| (f(f64::from(*x)) - f64::from(*y)).abs()).fold(0.0, f64::max);
        let range = xs.iter().map(|x| f(f64::from(*x)).abs()).fold(0.0, f64::max);
        println!("{op_type} {approximate:?}: {worst:e} of {range}");
        assert!(worst <= 1e-6 * range, "{op_type} {approximate:?}: {worst:e} of {range}");
    }
}

#[test]
fn layer_normalization_equals_f64() {
    let (rows, c) = (3, 37);
    let x: Vec<f32> =
        (0..rows * c).map(|i| ((i * 7919 % 101) as f32 - 50.0) * if i % c == 5 { 20.0 } else { 0.1 } + 3.0).collect();
    let gamma: Vec<f32> = (0..c).map(|i| 1.0 + i as f32 * 0.01).collect();
    let beta: Vec<f32> = (0..c).map(|i| i as f32 * 0.1 - 1.0).collect();
    for with_bias in [true, false] {
        let mut b = Build::fixed(&[1, rows, c]);
        let g = b.init("g", Tensor::vector(&gamma));
        let beta_in = with_bias.then(|| b.init("beta", Tensor::vector(&beta)));
        let op = NewOp::std("LayerNormalization", "y").input(b.x()).input(g).maybe_input(beta_in);
        let y = b.op(op.attr("epsilon", AttrValue::Float(1e-3)));
        let out = run(&b.model(&[y]), &[], &array(&[1, rows, c], &x)).0;
        for (row, got) in x.chunks(c).zip(values(&out[0]).chunks(c)) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / c as f64;
            let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / c as f64;
            for i in 0..c {
                let bias = if with_bias { f64::from(beta[i]) } else { 0.0 };
                let want = (f64::from(row[i]) - mean) / (var + f64::from(1e-3f32)).sqrt() * f64::from(gamma[i]) + bias;
                assert!((want - f64::from(got[i])).abs() < 1e-5 * want.abs().max(1.0), "{want} {}", got[i]);
            }
        }
    }
}

/// The operator agrees with the kernel that it wraps, constants passed by input position.
#[test]
fn vitq_operators_run_on_the_kernels() {
    use crate::runtime::kernels::layer_norm::{PtfLayerNorm, ptf_layer_norm};
    use crate::runtime::kernels::log_softmax::{LogIntSoftmax, log_int_softmax};
    let xs: Vec<f32> = (0..16).map(|i| (i * 5 % 17) as f32 - 8.0).collect();
    let codes: Vec<i8> = xs.iter().map(|&x| x as i8).collect();
    let mut b = Build::fixed(&[1, 2, 8]);
    let q = b.linear("QuantizeLinear", "q", b.x(), Tensor::scalar(1.0f32), Some(Tensor::scalar(0i8)), None);

    let table: Vec<u8> = (0..256).map(|i| (i * 31 % 251) as u8).collect();
    let t = b.init("table", Tensor::vector(&table));
    let lut = b.op(NewOp::new(OpName::new(AI_VITQ, "LutGelu"), "lut").input(q).input(t));
    let lut_want: Vec<f32> = codes.iter().map(|&c| f32::from(table[usize::from(c as u8)])).collect();

    let tables: Vec<u16> = (0..512).map(|i| i * 31 % 509).collect();
    let t = b.init("tables", Tensor::new(&[2, 256], &tables).unwrap());
    let rows = [1, 0, 0, 1, 1, 0, 1, 0];
    let r = b.init("rows", Tensor::vector(&rows));
    let channel_lut = b.op(NewOp::new(OpName::new(AI_VITQ, "ChannelLutGelu"), "channel_lut").input(q).input(t).input(r));
    let entry = |(i, &c): (usize, &i8)| f32::from(tables[256 * rows[i % 8] as usize + usize::from(c as u8)]);
    let channel_want: Vec<f32> = codes.iter().enumerate().map(entry).collect();

    let exp: Vec<i32> = (0..256).map(|d| (f64::from(1 << 16) * (-f64::from(d) * 0.2).exp()).round() as i32).collect();
    let mantissa: Vec<i32> =
        (0..1024).map(|i| (f64::from(1 << 18) * (1.0 + (f64::from(i) + 0.5) / 1024.0).log2()).round() as i32).collect();
    let (log_step, bias, shift, top) = (75_638, (1 << 17) - 16 * (1 << 18), 18u32, 15);
    let inputs = [
        Tensor::vector(&exp),
        Tensor::scalar(log_step),
        Tensor::vector(&mantissa),
        Tensor::scalar(bias),
        Tensor::scalar(shift),
        Tensor::scalar(top),
    ];
    let inputs: Vec<Value> = inputs.into_iter().map(|t| b.init("lis", t)).collect();
    let lis = b.op(NewOp::new(OpName::new(AI_VITQ, "LogIntSoftmax"), "lis_y").input(q).inputs(inputs));
    let constants = LogIntSoftmax { exp_table: &exp, log_step, mantissa_table: &mantissa, bias, shift, top };
    let lis_want: Vec<f32> = log_int_softmax(&codes, 8, &constants).unwrap().into_iter().map(f32::from).collect();
    let reals: Vec<f32> = (0..16).map(|k| if k == 15 { 0.0 } else { (-(k as f32)).exp2() }).collect();
    let t = b.init("reals", Tensor::vector(&reals));
    let ld = b.op(NewOp::new(OpName::new(AI_VITQ, "LogDequantize"), "ld").input(lis).input(t));

    let (multiplier, gamma, beta) = ([1i64, 2, 4, 1, 1, 2, 1, 8], [1i64 << 20; 8], [1i64 << 40; 8]);
    let zero_points = [3i8, -2, 0, 5, -7, 1, 0, 127];
    let inputs = [
        Tensor::vector(&zero_points),
        Tensor::vector(&multiplier),
        Tensor::scalar(5i64),
        Tensor::vector(&gamma),
        Tensor::vector(&beta),
        Tensor::scalar(40u64),
        Tensor::vector(&[-100i16, 300]),
    ];
    let inputs: Vec<Value> = inputs.into_iter().map(|t| b.init("ln", t)).collect();
    let ln = b.op(NewOp::new(OpName::new(AI_VITQ, "PtfLayerNorm"), "ln_y").input(q).inputs(inputs));
    let constants = PtfLayerNorm {
        x_zero_points: &zero_points,
        multiplier: &multiplier,
        eps: 5,
        gamma: &gamma,
        beta: &beta,
        shift: 40,
        y_range: [-100i16, 300],
    };
    let ln_want: Vec<f32> = ptf_layer_norm(&codes, &constants).unwrap().into_iter().map(f32::from).collect();

    let (out, taps) = run(&b.model(&[lut, ld, ln, channel_lut]), &["lis_y"], &array(&[1, 2, 8], &xs));
    assert_eq!(values(&out[0]), lut_want);
    assert_eq!(values(&taps["lis_y"]), lis_want);
    assert!(lis_want.iter().any(|&k| k != lis_want[0]));
    assert_eq!(values(&out[1]), lis_want.iter().map(|&k| reals[k as usize]).collect::<Vec<_>>());
    assert_eq!(values(&out[2]), ln_want);
    assert!(ln_want.iter().any(|&k| k != ln_want[0]));
    assert_eq!(values(&out[3]), channel_want);
}
