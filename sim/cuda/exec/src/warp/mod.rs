//! A warp: 32 lanes that execute one instruction at a time.
//!
//! Lanes that went different ways are groups; the group that is furthest behind runs, and groups that reach the same
//! instruction become one. That is not enough for `.sync` instructions, which compilers also put where only part of a
//! mask arrives at a time: a group waits there until the others of its mask come.

mod access;
mod atomic;
mod bulk;
mod convert;
mod exchange;
mod float;
mod handler;
mod hopper;
mod integer;
mod mbarrier;
mod proxy;
pub(crate) mod registers;
mod tensor;
mod wgmma;

use crate::compile::Compiled;
use crate::counters::{Counters, Tally};
use crate::fault::{FaultKind, Step, Trouble};
use crate::memory::View;
use crate::program::{Flow, Ins, Op, Program, Together};
use crate::shared::{Clock, Shared, Who, learn};
use access::Copy;
use mbarrier::Barriers;
use proxy::Fences;
use registers::{FULL, LANES, Registers};
use std::collections::VecDeque;

pub(crate) use handler::{handler, has_avx512};
pub(crate) use proxy::Known;
pub(crate) use wgmma::{Warpgroups, watched_handler};

/// Executes one instruction for the lanes of a mask. Its code may need features of the processor, which whoever calls it
/// must know to be there.
pub(crate) type Handler = unsafe fn(&mut Warp, &mut Env<'_>, &Ins, u32) -> Step;

/// What the warps of a block share.
#[derive(Debug)]
pub(crate) struct Env<'l> {
    pub(crate) program: &'l Program,
    pub(crate) params: &'l [u8],
    /// Stretches of the program as machine code, whose parameters `params` has.
    pub(crate) compiled: Option<&'l Compiled>,
    pub(crate) memory: View<'l>,
    pub(crate) shared: Shared,
    /// Bytes of shared memory that the block has.
    pub(crate) shared_bytes: usize,
    pub(crate) counters: Counters,
    pub(crate) tally: Tally,
    /// Threads that arrived at a barrier without waiting.
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) barriers: Barriers,
    pub(crate) warpgroups: Warpgroups,
    /// The instruction that is executed, and by which lanes.
    pub(crate) pc: u32,
    pub(crate) active: u32,
}

/// `bar.arrive`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) barrier: u32,
    pub(crate) threads: u32,
    pub(crate) known: Known,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    pub(crate) registers: Registers,
    pub(crate) groups: Vec<Group>,
    /// Lanes that exist and have not exited.
    pub(crate) live: u32,
    pub(crate) clock: Clock,
    /// Warps of the block.
    pub(crate) warps: usize,
    /// What any warp did at a step before this one, this warp knows.
    settled: u32,
    copies: VecDeque<Copy>,
    fences: Fences,
    bulk: bulk::Groups,
    products: wgmma::Products,
    /// How many groups of `cp.async` each lane has begun.
    groups_begun: [u32; LANES],
    pub(crate) local: Vec<u8>,
}

/// Lanes that are at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) lanes: u32,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At a barrier of the block, which wants so many threads, or all.
    Barrier {
        barrier: u32,
        wanted: Option<u32>,
        aligned: bool,
    },
    /// Waits for these lanes to come to the same instruction.
    Meeting(u32),
    /// Waits for these lanes to come to any `bar.warp.sync`.
    WarpBarrier(u32),
    /// Waits for a phase of the `mbarrier` at this address.
    Mbarrier {
        at: u32,
        phase: u64,
    },
}

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// It ran for as long as it may.
    Slice,
    /// Every group waits.
    Blocked,
    /// All lanes have exited.
    Done,
}

impl Warp {
    /// Warp `index` of a block of `warps`.
    pub(crate) fn new(index: u32, warps: u32, program: &Program) -> Self {
        let registers = Registers {
            words: vec![registers::Words([0; LANES]); program.words],
            longs: vec![registers::Longs([0; LANES]); program.longs],
            predicates: vec![0; program.predicates],
        };
        Self {
            index,
            registers,
            groups: Vec::new(),
            live: 0,
            clock: [0; 32],
            warps: warps as usize,
            settled: 0,
            copies: VecDeque::new(),
            fences: Fences::default(),
            bulk: bulk::Groups::default(),
            products: wgmma::Products::default(),
            groups_begun: [0; LANES],
            local: vec![0; program.local_bytes * LANES],
        }
    }

    /// Begins a block with these lanes. `step` is the warp's first.
    pub(crate) fn begin(&mut self, live: u32, step: u32) {
        self.live = live;
        self.groups.clear();
        self.groups.push(Group { pc: 0, lanes: live, state: State::Ready });
        self.clock = [0; 32];
        self.step_to(step);
        self.copies.clear();
        self.fences = Fences::default();
        self.bulk = bulk::Groups::default();
        self.products = wgmma::Products::default();
        self.groups_begun = [0; LANES];
        // Of nothing, too, it would take a hundred nanoseconds: a masked store to where no memory is.
        if !self.local.is_empty() {
            self.local.fill(halyard_sim_memory::POISON);
        }
    }

    pub(crate) fn own_step(&self) -> u32 {
        self.clock[self.index as usize & 31]
    }

    /// Begins its step `step`.
    pub(crate) fn step_to(&mut self, step: u32) {
        self.clock[self.index as usize & 31] = step;
        self.learn(&[0; 32]);
    }

    /// Learns what a warp with the clock `known` knows.
    pub(crate) fn learn(&mut self, known: &Clock) {
        learn(&mut self.clock, known);
        self.settled = self.clock.iter().take(self.warps).copied().min().unwrap_or(0);
    }

    /// It, as the user of shared memory by the instruction `pc`.
    fn who(&self, pc: u32, together: bool) -> Who<'_> {
        Who { clock: &self.clock, settled: self.settled, warp: self.index, pc, together }
    }

    /// Takes the ready group that is furthest behind: where it is, and its lanes.
    fn next(&mut self) -> Option<(u32, u32)> {
        let ready = self.groups.iter().enumerate().filter(|(_, group)| group.state == State::Ready);
        let (at, group) = ready.min_by_key(|(_, group)| group.pc)?;
        let taken = (group.pc, group.lanes);
        if at + 1 == self.groups.len() {
            self.groups.pop();
        } else {
            self.groups.swap_remove(at);
        }
        Some(taken)
    }

    /// Where the next ready group is.
    fn limit(&self) -> u32 {
        let ready = self.groups.iter().filter(|group| group.state == State::Ready);
        ready.map(|group| group.pc).min().unwrap_or(u32::MAX)
    }

    /// Adds lanes; those in the same state at the same place are one group.
    fn join(&mut self, group: Group) -> &mut Group {
        let same = |there: &Group| there.pc == group.pc && there.state == group.state;
        let at = self.groups.iter().position(same).unwrap_or_else(|| {
            self.groups.push(Group { lanes: 0, ..group });
            self.groups.len() - 1
        });
        self.groups[at].lanes |= group.lanes;
        &mut self.groups[at]
    }

    /// Adds lanes that go on at `pc`: mostly there are no others, and no group is copied before it is in memory.
    #[inline(never)]
    fn go_on(&mut self, pc: u32, lanes: u32) {
        if self.groups.is_empty() {
            self.groups.push(Group { pc, lanes, state: State::Ready });
        } else {
            self.join(Group { pc, lanes, state: State::Ready });
        }
    }

    /// Whether `active` may execute a `.sync` instruction now. If not, they wait for the others.
    fn meets(&mut self, pc: u32, active: u32, wanted: u32) -> Step<bool> {
        if active & !wanted != 0 {
            let lane = (active & !wanted).trailing_zeros();
            let text = format!("a lane executes it that its mask {wanted:#x} leaves out");
            return Err(Trouble::new(FaultKind::WarpSync, lane, text));
        }
        let live = self.live;
        if wanted & live & !active == 0 {
            return Ok(true);
        }
        let group = self.join(Group { pc, lanes: active, state: State::Meeting(wanted) });
        if wanted & live & !group.lanes == 0 {
            group.state = State::Ready;
        }
        Ok(false)
    }

    /// `bar.warp.sync`.
    fn warp_barrier(&mut self, pc: u32, active: u32, wanted: u32) {
        self.join(Group { pc, lanes: active, state: State::WarpBarrier(wanted) });
        self.open_warp_barrier(wanted);
    }

    /// Lets every lane that waits for `wanted` go on, once all of them came.
    fn open_warp_barrier(&mut self, wanted: u32) {
        let waiting = |group: &&mut Group| group.state == State::WarpBarrier(wanted);
        let here =
            self.groups.iter_mut().filter(waiting).fold(0, |lanes, group| lanes | group.lanes);
        if here == 0 || wanted & self.live & !here != 0 {
            return;
        }
        for group in self.groups.iter_mut().filter(waiting) {
            *group = Group { pc: group.pc + 1, state: State::Ready, ..*group };
        }
        self.step_to(self.own_step() + 1);
    }

    /// Ends lanes; groups that waited for them alone go on.
    fn exit(&mut self, lanes: u32) {
        self.live &= !lanes;
        let live = self.live;
        for at in 0..self.groups.len() {
            let group = &mut self.groups[at];
            match group.state {
                State::Meeting(wanted) if wanted & live & !group.lanes == 0 => {
                    group.state = State::Ready;
                }
                State::WarpBarrier(wanted) => self.open_warp_barrier(wanted),
                _ => {}
            }
        }
    }
}

/// Runs `w` for at most `budget` instructions.
pub(crate) fn run(w: &mut Warp, e: &mut Env<'_>, mut budget: u32) -> Step<Pause> {
    let program = e.program;
    while let Some((mut pc, mut m)) = w.next() {
        let mut limit = w.limit();
        while m != 0 {
            if pc >= limit || budget == 0 {
                w.go_on(pc, m);
                break;
            }
            let first = pc;
            let end = program.stops[pc as usize].min(limit);
            let stop = end.min(pc.saturating_add(budget));
            if pc < stop {
                let waits = straight(w, e, &mut pc, (stop, end), m)?;
                if waits != 0 {
                    m &= !waits;
                    limit = w.limit();
                }
            } else {
                let ins = &program.code[pc as usize];
                let active = ins.active(&w.registers, m);
                (e.pc, e.active) = (pc, active);
                e.tally.branch(pc, active);
                if let Op::Flow(flow) = ins.op {
                    (pc, m) = go(w, e, ins, flow, (m, active))?;
                    limit = w.limit();
                }
                budget -= 1;
                continue;
            }
            // A stretch may go beyond: nobody sees when it is executed.
            budget = budget.saturating_sub(pc - first);
        }
        if budget == 0 {
            return Ok(Pause::Slice);
        }
    }
    Ok(if w.live == 0 { Pause::Done } else { Pause::Blocked })
}

/// Runs the instructions from `pc` to `stop`, none of which branches, and the rest of a stretch that ends before `end`; gives the lanes that wait
/// for others on the way. `pc` is behind what was run.
fn straight(
    w: &mut Warp,
    e: &mut Env<'_>,
    pc: &mut u32,
    (stop, end): (u32, u32),
    m: u32,
) -> Step<u32> {
    let program = e.program;
    let first = *pc;
    while *pc < stop {
        if let Some(compiled) = e.compiled {
            let len = compiled.len(*pc);
            if len != 0 && *pc + len <= end {
                compiled.run(*pc, &mut w.registers, e.params, m);
                *pc += len;
                continue;
            }
        }
        let ins = &program.code[*pc as usize];
        e.pc = *pc;
        *pc += 1;
        let mut active = m;
        if !ins.plain {
            active = ins.active(&w.registers, m);
            e.tally.guarded(active);
            if active == 0 {
                continue;
            }
            if ins.together != Together::No && !together(w, ins, active)? {
                let waits = apart(w, e, ins, active)?;
                if waits == 0 {
                    continue;
                }
                e.tally.straight(program, (first, *pc), m);
                return Ok(waits);
            }
            if let Some(compiled) = e.compiled
                && active == FULL
                && compiled.is_together(e.pc)
            {
                compiled.run(e.pc, &mut w.registers, e.params, FULL);
                if let Op::Mma(op) = ins.op {
                    handler::count_tensor(&mut e.counters, op);
                }
                continue;
            }
        }
        e.active = active;
        // SAFETY: `handler` chose it for the features that this processor has.
        unsafe { (ins.run)(w, e, ins, active)? };
    }
    e.tally.straight(program, (first, *pc), m);
    Ok(0)
}

/// Executes `ins` by a function that `handler` gave.
fn execute(w: &mut Warp, e: &mut Env<'_>, (run, ins): (Handler, &Ins), m: u32) -> Step {
    // SAFETY: `handler` chose it for the features that this processor has.
    unsafe { run(w, e, ins, m) }
}

impl Ins {
    /// Which of the lanes `m` execute it.
    #[inline(always)]
    fn active(&self, r: &Registers, m: u32) -> u32 {
        match self.guard {
            None => m,
            Some((slot, true)) => m & r.predicate(slot),
            Some((slot, false)) => m & !r.predicate(slot),
        }
    }
}

#[inline(always)]
fn together(w: &Warp, ins: &Ins, active: u32) -> Step<bool> {
    match ins.together {
        Together::Mask(slot) => {
            let wanted = w.registers.word(slot)[active.trailing_zeros() as usize & 31];
            Ok(wanted & w.live & !active == 0 && active & !wanted == 0)
        }
        _ if active == FULL => Ok(true),
        _ if w.live != FULL => {
            let text = "it needs all 32 lanes, some of which have exited or never were".to_owned();
            Err(Trouble::new(FaultKind::WarpSync, active.trailing_zeros(), text))
        }
        _ => Ok(false),
    }
}

/// Executes `ins` for those of `active` whose mask's lanes are all here, mask by mask: lanes may name different ones. Gives the
/// lanes that wait for others.
#[cold]
fn apart(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, active: u32) -> Step<u32> {
    let masks = match ins.together {
        Together::Mask(slot) => *w.registers.word(slot),
        _ => [FULL; LANES],
    };
    let mut waits = 0;
    for (wanted, lanes) in by_mask(&masks, active) {
        if w.meets(e.pc, lanes, wanted)? {
            e.active = lanes;
            execute(w, e, (ins.run, ins), lanes)?;
        } else {
            waits |= lanes;
        }
    }
    Ok(waits)
}

/// The masks that the lanes `active` name, and which lanes name each.
fn by_mask(masks: &[u32; LANES], active: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut left = active;
    std::iter::from_fn(move || {
        let wanted = *masks.get(left.trailing_zeros() as usize)?;
        let same = |lane: &usize| left >> lane & 1 != 0 && masks[*lane] == wanted;
        let lanes = (0..LANES).filter(same).fold(0, |lanes, lane| lanes | 1 << lane);
        left &= !lanes;
        Some((wanted, lanes))
    })
}

/// Branches, exits and barriers: where the group goes, and which lanes stay in it.
#[inline(always)]
fn go(
    w: &mut Warp,
    e: &mut Env<'_>,
    ins: &Ins,
    flow: Flow,
    (m, active): (u32, u32),
) -> Step<(u32, u32)> {
    let pc = e.pc;
    if active == 0 {
        return Ok((pc + 1, m));
    }
    let left = m & !active;
    match flow {
        Flow::Branch if left == 0 => return Ok((ins.imm as u32, m)),
        Flow::Branch => {
            w.go_on(ins.imm as u32, active);
        }
        Flow::Exit => {
            bulk::check_exit(w, active)?;
            w.exit(active);
        }
        Flow::Trap => {
            let (kind, text) = match ins.imm {
                1 => (FaultKind::Assert, "an assertion does not hold"),
                _ => (FaultKind::Trap, "trap"),
            };
            return Err(Trouble::new(kind, active.trailing_zeros(), text.to_owned()));
        }
        Flow::WarpBarrier => {
            let masks = *w.registers.word(ins.o[0]);
            for (wanted, lanes) in by_mask(&masks, active) {
                w.warp_barrier(pc, lanes, wanted);
            }
        }
        Flow::BarrierWait { parity } => {
            let done = mbarrier::wait(w, e, ins, parity, active)?;
            return Ok((pc + 1, left | done));
        }
        Flow::Barrier { counted, wait, aligned, .. } => {
            let first = active.trailing_zeros() as usize & 31;
            let barrier = w.registers.word(ins.o[0])[first];
            let wanted = counted.then(|| w.registers.word(ins.o[1])[first]);
            if !wait {
                w.step_to(w.own_step() + 1);
                let threads = active.count_ones();
                e.arrivals.push(Arrival { barrier, threads, known: w.known() });
                return Ok((pc + 1, m));
            }
            w.join(Group { pc, lanes: active, state: State::Barrier { barrier, wanted, aligned } });
        }
    }
    Ok((pc + 1, left))
}
