//! Devices, and the context that calls run in.

use std::{ffi::CStr, marker::PhantomData, ptr};

use halyard_ascend_sys::types::{ACL_DEVICE_INFO_AI_CORE_NUM, ACL_HBM_MEM, aclrtContext};
use halyard_sdk::{Error, Result};

use super::{Driver, start};

/// Devices present.
///
/// # Errors
/// As [`start`]; what the runtime says.
pub(crate) fn count() -> Result<u32> {
    let driver = start()?;
    let mut count = 0;
    // SAFETY: the number goes to a variable of ours.
    unsafe { call!(&driver.acl, aclrtGetDeviceCount(&raw mut count)) }?;
    Ok(count)
}

/// A device's default context, which the runtime keeps for the process.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) driver: &'static Driver,
    ordinal: u32,
    raw: aclrtContext,
}

// SAFETY: a context is a name that the runtime takes from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A thread's context until this is dropped, when the one before comes back.
#[derive(Debug)]
pub(crate) struct Bound<'a> {
    driver: &'static Driver,
    before: aclrtContext,
    _of: PhantomData<(&'a Context, *const ())>,
}

fn current(driver: &Driver) -> aclrtContext {
    let mut raw = ptr::null_mut();
    // SAFETY: the context goes to a variable of ours.
    match unsafe { call!(&driver.acl, aclrtGetCurrentContext(&raw mut raw)) } {
        Ok(()) => raw,
        // The thread has none.
        Err(_) => ptr::null_mut(),
    }
}

fn set(driver: &Driver, raw: aclrtContext) -> Result<()> {
    // SAFETY: contexts of devices live as long as the process.
    unsafe { call!(&driver.acl, aclrtSetCurrentContext(raw)) }
}

impl Context {
    /// Opens a device.
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        let driver = start()?;
        let present = count()?;
        if ordinal >= present {
            return Err(Error::invalid(format!("no Ascend device {ordinal}: {present} are here")));
        }
        let before = current(driver);
        // SAFETY: any number may be asked for.
        unsafe { call!(&driver.acl, aclrtSetDevice(ordinal.cast_signed())) }?;
        let context = Self { driver, ordinal, raw: current(driver) };
        if !before.is_null() {
            set(driver, before)?;
        }
        Ok(context)
    }

    /// Makes this the thread's context.
    pub(crate) fn bind(&self) -> Result<Bound<'_>> {
        let before = current(self.driver);
        if before != self.raw {
            set(self.driver, self.raw)?;
        }
        let back = if before == self.raw { ptr::null_mut() } else { before };
        Ok(Bound { driver: self.driver, before: back, _of: PhantomData })
    }

    /// The device's sensors; none without DCMI and `npu-smi`.
    pub(crate) fn sensors(&self) -> Option<super::Sensors> {
        super::Sensors::of(self.ordinal)
    }

    /// The chip's name, such as `Ascend910B1`. A context is bound.
    pub(crate) fn chip(&self) -> Result<String> {
        let ask = self.driver.acl.aclrtGetSocName;
        let ask = ask.ok_or_else(|| super::error::missing("aclrtGetSocName"))?;
        // SAFETY: takes nothing.
        let name = unsafe { ask() };
        if name.is_null() {
            return Err(Error::unsupported("aclrtGetSocName: the chip has no name"));
        }
        // SAFETY: a C string of the library's.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// AI cores.
    pub(crate) fn cores(&self) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the number goes to a variable of ours.
        unsafe {
            call!(
                &self.driver.acl,
                aclGetDeviceCapability(self.ordinal, ACL_DEVICE_INFO_AI_CORE_NUM, &raw mut value)
            )
        }?;
        Ok(value.unsigned_abs())
    }

    /// Free bytes of the device's memory, and all. The context is bound.
    pub(crate) fn memory_now(&self) -> Result<(u64, u64)> {
        memory_now(self.driver)
    }
}

/// Free bytes of the memory of the device whose context is bound, and all.
pub(super) fn memory_now(driver: &Driver) -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the numbers go to variables of ours.
    unsafe { call!(&driver.acl, aclrtGetMemInfo(ACL_HBM_MEM, &raw mut free, &raw mut total)) }?;
    Ok((free as u64, total as u64))
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if !self.before.is_null()
            && let Err(error) = set(self.driver, self.before)
        {
            tracing::debug!(%error, "the context of before");
        }
    }
}
