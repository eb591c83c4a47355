//! The integer square root, digit by digit.

/// `floor(sqrt(n))`, exact for every `n`.
///
/// One result bit a step from the top: subtract, compare, shift, as a hardware unit does it. The ONNX body of `PtfLayerNorm`
/// comes to the same number by Newton's method.
pub fn isqrt(n: u64) -> u32 {
    let mut rest = n;
    let mut root = 0u64;
    let mut bit = 1u64 << 62;
    while bit != 0 {
        if rest >= root + bit {
            rest -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
        bit >>= 2;
    }
    root as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::isqrt;
    use proptest::prelude::*;

    /// The definition itself, in integers wide enough not to overflow.
    fn is_floor_root(n: u64) -> bool {
        let r = u128::from(isqrt(n));
        r * r <= u128::from(n) && u128::from(n) < (r + 1) * (r + 1)
    }

    #[test]
    fn small_numbers_and_both_sides_of_squares() {
        for n in 0..70_000 {
            assert!(is_floor_root(n), "{n}");
        }
        for root in (1u64..=u64::from(u32::MAX)).step_by(65_521) {
            for n in [root * root - 1, root * root, root * root + 1] {
                assert!(is_floor_root(n), "{n}");
            }
        }
        assert_eq!(isqrt(u64::MAX), u32::MAX);
    }

    proptest! {
        #[test]
        fn any_number(n: u64, shift in 0u32..64) {
            prop_assert!(is_floor_root(n >> shift));
        }
    }
}
