//! The devices that can be simulated: limits that launches are held to, and rates that estimates divide by.
//!
//! Figures are those of the vendor's data sheets and of the CUDA programming guide's table of compute capabilities;
//! tensor rates are dense, with f32 sums.

/// One kind of device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// What it is called in `HALYARD_SIM_CUDA_DEVICES`.
    pub name: &'static str,
    /// Compute capability times ten: 80 for 8.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of shared memory that a block may have when its kernel asks for more than [`Profile::SHARED_BYTES`].
    pub shared_opt_in_bytes: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_sm_bytes: u32,
    /// Threads resident on a multiprocessor.
    pub sm_threads: u32,
    /// Blocks resident on a multiprocessor.
    pub sm_blocks: u32,
    /// Bytes of second-level cache.
    pub l2_bytes: u32,
    /// Boost clock in kHz.
    pub clock_khz: u32,
    /// Memory bandwidth in bytes a second.
    pub memory_rate: f64,
    /// bf16 and f16 tensor operations a second.
    pub tensor_rate: f64,
    /// fp8 tensor operations a second by `mma.sync`; 0 without them.
    pub tensor_fp8_rate: f64,
    /// int8 tensor operations a second.
    pub tensor_int8_rate: f64,
}

impl Profile {
    /// Bytes of shared memory that any block may have.
    pub const SHARED_BYTES: u32 = 48 * 1024;
    /// Threads of a block.
    pub const BLOCK_THREADS: u32 = 1024;
    /// Registers of a multiprocessor.
    pub const SM_REGISTERS: u32 = 65_536;
    /// Shared memory that the system takes of each resident block.
    pub const SHARED_RESERVED: u32 = 1024;

    /// Every profile.
    pub const ALL: &'static [Self] = &[A100_80G, A100_40G, H100, L20, RTX4090];

    /// The profile called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|profile| profile.name == name)
    }
}

const GIB: u64 = 1 << 30;

const A100_80G: Profile = Profile {
    name: "a100-80g",
    capability: 80,
    multiprocessors: 108,
    memory_bytes: 80 * GIB,
    shared_opt_in_bytes: 166_912,
    shared_sm_bytes: 167_936,
    sm_threads: 2048,
    sm_blocks: 32,
    l2_bytes: 40 << 20,
    clock_khz: 1_410_000,
    memory_rate: 2.039e12,
    tensor_rate: 312e12,
    tensor_fp8_rate: 0.0,
    tensor_int8_rate: 624e12,
};

const A100_40G: Profile =
    Profile { name: "a100-40g", memory_bytes: 40 * GIB, memory_rate: 1.555e12, ..A100_80G };

const H100: Profile = Profile {
    name: "h100",
    capability: 90,
    multiprocessors: 132,
    memory_bytes: 80 * GIB,
    shared_opt_in_bytes: 232_448,
    shared_sm_bytes: 233_472,
    sm_threads: 2048,
    sm_blocks: 32,
    l2_bytes: 50 << 20,
    clock_khz: 1_980_000,
    memory_rate: 3.35e12,
    tensor_rate: 989e12,
    // The vendor's assembler makes f16 of fp8 for `mma.sync` (F2FP, HMMA): the units for fp8 take `wgmma` only.
    tensor_fp8_rate: 989e12,
    tensor_int8_rate: 1979e12,
};

const L20: Profile = Profile {
    name: "l20",
    capability: 89,
    multiprocessors: 92,
    memory_bytes: 48 * GIB,
    shared_opt_in_bytes: 101_376,
    shared_sm_bytes: 102_400,
    sm_threads: 1536,
    sm_blocks: 24,
    l2_bytes: 96 << 20,
    clock_khz: 2_520_000,
    memory_rate: 0.864e12,
    tensor_rate: 119.5e12,
    tensor_fp8_rate: 239e12,
    tensor_int8_rate: 239e12,
};

const RTX4090: Profile = Profile {
    name: "rtx4090",
    multiprocessors: 128,
    memory_bytes: 24 * GIB,
    l2_bytes: 72 << 20,
    memory_rate: 1.008e12,
    tensor_rate: 165.2e12,
    tensor_fp8_rate: 330.3e12,
    tensor_int8_rate: 660.6e12,
    ..L20
};
