//! Events.

use cudarc::driver::{
    result::event,
    sys::{CUevent, CUevent_flags},
};
use halyard_sdk::Result;

use super::{error::Named, stream::Stream};

/// A point in a stream.
#[derive(Debug)]
pub(crate) struct Event(CUevent);

// SAFETY: an event is a name that the driver takes from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn create(timed: bool) -> Result<Self> {
        let flags = if timed {
            CUevent_flags::CU_EVENT_DEFAULT
        } else {
            CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        event::create(flags).named("cuEventCreate").map(Self)
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live as long as these.
        unsafe { event::record(self.0, stream.raw()) }.named("cuEventRecord")
    }

    /// Later work of the stream waits for this.
    pub(crate) fn hold(&self, stream: &Stream) -> Result<()> {
        let flags = cudarc::driver::sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live as long as these.
        unsafe { cudarc::driver::result::stream::wait_event(stream.raw(), self.0, flags) }
            .named("cuStreamWaitEvent")
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event lives as long as this.
        unsafe { event::synchronize(self.0) }.named("cuEventSynchronize")
    }

    /// `NOT_READY` until it is reached.
    pub(crate) fn query(&self) -> Result<()> {
        // SAFETY: the event lives as long as this.
        unsafe { event::query(self.0) }.named("cuEventQuery")
    }

    /// Milliseconds from `start` to this.
    pub(crate) fn milliseconds_since(&self, start: &Self) -> Result<f32> {
        // SAFETY: both live as long as these.
        unsafe { event::elapsed(start.0, self.0) }.named("cuEventElapsedTime")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing uses the event after this.
        if let Err(error) = unsafe { event::destroy(self.0) }.named("cuEventDestroy") {
            tracing::debug!(%error, "an event of a device that failed");
        }
    }
}
