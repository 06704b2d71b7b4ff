//! Figures out of repeated measurements.

use std::time::Duration;

use serde::Serialize;

/// A median and how far the measurements lie around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    /// Half the distance between the least and the greatest.
    pub(super) half_range: f64,
}

impl Spread {
    /// Of at least one measurement.
    pub(super) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let (least, greatest) = (sorted[0], sorted[sorted.len() - 1]);
        Self { median: at_share(&sorted, 0.5), half_range: (greatest - least) / 2.0 }
    }
}

/// A distribution of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Latencies {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Latencies {
    /// All zero if there are none.
    pub(super) fn of(latencies: impl IntoIterator<Item = Duration>) -> Self {
        let values: Vec<f64> =
            latencies.into_iter().map(|latency| latency.as_secs_f64() * 1e3).collect();
        if values.is_empty() {
            return Self::default();
        }
        let sorted = sorted(&values);
        Self {
            mean: sorted.iter().sum::<f64>() / to_f64(sorted.len()),
            p50: at_share(&sorted, 0.5),
            p90: at_share(&sorted, 0.9),
            p99: at_share(&sorted, 0.99),
            max: sorted[sorted.len() - 1],
        }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which this share of the sorted values lies, between neighbours in proportion.
fn at_share(sorted: &[f64], share: f64) -> f64 {
    let place = share * to_f64(sorted.len() - 1);
    let mut below = 0;
    while to_f64(below + 1) <= place {
        below += 1;
    }
    let above = (below + 1).min(sorted.len() - 1);
    let part = place - to_f64(below);
    sorted[below] + (sorted[above] - sorted[below]) * part
}

/// Counts here are far below what a float holds exactly.
pub(super) fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

/// Bytes are no more than what a float holds exactly, either.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 bytes the last digits do not matter")]
pub(super) fn bytes_to_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values are exact")]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        let spread = Spread::of(&[4.0, 1.0, 3.0]);
        assert_eq!((spread.median, spread.half_range), (3.0, 1.5));
        assert_eq!(Spread::of(&[2.0, 1.0]).median, 1.5);
        assert_eq!(Spread::of(&[2.0]), Spread { median: 2.0, half_range: 0.0 });
        let latencies = Latencies::of((1..=101).map(Duration::from_millis));
        assert!((latencies.p90 - 91.0).abs() < 1e-9);
        assert!((latencies.p99 - 100.0).abs() < 1e-9);
        assert!((latencies.mean - 51.0).abs() < 1e-9);
        assert_eq!(Latencies::of([]), Latencies::default());
    }
}
