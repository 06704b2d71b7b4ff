//! Checked calls, and what they enqueue.

use halyard_sdk::{A2av, ReduceOp, Result, TensorView};

use super::combine::{Combine, Reduction, Ways};
use crate::driver::hccl::{Elements, Message, Move, Parts};

/// A call whose arguments are in order.
#[derive(Debug)]
pub(super) enum Call {
    AllReduce(Reduction),
    ReduceScatter(Reduction),
    /// What HCCL has, under the name of ours.
    Move(&'static str, Move),
    /// A message: in a group they are issued together.
    Message(Message),
}

fn elements(view: &TensorView) -> u64 {
    view.elements().unwrap_or(0)
}

fn address(view: &TensorView) -> u64 {
    view.data.wrapping_add(view.byte_offset)
}

fn moved(view: &TensorView) -> Elements {
    Elements::of(view.dtype, elements(view))
}

fn message(view: &TensorView, peer: u32, sends: bool) -> Call {
    let bytes = view.dtype.bytes(elements(view)).unwrap_or(0);
    Call::Message(Message { sends, at: address(view), elements: moved(view), bytes, peer })
}

impl Call {
    pub(super) fn all_reduce(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Self {
        Self::AllReduce(reduction(src, dst, op))
    }

    pub(super) fn reduce_scatter(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Self {
        Self::ReduceScatter(reduction(src, dst, op))
    }

    pub(super) fn all_gather(src: &TensorView, dst: &TensorView) -> Self {
        let (src_at, dst) = (address(src), address(dst));
        Self::Move("all_gather", Move::AllGather { src: src_at, dst, elements: moved(src) })
    }

    pub(super) fn broadcast(buf: &TensorView, root: u32) -> Self {
        let (at, elements) = (address(buf), moved(buf));
        Self::Move("broadcast", Move::Broadcast { at, elements, root })
    }

    /// Rows of `row_bytes` bytes.
    pub(super) fn all_to_all_v(a: &A2av<'_>, row_bytes: u64) -> Self {
        let row = Elements::of(a.send.dtype, row_bytes / a.send.dtype.bytes(1).unwrap_or(1));
        let scaled = |rows: &[u64]| rows.iter().map(|rows| rows * row.count).collect();
        let parts = |view: &TensorView, counts: &[u64], places: &[u64]| Parts {
            at: address(view),
            counts: scaled(counts),
            places: scaled(places),
        };
        let call = Move::AllToAllV {
            send: parts(&a.send, &a.send_counts, &a.send_displs),
            recv: parts(&a.recv, &a.recv_counts, &a.recv_displs),
            dtype: row.dtype,
        };
        Self::Move("all_to_all_v", call)
    }

    pub(super) fn send(src: &TensorView, peer: u32) -> Self {
        message(src, peer, true)
    }

    pub(super) fn recv(dst: &TensorView, peer: u32) -> Self {
        message(dst, peer, false)
    }

    pub(super) fn barrier() -> Self {
        Self::Move("barrier", Move::Barrier)
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all_reduce",
            Self::ReduceScatter(_) => "reduce_scatter",
            Self::Move(name, _) => name,
            Self::Message(Message { sends: true, .. }) => "send",
            Self::Message(_) => "recv",
        }
    }

    pub(super) fn enqueue(&self, combine: &Combine, ways: &Ways<'_>) -> Result<()> {
        match self {
            Self::AllReduce(r) => combine.all_reduce(r, ways),
            Self::ReduceScatter(r) => combine.reduce_scatter(r, ways),
            Self::Move(_, call) => ways.issue(call),
            Self::Message(message) => ways.issue(&Move::Message(*message)),
        }
    }
}

fn reduction(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Reduction {
    Reduction {
        src: address(src),
        dst: (dst.data, dst.byte_offset),
        count: elements(dst),
        dtype: src.dtype,
        op,
    }
}
