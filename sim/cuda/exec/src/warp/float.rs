//! Floats: f32 with its roundings and approximations, f64, packed halves.

use super::registers::{LANES, O, Registers, each};
use crate::number::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::program::{F32, F64, Half, HalfKind, Mode, Round};

#[inline(always)]
fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

#[inline(always)]
pub(super) fn f32s(r: &mut Registers, m: u32, o: &O, op: F32, mode: Mode) {
    let plain = Mode { round: Round::Nearest, flush: false, saturate: false };
    if mode == plain { nearest(r, m, o, op, |x| x, |x| x) } else { special(r, m, o, op, mode) }
}

/// Operations that flush, saturate or round in another direction; rare, so one lane at a time.
#[inline(never)]
fn special(r: &mut Registers, m: u32, o: &O, op: F32, mode: Mode) {
    let flush = move |x: f32| if mode.flush && x.is_subnormal() { 0f32.copysign(x) } else { x };
    let finish = move |x: f32| {
        let x = flush(x);
        if !mode.saturate {
            x
        } else if x.is_nan() {
            0.0
        } else {
            x.clamp(0.0, 1.0)
        }
    };
    if mode.round == Round::Nearest {
        return nearest(r, m, o, op, flush, finish);
    }
    let (x, y, z) = (*r.word(o[1]), *r.word(o[2]), *r.word(o[3]));
    let values: [u32; LANES] = each(|lane| {
        let (x, y, z) = (flush(f(x[lane])), flush(f(y[lane])), flush(f(z[lane])));
        let (a, b, c) = match op {
            F32::Add => (x, 1.0, y),
            F32::Sub => (x, 1.0, -y),
            F32::Mul => (x, y, -0.0),
            _ => (x, y, z),
        };
        finish(fma_rounded(a, b, c, mode.round)).to_bits()
    });
    r.set_word(o[0], m, &values);
}

/// `a · b + c`, rounded as `round` says: the sum in f64 with its error, cut to f32 in the right direction.
fn fma_rounded(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    // Knuth's two-sum: what rounding the sum to f64 lost.
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    let nearest = sum as f32;
    let rest = (sum - f64::from(nearest)) + lost;
    let down = match round {
        Round::Nearest => return nearest,
        Round::Down => true,
        Round::Up => false,
        Round::Zero => sum > 0.0,
    };
    if nearest.is_infinite() && (nearest > 0.0) == down {
        return nearest.signum() * f32::MAX;
    }
    if down && rest < 0.0 {
        nearest.next_down()
    } else if !down && rest > 0.0 {
        nearest.next_up()
    } else {
        nearest
    }
}

#[inline(always)]
fn nearest(
    r: &mut Registers,
    m: u32,
    o: &O,
    op: F32,
    enter: impl Fn(f32) -> f32,
    leave: impl Fn(f32) -> f32,
) {
    macro_rules! unary {
        ($g:expr) => {
            r.map1(m, o, |x| leave($g(enter(f(x)))).to_bits())
        };
    }
    macro_rules! binary {
        ($g:expr) => {
            r.map2(m, o, |x, y| leave($g(enter(f(x)), enter(f(y)))).to_bits())
        };
    }
    match op {
        F32::Add => binary!(|x: f32, y: f32| x + y),
        F32::Sub => binary!(|x: f32, y: f32| x - y),
        F32::Mul => binary!(|x: f32, y: f32| x * y),
        F32::Div => binary!(|x: f32, y: f32| x / y),
        F32::Fma => {
            r.map3(m, o, |x, y, z| leave(enter(f(x)).mul_add(enter(f(y)), enter(f(z)))).to_bits());
        }
        F32::Min => binary!(f32::min),
        F32::Max => binary!(f32::max),
        F32::MinNan => {
            binary!(|x: f32, y: f32| if x.is_nan() || y.is_nan() { f32::NAN } else { x.min(y) });
        }
        F32::MaxNan => {
            binary!(|x: f32, y: f32| if x.is_nan() || y.is_nan() { f32::NAN } else { x.max(y) });
        }
        F32::Neg => unary!(|x: f32| -x),
        F32::Abs => unary!(f32::abs),
        F32::Ex2 => unary!(exp2),
        F32::Lg2 => unary!(f32::log2),
        F32::Rsqrt => unary!(|x: f32| 1.0 / x.sqrt()),
        F32::Rcp => unary!(|x: f32| 1.0 / x),
        F32::Sqrt => unary!(f32::sqrt),
        F32::Sin => unary!(f32::sin),
        F32::Cos => unary!(f32::cos),
        F32::Tanh => unary!(f32::tanh),
    }
}

/// 2^x within 2 ulp, as `ex2.approx` promises: a polynomial in the fraction, scaled in two steps so that subnormals
/// come out right.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    const C: [f32; 8] = [
        1.0,
        std::f32::consts::LN_2,
        0.240_226_5,
        0.055_504_11,
        0.009_618_129,
        0.001_333_355_8,
        0.000_154_035_3,
        0.000_015_252_734,
    ];
    let x = x.clamp(-160.0, 130.0);
    let whole = x.round_ties_even();
    let part = x - whole;
    let sum = C.iter().rev().fold(0f32, |sum, c| sum.mul_add(part, *c));
    let whole = whole as i32;
    let half = whole >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23).cast_unsigned());
    sum * power(half) * power(whole - half)
}

#[inline(never)]
pub(super) fn f64s(r: &mut Registers, m: u32, o: &O, op: F64) {
    let f = f64::from_bits;
    match op {
        F64::Add => r.map2_long(m, o, |x, y| (f(x) + f(y)).to_bits()),
        F64::Sub => r.map2_long(m, o, |x, y| (f(x) - f(y)).to_bits()),
        F64::Mul => r.map2_long(m, o, |x, y| (f(x) * f(y)).to_bits()),
        F64::Div => r.map2_long(m, o, |x, y| (f(x) / f(y)).to_bits()),
        F64::Fma => r.map3_long(m, o, |x, y, z| f(x).mul_add(f(y), f(z)).to_bits()),
        F64::Min => r.map2_long(m, o, |x, y| f(x).min(f(y)).to_bits()),
        F64::Max => r.map2_long(m, o, |x, y| f(x).max(f(y)).to_bits()),
        F64::Neg => r.map1_long(m, o, |x| (-f(x)).to_bits()),
        F64::Abs => r.map1_long(m, o, |x| f(x).abs().to_bits()),
        F64::Sqrt => r.map1_long(m, o, |x| f(x).sqrt().to_bits()),
        F64::Rcp => r.map1_long(m, o, |x| (1.0 / f(x)).to_bits()),
        F64::Rsqrt => r.map1_long(m, o, |x| (1.0 / f(x).sqrt()).to_bits()),
    }
}

#[inline(never)]
pub(super) fn halves(r: &mut Registers, m: u32, o: &O, op: Half, kind: HalfKind) {
    match kind {
        HalfKind::F16 => pairs(r, m, o, op, f16_to_f32, f32_to_f16),
        HalfKind::Bf16 => pairs(r, m, o, op, bf16_to_f32, f32_to_bf16),
    }
}

/// Both halves of each word, in f32 and rounded once. Sums and products of halves are exact enough in f32 that the second
/// rounding changes nothing; a fused product and sum goes through f64 for that.
fn pairs(
    r: &mut Registers,
    m: u32,
    o: &O,
    op: Half,
    wide: impl Fn(u16) -> f32 + Copy,
    narrow: impl Fn(f32) -> u16 + Copy,
) {
    let (x, y, z) = (*r.word(o[1]), *r.word(o[2]), *r.word(o[3]));
    let one = |x: u16, y: u16, z: u16| {
        let (x, y, z) = (wide(x), wide(y), wide(z));
        narrow(match op {
            Half::Add => x + y,
            Half::Sub => x - y,
            Half::Mul => x * y,
            Half::Fma => round_to_odd(f64::from(x).mul_add(f64::from(y), f64::from(z))),
            Half::Min => x.min(y),
            Half::Max => x.max(y),
            Half::Neg => -x,
            Half::Abs => x.abs(),
        })
    };
    let values = each(|lane| {
        let (x, y, z) = (x[lane], y[lane], z[lane]);
        let low = one(x as u16, y as u16, z as u16);
        let high = one((x >> 16) as u16, (y >> 16) as u16, (z >> 16) as u16);
        u32::from(low) | u32::from(high) << 16
    });
    r.set_word(o[0], m, &values);
}

/// An f32 that rounds to a narrower format as `x` does: inexact values get an odd last bit, so that they never look like
/// a tie.
fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near).to_bits() == x.to_bits() || !near.is_finite() {
        return near;
    }
    let truncated =
        if f64::from(near).abs() > x.abs() { f32::from_bits(near.to_bits() - 1) } else { near };
    f32::from_bits(truncated.to_bits() | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_two_units_of_the_last_place() {
        for step in -160_000..140_000 {
            let x = step as f32 / 1000.0;
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            let unit = (want * 2f64.powi(-23)).max(2f64.powi(-149));
            let fine = (got - want).abs() <= 2.0 * unit
                || (want > f64::from(f32::MAX) && got == f64::INFINITY);
            assert!(fine, "2^{x}: {got} for {want}");
        }
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!((exp2(f32::INFINITY), exp2(f32::NEG_INFINITY)), (f32::INFINITY, 0.0));
    }

    #[test]
    fn directed_rounding_brackets_the_exact_value() {
        let cases =
            [(1.1f32, 2.3, 1e-9), (3.0, 1.0 / 3.0, -1e-20), (1e20, 1e20, 1.0), (-1.5, 7.3, 0.1)];
        for (a, b, c) in cases {
            let [down, up, zero] =
                [Round::Down, Round::Up, Round::Zero].map(|round| fma_rounded(a, b, c, round));
            let exact = f64::from(a) * f64::from(b) + f64::from(c);
            assert!(f64::from(down) <= exact && exact <= f64::from(up), "{a} {b} {c}");
            assert_eq!(zero, if exact > 0.0 { down } else { up });
        }
        assert_eq!(fma_rounded(1e30, 1e30, 0.0, Round::Down), f32::MAX);
        assert_eq!(fma_rounded(1.0, 1.0, 1e-30, Round::Up), 1.0f32.next_up());
        assert_eq!(fma_rounded(1.0, 1.0, -1e-30, Round::Down), 1.0f32.next_down());
    }
}
