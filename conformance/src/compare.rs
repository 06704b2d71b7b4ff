//! The comparator: one for every op.

use halyard_core::DType;
use serde::{Deserialize, Serialize};

use crate::{
    array::{Array, is_float},
    tolerance::{Bounds, EXACT},
};

/// How two tensors compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Slot name.
    pub output: String,
    /// Whether every bound holds.
    pub passed: bool,
    /// Elements compared.
    pub elements: usize,
    /// Share of them within their bound.
    pub share: f64,
    /// Largest absolute difference of finite values.
    pub max_abs: f64,
    /// Largest share of its bound that an element uses: above 1 it fails.
    pub max_of_bound: f64,
    /// `Σ (got - want)² / Σ want²` over finite values (where sums vanish: over what the inputs let expect).
    pub nmse: f64,
    /// Cosine between the two, of finite values; 1 if one is zero.
    pub cosine: f64,
    /// The element furthest beyond (or nearest to) its bound.
    pub worst: Option<Worst>,
    /// In words, if it did not pass.
    pub failure: Option<String>,
}

/// One element.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Its index.
    pub index: Vec<usize>,
    /// What the device gave; as text, since JSON has no NaN.
    pub got: String,
    /// What the oracle gave.
    pub want: String,
}

impl Comparison {
    /// Of nothing yet, which passes.
    pub(crate) fn empty(output: &str) -> Self {
        Self {
            output: output.to_owned(),
            passed: true,
            elements: 0,
            share: 1.0,
            max_abs: 0.0,
            max_of_bound: 0.0,
            nmse: 0.0,
            cosine: 1.0,
            worst: None,
            failure: None,
        }
    }
}

/// What a comparison is told beside the bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context<'a> {
    /// Elements left out.
    pub(crate) exempt: &'a [usize],
    /// The size of values that each row's inputs let expect; empty if nothing is known.
    pub(crate) expected: &'a [f64],
    /// What each row may be off by on top, because its inputs have two right roundings; empty if they have not.
    pub(crate) slack: &'a [f64],
}

/// Compares `got` with `want`, element by element and as a whole.
pub(crate) fn compare(
    output: &str,
    got: &Array,
    want: &Array,
    bounds: Bounds,
    context: Context<'_>,
) -> Comparison {
    let mut c = Comparison { elements: want.len(), ..Comparison::empty(output) };
    if (got.dtype(), got.dims()) != (want.dtype(), want.dims()) {
        c.passed = false;
        c.failure = Some(format!("{:?} instead of {:?}", got.dims(), want.dims()));
        return c;
    }
    let mut sums = Sums::default();
    let mut outside = 0;
    let mut worst = (-1.0, 0);
    let width = want.width();
    let typical = typical_scale(want);
    for row in 0..want.rows() {
        let expected = context.expected.get(row).copied().unwrap_or(0.0);
        let own = root_mean_square(want.row(row));
        // A row of zeros is padding and has to be exact.
        let scale = if own > 0.0 { own.max(typical) } else { 0.0 }.max(expected);
        let slack = context.slack.get(row).copied().unwrap_or(0.0);
        for i in row * width..(row + 1) * width {
            if context.exempt.contains(&i) {
                continue;
            }
            let use_of_bound = element(got, want, i, bounds, (scale, slack));
            outside += usize::from(use_of_bound > 1.0);
            if use_of_bound > worst.0 {
                worst = (use_of_bound, i);
            }
            sums.add(got.get(i), want.get(i), (expected, bounds.tiny + slack));
        }
    }
    c.share = if c.elements == 0 { 1.0 } else { 1.0 - outside as f64 / c.elements as f64 };
    (c.max_abs, c.nmse, c.cosine) = (sums.max_abs, sums.nmse(), sums.cosine());
    if worst.0 >= 0.0 {
        c.max_of_bound = worst.0.min(f64::MAX);
        let i = worst.1;
        c.worst = Some(Worst { index: want.index(i), got: show(got, i), want: show(want, i) });
    }
    let nmse = bounds.nmse(c.elements);
    let whole = bounds == EXACT || (c.nmse <= nmse && sums.turned() <= nmse.max(1e-12));
    c.passed = outside == 0 && whole;
    if !c.passed {
        c.failure = Some(describe(&c, (!whole).then_some(nmse)));
    }
    c
}

/// Of finite values; 0 if there are none.
pub(crate) fn root_mean_square(values: impl IntoIterator<Item = f64>) -> f64 {
    let add = |(n, sum): (f64, f64), v: f64| (n + 1.0, sum + v * v);
    let (n, squares) = values.into_iter().filter(|v| v.is_finite()).fold((0.0, 0.0), add);
    if squares > 0.0 { (squares / n).sqrt() } else { 0.0 }
}

/// A few columns say little of the size of their row: all rows together say more. 0 where rows speak for themselves.
fn typical_scale(array: &Array) -> f64 {
    const FEW: usize = 16;
    if array.width() < FEW { root_mean_square((0..array.len()).map(|i| array.get(i))) } else { 0.0 }
}

/// How much of its bound an element uses; infinite if it cannot be right.
fn element(got: &Array, want: &Array, i: usize, bounds: Bounds, (scale, slack): (f64, f64)) -> f64 {
    if !is_float(want.dtype()) {
        return if got.int(i) == want.int(i) { 0.0 } else { f64::INFINITY };
    }
    let (g, w) = (got.get(i), want.get(i));
    let same = g.partial_cmp(&w) == Some(std::cmp::Ordering::Equal);
    if same || (g.is_nan() && w.is_nan()) {
        return 0.0;
    }
    if !g.is_finite() || !w.is_finite() {
        return f64::INFINITY;
    }
    let error = (g - w).abs();
    if error <= bounds.tiny {
        return 0.0;
    }
    let bound = bounds.rtol * w.abs() + bounds.atol * scale + slack;
    if error <= bound {
        error / bound
    } else {
        (error / bound.max(f64::MIN_POSITIVE)).max(1.0 + 1e-9)
    }
}

fn show(array: &Array, i: usize) -> String {
    // Every float dtype fits an f32, whose text is the shortest that tells it from its neighbours.
    if is_float(array.dtype()) || array.dtype() == DType::F8E4M3 {
        (array.get(i) as f32).to_string()
    } else {
        array.int(i).to_string()
    }
}

/// `allowed` is what the whole may be off by, if it is off by more.
fn describe(c: &Comparison, allowed: Option<f64>) -> String {
    let mut text = c.output.clone();
    if let Some(w) = &c.worst {
        text = format!("{text}{:?} is {}, expected {}", w.index, w.got, w.want);
    }
    text = format!("{text}; {:.2} % of {} within bounds", 100.0 * c.share, c.elements);
    if let Some(allowed) = allowed {
        text = format!(
            "{text}; as a whole nmse {:.2e} and 1 - cosine {:.2e}, allowed {allowed:.1e}",
            c.nmse,
            1.0 - c.cosine
        );
    }
    text
}

/// Sums over the pairs of finite values.
#[derive(Default)]
struct Sums {
    max_abs: f64,
    error: f64,
    got: f64,
    want: f64,
    dot: f64,
    /// Square of what the inputs let expect.
    expected: f64,
}

impl Sums {
    fn add(&mut self, g: f64, w: f64, (expected, tiny): (f64, f64)) {
        // A tiny error is none: the values count as equal.
        let g = if (g - w).abs() <= tiny { w } else { g };
        if g.is_finite() && w.is_finite() {
            self.max_abs = self.max_abs.max((g - w).abs());
            self.error += (g - w) * (g - w);
            self.expected += expected * expected;
            self.got += g * g;
            self.want += w * w;
            self.dot += g * w;
        }
    }

    fn nmse(&self) -> f64 {
        if self.error <= 0.0 {
            0.0
        } else {
            (self.error / self.want.max(self.expected)).min(f64::MAX)
        }
    }

    /// `1 - cosine`, less where the values are smaller than their inputs let expect: by as much as errors count less in [`Self::nmse`].
    fn turned(&self) -> f64 {
        let share = if self.want > 0.0 { self.want / self.want.max(self.expected) } else { 1.0 };
        (1.0 - self.cosine()) * share
    }

    fn cosine(&self) -> f64 {
        let norm = (self.got * self.want).sqrt();
        if norm > 0.0 && norm.is_finite() { (self.dot / norm).min(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOSE: Bounds = Bounds { rtol: 0.01, atol: 0.0, tiny: 0.0, variance: 1e-4, burst: 0.0 };

    fn f32s(values: &[f64]) -> Array {
        Array::floats(DType::F32, &[1, values.len()], |i| values[i])
    }

    fn of(got: &[f64], want: &[f64], bounds: Bounds) -> Comparison {
        compare("y", &f32s(got), &f32s(want), bounds, Context::default())
    }

    #[test]
    fn elements_are_held_to_their_bound() {
        assert!(of(&[1.005, -2.0], &[1.0, -2.0], LOOSE).passed);
        let c = of(&[1.0, -2.1], &[1.0, -2.0], LOOSE);
        assert!(!c.passed && (c.share - 0.5).abs() < 1e-9);
        let worst = c.worst.unwrap();
        assert_eq!((worst.index.as_slice(), worst.want.as_str()), ([0, 1].as_slice(), "-2"));
        assert!(c.failure.unwrap().starts_with("y[0, 1] is -2.1"));
    }

    #[test]
    fn nan_and_infinities_stay_where_they_are() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        assert!(of(&[nan, inf, 1.0], &[nan, inf, 1.0], LOOSE).passed);
        for got in [[1.0, inf, 1.0], [nan, -inf, 1.0], [nan, 3e38, 1.0], [nan, inf, nan]] {
            assert!(!of(&got, &[nan, inf, 1.0], LOOSE).passed, "{got:?}");
        }
    }

    #[test]
    fn the_whole_is_held_too() {
        // Every element within 2 %, but all biased the same way: 4e-4 of the square.
        let wide = Bounds { rtol: 0.03, ..LOOSE };
        let want: Vec<f64> = (1..100).map(f64::from).collect();
        let got: Vec<f64> = want.iter().map(|w| w * 1.02).collect();
        let c = of(&got, &want, wide);
        assert!(!c.passed && c.share > 0.999 && c.failure.unwrap().contains("as a whole"));
    }

    #[test]
    fn zeros_of_padding_are_exact_and_exact_is_exact() {
        let wide = Bounds { rtol: 0.5, atol: 1.0, tiny: 0.0, variance: 1.0, burst: 0.0 };
        assert!(!of(&[0.0, 1e-9], &[0.0, 0.0], wide).passed);
        assert!(of(&[-0.0, 0.0], &[0.0, 0.0], wide).passed);
        assert!(!of(&[1.0 + 1e-7], &[1.0], EXACT).passed);
        let id = |v: i64| Array::ints(DType::I32, &[1], &[v]);
        assert!(!compare("ids", &id(3), &id(4), EXACT, Context::default()).passed);
        let exempt = Context { exempt: &[0], ..Context::default() };
        assert!(compare("ids", &id(3), &id(4), EXACT, exempt).passed);
    }

    #[test]
    fn a_sum_that_vanishes_is_measured_by_its_inputs() {
        let bounds = Bounds { rtol: 1e-6, atol: 1e-5, tiny: 0.0, variance: 1e-10, burst: 0.0 };
        let (got, want) = (f32s(&[1e-3 + 5e-6, 1e-3 - 5e-6]), f32s(&[1e-3, 1e-3]));
        let among = |expected: &[f64]| {
            let context = Context { expected, ..Context::default() };
            compare("y", &got, &want, bounds, context).passed
        };
        assert!(!among(&[]) && !among(&[0.1]) && among(&[1.0]));
    }

    #[test]
    fn tiny_errors_are_none() {
        let flush = Bounds { rtol: 0.0, atol: 0.0, tiny: 1e-37, variance: 1e-10, burst: 0.0 };
        assert!(of(&[0.0, 1.0], &[1e-38, 1.0], flush).passed);
        assert!(of(&[0.0], &[1e-38], flush).passed);
        assert!(!of(&[0.0], &[1e-36], flush).passed);
    }
}
