//! A block: its warps in random turns, its barriers, and what it is told when they cannot be complete.

use crate::Counters;
use crate::counters::Tally;
use crate::fault::{Fault, FaultKind, Trouble};
use crate::launch::Launch;
use crate::memory::View;
use crate::program::{CLUSTER_BARRIER, Flow, Ins, Op, Program, Special, Vote};
use crate::random::Random;
use crate::shared::{LAST_STEP, Shared, with_lines};
use crate::warp::registers::{FULL, LANES, Longs, POISON, Words};
use crate::warp::{Env, Group, Known, Pause, State, Warp, run};
use halyard_sim_memory::Memory;

/// A warp runs a power of two of instructions in one turn, the exponent below this: from one, so that warps meet in the
/// middle of short kernels, to enough that turns cost little.
const TURNS: usize = 12;

/// One worker's blocks of a launch, one after the other.
#[derive(Debug)]
pub(crate) struct Block<'l> {
    launch: &'l Launch,
    env: Env<'l>,
    warps: Vec<Warp>,
    threads: u32,
    id: [u32; 3],
    /// The last step of any clock so far.
    step: u32,
    /// Instructions that the warps of a block may execute.
    limit: u64,
}

impl<'l> Block<'l> {
    pub(crate) fn new(launch: &'l Launch, memory: &'l Memory, limit: u64, compiles: bool) -> Self {
        let program: &'l Program = launch.kernel.program();
        let threads = launch.block.iter().product::<u32>();
        let shared_bytes = program.shared_bytes + launch.shared_bytes as usize;
        let env = Env {
            program,
            params: &launch.params,
            compiled: if compiles && launch.params.len() >= program.param_bytes {
                program.compiled()
            } else {
                None
            },
            memory: View::new(memory, &launch.order, launch.device, launch.peers),
            shared: Shared::new(shared_bytes),
            shared_bytes,
            counters: Counters::default(),
            tally: Tally::new(program.code.len()),
            arrivals: Vec::new(),
            barriers: Default::default(),
            warpgroups: Default::default(),
            pc: 0,
            active: 0,
        };
        let count = threads.div_ceil(32);
        let warps = (0..count).map(|index| Warp::new(index, count, program)).collect();
        let mut block = Self { launch, env, warps, threads, id: [0; 3], step: 0, limit };
        (0..block.warps.len()).for_each(|warp| block.set_constants(warp));
        block
    }

    /// Runs one block.
    pub(crate) fn run(&mut self, id: [u32; 3], random: &mut Random) -> Result<(), Fault> {
        self.begin(id);
        let mut ready: Vec<usize> = (0..self.warps.len()).collect();
        let end = self.executed().saturating_add(self.limit);
        loop {
            while !ready.is_empty() {
                let at = random.below(ready.len());
                let turn = 1 << random.below(TURNS);
                let warp = ready[at];
                let paused = run(&mut self.warps[warp], &mut self.env, turn);
                if paused.is_ok() && self.executed() > end {
                    return Err(self.endless(warp));
                }
                match paused {
                    Ok(Pause::Slice) => {}
                    Ok(Pause::Blocked | Pause::Done) => _ = ready.swap_remove(at),
                    Err(trouble) => return Err(self.fault(warp, &trouble)),
                }
                if std::mem::take(&mut self.env.barriers.completed) {
                    self.wake(&mut ready);
                }
            }
            ready = self.release()?;
            if ready.is_empty() {
                break;
            }
        }
        if self.warps.iter().all(|warp| warp.live == 0) {
            if let Some((warp, trouble)) = self.env.warpgroups.check_end() {
                return Err(self.fault(warp, &trouble));
            }
            if let Some(trouble) = self.env.barriers.check_end() {
                return Err(self.fault(0, &trouble));
            }
            self.env.counters.blocks += 1;
            return Ok(());
        }
        Err(self.deadlock())
    }

    /// Instructions that all warps have executed so far, of this worker's earlier blocks, too.
    fn executed(&self) -> u64 {
        self.env.tally.issued()
    }

    /// `warp` is at work in a block that has executed more than it may.
    fn endless(&self, warp: usize) -> Fault {
        let trouble = Trouble {
            kind: FaultKind::Endless,
            lane: None,
            text: format!(
                "it does not end: the block's warps have executed {} instructions",
                self.limit
            ),
        };
        self.fault(warp, &trouble)
    }

    /// Ends the launch's part of this worker.
    pub(crate) fn finish(mut self) -> Counters {
        self.env.memory.finish(&mut self.env.counters);
        self.env.tally.finish(self.env.program, &mut self.env.counters);
        self.env.counters
    }

    fn begin(&mut self, id: [u32; 3]) {
        self.id = id;
        let part = &mut self.env.memory.part;
        (part.block, part.grid, part.ordered) = (id, self.launch.grid, self.env.program.orders);
        let last = self.warps.iter().flat_map(|warp| warp.clock).max().unwrap_or(0);
        // Far from the end, so that no block gets there: that would take millions of barriers.
        self.step = if last > LAST_STEP / 2 { 1 } else { last + 1 };
        self.env.shared.clear(self.step);
        self.env.arrivals.clear();
        self.env.barriers.clear();
        self.env.warpgroups.clear();
        for warp in 0..self.warps.len() {
            let first = warp as u32 * 32;
            let count = (self.threads - first).min(32);
            self.warps[warp].begin(FULL >> (32 - count), self.step);
            self.set_registers(warp);
        }
    }

    /// Sets the registers of a warp that are the same in every block.
    fn set_constants(&mut self, index: usize) {
        let program = self.env.program;
        for (slot, special) in &program.special {
            let values = std::array::from_fn(|lane| self.special(*special, index, lane));
            self.warps[index].registers.words[usize::from(*slot)] = Words(values);
        }
        let registers = &mut self.warps[index].registers;
        for (slot, value) in &program.word_constants {
            registers.words[usize::from(*slot)] = Words([*value; LANES]);
        }
        for (slot, value) in &program.long_constants {
            registers.longs[usize::from(*slot)] = Longs([*value; LANES]);
        }
    }

    /// Sets the registers of a warp that a block begins with.
    fn set_registers(&mut self, index: usize) {
        let program = self.env.program;
        for (slot, special) in &program.special {
            if matches!(special, Special::BlockId(_)) {
                let value = self.special(*special, index, 0);
                self.warps[index].registers.words[usize::from(*slot)] = Words([value; LANES]);
            }
        }
        let registers = &mut self.warps[index].registers;
        for slot in &program.poisoned_words {
            registers.words[usize::from(*slot)] = Words([POISON; LANES]);
        }
        for slot in &program.poisoned_longs {
            let value = u64::from(POISON) << 32 | u64::from(POISON);
            registers.longs[usize::from(*slot)] = Longs([value; LANES]);
        }
        registers.predicates.fill(0x5555_5555);
        for (slot, holds) in &program.predicate_constants {
            registers.predicates[usize::from(*slot)] = if *holds { FULL } else { 0 };
        }
    }

    fn special(&self, special: Special, warp: usize, lane: usize) -> u32 {
        let lane = lane as u32;
        let axis = |of: [u32; 3], axis: u8| of[usize::from(axis) % 3];
        match special {
            Special::Tid(at) => axis(self.thread(warp as u32 * 32 + lane), at),
            Special::BlockSize(at) => axis(self.launch.block, at),
            Special::BlockId(at) => axis(self.id, at),
            Special::GridSize(at) => axis(self.launch.grid, at),
            Special::Lane => lane,
            Special::WarpId => warp as u32,
            Special::WarpCount => self.warps.len() as u32,
            Special::WarpSize => 32,
            Special::MaskEq => 1 << lane,
            Special::MaskLt => (1 << lane) - 1,
            Special::MaskLe => FULL >> (31 - lane),
            Special::MaskGt => !(FULL >> (31 - lane)),
            Special::MaskGe => FULL << lane,
            Special::DynamicShared => self.launch.shared_bytes,
            Special::TotalShared => self.env.shared_bytes as u32,
            Special::Zero => 0,
            Special::One => 1,
        }
    }

    /// Lets those go on who waited for phases of `mbarrier`s that are complete.
    fn wake(&mut self, ready: &mut Vec<usize>) {
        for (index, warp) in self.warps.iter_mut().enumerate() {
            for group in &mut warp.groups {
                if let State::Mbarrier { at, phase } = group.state
                    && self.env.barriers.is_over(at, phase)
                {
                    group.state = State::Ready;
                    if !ready.contains(&index) {
                        ready.push(index);
                    }
                }
            }
        }
    }

    /// `%tid` of the thread with this number.
    fn thread(&self, number: u32) -> [u32; 3] {
        let [x, y, _] = self.launch.block;
        [number % x, number / x % y, number / x / y]
    }

    /// Opens the barriers that are complete; the warps that go on.
    fn release(&mut self) -> Result<Vec<usize>, Fault> {
        let mut ids: Vec<u32> = self.waiting().map(|(_, _, barrier, _)| barrier).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut ready = Vec::new();
        for barrier in ids {
            if self.is_complete(barrier) {
                self.check_divergence(barrier)?;
                self.open(barrier, &mut ready);
            }
        }
        ready.sort_unstable();
        ready.dedup();
        Ok(ready)
    }

    fn is_complete(&self, barrier: u32) -> bool {
        let here = self.waiting().filter(|waiting| waiting.2 == barrier);
        // `barrier.cluster` counts arrivals alone.
        let counts = |(_, group, ..): (usize, Group, u32, Option<u32>)| match barrier {
            CLUSTER_BARRIER => 0,
            _ => group.lanes.count_ones(),
        };
        let waiting: u32 = here.clone().map(counts).sum();
        let wanted = here.clone().find_map(|(.., wanted)| wanted).unwrap_or(self.threads);
        let arrived = self.env.arrivals.iter().filter(|arrival| arrival.barrier == barrier);
        let arrived: u32 = arrived.map(|arrival| arrival.threads).sum();
        waiting + arrived >= wanted
    }

    /// Groups at barriers: warp, group, barrier, threads wanted.
    fn waiting(&self) -> impl Iterator<Item = (usize, Group, u32, Option<u32>)> + Clone {
        let groups = self.warps.iter().enumerate();
        groups
            .flat_map(|(warp, all)| all.groups.iter().map(move |group| (warp, *group)))
            .filter_map(|(warp, group)| match group.state {
                State::Barrier { barrier, wanted, .. } => Some((warp, group, barrier, wanted)),
                _ => None,
            })
    }

    /// A fault if lanes of one warp wait for the same aligned barrier at different instructions.
    fn check_divergence(&self, barrier: u32) -> Result<(), Fault> {
        let here = |(_, _, there, _): &(usize, Group, u32, Option<u32>)| *there == barrier;
        for (warp, group, ..) in self.waiting().filter(here) {
            let aligned = matches!(group.state, State::Barrier { aligned: true, .. });
            let apart =
                self.waiting().filter(here).find(|other| other.0 == warp && other.1.pc != group.pc);
            if let Some((_, other, ..)) = apart.filter(|_| aligned) {
                let line = self.line(other.pc);
                let lane = other.lanes.trailing_zeros();
                let [x, y, z] = self.thread(warp as u32 * 32 + lane);
                let text = format!(
                    "divergent barrier: thread ({x}, {y}, {z}) of the same warp waits for it at line {line}"
                );
                return Err(self.fault_at(warp, group, FaultKind::Barrier, text));
            }
        }
        Ok(())
    }

    /// Lets all that wait at `barrier` go on, each knowing what the others did before it.
    fn open(&mut self, barrier: u32, ready: &mut Vec<usize>) {
        let members: Vec<usize> = self
            .waiting()
            .filter(|waiting| waiting.2 == barrier)
            .map(|waiting| waiting.0)
            .collect();
        let mut known = Known::default();
        for warp in &members {
            if !ready.contains(warp) {
                ready.push(*warp);
            }
        }
        let mut stepped = members.clone();
        stepped.dedup();
        // All go on with the same step: then one number says what is known of all of them.
        let step = stepped.iter().map(|warp| self.warps[*warp].own_step()).max().unwrap_or(0) + 1;
        for warp in &stepped {
            self.warps[*warp].step_to(step);
            known.learn(&self.warps[*warp].known());
        }
        for arrival in self.env.arrivals.extract_if(.., |arrival| arrival.barrier == barrier) {
            known.learn(&arrival.known);
        }
        self.vote(barrier);
        for warp in stepped {
            self.warps[warp].learn_all(&known);
            for group in &mut self.warps[warp].groups {
                if matches!(group.state, State::Barrier { barrier: there, .. } if there == barrier)
                {
                    *group = Group { pc: group.pc + 1, state: State::Ready, ..*group };
                }
            }
        }
    }

    /// Gives those who wait at `barrier` by `bar.red` what comes of their predicates.
    fn vote(&mut self, barrier: u32) {
        let code = &self.env.program.code;
        let voters: Vec<(usize, u32, &Ins, Vote)> = self
            .waiting()
            .filter(|waiting| waiting.2 == barrier)
            .filter_map(|(warp, group, ..)| {
                let ins = &code[group.pc as usize];
                match ins.op {
                    Op::Flow(Flow::Barrier { vote: Some(vote), .. }) => {
                        Some((warp, group.lanes, ins, vote))
                    }
                    _ => None,
                }
            })
            .collect();
        let (mut all, mut holding) = (0, 0);
        for (warp, lanes, ins, _) in &voters {
            let predicate = self.warps[*warp].registers.predicate(ins.o[2]);
            let holds = if ins.imm == 1 { !predicate } else { predicate };
            all += lanes.count_ones();
            holding += (holds & lanes).count_ones();
        }
        for (warp, lanes, ins, vote) in voters {
            let registers = &mut self.warps[warp].registers;
            let truth = |holds: bool| if holds { FULL } else { 0 };
            match vote {
                Vote::Count => registers.set_word(ins.o[3], lanes, &[holding; LANES]),
                Vote::All => registers.set_predicate(ins.o[3], lanes, truth(holding == all)),
                Vote::Any => registers.set_predicate(ins.o[3], lanes, truth(holding != 0)),
            }
        }
    }

    fn line(&self, pc: u32) -> u32 {
        self.env.program.code.get(pc as usize).map_or(0, |ins| ins.line)
    }

    fn fault(&self, warp: usize, trouble: &Trouble) -> Fault {
        let lane = trouble.lane.unwrap_or_else(|| self.env.active.trailing_zeros()) & 31;
        let text = with_lines(&trouble.text, |pc| self.line(u32::try_from(pc).unwrap_or(u32::MAX)));
        let (kind, kernel) = (trouble.kind, self.env.program.name.clone());
        let thread = self.thread(warp as u32 * 32 + lane);
        Fault { kind, kernel, line: self.line(self.env.pc), block: self.id, thread, text }
    }

    fn fault_at(&self, warp: usize, group: Group, kind: FaultKind, text: String) -> Fault {
        let thread = self.thread(warp as u32 * 32 + group.lanes.trailing_zeros());
        let kernel = self.env.program.name.clone();
        Fault { kind, kernel, line: self.line(group.pc), block: self.id, thread, text }
    }

    /// Says what the first waiting thread waits for, and where the first that is missing is.
    fn deadlock(&self) -> Fault {
        let all = self.warps.iter().enumerate();
        let mut all =
            all.flat_map(|(index, warp)| warp.groups.iter().map(move |group| (index, *group)));
        let at_mbarrier = all.find_map(|(index, group)| match group.state {
            State::Mbarrier { at, .. } => Some((index, group, at)),
            _ => None,
        });
        if let Some((warp, group, at)) = at_mbarrier {
            let text = self.env.barriers.missing(at);
            return self.fault_at(warp, group, FaultKind::Mbarrier, text);
        }
        if let Some((warp, group, barrier, wanted)) = self.waiting().next() {
            let here = self.waiting().filter(|waiting| waiting.2 == barrier);
            let count: u32 = here.map(|(_, group, ..)| group.lanes.count_ones()).sum();
            let wanted = wanted.unwrap_or(self.threads);
            let missing = self.missing(barrier);
            let text = format!(
                "barrier {barrier} is never complete: {count} of {wanted} threads wait; {missing}"
            );
            return self.fault_at(warp, group, FaultKind::Barrier, text);
        }
        let groups = self.warps.iter().enumerate();
        let mut stuck =
            groups.flat_map(|(warp, all)| all.groups.iter().map(move |group| (warp, *group)));
        let none = Group { pc: 0, lanes: 1, state: State::Ready };
        let (warp, group) = stuck.next().unwrap_or((0, none));
        let wanted = match group.state {
            State::Meeting(wanted) | State::WarpBarrier(wanted) => wanted,
            _ => 0,
        };
        let missing = wanted & self.warps[warp].live & !group.lanes;
        let elsewhere = self.warps[warp].groups.iter().find(|other| other.lanes & missing != 0);
        let line = elsewhere.map_or(0, |other| self.line(other.pc));
        let text = format!(
            "lanes {:#x} wait for lanes {missing:#x} of the mask {wanted:#x}, which never come: they are at line {line}",
            group.lanes
        );
        self.fault_at(warp, group, FaultKind::WarpSync, text)
    }

    /// Where the first thread is that does not wait at `barrier`.
    fn missing(&self, barrier: u32) -> String {
        for (index, warp) in self.warps.iter().enumerate() {
            let first = index as u32 * 32;
            let exists = FULL >> (32 - (self.threads - first).min(32));
            let at_barrier = |group: &&Group| matches!(group.state, State::Barrier { barrier: there, .. } if there == barrier);
            let here =
                warp.groups.iter().filter(at_barrier).fold(0, |lanes, group| lanes | group.lanes);
            let lane = (exists & !here).trailing_zeros();
            if lane == 32 {
                continue;
            }
            let [x, y, z] = self.thread(first + lane);
            let place = warp.groups.iter().find(|group| group.lanes >> lane & 1 != 0);
            let place = match place {
                Some(group) => format!("waits at line {}", self.line(group.pc)),
                None => "has exited".to_owned(),
            };
            return format!("thread ({x}, {y}, {z}) {place}");
        }
        "more threads wait than it wants".to_owned()
    }
}
