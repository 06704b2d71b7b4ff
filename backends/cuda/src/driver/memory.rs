//! Device memory, pinned host memory, copies and fills.

use std::sync::Arc;

use cudarc::driver::{
    result,
    sys::{self, CUDA_MEMCPY2D, CUmemorytype},
};
use halyard_sdk::{Code, Error, Result};

use halyard_sdk::vendor::Plane;

use super::{error::Named, stream::Stream};

/// A block of device memory.
///
/// It comes from the device's pool, in the order of a stream that does nothing else. `cuMemFree` would wait for the whole device, and so
/// for collectives whose other ranks wait for this one.
#[derive(Debug)]
pub(crate) struct Memory {
    start: u64,
    from: Arc<Stream>,
}

impl Memory {
    /// At least 256-byte aligned.
    pub(crate) fn alloc(bytes: usize, from: &Arc<Stream>) -> Result<Self> {
        // SAFETY: the stream lives as long as `from`; the memory is freed only by `Drop`; nothing reads it before it is written.
        let start = unsafe { result::malloc_async(from.raw(), bytes) };
        let start = start.named("cuMemAllocAsync").map_err(|error| with_numbers(error, bytes))?;
        let memory = Self { start, from: Arc::clone(from) };
        from.synchronize()?;
        Ok(memory)
    }

    /// Its address on the device.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address is that of the allocation, which nothing uses after this: the host has waited for its work.
        let freed = unsafe { result::free_async(self.start, self.from.raw()) };
        // Waits for nothing else: then the memory is free when this returns.
        if let Err(error) = freed.named("cuMemFreeAsync").and_then(|()| self.from.synchronize()) {
            tracing::debug!(%error, "memory of a device that failed");
        }
    }
}

/// Says how much was wanted, and how much there is.
fn with_numbers(error: Error, bytes: usize) -> Error {
    if error.code != Code::OUT_OF_MEMORY {
        return error;
    }
    let Ok((free, total)) = result::mem_get_info() else { return error };
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    let message = format!(
        "{}; {} MiB are wanted, {} MiB of the device's {} MiB are free",
        error.message,
        mib(bytes),
        free >> 20,
        mib(total)
    );
    Error { message: message.into(), ..error }
}

/// Host memory that the device reaches directly.
pub(crate) fn alloc_pinned(bytes: usize) -> Result<u64> {
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
    // SAFETY: the memory is freed only by `free_pinned`.
    let start = unsafe { result::malloc_host(bytes, flags) }.named("cuMemHostAlloc")?;
    Ok(start as u64)
}

/// Frees what [`alloc_pinned`] gave.
pub(crate) fn free_pinned(start: u64) -> Result<()> {
    // SAFETY: the caller has the address from `alloc_pinned` and forgets it with this.
    unsafe { result::free_host(start as *mut core::ffi::c_void) }.named("cuMemFreeHost")
}

/// Copies `rows` rows of `row_bytes` bytes in the stream's order.
///
/// # Safety
/// Both planes are memory of their kind, of which the host keeps the stated part until the stream has reached this point.
pub(crate) unsafe fn copy(
    on: &Stream,
    dst: Plane,
    src: Plane,
    row_bytes: u64,
    rows: u64,
) -> Result<()> {
    if row_bytes == 0 || rows == 0 {
        return Ok(());
    }
    if rows == 1 || (dst.pitch == row_bytes && src.pitch == row_bytes) {
        let total = row_bytes.checked_mul(rows).ok_or_else(too_large)?;
        // SAFETY: the caller's promise.
        return unsafe { copy_flat(on, dst, src, size(total)?) };
    }
    let kind = |plane: Plane| {
        if plane.on_host {
            CUmemorytype::CU_MEMORYTYPE_HOST
        } else {
            CUmemorytype::CU_MEMORYTYPE_DEVICE
        }
    };
    let pitched = CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: kind(src),
        srcHost: src.start as *const core::ffi::c_void,
        srcDevice: src.start,
        srcArray: core::ptr::null_mut(),
        srcPitch: size(src.pitch)?,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: kind(dst),
        dstHost: dst.start as *mut core::ffi::c_void,
        dstDevice: dst.start,
        dstArray: core::ptr::null_mut(),
        dstPitch: size(dst.pitch)?,
        WidthInBytes: size(row_bytes)?,
        Height: size(rows)?,
    };
    // SAFETY: the caller's promise; the description is read before the call returns.
    unsafe { sys::cuMemcpy2DAsync_v2(&raw const pitched, on.raw()) }.named("cuMemcpy2DAsync")
}

/// # Safety
/// As [`copy`].
unsafe fn copy_flat(on: &Stream, dst: Plane, src: Plane, bytes: usize) -> Result<()> {
    match (dst.on_host, src.on_host) {
        (false, false) => {
            // SAFETY: the caller's promise.
            unsafe { result::memcpy_dtod_async(dst.start, src.start, bytes, on.raw()) }
                .named("cuMemcpyDtoDAsync")
        }
        (false, true) => {
            // SAFETY: the caller's promise.
            unsafe {
                sys::cuMemcpyHtoDAsync_v2(
                    dst.start,
                    src.start as *const core::ffi::c_void,
                    bytes,
                    on.raw(),
                )
            }
            .named("cuMemcpyHtoDAsync")
        }
        (true, false) => {
            // SAFETY: the caller's promise.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    dst.start as *mut core::ffi::c_void,
                    src.start,
                    bytes,
                    on.raw(),
                )
            }
            .named("cuMemcpyDtoHAsync")
        }
        (true, true) => {
            // SAFETY: the caller's promise; unified addressing lets the driver tell host memory by its address.
            unsafe { sys::cuMemcpyAsync(dst.start, src.start, bytes, on.raw()) }
                .named("cuMemcpyAsync")
        }
    }
}

/// Fills `words` 32-bit words in the stream's order.
///
/// # Safety
/// `start` is device or pinned memory of that size, aligned to 4, which the host keeps until the stream has reached this point.
pub(crate) unsafe fn fill(on: &Stream, start: u64, pattern: u32, words: u64) -> Result<()> {
    if words == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { sys::cuMemsetD32Async(start, pattern, size(words)?, on.raw()) }
        .named("cuMemsetD32Async")
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::invalid("a copy larger than the address space")
}
