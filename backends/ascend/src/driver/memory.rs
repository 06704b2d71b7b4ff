//! Device memory, pinned host memory, copies.

use std::{ffi::c_void, ptr};

use halyard_ascend_sys::types::{
    ACL_MEM_MALLOC_HUGE_FIRST, ACL_MEMCPY_DEVICE_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST,
    ACL_MEMCPY_HOST_TO_DEVICE,
};
use halyard_sdk::{Code, Error, Result};

use halyard_sdk::vendor::Plane;

use super::{Driver, Stream};

/// Alignment of what is given out; the runtime's own is 64.
pub(crate) const ALIGN: usize = 256;

/// Device memory that frees itself.
#[derive(Debug)]
pub(crate) struct Memory {
    driver: &'static Driver,
    raw: *mut c_void,
    bytes: usize,
}

// SAFETY: an address that the runtime takes from any thread.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many bytes, aligned to [`ALIGN`].
    pub(crate) fn alloc(driver: &'static Driver, bytes: usize) -> Result<Self> {
        let padded = bytes.checked_add(ALIGN);
        let padded = padded.ok_or_else(|| Error::invalid(format!("{bytes} bytes of memory")))?;
        let mut raw = ptr::null_mut();
        // SAFETY: the address goes to a variable of ours.
        let made = unsafe {
            call!(&driver.acl, aclrtMalloc(&raw mut raw, padded, ACL_MEM_MALLOC_HUGE_FIRST))
        };
        made.map_err(|error| with_numbers(driver, error, bytes))?;
        Ok(Self { driver, raw, bytes })
    }

    /// Memory with these bytes; waits until they are there.
    pub(crate) fn filled(on: &Stream, bytes: &[u8]) -> Result<Self> {
        let memory = Self::alloc(on.driver(), bytes.len())?;
        let plane = |start, on_host| Plane { start, on_host, pitch: 0 };
        let (to, from) = (plane(memory.start(), false), plane(bytes.as_ptr() as u64, true));
        // SAFETY: both have so many bytes, and both live until the stream has been waited for.
        unsafe { copy(on, to, from, bytes.len() as u64, 1) }?;
        on.synchronize()?;
        Ok(memory)
    }

    pub(crate) fn start(&self) -> u64 {
        (self.raw as u64).next_multiple_of(ALIGN as u64)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Says how much was wanted, and how much there is.
fn with_numbers(driver: &Driver, error: Error, bytes: usize) -> Error {
    if error.code != Code::OUT_OF_MEMORY {
        return error;
    }
    let Ok((free, total)) = super::context::memory_now(driver) else { return error };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let message = format!(
        "{}; {} MiB are wanted, {} MiB of the device's {} MiB are free",
        error.message,
        mib(bytes as u64),
        mib(free),
        mib(total)
    );
    Error { message: message.into(), ..error }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: who drops it has made sure that no work uses it.
        if let Err(error) = unsafe { call!(&self.driver.acl, aclrtFree(self.raw)) } {
            tracing::debug!(%error, "memory of a device that failed");
        }
    }
}

/// Host memory that the device copies without a detour.
#[derive(Debug)]
pub(crate) struct Pinned {
    driver: &'static Driver,
    raw: *mut c_void,
    bytes: usize,
}

// SAFETY: an address that the runtime takes from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn alloc(driver: &'static Driver, bytes: usize) -> Result<Self> {
        let mut raw = ptr::null_mut();
        let padded = bytes.saturating_add(ALIGN);
        // SAFETY: the address goes to a variable of ours.
        unsafe { call!(&driver.acl, aclrtMallocHost(&raw mut raw, padded)) }?;
        Ok(Self { driver, raw, bytes })
    }

    pub(crate) fn start(&self) -> u64 {
        (self.raw as u64).next_multiple_of(ALIGN as u64)
    }

    /// All of it.
    ///
    /// # Safety
    /// No work of a stream writes it or reads what the host is going to write.
    pub(crate) unsafe fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes from there on are ours; the caller sees to the device.
        unsafe { std::slice::from_raw_parts_mut(self.start() as *mut u8, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: who drops it has made sure that no work uses it.
        if let Err(error) = unsafe { call!(&self.driver.acl, aclrtFreeHost(self.raw)) } {
            tracing::debug!(%error, "pinned memory of a device that failed");
        }
    }
}

/// Copies `rows` rows of `row_bytes` bytes in the stream's order.
///
/// # Safety
/// Both planes are memory of their kind, of which the host keeps the stated part until the stream has reached this point.
pub(crate) unsafe fn copy(
    on: &Stream,
    to: Plane,
    from: Plane,
    row_bytes: u64,
    rows: u64,
) -> Result<()> {
    let kind = match (to.on_host, from.on_host) {
        (false, true) => ACL_MEMCPY_HOST_TO_DEVICE,
        (true, false) => ACL_MEMCPY_DEVICE_TO_HOST,
        (false, false) => ACL_MEMCPY_DEVICE_TO_DEVICE,
        (true, true) => {
            return Err(Error::unsupported("a copy from host memory to host memory"));
        }
    };
    let size = |bytes: u64| usize::try_from(bytes).map_err(|_| Error::invalid("a copy too large"));
    let acl = &on.driver.acl;
    let (dst, src) = (to.start as *mut c_void, from.start as *const c_void);
    if rows == 1 || (to.pitch == row_bytes && from.pitch == row_bytes) {
        let total =
            row_bytes.checked_mul(rows).ok_or_else(|| Error::invalid("a copy too large"))?;
        let bytes = size(total)?;
        // SAFETY: the caller's promise.
        return unsafe { call!(acl, aclrtMemcpyAsync(dst, bytes, src, bytes, kind, on.raw())) };
    }
    let (dpitch, spitch) = (size(to.pitch)?, size(from.pitch)?);
    let (width, height) = (size(row_bytes)?, size(rows)?);
    if dpitch >= width && spitch >= width && kind != ACL_MEMCPY_DEVICE_TO_DEVICE {
        // SAFETY: the caller's promise.
        return unsafe {
            call!(acl, aclrtMemcpy2dAsync(dst, dpitch, src, spitch, width, height, kind, on.raw()))
        };
    }
    // Rows that overlap or repeat, and rows within the device, are no pitched copy of the runtime's.
    for row in 0..height {
        let (dst, src) = (dst.wrapping_byte_add(row * dpitch), src.wrapping_byte_add(row * spitch));
        // SAFETY: the caller's promise.
        unsafe { call!(acl, aclrtMemcpyAsync(dst, width, src, width, kind, on.raw())) }?;
    }
    Ok(())
}
