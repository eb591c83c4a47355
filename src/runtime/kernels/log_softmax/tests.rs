#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;

fn exp_table(scale: f64, bits: u32) -> Vec<i32> {
    (0..256).map(|d| ((-scale * f64::from(d)).exp() * f64::from(1u32 << bits)).round() as i32).collect()
}

fn mantissa_table() -> Vec<i32> {
    (0..1024).map(|i| ((1.0 + (f64::from(i) + 0.5) / 1024.0).log2() * 262_144.0).round() as i32).collect()
}

fn constants<'a>(exp: &'a [i32], mantissa: &'a [i32], scale: f64, bits: i32, r: u32, top: i32) -> LogIntSoftmax<'a> {
    LogIntSoftmax {
        exp_table: exp,
        log_step: (scale * std::f64::consts::LOG2_E * 262_144.0).round() as i32,
        mantissa_table: mantissa,
        bias: (1 << (17 - r)) - (bits << 18),
        shift: 18 - r,
        top,
    }
}

#[test]
fn even_and_one_hot_rows() {
    let (exp, mantissa) = (exp_table(0.1, 16), mantissa_table());
    let k = constants(&exp, &mantissa, 0.1, 16, 0, 15);
    // Sixteen equal scores: 1/16 each, code 4.
    assert_eq!(log_int_softmax(&[-3i8; 16], 16, &k).unwrap(), [4; 16]);
    // One score far above the others: 1 and 0.
    let mut row = [-128i8; 16];
    row[3] = 127;
    let codes = log_int_softmax(&row, 16, &k).unwrap();
    assert_eq!(codes[3], 0);
    assert!(codes.iter().enumerate().all(|(i, &c)| i == 3 || c == 15));
    // A row of one element has probability 1.
    assert_eq!(log_int_softmax(&[9u8, 200], 1, &k).unwrap(), [0, 0]);
    assert_eq!(log_int_softmax::<u8>(&[], 4, &k).unwrap(), Vec::<u8>::new());
}

proptest! {
    /// Against softmax in f64: away from a rounding boundary the code is the rounded logarithm.
    #[test]
    fn equals_the_rounded_logarithm(
        row in proptest::collection::vec(any::<i8>(), 1..200),
        scale in 0.001f64..1.0,
        r in 0u32..=4,
    ) {
        let (exp, mantissa) = (exp_table(scale, 23), mantissa_table());
        let k = constants(&exp, &mantissa, scale, 23, r, 255);
        let codes = log_int_softmax(&row, row.len(), &k).unwrap();
        let max = f64::from(*row.iter().max().unwrap());
        let sum: f64 = row.iter().map(|&q| (scale * (f64::from(q) - max)).exp()).sum();
        for (&q, &code) in row.iter().zip(&codes) {
            let exact = (sum.log2() - scale * (f64::from(q) - max) * std::f64::consts::LOG2_E)
                * f64::from(1 << r);
            if exact < 250.0 {
                prop_assert!((f64::from(code) - exact).abs() < 0.5 + 0.03, "{code} {exact}");
            }
        }
    }

    /// Any constants in range and any codes: an answer or an error, no overflow.
    #[test]
    fn no_constants_overflow(
        row in proptest::collection::vec(any::<u8>(), 1..40),
        exp in proptest::collection::vec(1i32.., 256),
        log_step in 0..=LOG_STEP_MAX,
        bias in -BIAS_MAX..=BIAS_MAX,
        shift in 0..=LOG_FRACTION_BITS,
        top in 1..=255,
    ) {
        let mantissa = vec![1 << LOG_FRACTION_BITS; 1024];
        let k = LogIntSoftmax { exp_table: &exp, log_step, mantissa_table: &mantissa, bias, shift, top };
        match log_int_softmax(&row, row.len(), &k) {
            Ok(codes) => prop_assert!(codes.iter().all(|&c| i32::from(c) <= top)),
            Err(error) => prop_assert!(
                matches!(error, KernelError::Overflow { .. }),
                "{}", error
            ),
        }
    }
}

#[test]
fn wrong_constants_are_refused() {
    let (exp, mantissa) = (exp_table(0.1, 16), mantissa_table());
    let good = constants(&exp, &mantissa, 0.1, 16, 0, 15);
    let refused = |k: LogIntSoftmax<'_>| log_int_softmax(&[0i8; 4], 4, &k).is_err();
    assert!(!refused(good));
    assert!(refused(LogIntSoftmax { exp_table: &exp[1..], ..good }));
    assert!(refused(LogIntSoftmax { mantissa_table: &mantissa[1..], ..good }));
    let zero = [0; 256];
    assert!(refused(LogIntSoftmax { exp_table: &zero, ..good }));
    assert!(refused(LogIntSoftmax { log_step: -1, ..good }));
    assert!(refused(LogIntSoftmax { bias: i32::MIN, ..good }));
    assert!(refused(LogIntSoftmax { shift: 19, ..good }));
    assert!(refused(LogIntSoftmax { top: 256, ..good }));
    assert!(refused(LogIntSoftmax { top: 0, ..good }));
    assert!(log_int_softmax(&[0i8; 5], 4, &good).is_err());
    assert!(log_int_softmax(&[0i8; 4], 0, &good).is_err());
    let large = [i32::MAX; 256];
    let overflow = LogIntSoftmax { exp_table: &large, ..good };
    assert!(matches!(log_int_softmax(&[0i8; 2], 2, &overflow), Err(KernelError::Overflow { .. })));
}
