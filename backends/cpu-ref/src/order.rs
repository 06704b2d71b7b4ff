//! The order of logits: larger first, ties to the lower id, NaN as -inf.

use std::cmp::Ordering;

/// A value as it counts in the order.
pub(crate) fn value(x: f64) -> f64 {
    if x.is_nan() { f64::NEG_INFINITY } else { x }
}

/// Whether `(x, i)` comes before `(y, j)`. Zeros of either sign are equal.
pub(crate) fn compare((x, i): (f64, usize), (y, j): (f64, usize)) -> Ordering {
    value(y).partial_cmp(&value(x)).unwrap_or(Ordering::Equal).then(i.cmp(&j))
}

/// Every id, best first.
pub(crate) fn ranked(values: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..values.len()).collect();
    ids.sort_by(|&i, &j| compare((values[i], i), (values[j], j)));
    ids
}

/// The first id of the order; 0 if there is none.
pub(crate) fn best(values: &[f64]) -> usize {
    (0..values.len()).min_by(|&i, &j| compare((values[i], i), (values[j], j))).unwrap_or(0)
}

/// `ln Σ e^v`.
pub(crate) fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_infinite() {
        // All -inf: the sum is 0, its logarithm -inf. A +inf: the sum is infinite.
        return if values.iter().any(|v| v.is_nan()) { f64::NAN } else { largest };
    }
    largest + values.iter().map(|v| (v - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_id_and_nan_is_last() {
        let values = [1.0, f64::NAN, 3.0, -0.0, 0.0, 3.0, f64::NEG_INFINITY];
        assert_eq!(ranked(&values), [2, 5, 0, 3, 4, 1, 6]);
        assert_eq!(best(&values), 2);
        assert_eq!(best(&[f64::NEG_INFINITY, f64::NAN]), 0);
        assert_eq!(best(&[f64::NAN, f64::NEG_INFINITY, -1.0]), 2);
    }

    #[test]
    fn log_sum_exp_by_hand() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(log_sum_exp(&[0.0, 0.0]), 2f64.ln());
        close(log_sum_exp(&[1000.0, 1000.0, f64::NEG_INFINITY]), 1000.0 + 2f64.ln());
        assert!(log_sum_exp(&[f64::NEG_INFINITY; 3]) < f64::MIN);
        assert!(log_sum_exp(&[1.0, f64::NAN]).is_nan());
    }
}
