//! Functions built from [`Simd`]'s arithmetic: the same steps on every instruction set.

use super::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has few bits, so that a small integer times it is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Below this `exp` gives 0: the result would no longer be a normal number.
const EXP_MIN: f32 = -87.336_54;
/// Above this the result is that of the bound: close to the largest float.
const EXP_MAX: f32 = 88.37;

/// `e^x` within about one unit in the last place; 0 below -87.3, 2.4e38 above 88.37, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let t = s.min(s.splat(EXP_MAX), s.max(s.splat(EXP_MIN), x));
    let n = s.to_i(s.mul(t, s.splat(LOG2_E)));
    let nf = s.to_f(n);
    let r = s.fma(nf, s.splat(-LN2_LOW), s.fma(nf, s.splat(-LN2_HIGH), t));
    // Taylor to the seventh power: |r| <= ln(2)/2 leaves 5e-9.
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    let scale = s.from_bits(s.ishl::<23>(s.iadd(n, s.isplat(127))));
    s.select_lt(x, s.splat(EXP_MIN), s.splat(0.0), s.mul(p, scale))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `tanh x`.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // Near 0 the quotient below cancels, so an odd polynomial takes over.
    let zero = s.splat(0.0);
    let a = s.max(s.sub(zero, x), x);
    let e = exp(s, s.mul(a, s.splat(-2.0)));
    let big = s.div(s.sub(s.splat(1.0), e), s.add(s.splat(1.0), e));
    let big = s.select_lt(x, zero, s.sub(zero, big), big);
    let x2 = s.mul(x, x);
    let mut p = s.splat(-929_569.0 / 638_512_875.0);
    for c in [
        21_844.0 / 6_081_075.0,
        -1382.0 / 155_925.0,
        62.0 / 2835.0,
        -17.0 / 315.0,
        2.0 / 15.0,
        -1.0 / 3.0,
    ] {
        p = s.fma(p, x2, s.splat(c));
    }
    let small = s.fma(s.mul(p, x2), x, x);
    s.select_lt(a, s.splat(0.3), small, big)
}

/// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, the tanh form of GELU.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let x2 = s.mul(x, x);
    let inner = s.mul(x, s.fma(x2, s.splat(0.044_715), s.splat(1.0)));
    let t2 = s.mul(inner, s.splat(2.0 * 0.797_884_6));
    // (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel for negative x.
    let e = exp(s, s.sub(s.splat(0.0), t2));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `x/2 erfc(-x / sqrt 2)`, the exact form of GELU.
pub(crate) fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)) as f32
}

/// Complementary error function, good to about 1e-10 relative.
fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        // erf x = 2/sqrt(pi) e^(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!: every term is positive.
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
    }
    // Continued fraction e^(-x^2)/sqrt(pi) * 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + ...)))).
    let tail = (1..60).rev().fold(x, |f, k| x + 0.5 * f64::from(k) / f);
    0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() / tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Op};

    struct Map(fn(f64) -> f64, u8, Vec<f32>, f64);
    impl Op for &Map {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for &x in &self.2 {
                let v = s.splat(x);
                let y = s.to_array(match self.1 {
                    0 => exp(s, v),
                    1 => silu(s, v),
                    2 => tanh(s, v),
                    _ => gelu_tanh(s, v),
                })[7];
                let want = (self.0)(f64::from(x));
                let err = (f64::from(y) - want).abs();
                assert!(err <= self.3 * want.abs() + 1e-37, "f{}({x}) = {y}, want {want}", self.1);
            }
        }
    }

    fn sweep() -> Vec<f32> {
        let mut v: Vec<f32> = (-8700..8800).map(|i| i as f32 * 0.01).collect();
        v.extend((0..2000).map(|i| (i as f32 - 1000.0) * 1e-3));
        v.extend([0.0, -0.0, 1e-20, -1e-20]);
        v
    }

    #[test]
    fn functions_match_f64_on_every_instruction_set() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        };
        for isa in Isa::all_available() {
            isa.dispatch(&Map(f64::exp, 0, sweep(), 2.5e-7));
            isa.dispatch(&Map(silu, 1, sweep(), 5e-7));
            isa.dispatch(&Map(f64::tanh, 2, sweep(), 5e-7));
            // The exponent grows with x^3, and with it the effect of rounding it.
            let near: Vec<f32> = sweep().into_iter().filter(|x| x.abs() < 4.0).collect();
            isa.dispatch(&Map(gelu, 3, near, 3e-6));
        }
    }

    #[test]
    fn exp_at_the_ends() {
        struct Ends;
        impl Op for Ends {
            type Out = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let at = |x: f32| s.to_array(exp(s, s.splat(x)))[0];
                assert_eq!(at(f32::NEG_INFINITY), 0.0);
                assert_eq!(at(-1000.0), 0.0);
                assert_eq!(at(0.0), 1.0);
                assert!(at(f32::INFINITY) > 1e38);
                assert!(at(f32::NAN).is_nan());
            }
        }
        Isa::all_available().into_iter().for_each(|isa| isa.dispatch(Ends));
    }

    #[test]
    fn gelu_erf_known_values() {
        for (x, y) in [(0.0, 0.0), (1.0, 0.841_344_7), (-1.0, -0.158_655_25), (3.0, 2.995_95)] {
            assert!((gelu_erf(x) - y).abs() < 1e-6 * y.abs().max(1e-6), "{x}: {}", gelu_erf(x));
        }
        assert!((gelu_erf(-5.0) / -1.433_258e-6 - 1.0).abs() < 1e-5);
    }
}
