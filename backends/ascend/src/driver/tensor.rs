//! What operators take, described: descriptors are made of it when an operator is planned, and are not where a plan is used again.

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

use halyard_ascend_sys::types::{
    ACL_FLOAT, ACL_FORMAT_FRACTAL_NZ, ACL_FORMAT_ND, ACL_INT32, ACL_INT64, aclIntArray, aclScalar,
    aclTensor, aclTensorList,
};
use halyard_sdk::{Code, Error, Result};

use super::{Driver, error::missing};

/// Where tensors have to begin.
const TENSOR_ALIGN: u64 = 32;

/// A tensor: dims, strides and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    dtype: i32,
    dims: Vec<i64>,
    strides: Vec<i64>,
    base: u64,
    offset: i64,
    /// Dims of the storage, where that is FRACTAL_NZ.
    fractals: Option<[i64; 4]>,
}

/// A list of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorList(pub(crate) Tensor);

/// A number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar {
    bits: u64,
    dtype: i32,
}

/// Numbers on the host.
#[derive(Clone, Debug)]
pub(crate) struct IntArray(pub(crate) Vec<i64>);

/// No tensor, no list and no numbers, where they may be missing.
pub(crate) const NO_TENSOR: Option<&Tensor> = None;
pub(crate) const NO_LIST: Option<&TensorList> = None;
pub(crate) const NO_INTS: Option<&IntArray> = None;

impl Tensor {
    /// Elements of `dtype` and of so many bytes, the first one `offset` elements from `base`. Strides count elements.
    pub(crate) fn new(
        (dtype, bytes): (i32, i64),
        dims: &[i64],
        strides: &[i64],
        (base, offset): (u64, i64),
    ) -> Self {
        let at = base.wrapping_add_signed(offset * bytes);
        // Without an offset, if that is aligned, too: tensors that differ in it alone are the same to a plan.
        let (base, offset) = if at.is_multiple_of(TENSOR_ALIGN) { (at, 0) } else { (base, offset) };
        Self { dtype, dims: dims.to_vec(), strides: strides.to_vec(), base, offset, fractals: None }
    }

    /// The same matrix, stored as FRACTAL_NZ if there are dims of fractals.
    pub(crate) fn stored(self, fractals: Option<[i64; 4]>) -> Self {
        Self { fractals, ..self }
    }
}

impl Scalar {
    pub(crate) fn float(value: f32) -> Self {
        Self { bits: value.to_bits().into(), dtype: ACL_FLOAT }
    }

    pub(crate) fn int(value: i64) -> Self {
        Self { bits: value.cast_unsigned(), dtype: ACL_INT64 }
    }

    pub(crate) fn word(value: u32) -> Self {
        Self { bits: value.into(), dtype: ACL_INT32 }
    }
}

/// What tells one plan from another, and where its tensors are.
#[derive(Debug, Default)]
pub(crate) struct Key {
    pub(super) words: Vec<u64>,
    pub(super) addresses: Vec<u64>,
    /// A list or a missing tensor is among them: which tensor another address is for cannot be said by its number alone.
    mixed: bool,
}

impl Key {
    /// The words that are compared. Which tensors share their memory belongs to a plan, and so does where they are, if it cannot change.
    pub(super) fn finished(mut self) -> Self {
        if self.mixed {
            self.words.extend(&self.addresses);
        } else {
            let first = |at: &u64| self.addresses.iter().position(|other| other == at);
            self.words.extend(self.addresses.iter().filter_map(first).map(|n| n as u64));
        }
        self
    }

    fn tensor(&mut self, tensor: &Tensor) {
        let Tensor { dtype, dims, strides, base, offset, fractals } = tensor;
        self.words.extend([u64::from(dtype.cast_unsigned()), dims.len() as u64]);
        self.words.extend(dims.iter().chain(strides).chain([offset]).map(|n| n.cast_unsigned()));
        self.words.push(fractals.is_some().into());
        self.words.extend(fractals.iter().flatten().map(|n| n.cast_unsigned()));
        self.addresses.push(*base);
    }
}

/// An argument of a first phase, described.
pub(crate) trait Describe {
    fn describe(&self, key: &mut Key);
}

/// An argument of a first phase as `Raw`, the type in C.
pub(crate) trait Create<Raw> {
    fn create(&self, held: &mut Held) -> Result<Raw>;
}

macro_rules! plain {
    ($($ty:ty, $value:ident => $word:expr;)*) => {$(
        impl Describe for $ty {
            fn describe(&self, key: &mut Key) {
                let $value = *self;
                key.words.push($word);
            }
        }

        impl Create<$ty> for $ty {
            fn create(&self, _: &mut Held) -> Result<$ty> {
                Ok(*self)
            }
        }
    )*};
}

plain! {
    i8, value => i64::from(value).cast_unsigned();
    i32, value => i64::from(value).cast_unsigned();
    i64, value => value.cast_unsigned();
    f64, value => value.to_bits();
    bool, value => value.into();
}

impl Describe for &'static CStr {
    fn describe(&self, key: &mut Key) {
        key.words.push(self.count_bytes() as u64);
        key.words.extend(self.to_bytes().iter().map(|&byte| u64::from(byte)));
    }
}

impl Create<*const c_char> for &'static CStr {
    fn create(&self, _: &mut Held) -> Result<*const c_char> {
        Ok(self.as_ptr())
    }
}

macro_rules! described {
    ($($ty:ty, $raw:ty, $mixed:expr, $value:ident, $key:ident => $describe:expr;)*) => {$(
        impl Describe for &$ty {
            fn describe(&self, $key: &mut Key) {
                let $value: &$ty = self;
                $describe;
            }
        }

        impl Create<*const $raw> for &$ty {
            fn create(&self, held: &mut Held) -> Result<*const $raw> {
                let value: &$ty = self;
                value.make(held)
            }
        }

        impl Describe for Option<&$ty> {
            fn describe(&self, key: &mut Key) {
                key.words.push(self.is_some().into());
                key.mixed |= $mixed && self.is_none();
                if let Some(value) = self {
                    value.describe(key);
                }
            }
        }

        impl Create<*const $raw> for Option<&$ty> {
            fn create(&self, held: &mut Held) -> Result<*const $raw> {
                self.map_or(Ok(ptr::null()), |value| value.make(held))
            }
        }
    )*};
}

described! {
    Tensor, aclTensor, true, tensor, key => key.tensor(tensor);
    TensorList, aclTensorList, true, list, key => {
        key.mixed = true;
        key.tensor(&list.0);
    };
    Scalar, aclScalar, false, scalar, key => {
        key.words.extend([u64::from(scalar.dtype.cast_unsigned()), scalar.bits]);
    };
    IntArray, aclIntArray, false, array, key => {
        key.words.push(array.0.len() as u64);
        key.words.extend(array.0.iter().map(|n| n.cast_unsigned()));
    };
}

/// Descriptors, which are destroyed with this.
#[derive(Debug)]
pub(crate) struct Held {
    driver: &'static Driver,
    /// In the order of the call's tensors, those of lists left out.
    pub(super) tensors: Vec<*mut aclTensor>,
    lists: Vec<*mut aclTensorList>,
    scalars: Vec<*mut aclScalar>,
    arrays: Vec<*mut aclIntArray>,
}

// SAFETY: descriptors are names that the library takes from any thread.
unsafe impl Send for Held {}

impl Held {
    pub(super) fn new(driver: &'static Driver) -> Self {
        let (tensors, lists) = (Vec::new(), Vec::new());
        Self { driver, tensors, lists, scalars: Vec::new(), arrays: Vec::new() }
    }
}

/// The object that a function gave.
fn given<T>(raw: *mut T, function: &str) -> Result<*mut T> {
    if raw.is_null() {
        return Err(Error::new(Code::INTERNAL, format!("{function} gave no object")));
    }
    Ok(raw)
}

impl Tensor {
    fn raw(&self, driver: &Driver) -> Result<*mut aclTensor> {
        let create = driver.acl.aclCreateTensor.ok_or_else(|| missing("aclCreateTensor"))?;
        let Self { dtype, dims, strides, base, offset, fractals } = self;
        let reach: i64 = dims.iter().zip(strides).map(|(d, s)| (d - 1).max(0) * s).sum();
        let flat = [1 + reach + offset];
        let (format, storage) = match fractals {
            Some(fractals) => (ACL_FORMAT_FRACTAL_NZ, &fractals[..]),
            None => (ACL_FORMAT_ND, &flat[..]),
        };
        let (stored, stored_rank) = (storage.as_ptr(), storage.len() as u64);
        let (dims, rank, strides) = (dims.as_ptr(), dims.len() as u64, strides.as_ptr());
        let address = *base as *mut c_void;
        // SAFETY: the arrays have `rank` and `stored_rank` elements and are copied; the address is not used before an operator runs.
        #[rustfmt::skip]
        let raw = unsafe {
            create(dims, rank, *dtype, strides, *offset, format, stored, stored_rank, address)
        };
        given(raw, "aclCreateTensor")
    }

    fn make(&self, held: &mut Held) -> Result<*const aclTensor> {
        let raw = self.raw(held.driver)?;
        held.tensors.push(raw);
        Ok(raw)
    }
}

impl TensorList {
    fn make(&self, held: &mut Held) -> Result<*const aclTensorList> {
        let acl = &held.driver.acl;
        let create = acl.aclCreateTensorList.ok_or_else(|| missing("aclCreateTensorList"))?;
        let tensor = self.0.raw(held.driver)?;
        let tensors = [tensor.cast_const()];
        // SAFETY: an array of one live tensor, which the list takes over.
        match given(unsafe { create(tensors.as_ptr(), 1) }, "aclCreateTensorList") {
            Ok(raw) => {
                held.lists.push(raw);
                Ok(raw)
            }
            Err(error) => {
                held.tensors.push(tensor);
                Err(error)
            }
        }
    }
}

impl Scalar {
    fn make(&self, held: &mut Held) -> Result<*const aclScalar> {
        let acl = &held.driver.acl;
        let create = acl.aclCreateScalar.ok_or_else(|| missing("aclCreateScalar"))?;
        let mut bits = self.bits.to_le_bytes();
        // SAFETY: a value of the dtype, the lowest byte first, which is copied.
        let raw = unsafe { create(bits.as_mut_ptr().cast(), self.dtype) };
        held.scalars.push(given(raw, "aclCreateScalar")?);
        Ok(raw)
    }
}

impl IntArray {
    fn make(&self, held: &mut Held) -> Result<*const aclIntArray> {
        let acl = &held.driver.acl;
        let create = acl.aclCreateIntArray.ok_or_else(|| missing("aclCreateIntArray"))?;
        // SAFETY: an array of so many numbers, which is copied.
        let raw = unsafe { create(self.0.as_ptr(), self.0.len() as u64) };
        held.arrays.push(given(raw, "aclCreateIntArray")?);
        Ok(raw)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let acl = &self.driver.acl;
        let told = |result: Result<()>| {
            if let Err(error) = result {
                tracing::debug!(%error, "a descriptor");
            }
        };
        // SAFETY: each is ours, and named no more after this. So in all that follow.
        self.tensors.iter().for_each(|&raw| told(unsafe { call!(acl, aclDestroyTensor(raw)) }));
        // SAFETY: as above; a list destroys its tensor.
        self.lists.iter().for_each(|&raw| told(unsafe { call!(acl, aclDestroyTensorList(raw)) }));
        // SAFETY: as above.
        self.scalars.iter().for_each(|&raw| told(unsafe { call!(acl, aclDestroyScalar(raw)) }));
        // SAFETY: as above.
        self.arrays.iter().for_each(|&raw| told(unsafe { call!(acl, aclDestroyIntArray(raw)) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tensors: &[&Tensor]) -> Key {
        let mut key = Key::default();
        tensors.iter().for_each(|tensor| tensor.describe(&mut key));
        key.finished()
    }

    fn rows(count: i64, base: u64, offset: i64) -> Tensor {
        Tensor::new((ACL_FLOAT, 4), &[count, 8], &[8, 1], (base, offset))
    }

    #[test]
    fn tensors_that_differ_in_their_place_alone_share_a_plan() {
        let same = key(&[&rows(2, 1024, 0), &rows(2, 2048, 8)]);
        assert_eq!(same.words, key(&[&rows(2, 4096, 16), &rows(2, 512, 0)]).words);
        assert_eq!(same.addresses, [1024, 2048 + 32]);
        // Not those that do not begin where a tensor may.
        assert_ne!(same.words, key(&[&rows(2, 1024, 1), &rows(2, 2048, 8)]).words);
        assert_ne!(same.words, key(&[&rows(3, 1024, 0), &rows(2, 2048, 8)]).words);
        // Nor an operand that is written.
        assert_ne!(same.words, key(&[&rows(2, 1024, 0), &rows(2, 1024, 0)]).words);
    }

    #[test]
    fn places_belong_to_plans_with_lists_and_missing_tensors() {
        let described = |tensor: &Tensor, more: &dyn Describe| {
            let mut key = Key::default();
            tensor.describe(&mut key);
            more.describe(&mut key);
            key.finished().words
        };
        let (a, b) = (rows(2, 1024, 0), rows(2, 2048, 0));
        assert_ne!(described(&a, &NO_TENSOR), described(&b, &NO_TENSOR));
        let list = TensorList(a.clone());
        assert_ne!(described(&a, &&list), described(&b, &&list));
        let numbers = [1.0, 2.0].map(Scalar::float);
        assert_eq!(described(&a, &&numbers[0]), described(&b, &&numbers[0]));
        assert_ne!(described(&a, &&numbers[0]), described(&a, &&numbers[1]));
    }
}
