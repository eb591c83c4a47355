//! `Lut`, `LutGelu` and `LogDequantize`: a table read by the bits of a code. `ChannelLut` and `ChannelLutGelu`: one of several
//! tables for each channel.

use super::{Code, KernelError, check_range};

const OP: &str = "Lut";
const CHANNEL_OP: &str = "ChannelLut";

/// `y[i] = table[bits of x[i]]`, elementwise.
///
/// The table is in two's complement order: entry `k` answers the code whose bits, read as an unsigned number, are `k`. For
/// unsigned codes that is the natural order; for `i8` codes entries 0 to 127 answer the codes 0 to 127 and entries 128 to 255
/// the codes −128 to −1. It is how hardware addresses a memory with a code, and needs no offset.
///
/// Table length: `2^b` for codes of b bits, at most those of the type; for signed ones at least 2, and half of the entries answer
/// the codes below 0. A code beyond the table is an error. Output codes for `Lut`; real values for `LogDequantize`, which is to the
/// log2 code what DequantizeLinear is to the affine one.
///
/// # Errors
/// [`KernelError::Length`] for a table of another length, [`KernelError::NoEntry`] for a code beyond the table.
pub fn lookup<X: Code, Y: Copy>(x: &[X], table: &[Y]) -> Result<Vec<Y>, KernelError> {
    let signed = X::LOWEST < 0;
    let least = if signed { 2 } else { 1 };
    if !table.len().is_power_of_two() || !(least..=X::COUNT).contains(&table.len()) {
        return Err(KernelError::Length {
            op: OP,
            input: "table",
            found: table.len(),
            expected: format!("a power of two from {least} to {}", X::COUNT),
        });
    }
    let (count, mask) = (table.len() as i64, table.len() - 1);
    let codes = if signed { -count / 2..count / 2 } else { 0..count };
    x.iter()
        .enumerate()
        .map(|(index, code)| {
            let known = codes.contains(&code.value()).then(|| table.get(code.bits() & mask).copied()).flatten();
            known.ok_or(KernelError::NoEntry { op: OP, index, code: code.value(), first: codes.start, last: codes.end - 1 })
        })
        .collect()
}

/// `y[.., c] = table[rows[c]][bits of x[.., c]]`: a table of several rows, and for each channel (the last axis) the row that
/// serves it.
///
/// `table` is R rows of `2^bits` entries, `bits` those of the code's type, one after another, each in the order of [`lookup`].
/// `rows` has an entry in `0..R` for each channel, and `x` is any number of times as long as `rows`. Channels whose codes mean
/// the same real numbers share a row, so that R counts meanings and not channels.
///
/// # Errors
/// [`KernelError::Length`] for a table that is not whole rows, no channel, or an `x` that is not whole channels;
/// [`KernelError::Range`] for a row that the table does not have.
pub fn lookup_by_channel<X: Code, Y: Copy>(x: &[X], table: &[Y], rows: &[i32]) -> Result<Vec<Y>, KernelError> {
    let length = |input, found, expected| Err(KernelError::Length { op: CHANNEL_OP, input, found, expected });
    if table.is_empty() || !table.len().is_multiple_of(X::COUNT) {
        return length("table", table.len(), format!("a multiple of {}", X::COUNT));
    }
    if rows.is_empty() {
        return length("rows", 0, "one for each channel".to_owned());
    }
    if !x.len().is_multiple_of(rows.len()) {
        return length("x", x.len(), format!("a multiple of the {} channels", rows.len()));
    }
    let tables: Vec<&[Y]> = table.chunks_exact(X::COUNT).collect();
    let last = i64::try_from(tables.len()).unwrap_or(i64::MAX) - 1;
    let by_channel: Vec<&[Y]> = rows
        .iter()
        .map(|&row| check_range(CHANNEL_OP, "rows", i64::from(row), 0, last).map(|()| tables[row as usize]))
        .collect::<Result<_, _>>()?;
    // A row has an entry for every value of the type.
    Ok(x.iter().zip(by_channel.iter().cycle()).map(|(code, table)| table[code.bits()]).collect())
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
        assert!(matches!(lookup(&[3u8, 16], &table), Err(KernelError::NoEntry { index: 1, code: 16, first: 0, last: 15, .. })));
        let table: Vec<i16> = (0..16).collect();
        assert_eq!(lookup(&[0i16, 7, -8, -1], &table).unwrap(), [0, 7, 8, 15]);
        for beyond in [8i16, -9] {
            let error = lookup(&[0, beyond], &table).unwrap_err();
            let code = i64::from(beyond);
            assert!(matches!(error, KernelError::NoEntry { index: 1, code: c, first: -8, last: 7, .. } if c == code), "{error}");
        }
    }

    #[test]
    fn a_table_of_another_length_is_an_error() {
        assert!(lookup(&[0i8], &[0u8; 255]).is_err());
        assert!(lookup(&[0i8], &[0u8; 512]).is_err());
        assert!(lookup(&[0i8], &[0u8; 1]).is_err());
        assert!(lookup(&[0u8], &[0u8; 12]).is_err());
        assert!(lookup::<u8, u8>(&[], &[]).is_err());
        assert!(lookup(&[0u8], &[0u8; 512]).is_err());
    }

    #[test]
    fn every_channel_reads_its_own_row() {
        // Row r holds 1000 r + bits.
        let table: Vec<u32> = (0..3).flat_map(|r| (0..256).map(move |k| 1000 * r + k)).collect();
        let rows = [2, 0, 2, 1];
        let x = [0i8, 1, -1, -128, 127, -2, 0, 5];
        assert_eq!(lookup_by_channel(&x, &table, &rows).unwrap(), [2000, 1, 2255, 1128, 2127, 254, 2000, 1005]);
        let wide: Vec<u32> = (0..2 * 65536).collect();
        assert_eq!(lookup_by_channel(&[i16::MIN, -1, 0, 3], &wide, &[1, 0]).unwrap(), [98304, 65535, 65536, 3]);
        assert!(lookup_by_channel::<u8, u32>(&[], &table, &rows).unwrap().is_empty());
    }

    #[test]
    fn one_row_for_all_channels_is_a_lookup() {
        let table: Vec<u16> = (0..256).map(|k| k * 7 % 251).collect();
        let x: Vec<i8> = (-128..127).collect();
        assert_eq!(lookup_by_channel(&x, &table, &[0, 0, 0]).unwrap(), lookup(&x, &table).unwrap());
    }

    #[test]
    fn rows_and_lengths_that_do_not_fit_are_errors() {
        let table = [0u8; 512];
        let length = |r: Result<Vec<u8>, KernelError>, what: &str| {
            assert!(matches!(&r, Err(KernelError::Length { input, .. }) if *input == what), "{r:?}");
        };
        length(lookup_by_channel(&[0i8], &table[..511], &[0]), "table");
        length(lookup_by_channel(&[0i8], &[], &[0]), "table");
        length(lookup_by_channel(&[0u16], &table, &[0]), "table");
        length(lookup_by_channel(&[0i8], &table, &[]), "rows");
        length(lookup_by_channel(&[0i8; 5], &table, &[0, 1]), "x");
        for row in [-1, 2] {
            let refused = lookup_by_channel(&[0i8; 2], &table, &[0, row]);
            assert!(matches!(refused, Err(KernelError::Range { input: "rows", low: 0, high: 1, .. })), "{refused:?}");
        }
    }
}
