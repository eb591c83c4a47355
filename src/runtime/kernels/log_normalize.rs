//! `LogNormalize`: rows of log2 codes as what they weigh, and the sums that the rows are divided by.

use super::{Code, KernelError, check_range, lut};

const OP: &str = "LogNormalize";

/// Rows of weights and their sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// `table[code]`, as many as there are codes.
    pub weights: Vec<i32>,
    /// The sum of each row, at least 1. A probability is a weight over its row's sum.
    pub sums: Vec<i32>,
}

/// Weights of `n` codes a row: `weight = table[code]`, `sum = max(Σ weight, 1)`.
///
/// Log2 codes round every probability of a row by itself, so that a row sums to anything between 0.7 and 1.4 (with r = 0).
/// Divided by that sum, what is left are the errors of single probabilities, and those average out in attention times v. An
/// integer engine sums `weight << …` along with the products, and requantises with one reciprocal a row.
///
/// # Errors
/// [`KernelError`] for a negative entry of the table, for a length of `code` that is no multiple of `n`, for a code beyond the
/// table, and for a row that sums to 2^31 or more.
pub fn log_normalize<X: Code>(code: &[X], n: usize, table: &[i32]) -> Result<Rows, KernelError> {
    if n == 0 || !code.len().is_multiple_of(n) {
        return Err(KernelError::Length {
            op: OP,
            input: "code",
            found: code.len(),
            expected: format!("a multiple of the last axis ({n}), which must not be 0,"),
        });
    }
    for &entry in table {
        check_range(OP, "table", i64::from(entry), 0, i64::from(i32::MAX))?;
    }
    let weights = lut::lookup(code, table)?;
    let sum = |row: &[i32]| {
        let sum: i64 = row.iter().map(|&w| i64::from(w)).sum();
        i32::try_from(sum.max(1)).map_err(|_| KernelError::Overflow {
            op: OP,
            what: "the sum of a row's weights",
            reached: i128::from(sum),
            limit: i128::from(i32::MAX),
            advice: "the table was built for shorter rows; rebuild it with this row length",
        })
    };
    let sums = weights.chunks_exact(n).map(sum).collect::<Result<_, _>>()?;
    Ok(Rows { weights, sums })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Weights of codes of 2 bits: 4, 2, 1, 0.
    const TABLE: [i32; 4] = [4, 2, 1, 0];

    #[test]
    fn rows_are_summed_by_themselves() {
        let rows = log_normalize(&[0u8, 1, 3, 2, 2, 2], 3, &TABLE).unwrap();
        assert_eq!(rows.weights, [4, 2, 0, 1, 1, 1]);
        assert_eq!(rows.sums, [6, 3]);
    }

    #[test]
    fn a_row_of_zeros_is_divided_by_one() {
        assert_eq!(log_normalize(&[3u8, 3], 2, &TABLE).unwrap().sums, [1]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |code: &[u8], n, table: &[i32]| log_normalize(code, n, table).unwrap_err();
        assert!(matches!(refused(&[0, 1, 2], 2, &TABLE), KernelError::Length { input: "code", .. }));
        assert!(matches!(refused(&[], 0, &TABLE), KernelError::Length { input: "code", .. }));
        assert!(matches!(refused(&[4], 1, &TABLE), KernelError::NoEntry { code: 4, .. }));
        assert!(matches!(refused(&[0], 1, &[-1, 0]), KernelError::Range { .. }));
        assert!(matches!(refused(&[0, 0], 2, &[i32::MAX, 0]), KernelError::Overflow { .. }));
    }
}
