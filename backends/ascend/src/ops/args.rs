//! A launch's arguments as operators take them.
//!
//! The host has checked shapes, strides and bounds against the catalogue.

use std::{cell::Cell, sync::Arc};

use halyard_ascend_sys::types::{
    ACL_BF16, ACL_BOOL, ACL_FLOAT, ACL_FLOAT16, ACL_INT4, ACL_INT8, ACL_INT32, ACL_INT64, ACL_UINT8,
};
use halyard_sdk::{DType, Error, LaunchArgs, Plan, Result, TensorView};

use super::StepPlan;
use crate::{
    device::Shared,
    driver::{Stream, Tensor},
    memory::ALIGN,
    weights::Packed,
};

/// An element type of the operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(i32);

impl Kind {
    pub(super) const F32: Self = Self(ACL_FLOAT);
    pub(super) const I8: Self = Self(ACL_INT8);
    pub(super) const U8: Self = Self(ACL_UINT8);
    pub(super) const I32: Self = Self(ACL_INT32);
    /// Two elements a byte.
    pub(super) const I4: Self = Self(ACL_INT4);
    pub(super) const I64: Self = Self(ACL_INT64);
    pub(super) const BOOL: Self = Self(ACL_BOOL);

    /// # Errors
    /// `UNSUPPORTED`, naming the type.
    pub(super) fn of(dtype: DType) -> Result<Self> {
        Ok(Self(match dtype {
            DType::F32 => ACL_FLOAT,
            DType::F16 => ACL_FLOAT16,
            DType::BF16 => ACL_BF16,
            DType::I8 => ACL_INT8,
            DType::U8 => ACL_UINT8,
            // Words without a sign are used for their bits alone.
            DType::I32 | DType::U32 => ACL_INT32,
            DType::I64 | DType::U64 => ACL_INT64,
            other => return Err(Error::unsupported(format!("tensors of {other}"))),
        }))
    }

    pub(super) fn number(self) -> i32 {
        self.0
    }

    pub(super) fn bytes(self) -> i64 {
        match self.0 {
            ACL_INT64 => 8,
            ACL_FLOAT | ACL_INT32 => 4,
            ACL_FLOAT16 | ACL_BF16 => 2,
            _ => 1,
        }
    }
}

/// Elements in device memory. Operators want tensors to begin at multiples of 32 bytes, so the offset into a buffer is kept apart.
#[derive(Clone, Debug)]
pub(super) struct Place {
    base: u64,
    /// Elements from the base.
    offset: i64,
    pub(super) kind: Kind,
    pub(super) dims: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

fn packed(dims: &[i64]) -> Vec<i64> {
    let mut step = 1;
    let mut strides: Vec<i64> = dims
        .iter()
        .rev()
        .map(|d| {
            let stride = step;
            step *= d.max(&1);
            stride
        })
        .collect();
    strides.reverse();
    strides
}

impl Place {
    /// Elements without gaps.
    pub(super) fn contiguous(base: u64, kind: Kind, dims: &[i64]) -> Self {
        Self { base, offset: 0, kind, dims: dims.to_vec(), strides: packed(dims) }
    }

    pub(super) fn of(view: &TensorView) -> Result<Self> {
        let kind = Kind::of(view.dtype)?;
        let dims = view.dims().to_vec();
        // What is opaque to the host has no gaps here.
        let opaque = view.flags & halyard_sdk::abi::types::FLAG_OPAQUE != 0;
        let strides = if opaque { packed(&dims) } else { view.strides().to_vec() };
        let offset = view.byte_offset.cast_signed() / kind.bytes();
        Ok(Self { base: view.data, offset, kind, dims, strides })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dims.contains(&0)
    }

    pub(super) fn is_contiguous(&self) -> bool {
        let expected = packed(&self.dims);
        let pairs = self.strides.iter().zip(&expected).zip(&self.dims);
        pairs.into_iter().all(|((s, e), d)| s == e || *d <= 1)
    }

    /// `length` of an axis, from `first` on.
    pub(super) fn slice(&self, axis: usize, first: i64, length: i64) -> Self {
        let mut part = self.clone();
        part.offset += first * part.strides[axis];
        part.dims[axis] = length;
        part
    }

    /// The same memory seen with other dims and strides.
    pub(super) fn seen(&self, dims: &[i64], strides: &[i64]) -> Self {
        Self { dims: dims.to_vec(), strides: strides.to_vec(), ..self.clone() }
    }

    /// Elements without gaps with other dims.
    pub(super) fn reshaped(&self, dims: &[i64]) -> Self {
        self.seen(dims, &packed(dims))
    }

    /// A row of one element per element, for broadcasting along the last axis.
    pub(super) fn column(&self) -> Self {
        let mut column = self.clone();
        column.dims.push(1);
        column.strides.push(1);
        column
    }

    /// The same elements with an axis of one element before that one.
    pub(super) fn spread(&self, axis: usize) -> Self {
        let mut wider = self.clone();
        wider.dims.insert(axis, 1);
        wider.strides.insert(axis, 0);
        wider
    }

    /// The same elements with two axes exchanged.
    pub(super) fn exchanged(&self, a: usize, b: usize) -> Self {
        let mut other = self.clone();
        other.dims.swap(a, b);
        other.strides.swap(a, b);
        other
    }

    /// The part of each element's memory that is an element of a smaller kind, the lowest being number 0.
    pub(super) fn part(&self, kind: Kind, number: i64) -> Self {
        let parts = self.kind.bytes() / kind.bytes();
        let strides = self.strides.iter().map(|s| s * parts).collect();
        Self { kind, offset: self.offset * parts + number, strides, ..self.clone() }
    }

    /// All of these parts, along the last axis, which has no gaps.
    pub(super) fn parts(&self, kind: Kind) -> Self {
        let parts = self.kind.bytes() / kind.bytes();
        let mut all = self.part(kind, 0);
        if let (Some(dim), Some(stride)) = (all.dims.last_mut(), all.strides.last_mut()) {
            (*dim, *stride) = (*dim * parts, 1);
        }
        all
    }

    /// Where the elements begin.
    pub(super) fn address(&self) -> u64 {
        self.base + (self.offset * self.kind.bytes()).unsigned_abs()
    }
}

/// One launch.
pub(crate) struct Args<'a> {
    pub(super) shared: &'a Shared,
    pub(super) on: &'a Stream,
    pub(super) args: &'a LaunchArgs<'a>,
    /// Bytes of the workspace in use.
    used: Cell<u64>,
}

/// Bytes that [`Args::scratch`] takes for so many elements; dims that are not known count as none.
pub(super) fn scratch_bytes(kind: Kind, dims: &[i64]) -> u64 {
    let elements = dims.iter().fold(1i64, |n, &d| n.saturating_mul(d.max(0)));
    elements.saturating_mul(kind.bytes()).unsigned_abs().next_multiple_of(ALIGN)
}

/// Scratch bytes that rows are worked on with at a time, and what rounding each part up takes.
const A_TIME: u64 = 256 << 20;
const ROUNDING: u64 = 64 * ALIGN;

/// Scratch bytes of [`Args::in_pieces`].
pub(super) fn piece_bytes(rows: i64, a_row: i64) -> u64 {
    let (rows, a_row) = (rows.max(0).unsigned_abs(), a_row.max(1).unsigned_abs());
    rows.saturating_mul(a_row).min(A_TIME.max(a_row)).saturating_add(ROUNDING)
}

impl<'a> Args<'a> {
    /// Works on some rows at a time, first and number, so that scratch memory of `a_row` bytes for each has its bound.
    pub(super) fn in_pieces(
        &self,
        rows: i64,
        a_row: i64,
        work: impl Fn(i64, i64) -> Result<()>,
    ) -> Result<()> {
        let a_time = (A_TIME.cast_signed() / a_row.max(1)).max(1);
        let mark = self.mark();
        let mut first = 0;
        while first < rows {
            self.release(mark);
            work(first, a_time.min(rows - first))?;
            first += a_time;
        }
        Ok(())
    }

    pub(crate) fn new(shared: &'a Shared, on: &'a Stream, args: &'a LaunchArgs<'a>) -> Self {
        Self { shared, on, args, used: Cell::new(0) }
    }

    /// A slot's elements, if it is there.
    pub(super) fn optional(&self, slot: usize) -> Result<Option<Place>> {
        let view = self.args.tensors.as_slice().get(slot).filter(|v| !v.is_none());
        view.map(Place::of).transpose()
    }

    /// A slot's elements.
    pub(super) fn place(&self, slot: usize) -> Result<Place> {
        self.optional(slot)?.ok_or_else(|| Error::invalid(format!("slot {slot} is missing")))
    }

    /// A sealed weight.
    pub(super) fn weight(&self, slot: usize) -> Result<Arc<Packed>> {
        let handle = self.args.weights.as_slice().get(slot);
        let handle = handle.ok_or_else(|| Error::invalid(format!("weight {slot} is missing")))?;
        self.shared.weights.get(*handle)
    }

    /// The step's plan, if there is one.
    pub(super) fn plan(&self) -> Result<Option<Arc<StepPlan>>> {
        let plan = Some(self.args.plan).filter(|plan| *plan != Plan::NONE);
        plan.map(|plan| self.shared.plans.get(plan.0)).transpose()
    }

    /// Scratch memory, from the launch's workspace.
    pub(super) fn scratch(&self, kind: Kind, dims: &[i64]) -> Result<Place> {
        let begin = self.used.get();
        let end = begin.saturating_add(scratch_bytes(kind, dims));
        let (at, have) = (self.args.workspace, self.args.workspace_bytes);
        if have < end || !at.is_multiple_of(ALIGN) {
            return Err(Error::invalid(format!(
                "a workspace of {have} bytes at {at:#x}, expected {end} aligned to {ALIGN}"
            )));
        }
        self.used.set(end);
        Ok(Place::contiguous(at + begin, kind, dims))
    }

    /// How much of the workspace is in use, for [`Self::release`].
    pub(super) fn mark(&self) -> u64 {
        self.used.get()
    }

    /// Gives back what [`Self::scratch`] gave since: what is enqueued later may write it, when what was enqueued before has read it.
    pub(super) fn release(&self, mark: u64) {
        self.used.set(mark);
    }

    /// The descriptor of elements.
    pub(super) fn tensor(&self, place: &Place) -> Tensor {
        let of = (place.kind.number(), place.kind.bytes());
        Tensor::new(of, &place.dims, &place.strides, (place.base, place.offset))
    }

    /// `to = from`, converting and broadcasting.
    pub(super) fn copy(&self, to: &Place, from: &Place) -> Result<()> {
        let (to, from) = (self.tensor(to), self.tensor(from));
        enqueue!(self.on, InplaceCopy(&to, &from))
    }

    /// The elements in another type, in scratch memory without gaps.
    pub(super) fn cast(&self, from: &Place, kind: Kind) -> Result<Place> {
        let place = self.scratch(kind, &from.dims)?;
        let (to, from) = (self.tensor(&place), self.tensor(from));
        enqueue!(self.on, Cast(&from, kind.number(), &to))?;
        Ok(place)
    }
}
