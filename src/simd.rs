//! The widest vectors of the processor at hand, without builds for it.
//!
//! A released binary is compiled for the oldest x86-64, whose vectors hold four floats. [`widest`] compiles a closure twice more, for
//! AVX2 and for AVX-512, and runs the form that the processor has. All forms compute the same operations in the same order (Rust
//! neither fuses nor reorders floating-point arithmetic), so results have the same bits on every machine.

/// Runs `f`, compiled for the widest vectors there are. Whatever `f` calls has to be inlined into it: pass `#[inline(always)] || …`, and
/// mark the functions in its loops likewise.
#[inline(always)]
pub(crate) fn widest<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if wide && is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the features that the function is compiled for.
            return unsafe { avx512(f) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature that the function is compiled for.
            return unsafe { avx2(f) };
        }
    }
    f()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[inline(always)]
    fn arithmetic(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = (x * 1.1 + 0.3) * x / (x * x + 2.0).sqrt();
        }
    }

    proptest! {
        /// A fused multiply-add, say, would show in the last bit.
        #[test]
        fn every_form_has_the_same_bits(x in prop::collection::vec(-1e3f32..1e3, 0..200)) {
            let (mut wide, mut narrow) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            widest(#[inline(always)] || arithmetic(&x, &mut wide));
            for (x, y) in x.iter().zip(&mut narrow) {
                arithmetic(std::slice::from_ref(std::hint::black_box(x)), std::slice::from_mut(y));
            }
            prop_assert_eq!(wide.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), narrow.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
    }
}
