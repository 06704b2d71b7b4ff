//! What launches did, counted; and what that would take at least on a device of a profile.

use crate::Profile;
use crate::program::{Class, Program};

/// What one launch, or several, did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks that ran to their end.
    pub blocks: u64,
    /// Instructions issued by warps, by [`Class`].
    pub instructions: [u64; Class::ALL.len()],
    /// Instructions executed by threads.
    pub thread_instructions: u64,
    /// Multiplications and additions of tensor cores on 16-bit operands and tf32.
    pub tensor_ops: u64,
    /// The same on fp8 operands.
    pub tensor_ops_fp8: u64,
    /// The same on int8 operands.
    pub tensor_ops_int8: u64,
    /// Sectors of 32 bytes that loads of global memory asked for, a sector once an instruction.
    pub read_sectors: u64,
    /// Sectors that stores to global memory asked for.
    pub written_sectors: u64,
    /// Sectors that were read at all: the least that must come from memory.
    pub unique_read_sectors: u64,
    /// Sectors that were written at all.
    pub unique_written_sectors: u64,
    /// Passes that accesses to shared memory took.
    pub shared_passes: u64,
    /// Passes that they would take without bank conflicts.
    pub shared_ideal_passes: u64,
    /// The worst bank conflict: how many passes one took instead of one.
    pub worst_bank_conflict: u64,
}

impl Counters {
    /// Instructions of one class.
    #[must_use]
    pub fn of(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// All instructions issued.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Adds what `other` did.
    pub fn add(&mut self, other: &Self) {
        for (sum, part) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += part;
        }
        self.blocks += other.blocks;
        self.thread_instructions += other.thread_instructions;
        self.tensor_ops += other.tensor_ops;
        self.tensor_ops_fp8 += other.tensor_ops_fp8;
        self.tensor_ops_int8 += other.tensor_ops_int8;
        self.read_sectors += other.read_sectors;
        self.written_sectors += other.written_sectors;
        self.unique_read_sectors += other.unique_read_sectors;
        self.unique_written_sectors += other.unique_written_sectors;
        self.shared_passes += other.shared_passes;
        self.shared_ideal_passes += other.shared_ideal_passes;
        self.worst_bank_conflict = self.worst_bank_conflict.max(other.worst_bank_conflict);
    }
}

/// Instructions counted where they are many: by stretches of them, not one by one.
///
/// Its sums lie apart: neighbours are loaded as one vector, which waits until both have left the processor that were just stored one by one.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Tally {
    issued: u64,
    /// How much oftener each instruction was issued than the one before it.
    rises: Vec<i64>,
    threads: u64,
}

impl Tally {
    /// Of a program of `instructions` instructions.
    pub(crate) fn new(instructions: usize) -> Self {
        Self { rises: vec![0; instructions + 1], issued: 0, threads: 0 }
    }

    /// All instructions issued so far.
    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    /// Instructions `from` to `to` were issued to the lanes `m`; the threads of those that are not plain are counted apart.
    #[inline(always)]
    pub(crate) fn straight(&mut self, program: &Program, (from, to): (u32, u32), m: u32) {
        let (first, end) = (from as usize, to as usize);
        self.rises[first] += 1;
        self.rises[end] -= 1;
        self.issued += u64::from(to - from);
        let plain = program.plain_before[end] - program.plain_before[first];
        self.threads += u64::from(plain) * count(m);
    }

    /// An instruction that is not plain was executed by the lanes `active`.
    #[inline(always)]
    pub(crate) fn guarded(&mut self, active: u32) {
        self.threads += count(active);
    }

    /// The one instruction `pc` was issued, and executed by the lanes `active`.
    #[inline(always)]
    pub(crate) fn branch(&mut self, pc: u32, active: u32) {
        self.rises[pc as usize] += 1;
        self.rises[pc as usize + 1] -= 1;
        self.issued += 1;
        self.threads += count(active);
    }

    /// Adds what was counted to `counters`, and begins anew.
    pub(crate) fn finish(&mut self, program: &Program, counters: &mut Counters) {
        let mut times = 0;
        for (ins, rise) in program.code.iter().zip(&mut self.rises) {
            times += std::mem::take(rise);
            counters.instructions[ins.class as usize] += times.cast_unsigned();
        }
        counters.thread_instructions += std::mem::take(&mut self.threads);
    }
}

/// How many lanes a mask has: mostly all, and not every processor counts ones.
#[inline(always)]
fn count(mask: u32) -> u64 {
    if mask == u32::MAX { 32 } else { mask.count_ones().into() }
}

/// How much of a multiprocessor a kernel's blocks can fill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    /// Blocks resident on a multiprocessor.
    pub blocks: u32,
    /// Resident threads as a share of the most possible.
    pub share: f64,
}

impl Occupancy {
    /// Of blocks with `threads` threads, `shared_bytes` of shared memory and `registers` a thread (0 if unknown).
    #[must_use]
    pub fn of(profile: &Profile, threads: u32, shared_bytes: u32, registers: u32) -> Self {
        // Registers are given out to warps in units of 256.
        let warps = threads.div_ceil(32);
        let of_registers = Profile::SM_REGISTERS
            .checked_div(warps * (registers * 32).next_multiple_of(256))
            .unwrap_or(u32::MAX);
        let of_shared = profile.shared_sm_bytes / (shared_bytes + Profile::SHARED_RESERVED);
        let of_threads = profile.sm_threads / (warps * 32).max(1);
        let blocks = profile.sm_blocks.min(of_registers).min(of_shared).min(of_threads);
        let share = f64::from(blocks * warps * 32) / f64::from(profile.sm_threads);
        Self { blocks, share }
    }
}

/// The least time that each part of a device needs for what was counted. An estimate by rates alone: latency, caches
/// and launch overhead are not modelled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Seconds for every touched sector to cross the memory bus once.
    pub memory: f64,
    /// Seconds for the tensor cores.
    pub tensor: f64,
    /// Seconds to issue the instructions, four a multiprocessor and clock.
    pub issue: f64,
    /// Seconds for shared memory, a pass a multiprocessor and clock.
    pub shared: f64,
}

impl Roofline {
    /// The estimate for `counters` on a device of `profile`: fewer blocks than multiprocessors leave some idle.
    /// Infinite where the device lacks what was used.
    #[must_use]
    pub fn of(profile: &Profile, counters: &Counters) -> Self {
        let real = |count: u64| count as f64;
        let busy = real(counters.blocks.clamp(1, profile.multiprocessors.into()));
        let clock = f64::from(profile.clock_khz) * 1e3;
        let sectors = counters.unique_read_sectors + counters.unique_written_sectors;
        // Nothing of a kind takes no time, also where there are no units of that kind.
        let time = |ops: u64, rate: f64| if ops == 0 { 0.0 } else { real(ops) / rate };
        let eight_bit = time(counters.tensor_ops_fp8, profile.tensor_fp8_rate)
            + time(counters.tensor_ops_int8, profile.tensor_int8_rate);
        let share = busy / f64::from(profile.multiprocessors);
        Self {
            memory: real(sectors) * 32.0 / profile.memory_rate,
            tensor: (real(counters.tensor_ops) / profile.tensor_rate + eight_bit) / share,
            issue: real(counters.issued()) / (4.0 * busy * clock),
            shared: real(counters.shared_passes) / (busy * clock),
        }
    }

    /// Seconds of the slowest part.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.memory.max(self.tensor).max(self.issue).max(self.shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_is_bound_by_the_scarcest_resource() {
        let a100 = Profile::named("a100-80g").unwrap();
        assert_eq!(Occupancy::of(a100, 128, 0, 0).blocks, 16);
        assert_eq!(Occupancy::of(a100, 128, 80 * 1024, 0).blocks, 2);
        assert_eq!(Occupancy::of(a100, 256, 0, 128).blocks, 2);
        assert_eq!(Occupancy::of(a100, 32, 0, 0).blocks, 32);
        assert!((Occupancy::of(a100, 1024, 0, 32).share - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_roofline_is_the_slowest_part() {
        let h100 = Profile::named("h100").unwrap();
        let counters = Counters {
            blocks: 132,
            unique_read_sectors: 1 << 20,
            tensor_ops: 1 << 30,
            ..Counters::default()
        };
        let roof = Roofline::of(h100, &counters);
        assert!((roof.memory - 32.0 * 1048576.0 / 3.35e12).abs() < 1e-12);
        assert!((roof.seconds() - roof.memory).abs() < 1e-15);
    }
}
