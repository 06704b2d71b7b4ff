//! Element access to a launch's tensors, checked at every index: for code that wants clarity before speed.

use half::{bf16, f16};
use halyard_abi::{DType, TensorView, fp8, types::FLAG_OPAQUE};

use crate::{Error, Result};

/// A tensor in host memory. Elements widen to `f64` when read and are rounded once, to nearest even, when written.
#[derive(Clone, Copy, Debug)]
pub struct HostTensor {
    start: *mut u8,
    view: TensorView,
}

impl HostTensor {
    /// Opens a view. An opaque view is taken as row-major.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an absent view, negative dims or strides, or a dtype whose elements are no whole bytes.
    ///
    /// # Safety
    /// `view` is host memory that spans its shape's bytes and lives, unshared with writers elsewhere, while this is used: what
    /// a host promises of every view it passes to `launch`.
    pub unsafe fn new(view: &TensorView) -> Result<Self> {
        let mut view = *view;
        if view.flags & FLAG_OPAQUE != 0 {
            view = TensorView::contiguous(view.data, view.byte_offset, &view.spec());
        }
        let readable = view.dtype.bits().is_some_and(|b| b >= 8);
        if !readable || view.extent_bytes().is_none() {
            return Err(Error::invalid(format!(
                "a tensor of {} with dims {:?} and strides {:?}",
                view.dtype,
                view.dims(),
                view.strides()
            )));
        }
        Ok(Self { start: (view.data + view.byte_offset) as *mut u8, view })
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }

    /// Extent of an axis.
    ///
    /// # Panics
    /// If there is no such axis.
    #[must_use]
    pub fn dim(&self, axis: usize) -> usize {
        usize::try_from(self.view.dims()[axis]).expect("checked in `new`")
    }

    /// Dimensions in use.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.view.dims().len()
    }

    /// Where an element begins, in bytes from the first.
    ///
    /// # Panics
    /// If `index` has another rank or leaves the shape: a bug of the caller, caught by the SDK's guard.
    fn at(&self, index: &[usize]) -> usize {
        let dims = self.view.dims();
        assert_eq!(index.len(), dims.len(), "an index of another rank");
        let mut element = 0;
        for ((&i, &d), &s) in index.iter().zip(dims).zip(self.view.strides()) {
            assert!((i as u64) < d.cast_unsigned(), "index {index:?} leaves dims {dims:?}");
            element += i as u64 * s.cast_unsigned();
        }
        element as usize * self.element_bytes()
    }

    /// Where the elements of a row begin, which the leading dims have at `lead`.
    ///
    /// # Panics
    /// If `lead` has not one number fewer than there are dims, or leaves the shape: a bug of the caller, caught by the SDK's guard.
    fn along(&self, lead: &[usize]) -> impl Iterator<Item = usize> + use<> {
        let last = self.rank().checked_sub(1).expect("a tensor of one dim or more");
        let width = self.dim(last);
        let step = self.view.strides()[last].cast_unsigned() as usize * self.element_bytes();
        let start = if width == 0 { 0 } else { self.at(&[lead, &[0]].concat()) };
        (0..width).map(move |i| start + i * step)
    }

    fn element_bytes(&self) -> usize {
        self.view.dtype.bits().unwrap_or(0) as usize / 8
    }

    fn pointer<T>(&self, at: usize) -> *mut T {
        // SAFETY: `at` is of `at` or `along`, so inside the shape, whose bytes the view spans (`new`).
        unsafe { self.start.add(at) }.cast()
    }

    fn read<T: Copy>(&self, at: usize) -> T {
        // SAFETY: an element begins there; `T` is the dtype's type, any bits of which are valid.
        unsafe { self.pointer::<T>(at).read_unaligned() }
    }

    fn write<T>(&self, at: usize, value: T) {
        // SAFETY: as for `read`.
        unsafe { self.pointer::<T>(at).write_unaligned(value) }
    }

    /// The elements of a row, along the last dim, as [`HostTensor::get`] gives them.
    ///
    /// # Panics
    /// If `lead` has not one number fewer than there are dims, or leaves the shape: a bug of the caller, caught by the SDK's guard.
    pub fn row(&self, lead: &[usize]) -> impl Iterator<Item = f64> + use<> {
        let tensor = *self;
        self.along(lead).map(move |at| tensor.load(at))
    }

    /// Writes a row as [`HostTensor::set`] does, as far as there are values.
    ///
    /// # Panics
    /// As [`HostTensor::row`]; and if there are more values than elements.
    pub fn set_row(&self, lead: &[usize], values: impl IntoIterator<Item = f64>) {
        let mut places = self.along(lead);
        for value in values {
            self.store(places.next().expect("as many values as a row has"), value);
        }
    }

    /// A float element, widened. Integer dtypes convert.
    #[must_use]
    pub fn get(&self, index: &[usize]) -> f64 {
        self.load(self.at(index))
    }

    fn load(&self, at: usize) -> f64 {
        match self.view.dtype {
            #[expect(clippy::cast_precision_loss, reason = "conversion as the op says")]
            DType::U64 => self.read::<u64>(at) as f64,
            DType::F32 => f64::from(self.read::<f32>(at)),
            DType::F16 => f64::from(self.read::<f16>(at)),
            DType::BF16 => f64::from(self.read::<bf16>(at)),
            DType::F8E4M3 => f64::from(fp8::e4m3_to_f32(self.read(at))),
            DType::F8E5M2 => f64::from(fp8::e5m2_to_f32(self.read(at))),
            #[expect(clippy::cast_precision_loss, reason = "conversion as the op says")]
            _ => self.load_int(at) as f64,
        }
    }

    /// An integer element.
    ///
    /// # Panics
    /// If the dtype is a float: a bug of the caller.
    #[must_use]
    pub fn get_int(&self, index: &[usize]) -> i64 {
        self.load_int(self.at(index))
    }

    fn load_int(&self, at: usize) -> i64 {
        match self.view.dtype {
            DType::I8 => i64::from(self.read::<i8>(at)),
            DType::U8 => i64::from(self.read::<u8>(at)),
            DType::I32 => i64::from(self.read::<i32>(at)),
            DType::I64 => self.read(at),
            DType::U32 => i64::from(self.read::<u32>(at)),
            DType::U64 => self.read::<u64>(at).cast_signed(),
            other => panic!("an integer from a tensor of {other}"),
        }
    }

    /// Writes an element: floats are rounded once to nearest even (8-bit ones saturate), integers half to even and saturated, NaN
    /// to 0.
    ///
    /// # Panics
    /// If `index` leaves the shape: a bug of the caller, caught by the SDK's guard.
    pub fn set(&self, index: &[usize], value: f64) {
        self.store(self.at(index), value);
    }

    #[expect(clippy::cast_sign_loss, reason = "saturating, as the op says")]
    fn store(&self, at: usize, value: f64) {
        match self.view.dtype {
            DType::F32 => self.write(at, value as f32),
            DType::F16 => self.write(at, f16::from_f32(to_odd_f32(value))),
            DType::BF16 => self.write(at, bf16::from_f32(to_odd_f32(value))),
            DType::F8E4M3 => self.write(at, fp8::e4m3_from_f64(value)),
            DType::F8E5M2 => self.write(at, fp8::e5m2_from_f64(value)),
            DType::I8 => self.write(at, value.round_ties_even() as i8),
            DType::U8 => self.write(at, value.round_ties_even() as u8),
            DType::I32 => self.write(at, value.round_ties_even() as i32),
            DType::I64 => self.write(at, value.round_ties_even() as i64),
            DType::U32 => self.write(at, value.round_ties_even() as u32),
            DType::U64 => self.write(at, value.round_ties_even() as u64),
            other => panic!("a number into a tensor of {other}"),
        }
    }

    /// Copies an element to the same place of another tensor: between equal dtypes bit by bit, between integers exactly, as far as
    /// they fit, else as [`HostTensor::get`] and [`HostTensor::set`] do.
    ///
    /// # Panics
    /// If `index` leaves either shape: a bug of the caller, caught by the SDK's guard.
    #[expect(clippy::cast_sign_loss, reason = "clamped before")]
    pub fn copy_to(&self, index: &[usize], to: &Self) {
        let (from, place) = (self.at(index), to.at(index));
        if self.view.dtype == to.view.dtype {
            return match self.view.dtype.bits() {
                Some(8) => to.write(place, self.read::<u8>(from)),
                Some(16) => to.write(place, self.read::<u16>(from)),
                Some(32) => to.write(place, self.read::<u32>(from)),
                _ => to.write(place, self.read::<u64>(from)),
            };
        }
        let value = match self.view.dtype {
            DType::I8 | DType::U8 | DType::I32 | DType::I64 | DType::U32 => {
                i128::from(self.load_int(from))
            }
            DType::U64 => i128::from(self.load_int(from).cast_unsigned()),
            _ => return to.store(place, self.load(from)),
        };
        let bounded = |low: i128, high: i128| value.clamp(low, high);
        match to.view.dtype {
            DType::I8 => to.write(place, bounded(i8::MIN.into(), i8::MAX.into()) as i8),
            DType::U8 => to.write(place, bounded(0, u8::MAX.into()) as u8),
            DType::I32 => to.write(place, bounded(i32::MIN.into(), i32::MAX.into()) as i32),
            DType::I64 => to.write(place, bounded(i64::MIN.into(), i64::MAX.into()) as i64),
            DType::U32 => to.write(place, bounded(0, u32::MAX.into()) as u32),
            DType::U64 => to.write(place, bounded(0, u64::MAX.into()) as u64),
            _ => to.store(place, self.load(from)),
        }
    }

    /// What [`HostTensor::set`] would store, widened again.
    ///
    /// # Panics
    /// If the dtype is an integer: a bug of the caller.
    #[must_use]
    pub fn rounded(&self, value: f64) -> f64 {
        match self.view.dtype {
            DType::F32 => f64::from(value as f32),
            DType::F16 => f64::from(f16::from_f32(to_odd_f32(value))),
            DType::BF16 => f64::from(bf16::from_f32(to_odd_f32(value))),
            DType::F8E4M3 => f64::from(fp8::e4m3_to_f32(fp8::e4m3_from_f64(value))),
            DType::F8E5M2 => f64::from(fp8::e5m2_to_f32(fp8::e5m2_from_f64(value))),
            other => panic!("rounding to {other}"),
        }
    }
}

/// Rounds to odd: of the two neighbouring f32 values the one with an odd last bit, if `value` lies between. Rounding that to a
/// shorter format gives what rounding `value` itself would, which rounding twice to even does not.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what this does")]
fn to_odd_f32(value: f64) -> f32 {
    let near = value as f32;
    let error = value - f64::from(near);
    if error == 0.0 || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    let away_from_zero = (error > 0.0) == (value > 0.0);
    f32::from_bits(if away_from_zero { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_abi::TensorSpec;

    #[test]
    fn integers_are_copied_exactly_or_saturate() {
        let (mut from, mut to) = ([u64::MAX - 1, 3], [0i32; 2]);
        let view =
            |address: u64, dtype| TensorView::contiguous(address, 0, &TensorSpec::new(dtype, &[2]));
        // SAFETY: both arrays hold two elements and outlive the tensors.
        let open = |view: &TensorView| unsafe { HostTensor::new(view) }.unwrap();
        let x = open(&view(from.as_mut_ptr() as u64, DType::U64));
        let y = open(&view(to.as_mut_ptr() as u64, DType::I32));
        for i in 0..2 {
            x.copy_to(&[i], &y);
            x.copy_to(&[i], &x);
        }
        assert_eq!(std::hint::black_box(to), [i32::MAX, 3]);
        assert_eq!(std::hint::black_box(from), [u64::MAX - 1, 3]);
    }

    #[test]
    fn bytes_saturate_and_keep_their_bits() {
        let mut from = [300.0f32, -1e9, f32::NAN, f32::INFINITY, 2.5, -0.4];
        let mut to = [0u8; 6];
        let view =
            |address: u64, dtype| TensorView::contiguous(address, 0, &TensorSpec::new(dtype, &[6]));
        // SAFETY: both arrays hold six elements and outlive the tensors.
        let open = |view: &TensorView| unsafe { HostTensor::new(view) }.unwrap();
        let x = open(&view(from.as_mut_ptr() as u64, DType::F32));
        let mut store = |dtype| {
            let y = open(&view(to.as_mut_ptr() as u64, dtype));
            (0..6).for_each(|i| x.copy_to(&[i], &y));
            (std::hint::black_box(to), [0, 1, 2, 3, 4, 5].map(|i| y.get(&[i]).to_string()))
        };
        assert_eq!(store(DType::I8).0, [127, 128, 0, 127, 2, 0]);
        assert_eq!(store(DType::I8).1, ["127", "-128", "0", "127", "2", "0"]);
        assert_eq!(store(DType::U8).0, [255, 0, 0, 255, 2, 0]);
        // 300 lies between 288 and 320; -0.4 between -0.40625 and -0.375.
        assert_eq!(store(DType::F8E4M3).0, [0x79, 0xfe, 0x7f, 0x7e, 0x42, 0xad]);
        assert_eq!(store(DType::F8E5M2).0[..2], [0x5d, 0xfb]);
        assert_eq!(store(DType::F8E4M3).1, ["288", "-448", "NaN", "448", "2.5", "-0.40625"]);

        let (mut nan, mut copy) = ([0xffu8; 6], [0u8; 6]);
        let x = open(&view(nan.as_mut_ptr() as u64, DType::F8E4M3));
        x.copy_to(&[0], &open(&view(copy.as_mut_ptr() as u64, DType::F8E4M3)));
        assert_eq!(std::hint::black_box(copy)[0], 0xff);
    }

    #[test]
    fn elements_round_once_and_follow_strides() {
        let mut data = [0u16; 8];
        let spec = TensorSpec::new(DType::BF16, &[2, 3]);
        let mut view = TensorView::contiguous(data.as_mut_ptr() as u64, 2, &spec);
        view.strides[0] = 4;
        // SAFETY: the last element is at 1 + 4 + 2 of 8.
        let t = unsafe { HostTensor::new(&view) }.unwrap();
        // Half way between two bf16 values, plus what an f32 in between would lose.
        let value = 1.0 + 1.0 / 256.0 + 1e-12;
        t.set(&[1, 2], value);
        assert_eq!(t.get(&[1, 2]).to_bits(), (1.0 + 1.0 / 128.0f64).to_bits());
        t.set(&[1, 1], 1.0 + 1.0 / 256.0);
        assert_eq!(t.get(&[1, 1]).to_bits(), 1f64.to_bits());
        assert_eq!(t.rounded(value).to_bits(), t.get(&[1, 2]).to_bits());
        assert_ne!(std::hint::black_box(data)[7], 0);
        assert!(std::panic::catch_unwind(|| t.get(&[0, 3])).is_err());
    }

    #[test]
    fn rows_follow_strides_and_end_with_the_shape() {
        let mut data: [f32; 12] = std::array::from_fn(|i| i as f32);
        let spec = TensorSpec::new(DType::F32, &[2, 3]);
        let mut view = TensorView::contiguous(data.as_mut_ptr() as u64, 4, &spec);
        (view.strides[0], view.strides[1]) = (6, 2);
        // SAFETY: the last element is at 1 + 6 + 4 of 12.
        let t = unsafe { HostTensor::new(&view) }.unwrap();
        assert_eq!(t.row(&[0]).collect::<Vec<_>>(), [1.0, 3.0, 5.0]);
        t.set_row(&[1], [-1.0, -2.0]);
        assert_eq!(t.row(&[1]).collect::<Vec<_>>(), [-1.0, -2.0, 11.0]);
        assert_eq!(std::hint::black_box(data)[6..], [6.0, -1.0, 8.0, -2.0, 10.0, 11.0]);
        assert!(std::panic::catch_unwind(|| t.row(&[2]).count()).is_err());
        assert!(std::panic::catch_unwind(|| t.row(&[0, 0]).count()).is_err());
        assert!(std::panic::catch_unwind(|| t.set_row(&[0], [0.0; 4])).is_err());
        view.dims[1] = 0;
        // SAFETY: no element is in it.
        let empty = unsafe { HostTensor::new(&view) }.unwrap();
        assert_eq!(empty.row(&[1]).count(), 0);
    }
}
