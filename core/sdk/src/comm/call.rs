//! What a rank calls, in a form that others can compare with their own.

use std::{
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use halyard_abi::{DType, ReduceOp};

/// Which method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u32);

impl Kind {
    pub(super) const ALL_REDUCE: Self = Self(1);
    pub(super) const ALL_GATHER: Self = Self(2);
    pub(super) const REDUCE_SCATTER: Self = Self(3);
    pub(super) const BROADCAST: Self = Self(4);
    pub(super) const ALL_TO_ALL: Self = Self(5);
    pub(super) const SEND: Self = Self(6);
    pub(super) const BARRIER: Self = Self(7);
    pub(super) const SPLIT: Self = Self(8);
}

/// A call, apart from where its data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) dtype: DType,
    /// 0 if nothing is combined.
    pub(super) op: ReduceOp,
    /// Of a broadcast; else 0.
    pub(super) root: u32,
    /// Elements of the smaller view; of a message; a row of `all_to_all_v`.
    pub(super) elements: u64,
}

impl Call {
    /// A call that moves no data of the caller's.
    pub(super) fn bare(kind: Kind) -> Self {
        Self { kind, dtype: DType::NONE, op: ReduceOp(0), root: 0, elements: 0 }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op, dtype, elements) = (self.op, self.dtype, self.elements);
        match self.kind {
            Kind::ALL_REDUCE => write!(f, "all_reduce({op}) of {elements} {dtype}"),
            Kind::ALL_GATHER => write!(f, "all_gather of {elements} {dtype} a rank"),
            Kind::REDUCE_SCATTER => write!(f, "reduce_scatter({op}) to {elements} {dtype} a rank"),
            Kind::BROADCAST => write!(f, "broadcast of {elements} {dtype} from rank {}", self.root),
            Kind::ALL_TO_ALL => write!(f, "all_to_all_v of rows of {elements} {dtype}"),
            Kind::SEND => write!(f, "a message of {elements} {dtype}"),
            Kind::BARRIER => f.write_str("barrier"),
            Kind::SPLIT => f.write_str("split"),
            Kind(other) => write!(f, "call {other}"),
        }
    }
}

/// A [`Call`] in shared memory. Whoever reads it has synchronised with the writer by a counter.
#[repr(C)]
#[derive(Debug)]
pub(super) struct SharedCall {
    kind: AtomicU32,
    dtype: AtomicU32,
    op: AtomicU32,
    root: AtomicU32,
    elements: AtomicU64,
}

impl SharedCall {
    pub(super) fn set(&self, call: &Call) {
        self.kind.store(call.kind.0, Relaxed);
        self.dtype.store(call.dtype.0, Relaxed);
        self.op.store(call.op.0, Relaxed);
        self.root.store(call.root, Relaxed);
        self.elements.store(call.elements, Relaxed);
    }

    pub(super) fn get(&self) -> Call {
        Call {
            kind: Kind(self.kind.load(Relaxed)),
            dtype: DType(self.dtype.load(Relaxed)),
            op: ReduceOp(self.op.load(Relaxed)),
            root: self.root.load(Relaxed),
            elements: self.elements.load(Relaxed),
        }
    }
}
