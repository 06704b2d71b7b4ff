//! A block's shared memory, and who used each piece of it when.
//!
//! A use by one thread and a later use by another, one of them writing, must have a barrier between. Each warp has a
//! vector clock: what it knows of every warp's steps. A warp takes a step at each barrier, and warps that meet at one
//! learn what the others know. A use is remembered as (thread, step of its warp); it happened before a use by warp `w`
//! if `w` knows a later step of its warp.
//!
//! Writes of the bytes that the write before left need no barrier between them: in each order memory holds the same. What
//! comes after must know the last of them to read, and all of them to write.
//!
//! Uses are remembered for 16 bytes at once as long as all uses are that wide, else for four or for each byte.

use crate::fault::{FaultKind, Step, Trouble};
use crate::memory::Reach;
use crate::warp::registers::lanes;

/// What a warp knows of every warp's steps. Step 0 is before the launch.
pub(crate) type Clock = [u32; 32];

/// Adds what `from` knows.
pub(crate) fn learn(known: &mut Clock, from: &Clock) {
    known.iter_mut().zip(from).for_each(|(step, other)| *step = (*step).max(*other));
}

/// One use, packed: bits 0..24 step, 24..34 thread, 34 several lanes, 35 a copy under way, 36 atomic, 37 a write that another
/// repeated, 38 through the async proxy, 39 an `mbarrier`, 40..64 instruction. Zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

const STEP_BITS: u32 = 24;
/// The last step that a mark can hold; memory is cleared before a clock gets there.
pub(crate) const LAST_STEP: u32 = (1 << STEP_BITS) - 1;
/// The bits of the thread.
const THREAD: u64 = 1023 << STEP_BITS;
const SEVERAL: u64 = 1 << 34;
const PENDING: u64 = 1 << 35;
const ATOMIC: u64 = 1 << 36;
const REPEATED: u64 = 1 << 37;
const PROXY: u64 = 1 << 38;
const BARRIER: u64 = 1 << 39;
const PC_SHIFT: u32 = 40;

impl Mark {
    #[inline(always)]
    pub(crate) fn new(who: &Who<'_>, thread: u32, flags: u64) -> Self {
        let step = who.clock[(thread / 32) as usize & 31];
        let several = if who.together { SEVERAL } else { 0 };
        Self(
            u64::from(step)
                | u64::from(thread) << STEP_BITS
                | flags
                | several
                | u64::from(who.pc) << PC_SHIFT,
        )
    }

    fn step(self) -> u32 {
        self.0 as u32 & LAST_STEP
    }

    pub(crate) fn thread(self) -> u32 {
        (self.0 >> STEP_BITS) as u32 & 1023
    }

    fn warp(self) -> usize {
        self.thread() as usize / 32
    }

    pub(crate) fn pc(self) -> usize {
        (self.0 >> PC_SHIFT) as usize
    }

    fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether a use by `thread` as `who` may come after this one.
    #[inline(always)]
    pub(crate) fn allows(self, who: &Who<'_>, thread: u32) -> bool {
        self.step() < who.clock[self.warp()]
            || self.thread() == thread && !self.is(SEVERAL) && !who.together
    }
}

impl Mark {
    /// Whether this, the last read so far, is kept beside `next`: it is another warp's.
    #[inline(always)]
    fn moves_back(self, next: Self, first_step: u32) -> bool {
        self.warp() != next.warp() && self.step() >= first_step
    }

    /// What is kept of `next`, the read after this one: of several lanes, if this one is another lane's of the same step.
    #[inline(always)]
    fn followed_by(self, next: Self) -> Self {
        let same = self.warp() == next.warp() && self.step() == next.step();
        let several = if self.thread() == next.thread() { self.0 & SEVERAL } else { SEVERAL };
        Self(next.0 | if same { several } else { 0 })
    }
}

/// The last uses of a piece of memory: the write, and of two warps the reads since or the writes that it repeats.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    write: Mark,
    reads: [Mark; 2],
}

/// Who uses memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    pub(crate) clock: &'a Clock,
    /// Whatever any warp did at a step before this one happened before.
    pub(crate) settled: u32,
    pub(crate) warp: u32,
    pub(crate) pc: u32,
    /// Data goes to other lanes than those whose address it is.
    pub(crate) together: bool,
}

/// How a piece is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Read,
    Write,
    /// A write of the bytes that are there.
    Repeat,
    Atomic,
    /// A copy is begun that writes later.
    Begin,
    /// It has written.
    Land,
    /// A copy of the async proxy has written.
    Deliver,
    /// It becomes an `mbarrier`, which only the instructions for it may use.
    Barrier,
}

/// Sizes by which uses are remembered, and their logarithms.
const WIDTHS: [usize; 3] = [16, 4, 1];
const SHIFTS: [u32; 3] = [4, 2, 0];

/// By which of `WIDTHS` a use of `bytes` bytes must be remembered at least.
#[inline(always)]
fn level_of(bytes: usize) -> u8 {
    match bytes {
        16 => 0,
        4.. => 1,
        _ => 2,
    }
}

impl How {
    /// What a mark of such a use says beside who and when.
    #[inline(always)]
    fn flags(self) -> u64 {
        match self {
            Self::Begin => PENDING,
            Self::Atomic => ATOMIC,
            Self::Deliver => PROXY,
            // Pending, so that every other use is looked at closely.
            Self::Barrier => PENDING | BARRIER,
            Self::Read | Self::Write | Self::Repeat | Self::Land => 0,
        }
    }
}

/// [`Uses`] as they are kept: zeroed memory of plain integers costs nothing until it is used.
type Kept = [u64; 3];

/// Whether nothing is wrong with one more use of a piece, as far as its uses at steps between these two tell: those before the first are of
/// other blocks, and those before the second happened before this use. If not, [`Uses::add`] may still find nothing wrong.
#[inline(always)]
fn may_be_noted([write, last, before]: &Kept, (first_step, settled): (u32, u32), how: How) -> bool {
    let step = Mark(*write).step();
    let is_settled = |mark: u64| Mark(mark).step() < settled.max(first_step);
    match how {
        How::Read => step >= first_step && step < settled && write & PENDING == 0,
        How::Write | How::Repeat | How::Begin => {
            let pending = write & PENDING != 0 && step >= first_step;
            is_settled(*write) && is_settled(*last) && is_settled(*before) && !pending
        }
        How::Land | How::Deliver => true,
        How::Atomic | How::Barrier => false,
    }
}

/// Keeps the read `mark` of a piece beside the reads before.
#[inline(always)]
fn note_read(mark: Mark, first_step: u32, last: &mut u64, before: &mut u64) {
    if Mark(*last).moves_back(mark, first_step) {
        *before = *last;
    }
    *last = Mark(*last).followed_by(mark).0;
}

#[derive(Debug)]
pub(crate) struct Shared {
    data: Vec<u8>,
    /// Uses by 16, by 4 and by 1 bytes.
    uses: [Vec<Kept>; 3],
    /// Which of `WIDTHS` each 16 bytes are remembered by.
    level: Vec<u8>,
    /// Steps before this one are of blocks before.
    first_step: u32,
    /// What instructions read that are still at work.
    readers: Readers,
}

/// Instructions of the async proxy that read shared memory until they are waited for.
#[derive(Debug, Default)]
struct Readers {
    /// How many read each 16 bytes.
    counts: Vec<u16>,
    /// Those at work: number, instruction, and which 16 bytes.
    at_work: Vec<(u64, u32, Vec<u32>)>,
    last: u64,
}

impl Shared {
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(16);
        let uses = WIDTHS.map(|width| vec![Kept::default(); bytes / width]);
        Self {
            data: vec![0; bytes],
            uses,
            level: vec![0; bytes / 16],
            first_step: 1,
            readers: Readers::default(),
        }
    }

    /// Forgets a block's uses, and so that anything was written. `first` is the first step of the next block's clocks.
    pub(crate) fn clear(&mut self, first: u32) {
        if first < self.first_step {
            for uses in &mut self.uses {
                uses.fill(Kept::default());
            }
        }
        self.first_step = first;
        self.readers = Readers::default();
    }

    #[inline(always)]
    pub(crate) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.data[at..at + len]
    }

    #[inline(always)]
    pub(crate) fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.data[at..at + len]
    }

    /// Notes a use by the lanes of `reach`, whose addresses are aligned and inside.
    #[inline(always)]
    pub(crate) fn note_lanes(&mut self, who: &Who<'_>, reach: &Reach<'_>, how: How) -> Step {
        if how != How::Read && !self.readers.at_work.is_empty() {
            self.check_readers(reach)?;
        }
        let base = Mark::new(who, who.warp * 32, how.flags());
        let mut rest = match reach.bytes {
            16 => self.note_pieces::<0>(base, who.settled, reach, how),
            4 => self.note_pieces::<1>(base, who.settled, reach, how),
            _ => reach.mask,
        };
        while rest != 0 {
            // Lanes one behind the other that read the same bytes are noted as one: as several, of which the last is known.
            let first = rest.trailing_zeros();
            let (at, mut last) = (reach.addresses[first as usize & 31], first);
            rest &= rest - 1;
            while how == How::Read && rest != 0 {
                let next = rest.trailing_zeros();
                if reach.addresses[next as usize & 31] != at {
                    break;
                }
                last = next;
                rest &= rest - 1;
            }
            let several = if last == first { 0 } else { SEVERAL };
            let mark = Mark(base.0 | u64::from(last) << STEP_BITS | several);
            let (at, bytes) = (at as usize, reach.bytes);
            if !self.note_settled(mark, who.settled, (at, bytes), how) {
                for lane in (first..=last).filter(|lane| reach.mask >> lane & 1 != 0) {
                    self.note(who, lane, (at, bytes), how)?;
                }
            }
        }
        Ok(())
    }

    /// Notes a write by each lane of `reach`, whose addresses are aligned and inside, and writes its part of `data`.
    #[inline(always)]
    pub(crate) fn write_lanes(&mut self, who: &Who<'_>, reach: &Reach<'_>, data: &[u8]) -> Step {
        if !self.readers.at_work.is_empty() {
            self.check_readers(reach)?;
        }
        let base = Mark::new(who, who.warp * 32, 0);
        let bytes = reach.bytes;
        for lane in lanes(reach.mask) {
            let at = reach.addresses[lane] as usize;
            let from = &data[lane * bytes..(lane + 1) * bytes];
            let mark = Mark(base.0 | (lane as u64) << STEP_BITS);
            if !self.note_settled(mark, who.settled, (at, bytes), How::Write) {
                let repeats = self.bytes(at, bytes) == from;
                let how = if repeats { How::Repeat } else { How::Write };
                self.note(who, lane as u32, (at, bytes), how)?;
            }
            copy_piece(from, self.bytes_mut(at, bytes));
        }
        Ok(())
    }

    /// Notes uses of `WIDTHS[LEVEL]` bytes at once if nothing is wrong with any and all are remembered by as many. Gives the lanes that are left
    /// to be noted one by one.
    #[inline(always)]
    fn note_pieces<const LEVEL: usize>(
        &mut self,
        base: Mark,
        settled: u32,
        reach: &Reach<'_>,
        how: How,
    ) -> u32 {
        let (uses, first_step) = (&mut self.uses[LEVEL], self.first_step);
        let piece = |lane: usize| reach.addresses[lane] as usize >> SHIFTS[LEVEL];
        let mut fits = true;
        for lane in lanes(reach.mask) {
            // No piece of another size says that it was written.
            let is_level = || self.level[reach.addresses[lane] as usize / 16] == LEVEL as u8;
            fits &= how == How::Read || is_level();
            fits &= may_be_noted(&uses[piece(lane)], (first_step, settled), how);
        }
        if !fits {
            return reach.mask;
        }
        let mut rest = reach.mask;
        for lane in lanes(reach.mask) {
            let mark = Mark(base.0 | (lane as u64) << STEP_BITS);
            let [write, last, before] = &mut uses[piece(lane)];
            match how {
                How::Read => note_read(mark, first_step, last, before),
                How::Land | How::Deliver => *write = mark.0,
                // Another lane of the same instruction has been here.
                _ if (*write ^ mark.0) & !THREAD == 0 => break,
                _ => (*write, *last, *before) = (mark.0, 0, 0),
            }
            rest &= rest - 1;
        }
        rest
    }

    /// Notes a use if all uses that matter for it happened before the step `settled` of every warp; says whether it did.
    #[inline(always)]
    fn note_settled(
        &mut self,
        mark: Mark,
        settled: u32,
        (at, bytes): (usize, usize),
        how: How,
    ) -> bool {
        let level = self.level[at / 16];
        if level < level_of(bytes) {
            return false;
        }
        let shift = SHIFTS[usize::from(level)];
        let pieces = at >> shift..((at + bytes - 1) >> shift) + 1;
        let kept = &mut self.uses[usize::from(level)][pieces];
        let first_step = self.first_step;
        if !kept.iter().all(|uses| may_be_noted(uses, (first_step, settled), how)) {
            return false;
        }
        match how {
            How::Read => {
                for [_, last, before] in kept {
                    note_read(mark, first_step, last, before);
                }
            }
            How::Land | How::Deliver => kept.iter_mut().for_each(|uses| uses[0] = mark.0),
            _ => kept.fill([mark.0, 0, 0]),
        }
        true
    }

    /// Notes a use of `bytes` bytes at `at`, a multiple of `bytes`, by a lane.
    #[inline(never)]
    pub(crate) fn note(
        &mut self,
        who: &Who<'_>,
        lane: u32,
        (at, bytes): (usize, usize),
        how: How,
    ) -> Step {
        let wanted = level_of(bytes);
        let granule = at / 16;
        if self.level[granule] < wanted {
            self.refine(granule, wanted);
        }
        let level = usize::from(self.level[granule]);
        let shift = SHIFTS[level];
        let thread = who.warp * 32 + lane;
        let first_step = self.first_step;
        for piece in at >> shift..=(at + bytes - 1) >> shift {
            let kept = &mut self.uses[level][piece];
            let mut uses = Uses::from(*kept);
            let added = uses.add(who, thread, how, first_step);
            *kept = uses.kept();
            if let Err(problem) = added {
                return Err(problem.told(lane, (piece << shift).max(at), bytes, how));
            }
        }
        Ok(())
    }

    /// Notes a use of `len` bytes at `at` by one lane. Both are multiples of 8.
    pub(crate) fn note_range(
        &mut self,
        who: &Who<'_>,
        lane: u32,
        (at, len): (usize, usize),
        how: How,
    ) -> Step {
        let mark = Mark::new(who, who.warp * 32 + lane, how.flags());
        if how != How::Read && !self.readers.at_work.is_empty() {
            (at..at + len).step_by(8).try_for_each(|at| self.check_reader(lane, at))?;
        }
        let mut next = at;
        while next < at + len {
            let bytes = if next % 16 == 0 && at + len - next >= 16 { 16 } else { 8 };
            if !self.note_settled(mark, who.settled, (next, bytes), how) {
                self.note(who, lane, (next, bytes), how)?;
            }
            next += bytes;
        }
        Ok(())
    }

    /// Remembers 16 bytes by smaller pieces from now on.
    fn refine(&mut self, granule: usize, level: u8) {
        let old = usize::from(self.level[granule]);
        let new = usize::from(level);
        let parts = WIDTHS[old] / WIDTHS[new];
        let pieces = 16 / WIDTHS[old];
        for piece in granule * pieces..(granule + 1) * pieces {
            let uses = std::mem::take(&mut self.uses[old][piece]);
            self.uses[new][piece * parts..(piece + 1) * parts].fill(uses);
        }
        self.level[granule] = level;
    }
}

/// What the async proxy does with shared memory beside the generic one.
impl Shared {
    /// Notes that an instruction of the async proxy reads the 16 bytes at each of `pieces`, which every write through the generic
    /// proxy must have been fenced for. Gives the number by which it is told that it is done.
    pub(crate) fn begin_reading(
        &mut self,
        who: &Who<'_>,
        lane: u32,
        is_fenced: impl Fn(usize, u32, u32) -> bool,
        pieces: impl Iterator<Item = usize>,
    ) -> Step<u64> {
        let mut granules = Vec::new();
        self.readers.counts.resize(self.level.len(), 0);
        for at in pieces {
            let granule = at / 16;
            self.note_range(who, lane, (granule * 16, 16), How::Read)?;
            self.check_fence(lane, granule, ("reads", &is_fenced))?;
            self.readers.counts[granule] += 1;
            granules.push(granule as u32);
        }
        self.readers.last += 1;
        self.readers.at_work.push((self.readers.last, who.pc, granules));
        Ok(self.readers.last)
    }

    /// A fault if the generic proxy wrote 16 bytes that the async proxy now uses, and no fence is known.
    pub(crate) fn check_fence(
        &self,
        lane: u32,
        granule: usize,
        (verb, is_fenced): (&str, &dyn Fn(usize, u32, u32) -> bool),
    ) -> Step {
        let level = usize::from(self.level[granule]);
        let parts = 16 / WIDTHS[level];
        for part in granule * parts..(granule + 1) * parts {
            let write = Mark(self.uses[level][part][0]);
            let of_block = write.step() >= self.first_step;
            if of_block
                && !write.is(PROXY)
                && !is_fenced(write.warp(), write.thread() % 32, write.step())
            {
                let text = format!(
                    "the async proxy {verb} shared memory at {:#x}, which thread {} wrote at {}: no fence.proxy.async between",
                    part * WIDTHS[level],
                    write.thread(),
                    Instruction(write.pc())
                );
                return Err(Trouble::new(FaultKind::ProxyFence, lane, text));
            }
        }
        Ok(())
    }

    /// The instruction that was given `number` has read all it reads.
    pub(crate) fn end_reading(&mut self, number: u64) {
        if let Some(at) = self.readers.at_work.iter().position(|reader| reader.0 == number) {
            let (_, _, granules) = self.readers.at_work.swap_remove(at);
            granules.iter().for_each(|granule| self.readers.counts[*granule as usize] -= 1);
        }
    }

    #[inline(never)]
    fn check_readers(&self, reach: &Reach<'_>) -> Step {
        lanes(reach.mask)
            .try_for_each(|lane| self.check_reader(lane as u32, reach.addresses[lane] as usize))
    }

    fn check_reader(&self, lane: u32, at: usize) -> Step {
        let granule = at / 16;
        if self.readers.counts.get(granule).is_none_or(|count| *count == 0) {
            return Ok(());
        }
        let reads = |(_, _, granules): &&(u64, u32, Vec<u32>)| granules.contains(&(granule as u32));
        let pc = self.readers.at_work.iter().find(reads).map_or(0, |reader| reader.1);
        let text = format!(
            "write of shared memory at {at:#x}, which the instruction at {} still reads: wait for its group first",
            Instruction(pc as usize)
        );
        Err(Trouble::new(FaultKind::AsyncRead, lane, text))
    }
}

/// Copies 1 to 16 bytes; the usual sizes without a call.
#[inline(always)]
pub(crate) fn copy_piece(from: &[u8], to: &mut [u8]) {
    match from.len() {
        16 => to[..16].copy_from_slice(&from[..16]),
        8 => to[..8].copy_from_slice(&from[..8]),
        4 => to[..4].copy_from_slice(&from[..4]),
        2 => to[..2].copy_from_slice(&from[..2]),
        len => to[..len].copy_from_slice(from),
    }
}

/// What is wrong with a use, before it is put in words.
struct Problem {
    kind: FaultKind,
    other: Mark,
    other_wrote: bool,
}

impl From<Kept> for Uses {
    #[inline(always)]
    fn from([write, first, second]: Kept) -> Self {
        Self { write: Mark(write), reads: [Mark(first), Mark(second)] }
    }
}

impl Uses {
    #[inline(always)]
    fn kept(self) -> Kept {
        [self.write.0, self.reads[0].0, self.reads[1].0]
    }

    #[inline(always)]
    fn add(
        &mut self,
        who: &Who<'_>,
        thread: u32,
        how: How,
        first_step: u32,
    ) -> Result<(), Problem> {
        let written = self.write.step() >= first_step;
        if !written {
            self.write = Mark::default();
        }
        let problem = |kind, other, other_wrote| Err(Problem { kind, other, other_wrote });
        if matches!(how, How::Land | How::Deliver) {
            self.write = Mark::new(who, thread, how.flags());
            return Ok(());
        }
        if self.write.is(PENDING) {
            return problem(FaultKind::AsyncCopyPending, self.write, true);
        }
        if !written && matches!(how, How::Read | How::Atomic) {
            return problem(FaultKind::Uninitialised, self.write, true);
        }
        let both_atomic = how == How::Atomic && self.write.is(ATOMIC);
        let repeats = how == How::Repeat && !self.write.is(ATOMIC);
        if written && !both_atomic && !repeats && !self.write.allows(who, thread) {
            return problem(FaultKind::SharedRace, self.write, true);
        }
        if how == How::Read {
            self.keep(Mark::new(who, thread, 0), first_step);
            return Ok(());
        }
        let mut next = Self { write: Mark::new(who, thread, how.flags()), ..Self::default() };
        let unordered = |mark: &Mark| mark.step() >= first_step && !mark.allows(who, thread);
        for earlier in self.reads.into_iter().rev().filter(unordered) {
            if !repeats || !earlier.is(REPEATED) {
                return problem(FaultKind::SharedRace, earlier, earlier.is(REPEATED));
            }
            next.keep(earlier, first_step);
        }
        if repeats && unordered(&self.write) {
            next.keep(Mark(self.write.0 | REPEATED), first_step);
        }
        *self = next;
        Ok(())
    }

    #[inline(always)]
    fn keep(&mut self, mark: Mark, first_step: u32) {
        let [Mark(last), Mark(before)] = &mut self.reads;
        note_read(mark, first_step, last, before);
    }
}

impl Problem {
    fn told(self, lane: u32, at: usize, bytes: usize, how: How) -> Box<Trouble> {
        let verb = if how == How::Read { "read" } else { "write" };
        let access = format!("{verb} of {bytes} bytes of shared memory at {at:#x}");
        let other = Instruction(self.other.pc());
        let text = match self.kind {
            FaultKind::Uninitialised => format!("{access}, which nothing wrote"),
            FaultKind::AsyncCopyPending if self.other.is(BARRIER) => {
                format!("{access}, which is part of the mbarrier initialised at {other}")
            }
            FaultKind::AsyncCopyPending => {
                format!(
                    "{access}, which the cp.async at {other} has not delivered: wait for its group or mbarrier first"
                )
            }
            _ => {
                let thread = self.other.thread();
                let several = if self.other.is(SEVERAL) { " and others" } else { "" };
                let did = if self.other_wrote { "wrote" } else { "read" };
                format!(
                    "{access}, which thread {thread}{several} {did} at {other}: no barrier between"
                )
            }
        };
        Trouble::new(self.kind, lane, text)
    }
}

/// An instruction, which whoever reports a trouble replaces by its line.
pub(crate) struct Instruction(pub(crate) usize);

impl std::fmt::Display for Instruction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\u{1}{}\u{2}", self.0)
    }
}

/// Replaces instructions in `text` by `line N`.
pub(crate) fn with_lines(text: &str, line: impl Fn(usize) -> u32) -> String {
    let mut parts = text.split(['\u{1}', '\u{2}']);
    let mut told = parts.next().unwrap_or_default().to_owned();
    while let (Some(index), Some(rest)) = (parts.next(), parts.next()) {
        let line = index.parse().map_or(0, &line);
        told.push_str(&format!("line {line}{rest}"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(own: usize, steps: &[u32]) -> (Clock, u32) {
        let mut clock = [0; 32];
        clock[..steps.len()].copy_from_slice(steps);
        (clock, own as u32)
    }

    fn who((clock, warp): &(Clock, u32)) -> Who<'_> {
        Who { clock, settled: 0, warp: *warp, pc: 7, together: false }
    }

    fn kind(step: Step) -> Option<FaultKind> {
        step.err().map(|trouble| trouble.kind)
    }

    #[test]
    fn a_barrier_must_lie_between_a_write_and_another_threads_read() {
        let mut shared = Shared::new(64);
        let (a, b) = (clock(0, &[1, 0]), clock(1, &[0, 1]));
        shared.note(&who(&a), 3, (0, 4), How::Write).unwrap();
        shared.note(&who(&a), 3, (0, 4), How::Read).unwrap();
        assert_eq!(kind(shared.note(&who(&a), 4, (0, 4), How::Read)), Some(FaultKind::SharedRace));
        assert_eq!(kind(shared.note(&who(&b), 0, (0, 4), How::Read)), Some(FaultKind::SharedRace));
        let (a, b) = (clock(0, &[2, 2]), clock(1, &[2, 2]));
        shared.note(&who(&b), 0, (0, 4), How::Read).unwrap();
        shared.note(&who(&a), 9, (0, 4), How::Read).unwrap();
        assert_eq!(kind(shared.note(&who(&a), 9, (0, 4), How::Write)), Some(FaultKind::SharedRace));
    }

    #[test]
    fn neighbours_in_a_word_are_told_apart() {
        let mut shared = Shared::new(64);
        let a = clock(0, &[1]);
        shared.note(&who(&a), 0, (0, 2), How::Write).unwrap();
        shared.note(&who(&a), 1, (2, 2), How::Write).unwrap();
        shared.note(&who(&a), 0, (0, 2), How::Read).unwrap();
        shared.note(&who(&a), 1, (2, 2), How::Read).unwrap();
        assert_eq!(kind(shared.note(&who(&a), 1, (0, 4), How::Read)), Some(FaultKind::SharedRace));
        assert_eq!(
            kind(shared.note(&who(&a), 1, (4, 4), How::Read)),
            Some(FaultKind::Uninitialised)
        );
    }

    #[test]
    fn a_new_block_starts_afresh() {
        let mut shared = Shared::new(32);
        shared.note(&who(&clock(0, &[1])), 0, (0, 16), How::Write).unwrap();
        shared.clear(2);
        let next = clock(0, &[2]);
        assert_eq!(
            kind(shared.note(&who(&next), 0, (0, 16), How::Read)),
            Some(FaultKind::Uninitialised)
        );
        shared.note(&who(&next), 5, (0, 16), How::Write).unwrap();
    }
    /// Two lanes that use the same bytes.
    fn note_two(shared: &mut Shared, who: &Who<'_>, (at, bytes): (u64, usize), how: How) -> Step {
        let reach = Reach { addresses: &[at; 32], mask: 0b11, bytes };
        shared.note_lanes(who, &reach, how)
    }

    #[test]
    fn lanes_that_write_the_same_bytes_race() {
        let first = clock(0, &[1]);
        let writer = Who { settled: 1, ..who(&first) };
        for bytes in [16, 4, 8, 2] {
            let mut shared = Shared::new(64);
            // Remembered by as many bytes from then on.
            shared.note(&writer, 0, (32, bytes), How::Atomic).unwrap_err();
            let raced = note_two(&mut shared, &writer, (32, bytes), How::Write).unwrap_err();
            assert_eq!((raced.kind, raced.lane), (FaultKind::SharedRace, Some(1)));
        }
    }

    #[test]
    fn pieces_that_became_smaller_are_looked_at_one_by_one() {
        let (mut shared, before) = (Shared::new(64), clock(0, &[1]));
        shared.note(&who(&before), 0, (16, 16), How::Write).unwrap();
        let now = clock(0, &[2]);
        let (owner, reader) = (Who { settled: 2, ..who(&now) }, clock(1, &[2, 2]));
        let reader = Who { settled: 2, ..who(&reader) };
        note_two(&mut shared, &reader, (16, 16), How::Read).unwrap();
        shared.note(&owner, 5, (20, 2), How::Write).unwrap_err();
        let (mut shared, before) = (Shared::new(64), clock(0, &[1]));
        shared.note(&who(&before), 0, (16, 16), How::Write).unwrap();
        shared.note(&owner, 5, (20, 2), How::Write).unwrap();
        let raced = note_two(&mut shared, &reader, (16, 16), How::Read).unwrap_err();
        assert_eq!(raced.kind, FaultKind::SharedRace);
    }
}
