//! A kernel as it is executed: every operand a register slot, every opcode decided.

use crate::compile::Compiled;
use crate::warp::Handler;
use halyard_sim_cuda_ptx::{Limits, Param, ScalarType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Index of a register in its file: 32-bit (and narrower), 64-bit, or predicates.
pub(crate) type Slot = u16;

/// Registers that an instruction names at most: `mma` with four results and ten sources.
pub(crate) const OPERANDS: usize = 14;

/// The number of the barrier of `barrier.cluster`, in a cluster of one block.
pub(crate) const CLUSTER_BARRIER: u32 = 16;

/// One kernel.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) code: Vec<Ins>,
    /// Operands of `wgmma`.
    pub(crate) products: Vec<Product>,
    pub(crate) hazards: Hazards,
    /// For each instruction, the next one from it on that may branch, exit or wait at a barrier.
    pub(crate) stops: Vec<u32>,
    /// How many of the instructions before each, and of all, are `plain`.
    pub(crate) plain_before: Vec<u32>,
    /// Registers of each file.
    pub(crate) words: usize,
    pub(crate) longs: usize,
    pub(crate) predicates: usize,
    /// Registers that may be read before they are written.
    pub(crate) poisoned_words: Vec<Slot>,
    pub(crate) poisoned_longs: Vec<Slot>,
    pub(crate) word_constants: Vec<(Slot, u32)>,
    pub(crate) long_constants: Vec<(Slot, u64)>,
    pub(crate) predicate_constants: Vec<(Slot, bool)>,
    pub(crate) special: Vec<(Slot, Special)>,
    /// Bytes of shared memory of fixed size; the launch's begins there.
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
    pub(crate) params: Vec<(usize, usize)>,
    pub(crate) param_bytes: usize,
    pub(crate) limits: Limits,
    /// It has fences between blocks, or accesses of memory that order them.
    pub(crate) orders: bool,
    /// Its stretches as machine code, once it is launched.
    pub(crate) compiled: OnceLock<Option<Compiled>>,
}

impl Program {
    /// Its stretches as machine code, if there is any.
    pub(crate) fn compiled(&self) -> Option<&Compiled> {
        self.compiled.get_or_init(|| Compiled::new(self)).as_ref()
    }

    /// For each instruction of `code` and its end, the next that may branch, exit or wait at a barrier.
    pub(crate) fn stops(code: &[Ins]) -> Vec<u32> {
        let mut stop = code.len() as u32;
        let mut stops: Vec<u32> = (code.iter().enumerate().rev())
            .map(|(at, ins)| {
                stop = if matches!(ins.op, Op::Flow(_)) { at as u32 } else { stop };
                stop
            })
            .collect();
        stops.reverse();
        stops
    }

    /// How many of the instructions before each of `code`, and of all, are `plain`.
    pub(crate) fn plain_before(code: &[Ins]) -> Vec<u32> {
        let plain = code.iter().scan(0, |count, ins| {
            *count += u32::from(ins.plain);
            Some(*count)
        });
        std::iter::once(0).chain(plain).collect()
    }

    /// Places parameters one behind the other, each aligned: offsets and sizes, and bytes in all.
    pub(crate) fn place(params: &[Param<'_>]) -> (Vec<(usize, usize)>, usize) {
        let mut end = 0usize;
        let mut placed = Vec::with_capacity(params.len());
        for param in params {
            let at = end.next_multiple_of(param.align.max(1));
            placed.push((at, param.bytes));
            end = at + param.bytes;
        }
        (placed, end)
    }
}

/// One instruction. Which registers of `o` are results and which sources is the opcode's business.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ins {
    /// Executes `op`.
    pub(crate) run: Handler,
    pub(crate) op: Op,
    /// Executed where this predicate has this value.
    pub(crate) guard: Option<(Slot, bool)>,
    pub(crate) class: Class,
    /// All lanes of a mask execute it together.
    pub(crate) together: Together,
    /// Every lane that comes to it executes it, whatever the others do.
    pub(crate) plain: bool,
    pub(crate) line: u32,
    /// Offset of an address, immediate, or target of a branch.
    pub(crate) imm: i64,
    pub(crate) o: [Slot; OPERANDS],
}

/// Which lanes must meet at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Together {
    No,
    /// All of the warp.
    Warp,
    /// Those of the mask in this register.
    Mask(Slot),
}

/// What an instruction is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Moves, packing, selection.
    Move,
    /// Integer and logic.
    Integer,
    /// f32, f64 and packed halves.
    Float,
    /// `ex2`, `rsqrt` and other approximations.
    Special,
    /// Conversions.
    Convert,
    /// Tensor-core products.
    Tensor,
    /// Loads and stores of global memory.
    Global,
    /// Loads and stores of shared memory, `ldmatrix`.
    Shared,
    /// Parameters, constants, local memory.
    Local,
    /// `cp.async` and its groups.
    AsyncCopy,
    /// Atomics and reductions.
    Atomic,
    /// Exchange between lanes.
    Lanes,
    /// Barriers and fences.
    Barrier,
    /// Branches, returns.
    Control,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 14] = [
        Self::Move,
        Self::Integer,
        Self::Float,
        Self::Special,
        Self::Convert,
        Self::Tensor,
        Self::Global,
        Self::Shared,
        Self::Local,
        Self::AsyncCopy,
        Self::Atomic,
        Self::Lanes,
        Self::Barrier,
        Self::Control,
    ];
}

/// Width of an integer operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    W16,
    W32,
    W64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Nop,
    Move(Move),
    Int(Int, Width),
    Wide(Wide),
    Bits(Bits),
    Logic(Logic),
    F32(F32, Mode),
    F64(F64),
    Half(Half, HalfKind),
    Compare(Compare),
    Select(Width),
    Convert(Convert),
    Load(Access),
    Store(Access),
    Atomic(Atomic),
    AsyncCopy(u8),
    AsyncCommit,
    AsyncWait,
    LoadMatrix {
        count: u8,
        transposed: bool,
    },
    Mma(Mma),
    Lanes(Lanes),
    /// How much was executed so far: `%clock` and its like.
    Clock(Width),
    Hopper(Hopper),
    Flow(Flow),
}

/// What devices of capability 9.0 have beside. Addresses of shared memory are 32-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hopper {
    /// `mbarrier.init`: barrier `o[0]`, threads `o[1]`.
    BarrierInit,
    /// `mbarrier.inval`: barrier `o[0]`.
    BarrierInval,
    /// `mbarrier.arrive`: state `o[0]`, barrier `o[1]`, arrivals `o[2]`, bytes to expect `o[3]`.
    BarrierArrive {
        completes: bool,
    },
    /// `mbarrier.expect_tx`, and with the other sign `complete_tx`: barrier `o[0]`, bytes `o[1]`.
    BarrierExpect {
        negative: bool,
    },
    /// `mbarrier.test_wait`: result `o[0]`, barrier `o[1]`, parity `o[2]` or state `o[3]`.
    BarrierTest {
        parity: bool,
    },
    /// `mbarrier.pending_count`: result `o[0]`, state `o[1]`.
    BarrierPending,
    /// `cp.async.mbarrier.arrive`: barrier `o[0]`.
    CopiesArrive {
        counted: bool,
    },
    /// `fence.proxy.async`.
    ProxyFence,
    /// `cp.async.bulk`, to and from shared memory; `cp.async.bulk.tensor` of a rank.
    BulkLoad,
    BulkStore,
    TileLoad(u8),
    TileStore(u8),
    BulkCommit,
    /// All groups but the last `imm`.
    BulkWait,
    /// `tensormap.cp_fenceproxy`.
    MapCopy,
    /// `wgmma.fence`, `commit_group`, and `wait_group` for all groups but the last `imm`.
    ProductFence,
    ProductCommit,
    ProductWait,
    /// `wgmma.mma_async`: the product `imm`.
    Product {
        sums: Sums,
        values: Values,
    },
    /// `stmatrix`: address `o[0]`, sources from `o[1]`.
    StoreMatrix {
        count: u8,
        transposed: bool,
    },
    /// `mapa`: result `o[0]`, address `o[1]`, block of the cluster `o[2]`.
    MapAddress {
        long: bool,
    },
}

/// Type of the sums of a `wgmma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    F32,
    /// Two a register.
    F16,
    S32,
}

/// Types of the operands of a `wgmma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    Bf16,
    F16,
    Tf32,
    /// Whether each side is e5m2.
    Fp8 {
        a: bool,
        b: bool,
    },
    /// Signedness of each side.
    Int8 {
        a: bool,
        b: bool,
    },
}

impl Values {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Tf32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8 { .. } | Self::Int8 { .. } => 1,
        }
    }
}

/// Operands of a `wgmma.mma_async` of 64 rows.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) sums: Sums,
    pub(crate) values: Values,
    pub(crate) columns: u32,
    /// Registers of C, which become D.
    pub(crate) sums_in: Vec<Slot>,
    pub(crate) left: Left,
    /// Descriptor of B.
    pub(crate) right: Slot,
    /// Predicate: whether C is added.
    pub(crate) add: Slot,
    /// Of A and B.
    pub(crate) negated: [bool; 2],
    pub(crate) transposed: [bool; 2],
}

/// A of a `wgmma`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    Registers([Slot; 4]),
    /// A descriptor.
    Shared(Slot),
}

impl Product {
    /// The 32-bit registers of A.
    pub(crate) fn left_words(&self) -> &[Slot] {
        match &self.left {
            Left::Registers(all) => all,
            Left::Shared(_) => &[],
        }
    }

    /// All of its 32-bit registers.
    pub(crate) fn words(&self) -> impl Iterator<Item = Slot> {
        self.sums_in.iter().chain(self.left_words()).copied()
    }
}

/// Instructions that may touch registers which a `wgmma` has hold of.
#[derive(Debug, Default)]
pub(crate) struct Hazards {
    /// By instruction, the products that must not be under way.
    pub(crate) early: BTreeMap<u32, BTreeSet<u32>>,
    /// Products whose registers may be written without a fence behind.
    pub(crate) unfenced: BTreeSet<u32>,
}

impl Hazards {
    /// Whether the instruction must look at what is under way before it is executed.
    pub(crate) fn watches(&self, at: usize) -> bool {
        self.early.contains_key(&(at as u32))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Word,
    Long,
    Predicate,
    /// A 32-bit register of two 16-bit ones.
    Pack16x2,
    Unpack16x2,
    /// A 64-bit register of two 32-bit ones.
    Pack32x2,
    Unpack32x2,
    /// A 64-bit register of four 16-bit ones.
    Pack16x4,
    Unpack16x4,
    /// Adds the constant in `imm` to an address: `cvta`.
    Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int {
    Add,
    Sub,
    Mul,
    MulHiS,
    MulHiU,
    Mad,
    MadHiS,
    MadHiU,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    AbsS,
    Neg,
    And,
    Or,
    Xor,
    Not,
    Shl,
    ShrS,
    ShrU,
}

/// 16-bit sources to a 32-bit result, or 32-bit sources to a 64-bit one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wide {
    pub(crate) from: Width,
    pub(crate) signed: bool,
    pub(crate) add: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Popc32,
    Popc64,
    Clz32,
    Clz64,
    Brev32,
    Brev64,
    /// Position of the highest set bit, or with `shift` how far it is from the top.
    Find {
        signed: bool,
        shift: bool,
    },
    Lop3(u8),
    Permute,
    FunnelLeft {
        clamp: bool,
    },
    FunnelRight {
        clamp: bool,
    },
    ExtractS,
    ExtractU,
    Extract64 {
        signed: bool,
    },
    Insert32,
    Insert64,
    /// Four byte products and a sum; signedness of each side.
    Dot4 {
        a: bool,
        b: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
    Not,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum F32 {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Ex2,
    Lg2,
    Rsqrt,
    Rcp,
    Sqrt,
    Sin,
    Cos,
    Tanh,
}

/// How an f32 operation rounds and what it does to its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) round: Round,
    /// Subnormal sources and results are zero.
    pub(crate) flush: bool,
    /// Results are clamped to 0 to 1, NaN to 0.
    pub(crate) saturate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum F64 {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    Neg,
    Abs,
    Sqrt,
    Rcp,
    Rsqrt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    Neg,
    Abs,
}

/// Two halves in a word, or one (whose partner is computed and dropped).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfKind {
    F16,
    Bf16,
}

/// `setp`: results `o[0]` and `o[1]` (its complement), sources `o[2]`, `o[3]`, and a predicate `o[4]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) kind: Kind,
    pub(crate) test: Test,
    /// How the outcome is combined with the predicate.
    pub(crate) with: Option<Logic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Or unordered.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Both are numbers.
    Num,
    Nan,
}

/// A conversion between scalars, or of two scalars to a packed pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Convert {
    pub(crate) to: ScalarType,
    pub(crate) from: ScalarType,
    pub(crate) round: Round,
    /// A float is rounded to a whole one.
    pub(crate) whole: bool,
    pub(crate) saturate: bool,
    pub(crate) relu: bool,
}

/// A state space as an access sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Global,
    Shared,
    Local,
    /// A parameter, at an offset known when the kernel is decoded.
    Param,
    /// A parameter, at an address in a register.
    ParamAt,
    Generic,
}

/// A load or store of `count` elements of `bytes` bytes. Its address is `o[0]`, elements are `o[1]` and on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) room: Room,
    pub(crate) bytes: u8,
    pub(crate) count: u8,
    pub(crate) signed: bool,
    /// The address is in a 64-bit register.
    pub(crate) long: bool,
    /// Elements go to 64-bit registers.
    pub(crate) long_data: bool,
}

/// An atomic update: result `o[0]`, address `o[1]`, sources `o[2]`, `o[3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Atomic {
    pub(crate) room: Room,
    pub(crate) update: Update,
    pub(crate) wide: bool,
    /// The address is in a 64-bit register.
    pub(crate) long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    Add,
    AddF32,
    AddF64,
    AddHalf(HalfKind),
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Increment,
    Decrement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mma {
    /// m16n8k16 of bf16.
    Bf16K16,
    /// m16n8k16 of f16.
    F16K16,
    /// m16n8k8 of bf16.
    Bf16K8,
    /// m16n8k8 of f16.
    F16K8,
    /// m16n8k8 of tf32.
    Tf32K8,
    /// m16n8k32 of fp8; whether each side is e5m2.
    Fp8K32 { a: bool, b: bool },
    /// m16n8k32 of 8-bit integers; signedness of each side.
    Int8K32 { a: bool, b: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    ShuffleUp,
    ShuffleDown,
    ShuffleXor,
    ShuffleIndex,
    Ballot,
    Any,
    All,
    Uniform,
    MatchAny,
    MatchAll,
    ReduceAdd,
    ReduceMinS,
    ReduceMinU,
    ReduceMaxS,
    ReduceMaxU,
    ReduceAnd,
    ReduceOr,
    ReduceXor,
    Active,
    Elect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// To the instruction `imm`.
    Branch,
    Exit,
    /// `trap`, or with `imm` 1 an assertion that failed.
    Trap,
    /// All threads of the block, or `o[1]` of them where `counted`, meet at barrier `o[0]`; `wait` or just arrive.
    /// `aligned`: all of a warp at the same instruction. With a `vote` on predicate `o[2]` (its opposite where `imm` is
    /// 1), which they get in `o[3]`.
    Barrier {
        counted: bool,
        wait: bool,
        aligned: bool,
        vote: Option<Vote>,
    },
    /// The lanes of mask `o[0]` meet.
    WarpBarrier,
    /// `mbarrier.try_wait`: operands as of `mbarrier.test_wait`.
    BarrierWait {
        parity: bool,
    },
}

/// What the threads at a barrier learn of their predicates: of how many one holds, whether all hold, or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Count,
    All,
    Any,
}

/// A register that the device sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    BlockSize(u8),
    BlockId(u8),
    GridSize(u8),
    Lane,
    WarpId,
    WarpCount,
    WarpSize,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicShared,
    TotalShared,
    Zero,
    One,
}
