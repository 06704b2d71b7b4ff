//! Reductions that NCCL does not make as the contract demands: `kernels/reduce.cu` combines what all ranks exchanged.
//!
//! NCCL rounds short floats at every hop, and says nothing of a NaN in MIN and MAX. Here every element is combined once, in the order of
//! ranks, in f32.

use cudarc::nccl::sys::ncclDataType_t as Type;
use halyard_sdk::{
    DType, Error, ReduceOp, Result,
    vendor::{Piece, SCRATCH, pieces},
};

use crate::{
    device::Shared,
    driver::{Function, Grid, Memory, Stream},
    nccl::{Move, data_type},
};

/// Bytes of the word for barriers.
const WORD: u64 = 4;
const THREADS: u32 = 256;
/// Blocks a multiprocessor.
const BLOCKS: u32 = 4;

/// `struct Reduce` of `kernels/reduce.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Params {
    parts: u64,
    out: u64,
    count: u64,
    ranks: u32,
    op: u32,
    aligned: u32,
    pad: u32,
}

/// Scratch memory and kernels of a rank.
#[derive(Debug)]
pub(super) struct Combine {
    scratch: Memory,
    kernels: [(DType, Function<Params>); 5],
    processors: u32,
    world: u32,
}

/// A reduction of all ranks' memory: `count` elements of each rank's result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    pub(super) src: u64,
    pub(super) dst: u64,
    pub(super) count: u64,
    pub(super) dtype: DType,
    pub(super) op: ReduceOp,
}

impl Reduction {
    /// Whether NCCL combines so by itself: integers wrap, f32 sums are added in one order for all ranks.
    pub(super) fn is_native(&self) -> bool {
        match self.dtype {
            DType::F32 => !matches!(self.op, ReduceOp::MIN | ReduceOp::MAX),
            DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => false,
            _ => true,
        }
    }

    fn element_bytes(&self) -> u64 {
        self.dtype.bytes(1).unwrap_or(1)
    }
}

/// Issues moves to NCCL, in the order of the launch's stream.
pub(super) type Issue<'a> = &'a dyn Fn(&[Move]) -> Result<()>;

impl Combine {
    /// The device's context is bound.
    pub(super) fn new(shared: &Shared, world: u32) -> Result<Self> {
        let kernel = |dtype: DType, name| Ok((dtype, shared.kernels.function("reduce", name)?));
        let kernels = [
            kernel(DType::F32, "reduce_f32")?,
            kernel(DType::F16, "reduce_f16")?,
            kernel(DType::BF16, "reduce_bf16")?,
            kernel(DType::F8E4M3, "reduce_f8e4m3")?,
            kernel(DType::F8E5M2, "reduce_f8e5m2")?,
        ];
        let scratch = shared.buffers.private((SCRATCH + WORD) as usize)?;
        Ok(Self { scratch, kernels, processors: shared.limits.processors, world })
    }

    /// A word that is nobody's data, for barriers.
    pub(super) fn word(&self) -> u64 {
        self.scratch.start() + SCRATCH
    }

    /// Every rank's result is the whole.
    pub(super) fn all_reduce(&self, r: &Reduction, on: &Stream, issue: Issue<'_>) -> Result<()> {
        let size = r.element_bytes();
        for (from, piece) in pieces(r.count, size, self.world) {
            let (src, dst) = (r.src + from * size, r.dst + from * size);
            match piece {
                Piece::AtOnce(count) => self.at_once(r, (src, dst, count), on, issue)?,
                Piece::Slices(count) => {
                    // Behind the ranks' slices is the combined one.
                    let own = self.scratch.start() + u64::from(self.world) * count * size;
                    self.slice(r, (src, count), own, on, issue)?;
                    issue(&[gathered(r, own, dst, count)])?;
                }
            }
        }
        Ok(())
    }

    /// Everybody gets everything of all ranks.
    fn at_once(
        &self,
        r: &Reduction,
        (src, dst, count): (u64, u64, u64),
        on: &Stream,
        issue: Issue<'_>,
    ) -> Result<()> {
        let parts = self.scratch.start();
        issue(&[gathered(r, src, parts, count)])?;
        self.launch(r, (parts, dst, count), on)
    }

    /// Every rank's result is its own part of the whole.
    pub(super) fn reduce_scatter(
        &self,
        r: &Reduction,
        on: &Stream,
        issue: Issue<'_>,
    ) -> Result<()> {
        let (size, world) = (r.element_bytes(), u64::from(self.world));
        let most = SCRATCH / world / size;
        let mut done = 0;
        // An empty one is exchanged, too, so that ranks that disagree are told.
        while done < r.count || done == 0 {
            let count = most.min(r.count - done);
            let from = |rank: u64| r.src + (rank * r.count + done) * size;
            self.exchange(r, &from, count, issue)?;
            self.launch(r, (self.scratch.start(), r.dst + done * size, count), on)?;
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(())
    }

    /// Combines this rank's slice of `world` slices that begin at `src`.
    fn slice(
        &self,
        r: &Reduction,
        (src, count): (u64, u64),
        dst: u64,
        on: &Stream,
        issue: Issue<'_>,
    ) -> Result<()> {
        let bytes = count * r.element_bytes();
        self.exchange(r, &|rank| src + rank * bytes, count, issue)?;
        self.launch(r, (self.scratch.start(), dst, count), on)
    }

    /// Sends each rank its part of this rank's memory; the scratch memory gets those of all ranks, by rank.
    fn exchange(
        &self,
        r: &Reduction,
        part: &dyn Fn(u64) -> u64,
        count: u64,
        issue: Issue<'_>,
    ) -> Result<()> {
        let bytes = count * r.element_bytes();
        let (dtype, count) = wire(r.dtype, count);
        let mut moves = Vec::with_capacity(2 * self.world as usize);
        for peer in 0..self.world {
            let dst = self.scratch.start() + u64::from(peer) * bytes;
            moves.push(Move::Send { src: part(u64::from(peer)), count, dtype, peer });
            moves.push(Move::Recv { dst, count, dtype, peer });
        }
        issue(&moves)
    }

    fn launch(
        &self,
        r: &Reduction,
        (parts, out, count): (u64, u64, u64),
        on: &Stream,
    ) -> Result<()> {
        let found = self.kernels.iter().find(|(dtype, _)| *dtype == r.dtype);
        let (_, kernel) = found.ok_or_else(|| {
            Error::unsupported(format!("{} of {}: no kernel combines these", r.op, r.dtype))
        })?;
        let bytes = count * r.element_bytes();
        let aligned = [parts, out, bytes].iter().all(|at| at.is_multiple_of(16));
        let blocks = count.div_ceil(u64::from(THREADS)).min(u64::from(self.processors * BLOCKS));
        let params = Params {
            parts,
            out,
            count,
            ranks: self.world,
            op: r.op.0,
            aligned: u32::from(aligned),
            pad: 0,
        };
        // SAFETY: the parts lie in the scratch memory, which has room for them (`SCRATCH`), the result in a view that was checked and
        // that the host keeps until the work is done.
        unsafe { kernel.launch(on, Grid::line(blocks as u32, THREADS), &params) }
    }
}

/// How elements travel: as NCCL's of their kind, or as bytes.
pub(super) fn wire(dtype: DType, count: u64) -> (Type, u64) {
    match data_type(dtype) {
        Some(kind) => (kind, count),
        None => (Type::ncclUint8, dtype.bytes(count).unwrap_or(0)),
    }
}

fn gathered(r: &Reduction, src: u64, dst: u64, count: u64) -> Move {
    let (dtype, count) = wire(r.dtype, count);
    Move::AllGather { src, dst, count, dtype }
}
