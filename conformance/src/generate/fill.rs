//! Ways to fill a float tensor.

use half::f16;
use halyard_core::DType;
use serde::Deserialize;

use crate::{array::Array, rng::Rng};

/// How a float tensor is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fill {
    /// Normal, variance 1.
    #[default]
    Normal,
    /// Normal, one in 32 fifty times as large: activations of real models look so.
    Outliers,
    /// Normal times 1e-3: an `eps` counts.
    Small,
    /// Normal times 1000: sums pass the range where f16 is exact.
    Large,
    /// Smaller than the smallest normal number of f16 (of f32 for the other dtypes).
    Subnormal,
    /// All zero.
    Zeros,
    /// Normal with a single NaN.
    OneNan,
    /// Normal with a single +inf.
    OneInf,
    /// Infinities, NaN, zeros of both signs and the extremes of the dtype among normal values.
    Specials,
    /// Small integers: many equal values.
    Ties,
    /// Numbers between integers, halves included, some beyond every integer type.
    Integers,
    /// Multiples of a half up to 127, the largest among them: a scale of 1 or a power of two, and many ties.
    Halves,
    /// All -inf.
    NegInf,
    /// -inf, NaN and a few finite values.
    Masked,
    /// Normal, one in four -inf.
    Holes,
    /// From -4 to 4, the largest last.
    Rising,
    /// Nearly zero, one in 20,000 above by more than anything else together weighs.
    Peak,
    /// All one.
    Ones,
}

impl Fill {
    /// A filled tensor.
    pub(crate) fn array(self, dtype: DType, dims: &[usize], rng: &mut Rng) -> Array {
        if self == Self::Rising {
            let width = dims.last().copied().unwrap_or(1).max(1);
            return Array::floats(dtype, dims, |i| 8.0 * (i % width) as f64 / width as f64 - 4.0);
        }
        let mut array = Array::floats(dtype, dims, |_| self.value(dtype, rng));
        let single = match self {
            Self::OneNan => f64::NAN,
            Self::OneInf => f64::INFINITY,
            _ => return array,
        };
        if array.len() > 0 {
            array.set(rng.below(array.len()), single);
        }
        array
    }

    fn value(self, dtype: DType, rng: &mut Rng) -> f64 {
        let one_in = |rng: &mut Rng, n: usize| rng.below(n) == 0;
        match self {
            Self::Holes if one_in(rng, 4) => f64::NEG_INFINITY,
            Self::Normal | Self::OneNan | Self::OneInf | Self::Holes | Self::Rising => rng.normal(),
            Self::Outliers if one_in(rng, 32) => 50.0 * rng.normal(),
            Self::Outliers => rng.normal(),
            Self::Small => 1e-3 * rng.normal(),
            Self::Large => 1e3 * rng.normal(),
            Self::Subnormal => {
                let least_normal = match dtype {
                    DType::F16 => f64::from(f16::MIN_POSITIVE),
                    _ => f64::from(f32::MIN_POSITIVE),
                };
                rng.between(-0.9, 0.9) * least_normal
            }
            Self::Zeros => 0.0,
            Self::Specials if one_in(rng, 4) => special(dtype, rng),
            Self::Specials => rng.normal(),
            Self::Ties => rng.below(4) as f64 - 1.0,
            Self::Integers if one_in(rng, 8) => 1e10 * rng.normal(),
            Self::Integers => rng.below(41) as f64 / 2.0 - 10.0,
            Self::Halves if one_in(rng, 8) => 127.0,
            Self::Halves => rng.below(509) as f64 / 2.0 - 127.0,
            Self::NegInf => f64::NEG_INFINITY,
            Self::Peak if one_in(rng, 20_000) => 12.2,
            Self::Peak => 0.1 * rng.normal(),
            Self::Ones => 1.0,
            Self::Masked => match rng.below(8) {
                0 => rng.normal(),
                1 => f64::NAN,
                _ => f64::NEG_INFINITY,
            },
        }
    }
}

fn special(dtype: DType, rng: &mut Rng) -> f64 {
    let most = match dtype {
        DType::F16 => f64::from(f16::MAX),
        DType::BF16 => f64::from(half::bf16::MAX),
        _ => f64::from(f32::MAX),
    };
    let all = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0, -0.0, most, -most];
    all[rng.below(all.len())]
}
