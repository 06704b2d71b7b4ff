//! The driver functions in use.

use std::ffi::c_void;

use cudarc::driver::{
    result,
    sys::{self, CUcontext, CUstream},
};

use crate::result::{Code, Failure, Outcome};

fn failed(call: &str, error: cudarc::driver::DriverError) -> Failure {
    let text = error.error_string().map_or("unknown".into(), |t| t.to_string_lossy().into_owned());
    Failure::new(Code::UnhandledCudaError, format!("{call}: {text}"))
}

/// A device and its context, as they were current when this was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    context: CUcontext,
    pub(crate) device: i32,
    uuid: [u8; 16],
}

// SAFETY: a context is a name that the driver takes from any thread.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// What is current in this thread.
    pub(crate) fn current() -> Outcome<Self> {
        // SAFETY: looking for the library runs its initialisers, which the driver's own are made for.
        if !unsafe { sys::is_culib_present() } {
            return Err(Failure::new(Code::UnhandledCudaError, "there is no libcuda.so"));
        }
        let context = result::ctx::get_current().map_err(|e| failed("cuCtxGetCurrent", e))?;
        let Some(context) = context else {
            return Err(Failure::usage("no CUDA context is current in this thread"));
        };
        let mut device = 0;
        // SAFETY: the device goes to a variable of ours.
        let asked = unsafe { sys::cuCtxGetDevice(&raw mut device) };
        asked.result().map_err(|e| failed("cuCtxGetDevice", e))?;
        let uuid = result::device::get_uuid(device).map_err(|e| failed("cuDeviceGetUuid", e))?;
        Ok(Self { context, device, uuid: uuid.bytes.map(|b| b.cast_unsigned()) })
    }

    /// The primary context of a device, which stays retained.
    pub(crate) fn of(device: i32) -> Outcome<Self> {
        // SAFETY: as in `current`.
        if !unsafe { sys::is_culib_present() } {
            return Err(Failure::new(Code::UnhandledCudaError, "there is no libcuda.so"));
        }
        result::init().map_err(|e| failed("cuInit", e))?;
        let device = result::device::get(device).map_err(|e| failed("cuDeviceGet", e))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|e| failed("cuDevicePrimaryCtxRetain", e))?;
        Self { context, device, uuid: [0; 16] }.within(Self::current)
    }

    /// Tells devices of a host apart.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Runs `f` with the device's context current: a group may have calls on several devices.
    pub(crate) fn within<T>(&self, f: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let before = result::ctx::get_current().map_err(|e| failed("cuCtxGetCurrent", e))?;
        set_current(self.context)?;
        let result = f();
        set_current(before.unwrap_or(std::ptr::null_mut()))?;
        result
    }
}

fn set_current(context: CUcontext) -> Outcome {
    // SAFETY: the context is retained, or was current before (null is none).
    unsafe { result::ctx::set_current(context) }.map_err(|e| failed("cuCtxSetCurrent", e))
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl Pinned {
    pub(crate) fn alloc(bytes: u64) -> Outcome<Self> {
        // SAFETY: nothing reads the memory before it is written.
        let start = unsafe { result::malloc_host(bytes as usize, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let start = start.map_err(|e| failed("cuMemHostAlloc", e))?;
        Ok(Self { start: start.addr() as u64, bytes })
    }

    /// Frees it, after all that is enqueued on its device, whose context is current.
    pub(crate) fn free(self) -> Outcome {
        // SAFETY: it is the address that `alloc` got, and nothing uses it after this.
        unsafe { result::free_host(self.start as *mut c_void) }
            .map_err(|e| failed("cuMemFreeHost", e))
    }
}

/// A stream of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stream(pub(crate) usize);

impl Stream {
    fn raw(self) -> CUstream {
        self.0 as CUstream
    }

    /// Whether what is enqueued is kept for a graph.
    pub(crate) fn is_capturing(self) -> Outcome<bool> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the status goes to a variable of ours.
        let asked = unsafe { sys::cuStreamIsCapturing(self.raw(), &raw mut status) };
        asked.result().map_err(|e| failed("cuStreamIsCapturing", e))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Enqueues a copy between memory of a device and pinned memory.
    pub(crate) fn copy(self, to: u64, from: u64, bytes: u64) -> Outcome {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller of the entry vouches for its buffer, and the other is pinned memory of this size (`staging`).
        let copied = unsafe { sys::cuMemcpyAsync(to, from, bytes as usize, self.raw()) };
        copied.result().map_err(|e| failed("cuMemcpyAsync", e))
    }

    /// Enqueues a call of `task`.
    pub(crate) fn call(self, task: Box<dyn FnOnce() + Send>) -> Outcome {
        let task = Box::into_raw(Box::new(task));
        // SAFETY: the driver calls `run` once with the box, which that takes back.
        let enqueued =
            unsafe { result::stream::launch_host_function(self.raw(), run, task.cast::<c_void>()) };
        if enqueued.is_err() {
            // SAFETY: the driver refused, so nobody else has the box.
            drop(unsafe { Box::from_raw(task) });
        }
        enqueued.map_err(|e| failed("cuLaunchHostFunc", e))
    }

    /// Captures a call of `task`, which each launch of the graph makes. Nothing tells when the last one was, so it stays for good.
    pub(crate) fn call_again(self, task: Task) -> Outcome {
        let task = Box::into_raw(Box::new(task));
        // SAFETY: the driver calls `run_again` with the box, which nobody frees.
        let enqueued = unsafe {
            result::stream::launch_host_function(self.raw(), run_again, task.cast::<c_void>())
        };
        enqueued.map_err(|e| failed("cuLaunchHostFunc", e))
    }
}

type Task = Box<dyn Fn() + Send + Sync>;

unsafe extern "C" fn run_again(task: *mut c_void) {
    // SAFETY: `Stream::call_again` passed a box of this type, which is never freed.
    let task = unsafe { &*task.cast::<Task>() };
    // As in `run`.
    _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
}

unsafe extern "C" fn run(task: *mut c_void) {
    // SAFETY: `Stream::call` passed a box of this type, to one call.
    let task = unsafe { Box::from_raw(task.cast::<Box<dyn FnOnce() + Send>>()) };
    // A panic would leave through the driver; whoever waits for the exchange sees its rank leave it.
    _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
}
