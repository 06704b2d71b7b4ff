//! Streams.

use std::ffi::c_void;

use cudarc::driver::{
    result,
    sys::{self, CUstream, CUstream_flags},
};
use halyard_sdk::Result;

use super::error::Named;

/// A queue of work that is not ordered with the device's default stream.
#[derive(Debug)]
pub(crate) struct Stream(CUstream);

// SAFETY: a stream is a name that the driver takes from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream; lower priorities run first, as far as the device tells them apart.
    pub(crate) fn create(priority: i32) -> Result<Self> {
        let (mut lowest, mut highest) = (0, 0);
        // SAFETY: the numbers go to variables of ours.
        unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut lowest, &raw mut highest) }
            .named("cuCtxGetStreamPriorityRange")?;
        let priority = priority.clamp(highest, lowest);
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the stream goes to a variable of ours.
        unsafe { sys::cuStreamCreateWithPriority(&raw mut raw, flags, priority) }
            .named("cuStreamCreateWithPriority")?;
        Ok(Self(raw))
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.0
    }

    /// Waits for everything enqueued so far.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.0) }.named("cuStreamSynchronize")
    }

    /// `NOT_READY` while work is pending.
    pub(crate) fn query(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        unsafe { sys::cuStreamQuery(self.0) }.named("cuStreamQuery")
    }

    /// Calls `function` with `context` when the stream reaches this point.
    pub(crate) fn call(&self, function: extern "C" fn(u64, i32), context: u64) -> Result<()> {
        let call = Box::into_raw(Box::new((function, context)));
        // SAFETY: the driver calls `on_reached` once with the box, which that takes back.
        let enqueued = unsafe {
            result::stream::launch_host_function(self.0, on_reached, call.cast::<c_void>())
        };
        if enqueued.is_err() {
            // SAFETY: the driver refused, so nobody else has the box.
            drop(unsafe { Box::from_raw(call) });
        }
        enqueued.named("cuLaunchHostFunc")
    }
}

unsafe extern "C" fn on_reached(call: *mut c_void) {
    // SAFETY: `Stream::call` passed a box of this type, to one call.
    let (function, context) =
        *unsafe { Box::from_raw(call.cast::<(extern "C" fn(u64, i32), u64)>()) };
    function(context, 0);
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream after this; the driver lets its work end.
        if let Err(error) = unsafe { result::stream::destroy(self.0) }.named("cuStreamDestroy") {
            tracing::debug!(%error, "a stream of a device that failed");
        }
    }
}
