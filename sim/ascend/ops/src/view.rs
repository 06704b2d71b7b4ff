//! A tensor argument whose dims, strides and storage are known to fit each other.

use crate::arg::Tensor;
use crate::dtype::{DType, one_of};
use crate::refusal::{Refusal, code, ensure};

/// `ACL_FORMAT_FRACTAL_NZ`
pub(crate) const FRACTAL_NZ: i32 = 29;
/// Formats of row-major tensors: ND, and the names that frameworks give to ranks 3 to 5.
const ROW_MAJOR: &[i32] = &[2, 0, 1, 30, 27, 35, 47];
/// The memory of the largest 910B.
const MOST_BYTES: usize = 64 << 30;
const MAX_RANK: usize = 8;
/// What the documentation of `aclCreateTensor` asks of addresses.
pub(crate) const ADDRESS_BYTES: u64 = 32;

/// A tensor as operators use it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The parameter, with the index in a list.
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) dims: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) offset: usize,
    /// The storage is FRACTAL_NZ; `dims` and `strides` tell the matrix and whether it is transposed.
    pub(crate) nz: bool,
    pub(crate) storage: Vec<usize>,
    /// Which of the call's tensors.
    pub(crate) slot: usize,
}

impl View {
    pub(crate) fn of(name: String, tensor: &Tensor, slot: usize) -> Result<Self, Refusal> {
        let dtype = DType::of(tensor.dtype);
        let Some(dtype) = dtype else {
            let number = tensor.dtype;
            let text = format!(
                "{name}: aclDataType {number} has no kernels here, on a 910B or in this stand-in"
            );
            return Err(Refusal::new(code::NO_KERNEL, text));
        };
        let nz = tensor.format == FRACTAL_NZ;
        ensure!(
            nz || ROW_MAJOR.contains(&tensor.format),
            "{name}: aclFormat {}, expected ND (2) or, for weights, FRACTAL_NZ (29)",
            tensor.format
        );
        let whole = |what: &str, values: &[i64]| -> Result<Vec<usize>, Refusal> {
            values
                .iter()
                .map(|&v| {
                    usize::try_from(v).map_err(|_| {
                        Refusal::new(
                            code::INVALID,
                            format!("{name}: {what} {values:?}, expected none below 0"),
                        )
                    })
                })
                .collect()
        };
        let dims = whole("shape", &tensor.view_dims)?;
        let strides = whole("strides", &tensor.strides)?;
        let storage = whole("storage shape", &tensor.storage_dims)?;
        let offset = whole("offset", &[tensor.offset])?[0];
        ensure!(dims.len() <= MAX_RANK, "{name}: {} dims, expected at most {MAX_RANK}", dims.len());
        ensure!(
            dims.len() == strides.len(),
            "{name}: {} strides for {} dims",
            strides.len(),
            dims.len()
        );
        ensure!(
            tensor.address.is_multiple_of(ADDRESS_BYTES),
            "{name}: address {:#x}, expected a multiple of {ADDRESS_BYTES}",
            tensor.address
        );
        let view = Self { name, dtype, dims, strides, offset, nz, storage, slot };
        view.fits_storage()?;
        view.fits_bytes()?;
        Ok(view)
    }

    fn fits_storage(&self) -> Result<(), Refusal> {
        let product = |dims: &[usize]| dims.iter().try_fold(1usize, |all, &d| all.checked_mul(d));
        let fits =
            |elements: Option<usize>| elements.filter(|&e| e <= MOST_BYTES * 8 / self.dtype.bits());
        let (Some(stored), Some(len)) = (fits(product(&self.storage)), fits(product(&self.dims)))
        else {
            let text = format!(
                "{}: shape {:?} in storage of shape {:?}, expected less than a device's memory",
                self.name, self.dims, self.storage
            );
            return Err(Refusal::new(code::INVALID, text));
        };
        if self.nz || len == 0 {
            return Ok(());
        }
        let last = self.dims.iter().zip(&self.strides).try_fold(self.offset, |at, (&d, &s)| {
            (d - 1).checked_mul(s).and_then(|span| at.checked_add(span))
        });
        ensure!(
            last.is_some_and(|last| last < stored),
            "{}: shape {:?} with strides {:?} and offset {} ends behind its storage of {stored} elements",
            self.name,
            self.dims,
            self.strides,
            self.offset
        );
        Ok(())
    }

    /// INT4 elements come in pairs.
    fn fits_bytes(&self) -> Result<(), Refusal> {
        if self.dtype != DType::I4 || self.len() == 0 {
            return Ok(());
        }
        let moving = || (0..self.rank()).filter(|&axis| self.dims[axis] > 1);
        let paired =
            moving().any(|axis| self.strides[axis] == 1 && self.dims[axis].is_multiple_of(2));
        let whole =
            moving().all(|axis| self.strides[axis] == 1 || self.strides[axis].is_multiple_of(2));
        ensure!(
            paired && whole && self.offset.is_multiple_of(2),
            "{}: shape {:?} with strides {:?} and offset {} of INT4, expected even numbers side by side",
            self.name,
            self.dims,
            self.strides,
            self.offset
        );
        Ok(())
    }

    pub(crate) fn rank(&self) -> usize {
        self.dims.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.len() * self.dtype.bits()).div_ceil(8) as u64
    }

    pub(crate) fn last(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// The last two dims swapped.
    pub(crate) fn transposed(&self) -> Self {
        let mut view = self.clone();
        let rank = view.rank();
        view.dims.swap(rank - 2, rank - 1);
        view.strides.swap(rank - 2, rank - 1);
        view
    }

    /// Whether the last two dims are a transposed view of a row-major matrix.
    pub(crate) fn is_transposed(&self) -> bool {
        let r = self.rank();
        let [rows, columns] = [self.strides[r - 2], self.strides[r - 1]];
        rows == 1 && columns >= self.dims[r - 2] && (columns > 1 || self.dims[r - 1] > 1)
    }

    pub(crate) fn permuted(&self, axes: &[usize]) -> Self {
        let mut view = self.clone();
        view.dims = axes.iter().map(|&a| self.dims[a]).collect();
        view.strides = axes.iter().map(|&a| self.strides[a]).collect();
        view
    }

    /// One index of an axis; the axis is gone.
    pub(crate) fn select(&self, axis: usize, index: usize) -> Self {
        let mut view = self.clone();
        view.dims.remove(axis);
        view.offset += index * view.strides.remove(axis);
        view
    }

    pub(crate) fn narrow(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut view = self.clone();
        view.dims[axis] = len;
        view.offset += start * view.strides[axis];
        view
    }

    /// The view with other dims of as many elements; only of a contiguous view.
    pub(crate) fn reshaped(&self, dims: &[usize]) -> Self {
        let mut view = self.clone();
        view.strides = contiguous_strides(dims);
        view.dims = dims.to_vec();
        view
    }

    /// Stretched to dims by repeating.
    pub(crate) fn expanded(&self, dims: &[usize]) -> Result<Self, Refusal> {
        let mut view = self.clone();
        let lead = dims.len().checked_sub(self.rank());
        let fits = lead.is_some_and(|lead| {
            self.dims.iter().zip(&dims[lead..]).all(|(&mine, &wanted)| mine == wanted || mine == 1)
        });
        ensure!(fits, "{}: shape {:?} does not broadcast to {dims:?}", self.name, self.dims);
        view.strides = vec![0; dims.len() - self.rank()];
        for (axis, &stride) in self.strides.iter().enumerate() {
            view.strides.push(if self.dims[axis] == 1 { 0 } else { stride });
        }
        view.dims = dims.to_vec();
        Ok(view)
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        let strides = contiguous_strides(&self.dims);
        let mut axes = self.dims.iter().zip(&self.strides).zip(&strides);
        self.len() == 0 || axes.all(|((&d, &mine), &wanted)| d == 1 || mine == wanted)
    }

    /// Whether two indices share an element.
    pub(crate) fn overlaps_itself(&self) -> bool {
        let mut axes: Vec<(usize, usize)> = self
            .strides
            .iter()
            .copied()
            .zip(self.dims.iter().copied())
            .filter(|a| a.1 > 1)
            .collect();
        axes.sort_unstable();
        let mut span = 0;
        self.len() > 0
            && axes.iter().any(|&(stride, dim)| {
                let overlaps = stride <= span;
                span += stride * (dim - 1);
                overlaps
            })
    }

    pub(crate) fn expect_dtype(&self, choices: &[DType]) -> Result<&Self, Refusal> {
        let (name, dtype) = (&self.name, self.dtype);
        ensure!(choices.contains(&dtype), "{name}: dtype {dtype}, expected {}", one_of(choices));
        Ok(self)
    }

    pub(crate) fn expect_rank(&self, low: usize, high: usize) -> Result<&Self, Refusal> {
        let expected = if low == high { low.to_string() } else { format!("{low} to {high}") };
        let rank = self.rank();
        ensure!(
            (low..=high).contains(&rank),
            "{}: {rank} dims (shape {:?}), expected {expected}",
            self.name,
            self.dims
        );
        Ok(self)
    }

    pub(crate) fn expect_dims(&self, dims: &[usize]) -> Result<&Self, Refusal> {
        ensure!(self.dims == dims, "{}: shape {:?}, expected {dims:?}", self.name, self.dims);
        Ok(self)
    }

    pub(crate) fn expect_contiguous(&self) -> Result<&Self, Refusal> {
        ensure!(
            self.is_contiguous(),
            "{}: strides {:?} of shape {:?}, expected a contiguous tensor",
            self.name,
            self.strides,
            self.dims
        );
        Ok(self)
    }
}

/// The strides of row-major dims.
pub(crate) fn contiguous_strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis].max(1);
    }
    strides
}

/// The dims that two shapes broadcast to.
pub(crate) fn broadcast(a: &View, b: &View) -> Result<Vec<usize>, Refusal> {
    broadcast_dims(&a.dims, &b.dims).ok_or_else(|| {
        let text = format!(
            "{}: shape {:?} does not broadcast with shape {:?} of {}",
            b.name, b.dims, a.dims, a.name
        );
        Refusal::new(code::INVALID, text)
    })
}

/// The dims that two shapes broadcast to, if they do.
pub(crate) fn broadcast_dims(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |dims: &[usize], axis: usize| {
        (axis + dims.len()).checked_sub(rank).map_or(1, |own| dims[own])
    };
    (0..rank)
        .map(|axis| match (dim(a, axis), dim(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}
