//! How far a result may be from the oracle's: derived from dtypes, lengths of sums and order of operations.
//!
//! The oracle computes in f64 and rounds once. A backend computes in f32 or better, in any order, and rounds once; where the contract
//! lets it, it also rounds to the compute type in between. [`error`] says what each op may lose before the last rounding, as an
//! [`Error`] in terms of the unit roundoff `u` (half a unit in the last place of 1: 2⁻²⁴ for f32, 2⁻¹¹ for f16, 2⁻⁸ for bf16);
//! [`Error::bounds`] adds the roundings of both sides and turns it into what elements and the whole are held to.
//!
//! The derivations are statistical where sums are long: worst cases grow with their length n, but roundings of independent inputs of
//! mean zero, as the suite draws them, add up like √n (Higham and Mary, "Sharper probabilistic backward error analysis for basic
//! linear algebra kernels with random data", 2020). A bound is six standard deviations: among 10⁸ elements it fails none by chance. Errors of
//! running sums are no normal numbers, and want more, see [`Error::walk`].

mod error;

use halyard_core::{DType, OpBuf};

use crate::{array::is_float, generate::Inputs};

/// Bounds for one output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// Every element: `|got - want| <= rtol |want| + atol scale`.
    pub(crate) rtol: f64,
    /// See `rtol`; the scale is the root mean square of the row, or what its inputs let expect if that is more.
    pub(crate) atol: f64,
    /// Errors up to this are none: matrix units may take numbers below the normal range of f32 for zero.
    pub(crate) tiny: f64,
    /// Expected `Σ (got - want)² / Σ want²` at most; few elements may be less lucky, see [`Bounds::nmse`].
    pub(crate) variance: f64,
    /// What one element alone may add to `Σ (got - want)²`, of the mean of `want²`, where errors are those of running sums.
    pub(crate) burst: f64,
}

/// Same bits (NaN of any payload).
pub(crate) const EXACT: Bounds =
    Bounds { rtol: 0.0, atol: 0.0, tiny: 0.0, variance: 0.0, burst: 0.0 };

impl Bounds {
    /// What `Σ (got - want)² / Σ want²` of so many elements may be.
    ///
    /// A mean of n squares has a deviation of √(2/n) of itself for normal errors, and less for uniform ones: six of them are `8.5/√n`. What
    /// an element may be off by alone must not be too much for all of them.
    pub(crate) fn nmse(&self, elements: usize) -> f64 {
        let elements = elements.max(1) as f64;
        self.variance * (1.0 + 8.5 / elements.sqrt()) + self.burst / elements
    }
}

/// What one rounding to nearest loses at most, relative to the value.
pub(crate) fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => F32,
    }
}

/// The unit roundoff of f32, in which backends compute.
const F32: f64 = 1.0 / 16_777_216.0;

/// Standard deviations in a bound.
const DEVIATIONS: f64 = 6.0;

/// The same of running sums: as improbable, see [`Error::walk`].
const WALK_DEVIATIONS: f64 = 13.0;

/// `Σ |w|` is about 0.8 √K where weights have a deviation of 1/√K: so much can be lost if each input is flushed to zero.
const FLUSHED: f64 = 64.0 * f32::MIN_POSITIVE as f64;

/// What a computation loses before its result is rounded to the dtype that it is kept in.
#[derive(Clone, Copy, Debug, Default)]
struct Error {
    /// At most so much of the value itself.
    relative: f64,
    /// At most so much of the row's scale.
    shift: f64,
    /// Square of the standard deviation of what else is random, relative to the row's scale.
    variance: f64,
    /// The same of running sums.
    walk: f64,
    /// Whether products may take numbers below the normal range for zero.
    products: bool,
}

impl Error {
    const NONE: Self =
        Self { relative: 0.0, shift: 0.0, variance: 0.0, walk: 0.0, products: false };

    fn relative(units: f64) -> Self {
        Self { relative: units * F32, ..Self::NONE }
    }

    fn shift(units: f64) -> Self {
        Self { shift: units * F32, ..Self::NONE }
    }

    fn random(variance: f64) -> Self {
        Self { variance, ..Self::NONE }
    }

    /// The error of a sum of many terms of mean zero, which is rounded after each, of variance u²/3 of the square of what it is by then.
    ///
    /// The partial sums are a random walk, and the error's variance is the mean of their squares, which differs from walk to walk: a sum that
    /// went far on its way has lost more, wherever it ends. Of a long walk B the error is that of `∫ B dW` with another walk W, and its
    /// characteristic function `E exp(-θ²/2 ∫ B²) = 1/√cosh θ` (Cameron and Martin, "Transformations of Wiener integrals under translations",
    /// 1944): a variance of 1/2, and beyond x, on both sides together, `0.72 e^{-π x/2} / √x`. That is 10⁻⁹ at x = 12.2, or 17 deviations. The
    /// variance given is that of the lower end of a binade; of numbers spread over it, 3/(8 ln 2) = 0.54 of it is true: 13 deviations.
    fn walk(variance: f64) -> Self {
        Self { walk: variance, ..Self::NONE }
    }

    /// Twice as much, where numbers are off by their own error and another's as large.
    fn doubled(self) -> Self {
        Self {
            shift: 2.0 * self.shift,
            variance: 4.0 * self.variance,
            walk: 4.0 * self.walk,
            ..self
        }
    }

    /// Both.
    fn and(self, other: Self) -> Self {
        Self {
            relative: self.relative + other.relative,
            shift: self.shift + other.shift,
            variance: self.variance + other.variance,
            walk: self.walk + other.walk,
            products: self.products || other.products,
        }
    }

    /// With one rounding to the dtype on either side.
    ///
    /// Each can fall the other way: an element may be 2u apart. A rounding of numbers spread over a binade has the variance u²/3 of
    /// those at its lower end, and less of the others.
    fn bounds(self, dtype: DType) -> Bounds {
        let unit = unit_roundoff(dtype);
        let known = self.relative + self.shift;
        let burst = WALK_DEVIATIONS.powi(2) * self.walk;
        Bounds {
            rtol: 2.0 * unit + self.relative,
            atol: self.shift + (DEVIATIONS.powi(2) * self.variance + burst).sqrt(),
            tiny: if self.products { FLUSHED } else { 0.0 },
            variance: 2.0 * unit * unit / 3.0 + known * known + self.variance + self.walk,
            burst,
        }
    }
}

/// The bounds of an op's output of a dtype.
pub(crate) fn bounds(op: &OpBuf, inputs: &Inputs, dtype: DType) -> Bounds {
    if !is_float(dtype) {
        return EXACT;
    }
    error::of_output(op, inputs).map_or(EXACT, |error| error.bounds(dtype))
}

/// The bounds of what attention sees in a cache that an op changed.
pub(crate) fn probe_bounds(op: &OpBuf, inputs: &Inputs, dtype: DType) -> Bounds {
    error::of_cache(op, inputs).bounds(dtype)
}
