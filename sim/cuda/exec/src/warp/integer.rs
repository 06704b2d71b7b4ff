//! Integers, bits and predicates.

use super::registers::{LANES, O, Registers, each};
use crate::program::{Bits, Int, Logic, Move, Wide, Width};

/// Sign-extends 16 bits.
#[inline(always)]
fn s16(x: u32) -> i32 {
    i32::from(x as u16 as i16)
}

/// Zero-extends 16 bits.
#[inline(always)]
fn u16_of(x: u32) -> u32 {
    x & 0xffff
}

#[inline(always)]
pub(super) fn int(r: &mut Registers, m: u32, o: &O, op: Int, width: Width) {
    match width {
        Width::W32 => int32(r, m, o, op),
        Width::W64 => int64(r, m, o, op),
        Width::W16 => int16(r, m, o, op),
    }
}

#[inline(always)]
fn int32(r: &mut Registers, m: u32, o: &O, op: Int) {
    let s = u32::cast_signed;
    match op {
        Int::Add => r.map2(m, o, u32::wrapping_add),
        Int::Sub => r.map2(m, o, u32::wrapping_sub),
        Int::Mul => r.map2(m, o, u32::wrapping_mul),
        Int::MulHiS => r.map2(m, o, high_signed),
        Int::MulHiU => r.map2(m, o, high),
        Int::Mad => r.map3(m, o, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        Int::MadHiS => r.map3(m, o, |x, y, z| high_signed(x, y).wrapping_add(z)),
        Int::MadHiU => r.map3(m, o, |x, y, z| high(x, y).wrapping_add(z)),
        // Division by zero gives an unspecified value: all ones here.
        Int::DivS => {
            r.map2(
                m,
                o,
                |x, y| if y == 0 { u32::MAX } else { s(x).wrapping_div(s(y)).cast_unsigned() },
            );
        }
        Int::DivU => r.map2(m, o, |x, y| x.checked_div(y).unwrap_or(u32::MAX)),
        Int::RemS => {
            r.map2(m, o, |x, y| if y == 0 { x } else { s(x).wrapping_rem(s(y)).cast_unsigned() });
        }
        Int::RemU => r.map2(m, o, |x, y| x.checked_rem(y).unwrap_or(x)),
        Int::MinS => r.map2(m, o, |x, y| s(x).min(s(y)).cast_unsigned()),
        Int::MinU => r.map2(m, o, u32::min),
        Int::MaxS => r.map2(m, o, |x, y| s(x).max(s(y)).cast_unsigned()),
        Int::MaxU => r.map2(m, o, u32::max),
        Int::AbsS => r.map1(m, o, |x| s(x).wrapping_abs().cast_unsigned()),
        Int::Neg => r.map1(m, o, u32::wrapping_neg),
        Int::And => r.map2(m, o, |x, y| x & y),
        Int::Or => r.map2(m, o, |x, y| x | y),
        Int::Xor => r.map2(m, o, |x, y| x ^ y),
        Int::Not => r.map1(m, o, |x| !x),
        Int::Shl => r.map2(m, o, |x, y| if y < 32 { x << y } else { 0 }),
        Int::ShrU => r.map2(m, o, |x, y| if y < 32 { x >> y } else { 0 }),
        Int::ShrS => r.map2(m, o, |x, y| (s(x) >> y.min(31)).cast_unsigned()),
    }
}

#[inline(always)]
fn high(x: u32, y: u32) -> u32 {
    ((u64::from(x) * u64::from(y)) >> 32) as u32
}

#[inline(always)]
fn high_signed(x: u32, y: u32) -> u32 {
    ((i64::from(x.cast_signed()) * i64::from(y.cast_signed())) >> 32) as u32
}

/// 16-bit operations, on registers of 32 bits whose upper half is ignored and left zero.
#[inline(always)]
fn int16(r: &mut Registers, m: u32, o: &O, op: Int) {
    let u = u16_of;
    let cut = |x: i32| u16_of(x.cast_unsigned());
    match op {
        Int::Add => r.map2(m, o, |x, y| u(x.wrapping_add(y))),
        Int::Sub => r.map2(m, o, |x, y| u(x.wrapping_sub(y))),
        Int::Mul => r.map2(m, o, |x, y| u(x.wrapping_mul(y))),
        Int::MulHiS => r.map2(m, o, |x, y| cut((s16(x) * s16(y)) >> 16)),
        Int::MulHiU => r.map2(m, o, |x, y| (u(x) * u(y)) >> 16),
        Int::Mad => r.map3(m, o, |x, y, z| u(x.wrapping_mul(y).wrapping_add(z))),
        Int::MadHiS => r.map3(m, o, |x, y, z| cut(((s16(x) * s16(y)) >> 16) + s16(z))),
        Int::MadHiU => r.map3(m, o, |x, y, z| u(((u(x) * u(y)) >> 16) + z)),
        Int::DivS => r.map2(m, o, |x, y| cut(s16(x).checked_div(s16(y)).unwrap_or(-1))),
        Int::DivU => r.map2(m, o, |x, y| u(x).checked_div(u(y)).unwrap_or(0xffff)),
        Int::RemS => r.map2(m, o, |x, y| cut(s16(x).checked_rem(s16(y)).unwrap_or(s16(x)))),
        Int::RemU => r.map2(m, o, |x, y| u(x).checked_rem(u(y)).unwrap_or(u(x))),
        Int::MinS => r.map2(m, o, |x, y| cut(s16(x).min(s16(y)))),
        Int::MinU => r.map2(m, o, |x, y| u(x).min(u(y))),
        Int::MaxS => r.map2(m, o, |x, y| cut(s16(x).max(s16(y)))),
        Int::MaxU => r.map2(m, o, |x, y| u(x).max(u(y))),
        Int::AbsS => r.map1(m, o, |x| cut(s16(x).abs())),
        Int::Neg => r.map1(m, o, |x| u(x.wrapping_neg())),
        Int::And => r.map2(m, o, |x, y| u(x & y)),
        Int::Or => r.map2(m, o, |x, y| u(x | y)),
        Int::Xor => r.map2(m, o, |x, y| u(x ^ y)),
        Int::Not => r.map1(m, o, |x| u(!x)),
        Int::Shl => r.map2(m, o, |x, y| if y < 16 { u(x << y) } else { 0 }),
        Int::ShrU => r.map2(m, o, |x, y| if y < 16 { u(x) >> y } else { 0 }),
        Int::ShrS => r.map2(m, o, |x, y| cut(s16(x) >> y.min(15))),
    }
}

#[inline(always)]
fn int64(r: &mut Registers, m: u32, o: &O, op: Int) {
    let s = u64::cast_signed;
    let signed = |x: i64| x.cast_unsigned();
    match op {
        Int::Add => r.map2_long(m, o, u64::wrapping_add),
        Int::Sub => r.map2_long(m, o, u64::wrapping_sub),
        Int::Mul => r.map2_long(m, o, u64::wrapping_mul),
        Int::MulHiS => {
            r.map2_long(m, o, |x, y| ((i128::from(s(x)) * i128::from(s(y))) >> 64) as u64);
        }
        Int::MulHiU => r.map2_long(m, o, |x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
        Int::Mad => r.map3_long(m, o, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        Int::MadHiS => r.map3_long(m, o, |x, y, z| {
            (((i128::from(s(x)) * i128::from(s(y))) >> 64) as u64).wrapping_add(z)
        }),
        Int::MadHiU => r.map3_long(m, o, |x, y, z| {
            (((u128::from(x) * u128::from(y)) >> 64) as u64).wrapping_add(z)
        }),
        Int::DivS => {
            r.map2_long(
                m,
                o,
                |x, y| if y == 0 { u64::MAX } else { signed(s(x).wrapping_div(s(y))) },
            );
        }
        Int::DivU => r.map2_long(m, o, |x, y| x.checked_div(y).unwrap_or(u64::MAX)),
        Int::RemS => {
            r.map2_long(m, o, |x, y| if y == 0 { x } else { signed(s(x).wrapping_rem(s(y))) });
        }
        Int::RemU => r.map2_long(m, o, |x, y| x.checked_rem(y).unwrap_or(x)),
        Int::MinS => r.map2_long(m, o, |x, y| signed(s(x).min(s(y)))),
        Int::MinU => r.map2_long(m, o, u64::min),
        Int::MaxS => r.map2_long(m, o, |x, y| signed(s(x).max(s(y)))),
        Int::MaxU => r.map2_long(m, o, u64::max),
        Int::AbsS => r.map1_long(m, o, |x| signed(s(x).wrapping_abs())),
        Int::Neg => r.map1_long(m, o, u64::wrapping_neg),
        Int::And => r.map2_long(m, o, |x, y| x & y),
        Int::Or => r.map2_long(m, o, |x, y| x | y),
        Int::Xor => r.map2_long(m, o, |x, y| x ^ y),
        Int::Not => r.map1_long(m, o, |x| !x),
        Int::Shl => shift64(r, m, o, |x, y| if y < 64 { x << y } else { 0 }),
        Int::ShrU => shift64(r, m, o, |x, y| if y < 64 { x >> y } else { 0 }),
        Int::ShrS => shift64(r, m, o, |x, y| signed(s(x) >> y.min(63))),
    }
}

#[inline(always)]
fn shift64(r: &mut Registers, m: u32, o: &O, f: impl Fn(u64, u32) -> u64) {
    let (x, y) = (r.long(o[1]), r.word(o[2]));
    let z = each(|lane| f(x[lane], y[lane]));
    r.set_long(o[0], m, &z);
}

#[inline(always)]
pub(super) fn wide(r: &mut Registers, m: u32, o: &O, op: Wide) {
    let (x, y) = (r.word(o[1]), r.word(o[2]));
    if op.from == Width::W16 {
        let z: [u32; LANES] = if op.signed {
            each(|lane| (s16(x[lane]) * s16(y[lane])).cast_unsigned())
        } else {
            each(|lane| u16_of(x[lane]) * u16_of(y[lane]))
        };
        let z = if op.add {
            let addend = r.word(o[3]);
            each(|lane| z[lane].wrapping_add(addend[lane]))
        } else {
            z
        };
        return r.set_word(o[0], m, &z);
    }
    let signed = |x: u32| i64::from(x.cast_signed());
    let z: [u64; LANES] = if op.signed {
        each(|lane| (signed(x[lane]) * signed(y[lane])).cast_unsigned())
    } else {
        each(|lane| u64::from(x[lane]) * u64::from(y[lane]))
    };
    let z = if op.add {
        let addend = r.long(o[3]);
        each(|lane| z[lane].wrapping_add(addend[lane]))
    } else {
        z
    };
    r.set_long(o[0], m, &z);
}

#[inline(always)]
pub(super) fn logic(r: &mut Registers, m: u32, o: &O, op: Logic) {
    let (x, y) = (r.predicate(o[1]), r.predicate(o[2]));
    r.set_predicate(o[0], m, combine(op, x, y));
}

#[inline(always)]
pub(super) fn combine(op: Logic, x: u32, y: u32) -> u32 {
    match op {
        Logic::And => x & y,
        Logic::Or => x | y,
        Logic::Xor => x ^ y,
        Logic::Not => !x,
    }
}

#[inline(always)]
pub(super) fn bits(r: &mut Registers, m: u32, o: &O, op: Bits) {
    match op {
        Bits::Popc32 => r.map1(m, o, u32::count_ones),
        Bits::Clz32 => r.map1(m, o, u32::leading_zeros),
        Bits::Popc64 => long_to_word(r, m, o, u64::count_ones),
        Bits::Clz64 => long_to_word(r, m, o, u64::leading_zeros),
        Bits::Brev32 => r.map1(m, o, u32::reverse_bits),
        Bits::Brev64 => r.map1_long(m, o, u64::reverse_bits),
        Bits::Find { signed, shift } => r.map1(m, o, |x| find(x, signed, shift)),
        Bits::Lop3(table) => r.map3(m, o, |x, y, z| lop3(x, y, z, table)),
        Bits::Permute => r.map3(m, o, permute),
        Bits::FunnelLeft { clamp } => r.map3(m, o, |low, high, by| {
            let by = if clamp { by.min(32) } else { by & 31 };
            ((((u64::from(high) << 32) | u64::from(low)) << by) >> 32) as u32
        }),
        Bits::FunnelRight { clamp } => r.map3(m, o, |low, high, by| {
            let by = if clamp { by.min(32) } else { by & 31 };
            (((u64::from(high) << 32) | u64::from(low)) >> by) as u32
        }),
        Bits::ExtractU => r.map3(m, o, |x, at, len| extract(x, at & 255, len & 255)),
        Bits::ExtractS => r.map3(m, o, |x, at, len| extract_signed(x, at & 255, len & 255)),
        Bits::Extract64 { signed } => {
            let (x, at, len) = (r.long(o[1]), r.word(o[2]), r.word(o[3]));
            let z = each(|lane| extract_long(x[lane], at[lane] & 255, len[lane] & 255, signed));
            r.set_long(o[0], m, &z);
        }
        Bits::Insert32 => {
            let (x, y, at, len) = (r.word(o[1]), r.word(o[2]), r.word(o[3]), r.word(o[4]));
            let z = each(|lane| {
                let mask = field(at[lane] & 255, len[lane] & 255) as u32;
                let moved = u64::from(x[lane]).checked_shl(at[lane] & 255).unwrap_or(0) as u32;
                y[lane] & !mask | moved & mask
            });
            r.set_word(o[0], m, &z);
        }
        Bits::Insert64 => {
            let (x, y, at, len) = (r.long(o[1]), r.long(o[2]), r.word(o[3]), r.word(o[4]));
            let z = each(|lane| {
                let mask = field(at[lane] & 255, len[lane] & 255);
                y[lane] & !mask | x[lane].checked_shl(at[lane] & 255).unwrap_or(0) & mask
            });
            r.set_long(o[0], m, &z);
        }
        Bits::Dot4 { a, b } => r.map3(m, o, |x, y, z| dot4(x, y, z, (a, b))),
    }
}

#[inline(always)]
fn long_to_word(r: &mut Registers, m: u32, o: &O, f: impl Fn(u64) -> u32) {
    let x = r.long(o[1]);
    let z = each(|lane| f(x[lane]));
    r.set_word(o[0], m, &z);
}

/// Ones in `len` bits from `at`.
fn field(at: u32, len: u32) -> u64 {
    let ones = 1u64.checked_shl(len).map_or(u64::MAX, |bit| bit - 1);
    ones.checked_shl(at).unwrap_or(0)
}

#[inline(always)]
fn extract(x: u32, at: u32, len: u32) -> u32 {
    let shifted = if at < 32 { x >> (at & 31) } else { 0 };
    if len < 32 { shifted & ((1 << (len & 31)) - 1) } else { shifted }
}

fn extract_signed(x: u32, at: u32, len: u32) -> u32 {
    if len == 0 {
        return 0;
    }
    let value = i64::from(x.cast_signed()) >> at.min(63);
    let unused = 64u32.saturating_sub(len);
    // A field that reaches beyond bit 31 is filled with the sign.
    if at + len > 32 { value as u32 } else { (value << unused >> unused) as u32 }
}

fn extract_long(x: u64, at: u32, len: u32, signed: bool) -> u64 {
    // What is beyond bit 63 is the sign, or zeros.
    let wide = if signed { i128::from(x.cast_signed()) } else { i128::from(x) };
    let (value, unused) = ((wide >> at.min(127)) as u64, 64u32.saturating_sub(len));
    match len {
        0 => 0,
        _ if signed => ((value << unused).cast_signed() >> unused).cast_unsigned(),
        _ => value << unused >> unused,
    }
}

fn find(x: u32, signed: bool, shift: bool) -> u32 {
    let x = if signed && x.cast_signed() < 0 { !x } else { x };
    match x.checked_ilog2() {
        None => u32::MAX,
        Some(at) if shift => 31 - at,
        Some(at) => at,
    }
}

#[inline(always)]
fn lop3(x: u32, y: u32, z: u32, table: u8) -> u32 {
    (0..8).fold(0, |result, index| {
        let chosen = u32::from(table >> index & 1).wrapping_neg();
        let pick = |value: u32, bit: u32| if index >> bit & 1 != 0 { value } else { !value };
        result | chosen & pick(x, 2) & pick(y, 1) & pick(z, 0)
    })
}

#[inline(always)]
fn permute(low: u32, high: u32, selector: u32) -> u32 {
    let bytes = u64::from(high) << 32 | u64::from(low);
    (0..4).fold(0, |result, at| {
        let select = selector >> (4 * at);
        let byte = (bytes >> (8 * (select & 7))) as u32 & 0xff;
        let sign = (byte >> 7).wrapping_neg() & 0xff;
        result | (if select & 8 != 0 { sign } else { byte }) << (8 * at)
    })
}

#[inline(always)]
fn dot4(x: u32, y: u32, z: u32, (a, b): (bool, bool)) -> u32 {
    let byte = |value: u8, signed: bool| {
        if signed { i32::from(value.cast_signed()) } else { i32::from(value) }
    };
    let pairs = x.to_le_bytes().into_iter().zip(y.to_le_bytes());
    let sum = pairs.fold(0i32, |sum, (x, y)| sum + byte(x, a) * byte(y, b));
    z.wrapping_add(sum.cast_unsigned())
}

#[inline(always)]
pub(super) fn moves(r: &mut Registers, m: u32, o: &O, op: Move, imm: i64) {
    let cut = u16_of;
    match op {
        Move::Word => r.map1(m, o, |x| x),
        Move::Long => r.map1_long(m, o, |x| x),
        Move::Window => r.map1_long(m, o, |x| x.wrapping_add_signed(imm)),
        Move::Predicate => r.set_predicate(o[0], m, r.predicate(o[1])),
        Move::Pack16x2 => r.map2(m, o, |low, high| cut(low) | high << 16),
        Move::Unpack16x2 => {
            let x = *r.word(o[0]);
            r.set_word(o[1], m, &x.map(cut));
            r.set_word(o[2], m, &x.map(|x| x >> 16));
        }
        Move::Pack32x2 => {
            let (low, high) = (r.word(o[1]), r.word(o[2]));
            let z = each(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32);
            r.set_long(o[0], m, &z);
        }
        Move::Unpack32x2 => {
            let x = *r.long(o[0]);
            r.set_word(o[1], m, &x.map(|x| x as u32));
            r.set_word(o[2], m, &x.map(|x| (x >> 32) as u32));
        }
        Move::Pack16x4 => {
            let z = each(|lane| {
                (0..4)
                    .fold(0, |z, part| z | u64::from(cut(r.word(o[1 + part])[lane])) << (16 * part))
            });
            r.set_long(o[0], m, &z);
        }
        Move::Unpack16x4 => {
            let x = *r.long(o[0]);
            for part in 0..4 {
                r.set_word(o[1 + part], m, &x.map(|x| cut((x >> (16 * part)) as u32)));
            }
        }
    }
}
