//! Descriptors that operators take. Each frees itself; an operator has read them when its second phase returns.

use std::{ffi::c_void, ptr};

use halyard_ascend_sys::types::{
    ACL_FLOAT, ACL_FORMAT_ND, ACL_INT32, ACL_INT64, aclIntArray, aclScalar, aclTensor,
    aclTensorList,
};
use halyard_sdk::{Code, Error, Result};

use super::{Driver, error::missing};

fn none(what: &str) -> Error {
    Error::new(Code::INTERNAL, format!("{what} gave no object"))
}

macro_rules! owned {
    ($(#[$meta:meta])* $name:ident, $raw:ty, $destroy:ident) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub(crate) struct $name {
            driver: &'static Driver,
            raw: *mut $raw,
        }

        impl $name {
            pub(crate) fn raw(&self) -> *const $raw {
                self.raw
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if self.raw.is_null() {
                    return;
                }
                // SAFETY: ours, and named no more after this.
                if let Err(error) = unsafe { call!(&self.driver.acl, $destroy(self.raw)) } {
                    tracing::debug!(%error, "a descriptor");
                }
            }
        }
    };
}

owned! {
    /// A tensor: dims, strides and where it is.
    Tensor, aclTensor, aclDestroyTensor
}
owned! {
    /// A list that owns its tensors.
    TensorList, aclTensorList, aclDestroyTensorList
}
owned! {
    /// A number.
    Scalar, aclScalar, aclDestroyScalar
}
owned! {
    /// Numbers on the host.
    IntArray, aclIntArray, aclDestroyIntArray
}

impl Tensor {
    /// Elements of `dtype` at `base`, the first one `offset` elements from it. Strides count elements.
    pub(crate) fn new(
        driver: &'static Driver,
        dtype: i32,
        dims: &[i64],
        strides: &[i64],
        (base, offset): (u64, i64),
    ) -> Result<Self> {
        let create = driver.acl.aclCreateTensor.ok_or_else(|| missing("aclCreateTensor"))?;
        let reach: i64 = dims.iter().zip(strides).map(|(d, s)| (d - 1).max(0) * s).sum();
        let storage = [1 + reach + offset];
        let rank = dims.len() as u64;
        // SAFETY: the arrays have `rank` and one element and are copied; the address is not used before an operator runs.
        let raw = unsafe {
            create(
                dims.as_ptr(),
                rank,
                dtype,
                strides.as_ptr(),
                offset,
                ACL_FORMAT_ND,
                storage.as_ptr(),
                1,
                base as *mut c_void,
            )
        };
        if raw.is_null() { Err(none("aclCreateTensor")) } else { Ok(Self { driver, raw }) }
    }
}

impl TensorList {
    /// A list of one tensor, which it takes over.
    pub(crate) fn of(mut tensor: Tensor) -> Result<Self> {
        let driver = tensor.driver;
        let create = driver.acl.aclCreateTensorList;
        let create = create.ok_or_else(|| missing("aclCreateTensorList"))?;
        let tensors = [tensor.raw()];
        // SAFETY: an array of one live tensor.
        let raw = unsafe { create(tensors.as_ptr(), 1) };
        if raw.is_null() {
            return Err(none("aclCreateTensorList"));
        }
        tensor.raw = ptr::null_mut();
        Ok(Self { driver, raw })
    }
}

impl Scalar {
    fn of<N>(driver: &'static Driver, mut value: N, dtype: i32) -> Result<Self> {
        let create = driver.acl.aclCreateScalar.ok_or_else(|| missing("aclCreateScalar"))?;
        // SAFETY: a value of the dtype, which is copied.
        let raw = unsafe { create((&raw mut value).cast(), dtype) };
        if raw.is_null() { Err(none("aclCreateScalar")) } else { Ok(Self { driver, raw }) }
    }

    pub(crate) fn float(driver: &'static Driver, value: f32) -> Result<Self> {
        Self::of(driver, value, ACL_FLOAT)
    }

    pub(crate) fn int(driver: &'static Driver, value: i64) -> Result<Self> {
        Self::of(driver, value, ACL_INT64)
    }

    pub(crate) fn word(driver: &'static Driver, value: u32) -> Result<Self> {
        Self::of(driver, value, ACL_INT32)
    }
}

impl IntArray {
    pub(crate) fn new(driver: &'static Driver, values: &[i64]) -> Result<Self> {
        let create = driver.acl.aclCreateIntArray.ok_or_else(|| missing("aclCreateIntArray"))?;
        // SAFETY: an array of so many numbers, which is copied.
        let raw = unsafe { create(values.as_ptr(), values.len() as u64) };
        if raw.is_null() { Err(none("aclCreateIntArray")) } else { Ok(Self { driver, raw }) }
    }
}
