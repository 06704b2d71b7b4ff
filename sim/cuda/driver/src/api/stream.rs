//! Streams and captures.

use super::Out;
use super::context::current;
use crate::code::{Code, Outcome};
use crate::driver::{Device, Driver};
use crate::stream::{Stream, Work};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_LEGACY`: another name of the null stream.
const LEGACY: usize = 1;

/// The stream with this handle; the null stream begins when it is first used.
pub(super) fn find(
    driver: &'static Driver,
    device: &'static Device,
    handle: usize,
) -> Outcome<Arc<Stream>> {
    if handle != 0 && handle != LEGACY {
        return driver.streams.get(handle);
    }
    if let Some(stream) = device.null_stream.get() {
        return Ok(stream.clone());
    }
    let stream = Stream::new(driver, device.index, true)?;
    Ok(device.null_stream.get_or_init(|| stream).clone())
}

/// The stream with this handle, of the current context.
pub(super) fn here(handle: usize) -> Outcome<(&'static Driver, &'static Device, Arc<Stream>)> {
    let (driver, device) = current()?;
    Ok((driver, device, find(driver, device, handle)?))
}

/// A function of the host and its argument.
struct Call {
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
}

// SAFETY: `cuLaunchHostFunc` demands that the function may be called, with this argument, from another thread.
unsafe impl Send for Call {}
// SAFETY: as for `Send`; a stream calls it from one thread at a time.
unsafe impl Sync for Call {}

impl Call {
    fn run(&self) {
        // SAFETY: the caller of `cuLaunchHostFunc` promised that the function may be called with this argument.
        unsafe { (self.function)(self.data) }
    }
}

entries! {
    fn cuStreamCreate(stream: Out<usize>, flags: c_uint) {
        let (driver, device) = current()?;
        device.healthy()?;
        let started = Stream::new(driver, device.index, flags & NON_BLOCKING == 0)?;
        stream.set(driver.streams.add(started))
    }

    fn cuStreamCreateWithPriority(stream: Out<usize>, flags: c_uint, _priority: c_int) {
        let (driver, device) = current()?;
        device.healthy()?;
        let started = Stream::new(driver, device.index, flags & NON_BLOCKING == 0)?;
        stream.set(driver.streams.add(started))
    }

    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    fn cuStreamDestroy_v2(stream: usize) {
        // Work that is under way goes on: the thread ends when its queue is empty.
        Driver::get()?.streams.remove(stream).map(|_| ())
    }

    fn cuStreamSynchronize(stream: usize) {
        let (driver, _, stream) = here(stream)?;
        stream.synchronize(driver)
    }

    fn cuStreamQuery(stream: usize) {
        let (driver, device, stream) = here(stream)?;
        device.healthy()?;
        if stream.is_idle(driver)? { Ok(()) } else { Err(Code::NotReady.into()) }
    }

    fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) {
        let (driver, _, stream) = here(stream)?;
        stream.wait_for(&*driver.events.get(event)?)
    }

    fn cuStreamBeginCapture_v2(stream: usize, _mode: c_int) {
        if stream == 0 || stream == LEGACY {
            return Err(Code::CaptureUnsupported.into());
        }
        here(stream)?.2.begin_capture()
    }

    fn cuStreamEndCapture(stream: usize, graph: Out<usize>) {
        let (driver, _, stream) = here(stream)?;
        let capture = stream.end_capture(driver)?;
        graph.set(driver.graphs.add(Arc::new(capture.finish())))
    }

    fn cuStreamIsCapturing(stream: usize, status: Out<c_int>) {
        status.set(c_int::from(here(stream)?.2.capturing().is_some()))
    }

    fn cuLaunchHostFunc(
        stream: usize,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        data: *mut c_void,
    ) {
        let (driver, _, stream) = here(stream)?;
        let call = Call { function: function.ok_or(Code::InvalidValue)?, data };
        stream.enqueue(driver, Work::Call(Arc::new(move || call.run())))
    }
}
