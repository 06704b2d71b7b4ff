//! A launch's arguments, opened as the views that kernels take.
//!
//! The host has checked shapes, strides and bounds against the catalogue. Here only what a kernel's
//! memory safety hangs on is looked at again, where that costs a comparison or two.

use std::sync::Arc;

use halyard_sdk::{DType, Error, LaunchArgs, Result, TensorView};

use crate::attention::Out;
use crate::device::Context;
use crate::elem::{Elem, Rows, RowsMut};
use crate::kv::Heads;
use crate::weights::Packed;

impl Elem {
    /// The element type of a dtype.
    ///
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
}

/// One launch.
pub(crate) struct Args<'a> {
    pub(crate) context: &'a Context,
    pub(crate) args: &'a LaunchArgs<'a>,
}

/// Dims of a view as sizes.
fn size(view: &TensorView, axis: usize) -> Result<usize> {
    usize::try_from(view.dims[axis])
        .map_err(|_| Error::invalid(format!("dim {axis} is {}", view.dims[axis])))
}

fn address(view: &TensorView) -> *mut u8 {
    (view.data + view.byte_offset) as *mut u8
}

/// Bytes between neighbours along an axis.
fn stride(view: &TensorView, axis: usize, element: usize) -> usize {
    view.strides[axis].max(0).unsigned_abs() as usize * element
}

impl<'a> Args<'a> {
    /// The view of a slot, if it is there.
    pub(crate) fn optional(&self, slot: usize) -> Option<&'a TensorView> {
        self.args.tensors.as_slice().get(slot).filter(|v| !v.is_none())
    }

    /// The view of a slot that must have this rank.
    pub(crate) fn view(&self, slot: usize, rank: usize) -> Result<&'a TensorView> {
        match self.optional(slot) {
            Some(v) if usize::from(v.rank) == rank => Ok(v),
            Some(v) => Err(Error::invalid(format!("slot {slot} has rank {}, not {rank}", v.rank))),
            None => Err(Error::invalid(format!("slot {slot} is missing"))),
        }
    }

    /// A `[rows, cols]` tensor to read.
    pub(crate) fn rows(&self, slot: usize) -> Result<(Rows, usize, usize)> {
        let v = self.view(slot, 2)?;
        let elem = Elem::of(v.dtype)?;
        let rows = Rows {
            base: address(v),
            elem,
            row_stride: stride(v, 0, elem.bytes()),
            col_stride: elem.bytes(),
        };
        Ok((rows, size(v, 0)?, size(v, 1)?))
    }

    /// A `[rows, cols]` tensor to write.
    pub(crate) fn rows_mut(&self, slot: usize) -> Result<(RowsMut, usize, usize)> {
        let (r, rows, cols) = self.rows(slot)?;
        Ok((writable(r), rows, cols))
    }

    /// A `[cols]` tensor as one row.
    pub(crate) fn vector(&self, slot: usize) -> Result<(Rows, usize)> {
        let v = self.view(slot, 1)?;
        let elem = Elem::of(v.dtype)?;
        let rows = Rows { base: address(v), elem, row_stride: 0, col_stride: elem.bytes() };
        Ok((rows, size(v, 0)?))
    }

    /// A `[tokens, heads, dim]` tensor: view, tokens, heads, dim.
    pub(crate) fn heads(&self, slot: usize) -> Result<(Heads, usize, usize, usize)> {
        let v = self.view(slot, 3)?;
        let elem = Elem::of(v.dtype)?;
        let rows = Rows {
            base: address(v),
            elem,
            row_stride: stride(v, 0, elem.bytes()),
            col_stride: elem.bytes(),
        };
        let heads = Heads { rows, head_stride: stride(v, 1, elem.bytes()) };
        Ok((heads, size(v, 0)?, size(v, 1)?, size(v, 2)?))
    }

    /// A `[tokens, dim]` tensor as one of a single head: view, tokens, heads, dim.
    pub(crate) fn one_head(&self, slot: usize) -> Result<(Heads, usize, usize, usize)> {
        let (rows, tokens, dim) = self.rows(slot)?;
        Ok((Heads { rows, head_stride: 0 }, tokens, 1, dim))
    }

    /// A `[tokens, heads, dim]` tensor to write.
    pub(crate) fn heads_mut(&self, slot: usize) -> Result<(Out, usize, usize, usize)> {
        let (h, tokens, heads, dim) = self.heads(slot)?;
        Ok((Out { rows: writable(h.rows), head_stride: h.head_stride }, tokens, heads, dim))
    }

    /// A tensor of one to four dims as rows along its last.
    pub(crate) fn lead_rows(&self, slot: usize) -> Result<LeadRows> {
        let v = self.optional(slot).ok_or_else(|| missing(slot))?;
        LeadRows::new(v)
    }

    /// A contiguous one-dimensional tensor of `T`.
    ///
    /// # Safety
    /// The host has checked the view; nobody writes it during the launch.
    pub(crate) unsafe fn slice<T: Number>(&self, slot: usize) -> Result<&'a [T]> {
        let v = self.view(slot, 1)?;
        // SAFETY: the caller's promise.
        unsafe { slice_of(v, size(v, 0)?) }
    }

    /// A contiguous one-dimensional tensor of `T` to write.
    ///
    /// # Safety
    /// The host has checked the view; nobody else touches it during the launch.
    pub(crate) unsafe fn slice_mut<T: Number>(&self, slot: usize) -> Result<&'a mut [T]> {
        let v = self.view(slot, 1)?;
        check_type::<T>(v)?;
        let n = size(v, 0)?;
        if n == 0 {
            return Ok(&mut []);
        }
        // SAFETY: the caller's promise; type and alignment as just checked.
        Ok(unsafe { std::slice::from_raw_parts_mut(address(v).cast(), n) })
    }

    /// A `[rows, cols]` tensor of numbers with contiguous rows.
    pub(crate) fn table<T: Number>(&self, slot: usize) -> Result<Table<T>> {
        let v = self.view(slot, 2)?;
        check_type::<T>(v)?;
        let (rows, cols) = (size(v, 0)?, size(v, 1)?);
        Ok(Table { base: address(v).cast(), stride: stride(v, 0, 1), rows, cols })
    }

    /// A `[rows, cols]` tensor of a one-byte type with contiguous rows.
    pub(crate) fn codes(&self, slot: usize) -> Result<Table<u8>> {
        let v = self.view(slot, 2)?;
        if v.dtype.bits() != Some(8) {
            return Err(Error::invalid(format!("a tensor of {}, expected bytes", v.dtype)));
        }
        let (rows, cols) = (size(v, 0)?, size(v, 1)?);
        Ok(Table { base: address(v), stride: stride(v, 0, 1), rows, cols })
    }

    /// [`Self::table`] of a slot that may be absent.
    pub(crate) fn optional_table<T: Number>(&self, slot: usize) -> Result<Option<Table<T>>> {
        self.optional(slot).map(|_| self.table(slot)).transpose()
    }

    /// Address and blocks of a cache whose blocks have these dims.
    pub(crate) fn opaque(&self, slot: usize, block: &[usize]) -> Result<(*mut u8, usize)> {
        let v = self.view(slot, 1 + block.len())?;
        let dims = v.dims[1..=block.len()].iter().map(|&d| usize::try_from(d));
        if !dims.eq(block.iter().map(|&d| Ok(d))) {
            return Err(Error::invalid(format!(
                "a cache of blocks of {:?}, expected {block:?}",
                &v.dims[1..=block.len()]
            )));
        }
        Ok((address(v), size(v, 0)?))
    }

    /// A sealed weight.
    pub(crate) fn weight(&self, slot: usize) -> Result<Arc<Packed>> {
        let handle = self.args.weights.as_slice().get(slot);
        let handle = handle.ok_or_else(|| Error::invalid(format!("weight {slot} is missing")))?;
        Ok(self.context.weights.get(*handle)?.1)
    }

    /// The scratch memory, which must have `bytes` bytes.
    pub(crate) fn workspace(&self, bytes: usize) -> Result<*mut u8> {
        let (at, have) = (self.args.workspace, self.args.workspace_bytes);
        if have < bytes as u64 || (bytes > 0 && !at.is_multiple_of(64)) {
            return Err(Error::invalid(format!(
                "a workspace of {have} bytes at {at:#x}, expected {bytes} aligned to 64"
            )));
        }
        Ok(at as *mut u8)
    }
}

fn missing(slot: usize) -> Error {
    Error::invalid(format!("slot {slot} is missing"))
}

fn writable(r: Rows) -> RowsMut {
    let Rows { base, elem, row_stride, col_stride } = r;
    RowsMut { base: base.cast_mut(), elem, row_stride, col_stride }
}

/// A number type of tensors that are read as they are.
pub(crate) trait Number: Copy + Send + Sync + 'static {
    const DTYPE: DType;
}

impl Number for f32 {
    const DTYPE: DType = DType::F32;
}
impl Number for u8 {
    const DTYPE: DType = DType::U8;
}
impl Number for i32 {
    const DTYPE: DType = DType::I32;
}
impl Number for i64 {
    const DTYPE: DType = DType::I64;
}
impl Number for u32 {
    const DTYPE: DType = DType::U32;
}
impl Number for u64 {
    const DTYPE: DType = DType::U64;
}

fn check_type<T: Number>(v: &TensorView) -> Result<()> {
    if v.dtype != T::DTYPE {
        return Err(Error::invalid(format!("a tensor of {}, expected {}", v.dtype, T::DTYPE)));
    }
    if !address(v).cast::<T>().is_aligned() {
        return Err(Error::invalid(format!("a tensor of {} that is not aligned", v.dtype)));
    }
    Ok(())
}

/// # Safety
/// `v` spans `n` elements from its start, and nobody writes them meanwhile.
unsafe fn slice_of<'a, T: Number>(v: &TensorView, n: usize) -> Result<&'a [T]> {
    check_type::<T>(v)?;
    if n == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise; type and alignment as just checked.
    Ok(unsafe { std::slice::from_raw_parts(address(v).cast(), n) })
}

/// Rows of numbers.
#[derive(Clone, Copy)]
pub(crate) struct Table<T> {
    base: *mut T,
    /// Elements from row to row.
    stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

// SAFETY: an address with a shape; its users keep the rules of reading and writing.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T: Number> Table<T> {
    /// Numbers as rows of one, so that tasks may write different ones.
    pub(crate) fn of(numbers: &mut [T]) -> Self {
        Self { base: numbers.as_mut_ptr(), stride: 1, rows: numbers.len(), cols: 1 }
    }

    /// `rows` rows of `cols` numbers at `base`, one after the other.
    pub(crate) fn dense(base: *mut T, rows: usize, cols: usize) -> Self {
        Self { base, stride: cols, rows, cols }
    }

    /// Elements from row to row.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A row.
    ///
    /// # Safety
    /// The host has checked the view; nobody writes the row meanwhile.
    pub(crate) unsafe fn row<'a>(&self, row: usize) -> &'a [T] {
        debug_assert!(row < self.rows);
        if self.cols == 0 {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base.add(row * self.stride), self.cols) }
    }

    /// A row to write.
    ///
    /// # Safety
    /// The host has checked the view; nobody else touches the row meanwhile.
    pub(crate) unsafe fn row_mut<'a>(&self, row: usize) -> &'a mut [T] {
        debug_assert!(row < self.rows);
        if self.cols == 0 {
            return &mut [];
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(row * self.stride), self.cols) }
    }

    /// All rows from the first to the last, with what is between them.
    ///
    /// # Safety
    /// As [`Self::row`], for all rows.
    pub(crate) unsafe fn all<'a>(&self) -> &'a [T] {
        if self.rows == 0 || self.cols == 0 {
            return &[];
        }
        let n = (self.rows - 1) * self.stride + self.cols;
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base, n) }
    }
}

/// A tensor of one to four dims as rows along its last: row `i` counts the leading dims row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeadRows {
    base: *mut u8,
    elem: Elem,
    /// Leading dims, outermost first, padded with 1 in front.
    dims: [usize; 3],
    /// Their strides in bytes.
    strides: [usize; 3],
    pub(crate) cols: usize,
}

// SAFETY: an address with a shape; its users keep the rules of reading and writing.
unsafe impl Send for LeadRows {}
// SAFETY: as above.
unsafe impl Sync for LeadRows {}

impl LeadRows {
    fn new(v: &TensorView) -> Result<Self> {
        let elem = Elem::of(v.dtype)?;
        let rank = usize::from(v.rank);
        if !(1..=4).contains(&rank) {
            return Err(Error::invalid(format!("a tensor of rank {rank}, expected 1 to 4")));
        }
        let (mut dims, mut strides) = ([1; 3], [0; 3]);
        for axis in 0..rank - 1 {
            dims[4 - rank + axis] = size(v, axis)?;
            strides[4 - rank + axis] = stride(v, axis, elem.bytes());
        }
        Ok(Self { base: address(v), elem, dims, strides, cols: size(v, rank - 1)? })
    }

    /// Contiguous rows of `cols` floats at `base`.
    pub(crate) fn dense(base: *mut f32, rows: usize, cols: usize) -> Self {
        let (dims, strides) = ([1, 1, rows], [0, 0, 4 * cols]);
        Self { base: base.cast(), elem: Elem::F32, dims, strides, cols }
    }

    pub(crate) fn rows(&self) -> usize {
        self.dims.iter().product()
    }

    /// The first of `count` rows with a common stride (all of them, if possible), as a view.
    pub(crate) fn row(&self, row: usize) -> RowsMut {
        let [_, d1, d2] = self.dims;
        let at = [row / (d1 * d2), row / d2 % d1, row % d2];
        let offset: usize = at.iter().zip(self.strides).map(|(i, s)| i * s).sum();
        RowsMut {
            base: self.base.wrapping_add(offset),
            elem: self.elem,
            row_stride: 0,
            col_stride: self.elem.bytes(),
        }
    }
}
