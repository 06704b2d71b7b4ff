//! Streams and events.

use std::{
    ffi::c_void,
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use halyard_ascend_sys::types::{
    ACL_EVENT_RECORDED_STATUS_COMPLETE, ACL_EVENT_SYNC, ACL_EVENT_TIME_LINE,
    ACL_STREAM_STATUS_COMPLETE, aclrtEvent, aclrtStream,
};
use halyard_sdk::{Code, Error, Result};

use super::{
    Driver,
    graph::{Capture, Lane},
    memory::Memory,
    operator::Plans,
};

/// Scratch memory that a stream has from the start, so that launches seldom allocate (`docs/adr/0015`).
const RESERVED: usize = 32 << 20;

fn pending() -> Error {
    Error::new(Code::NOT_READY, "work is pending")
}

/// A queue of work, with the scratch memory that operators on it use one after another.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) driver: &'static Driver,
    raw: aclrtStream,
    scratch: Arc<Mutex<Scratch>>,
    plans: Mutex<Plans>,
    capture: Mutex<Option<Capture>>,
    /// Once graphs were captured on it.
    lane: Mutex<Option<Box<Lane>>>,
}

#[derive(Debug)]
struct Scratch {
    /// Graphs keep what they were captured with.
    current: Arc<Memory>,
    /// What was too small, and may still be in use.
    outgrown: Vec<Arc<Memory>>,
}

// SAFETY: a stream is a name that the runtime takes from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn create(driver: &'static Driver) -> Result<Self> {
        let current = Arc::new(Memory::alloc(driver, RESERVED)?);
        let scratch = Scratch { current, outgrown: Vec::new() };
        Self::with(driver, Arc::new(Mutex::new(scratch)))
    }

    /// A stream whose operators have the scratch memory of this one: nothing runs on it, operators are only planned with it.
    pub(super) fn beside(&self) -> Result<Self> {
        Self::with(self.driver, Arc::clone(&self.scratch))
    }

    fn with(driver: &'static Driver, scratch: Arc<Mutex<Scratch>>) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the stream goes to a variable of ours.
        unsafe { call!(&driver.acl, aclrtCreateStreamWithConfig(&raw mut raw, 0, 0)) }?;
        let (plans, capture, lane) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { driver, raw, scratch, plans, capture, lane })
    }

    pub(crate) fn driver(&self) -> &'static Driver {
        self.driver
    }

    pub(crate) fn raw(&self) -> aclrtStream {
        self.raw
    }

    /// Waits for everything enqueued so far.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let outgrown = std::mem::take(&mut self.lock().outgrown);
        // SAFETY: the stream lives as long as this.
        let waited = unsafe { call!(&self.driver.acl, aclrtSynchronizeStream(self.raw)) };
        if waited.is_err() {
            self.lock().outgrown.extend(outgrown);
        }
        // Else nothing uses it any more.
        waited
    }

    /// `NOT_READY` while work is pending.
    pub(crate) fn query(&self) -> Result<()> {
        let mut status = 0;
        // SAFETY: the stream lives as long as this; the status goes to a variable of ours.
        unsafe { call!(&self.driver.acl, aclrtStreamQuery(self.raw, &raw mut status)) }?;
        if status == ACL_STREAM_STATUS_COMPLETE { Ok(()) } else { Err(pending()) }
    }

    /// Stops what runs, leaves out what has not begun. The next wait for the stream tells of it; then it takes new work.
    pub(crate) fn abort(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        unsafe { call!(&self.driver.acl, aclrtStreamAbort(self.raw)) }
    }

    /// Calls `function` with `context` when the stream reaches this point.
    pub(crate) fn call(&self, function: extern "C" fn(u64, i32), context: u64) -> Result<()> {
        let call = Box::into_raw(Box::new((function, context)));
        // SAFETY: the runtime calls `on_reached` once with the box, which that takes back.
        let enqueued = unsafe {
            call!(
                &self.driver.acl,
                aclrtLaunchHostFunc(self.raw, on_reached, call.cast::<c_void>())
            )
        };
        if enqueued.is_err() {
            // SAFETY: the runtime refused, so nobody else has the box.
            drop(unsafe { Box::from_raw(call) });
        }
        enqueued
    }

    /// Memory of at least so many bytes for the operator that is enqueued next. It is kept for the stream and at least doubles where an
    /// operator wants more than all before; what it was stays until the stream is waited for. While the stream captures it does not grow.
    pub(super) fn scratch(&self, bytes: usize) -> Result<*mut c_void> {
        if bytes == 0 {
            return Ok(ptr::null_mut());
        }
        let mut scratch = self.lock();
        let have = scratch.current.bytes();
        if have < bytes && self.is_capturing() {
            let mib = |bytes: usize| bytes.div_ceil(1 << 20);
            return Err(Error::new(
                Code::OUT_OF_MEMORY,
                format!(
                    "{} MiB of scratch memory are wanted, and the stream, which is capturing, has {}: a launch before the capture gets them",
                    mib(bytes),
                    mib(have)
                ),
            ));
        }
        if have < bytes {
            let wanted = bytes.max(2 * have).next_multiple_of(1 << 20);
            let larger = Arc::new(Memory::alloc(self.driver, wanted)?);
            let outgrown = std::mem::replace(&mut scratch.current, larger);
            scratch.outgrown.push(outgrown);
        }
        Ok(scratch.current.start() as *mut c_void)
    }

    /// The scratch memory that the operator before had.
    pub(super) fn scratch_now(&self) -> Arc<Memory> {
        Arc::clone(&self.lock().current)
    }

    /// Scratch memory that only work which was enqueued before may still use.
    pub(super) fn outgrown(&self, memory: Arc<Memory>) {
        let mut scratch = self.lock();
        if !Arc::ptr_eq(&scratch.current, &memory) {
            scratch.outgrown.push(memory);
        }
    }

    pub(super) fn capture(&self) -> MutexGuard<'_, Option<Capture>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lane(&self) -> MutexGuard<'_, Option<Box<Lane>>> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.plans().clear();
        // SAFETY: nothing uses the stream after this; the runtime lets its work end.
        let destroyed = unsafe { call!(&self.driver.acl, aclrtDestroyStream(self.raw)) };
        if let Err(error) = destroyed {
            tracing::debug!(%error, "a stream of a device that failed");
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    driver: &'static Driver,
    raw: aclrtEvent,
}

// SAFETY: an event is a name that the runtime takes from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn create(driver: &'static Driver, timed: bool) -> Result<Self> {
        let flags = ACL_EVENT_SYNC | if timed { ACL_EVENT_TIME_LINE } else { 0 };
        let mut raw = ptr::null_mut();
        // SAFETY: the event goes to a variable of ours.
        unsafe { call!(&driver.acl, aclrtCreateEventExWithFlag(&raw mut raw, flags)) }?;
        Ok(Self { driver, raw })
    }

    pub(crate) fn record(&self, on: &Stream) -> Result<()> {
        // SAFETY: both live.
        unsafe { call!(&self.driver.acl, aclrtRecordEvent(self.raw, on.raw())) }
    }

    /// Makes later work of a stream wait.
    pub(crate) fn hold(&self, on: &Stream) -> Result<()> {
        // SAFETY: both live.
        unsafe { call!(&self.driver.acl, aclrtStreamWaitEvent(on.raw(), self.raw)) }
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { call!(&self.driver.acl, aclrtSynchronizeEvent(self.raw)) }
    }

    /// `NOT_READY` until reached.
    pub(crate) fn query(&self) -> Result<()> {
        let mut status = 0;
        // SAFETY: the event lives; the status goes to a variable of ours.
        unsafe { call!(&self.driver.acl, aclrtQueryEventStatus(self.raw, &raw mut status)) }?;
        if status == ACL_EVENT_RECORDED_STATUS_COMPLETE { Ok(()) } else { Err(pending()) }
    }

    pub(crate) fn milliseconds_since(&self, start: &Self) -> Result<f32> {
        let mut ms = 0.0;
        // SAFETY: both live; the time goes to a variable of ours.
        unsafe {
            call!(&self.driver.acl, aclrtEventElapsedTime(&raw mut ms, start.raw, self.raw))
        }?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing uses the event after this.
        if let Err(error) = unsafe { call!(&self.driver.acl, aclrtDestroyEvent(self.raw)) } {
            tracing::debug!(%error, "an event of a device that failed");
        }
    }
}
