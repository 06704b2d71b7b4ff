//! What a kernel did wrong, and where.

use std::fmt;

/// The kinds of mistakes that end a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An access outside every allocation, or across the end of one.
    OutOfBounds,
    /// An access to memory that was freed.
    UseAfterFree,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A read of memory that nothing wrote.
    Uninitialised,
    /// Two threads of a block use the same shared memory, one writing, without a barrier between.
    SharedRace,
    /// A read or write of shared memory that a `cp.async` has not delivered yet.
    AsyncCopyPending,
    /// A thread uses global memory that another thread of the launch wrote: no barrier between, or the two are of different blocks.
    GlobalRace,
    /// A write of shared memory that an instruction of the async proxy may still read.
    AsyncRead,
    /// The async proxy reads shared memory that the generic proxy wrote, without `fence.proxy.async` between.
    ProxyFence,
    /// `wgmma`: registers used before `wait_group`, no `wgmma.fence` before, or warps of a warpgroup that disagree.
    Wgmma,
    /// An `mbarrier` that is not one, or that gets more arrivals or bytes than it can count, or that nobody completes.
    Mbarrier,
    /// A tensor map that is none, or that the copy can't follow.
    TensorMap,
    /// Operations on different streams use the same memory, one writing, without an event or synchronisation between.
    StreamRace,
    /// Threads wait at a barrier that can never be complete.
    Barrier,
    /// A `.sync` instruction whose lanes can never all arrive, or whose mask leaves out a lane that executes it.
    WarpSync,
    /// `trap`.
    Trap,
    /// An assertion that does not hold: a call of `__assertfail`.
    Assert,
    /// A block that has executed more instructions than it may: a kernel that never ends, on a device that would wait for it.
    Endless,
}

/// A mistake and the thread that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// `%tid` of the thread.
    pub thread: [u32; 3],
    /// What happened, with addresses and sizes.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, line, block: [bx, by, bz], thread: [tx, ty, tz], text, .. } = self;
        write!(
            f,
            "kernel {kernel}, PTX line {line}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}): {text}"
        )
    }
}

impl std::error::Error for Fault {}

/// A mistake as the code that finds it knows it; who executes the warp adds kernel, line, block and thread.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) kind: FaultKind,
    /// The lane, where one is to blame.
    pub(crate) lane: Option<u32>,
    pub(crate) text: String,
}

impl Trouble {
    pub(crate) fn new(kind: FaultKind, lane: u32, text: String) -> Box<Self> {
        Box::new(Self { kind, lane: Some(lane), text })
    }
}

/// What an instruction gives: nothing, or a mistake. Boxed, since it is returned for every instruction.
pub(crate) type Step<T = ()> = Result<T, Box<Trouble>>;
