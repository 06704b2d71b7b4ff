//! `mbarrier`: barriers in shared memory that count arrivals and bytes, phase by phase.
//!
//! A phase is complete when no arrival and no byte of it is missing. What copies brought for it is only then in shared memory,
//! and only for whoever waited: the first who sees the phase complete delivers.

use super::access::{Copy, land_lanes};
use super::proxy::Known;
use super::registers::{LANES, lanes};
use super::{Env, Group, State, Warp};
use crate::fault::{FaultKind, Step, Trouble};
use crate::program::Ins;
use crate::shared::{Clock, How, Instruction, copy_piece};
use std::collections::BTreeMap;

/// The most arrivals and bytes that one counts.
const MOST: u32 = (1 << 20) - 1;

/// The `mbarrier`s of a block, by address.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    all: BTreeMap<u32, Barrier>,
    /// A phase was completed since somebody looked.
    pub(crate) completed: bool,
}

#[derive(Debug)]
struct Barrier {
    expected: u32,
    pending: u32,
    /// Bytes that are expected and have not come.
    bytes: i64,
    phase: u64,
    /// What those know that arrived in this phase, and in all before it.
    arrived: Known,
    complete: Known,
    /// What is delivered once a phase is complete.
    copies: Vec<(u64, Delivery)>,
    /// Step of each warp's last use.
    used: Clock,
    /// Who initialised it: thread, step and instruction.
    begun: (u32, u32, u32),
}

/// What a copy brings.
#[derive(Debug)]
pub(super) enum Delivery {
    /// 16 bytes for each address, by the async proxy, since an instruction.
    Bulk { to: Vec<usize>, data: Vec<u8>, pc: u32 },
    /// A `cp.async` of these lanes.
    Lanes(Box<Copy>),
}

impl Barrier {
    /// A fault if a bulk copy is not delivered.
    fn check_end(&self, at: u32) -> Step {
        let pending = self.copies.iter().find_map(|(_, copy)| match copy {
            Delivery::Bulk { pc, .. } => Some(*pc),
            Delivery::Lanes(_) => None,
        });
        let Some(pc) = pending else { return Ok(()) };
        let text = format!(
            "the mbarrier at {at:#x} ends, and nobody waited for the bulk copy at {}",
            Instruction(pc as usize)
        );
        Err(trouble(0, text))
    }

    fn settle(&mut self) -> bool {
        if self.pending != 0 || self.bytes != 0 {
            return false;
        }
        self.pending = self.expected;
        self.phase += 1;
        let arrived = std::mem::take(&mut self.arrived);
        self.complete.learn(&arrived);
        true
    }

    /// Adds to the bytes that are missing.
    fn expect(&mut self, at: u32, lane: usize, bytes: i64) -> Step {
        self.bytes += bytes;
        if self.bytes.unsigned_abs() <= u64::from(MOST) {
            return Ok(());
        }
        let text = format!(
            "{} bytes are missing at the mbarrier at {at:#x}, at most {MOST} can be",
            self.bytes
        );
        Err(trouble(lane, text))
    }
}

impl Barriers {
    pub(crate) fn clear(&mut self) {
        self.all.clear();
        self.completed = false;
    }

    /// What is wrong if the block ends now: a copy to its shared memory that nobody waited for.
    pub(crate) fn check_end(&self) -> Option<Box<Trouble>> {
        self.all.iter().find_map(|(at, barrier)| barrier.check_end(*at).err())
    }

    /// Whether the wait for `phase` of the barrier at `at` is over.
    pub(crate) fn is_over(&self, at: u32, phase: u64) -> bool {
        self.all.get(&at).is_none_or(|barrier| barrier.phase > phase)
    }

    /// What is missing at the barrier at `at`.
    pub(crate) fn missing(&self, at: u32) -> String {
        let Some(Barrier { expected, pending, bytes, phase, .. }) = self.all.get(&at) else {
            return format!("the mbarrier at {at:#x} is gone");
        };
        let bytes = match bytes {
            0 => String::new(),
            1.. => format!(" and {bytes} bytes"),
            more => format!(", and {} bytes more came than were expected", -more),
        };
        let parity = phase & 1;
        format!(
            "the mbarrier at {at:#x} never completes phase {phase} (parity {parity}): {pending} of {expected} arrivals{bytes} are missing"
        )
    }
}

fn trouble(lane: usize, text: String) -> Box<Trouble> {
    Trouble::new(FaultKind::Mbarrier, lane as u32, text)
}

/// A barrier's place, which must be 8 aligned bytes of shared memory.
fn place(e: &Env<'_>, lane: usize, at: u32) -> Step {
    if !at.is_multiple_of(8) {
        let text = format!("mbarrier at {at:#x}, which is no multiple of 8");
        return Err(Trouble::new(FaultKind::Misaligned, lane as u32, text));
    }
    if at as usize + 8 > e.shared_bytes {
        let text =
            format!("mbarrier at {at:#x} of shared memory: the block has {}", e.shared_bytes);
        return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, text));
    }
    Ok(())
}

/// The barrier that a lane of `w` uses; its initialisation must have happened before.
fn barrier<'e>(w: &Warp, e: &'e mut Env<'_>, lane: usize, at: u32) -> Step<&'e mut Barrier> {
    place(e, lane, at)?;
    let Some(found) = e.barriers.all.get_mut(&at) else {
        let text = format!("no mbarrier is initialised at {at:#x}");
        return Err(trouble(lane, text));
    };
    let (thread, step, pc) = found.begun;
    let own = w.index * 32 + lane as u32;
    if step >= w.clock[(thread as usize / 32) & 31] && thread != own {
        let text = format!(
            "the mbarrier at {at:#x} is initialised by thread {thread} at {}: no barrier between",
            Instruction(pc as usize)
        );
        return Err(trouble(lane, text));
    }
    found.used[w.index as usize & 31] = w.own_step();
    Ok(found)
}

pub(super) fn init(w: &Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let (places, counts) = (*w.registers.word(ins.o[0]), *w.registers.word(ins.o[1]));
    for lane in lanes(m) {
        let (at, count) = (places[lane], counts[lane]);
        place(e, lane, at)?;
        if !(1..=MOST).contains(&count) {
            let text = format!("an mbarrier for {count} arrivals: it counts from 1 to {MOST}");
            return Err(trouble(lane, text));
        }
        let who = w.who(e.pc, false);
        e.shared.note_range(&who, lane as u32, (at as usize, 8), How::Barrier)?;
        let barrier = Barrier {
            expected: count,
            pending: count,
            bytes: 0,
            phase: 0,
            arrived: Known::default(),
            complete: Known::default(),
            copies: Vec::new(),
            used: [0; 32],
            begun: (w.index * 32 + lane as u32, w.own_step(), e.pc),
        };
        e.barriers.all.insert(at, barrier);
    }
    Ok(())
}

pub(super) fn inval(w: &Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let places = *w.registers.word(ins.o[0]);
    for lane in lanes(m) {
        let at = places[lane];
        let ending = barrier(w, e, lane, at)?;
        ending.check_end(at)?;
        let used = ending.used;
        let unknown =
            |other: &usize| *other != w.index as usize && used[*other] >= w.clock[*other].max(1);
        if let Some(other) = (0..32).find(unknown) {
            let text =
                format!("the mbarrier at {at:#x} is used by warp {other}: no barrier between");
            return Err(trouble(lane, text));
        }
        let who = w.who(e.pc, false);
        e.shared.note_range(&who, lane as u32, (at as usize, 8), How::Land)?;
        e.barriers.all.remove(&at);
    }
    Ok(())
}

/// Arrivals by the lanes `m`. `completes`: they may complete the phase.
pub(super) fn arrive(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, completes: bool, m: u32) -> Step {
    let o = &ins.o;
    let (places, counts) = (*w.registers.word(o[1]), *w.registers.word(o[2]));
    let bytes = *w.registers.word(o[3]);
    w.step_to(w.own_step() + 1);
    let mut states = [0u64; LANES];
    for lane in lanes(m) {
        let at = places[lane];
        let known = w.known();
        let barrier = barrier(w, e, lane, at)?;
        states[lane] = barrier.phase << 32 | u64::from(barrier.pending);
        barrier.expect(at, lane, bytes[lane].into())?;
        arrived(barrier, (at, lane), counts[lane], &known)?;
        if barrier.settle() {
            if !completes {
                let text =
                    format!("arrive.noComplete completes the phase of the mbarrier at {at:#x}");
                return Err(trouble(lane, text));
            }
            e.barriers.completed = true;
        }
    }
    w.registers.set_long(o[0], m, &states);
    Ok(())
}

fn arrived(barrier: &mut Barrier, (at, lane): (u32, usize), count: u32, known: &Known) -> Step {
    let Some(pending) = barrier.pending.checked_sub(count).filter(|_| count > 0) else {
        let text = format!(
            "{count} arrivals at the mbarrier at {at:#x}, where {} of {} are missing",
            barrier.pending, barrier.expected
        );
        return Err(trouble(lane, text));
    };
    barrier.pending = pending;
    barrier.arrived.learn(known);
    Ok(())
}

/// `expect_tx` and `complete_tx`.
pub(super) fn expect(w: &Warp, e: &mut Env<'_>, ins: &Ins, negative: bool, m: u32) -> Step {
    let (places, bytes) = (*w.registers.word(ins.o[0]), *w.registers.word(ins.o[1]));
    for lane in lanes(m) {
        let bytes = i64::from(bytes[lane]);
        let barrier = barrier(w, e, lane, places[lane])?;
        barrier.expect(places[lane], lane, if negative { -bytes } else { bytes })?;
        e.barriers.completed |= barrier.settle();
    }
    Ok(())
}

/// A copy of `bytes` bytes is on its way for the barrier at `at`.
pub(super) fn bring(
    w: &Warp,
    e: &mut Env<'_>,
    (lane, at): (usize, u32),
    (bytes, delivery): (usize, Delivery),
) -> Step {
    let barrier = barrier(w, e, lane, at)?;
    barrier.copies.push((barrier.phase, delivery));
    barrier.expect(at, lane, -(bytes as i64))?;
    e.barriers.completed |= barrier.settle();
    Ok(())
}

/// `cp.async.mbarrier.arrive`: the copies of each lane so far are delivered with the phase. `counted`: it is one of the arrivals
/// that the phase expects.
pub(super) fn copies_arrive(
    w: &mut Warp,
    e: &mut Env<'_>,
    ins: &Ins,
    counted: bool,
    m: u32,
) -> Step {
    let places = *w.registers.word(ins.o[0]);
    w.step_to(w.own_step() + 1);
    let mut copies = std::mem::take(&mut w.copies);
    for lane in lanes(m) {
        let known = w.known();
        let at = places[lane];
        let barrier = barrier(w, e, lane, at)?;
        for copy in &mut copies {
            if let Some(part) = copy.take_lane(lane) {
                barrier.copies.push((barrier.phase, Delivery::Lanes(Box::new(part))));
            }
        }
        if counted {
            arrived(barrier, (at, lane), 1, &known)?;
            e.barriers.completed |= barrier.settle();
        } else {
            barrier.arrived.learn(&known);
        }
    }
    w.copies = copies;
    w.drop_landed();
    Ok(())
}

/// The phase that `lane` waits for: by its parity or a state.
fn awaited(barrier: &Barrier, lane: usize, at: u32, parity: Option<u32>, state: u64) -> Step<u64> {
    let Some(parity) = parity else {
        let phase = state >> 32;
        if phase + 1 < barrier.phase || phase > barrier.phase {
            let text = format!(
                "a wait for phase {phase} of the mbarrier at {at:#x}, which is at phase {}",
                barrier.phase
            );
            return Err(trouble(lane, text));
        }
        return Ok(phase);
    };
    if parity > 1 {
        return Err(trouble(lane, format!("{parity} is no parity: it is 0 or 1")));
    }
    // The current phase, or the one before it.
    let is_current = barrier.phase & 1 == u64::from(parity);
    Ok(if is_current { barrier.phase } else { barrier.phase.wrapping_sub(1) })
}

/// A lane, and the barrier and phase that it waits for.
type Open = (usize, u32, u64);

/// `test_wait` and `try_wait`: gives the lanes whose phase is complete, and what the others wait for.
fn look(
    w: &mut Warp,
    e: &mut Env<'_>,
    ins: &Ins,
    (by_parity, m): (bool, u32),
) -> Step<(u32, Vec<Open>)> {
    let o = &ins.o;
    let (places, parities) = (*w.registers.word(o[1]), *w.registers.word(o[2]));
    let states = *w.registers.long(o[3]);
    let (mut done, mut open) = (0, Vec::new());
    for lane in lanes(m) {
        let at = places[lane];
        let barrier = barrier(w, e, lane, at)?;
        let parity = by_parity.then_some(parities[lane]);
        let phase = awaited(barrier, lane, at, parity, states[lane])?;
        if phase == barrier.phase {
            open.push((lane, at, phase));
            continue;
        }
        done |= 1 << lane;
        deliver(w, e, lane, at)?;
    }
    Ok((done, open))
}

/// Lands what the complete phases of the barrier at `at` bring, and learns what those know that arrived.
fn deliver(w: &mut Warp, e: &mut Env<'_>, lane: usize, at: u32) -> Step {
    let Some(barrier) = e.barriers.all.get_mut(&at) else { return Ok(()) };
    let phase = barrier.phase;
    let landing: Vec<_> = barrier.copies.extract_if(.., |copy| copy.0 < phase).collect();
    let complete = barrier.complete;
    w.learn_all(&complete);
    if landing.is_empty() {
        return Ok(());
    }
    for (_, delivery) in landing {
        match delivery {
            Delivery::Bulk { to, data, .. } => {
                let who = w.who(e.pc, false);
                for (at, bytes) in to.iter().zip(data.chunks_exact(16)) {
                    e.shared.note_range(&who, lane as u32, (*at, 16), How::Deliver)?;
                    copy_piece(bytes, e.shared.bytes_mut(*at, 16));
                }
            }
            Delivery::Lanes(copy) => land_lanes(w, e, &copy, lane)?,
        }
    }
    w.step_to(w.own_step() + 1);
    let known = w.known();
    if let Some(barrier) = e.barriers.all.get_mut(&at) {
        barrier.complete.learn(&known);
    }
    Ok(())
}

pub(super) fn test(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, parity: bool, m: u32) -> Step {
    let (done, _) = look(w, e, ins, (parity, m))?;
    w.registers.set_predicate(ins.o[0], m, done);
    Ok(())
}

/// `try_wait`: gives the lanes that go on; the others wait until the phase is complete, as a device lets them for a while.
pub(super) fn wait(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, parity: bool, m: u32) -> Step<u32> {
    let (done, open) = look(w, e, ins, (parity, m))?;
    w.registers.set_predicate(ins.o[0], done, done);
    for (lane, at, phase) in open {
        let state = State::Mbarrier { at, phase };
        w.join(Group { pc: e.pc, lanes: 1 << lane, state });
    }
    Ok(done)
}

pub(super) fn pending_count(w: &mut Warp, ins: &Ins, m: u32) {
    let states = w.registers.long(ins.o[1]).map(|state| state as u32);
    w.registers.set_word(ins.o[0], m, &states);
}

/// `mapa`, in a cluster of one block.
pub(super) fn map_address(w: &mut Warp, ins: &Ins, long: bool, m: u32) -> Step {
    let ranks = w.registers.word(ins.o[2]);
    if let Some(lane) = lanes(m).find(|lane| ranks[*lane] != 0) {
        let text = format!("address in block {} of a cluster of one block", ranks[lane]);
        return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, text));
    }
    if long {
        let address = *w.registers.long(ins.o[1]);
        w.registers.set_long(ins.o[0], m, &address);
    } else {
        let address = *w.registers.word(ins.o[1]);
        w.registers.set_word(ins.o[0], m, &address);
    }
    Ok(())
}
