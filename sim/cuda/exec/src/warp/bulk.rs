//! Bulk copies between global and shared memory, and of tiles of tensors.
//!
//! What comes to shared memory is there when the phase of its `mbarrier` is complete and waited for; what goes from there may not
//! be written until the copy's group is waited for.

use super::mbarrier::{Delivery, bring};
use super::registers::{LANES, lanes};
use super::{Env, Warp};
use crate::decode::{PARAM_WINDOW, WINDOW_BYTES};
use crate::fault::{FaultKind, Step, Trouble};
use crate::program::Ins;
use crate::shared::{How, Instruction};
use crate::tensor_map::{MAP_ALIGN, TensorMap, swizzled};
use halyard_sim_memory::POISON;

/// The copies from shared memory of a warp's lanes.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// How many groups each lane has begun.
    begun: [u32; LANES],
    under_way: Vec<Store>,
}

/// A copy that reads shared memory.
#[derive(Debug)]
struct Store {
    lane: usize,
    group: u32,
    /// As `Shared` numbers it.
    reader: u64,
    pc: u32,
}

fn trouble(kind: FaultKind, lane: usize, text: String) -> Box<Trouble> {
    Trouble::new(kind, lane as u32, text)
}

/// A range of shared memory that a copy of `lane` uses.
fn shared_range(e: &Env<'_>, lane: usize, (at, bytes, align): (u32, usize, u32)) -> Step<usize> {
    if !at.is_multiple_of(align) {
        let text =
            format!("bulk copy at {at:#x} of shared memory, which is no multiple of {align}");
        return Err(trouble(FaultKind::Misaligned, lane, text));
    }
    if at as usize + bytes > e.shared_bytes {
        let text = format!(
            "bulk copy of {bytes} bytes at {at:#x} of shared memory: the block has {}",
            e.shared_bytes
        );
        return Err(trouble(FaultKind::OutOfBounds, lane, text));
    }
    Ok(at as usize)
}

/// A size in bytes and a global address: multiples of 16.
fn in_sixteens(lane: usize, address: u64, bytes: u32) -> Step<usize> {
    if !bytes.is_multiple_of(16) || !address.is_multiple_of(16) {
        let text =
            format!("bulk copy of {bytes} bytes at {address:#x}: both must be multiples of 16");
        return Err(trouble(FaultKind::Misaligned, lane, text));
    }
    Ok(bytes as usize)
}

/// Takes the 16 bytes at each of `to` from whoever used them, until `data` is delivered there by the barrier at `barrier`.
fn begin(
    w: &Warp,
    e: &mut Env<'_>,
    (lane, barrier): (usize, u32),
    (to, data): (Vec<usize>, Vec<u8>),
) -> Step {
    let who = w.who(e.pc, false);
    for at in &to {
        w.check_overwrite(e, lane as u32, *at)?;
        e.shared.note_range(&who, lane as u32, (*at, 16), How::Begin)?;
        e.shared.bytes_mut(*at, 16).fill(POISON);
    }
    bring(w, e, (lane, barrier), (data.len(), Delivery::Bulk { to, data, pc: e.pc }))
}

/// Global to shared memory: address `o[0]` from `o[1]`, bytes `o[2]`, barrier `o[3]`.
pub(super) fn load(w: &Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let r = &w.registers;
    let [to, sizes, barriers] = [0, 2, 3].map(|at| *r.word(ins.o[at]));
    let from = *r.long(ins.o[1]);
    for lane in lanes(m) {
        let bytes = in_sixteens(lane, from[lane], sizes[lane])?;
        let at = shared_range(e, lane, (to[lane], bytes, 16))?;
        let mut data = vec![0; bytes];
        e.memory.read_range((lane, from[lane]), &mut data, &mut e.counters)?;
        begin(w, e, (lane, barriers[lane]), ((at..at + bytes).step_by(16).collect(), data))?;
    }
    Ok(())
}

/// Shared to global memory: address `o[0]` from `o[1]`, bytes `o[2]`.
pub(super) fn store(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let to = *w.registers.long(ins.o[0]);
    let [from, sizes] = [1, 2].map(|at| *w.registers.word(ins.o[at]));
    for lane in lanes(m) {
        let bytes = in_sixteens(lane, to[lane], sizes[lane])?;
        let at = shared_range(e, lane, (from[lane], bytes, 16))?;
        read(w, e, lane, (at..at + bytes).step_by(16))?;
        let data = e.shared.bytes(at, bytes).to_vec();
        e.memory.write_range((lane, to[lane]), &data, &mut e.counters)?;
    }
    Ok(())
}

/// Begins to read shared memory, for the current group of `lane`.
fn read(w: &mut Warp, e: &mut Env<'_>, lane: usize, pieces: impl Iterator<Item = usize>) -> Step {
    let reader = w.begin_reading(e, (lane as u32, false), pieces)?;
    let group = w.bulk.begun[lane];
    w.bulk.under_way.push(Store { lane, group, reader, pc: e.pc });
    Ok(())
}

/// Ends the current group of each lane.
pub(super) fn commit(w: &mut Warp, m: u32) {
    lanes(m).for_each(|lane| w.bulk.begun[lane] += 1);
}

/// Waits for the copies of each lane but those of its last `keep` groups.
pub(super) fn wait(w: &mut Warp, e: &mut Env<'_>, m: u32, keep: u32) {
    let begun = w.bulk.begun;
    let done =
        |store: &mut Store| m >> store.lane & 1 != 0 && store.group + keep < begun[store.lane];
    for store in w.bulk.under_way.extract_if(.., done) {
        e.shared.end_reading(store.reader);
    }
}

/// A fault if lanes that exit have copies that still read their block's shared memory.
pub(super) fn check_exit(w: &Warp, m: u32) -> Step {
    let left = w.bulk.under_way.iter().find(|store| m >> store.lane & 1 != 0);
    let Some(store) = left else { return Ok(()) };
    let text = format!(
        "exits while the bulk copy at {} reads shared memory: wait for its group first",
        Instruction(store.pc as usize)
    );
    Err(trouble(FaultKind::AsyncRead, store.lane, text))
}

/// The tensor map at a generic address.
fn map_at(e: &mut Env<'_>, lane: usize, address: u64, rank: u8) -> Step<TensorMap> {
    if !address.is_multiple_of(MAP_ALIGN) {
        let text = format!("tensor map at {address:#x}, which is no multiple of {MAP_ALIGN}");
        return Err(trouble(FaultKind::Misaligned, lane, text));
    }
    let mut bytes = [0; TensorMap::BYTES];
    let offset = address.wrapping_sub(PARAM_WINDOW);
    if offset < WINDOW_BYTES {
        let at = offset as usize;
        let Some(found) = e.params.get(at..at + TensorMap::BYTES) else {
            let text = format!(
                "tensor map at {at:#x} of the parameters, which have {} bytes",
                e.params.len()
            );
            return Err(trouble(FaultKind::OutOfBounds, lane, text));
        };
        bytes.copy_from_slice(found);
    } else {
        e.memory.read_range((lane, address), &mut bytes, &mut e.counters)?;
    }
    let wrong = |text: String| {
        trouble(FaultKind::TensorMap, lane, format!("tensor map at {address:#x}: {text}"))
    };
    let map = TensorMap::decode(&bytes).map_err(&wrong)?;
    if map.rank != usize::from(rank) {
        return Err(wrong(format!("it has {} dimensions, the copy {rank}", map.rank)));
    }
    Ok(map)
}

/// The start of each lane's tile.
fn start(w: &Warp, slots: &[u16], lane: usize) -> [i32; 5] {
    let mut start = [0; 5];
    for (to, slot) in start.iter_mut().zip(slots) {
        *to = w.registers.word(*slot)[lane].cast_signed();
    }
    start
}

/// Where the tile's 16 bytes each lie in shared memory, row after row.
fn places(map: &TensorMap, at: usize) -> Vec<usize> {
    let bytes = map.rows() * map.row_bytes();
    (at..at + bytes).step_by(16).map(|at| swizzled(at, map.swizzle)).collect()
}

/// Shared memory that a tile takes; patterns may reach beyond it, to the end of the rows that they permute.
fn tile_range(e: &Env<'_>, lane: usize, map: &TensorMap, at: u32) -> Step<usize> {
    let bytes = (map.rows() * map.row_bytes()).next_multiple_of(16 << map.swizzle);
    shared_range(e, lane, (at, bytes, 128))
}

/// A tile of a tensor to shared memory: address `o[0]`, map `o[1]`, barrier `o[2]`, coordinates from `o[3]`.
pub(super) fn load_tile(w: &Warp, e: &mut Env<'_>, ins: &Ins, rank: u8, m: u32) -> Step {
    let (to, barriers) = (*w.registers.word(ins.o[0]), *w.registers.word(ins.o[2]));
    let maps = *w.registers.long(ins.o[1]);
    for lane in lanes(m) {
        let map = map_at(e, lane, maps[lane], rank)?;
        let at = tile_range(e, lane, &map, to[lane])?;
        let start = start(w, &ins.o[3..3 + map.rank], lane);
        let row_bytes = map.row_bytes();
        let mut data = vec![0; map.rows() * row_bytes];
        for (row, data) in data.chunks_exact_mut(row_bytes).enumerate() {
            if let Some((offset, address, bytes)) = map.piece(&start, row) {
                let into = &mut data[offset..offset + bytes];
                e.memory.read_range((lane, address), into, &mut e.counters)?;
            }
        }
        begin(w, e, (lane, barriers[lane]), (places(&map, at), data))?;
    }
    Ok(())
}

/// A tile of a tensor from shared memory: map `o[0]`, address `o[1]`, coordinates from `o[2]`.
pub(super) fn store_tile(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, rank: u8, m: u32) -> Step {
    let (maps, from) = (*w.registers.long(ins.o[0]), *w.registers.word(ins.o[1]));
    for lane in lanes(m) {
        let map = map_at(e, lane, maps[lane], rank)?;
        let at = tile_range(e, lane, &map, from[lane])?;
        let start = start(w, &ins.o[2..2 + map.rank], lane);
        let places = places(&map, at);
        read(w, e, lane, places.iter().copied())?;
        let data: Vec<u8> = places.iter().flat_map(|at| e.shared.bytes(*at, 16)).copied().collect();
        for (row, data) in data.chunks_exact(map.row_bytes()).enumerate() {
            if let Some((offset, address, bytes)) = map.piece(&start, row) {
                let from = &data[offset..offset + bytes];
                e.memory.write_range((lane, address), from, &mut e.counters)?;
            }
        }
    }
    Ok(())
}

/// `tensormap.cp_fenceproxy`: a map at `o[1]` of shared memory to the global address `o[0]`, by a warp.
pub(super) fn copy_map(w: &Warp, e: &mut Env<'_>, ins: &Ins) -> Step {
    let (to, from) = (w.registers.long(ins.o[0])[0], w.registers.word(ins.o[1])[0]);
    let at = shared_range(e, 0, (from, TensorMap::BYTES, 128))?;
    e.shared.note_range(&w.who(e.pc, true), 0, (at, TensorMap::BYTES), How::Read)?;
    if !to.is_multiple_of(128) {
        let text = format!("tensor map at {to:#x}, which is no multiple of 128");
        return Err(trouble(FaultKind::Misaligned, 0, text));
    }
    let data = e.shared.bytes(at, TensorMap::BYTES).to_vec();
    e.memory.write_range((0, to), &data, &mut e.counters)
}
