//! A launch's arguments, opened as the structs that kernels take.
//!
//! The host has checked shapes, strides and bounds against the catalogue.

use std::sync::Arc;

use halyard_sdk::{DType, Error, LaunchArgs, Result, TensorView, abi::types::MAX_RANK};

use crate::{
    cublas::{Addresses, Blas, Matmul, Shape},
    device::Shared,
    driver::{Function, Grid, Stream},
    memory::ALIGN,
    weights::{Packed, ROW_ALIGN},
};

/// The types that activations have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Float {
    F32 = 0,
    F16 = 1,
    Bf16 = 2,
}

impl Float {
    /// # Errors
    /// `UNSUPPORTED`, naming the dtype and those there are.
    pub(crate) fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::F16 => Ok(Self::F16),
            DType::BF16 => Ok(Self::Bf16),
            other => Err(Error::unsupported(format!("{other}; supported: f32, f16, bf16"))),
        }
    }

    /// As kernels' names have it.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Leading dims that [`Rows`] has.
const LEADING: usize = 3;

/// `struct Rows` of `kernels/device.h`: a tensor of one to four dims as rows along its last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) data: u64,
    stride: [i64; LEADING],
    dim: [u32; 2],
}

impl Rows {
    /// Rows of one matrix.
    pub(crate) fn matrix(data: u64, stride: i64) -> Self {
        Self { data, stride: [0, 0, stride], dim: [1, i32::MAX.unsigned_abs()] }
    }
}

/// A tensor's rows: what kernels take, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsOf {
    pub(crate) rows: Rows,
    pub(crate) count: u32,
    pub(crate) cols: u32,
    /// Elements from column to column.
    pub(crate) step: i64,
}

/// Whether tensors of this rank can be opened as [`Rows`].
///
/// # Errors
/// `UNSUPPORTED` naming the limit.
pub(crate) fn check_rank(rank: u8) -> Result<()> {
    if (1..=LEADING + 1).contains(&usize::from(rank)) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "a tensor of rank {rank}; 1 to {} dims are supported",
        LEADING + 1
    )))
}

/// A size that kernels count in 32 bits.
pub(crate) fn small(what: &str, size: i64) -> Result<u32> {
    u32::try_from(size).ok().filter(|&s| s <= i32::MAX.unsigned_abs()).ok_or_else(|| {
        Error::unsupported(format!("{what} of {size}; at most {} is supported", i32::MAX))
    })
}

/// The address of a view's first element.
pub(crate) fn address(view: &TensorView) -> u64 {
    view.data.wrapping_add(view.byte_offset)
}

/// Rows of a matrix: address and elements from row to row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Strided {
    pub(crate) data: u64,
    pub(crate) stride: i64,
}

impl Strided {
    pub(crate) fn of(view: &TensorView) -> Self {
        Self { data: address(view), stride: view.strides[0] }
    }

    /// The rows from `first` on, of elements of so many bytes.
    pub(crate) fn starting_at(&self, first: u32, bytes: u64) -> Self {
        let step = i64::from(first).wrapping_mul(self.stride).wrapping_mul(bytes.cast_signed());
        Self { data: self.data.wrapping_add_signed(step), ..*self }
    }

    /// Whether rows of `cols` elements of so many bytes begin and end at multiples of 16 bytes.
    pub(crate) fn aligned(&self, cols: u32, bytes: u64) -> bool {
        let row = |n: u64| (n * bytes).is_multiple_of(ROW_ALIGN);
        self.data.is_multiple_of(ROW_ALIGN) && row(self.stride.unsigned_abs()) && row(cols.into())
    }

    /// With strides in units of 16 bytes.
    pub(crate) fn in_vectors(&self, bytes: u64) -> Self {
        Self { stride: self.stride / (ROW_ALIGN / bytes).cast_signed(), ..*self }
    }
}

/// One launch.
pub(crate) struct Args<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) stream: &'a Stream,
    pub(crate) args: &'a LaunchArgs<'a>,
}

impl<'a> Args<'a> {
    /// The view of a slot, if it is there.
    pub(crate) fn optional(&self, slot: usize) -> Option<&'a TensorView> {
        self.args.tensors.as_slice().get(slot).filter(|v| !v.is_none())
    }

    /// The view of a slot.
    pub(crate) fn view(&self, slot: usize) -> Result<&'a TensorView> {
        self.optional(slot).ok_or_else(|| Error::invalid(format!("slot {slot} is missing")))
    }

    /// A tensor of one to four dims as rows along its last.
    pub(crate) fn rows(&self, slot: usize) -> Result<RowsOf> {
        rows(self.view(slot)?)
    }

    /// The same as [`Self::rows`] with the leading dims that `of` has and this lacks, repeated along them.
    pub(crate) fn rows_broadcast(&self, slot: usize, of: usize) -> Result<RowsOf> {
        let (narrow, wide) = (self.view(slot)?, self.view(of)?);
        let missing = usize::from(wide.rank.saturating_sub(narrow.rank));
        let mut view = *wide;
        view.data = narrow.data;
        view.byte_offset = narrow.byte_offset;
        view.strides = [0; MAX_RANK];
        view.strides[missing..missing + narrow.strides().len()].copy_from_slice(narrow.strides());
        rows(&view)
    }

    /// A sealed weight.
    pub(crate) fn weight(&self, slot: usize) -> Result<Arc<Packed>> {
        let handle = self.args.weights.as_slice().get(slot);
        let handle = handle.ok_or_else(|| Error::invalid(format!("weight {slot} is missing")))?;
        self.shared.weights.get(*handle)
    }

    /// The scratch memory, which must have `bytes` bytes.
    pub(crate) fn workspace(&self, bytes: u64) -> Result<u64> {
        let (at, have) = (self.args.workspace, self.args.workspace_bytes);
        if have < bytes || (bytes > 0 && !at.is_multiple_of(ALIGN)) {
            return Err(Error::invalid(format!(
                "a workspace of {have} bytes at {at:#x}, expected {bytes} aligned to {ALIGN}"
            )));
        }
        Ok(at)
    }

    /// Enqueues a kernel.
    pub(crate) fn enqueue<P: Copy>(
        &self,
        kernel: &Function<P>,
        grid: Grid,
        params: &P,
    ) -> Result<()> {
        // SAFETY: the addresses in a launch's params come from its views, weights and workspace alone. The host has checked their
        // bounds against the catalogue and keeps them until the work is done; kernels stay within the dims that they are given, which
        // the software GPU's tests prove.
        unsafe { kernel.launch(self.stream, grid, params) }
    }

    /// Enqueues a product of cuBLASLt; false if it refuses the shape.
    pub(crate) fn multiply(
        &self,
        blas: &Blas,
        matmul: &mut Matmul,
        shape: &Shape,
        at: &Addresses,
        accumulate: bool,
    ) -> Result<bool> {
        // SAFETY: as of a kernel: addresses come from the launch's views, weights and workspace, whose bounds the host has checked
        // against the dims that the shape has.
        unsafe { matmul.enqueue(blas, self.stream, shape, at, accumulate) }
    }
}

/// A view as rows along its last dim.
pub(crate) fn rows(view: &TensorView) -> Result<RowsOf> {
    check_rank(view.rank)?;
    let (dims, strides) = (view.dims(), view.strides());
    let last = dims.len() - 1;
    let (mut stride, mut dim) = ([0; LEADING], [1u32; LEADING]);
    for axis in 0..last {
        stride[LEADING - last + axis] = strides[axis];
        dim[LEADING - last + axis] = small("a dim", dims[axis])?;
    }
    let count = dims[..last].iter().try_fold(1i64, |n, &d| n.checked_mul(d)).unwrap_or(i64::MAX);
    // A kernel divides by the dims, also where there is nothing to do.
    let rows = Rows { data: address(view), stride, dim: [dim[1].max(1), dim[2].max(1)] };
    let (count, cols) = (small("rows", count)?, small("columns", dims[last])?);
    Ok(RowsOf { rows, count, cols, step: if dims[last] == 1 { 0 } else { strides[last] } })
}
