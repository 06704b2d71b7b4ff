//! `y = act(min(g, L)) clamp(u, -L, L)`, `gu` holding `g` then `u`; `L` is LIMIT, 0 for none.

use halyard_sdk::{
    Result,
    abi::ops::{Act, attrs::ActMul},
};

use crate::{glue::Args, rows};

pub(super) fn run(attrs: &ActMul, args: &Args) -> Result<()> {
    let (gu, y) = (args.tensor(0)?, args.tensor(1)?);
    for t in 0..gu.dim(0) {
        y.set_row(&[t], act_mul(attrs.act, attrs.limit, &rows::read(&gu, &[t])));
    }
    Ok(())
}

/// The formula on one row; MOE_EXPERTS has it inside.
pub(super) fn act_mul(act: Act, limit: f64, gu: &[f64]) -> Vec<f64> {
    let (gate, up) = gu.split_at(gu.len() / 2);
    let one = |(&g, &u): (&f64, &f64)| {
        if limit > 0.0 {
            activation(act, at_most(g, limit)) * at_least(at_most(u, limit), -limit)
        } else {
            activation(act, g) * u
        }
    };
    gate.iter().zip(up).map(one).collect()
}

/// `min` that keeps NaN.
fn at_most(x: f64, limit: f64) -> f64 {
    if x > limit { limit } else { x }
}

/// `max` that keeps NaN.
fn at_least(x: f64, limit: f64) -> f64 {
    if x < limit { limit } else { x }
}

fn activation(act: Act, g: f64) -> f64 {
    match act {
        Act::Silu => g / (1.0 + (-g).exp()),
        Act::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g * g * g);
            0.5 * g * (1.0 + inner.tanh())
        }
        // 1 + erf(x) = erfc(-x), which does not cancel for negative x.
        Act::GeluErf => 0.5 * g * erfc(-g * std::f64::consts::FRAC_1_SQRT_2),
    }
}

/// `1 - erf(x)`.
fn erfc(x: f64) -> f64 {
    let two_over_sqrt_pi = std::f64::consts::FRAC_2_SQRT_PI;
    if x < 2.0 {
        if x < -6.0 {
            return 2.0;
        }
        // erf(x) = 2/√π e^(-x²) Σ 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n+1)): all terms have one sign.
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - two_over_sqrt_pi * (-x * x).exp() * sum;
    }
    // Laplace's continued fraction: √π e^(x²) erfc(x) = 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …)))).
    let fraction = (1..100).rev().fold(x, |tail, n| x + f64::from(n) / 2.0 / tail);
    0.5 * two_over_sqrt_pi * (-x * x).exp() / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_at_known_points() {
        // Abramowitz and Stegun, table 7.1, and erfc(4), erfc(-1).
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (4.0, 1.541_725_790_028_002e-8),
            (-1.0, 1.842_700_792_949_714_8),
        ] {
            let got = erfc(x);
            assert!((got / want - 1.0).abs() < 1e-13, "erfc({x}) = {got}, expected {want}");
        }
        assert!((erfc(1.999_999) - erfc(2.0)).abs() < 1e-7);
    }

    #[test]
    fn activations_by_hand() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(activation(Act::Silu, 0.0), 0.0);
        close(activation(Act::Silu, 2.0), 2.0 / (1.0 + (-2.0f64).exp()));
        close(activation(Act::Silu, -800.0), 0.0);
        close(activation(Act::GeluErf, 1.0), 0.841_344_746_068_543);
        close(activation(Act::GeluTanh, 1.0), 0.841_191_990_608_276);
    }

    #[test]
    fn the_limit_clamps_gate_above_and_up_both_ways() {
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let y = act_mul(Act::Silu, 2.0, &[5.0, -9.0, 1.0, 1.0, -7.0, 7.0]);
        assert_eq!(y, [silu(2.0), -2.0 * silu(-9.0), 2.0 * silu(1.0)]);
        assert_eq!(act_mul(Act::Silu, 0.0, &[5.0, -7.0]), [silu(5.0) * -7.0]);
    }
}
