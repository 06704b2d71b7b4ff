//! A warp: 32 lanes that execute one instruction at a time.
//!
//! Lanes that went different ways are groups; the group that is furthest behind runs, and groups that reach the same
//! instruction become one. That is not enough for `.sync` instructions, which compilers also put where only part of a
//! mask arrives at a time: a group waits there until the others of its mask come.

mod access;
mod atomic;
mod convert;
mod exchange;
mod float;
mod integer;
pub(crate) mod registers;
mod tensor;

use crate::counters::Counters;
use crate::fault::{FaultKind, Step, Trouble};
use crate::memory::View;
use crate::program::{Flow, Ins, Mma, Op, Program, Together};
use crate::shared::{Clock, Shared};
use access::Copy;
use registers::{FULL, LANES, Registers};

/// What the warps of a block share.
#[derive(Debug)]
pub(crate) struct Env<'l> {
    pub(crate) program: &'l Program,
    pub(crate) params: &'l [u8],
    pub(crate) memory: View<'l>,
    pub(crate) shared: Shared,
    /// Bytes of shared memory that the block has.
    pub(crate) shared_bytes: usize,
    pub(crate) counters: Counters,
    /// Threads that arrived at a barrier without waiting.
    pub(crate) arrivals: Vec<Arrival>,
    /// The instruction that is executed, and by which lanes.
    pub(crate) pc: u32,
    pub(crate) active: u32,
}

/// `bar.arrive`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) barrier: u32,
    pub(crate) threads: u32,
    pub(crate) clock: Clock,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    pub(crate) registers: Registers,
    pub(crate) groups: Vec<Group>,
    /// Lanes that exist and have not exited.
    pub(crate) live: u32,
    pub(crate) clock: Clock,
    copies: Vec<Copy>,
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
    pub(crate) fn new(index: u32, program: &Program) -> Self {
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
            copies: Vec::new(),
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
        self.clock[self.index as usize & 31] = step;
        self.copies.clear();
        self.groups_begun = [0; LANES];
        self.local.fill(halyard_sim_memory::POISON);
    }

    pub(crate) fn own_step(&mut self) -> &mut u32 {
        &mut self.clock[self.index as usize & 31]
    }

    /// Takes the ready group that is furthest behind.
    fn next(&mut self) -> Option<Group> {
        let ready = self.groups.iter().enumerate().filter(|(_, group)| group.state == State::Ready);
        let (at, _) = ready.min_by_key(|(_, group)| group.pc)?;
        Some(self.groups.swap_remove(at))
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
        *self.own_step() += 1;
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
pub(crate) fn run(w: &mut Warp, e: &mut Env<'_>, budget: u32) -> Step<Pause> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features, just asked.
        return unsafe { run_avx2(w, e, budget) };
    }
    run_lanes(w, e, budget)
}

/// [`run_lanes`] compiled with wide vectors and fused multiplication.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn run_avx2(w: &mut Warp, e: &mut Env<'_>, budget: u32) -> Step<Pause> {
    run_lanes(w, e, budget)
}

#[inline(always)]
fn run_lanes(w: &mut Warp, e: &mut Env<'_>, mut budget: u32) -> Step<Pause> {
    let program = e.program;
    while let Some(Group { mut pc, lanes: mut m, .. }) = w.next() {
        let mut limit = w.limit();
        while m != 0 {
            if pc >= limit || budget == 0 {
                w.join(Group { pc, lanes: m, state: State::Ready });
                break;
            }
            budget -= 1;
            let ins = &program.code[pc as usize];
            let active = match ins.guard {
                None => m,
                Some((slot, true)) => m & w.registers.predicate(slot),
                Some((slot, false)) => m & !w.registers.predicate(slot),
            };
            (e.pc, e.active) = (pc, active);
            e.counters.instructions[ins.class as usize] += 1;
            e.counters.thread_instructions += u64::from(active.count_ones());
            if let Op::Flow(flow) = ins.op {
                (pc, m) = go(w, e, ins, flow, (m, active))?;
                limit = w.limit();
                continue;
            }
            if active != 0 {
                if ins.together != Together::No && !together(w, ins, pc, active)? {
                    m &= !active;
                    limit = w.limit();
                } else {
                    step(w, e, ins, active)?;
                }
            }
            pc += 1;
        }
        if budget == 0 {
            return Ok(Pause::Slice);
        }
    }
    Ok(if w.live == 0 { Pause::Done } else { Pause::Blocked })
}

#[inline(always)]
fn together(w: &mut Warp, ins: &Ins, pc: u32, active: u32) -> Step<bool> {
    match ins.together {
        Together::Mask(slot) => {
            let wanted = w.registers.word(slot)[active.trailing_zeros() as usize & 31];
            if wanted & w.live & !active == 0 && active & !wanted == 0 {
                Ok(true)
            } else {
                w.meets(pc, active, wanted)
            }
        }
        _ if active == FULL => Ok(true),
        _ if w.live != FULL => {
            let text = "it needs all 32 lanes, some of which have exited or never were".to_owned();
            Err(Trouble::new(FaultKind::WarpSync, active.trailing_zeros(), text))
        }
        _ => w.meets(pc, active, FULL),
    }
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
            w.join(Group { pc: ins.imm as u32, lanes: active, state: State::Ready });
        }
        Flow::Exit => w.exit(active),
        Flow::Trap => {
            let text = "trap".to_owned();
            return Err(Trouble::new(FaultKind::Trap, active.trailing_zeros(), text));
        }
        Flow::WarpBarrier => {
            let first = active.trailing_zeros() as usize & 31;
            w.warp_barrier(pc, active, w.registers.word(ins.o[0])[first]);
        }
        Flow::Barrier { counted, wait, aligned } => {
            let first = active.trailing_zeros() as usize & 31;
            let barrier = w.registers.word(ins.o[0])[first];
            let wanted = counted.then(|| w.registers.word(ins.o[1])[first]);
            if !wait {
                *w.own_step() += 1;
                let threads = active.count_ones();
                e.arrivals.push(Arrival { barrier, threads, clock: w.clock });
                return Ok((pc + 1, m));
            }
            w.join(Group { pc, lanes: active, state: State::Barrier { barrier, wanted, aligned } });
        }
    }
    Ok((pc + 1, left))
}

#[inline(always)]
fn step(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let (r, o) = (&mut w.registers, &ins.o);
    match ins.op {
        Op::Move(op) => integer::moves(r, m, o, op, ins.imm),
        Op::Int(op, width) => integer::int(r, m, o, op, width),
        Op::Wide(op) => integer::wide(r, m, o, op),
        Op::Bits(op) => integer::bits(r, m, o, op),
        Op::Logic(op) => integer::logic(r, m, o, op),
        Op::F32(op, mode) => float::f32s(r, m, o, op, mode),
        Op::F64(op) => float::f64s(r, m, o, op),
        Op::Half(op, kind) => float::halves(r, m, o, op, kind),
        Op::Compare(op) => convert::compare(r, m, o, op, ins.imm != 0),
        Op::Select(width) => convert::select(r, m, o, width),
        Op::Convert(op) => convert::convert(r, m, o, op),
        Op::Load(a) => return access::load(w, e, ins, a, m),
        Op::Store(a) => return access::store(w, e, ins, a, m),
        Op::Atomic(a) => return atomic::atomic(w, e, ins, a, m),
        Op::AsyncCopy(bytes) => return access::copy_async(w, e, ins, bytes, m),
        Op::AsyncCommit => access::commit(w, m),
        Op::AsyncWait => return access::wait(w, e, m, u32::try_from(ins.imm).ok()),
        Op::LoadMatrix { count, transposed } => {
            return access::load_matrix(w, e, ins, count, transposed);
        }
        Op::Mma(op) => {
            tensor::mma(r, o, op);
            count_tensor(&mut e.counters, op);
        }
        Op::Lanes(op) => exchange::exchange(r, m, o, op, ins.imm),
        Op::Nop | Op::Flow(_) => {}
    }
    Ok(())
}

fn count_tensor(counters: &mut Counters, op: Mma) {
    match op {
        Mma::Bf16K16 | Mma::F16K16 => counters.tensor_ops += 2 * 16 * 8 * 16,
        Mma::Bf16K8 | Mma::F16K8 | Mma::Tf32K8 => counters.tensor_ops += 2 * 16 * 8 * 8,
        Mma::Fp8K32 { .. } | Mma::Int8K32 { .. } => counters.tensor_ops_8bit += 2 * 16 * 8 * 32,
    }
}
