//! `Lut`, `LutGelu` and `LogDequantize`: a table read by the bits of a code.

use super::{Code, KernelError};

const OP: &str = "Lut";

/// `y[i] = table[bits of x[i]]`, elementwise.
///
/// The table is in two's complement order: entry `k` answers the code whose bits, read as an unsigned number, are `k`. For
/// unsigned codes that is the natural order; for `i8` codes entries 0 to 127 answer the codes 0 to 127 and entries 128 to 255
/// the codes −128 to −1. It is how hardware addresses a memory with a code, and needs no offset.
///
/// Table length: `2^bits` of the code's type for signed codes; any power of two up to that for unsigned codes, where a code
/// beyond the table is an error. Output codes for `Lut`; real values for `LogDequantize`, which is to the log2 code what
/// DequantizeLinear is to the affine one.
///
/// # Errors
/// [`KernelError::Length`] for a table of another length, [`KernelError::NoEntry`] for a code beyond the table.
pub fn lookup<X: Code, Y: Copy>(x: &[X], table: &[Y]) -> Result<Vec<Y>, KernelError> {
    let fits = if X::LOWEST < 0 { table.len() == X::COUNT } else { table.len().is_power_of_two() && table.len() <= X::COUNT };
    if !fits {
        return Err(KernelError::Length {
            op: OP,
            input: "table",
            found: table.len(),
            expected: if X::LOWEST < 0 { X::COUNT.to_string() } else { format!("a power of two up to {}", X::COUNT) },
        });
    }
    x.iter()
        .enumerate()
        .map(|(index, code)| {
            table.get(code.bits()).copied().ok_or(KernelError::NoEntry {
                op: OP,
                index,
                code: code.bits(),
                last: table.len() - 1,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn signed_codes_read_the_table_in_twos_complement_order() {
        let table: Vec<u16> = (0..256).collect();
        assert_eq!(lookup(&[0i8, 1, 127, -128, -1], &table).unwrap(), [0, 1, 127, 128, 255]);
        let wide: Vec<u32> = (0..65536).collect();
        assert_eq!(lookup(&[i16::MIN, -1, i16::MAX], &wide).unwrap(), [32768, 65535, 32767]);
        assert_eq!(lookup(&[u16::MAX], &wide).unwrap(), [65535]);
    }

    #[test]
    fn a_code_beyond_a_short_table_is_an_error() {
        let table = [10u8; 16];
        assert_eq!(lookup(&[15u8], &table).unwrap(), [10]);
        assert!(matches!(lookup(&[3u8, 16], &table), Err(KernelError::NoEntry { index: 1, code: 16, .. })));
    }

    #[test]
    fn a_table_of_another_length_is_an_error() {
        assert!(lookup(&[0i8], &[0u8; 255]).is_err());
        assert!(lookup(&[0i8], &[0u8; 128]).is_err());
        assert!(lookup(&[0u8], &[0u8; 12]).is_err());
        assert!(lookup::<u8, u8>(&[], &[]).is_err());
        assert!(lookup(&[0u8], &[0u8; 512]).is_err());
    }
}
