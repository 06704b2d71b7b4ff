//! The second phase's reach into device memory.

use crate::dtype::DType;
use crate::refusal::code;
use crate::view::{ADDRESS_BYTES, View, contiguous_strides};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::fmt;

/// A device's memory as a running operator sees it.
pub trait Memory {
    /// Bytes from an address on.
    ///
    /// # Errors
    /// They are not all inside of one allocation of the device, or not all were written.
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Fault>;

    /// # Errors
    /// The bytes are not all inside of one allocation of the device.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Copies bytes from an address to another; those that nothing wrote may move, and stay unwritten.
    ///
    /// # Errors
    /// The bytes are not all inside of one allocation of the device.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Fault>;
}

/// What ends an operator while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The runtime's code, such as 507015.
    pub code: i32,
    /// Operator, argument and what is wrong.
    pub message: String,
}

impl Fault {
    /// An exception on a core.
    pub fn exception(message: impl Into<String>) -> Self {
        Self { code: code::AICORE_EXCEPTION, message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Fault {}

/// Bytes that are decoded at a time, so that they stay in the cache.
const CHUNK: usize = 1 << 15;

/// Elements that room is made for before any was read: a tensor may claim more than there is.
const MOST_AHEAD: usize = 1 << 22;

/// One run of a plan.
pub(crate) struct Launch<'a> {
    pub(crate) memory: &'a dyn Memory,
    /// The address of each of the call's tensors.
    pub(crate) addresses: &'a [u64],
}

/// A number that elements are computed in.
pub(crate) trait Number: Copy + Default {
    fn decode(dtype: DType, bytes: &[u8]) -> Vec<Self>;
    fn encode(values: &[Self], dtype: DType) -> Vec<u8>;
}

fn convert<const N: usize, T>(bytes: &[u8], each: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| each(*chunk)).collect()
}

fn flatten<const N: usize, T: Copy>(values: &[T], each: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * N];
    for (chunk, &value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *chunk = each(value);
    }
    bytes
}

/// Two's complement of four bits, the first element in the low half.
fn nibbles(bytes: &[u8]) -> Vec<i64> {
    let signed = |half: u8| i64::from(half as i8) - if half > 7 { 16 } else { 0 };
    bytes.iter().flat_map(|b| [signed(b & 15), signed(b >> 4)]).collect()
}

fn decode_ints(dtype: DType, bytes: &[u8]) -> Vec<i64> {
    match dtype {
        DType::I8 => convert(bytes, |b| i64::from(i8::from_le_bytes(b))),
        DType::U8 => convert(bytes, |b| i64::from(u8::from_le_bytes(b))),
        DType::Bool => convert(bytes, |b: [u8; 1]| i64::from(b[0] != 0)),
        DType::I16 => convert(bytes, |b| i64::from(i16::from_le_bytes(b))),
        DType::I32 => convert(bytes, |b| i64::from(i32::from_le_bytes(b))),
        DType::U32 => convert(bytes, |b| i64::from(u32::from_le_bytes(b))),
        DType::I64 | DType::U64 => convert(bytes, i64::from_le_bytes),
        DType::I4 => nibbles(bytes),
        DType::F32 | DType::F16 | DType::BF16 => {
            decode_floats(dtype, bytes).into_iter().map(|v| v as i64).collect()
        }
    }
}

fn decode_floats(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => convert(bytes, f32::from_le_bytes),
        DType::F16 => {
            let halves = convert(bytes, f16::from_le_bytes);
            let mut out = vec![0.0; halves.len()];
            halves.convert_to_f32_slice(&mut out);
            out
        }
        DType::BF16 => convert(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        #[expect(clippy::cast_precision_loss, reason = "what a cast to f32 is")]
        _ => decode_ints(dtype, bytes).into_iter().map(|v| v as f32).collect(),
    }
}

impl Number for f32 {
    fn decode(dtype: DType, bytes: &[u8]) -> Vec<Self> {
        decode_floats(dtype, bytes)
    }

    fn encode(values: &[Self], dtype: DType) -> Vec<u8> {
        match dtype {
            DType::F32 => flatten(values, f32::to_le_bytes),
            DType::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                flatten(&halves, f16::to_le_bytes)
            }
            DType::BF16 => flatten(values, |v| bf16::from_f32(v).to_le_bytes()),
            DType::Bool => flatten(values, |v| [u8::from(v != 0.0)]),
            _ => {
                let whole: Vec<i64> = values.iter().map(|&v| v as i64).collect();
                i64::encode(&whole, dtype)
            }
        }
    }
}

impl Number for i64 {
    fn decode(dtype: DType, bytes: &[u8]) -> Vec<Self> {
        decode_ints(dtype, bytes)
    }

    fn encode(values: &[Self], dtype: DType) -> Vec<u8> {
        match dtype {
            DType::I8 | DType::U8 => flatten(values, |v| [v as u8]),
            DType::Bool => flatten(values, |v| [u8::from(v != 0)]),
            DType::I16 => flatten(values, |v| (v as i16).to_le_bytes()),
            DType::I32 | DType::U32 => flatten(values, |v| (v as i32).to_le_bytes()),
            DType::I64 | DType::U64 => flatten(values, i64::to_le_bytes),
            DType::I4 => {
                let pair =
                    |p: &[i64]| (p[0] & 15) as u8 | (p.get(1).map_or(0, |v| v & 15) as u8) << 4;
                values.chunks(2).map(pair).collect()
            }
            #[expect(clippy::cast_precision_loss, reason = "what a cast to f32 is")]
            DType::F32 | DType::F16 | DType::BF16 => {
                let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                f32::encode(&floats, dtype)
            }
        }
    }
}

impl Number for i32 {
    fn decode(dtype: DType, bytes: &[u8]) -> Vec<Self> {
        match dtype {
            DType::I8 => convert(bytes, |b| i32::from(i8::from_le_bytes(b))),
            DType::I32 => convert(bytes, i32::from_le_bytes),
            _ => decode_ints(dtype, bytes).into_iter().map(|v| v as i32).collect(),
        }
    }

    fn encode(values: &[Self], dtype: DType) -> Vec<u8> {
        let wide: Vec<i64> = values.iter().map(|&v| i64::from(v)).collect();
        i64::encode(&wide, dtype)
    }
}

/// The axes of a view that move in memory, from the widest stride on, and the dims with strides they merge to.
struct MemoryOrder {
    axes: Vec<usize>,
    merged: Vec<(usize, usize)>,
}

impl MemoryOrder {
    fn of(view: &View) -> Self {
        let mut axes: Vec<usize> =
            (0..view.rank()).filter(|&a| view.dims[a] > 1 && view.strides[a] > 0).collect();
        axes.sort_by_key(|&a| std::cmp::Reverse(view.strides[a]));
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for &axis in &axes {
            let (dim, stride) = (view.dims[axis], view.strides[axis]);
            match merged.last_mut() {
                Some(outer) if outer.1 == dim * stride => *outer = (outer.0 * dim, stride),
                _ => merged.push((dim, stride)),
            }
        }
        Self { axes, merged }
    }

    /// Elements that lie side by side.
    fn run(&self) -> usize {
        self.merged.last().filter(|m| m.1 == 1).map_or(1, |m| m.0)
    }

    /// The offset of each run, in memory's order.
    fn runs(&self, mut each: impl FnMut(usize) -> Result<(), Fault>) -> Result<(), Fault> {
        let outer = &self.merged[..self.merged.len() - usize::from(self.run() > 1)];
        let mut index = vec![0; outer.len()];
        loop {
            each(index.iter().zip(outer).map(|(i, m)| i * m.1).sum())?;
            let Some(axis) = (0..outer.len()).rev().find(|&a| index[a] + 1 < outer[a].0) else {
                return Ok(());
            };
            index[axis] += 1;
            index[axis + 1..].fill(0);
        }
    }

    /// Strides, for each axis of the view, into the elements in memory's order.
    fn local_strides(&self, view: &View) -> Vec<usize> {
        let dims: Vec<usize> = self.axes.iter().map(|&a| view.dims[a]).collect();
        let mut strides = vec![0; view.rank()];
        for (&axis, stride) in self.axes.iter().zip(contiguous_strides(&dims)) {
            strides[axis] = stride;
        }
        strides
    }

    fn is_row_major(&self, view: &View) -> bool {
        self.axes.is_sorted()
            && self.axes.iter().map(|&a| view.dims[a]).product::<usize>() == view.len()
    }
}

/// Elements of strided dims, row-major.
fn gather<T: Copy + Default>(from: &[T], dims: &[usize], strides: &[usize]) -> Vec<T> {
    if let ([rows, columns], [1, stride]) = (dims, strides) {
        return transposed(from, *rows, *columns, *stride);
    }
    let mut out = Vec::with_capacity(dims.iter().product());
    each_row(dims, strides, |at, len, stride| {
        out.extend((0..len).map(|i| from[at + i * stride]));
    });
    out
}

/// The rows of a matrix that is stored by columns, in tiles that stay in the cache.
fn transposed<T: Copy + Default>(from: &[T], rows: usize, columns: usize, stride: usize) -> Vec<T> {
    const TILE: usize = 16;
    let mut out = vec![T::default(); rows * columns];
    for (top, left) in
        (0..rows).step_by(TILE).flat_map(|r| (0..columns).step_by(TILE).map(move |c| (r, c)))
    {
        for column in left..(left + TILE).min(columns) {
            for row in top..(top + TILE).min(rows) {
                out[row * columns + column] = from[column * stride + row];
            }
        }
    }
    out
}

/// The first offset, length and stride of each row of strided dims.
fn each_row(dims: &[usize], strides: &[usize], mut each: impl FnMut(usize, usize, usize)) {
    let Some((&len, outer)) = dims.split_last() else {
        return each(0, 1, 1);
    };
    let mut index = vec![0; outer.len()];
    loop {
        let at = index.iter().zip(strides).map(|(i, s)| i * s).sum();
        each(at, len, strides[outer.len()]);
        let Some(axis) = (0..outer.len()).rev().find(|&a| index[a] + 1 < outer[a]) else {
            return;
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

impl Launch<'_> {
    fn base(&self, view: &View) -> Result<u64, Fault> {
        let address = self.addresses.get(view.slot).copied().unwrap_or(0);
        let name = &view.name;
        if !address.is_multiple_of(ADDRESS_BYTES) {
            let text =
                format!("{name}: address {address:#x}, expected a multiple of {ADDRESS_BYTES}");
            return Err(Fault::exception(text));
        }
        Ok(address)
    }

    /// The address of an element.
    fn at(&self, view: &View, element: usize) -> Result<u64, Fault> {
        let bits = ((view.offset + element) * view.dtype.bits()) as u64;
        if !bits.is_multiple_of(8) {
            let text =
                format!("{}: INT4 element {element} starts in the middle of a byte", view.name);
            return Err(Fault::exception(text));
        }
        Ok(self.base(view)? + bits / 8)
    }

    /// Moves elements as they are, if both views are rows of whole bytes of one type; whether it did.
    pub(crate) fn moved(&self, from: &View, to: &View) -> Result<bool, Fault> {
        let plain = |view: &View| view.is_contiguous() && !view.nz && view.dtype.bits() >= 8;
        if from.dtype != to.dtype || from.len() == 0 || !plain(from) || !plain(to) {
            return Ok(false);
        }
        let bytes = Self::bytes_of(from.len(), from);
        let copied = self.memory.copy(self.at(to, 0)?, self.at(from, 0)?, bytes);
        copied.map_err(|fault| named(from, &fault)).map(|()| true)
    }

    fn bytes_of(elements: usize, view: &View) -> usize {
        (elements * view.dtype.bits()).div_ceil(8)
    }

    /// The elements of a view, row-major.
    pub(crate) fn read<T: Number>(&self, view: &View) -> Result<Vec<T>, Fault> {
        if view.len() == 0 {
            return Ok(Vec::new());
        }
        let order = MemoryOrder::of(view);
        let run = Self::bytes_of(order.run(), view);
        let (mut values, mut bytes) = (Vec::with_capacity(view.len().min(MOST_AHEAD)), Vec::new());
        order.runs(|offset| {
            let address = self.at(view, offset)?;
            if bytes.len() + run > CHUNK {
                values.extend(T::decode(view.dtype, &bytes));
                bytes.clear();
            }
            for start in (0..run).step_by(CHUNK) {
                let (at, part) = (bytes.len(), CHUNK.min(run - start));
                bytes.resize(at + part, 0);
                let read = self.memory.read(address + start as u64, &mut bytes[at..]);
                read.map_err(|fault| named(view, &fault))?;
                if bytes.len() >= CHUNK {
                    values.extend(T::decode(view.dtype, &bytes));
                    bytes.clear();
                }
            }
            Ok(())
        })?;
        values.extend(T::decode(view.dtype, &bytes));
        if order.is_row_major(view) {
            return Ok(values);
        }
        Ok(gather(&values, &view.dims, &order.local_strides(view)))
    }

    /// Writes the elements of a view from row-major ones.
    pub(crate) fn write<T: Number>(&self, view: &View, values: &[T]) -> Result<(), Fault> {
        if view.len() == 0 {
            return Ok(());
        }
        let order = MemoryOrder::of(view);
        let bytes = if order.is_row_major(view) {
            T::encode(values, view.dtype)
        } else {
            let mut local = vec![T::default(); values.len()];
            let mut rows = values.iter();
            each_row(&view.dims, &order.local_strides(view), |at, len, stride| {
                (0..len).zip(&mut rows).for_each(|(i, &value)| local[at + i * stride] = value);
            });
            T::encode(&local, view.dtype)
        };
        let (step, mut done) = (Self::bytes_of(order.run(), view), 0);
        order.runs(|offset| {
            let address = self.at(view, offset)?;
            done += step;
            let part = &bytes[done - step..done];
            self.memory.write(address, part).map_err(|fault| named(view, &fault))
        })
    }
}

fn named(view: &View, fault: &Fault) -> Fault {
    Fault { code: fault.code, message: format!("{}: {}", view.name, fault.message) }
}
