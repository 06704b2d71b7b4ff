//! Tensors on the host, row-major.

use half::{bf16, f16};
use halyard_abi::fp8::{e4m3_from_f64, e4m3_to_f32};
use halyard_core::DType;

/// A row-major tensor in host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Array {
    dtype: DType,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

/// Bytes of an element. Arrays are made of byte-sized dtypes only.
pub(crate) fn size_of(dtype: DType) -> usize {
    (dtype.bits().unwrap_or(8) / 8).max(1) as usize
}

/// Whether the dtype is a float that arrays can hold.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

impl Array {
    /// Every byte the same.
    pub(crate) fn filled(dtype: DType, dims: &[usize], byte: u8) -> Self {
        let count: usize = dims.iter().product();
        Self { dtype, dims: dims.to_vec(), bytes: vec![byte; count * size_of(dtype)] }
    }

    /// What an output holds before it is written: NaN, or -1.
    pub(crate) fn poison(dtype: DType, dims: &[usize]) -> Self {
        Self::filled(dtype, dims, 0xff)
    }

    /// Floats, each rounded to the dtype.
    pub(crate) fn floats(
        dtype: DType,
        dims: &[usize],
        mut value: impl FnMut(usize) -> f64,
    ) -> Self {
        let mut array = Self::filled(dtype, dims, 0);
        for i in 0..array.len() {
            array.set(i, value(i));
        }
        array
    }

    /// Integers.
    pub(crate) fn ints(dtype: DType, dims: &[usize], values: &[i64]) -> Self {
        let mut array = Self::filled(dtype, dims, 0);
        assert_eq!(array.len(), values.len(), "values for dims {dims:?}");
        for (i, &v) in values.iter().enumerate() {
            array.set_int(i, v);
        }
        array
    }

    /// From bytes that hold just these elements.
    pub(crate) fn from_bytes(dtype: DType, dims: &[usize], bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len(), dims.iter().product::<usize>() * size_of(dtype), "dims {dims:?}");
        Self { dtype, dims: dims.to_vec(), bytes }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / size_of(self.dtype)
    }

    /// Extent of the last dim; 1 for a scalar.
    pub(crate) fn width(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    fn word<const N: usize>(&self, i: usize) -> [u8; N] {
        let (words, _) = self.bytes.as_chunks::<N>();
        words[i]
    }

    /// An element as a float.
    pub(crate) fn get(&self, i: usize) -> f64 {
        match self.dtype {
            DType::F32 => f64::from(f32::from_le_bytes(self.word(i))),
            DType::F16 => f64::from(f16::from_le_bytes(self.word(i))),
            DType::BF16 => f64::from(bf16::from_le_bytes(self.word(i))),
            DType::F8E4M3 => f64::from(e4m3_to_f32(self.bytes[i])),
            _ => self.int(i) as f64,
        }
    }

    /// An element as an integer; the bits of a float.
    pub(crate) fn int(&self, i: usize) -> i64 {
        match self.dtype {
            DType::I32 => i64::from(i32::from_le_bytes(self.word(i))),
            DType::U32 | DType::F32 => i64::from(u32::from_le_bytes(self.word(i))),
            DType::I64 | DType::U64 => i64::from_le_bytes(self.word(i)),
            DType::F16 | DType::BF16 => i64::from(u16::from_le_bytes(self.word(i))),
            DType::I8 => i64::from(self.bytes[i].cast_signed()),
            _ => i64::from(self.bytes[i]),
        }
    }

    fn put<const N: usize>(&mut self, i: usize, word: [u8; N]) {
        self.bytes[i * N..][..N].copy_from_slice(&word);
    }

    /// Sets a float (rounded to the dtype) or, for integer dtypes, an integer.
    pub(crate) fn set(&mut self, i: usize, value: f64) {
        match self.dtype {
            DType::F32 => self.put(i, (value as f32).to_le_bytes()),
            DType::F16 => self.put(i, f16::from_f64(value).to_le_bytes()),
            DType::BF16 => self.put(i, bf16::from_f64(value).to_le_bytes()),
            DType::F8E4M3 => self.bytes[i] = e4m3_from_f64(value),
            _ => self.set_int(i, value as i64),
        }
    }

    /// Sets an integer, keeping the low bits.
    pub(crate) fn set_int(&mut self, i: usize, value: i64) {
        let bytes = value.to_le_bytes();
        let size = size_of(self.dtype);
        self.bytes[i * size..][..size].copy_from_slice(&bytes[..size]);
    }

    /// Rows along the last dim.
    pub(crate) fn rows(&self) -> usize {
        self.len() / self.width().max(1)
    }

    /// Elements of a row (along the last dim).
    pub(crate) fn row(&self, row: usize) -> Vec<f64> {
        (row * self.width()..(row + 1) * self.width()).map(|i| self.get(i)).collect()
    }

    /// Entries `start..start + len` of the first dim.
    pub(crate) fn narrow(&self, start: usize, len: usize) -> Self {
        let step = self.dims[1..].iter().product::<usize>() * size_of(self.dtype);
        let mut dims = self.dims.clone();
        dims[0] = len;
        let bytes = self.bytes[start * step..(start + len) * step].to_vec();
        Self { dtype: self.dtype, dims, bytes }
    }

    /// Some entries of the last dim.
    pub(crate) fn columns(&self, columns: &[usize]) -> Self {
        let (size, width) = (size_of(self.dtype), self.width());
        let mut dims = self.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = columns.len();
        }
        let rows = self.len().checked_div(width).unwrap_or(0);
        let element = |row: usize, &c: &usize| {
            let at = (row * width + c) * size;
            self.bytes[at..at + size].iter().copied()
        };
        let bytes =
            (0..rows).flat_map(|row| columns.iter().flat_map(move |c| element(row, c))).collect();
        Self { dtype: self.dtype, dims, bytes }
    }

    /// Index of an element, axis by axis.
    pub(crate) fn index(&self, mut i: usize) -> Vec<usize> {
        let mut index = vec![0; self.dims.len()];
        for (at, &d) in index.iter_mut().zip(&self.dims).rev() {
            (*at, i) = (i % d.max(1), i / d.max(1));
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_rows_and_columns() {
        let a = Array::floats(DType::BF16, &[2, 3], |i| i as f64);
        assert_eq!(a.row(1), [3.0, 4.0, 5.0]);
        assert_eq!(a.narrow(1, 1).row(0), [3.0, 4.0, 5.0]);
        let c = a.columns(&[2, 0]);
        assert_eq!(
            (c.dims(), c.row(0), c.row(1)),
            ([2, 2].as_slice(), vec![2.0, 0.0], vec![5.0, 3.0])
        );
        assert_eq!(a.index(4), [1, 1]);
        let ids = Array::ints(DType::I32, &[2], &[-1, 7]);
        assert_eq!((ids.int(0), ids.get(1)), (-1, 7.0));
        assert!(Array::poison(DType::F16, &[1]).get(0).is_nan());
        assert_eq!(Array::poison(DType::I64, &[1]).int(0), -1);
    }
}
