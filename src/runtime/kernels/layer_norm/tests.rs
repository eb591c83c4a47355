#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;

/// The op's definition in 128-bit integers, where nothing can overflow, with the standard library's square root and the
/// shift found by trial.
fn oracle<X: Code, Y: Code>(row: &[X], k: &PtfLayerNorm<'_, X, Y>) -> Vec<i64> {
    let count = row.len() as i128;
    let zero_point = |c: usize| i128::from(k.x_zero_points.get(c).unwrap_or(&k.x_zero_points[0]).value());
    let codes = row.iter().zip(k.multiplier).enumerate();
    let x: Vec<i128> = codes.map(|(c, (q, &m))| (i128::from(q.value()) - zero_point(c)) * i128::from(m)).collect();
    let sum: i128 = x.iter().sum();
    let square: i128 = x.iter().map(|v| v * v).sum();
    let variance = (count * square - sum * sum + i128::from(k.eps)).max(1);
    assert!((1..1 << 62).contains(&variance));
    let mut n = 0;
    while (variance << (2 * (n + 1))) < 1 << 62 {
        n += 1;
    }
    let root = (variance << (2 * n)).isqrt();
    let reciprocal = ((1i128 << 54) + root / 2).div_euclid(root);
    let [low, high] = k.y_range.map(|y| i128::from(y.value()));
    x.iter()
        .enumerate()
        .map(|(c, v)| {
            let scale = 1i128 << (30 - n);
            // floor(v / scale + 1/2), exactly: the half of an odd scale (1) is absent.
            let z = ((count * v - sum) * reciprocal + scale / 2).div_euclid(scale);
            assert!(z.abs() <= 1 << 31);
            let total = z * i128::from(k.gamma[c]) + i128::from(k.beta[c]);
            assert!(total.abs() < 1 << 62);
            total.div_euclid(1 << k.shift).clamp(low, high) as i64
        })
        .collect()
}

/// Rows at the ends of the range, where the sums are largest, next to ordinary and constant ones.
fn row<X: Code>(channels: usize, kind: u8, seed: u64) -> Vec<X> {
    let mut state = seed | 1;
    (0..channels)
        .map(|c| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 33) as i64;
            let span = X::HIGHEST - X::LOWEST + 1;
            X::saturating_from(match kind {
                0 => X::LOWEST + random % span,
                1 => X::LOWEST,
                2 => X::HIGHEST,
                3 if random % 2 == 0 => X::LOWEST,
                3 => X::HIGHEST,
                4 if c == 0 => X::HIGHEST,
                4 => X::LOWEST,
                _ => X::LOWEST + span / 2 + random % 3,
            })
        })
        .collect()
}

/// The largest multiplier for which every channel may have it.
fn fitting<X: Code>(channels: usize, wanted: u32) -> i64 {
    let farthest = (X::HIGHEST - X::LOWEST) as u128;
    let mut exponent = wanted;
    while (channels as u128 * (farthest << exponent)).pow(2) >= 1 << 61 {
        exponent -= 1;
    }
    1 << exponent
}

fn compare<X: Code, Y: Code>(channels: usize, exponent: u32, kind: u8, seed: u64, eps: i64) {
    let largest = fitting::<X>(channels, exponent);
    let multiplier: Vec<i64> = (0..channels).map(|c| if (seed >> (c % 60)) & 1 == 1 { largest } else { 1 }).collect();
    let sign = |c: usize| if c.is_multiple_of(2) { 1 } else { -1 };
    let gamma: Vec<i64> = (0..channels).map(|c| sign(c) * (GAMMA_MAX >> (c % 7))).collect();
    let beta: Vec<i64> = (0..channels).map(|c| sign(c + 1) * (BETA_MAX >> (c % 11))).collect();
    let ends = [X::LOWEST, X::HIGHEST, 3].map(X::saturating_from);
    let each: Vec<X> = (0..channels).map(|c| ends[(seed as usize).wrapping_add(c) % 3]).collect();
    for (shift, x_zero_points) in [(0, &each[..1]), (24, &each[..1]), (u64::from(SHIFT_MAX), &each[..1]), (0, &each), (24, &each)]
    {
        let constants = PtfLayerNorm {
            x_zero_points,
            multiplier: &multiplier,
            eps,
            gamma: &gamma,
            beta: &beta,
            shift,
            y_range: [Y::saturating_from(-7), Y::saturating_from(1 << 20)],
        };
        let x: Vec<X> = row(channels, kind, seed);
        let y: Vec<i64> = ptf_layer_norm(&x, &constants).unwrap().iter().map(|y| y.value()).collect();
        assert_eq!(y, oracle(&x, &constants));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn equals_the_definition_in_wider_integers(
        channels in prop_oneof![1usize..8, 8usize..400, Just(4096usize)],
        exponent in 0u32..=8,
        kind in 0u8..6,
        seed: u64,
        eps in prop_oneof![Just(0i64), 1i64..1_000_000, Just(1i64 << 60)],
    ) {
        compare::<i8, i8>(channels, exponent, kind, seed, eps);
        compare::<u8, u16>(channels, exponent, kind, seed, eps);
        compare::<i16, i16>(channels, exponent, kind, seed, eps);
        compare::<u16, u8>(channels, exponent, kind, seed, eps);
    }
}

fn constants<'a>(multiplier: &'a [i64], gamma: &'a [i64]) -> PtfLayerNorm<'a, i8, i8> {
    PtfLayerNorm { x_zero_points: &[0], multiplier, eps: 1, gamma, beta: gamma, shift: 24, y_range: [-128, 127] }
}

#[test]
fn the_longest_row_at_its_ends_does_not_overflow() {
    compare::<i8, i8>(CHANNELS_MAX, 8, 3, u64::MAX, 0);
    compare::<i8, i8>(CHANNELS_MAX, 8, 4, u64::MAX, 1);
    compare::<u16, u16>(CHANNELS_MAX, 8, 4, 1, 1);
}

#[test]
fn a_constant_row_gives_beta() {
    let y = ptf_layer_norm(&[5i8; 4], &constants(&[2; 4], &[7 << 24; 4])).unwrap();
    assert_eq!(y, [7; 4]);
}

#[test]
fn constants_that_could_overflow_are_refused_whatever_the_data() {
    let (one, wide) = ([1i64; 4], [0i64; 4]);
    assert!(ptf_layer_norm(&[0i8; 4], &constants(&one, &one)).is_ok());
    assert!(ptf_layer_norm(&[0i8; 5], &constants(&one, &one)).is_err());
    assert!(ptf_layer_norm::<i8, i8>(&[], &constants(&[], &[])).is_err());
    assert!(ptf_layer_norm(&[0i8; 4], &constants(&wide, &one)).is_err());
    assert!(ptf_layer_norm(&[0i8; 4], &constants(&one, &one[..3])).is_err());
    assert!(ptf_layer_norm(&[0i8; 4], &constants(&one, &[GAMMA_MAX + 1; 4])).is_err());
    for (eps, shift) in [(-1, 24), (1i64 << 62, 24), (i64::MAX, 24), (1, 45), (1, u64::MAX)] {
        let k = PtfLayerNorm { eps, shift, ..constants(&one, &one) };
        assert!(ptf_layer_norm(&[0i8; 4], &k).is_err());
    }
    for x_zero_points in [&[][..], &[0, 0], &[0; 5]] {
        let k = PtfLayerNorm { x_zero_points, ..constants(&one, &one) };
        assert!(ptf_layer_norm(&[0i8; 4], &k).is_err());
    }
    let y_range = [3, -3];
    let k = PtfLayerNorm { y_range, ..constants(&one, &one) };
    assert!(ptf_layer_norm(&[0i8; 4], &k).is_err());
    let many = vec![1i64 << 8; 4096];
    let zero = vec![0i64; 4096];
    let k = PtfLayerNorm {
        x_zero_points: &[0i16],
        multiplier: &many,
        eps: 1,
        gamma: &zero,
        beta: &zero,
        shift: 0,
        y_range: [0u8, 1],
    };
    let error = ptf_layer_norm(&[0i16; 4096], &k).unwrap_err();
    assert!(matches!(error, KernelError::Overflow { .. }), "{error}");
}
