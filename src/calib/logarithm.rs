//! Logarithms that are the same on every machine.

/// `x · ln x`; 0 at 0.
#[inline(always)]
pub(crate) fn x_ln_x(x: f64) -> f64 {
    if x > 0.0 { x * ln(x) } else { 0.0 }
}

/// The natural logarithm of a positive normal number, within a few ulps and the same on every platform (a libm's may differ in the last bit, which
/// could decide a tie): `ln m = 2·artanh((m − 1)/(m + 1))` for the mantissa in [√½, √2).
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    const MAGIC: f64 = 4_503_599_627_370_496.0; // 2^52: an integer in the low bits of the mantissa becomes a float without a conversion
    let bits = x.to_bits();
    let exponent = f64::from_bits(((bits >> 52) & 0x7ff) | MAGIC.to_bits()) - (MAGIC + 1023.0);
    let m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    let above = m > std::f64::consts::SQRT_2;
    let (m, exponent) = (if above { 0.5 * m } else { m }, if above { exponent + 1.0 } else { exponent });
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    // Halves of the series side by side (Estrin): one term after the other would be all waiting.
    let (z2, z4) = (z * z, z * z * (z * z));
    let pair = |k: u32| 1.0 / f64::from(2 * k + 1) + z * (1.0 / f64::from(2 * k + 3));
    let low = pair(0) + z2 * pair(2) + z4 * (pair(4) + z2 * pair(6));
    let series = low + z4 * z4 * (pair(8) + z2 * (1.0 / 21.0));
    exponent * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ln_is_ln(x in 1e-300f64..1e300) {
            prop_assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1.0));
        }
    }
}
