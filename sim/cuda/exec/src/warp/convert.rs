//! Conversions, comparisons, selection.

use super::integer::combine;
use super::registers::{LANES, O, Registers, each};
use crate::number::{
    E4M3, E5M2, F8, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_bf16_cut, f32_to_f16,
    f32_to_f16_cut, f32_to_tf32,
};
use crate::program::{Compare, Convert, Kind, Round, Test, Width};
use halyard_sim_cuda_ptx::ScalarType as T;

/// Every test over ordered values; unordered ones (NaN) fail all but the `u` tests and `nan`.
macro_rules! tests {
    ($test:expr, $v:ty, $all:ident) => {
        match $test {
            Test::Eq => $all!(|x: &$v, y: &$v| x == y),
            Test::Lt => $all!(|x: &$v, y: &$v| x < y),
            Test::Le => $all!(|x: &$v, y: &$v| x <= y),
            Test::Gt => $all!(|x: &$v, y: &$v| x > y),
            Test::Ge => $all!(|x: &$v, y: &$v| x >= y),
            Test::Ne => $all!(|x: &$v, y: &$v| (x < y) | (x > y)),
            Test::Num => $all!(|x: &$v, y: &$v| x.partial_cmp(y).is_some()),
            // Each of these is the opposite of an ordered test.
            Test::Equ => !$all!(|x: &$v, y: &$v| (x < y) | (x > y)),
            Test::Neu => !$all!(|x: &$v, y: &$v| x == y),
            Test::Ltu => !$all!(|x: &$v, y: &$v| x >= y),
            Test::Leu => !$all!(|x: &$v, y: &$v| x > y),
            Test::Gtu => !$all!(|x: &$v, y: &$v| x <= y),
            Test::Geu => !$all!(|x: &$v, y: &$v| x < y),
            Test::Nan => !$all!(|x: &$v, y: &$v| x.partial_cmp(y).is_some()),
        }
    };
}

/// The frequent conversions as vector code, the others lane by lane.
#[inline(always)]
pub(super) fn convert(r: &mut Registers, m: u32, o: &O, c: Convert) {
    let plain = !c.saturate && !c.relu && !c.whole && c.round == Round::Nearest;
    match (c.to, c.from) {
        (T::Bf16, T::F32) if plain => r.map1(m, o, |x| f32_to_bf16(f32::from_bits(x)).into()),
        (T::Bf16x2, T::F32) if plain => r.map2(m, o, |high, low| {
            let half = |x| u32::from(f32_to_bf16(f32::from_bits(x)));
            half(high) << 16 | half(low)
        }),
        (T::F32, T::Bf16) if plain => r.map1(m, o, |x| x << 16),
        (T::F32, T::F16) if plain => r.map1(m, o, |x| f16_to_f32(x as u16).to_bits()),
        (T::F32, T::S32) if plain => r.map1(m, o, |x| (x.cast_signed() as f32).to_bits()),
        (T::F32, T::U32) if plain => r.map1(m, o, |x| (x as f32).to_bits()),
        (T::S64 | T::U64, T::S32) if !c.saturate => {
            let x = r.word(o[1]);
            let z = each(|lane| i64::from(x[lane].cast_signed()).cast_unsigned());
            r.set_long(o[0], m, &z);
        }
        (T::S64 | T::U64, T::U32) => {
            let x = r.word(o[1]);
            let z = each(|lane| u64::from(x[lane]));
            r.set_long(o[0], m, &z);
        }
        (T::U16 | T::S16, T::U16 | T::S16 | T::U32 | T::S32) if !c.saturate => {
            r.map1(m, o, |x| x & 0xffff);
        }
        (T::U32 | T::S32, T::U32 | T::S32) if !c.saturate => r.map1(m, o, |x| x),
        (T::U32 | T::S32, T::U16) if !c.saturate => r.map1(m, o, |x| x & 0xffff),
        (T::U32 | T::S32, T::U8) if !c.saturate => r.map1(m, o, |x| x & 0xff),
        (T::U32 | T::S32, T::S16) if !c.saturate => {
            r.map1(m, o, |x| i32::from((x as u16).cast_signed()).cast_unsigned());
        }
        (T::U32 | T::S32, T::S8) if !c.saturate => {
            r.map1(m, o, |x| i32::from((x as u8).cast_signed()).cast_unsigned());
        }
        (T::S32 | T::U32, T::S64 | T::U64) if !c.saturate => {
            let x = r.long(o[1]);
            let z = each(|lane| x[lane] as u32);
            r.set_word(o[0], m, &z);
        }
        _ => general(r, m, o, c),
    }
}

#[inline(never)]
fn general(r: &mut Registers, m: u32, o: &O, c: Convert) {
    if matches!(c.to, T::F16x2 | T::Bf16x2 | T::E4m3x2 | T::E5m2x2)
        || matches!(c.from, T::E4m3x2 | T::E5m2x2)
    {
        return packed(r, m, o, c);
    }
    let values: [u64; LANES] = each(|lane| {
        let bits =
            if c.from.bytes() == 8 { r.long(o[1])[lane] } else { u64::from(r.word(o[1])[lane]) };
        scalar(bits, c)
    });
    if c.to.bytes() == 8 {
        r.set_long(o[0], m, &values);
    } else {
        r.set_word(o[0], m, &values.map(|value| value as u32));
    }
}

/// A pair of narrow floats, of two f32 (the upper one first) or of another pair.
fn packed(r: &mut Registers, m: u32, o: &O, c: Convert) {
    let f8 = |ty| if ty == T::E4m3x2 { E4M3 } else { E5M2 };
    let relu = |x: f32| if c.relu && x < 0.0 { 0.0 } else { x };
    let (x, y) = (*r.word(o[1]), *r.word(o[2]));
    let eight = |format: F8, high: f32, low: f32| {
        u32::from(format.of_f32(relu(high))) << 8 | u32::from(format.of_f32(relu(low)))
    };
    let cut = c.round == Round::Zero;
    let half = |x: u32| {
        let x = relu(f32::from_bits(x));
        u32::from(match (c.to, cut) {
            (T::F16x2, false) => f32_to_f16(x),
            (T::F16x2, true) => f32_to_f16_cut(x),
            (_, false) => f32_to_bf16(x),
            (_, true) => f32_to_bf16_cut(x),
        })
    };
    let values = each(|lane| {
        let (x, y) = (x[lane], y[lane]);
        match (c.to, c.from) {
            (to @ (T::E4m3x2 | T::E5m2x2), T::F32) => {
                eight(f8(to), f32::from_bits(x), f32::from_bits(y))
            }
            (to @ (T::E4m3x2 | T::E5m2x2), _) => {
                eight(f8(to), f16_to_f32((x >> 16) as u16), f16_to_f32(x as u16))
            }
            (_, from @ (T::E4m3x2 | T::E5m2x2)) => {
                let wide = |bits: u32| u32::from(f32_to_f16(f8(from).to_f32(bits as u8)));
                wide(x >> 8) << 16 | wide(x)
            }
            _ => half(x) << 16 | half(y),
        }
    });
    r.set_word(o[0], m, &values);
}

/// What a source holds.
#[derive(Clone, Copy)]
enum Value {
    Whole(i128),
    Real(f64),
}

/// Converts the bits of one scalar.
fn scalar(bits: u64, c: Convert) -> u64 {
    let value = match c.from {
        T::S8 => Value::Whole((bits as u8).cast_signed().into()),
        T::S16 => Value::Whole((bits as u16).cast_signed().into()),
        T::S32 => Value::Whole((bits as u32).cast_signed().into()),
        T::S64 => Value::Whole(bits.cast_signed().into()),
        T::F16 => Value::Real(f16_to_f32(bits as u16).into()),
        T::Bf16 => Value::Real(bf16_to_f32(bits as u16).into()),
        T::F32 => Value::Real(f32::from_bits(bits as u32).into()),
        T::F64 => Value::Real(f64::from_bits(bits)),
        ty => Value::Whole((bits & width_mask(ty)).into()),
    };
    match c.to {
        T::F16 | T::Bf16 | T::F32 | T::F64 | T::Tf32 => real(value, c),
        // Narrow results fill their register: signed ones with their sign.
        T::S8 => u64::from(i32::from(whole(value, c) as i8).cast_unsigned()),
        ty => whole(value, c) & width_mask(ty),
    }
}

fn width_mask(ty: T) -> u64 {
    if ty.bytes() == 8 { u64::MAX } else { (1 << (8 * ty.bytes())) - 1 }
}

fn rounded(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// To an integer: floats are always clamped to its range, integers with `.sat`. Sign is kept beyond its width.
fn whole(value: Value, c: Convert) -> u64 {
    let bits = 8 * c.to.bytes() as u32;
    let signed = matches!(c.to, T::S8 | T::S16 | T::S32 | T::S64);
    let (least, most) = if signed {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    let value = match value {
        Value::Whole(value) if !c.saturate => value,
        Value::Whole(value) => value.clamp(least, most),
        Value::Real(value) => (rounded(value, c.round) as i128).clamp(least, most),
    };
    value as u64
}

/// To a float.
fn real(value: Value, c: Convert) -> u64 {
    let exact = match value {
        // An integer is rounded once, straight to the width that it goes to.
        Value::Whole(value) if c.to == T::F32 => {
            return u64::from(to_f32(value, c.round).to_bits());
        }
        Value::Whole(value) => value as f64,
        Value::Real(value) if c.whole => rounded(value, c.round),
        Value::Real(value) => value,
    };
    let exact = if c.relu && exact < 0.0 { 0.0 } else { exact };
    let exact = match (c.saturate, exact.is_nan()) {
        (true, true) => 0.0,
        (true, false) => exact.clamp(0.0, 1.0),
        _ => exact,
    };
    let single = narrowed(exact, c.round);
    match c.to {
        T::F64 => exact.to_bits(),
        T::F32 => u64::from(single.to_bits()),
        T::Tf32 => u64::from(f32_to_tf32(single).to_bits()),
        T::F16 if c.round == Round::Zero => f32_to_f16_cut(single).into(),
        T::F16 => f32_to_f16(single).into(),
        _ if c.round == Round::Zero => f32_to_bf16_cut(single).into(),
        _ => f32_to_bf16(single).into(),
    }
}

/// An f64 as f32, rounded as `round` says.
fn narrowed(exact: f64, round: Round) -> f32 {
    let near = exact as f32;
    let (up, down) = match round {
        Round::Nearest => return near,
        Round::Zero => (exact < 0.0, exact > 0.0),
        Round::Down => (false, true),
        Round::Up => (true, false),
    };
    if down && f64::from(near) > exact {
        near.next_down()
    } else if up && f64::from(near) < exact {
        near.next_up()
    } else {
        near
    }
}

fn to_f32(value: i128, round: Round) -> f32 {
    let near = value as f32;
    let back = near as i128;
    let (up, down) = match round {
        Round::Nearest => (false, false),
        Round::Zero => (value < 0, value > 0),
        Round::Down => (false, true),
        Round::Up => (true, false),
    };
    if down && back > value {
        near.next_down()
    } else if up && back < value {
        near.next_up()
    } else {
        near
    }
}

#[inline(always)]
pub(super) fn compare(r: &mut Registers, m: u32, o: &O, c: Compare, negated: bool) {
    let s = u32::cast_signed;
    let pair = (o[2], o[3]);
    let outcome = match c.kind {
        Kind::U32 => test_words(r, pair, c.test, |x| x),
        Kind::S32 => test_words(r, pair, c.test, s),
        Kind::F32 => test_words(r, pair, c.test, f32::from_bits),
        Kind::U16 => test_words(r, pair, c.test, |x| x as u16),
        Kind::S16 => test_words(r, pair, c.test, |x| (x as u16).cast_signed()),
        Kind::F16 => test_words(r, pair, c.test, |x| f16_to_f32(x as u16)),
        Kind::Bf16 => test_words(r, pair, c.test, |x| bf16_to_f32(x as u16)),
        Kind::U64 => test_longs(r, pair, c.test, |x| x),
        Kind::S64 => test_longs(r, pair, c.test, u64::cast_signed),
        Kind::F64 => test_longs(r, pair, c.test, f64::from_bits),
    };
    let (mut yes, mut no) = (outcome, !outcome);
    if let Some(with) = c.with {
        let other = r.predicate(o[4]) ^ if negated { u32::MAX } else { 0 };
        (yes, no) = (combine(with, yes, other), combine(with, no, other));
    }
    r.set_predicate(o[0], m, yes);
    r.set_predicate(o[1], m, no);
}

#[inline(always)]
fn test_words<V: PartialOrd>(
    r: &Registers,
    pair: (u16, u16),
    test: Test,
    read: impl Fn(u32) -> V,
) -> u32 {
    macro_rules! all {
        ($f:expr) => {
            r.test(pair, |x, y| $f(&read(x), &read(y)))
        };
    }
    tests!(test, V, all)
}

#[inline(always)]
fn test_longs<V: PartialOrd>(
    r: &Registers,
    pair: (u16, u16),
    test: Test,
    read: impl Fn(u64) -> V,
) -> u32 {
    macro_rules! all {
        ($f:expr) => {
            r.test_long(pair, |x, y| $f(&read(x), &read(y)))
        };
    }
    tests!(test, V, all)
}

#[inline(always)]
pub(super) fn select(r: &mut Registers, m: u32, o: &O, width: Width) {
    let chosen = r.predicate(o[3]);
    if width == Width::W64 {
        let (yes, no) = (r.long(o[1]), r.long(o[2]));
        let z = each(|lane| {
            let taken = u64::from(chosen >> lane & 1).wrapping_neg();
            yes[lane] & taken | no[lane] & !taken
        });
        r.set_long(o[0], m, &z);
    } else {
        let (yes, no) = (r.word(o[1]), r.word(o[2]));
        let z = each(|lane| {
            let taken = (chosen >> lane & 1).wrapping_neg();
            yes[lane] & taken | no[lane] & !taken
        });
        r.set_word(o[0], m, &z);
    }
}
