//! Loads, stores, atomics and asynchronous copies of a warp.

#![expect(clippy::needless_range_loop, reason = "loops over lanes become vector code as such")]

use super::registers::{FULL, LANES, Longs, O, Registers, Words, each, lanes, mask_of};
use super::{Env, Warp};
use crate::decode::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::fault::{FaultKind, Step, Trouble};
use crate::memory::Reach;
use crate::program::{Access, Ins, Room, Slot};
use crate::shared::{How, copy_piece};
use halyard_sim_memory::POISON;

/// What lanes bring or fetch: up to 16 bytes each, lane after lane.
type Buffer = [u8; 512];

#[inline(always)]
pub(super) fn load(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, a: Access, m: u32) -> Step {
    let bytes = usize::from(a.bytes) * usize::from(a.count);
    if a.room == Room::Param {
        let at = ins.imm as usize;
        broadcast(&mut w.registers, &ins.o, a, m, &e.params[at..at + bytes]);
        return Ok(());
    }
    if a.room == Room::Global && a.long && are_first(m) && load_steps(w, e, ins, a, m).is_some() {
        return Ok(());
    }
    let addresses = addresses(&w.registers, ins.o[0], a.long, ins.imm);
    let reach = Reach { addresses: &addresses, mask: m, bytes };
    if a.room == Room::ParamAt
        && let Some(value) = one_param(e, &reach)
    {
        broadcast(&mut w.registers, &ins.o, a, m, value);
        return Ok(());
    }
    if a.room == Room::Global {
        e.memory.pc = e.pc;
        return match bytes {
            2 => load_global::<64>(w, e, ins, a, &reach),
            4 => load_global::<128>(w, e, ins, a, &reach),
            8 => load_global::<256>(w, e, ins, a, &reach),
            _ => load_global::<512>(w, e, ins, a, &reach),
        };
    }
    let mut buffer: Buffer = [0; 512];
    match a.room {
        Room::Shared => load_shared(w, e, &reach, &mut buffer)?,
        Room::Local => load_local(w, e, &reach, &mut buffer)?,
        Room::ParamAt => load_param(e, &reach, &mut buffer)?,
        _ => load_generic(w, e, &reach, &mut buffer)?,
    }
    put_loaded(&mut w.registers, e, (ins, a), m, &buffer);
    Ok(())
}

/// Loads at most `N` bytes of global memory.
#[inline(always)]
fn load_global<const N: usize>(
    w: &mut Warp,
    e: &mut Env<'_>,
    ins: &Ins,
    a: Access,
    reach: &Reach<'_>,
) -> Step {
    let mut buffer = [0; N];
    fetch_global(w, e, reach, &mut buffer)?;
    put_loaded(&mut w.registers, e, (ins, a), reach.mask, &buffer);
    Ok(())
}

/// Loads of global memory by the first lanes, or all, whose addresses are the same or ascend by as many bytes as each wants, or by a sector where
/// that is two such steps. `None` where they do not, or something is wrong: whoever looks at the lanes one by one knows what.
#[inline(always)]
fn load_steps(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, a: Access, m: u32) -> Option<()> {
    let bytes = usize::from(a.bytes) * usize::from(a.count);
    let base = w.registers.long(ins.o[0]);
    let step = base[1].wrapping_sub(base[0]);
    let mut apart = 0;
    for lane in 0..LANES {
        let taken = u64::from(m >> lane & 1).wrapping_neg();
        apart |= (base[lane] ^ base[0].wrapping_add(step.wrapping_mul(lane as u64))) & taken;
    }
    if apart != 0 {
        return None;
    }
    let low = base[0].wrapping_add_signed(ins.imm);
    e.memory.pc = e.pc;
    let (o, r) = (&ins.o, &mut w.registers);
    if step == 0 {
        let (found, at) = e.memory.read_span(low, (bytes, bytes), &mut e.counters)?;
        let mut value = [0; 16];
        found.data.load_slice(at, &mut value[..bytes]);
        broadcast(r, o, a, m, &value[..bytes]);
        return Some(());
    }
    let step = usize::try_from(step).ok()?;
    let far = bytes == 16 && step == 32;
    if step != bytes && !far {
        return None;
    }
    let count = m.count_ones() as usize;
    let len = step * (count - 1) + bytes;
    let (found, at) = e.memory.read_span(low, (len, bytes), &mut e.counters)?;
    let whole = m == FULL;
    if whole
        && !far
        && let Some(compiled) = e.compiled
        && compiled.spread(e.pc, r, &found.data, at)
    {
        return Some(());
    }
    match (a.bytes, a.count, a.long_data, a.signed) {
        (4, 1, false, _) if whole => spread_words::<4, 1, 128>(r, o, FULL, &found.data.load(at)),
        (4, 4, false, _) if whole && far => {
            spread_words::<32, 4, 1008>(r, o, FULL, &found.data.load(at));
        }
        (8, 1, true, _) if whole => spread_longs::<8, 1, 256>(r, o, FULL, &found.data.load(at)),
        (2, 1, false, false) if whole => {
            spread_halves::<64>(r, o[1], FULL, &found.data.load(at));
        }
        _ => {
            let mut buffer: Buffer = [0; 512];
            if far {
                for lane in 0..count {
                    let piece = &mut buffer[lane * bytes..(lane + 1) * bytes];
                    found.data.load_slice(at + lane * step, piece);
                }
            } else {
                found.data.load_slice(at, &mut buffer[..len]);
            }
            put_loaded(r, e, (ins, a), m, &buffer);
        }
    }
    Some(())
}

/// Whether the lanes `m` are the first two or more.
#[inline(always)]
fn are_first(m: u32) -> bool {
    m & m.wrapping_add(1) == 0 && m > 1
}

/// The bytes that every lane wants of the parameters, if it is the same ones and nothing is wrong with it.
#[inline(always)]
fn one_param<'p>(e: &Env<'p>, reach: &Reach<'_>) -> Option<&'p [u8]> {
    let first = reach.addresses[reach.mask.trailing_zeros() as usize & 31];
    let mut apart = 0;
    for lane in 0..LANES {
        let taken = u64::from(reach.mask >> lane & 1).wrapping_neg();
        apart |= (reach.addresses[lane] ^ first) & taken;
    }
    let start = usize::try_from(first).ok()?;
    let aligned = start & (reach.bytes - 1) == 0;
    if apart == 0 && aligned { e.params.get(start..start.checked_add(reach.bytes)?) } else { None }
}

/// Gives every lane the elements in `value`.
#[inline(always)]
fn broadcast(r: &mut Registers, o: &O, a: Access, m: u32, value: &[u8]) {
    let bytes = usize::from(a.bytes);
    for part in 0..usize::from(a.count) {
        let mut element = [0; 8];
        element[..bytes].copy_from_slice(&value[part * bytes..(part + 1) * bytes]);
        let element = extended(u64::from_le_bytes(element), a);
        if a.long_data {
            r.set_long(o[1 + part], m, &[element; LANES]);
        } else {
            r.set_word(o[1 + part], m, &[element as u32; LANES]);
        }
    }
}

/// An element as it stands in its register.
#[inline(always)]
fn extended(value: u64, a: Access) -> u64 {
    let unused = 64 - 8 * u32::from(a.bytes);
    if a.signed { ((value << unused).cast_signed() >> unused).cast_unsigned() } else { value }
}

#[inline(always)]
pub(super) fn store(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, a: Access, m: u32) -> Step {
    let bytes = usize::from(a.bytes) * usize::from(a.count);
    e.memory.pc = e.pc;
    let addresses = addresses(&w.registers, ins.o[0], a.long, ins.imm);
    let buffer = gather(&w.registers, &ins.o, a);
    let reach = Reach { addresses: &addresses, mask: m, bytes };
    match a.room {
        Room::Global => store_global(w, e, &reach, &buffer),
        Room::Shared => store_shared(w, e, &reach, &buffer),
        Room::Local => store_local(w, e, &reach, &buffer),
        _ => store_generic(w, e, &reach, &buffer),
    }
}

#[inline(always)]
fn fetch_global(w: &Warp, e: &mut Env<'_>, reach: &Reach<'_>, buffer: &mut [u8]) -> Step {
    e.memory.load(reach, buffer, &mut e.counters)?;
    if e.memory.saw_written() { e.memory.check_order(reach, &w.who(e.pc, false)) } else { Ok(()) }
}

#[inline(always)]
fn store_global(w: &Warp, e: &mut Env<'_>, reach: &Reach<'_>, buffer: &Buffer) -> Step {
    let _alone = e.memory.writing();
    e.memory.note_order(reach, buffer, &w.who(e.pc, false))?;
    e.memory.store(reach, buffer, &mut e.counters)
}

#[inline(always)]
pub(super) fn addresses(r: &Registers, base: Slot, long: bool, offset: i64) -> [u64; LANES] {
    if long {
        let base = r.long(base);
        each(|lane| base[lane].wrapping_add_signed(offset))
    } else {
        let base = r.word(base);
        each(|lane| u64::from(base[lane]).wrapping_add_signed(offset))
    }
}

/// Puts what was loaded into registers, by compiled code if there is some.
#[inline(always)]
fn put_loaded<const N: usize>(
    r: &mut Registers,
    e: &Env<'_>,
    (ins, a): (&Ins, Access),
    m: u32,
    buffer: &[u8; N],
) {
    let done = e.compiled.is_some_and(|compiled| compiled.spread_buffer(e.pc, r, buffer, m));
    if !done {
        spread(r, &ins.o, a, m, buffer);
    }
}

#[inline(always)]
fn spread<const N: usize>(r: &mut Registers, o: &O, a: Access, m: u32, buffer: &[u8; N]) {
    match (a.bytes, a.count, a.long_data) {
        (4, 1, false) => spread_words::<4, 1, N>(r, o, m, buffer),
        (4, 2, false) => spread_words::<8, 2, N>(r, o, m, buffer),
        (4, 4, false) => spread_words::<16, 4, N>(r, o, m, buffer),
        (1, 1, false) if !a.signed => r.set_word(o[1], m, &each(|lane| buffer[lane].into())),
        (2, 1, false) if !a.signed => spread_halves(r, o[1], m, buffer),
        (8, 1, true) => spread_longs::<8, 1, N>(r, o, m, buffer),
        (8, 2, true) => spread_longs::<16, 2, N>(r, o, m, buffer),
        _ => spread_any(r, o, a, m, buffer),
    }
}

/// `COUNT` words of each lane, `STRIDE` bytes from lane to lane. Plain loops: a closure for each lane is not always inlined.
#[inline(always)]
fn spread_words<const STRIDE: usize, const COUNT: usize, const N: usize>(
    r: &mut Registers,
    o: &O,
    m: u32,
    buffer: &[u8; N],
) {
    for part in 0..COUNT {
        let mut values = [0; LANES];
        for lane in 0..LANES {
            let at = lane * STRIDE + part * 4;
            values[lane] =
                u32::from_le_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]]);
        }
        r.set_word(o[1 + part], m, &values);
    }
}

#[inline(always)]
fn spread_longs<const STRIDE: usize, const COUNT: usize, const N: usize>(
    r: &mut Registers,
    o: &O,
    m: u32,
    buffer: &[u8; N],
) {
    for part in 0..COUNT {
        let mut values = [0; LANES];
        for lane in 0..LANES {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&buffer[lane * STRIDE + part * 8..][..8]);
            values[lane] = u64::from_le_bytes(bytes);
        }
        r.set_long(o[1 + part], m, &values);
    }
}

#[inline(always)]
fn spread_halves<const N: usize>(r: &mut Registers, to: Slot, m: u32, buffer: &[u8; N]) {
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = u16::from_le_bytes([buffer[2 * lane], buffer[2 * lane + 1]]).into();
    }
    r.set_word(to, m, &values);
}

#[inline(never)]
fn spread_any(r: &mut Registers, o: &O, a: Access, m: u32, buffer: &[u8]) {
    let (bytes, count) = (usize::from(a.bytes), usize::from(a.count));
    for part in 0..count {
        let value = |lane: usize| {
            let at = (lane * count + part) * bytes;
            let mut value = [0; 8];
            value[..bytes].copy_from_slice(&buffer[at..at + bytes]);
            extended(u64::from_le_bytes(value), a)
        };
        let values: [u64; LANES] = each(value);
        if a.long_data {
            r.set_long(o[1 + part], m, &values);
        } else {
            r.set_word(o[1 + part], m, &values.map(|value| value as u32));
        }
    }
}

/// Takes what will be stored from registers.
#[inline(always)]
fn gather(r: &Registers, o: &O, a: Access) -> Buffer {
    let (bytes, count) = (usize::from(a.bytes), usize::from(a.count));
    let mut buffer: Buffer = [0; 512];
    for part in 0..count {
        let slot = usize::from(o[1 + part]);
        if a.long_data {
            let Longs(values) = &r.longs[slot];
            for (lane, value) in values.iter().enumerate() {
                let at = (lane * count + part) * bytes;
                buffer[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            continue;
        }
        let Words(values) = &r.words[slot];
        match bytes {
            4 => {
                for (lane, value) in values.iter().enumerate() {
                    let at = (lane * count + part) * 4;
                    buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
            _ => {
                for (lane, value) in values.iter().enumerate() {
                    let at = (lane * count + part) * bytes;
                    buffer[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                }
            }
        }
    }
    buffer
}

/// Parts of a generic access: what it means as an access of each space.
fn rooms(reach: &Reach<'_>) -> [(Room, u32, u64); 4] {
    let within = |from: u64| {
        lanes(reach.mask)
            .filter(|lane| reach.addresses[*lane].wrapping_sub(from) < WINDOW_BYTES)
            .fold(0u32, |mask, lane| mask | 1 << lane)
    };
    let (shared, local, param) =
        (within(SHARED_WINDOW), within(LOCAL_WINDOW), within(PARAM_WINDOW));
    let global = reach.mask & !shared & !local & !param;
    [
        (Room::Global, global, 0),
        (Room::Shared, shared, SHARED_WINDOW),
        (Room::Local, local, LOCAL_WINDOW),
        (Room::ParamAt, param, PARAM_WINDOW),
    ]
}

#[inline(never)]
fn load_generic(w: &mut Warp, e: &mut Env<'_>, reach: &Reach<'_>, buffer: &mut Buffer) -> Step {
    for (room, mask, window) in rooms(reach).into_iter().filter(|part| part.1 != 0) {
        let addresses = reach.addresses.map(|address| address.wrapping_sub(window));
        let part = Reach { addresses: &addresses, mask, bytes: reach.bytes };
        match room {
            Room::Global => fetch_global(w, e, &part, buffer)?,
            Room::Shared => load_shared(w, e, &part, buffer)?,
            Room::Local => load_local(w, e, &part, buffer)?,
            _ => load_param(e, &part, buffer)?,
        }
    }
    Ok(())
}

#[inline(never)]
fn store_generic(w: &mut Warp, e: &mut Env<'_>, reach: &Reach<'_>, buffer: &Buffer) -> Step {
    for (room, mask, window) in rooms(reach).into_iter().filter(|part| part.1 != 0) {
        let addresses = reach.addresses.map(|address| address.wrapping_sub(window));
        let part = Reach { addresses: &addresses, mask, bytes: reach.bytes };
        match room {
            Room::Global => store_global(w, e, &part, buffer)?,
            Room::Shared => store_shared(w, e, &part, buffer)?,
            Room::Local => store_local(w, e, &part, buffer)?,
            _ => {
                let text = "write of a parameter".to_owned();
                return Err(Trouble::new(FaultKind::OutOfBounds, mask.trailing_zeros(), text));
            }
        }
    }
    Ok(())
}

/// Notes a use of shared memory by each lane, after checking that it is inside and aligned.
#[inline(always)]
fn note_shared(w: &Warp, e: &mut Env<'_>, reach: &Reach<'_>, how: How, together: bool) -> Step {
    let beyond = beyond(e, reach)?;
    e.shared.note_lanes(&w.who(e.pc, together), &before(reach, beyond), how)?;
    all_inside(e, reach, beyond)
}

/// Lanes whose use of shared memory is not inside, after checking that all are aligned.
#[inline(always)]
fn beyond(e: &Env<'_>, reach: &Reach<'_>) -> Step<u32> {
    reach.aligned("access to shared memory")?;
    let room = (e.shared_bytes as u64).checked_sub(reach.bytes as u64);
    let mut beyond = 0u32;
    for lane in 0..LANES {
        let outside = room.is_none_or(|last| reach.addresses[lane] > last);
        beyond |= u32::from(outside) << lane;
    }
    Ok(beyond & reach.mask)
}

/// The uses before that of the first lane that is not inside: they may have made another mistake.
#[inline(always)]
fn before<'a>(reach: &Reach<'a>, beyond: u32) -> Reach<'a> {
    Reach { mask: reach.mask & (beyond & beyond.wrapping_neg()).wrapping_sub(1), ..*reach }
}

#[inline(always)]
fn all_inside(e: &Env<'_>, reach: &Reach<'_>, beyond: u32) -> Step {
    if beyond == 0 {
        return Ok(());
    }
    Err(beyond_shared(reach, beyond.trailing_zeros() as usize, e.shared_bytes))
}

#[cold]
fn beyond_shared(reach: &Reach<'_>, lane: usize, size: usize) -> Box<Trouble> {
    let (bytes, at) = (reach.bytes, reach.addresses[lane]);
    let text = format!("access to {bytes} bytes of shared memory at {at:#x}: the block has {size}");
    Trouble::new(FaultKind::OutOfBounds, lane as u32, text)
}

#[inline(always)]
fn load_shared(w: &Warp, e: &mut Env<'_>, reach: &Reach<'_>, buffer: &mut Buffer) -> Step {
    note_shared(w, e, reach, How::Read, false)?;
    count_passes(e, reach);
    let bytes = reach.bytes;
    for lane in lanes(reach.mask) {
        let from = e.shared.bytes(reach.addresses[lane] as usize, bytes);
        copy_piece(from, &mut buffer[lane * bytes..(lane + 1) * bytes]);
    }
    Ok(())
}

#[inline(always)]
fn store_shared(w: &Warp, e: &mut Env<'_>, reach: &Reach<'_>, buffer: &Buffer) -> Step {
    write_shared(w, e, reach, buffer, false)
}

#[inline(always)]
fn write_shared(
    w: &Warp,
    e: &mut Env<'_>,
    reach: &Reach<'_>,
    buffer: &Buffer,
    together: bool,
) -> Step {
    let beyond = beyond(e, reach)?;
    e.shared.write_lanes(&w.who(e.pc, together), &before(reach, beyond), buffer)?;
    all_inside(e, reach, beyond)?;
    count_passes(e, reach);
    Ok(())
}

/// Counts the passes of an access to shared memory: 32 banks of four bytes, wide accesses by halves or quarters of a warp.
#[inline(always)]
fn count_passes(e: &mut Env<'_>, reach: &Reach<'_>) {
    let words = reach.bytes.div_ceil(4);
    let phase = LANES / words;
    // Lanes of a phase in pieces of 128 bytes, one behind the other, use all banks once. Sizes are powers of two, which shifts divide by.
    let shift = (words * 4).trailing_zeros();
    let bits = each(|lane| {
        let taken = reach.mask >> lane & 1;
        taken << (reach.addresses[lane] >> shift & (phase as u64 - 1))
    });
    for first in (0..LANES).step_by(phase) {
        let part = (reach.mask >> first) & (FULL >> (LANES - phase));
        if part == 0 {
            continue;
        }
        let seen = bits[first..first + phase].iter().fold(0, |seen, bit| seen | bit);
        let passes = if seen.count_ones() == part.count_ones() {
            1
        } else {
            phase_passes(reach, part << first, shift, phase)
        };
        e.counters.shared_passes += passes;
        e.counters.shared_ideal_passes += 1;
        e.counters.worst_bank_conflict = e.counters.worst_bank_conflict.max(passes);
    }
}

/// The most pieces of `1 << shift` bytes that one group of banks must give to the lanes of `mask`, a phase; lanes that want the same piece share
/// it. There are as many groups as lanes in a `phase`.
#[inline(never)]
fn phase_passes(reach: &Reach<'_>, mask: u32, shift: u32, phase: usize) -> u64 {
    const END: u8 = u8::MAX;
    // The pieces that a group gives are a chain, which is short.
    let (mut first, mut next) = ([END; LANES], [END; LANES]);
    let (mut pieces, mut passes) = ([0u64; LANES], [0u64; LANES]);
    let mut worst = 0;
    for lane in lanes(mask) {
        let piece = reach.addresses[lane] >> shift;
        let group = piece as usize & (phase - 1);
        let mut at = first[group];
        while at != END && pieces[at as usize % LANES] != piece {
            at = next[at as usize % LANES];
        }
        if at == END {
            pieces[lane] = piece;
            next[lane] = first[group];
            first[group] = lane as u8;
            passes[group] += 1;
            worst = worst.max(passes[group]);
        }
    }
    worst
}

#[inline(never)]
fn load_param(e: &Env<'_>, reach: &Reach<'_>, buffer: &mut Buffer) -> Step {
    reach.aligned("read of a parameter")?;
    let (bytes, size) = (reach.bytes, e.params.len());
    for lane in lanes(reach.mask) {
        let at = reach.addresses[lane];
        if at.saturating_add(bytes as u64) > size as u64 {
            let text =
                format!("read of {bytes} bytes of the parameters at {at:#x}: there are {size}");
            return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, text));
        }
        let at = at as usize;
        buffer[lane * bytes..(lane + 1) * bytes].copy_from_slice(&e.params[at..at + bytes]);
    }
    Ok(())
}

fn local_range(e: &Env<'_>, reach: &Reach<'_>, lane: usize) -> Step<std::ops::Range<usize>> {
    let size = e.program.local_bytes as u64;
    let (at, bytes) = (reach.addresses[lane], reach.bytes as u64);
    if at.saturating_add(bytes) > size {
        let text =
            format!("access to {bytes} bytes of local memory at {at:#x}: the thread has {size}");
        return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, text));
    }
    let start = lane * e.program.local_bytes + at as usize;
    Ok(start..start + reach.bytes)
}

#[inline(never)]
fn load_local(w: &Warp, e: &Env<'_>, reach: &Reach<'_>, buffer: &mut Buffer) -> Step {
    reach.aligned("read of local memory")?;
    let bytes = reach.bytes;
    for lane in lanes(reach.mask) {
        let range = local_range(e, reach, lane)?;
        buffer[lane * bytes..(lane + 1) * bytes].copy_from_slice(&w.local[range]);
    }
    Ok(())
}

#[inline(never)]
fn store_local(w: &mut Warp, e: &Env<'_>, reach: &Reach<'_>, buffer: &Buffer) -> Step {
    reach.aligned("write of local memory")?;
    let bytes = reach.bytes;
    for lane in lanes(reach.mask) {
        let range = local_range(e, reach, lane)?;
        w.local[range].copy_from_slice(&buffer[lane * bytes..(lane + 1) * bytes]);
    }
    Ok(())
}

/// A `cp.async` that was issued and has not landed.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    lanes: u32,
    bytes: usize,
    to: [u64; LANES],
    /// What will be there, lane after lane.
    data: Buffer,
    /// Each lane's group.
    groups: [u32; LANES],
    pc: u32,
}

/// Reads the source and poisons the destination, which gets the data at the wait.
#[inline(always)]
pub(super) fn copy_async(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, bytes: u8, m: u32) -> Step {
    let (to_offset, from_offset) = (i64::from(ins.imm as i32), ins.imm >> 32);
    let to = addresses(&w.registers, ins.o[0], false, to_offset);
    let from = addresses(&w.registers, ins.o[1], true, from_offset);
    let sizes = *w.registers.word(ins.o[2]);
    let bytes = usize::from(bytes);
    note_shared(w, e, &Reach { addresses: &to, mask: m, bytes }, How::Begin, false)?;
    let whole = m & mask_of(|lane| sizes[lane] as usize >= bytes);
    let part = m & !whole & mask_of(|lane| sizes[lane] > 0);
    let mut data: Buffer = [0; 512];
    if whole != 0 {
        let reach = Reach { addresses: &from, mask: whole, bytes };
        e.memory.pc = e.pc;
        fetch_global(w, e, &reach, &mut data)?;
    }
    for lane in lanes(part) {
        // The rest of the destination becomes zero. The source is aligned as a whole copy's is.
        Reach { addresses: &from, mask: 1 << lane, bytes }.aligned("read by cp.async")?;
        for byte in 0..sizes[lane] {
            let addresses = [from[lane] + u64::from(byte); LANES];
            let mut read: Buffer = [0; 512];
            let reach = Reach { addresses: &addresses, mask: 1 << lane, bytes: 1 };
            fetch_global(w, e, &reach, &mut read)?;
            data[lane * bytes + byte as usize] = read[lane];
        }
    }
    for lane in lanes(m) {
        copy_piece(&[POISON; 16][..bytes], e.shared.bytes_mut(to[lane] as usize, bytes));
    }
    w.copies.push_back(Copy { lanes: m, bytes, to, data, groups: w.groups_begun, pc: e.pc });
    Ok(())
}

/// Ends the current group of each lane.
pub(super) fn commit(w: &mut Warp, m: u32) {
    lanes(m).for_each(|lane| w.groups_begun[lane] += 1);
}

/// Lands the copies of each lane but those of its last `keep` groups; with `None`, all.
#[inline(never)]
pub(super) fn wait(w: &mut Warp, e: &mut Env<'_>, m: u32, keep: Option<u32>) -> Step {
    for at in 0..w.copies.len() {
        let copy = &w.copies[at];
        // A group that is not committed is not waited for.
        let done = keep.map_or(FULL, |keep| {
            mask_of(|lane| copy.groups[lane].saturating_add(keep) < w.groups_begun[lane])
        });
        let landing = copy.lanes & m & done;
        land(w, e, &w.copies[at], landing)?;
        w.copies[at].lanes &= !landing;
    }
    w.drop_landed();
    Ok(())
}

impl Copy {
    /// The part of one lane, which it has no more.
    pub(super) fn take_lane(&mut self, lane: usize) -> Option<Self> {
        let taken = self.lanes >> lane & 1 != 0;
        self.lanes &= !(1 << lane);
        taken.then(|| Self { lanes: 1 << lane, ..self.clone() })
    }

    fn is_under_way(&self) -> bool {
        self.lanes != 0
    }
}

impl Warp {
    /// Forgets copies that have landed: mostly the first ones, so that the others, which are large, need not be moved.
    pub(super) fn drop_landed(&mut self) {
        while self.copies.pop_front_if(|copy| !copy.is_under_way()).is_some() {}
        self.copies.retain(Copy::is_under_way);
    }
}

/// Lands a copy, of whichever warp, as `by` of this one sees it arrive.
pub(super) fn land_lanes(w: &Warp, e: &mut Env<'_>, copy: &Copy, by: usize) -> Step {
    let who = w.who(copy.pc, false);
    for lane in lanes(copy.lanes) {
        let (at, bytes) = (copy.to[lane], copy.bytes);
        let reach = Reach { addresses: &[at; LANES], mask: 1 << by, bytes };
        e.shared.note_lanes(&who, &reach, How::Land)?;
        let from = &copy.data[lane * bytes..(lane + 1) * bytes];
        copy_piece(from, e.shared.bytes_mut(at as usize, bytes));
    }
    Ok(())
}

fn land(w: &Warp, e: &mut Env<'_>, copy: &Copy, landing: u32) -> Step {
    let reach = Reach { addresses: &copy.to, mask: landing, bytes: copy.bytes };
    e.shared.note_lanes(&w.who(copy.pc, false), &reach, How::Land)?;
    for lane in lanes(landing) {
        let (at, bytes) = (copy.to[lane] as usize, copy.bytes);
        copy_piece(&copy.data[lane * bytes..(lane + 1) * bytes], e.shared.bytes_mut(at, bytes));
    }
    Ok(())
}

/// `ldmatrix`: lanes `8i` to `8i + 7` have the addresses of the rows of matrix `i`.
#[inline(always)]
pub(super) fn load_matrix(
    w: &mut Warp,
    e: &mut Env<'_>,
    ins: &Ins,
    count: u8,
    transposed: bool,
) -> Step {
    let addresses = addresses(&w.registers, ins.o[0], false, ins.imm);
    let rows = FULL >> (32 - 8 * u32::from(count));
    let reach = Reach { addresses: &addresses, mask: rows, bytes: 16 };
    note_shared(w, e, &reach, How::Read, true)?;
    count_passes(e, &reach);
    for matrix in 0..usize::from(count) {
        let mut values = [0u32; LANES];
        for row in 0..8 {
            let bytes = e.shared.bytes(addresses[matrix * 8 + row] as usize, 16);
            if transposed {
                for (column, pair) in bytes.chunks_exact(2).enumerate() {
                    let element = u32::from(u16::from_le_bytes([pair[0], pair[1]]));
                    values[column * 4 + row / 2] |= element << (16 * (row % 2));
                }
            } else {
                for (part, word) in bytes.chunks_exact(4).enumerate() {
                    values[row * 4 + part] =
                        u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                }
            }
        }
        w.registers.set_word(ins.o[1 + matrix], FULL, &values);
    }
    Ok(())
}

/// `stmatrix`: lanes `8i` to `8i + 7` have the addresses of the rows of matrix `i`.
#[inline(never)]
pub(super) fn store_matrix(
    w: &Warp,
    e: &mut Env<'_>,
    ins: &Ins,
    count: u8,
    transposed: bool,
) -> Step {
    let addresses = addresses(&w.registers, ins.o[0], false, 0);
    let mut rows: Buffer = [0; 512];
    for matrix in 0..usize::from(count) {
        let values = w.registers.word(ins.o[1 + matrix]);
        let element =
            |row: usize, column: usize| values[row * 4 + column / 2] >> (16 * (column % 2));
        for (row, bytes) in rows[matrix * 128..][..128].chunks_exact_mut(16).enumerate() {
            for (column, to) in bytes.chunks_exact_mut(2).enumerate() {
                let from = if transposed { element(column, row) } else { element(row, column) };
                to.copy_from_slice(&(from as u16).to_le_bytes());
            }
        }
    }
    let mask = FULL >> (32 - 8 * u32::from(count));
    let reach = Reach { addresses: &addresses, mask, bytes: 16 };
    write_shared(w, e, &reach, &rows, true)
}
