//! Shuffles, votes, matches and reductions between the lanes of a warp.

use super::registers::{LANES, O, POISON, Registers, each, lanes};
use crate::program::Lanes;

/// Executes `op` for the lanes `m`, which are all there.
#[inline(always)]
pub(super) fn exchange(r: &mut Registers, m: u32, o: &O, op: Lanes, imm: i64) {
    match op {
        Lanes::ShuffleUp | Lanes::ShuffleDown | Lanes::ShuffleXor | Lanes::ShuffleIndex => {
            shuffle(r, m, o, op);
        }
        Lanes::Ballot | Lanes::Any | Lanes::All | Lanes::Uniform => vote(r, m, o, op, imm != 0),
        Lanes::MatchAny | Lanes::MatchAll => matching(r, m, o, op == Lanes::MatchAll),
        Lanes::Active => r.set_word(o[0], m, &[m; LANES]),
        Lanes::Elect => {
            let leader = m.trailing_zeros();
            r.set_word(o[0], m, &[leader; LANES]);
            r.set_predicate(o[1], m, 1 << leader);
        }
        _ => reduce(r, m, o, op),
    }
}

/// Lanes outside `m` give unspecified values: poison here.
#[inline(always)]
fn shuffle(r: &mut Registers, m: u32, o: &O, op: Lanes) {
    let (value, by, control) = (r.word(o[2]), r.word(o[3]), r.word(o[4]));
    let mut there = 0u32;
    let z = each(|lane| {
        let segment = (control[lane] >> 8 & 31) as usize;
        let clamp = (control[lane] & 31) as usize;
        let by = (by[lane] & 31) as usize;
        let last = lane & segment | clamp & !segment;
        let (from, fine) = match op {
            Lanes::ShuffleUp => (lane.wrapping_sub(by), lane >= by && lane - by >= last),
            Lanes::ShuffleDown => (lane + by, lane + by <= last),
            Lanes::ShuffleXor => (lane ^ by, lane ^ by <= last),
            _ => (lane & segment | by & !segment, (lane & segment | by & !segment) <= last),
        };
        there |= u32::from(fine) << lane;
        let from = if fine { from & 31 } else { lane };
        if m >> from & 1 != 0 { value[from] } else { POISON }
    });
    r.set_word(o[0], m, &z);
    r.set_predicate(o[1], m, there);
}

fn vote(r: &mut Registers, m: u32, o: &O, op: Lanes, negated: bool) {
    let votes = (r.predicate(o[1]) ^ if negated { u32::MAX } else { 0 }) & m;
    let truth = |holds: bool| if holds { u32::MAX } else { 0 };
    match op {
        Lanes::Ballot => r.set_word(o[0], m, &[votes; LANES]),
        Lanes::Any => r.set_predicate(o[0], m, truth(votes != 0)),
        Lanes::All => r.set_predicate(o[0], m, truth(votes == m)),
        _ => r.set_predicate(o[0], m, truth(votes == m || votes == 0)),
    }
}

fn matching(r: &mut Registers, m: u32, o: &O, all: bool) {
    let value = *r.word(o[2]);
    let same = |lane: usize| {
        lanes(m)
            .filter(|other| value[*other] == value[lane])
            .fold(0u32, |mask, other| mask | 1 << other)
    };
    let masks: [u32; LANES] = each(same);
    if !all {
        r.set_word(o[0], m, &masks);
        return;
    }
    let equal = masks[m.trailing_zeros() as usize & 31] == m;
    r.set_word(o[0], m, &[if equal { m } else { 0 }; LANES]);
    r.set_predicate(o[1], m, if equal { u32::MAX } else { 0 });
}

fn reduce(r: &mut Registers, m: u32, o: &O, op: Lanes) {
    let value = *r.word(o[1]);
    let s = u32::cast_signed;
    let combine = |x: u32, y: u32| match op {
        Lanes::ReduceMinS => s(x).min(s(y)).cast_unsigned(),
        Lanes::ReduceMinU => x.min(y),
        Lanes::ReduceMaxS => s(x).max(s(y)).cast_unsigned(),
        Lanes::ReduceMaxU => x.max(y),
        Lanes::ReduceAnd => x & y,
        Lanes::ReduceOr => x | y,
        Lanes::ReduceXor => x ^ y,
        _ => x.wrapping_add(y),
    };
    let result = lanes(m).map(|lane| value[lane]).reduce(combine).unwrap_or(0);
    r.set_word(o[0], m, &[result; LANES]);
}
