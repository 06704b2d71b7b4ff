//! Checked calls, and what they enqueue.

use halyard_sdk::{A2av, DType, ReduceOp, Result, TensorView};

use super::combine::{Combine, Issue, Reduction, wire};
use crate::{driver::Stream, nccl::Move, nccl::data_type, ops::address};

/// A call whose arguments are in order.
#[derive(Debug)]
pub(super) enum Call {
    AllReduce(Reduction),
    ReduceScatter(Reduction),
    /// A collective that NCCL has, or messages of one.
    Moves(&'static str, Vec<Move>),
    /// A message: in a group they are issued together.
    Message(Move),
    Barrier,
}

fn elements(view: &TensorView) -> u64 {
    view.elements().unwrap_or(0)
}

impl Call {
    pub(super) fn all_reduce(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Self {
        Self::AllReduce(reduction(src, dst, op))
    }

    pub(super) fn reduce_scatter(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Self {
        Self::ReduceScatter(reduction(src, dst, op))
    }

    pub(super) fn all_gather(src: &TensorView, dst: &TensorView) -> Self {
        let (dtype, count) = wire(src.dtype, elements(src));
        let (src, dst) = (address(src), address(dst));
        Self::Moves("all_gather", vec![Move::AllGather { src, dst, count, dtype }])
    }

    pub(super) fn broadcast(buf: &TensorView, root: u32) -> Self {
        let (dtype, count) = wire(buf.dtype, elements(buf));
        Self::Moves("broadcast", vec![Move::Broadcast { buf: address(buf), count, dtype, root }])
    }

    /// Rows of `row_bytes` bytes.
    pub(super) fn all_to_all_v(a: &A2av<'_>, row_bytes: u64, world: u32) -> Self {
        let row = row_bytes / a.send.dtype.bytes(1).unwrap_or(1);
        let mut moves = Vec::with_capacity(2 * world as usize);
        for peer in 0..world {
            let i = peer as usize;
            let message = |rows: u64| wire(a.send.dtype, rows * row);
            if a.send_counts[i] > 0 {
                let src = address(&a.send) + a.send_displs[i] * row_bytes;
                let (dtype, count) = message(a.send_counts[i]);
                moves.push(Move::Send { src, count, dtype, peer });
            }
            if a.recv_counts[i] > 0 {
                let dst = address(&a.recv) + a.recv_displs[i] * row_bytes;
                let (dtype, count) = message(a.recv_counts[i]);
                moves.push(Move::Recv { dst, count, dtype, peer });
            }
        }
        Self::Moves("all_to_all_v", moves)
    }

    pub(super) fn send(src: &TensorView, peer: u32) -> Self {
        let (dtype, count) = wire(src.dtype, elements(src));
        Self::Message(Move::Send { src: address(src), count, dtype, peer })
    }

    pub(super) fn recv(dst: &TensorView, peer: u32) -> Self {
        let (dtype, count) = wire(dst.dtype, elements(dst));
        Self::Message(Move::Recv { dst: address(dst), count, dtype, peer })
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all_reduce",
            Self::ReduceScatter(_) => "reduce_scatter",
            Self::Moves(name, _) => name,
            Self::Message(Move::Send { .. }) => "send",
            Self::Message(_) => "recv",
            Self::Barrier => "barrier",
        }
    }

    pub(super) fn enqueue(&self, combine: &Combine, on: &Stream, issue: Issue<'_>) -> Result<()> {
        match self {
            Self::AllReduce(r) => match native(r) {
                Some(dtype) => {
                    let Reduction { src, dst, count, op, .. } = *r;
                    issue(&[Move::AllReduce { src, dst, count, dtype, op }])
                }
                None => combine.all_reduce(r, on, issue),
            },
            Self::ReduceScatter(r) => match native(r) {
                Some(dtype) => {
                    let Reduction { src, dst, count, op, .. } = *r;
                    issue(&[Move::ReduceScatter { src, dst, count, dtype, op }])
                }
                None => combine.reduce_scatter(r, on, issue),
            },
            Self::Moves(_, moves) if moves.is_empty() => Ok(()),
            Self::Moves(_, moves) => issue(moves),
            Self::Message(message) => issue(&[*message]),
            Self::Barrier => {
                let (src, op) = (combine.word(), ReduceOp::SUM);
                let (dtype, count) = wire(DType::U32, 1);
                issue(&[Move::AllReduce { src, dst: src, count, dtype, op }])
            }
        }
    }
}

fn reduction(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Reduction {
    Reduction { src: address(src), dst: address(dst), count: elements(dst), dtype: src.dtype, op }
}

/// NCCL's dtype, where it combines as the contract demands.
fn native(r: &Reduction) -> Option<cudarc::nccl::sys::ncclDataType_t> {
    if r.is_native() { data_type(r.dtype) } else { None }
}
