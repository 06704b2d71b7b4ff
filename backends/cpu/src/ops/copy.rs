//! COPY.

use halyard_sdk::{
    DType, Error, Result, TensorView,
    abi::{fp8, ops::attrs::Copy},
};

use super::args::Args;
use super::{Launch, Op, Prepared, for_rows, same};
use crate::elem::Elem;

const FLOATS: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
const INTS: [DType; 4] = [DType::I8, DType::U8, DType::I32, DType::U32];
const WIDE: [DType; 2] = [DType::I64, DType::U64];

/// Elements are converted through `f64`, which holds all of these but 64-bit integers: those copy to
/// their own type only.
pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Copy {} = op.attrs()?;
    let (x, y) = (op.desc.tensors[0].dtype, op.desc.tensors[1].dtype);
    let known = |t: DType| FLOATS.contains(&t) || INTS.contains(&t) || WIDE.contains(&t);
    if !known(x) || !known(y) {
        return Err(Error::unsupported(format!(
            "copy from {x} to {y}; supported: f32, f16, bf16, f8e4m3, f8e5m2, i8, u8, i32, u32, i64, u64"
        )));
    }
    if WIDE.contains(&x) && x != y {
        return Err(Error::unsupported(format!("copy from {x} to {y}; {x} copies to {x} only")));
    }
    Ok(Prepared::native(Convert))
}

/// `y = x`, converted.
struct Convert;

impl Launch for Convert {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (Some(x), Some(y)) = (args.optional(0), args.optional(1)) else {
            return Err(Error::invalid("a tensor is missing"));
        };
        let (x, y) = (Strided::new(x)?, Strided::new(y)?);
        for axis in 0..4 {
            same("a dim", x.dims[axis], y.dims[axis])?;
        }
        let [d0, d1, d2, cols] = y.dims;
        for_rows(&args.context.pool, d0 * d1 * d2, cols, |rows| {
            for row in rows {
                // SAFETY: the host has checked the views; rows and columns are inside them.
                unsafe { x.copy_row(&y, row) };
            }
        });
        Ok(())
    }
}

/// A tensor of up to four dims with any strides.
struct Strided {
    base: *mut u8,
    dtype: DType,
    size: usize,
    /// Padded with 1 in front.
    dims: [usize; 4],
    /// In bytes.
    strides: [usize; 4],
}

// SAFETY: an address with a shape; tasks write disjoint rows.
unsafe impl Sync for Strided {}

impl Strided {
    fn new(v: &TensorView) -> Result<Self> {
        let rank = usize::from(v.rank);
        if !(1..=4).contains(&rank) {
            return Err(Error::invalid(format!("a tensor of rank {rank}, expected 1 to 4")));
        }
        let size = v.dtype.bits().map_or(1, |b| b as usize / 8);
        let (mut dims, mut strides) = ([1; 4], [0; 4]);
        for axis in 0..rank {
            let to = 4 - rank + axis;
            dims[to] = usize::try_from(v.dims[axis])
                .map_err(|_| Error::invalid(format!("dim {axis} is {}", v.dims[axis])))?;
            strides[to] = v.strides[axis].max(0).unsigned_abs() as usize * size;
        }
        let base = (v.data + v.byte_offset) as *mut u8;
        Ok(Self { base, dtype: v.dtype, size, dims, strides })
    }

    fn row(&self, row: usize) -> *mut u8 {
        let [_, d1, d2, _] = self.dims;
        let [s0, s1, s2, _] = self.strides;
        self.base.wrapping_add(row / (d1 * d2) * s0 + row / d2 % d1 * s1 + row % d2 * s2)
    }

    /// # Safety
    /// Both views span the row; nobody else writes it.
    unsafe fn copy_row(&self, to: &Self, row: usize) {
        let (mut from, mut at) = (self.row(row), to.row(row));
        let cols = self.dims[3];
        let packed = |s: &Self| s.strides[3] == s.size || cols <= 1;
        // SAFETY: the caller's promise; one element at a time, or the row's bytes.
        unsafe {
            if self.dtype == to.dtype && packed(self) && packed(to) {
                std::ptr::copy(from, at, cols * self.size);
                return;
            }
            for _ in 0..cols {
                if self.dtype == to.dtype {
                    std::ptr::copy(from, at, self.size);
                } else {
                    write(to.dtype, at, read(self.dtype, from));
                }
                from = from.wrapping_add(self.strides[3]);
                at = at.wrapping_add(to.strides[3]);
            }
        }
    }
}

/// # Safety
/// `p` is readable for an element.
unsafe fn read(dtype: DType, p: *const u8) -> f64 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::I8 => f64::from(p.cast::<i8>().read()),
            DType::U8 => f64::from(p.read()),
            DType::I32 => f64::from(p.cast::<i32>().read_unaligned()),
            DType::U32 => f64::from(p.cast::<u32>().read_unaligned()),
            DType::F8E4M3 => f64::from(fp8::e4m3_to_f32(p.read())),
            DType::F8E5M2 => f64::from(fp8::e5m2_to_f32(p.read())),
            DType::F16 => f64::from(Elem::F16.read(p)),
            DType::BF16 => f64::from(Elem::Bf16.read(p)),
            _ => f64::from(Elem::F32.read(p)),
        }
    }
}

/// Rounds half to even; what has 8 bits and integers saturate; NaN becomes 0 in an integer.
///
/// # Safety
/// `p` is writable for an element.
unsafe fn write(dtype: DType, p: *mut u8, x: f64) {
    let whole = x.round_ties_even();
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::I8 => p.cast::<i8>().write(whole as i8),
            DType::U8 => p.write(whole as u8),
            DType::I32 => p.cast::<i32>().write_unaligned(whole as i32),
            DType::U32 => p.cast::<u32>().write_unaligned(whole as u32),
            DType::I64 => p.cast::<i64>().write_unaligned(whole as i64),
            DType::U64 => p.cast::<u64>().write_unaligned(whole as u64),
            DType::F8E4M3 => p.write(fp8::e4m3_from_f64(x)),
            DType::F8E5M2 => p.write(fp8::e5m2_from_f64(x)),
            DType::F16 => Elem::F16.write(p, to_odd(x)),
            DType::BF16 => Elem::Bf16.write(p, to_odd(x)),
            _ => p.cast::<f32>().write_unaligned(x as f32),
        }
    }
}

/// `x` as f32, an inexact result with its last bit set: a further rounding to 16 bits then gives what a
/// single one would have.
#[expect(clippy::float_cmp, reason = "whether the conversion was exact")]
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || x.is_nan() || near.is_infinite() {
        return near;
    }
    let toward_zero = if f64::from(near.abs()) > x.abs() { 1 } else { 0 };
    f32::from_bits((near.to_bits() - toward_zero) | 1)
}
