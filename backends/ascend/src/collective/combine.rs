//! Reductions.
//!
//! HCCL says nothing of the order in which it adds floats, of roundings between, or of a NaN in MIN and MAX. So integers alone are its own;
//! of everything else it exchanges the elements, and each is combined once, in the order of ranks, in f32.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use halyard_sdk::{
    Code, DType, ReduceOp, Result, comm,
    vendor::{Piece, Plane, SCRATCH, pieces},
};

use crate::{
    device::Shared,
    driver::{
        self, Memory, Pinned, Stream,
        hccl::{Elements, Move, Parts},
    },
    ops::{self, Combination},
};

/// How long a wait for the stream sleeps before it asks again.
const SLICE: Duration = Duration::from_micros(50);

/// A reduction of all ranks' memory: `count` elements of each rank's result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    pub(super) src: u64,
    /// A buffer's start, and bytes from there.
    pub(super) dst: (u64, u64),
    pub(super) count: u64,
    pub(super) dtype: DType,
    pub(super) op: ReduceOp,
}

impl Reduction {
    fn element_bytes(&self) -> u64 {
        self.dtype.bytes(1).unwrap_or(1)
    }

    fn dst_at(&self, element: u64) -> (u64, u64) {
        (self.dst.0, self.dst.1 + element * self.element_bytes())
    }

    fn by(&self) -> By {
        let is_order = matches!(self.op, ReduceOp::MIN | ReduceOp::MAX);
        match self.dtype {
            DType::I8 | DType::I32 | DType::I64 => By::Hccl(self.dtype),
            // Sums and products wrap to the same bits with a sign.
            DType::U8 if !is_order => By::Hccl(DType::I8),
            DType::U32 if !is_order => By::Hccl(DType::I32),
            DType::U64 if !is_order => By::Hccl(DType::I64),
            DType::F32 | DType::F16 | DType::BF16 if !is_order => By::Operators,
            _ => By::Host,
        }
    }

    /// Elements as they travel: what the host combines as bytes, which tells it from what operators combine.
    fn travel(&self, count: u64) -> Elements {
        match self.by() {
            By::Host => Elements::of(DType::U8, count * self.element_bytes()),
            _ => Elements::of(self.dtype, count),
        }
    }

    fn gathered(&self, src: u64, dst: u64, count: u64) -> Move {
        Move::AllGather { src, dst, elements: self.travel(count) }
    }
}

/// Who combines.
enum By {
    /// HCCL, as elements of this type.
    Hccl(DType),
    /// Operators of the device.
    Operators,
    /// The host, which the call waits for: 8-bit floats, and the smaller or larger of floats and of unsigned integers.
    Host,
}

/// What a call can do.
pub(super) struct Ways<'a> {
    pub(super) on: &'a Stream,
    /// Issues a call of HCCL's in the stream's order.
    pub(super) issue: &'a dyn Fn(&Move) -> Result<()>,
    /// Gives an error once a wait has become pointless.
    pub(super) patience: &'a dyn Fn() -> Result<()>,
}

impl Ways<'_> {
    pub(super) fn issue(&self, call: &Move) -> Result<()> {
        (self.issue)(call)
    }

    /// Waits for the stream.
    pub(super) fn wait(&self) -> Result<()> {
        wait(self.on, self.patience)
    }
}

/// Waits for a stream until that has become pointless.
pub(super) fn wait(on: &Stream, patience: &dyn Fn() -> Result<()>) -> Result<()> {
    while let Err(error) = on.query() {
        if error.code != Code::NOT_READY {
            return Err(error);
        }
        // It may be done by now.
        if let Err(pointless) = patience()
            && on.query().is_err()
        {
            return Err(pointless);
        }
        thread::sleep(SLICE);
    }
    // A failure is told by a wait that has no work to wait for.
    on.synchronize()
}

/// Scratch memory of a rank.
#[derive(Debug)]
pub(super) struct Combine {
    /// For what is exchanged, and behind it for sums.
    scratch: Memory,
    /// For what the host combines: parts, and behind them the result.
    host: Mutex<Option<Pinned>>,
    world: u32,
}

impl Combine {
    /// The device's context is bound.
    pub(super) fn new(shared: &Shared, world: u32) -> Result<Self> {
        let scratch = Memory::alloc(shared.driver(), 2 * SCRATCH as usize)?;
        Ok(Self { scratch, host: Mutex::default(), world })
    }

    /// Where exchanged elements go: [`SCRATCH`] bytes.
    pub(super) fn parts(&self) -> u64 {
        self.scratch.start()
    }

    fn sums(&self) -> u64 {
        self.parts() + SCRATCH
    }

    /// Every rank's result is the whole.
    pub(super) fn all_reduce(&self, r: &Reduction, ways: &Ways<'_>) -> Result<()> {
        if let By::Hccl(dtype) = r.by() {
            let (src, dst) = (r.src, r.dst.0 + r.dst.1);
            let elements = Elements::of(dtype, r.count);
            return ways.issue(&Move::AllReduce { src, dst, elements, op: r.op });
        }
        let size = r.element_bytes();
        for (from, piece) in pieces(r.count, size, self.world) {
            let src = r.src + from * size;
            match piece {
                Piece::AtOnce(count) => {
                    ways.issue(&r.gathered(src, self.parts(), count))?;
                    self.combine(r, count, r.dst_at(from), ways)?;
                }
                Piece::Slices(count) => {
                    self.exchange(r, (src, count), count, ways)?;
                    // Behind the ranks' slices is the combined one.
                    let own = u64::from(self.world) * count * size;
                    self.combine(r, count, (self.parts(), own), ways)?;
                    let (base, offset) = r.dst_at(from);
                    ways.issue(&r.gathered(self.parts() + own, base + offset, count))?;
                }
            }
        }
        Ok(())
    }

    /// Every rank's result is its own part of the whole.
    pub(super) fn reduce_scatter(&self, r: &Reduction, ways: &Ways<'_>) -> Result<()> {
        if let By::Hccl(dtype) = r.by() {
            let (src, dst) = (r.src, r.dst.0 + r.dst.1);
            let elements = Elements::of(dtype, r.count);
            return ways.issue(&Move::ReduceScatter { src, dst, elements, op: r.op });
        }
        let (size, world) = (r.element_bytes(), u64::from(self.world));
        let most = SCRATCH / world / size;
        let mut done = 0;
        // An empty one is exchanged, too, so that ranks that disagree are told.
        while done < r.count || done == 0 {
            let count = most.min(r.count - done);
            self.exchange(r, (r.src + done * size, r.count), count, ways)?;
            self.combine(r, count, r.dst_at(done), ways)?;
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(())
    }

    /// Sends each rank `count` elements, the next rank's `step` elements behind; the scratch memory gets those of all ranks, by rank.
    fn exchange(
        &self,
        r: &Reduction,
        (src, step): (u64, u64),
        count: u64,
        ways: &Ways<'_>,
    ) -> Result<()> {
        let elements = r.travel(count);
        if step == count {
            return ways.issue(&Move::AllToAll { src, dst: self.parts(), elements });
        }
        let step = r.travel(step).count;
        let parts = |at, step| Parts {
            at,
            counts: vec![elements.count; self.world as usize],
            places: (0..u64::from(self.world)).map(|rank| rank * step).collect(),
        };
        let (send, recv) = (parts(src, step), parts(self.parts(), elements.count));
        ways.issue(&Move::AllToAllV { send, recv, dtype: elements.dtype })
    }

    /// Combines the ranks' elements in the scratch memory.
    fn combine(&self, r: &Reduction, count: u64, out: (u64, u64), ways: &Ways<'_>) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        if let By::Host = r.by() {
            return self.on_host(r, count, out, ways);
        }
        let (parts, sums, ranks) = (self.parts(), self.sums(), self.world);
        let Reduction { dtype, op, .. } = *r;
        ops::combine(ways.on, &Combination { parts, sums, out, count, ranks, dtype, op })
    }

    fn on_host(&self, r: &Reduction, count: u64, out: (u64, u64), ways: &Ways<'_>) -> Result<()> {
        let part = (count * r.element_bytes()) as usize;
        let whole = part * self.world as usize;
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned = match &mut *host {
            Some(pinned) => pinned,
            none => none.insert(Pinned::alloc(ways.on.driver(), 2 * SCRATCH as usize)?),
        };
        let plane = |start, on_host| Plane { start, on_host, pitch: 0 };
        let (start, result) = (pinned.start(), pinned.start() + whole as u64);
        let (to, from) = (plane(start, true), plane(self.parts(), false));
        // SAFETY: both have room for the parts; the pinned memory is this communicator's, whose calls are one after another.
        unsafe { driver::copy(ways.on, to, from, whole as u64, 1) }?;
        ways.wait()?;
        // SAFETY: the stream is idle.
        let bytes = unsafe { pinned.bytes() };
        let (parts, combined) = bytes.split_at_mut(whole);
        let of_rank = |rank: u32| &parts[rank as usize * part..][..part];
        comm::reduce(r.dtype, r.op, self.world, &of_rank, &mut combined[..part]);
        let (to, from) = (plane(out.0 + out.1, false), plane(result, true));
        // SAFETY: the result's place was checked with the call; the next use of the pinned memory is behind this in the stream's order.
        unsafe { driver::copy(ways.on, to, from, part as u64, 1) }
    }
}
