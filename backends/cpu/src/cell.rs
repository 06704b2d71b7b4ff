//! What a paged cache holds: floats, or 8-bit numbers that a scale goes with.

use halyard_sdk::{
    DType, Error, Result,
    abi::fp8::{e4m3_from_f64, e4m3_to_f32},
};

use crate::elem::Elem;
use crate::simd::Simd;

/// The type of a cache's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Float(Elem),
    E4m3,
    I8,
}

impl Cell {
    /// The cell type of a dtype.
    ///
    /// # Errors
    /// `UNSUPPORTED`, naming the dtype and those there are.
    pub(crate) fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F8E4M3 => Ok(Self::E4m3),
            DType::I8 => Ok(Self::I8),
            _ => Elem::of(dtype).map(Self::Float).map_err(|_| {
                Error::unsupported(format!("{dtype}; supported: f32, f16, bf16, f8e4m3, i8"))
            }),
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Float(elem) => elem.bytes(),
            Self::E4m3 | Self::I8 => 1,
        }
    }

    /// The float type, if it is one: such a cache has no scales.
    pub(crate) fn float(self) -> Option<Elem> {
        match self {
            Self::Float(elem) => Some(elem),
            Self::E4m3 | Self::I8 => None,
        }
    }

    /// One element.
    ///
    /// # Safety
    /// `p` is readable for [`Self::bytes`].
    #[inline(always)]
    pub(crate) unsafe fn read(self, p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Float(elem) => elem.read(p),
                Self::E4m3 => e4m3_to_f32(p.read()),
                Self::I8 => f32::from(p.cast::<i8>().read()),
            }
        }
    }

    /// Sixteen neighbouring elements.
    ///
    /// # Safety
    /// `p` is readable for sixteen times [`Self::bytes`].
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(self, s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Float(Elem::F32) => s.load(p.cast()),
                Self::Float(Elem::F16) => s.load_f16(p.cast()),
                Self::Float(Elem::Bf16) => s.load_bf16(p.cast()),
                Self::E4m3 => widen_e4m3(s, s.load_u8(p)),
                Self::I8 => s.to_f(s.load_i8(p.cast())),
            }
        }
    }

    /// Writes one element; an 8-bit one holds `x / scale`, rounded to nearest even and saturated.
    ///
    /// # Safety
    /// `p` is writable for [`Self::bytes`].
    #[inline(always)]
    pub(crate) unsafe fn write(self, p: *mut u8, x: f32, scale: f32) {
        // The quotient in f64, so that it is not rounded onto a tie first.
        let quotient = || f64::from(x) / f64::from(scale);
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Float(elem) => elem.write(p, x),
                Self::E4m3 => p.write(e4m3_from_f64(quotient())),
                Self::I8 => p.cast::<i8>().write(quotient().round_ties_even() as i8),
            }
        }
    }
}

/// Sixteen f8e4m3 as floats, without passing through denormal ones, which some processors are slow on.
#[inline(always)]
fn widen_e4m3<S: Simd>(s: S, code: S::I) -> S::F {
    // Exponent and fraction moved to a float's place, the bias made up for.
    let size = s.ishl::<20>(s.iand(code, s.isplat(0x7f)));
    let normal = s.from_bits(s.iadd(size, s.isplat(120 << 23)));
    // With an exponent of 0 that gave 2^-7 (1 + f) where 2^-6 f is meant.
    let smallest = 2f32.powi(-6);
    let small = s.sub(s.add(normal, normal), s.splat(smallest));
    let finite = s.select_lt(normal, s.splat(smallest), small, normal);
    let value = s.select_lt(normal, s.splat(464.0), finite, s.splat(f32::NAN));
    let sign = s.ishl::<24>(s.iand(code, s.isplat(0x80)));
    s.from_bits(s.ior(s.bits(value), sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Op};
    use crate::simd::LANES;

    struct Widen(Cell, [u8; LANES]);
    impl Op for Widen {
        type Out = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            // SAFETY: sixteen bytes.
            s.to_array(unsafe { self.0.load(s, self.1.as_ptr()) })
        }
    }

    #[test]
    fn vectors_of_codes_are_what_the_codes_are() {
        for isa in Isa::all_available() {
            for first in (0..=255u8).step_by(LANES) {
                let codes: [u8; LANES] = std::array::from_fn(|i| first + i as u8);
                for cell in [Cell::E4m3, Cell::I8] {
                    for (code, got) in codes.iter().zip(isa.dispatch(Widen(cell, codes))) {
                        // SAFETY: a byte.
                        let want = unsafe { cell.read(code) };
                        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                        assert!(same, "{isa:?} {cell:?} {code:#x}: {got}, want {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_the_nearest_quotient() {
        let put = |cell: Cell, x: f32, scale: f32| {
            let mut byte = 0;
            // SAFETY: a byte.
            unsafe {
                cell.write(&raw mut byte, x, scale);
                cell.read(&raw const byte)
            }
        };
        assert_eq!(put(Cell::I8, 2.5, 1.0), 2.0);
        assert_eq!(put(Cell::I8, 7.0, 2.0), 4.0);
        assert_eq!(put(Cell::I8, -1e9, 2.0), -128.0);
        assert_eq!(put(Cell::I8, f32::NAN, 2.0), 0.0);
        assert_eq!(put(Cell::E4m3, 1e9, 2.0), 448.0);
        assert_eq!(put(Cell::E4m3, 2.2, 2.0), 1.125);
        assert!(put(Cell::E4m3, f32::NAN, 2.0).is_nan());
    }
}
