//! Calls: their checks, what of the caller's memory they read and write, and their exchange.

use halyard_sdk::{
    Collective, DType, ReduceOp, Result as SdkResult, Stream as NoStream, TensorSpec, TensorView,
};
use halyard_sim_cuda_calls::Stream;

use crate::result::{Failure, Outcome};

/// Which function, with what only it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AllReduce(ReduceOp),
    Broadcast { root: u32 },
    Reduce { op: ReduceOp, root: u32 },
    AllGather,
    ReduceScatter(ReduceOp),
    Send { peer: u32 },
    Recv { peer: u32 },
}

/// A call. `count` is the one that the function takes: of the smaller buffer, if they differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) send: u64,
    pub(crate) recv: u64,
    pub(crate) count: u64,
    pub(crate) dtype: DType,
    pub(crate) stream: Stream,
}

/// Bytes of something: where they begin, and how many.
pub(crate) type Span = (u64, u64);

impl Call {
    pub(crate) fn is_message(&self) -> bool {
        matches!(self.kind, Kind::Send { .. } | Kind::Recv { .. })
    }

    /// What this rank's arguments tell.
    pub(crate) fn check(&self, rank: u32, world: u32) -> Outcome {
        if let Kind::Broadcast { root } | Kind::Reduce { root, .. } = self.kind
            && root >= world
        {
            return Err(Failure::argument(format!("root {root} of {world} ranks")));
        }
        if let Kind::Send { peer } | Kind::Recv { peer } = self.kind
            && peer >= world
        {
            return Err(Failure::argument(format!("peer {peer} of {world} ranks")));
        }
        let whole = u64::from(world).checked_mul(self.count).and_then(|n| n.checked_mul(8));
        if whole.is_none_or(|bytes| bytes > i64::MAX.cast_unsigned()) {
            return Err(Failure::argument(format!("{} elements", self.count)));
        }
        let (input, output) = (self.input(rank, world), self.output(rank, world));
        for (span, address) in [(input, self.send), (output, self.recv)] {
            if span.1 > 0 && address == 0 {
                return Err(Failure::argument(format!("{:?}: a null buffer", self.kind)));
            }
        }
        // In place is where both begin at the same byte of the larger one.
        let (from, to) = (self.send.wrapping_sub(input.0), self.recv.wrapping_sub(output.0));
        let common = input.1 > 0
            && output.1 > 0
            && self.send < self.recv + output.1
            && self.recv < self.send + input.1;
        if common && from != to {
            return Err(Failure::argument(format!(
                "{:?}: the buffers overlap, and not in place",
                self.kind
            )));
        }
        Ok(())
    }

    fn element_bytes(&self) -> u64 {
        self.dtype.bytes(1).unwrap_or(1)
    }

    /// Bytes of the exchange's memory.
    pub(crate) fn bytes(&self, world: u32) -> u64 {
        let parts = match self.kind {
            Kind::AllGather | Kind::ReduceScatter(_) => u64::from(world),
            _ => 1,
        };
        parts * self.count * self.element_bytes()
    }

    /// Where in the exchange's memory the caller's input goes.
    pub(crate) fn input(&self, rank: u32, world: u32) -> Span {
        let part = self.count * self.element_bytes();
        match self.kind {
            Kind::AllGather => (u64::from(rank) * part, part),
            Kind::ReduceScatter(_) => (0, self.bytes(world)),
            Kind::Broadcast { root } if root != rank => (0, 0),
            Kind::Recv { .. } => (0, 0),
            _ => (0, part),
        }
    }

    /// Where in the exchange's memory the caller's result is.
    pub(crate) fn output(&self, rank: u32, world: u32) -> Span {
        let part = self.count * self.element_bytes();
        match self.kind {
            Kind::AllGather => (0, self.bytes(world)),
            Kind::ReduceScatter(_) => (u64::from(rank) * part, part),
            Kind::Reduce { root, .. } if root != rank => (0, 0),
            Kind::Send { .. } => (0, 0),
            _ => (0, part),
        }
    }

    /// Exchanges the memory at `at`, in place.
    pub(crate) fn exchange(
        &self,
        with: &dyn Collective,
        at: u64,
        rank: u32,
        world: u32,
    ) -> SdkResult<()> {
        let view = |offset: u64, elements: u64| {
            let dims = [elements.cast_signed()];
            TensorView::contiguous(at + offset, 0, &TensorSpec::new(self.dtype, &dims))
        };
        let (part, whole) = (view(0, self.count), view(0, self.count * u64::from(world)));
        let own = view(u64::from(rank) * self.count * self.element_bytes(), self.count);
        let none = NoStream::NONE;
        match self.kind {
            Kind::AllReduce(op) => with.all_reduce(none, &part, &part, op),
            Kind::Broadcast { root } => with.broadcast(none, &part, root),
            Kind::Reduce { op, root } => {
                with.all_reduce(none, &part, &part, op)?;
                // Of nothing: so that ranks with another root are told.
                with.broadcast(none, &view(0, 0), root)
            }
            Kind::AllGather => with.all_gather(none, &own, &whole),
            Kind::ReduceScatter(op) => with.reduce_scatter(none, &whole, &own, op),
            Kind::Send { peer } => with.send(none, &part, peer),
            Kind::Recv { peer } => with.recv(none, &part, peer),
        }
    }
}
