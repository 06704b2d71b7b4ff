//! The driver functions in use.

use std::ffi::c_void;

use cudarc::driver::{
    result,
    sys::{self, CUcontext, CUpointer_attribute as Attribute, CUresult, CUstream},
};

use crate::status::{Failure, Outcome, Status};

/// `CU_MEMORYTYPE_DEVICE`
const ON_DEVICE: u32 = 2;

fn named(call: &str, result: CUresult) -> Outcome {
    result.result().map_err(|error| failed(call, error))
}

fn failed(call: &str, error: cudarc::driver::DriverError) -> Failure {
    let text = error.error_string().map_or("unknown".into(), |t| t.to_string_lossy().into_owned());
    Failure::new(Status::ExecutionFailed, format!("{call}: {text}"))
}

/// A context and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    context: CUcontext,
    device: i32,
}

// SAFETY: a context is a name that the driver takes from any thread.
unsafe impl Send for Place {}

impl Place {
    /// What is current in this thread.
    pub(crate) fn current() -> Outcome<Self> {
        let missing = |text: &str| Failure::new(Status::NotInitialized, text);
        // SAFETY: looking for the library runs its initialisers, which the driver's own are made for.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("there is no libcuda.so"));
        }
        let context = result::ctx::get_current().map_err(|e| failed("cuCtxGetCurrent", e))?;
        let Some(context) = context else {
            return Err(missing("no CUDA context is current in this thread"));
        };
        let mut device = 0;
        // SAFETY: the device goes to a variable of ours.
        named("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&raw mut device) })?;
        Ok(Self { context, device })
    }

    /// Checks that so many bytes are in one allocation of this device.
    ///
    /// # Errors
    /// `INVALID_VALUE`, naming `what`.
    pub(crate) fn holds(&self, what: &str, start: u64, bytes: u64) -> Outcome {
        let outside = |why: String| Failure::value(format!("{what} at {start:#x}: {why}"));
        let ask = |attribute: Attribute| {
            let mut value = 0u32;
            // SAFETY: the attributes asked for are numbers of 32 bits.
            let asked =
                unsafe { sys::cuPointerGetAttribute((&raw mut value).cast(), attribute, start) };
            named("cuPointerGetAttribute", asked)
                .map_err(|_| outside("no memory of the driver's".into()))?;
            Ok(value)
        };
        if ask(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE)? != ON_DEVICE {
            return Err(outside("not in a device's memory".into()));
        }
        let device = ask(Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)?;
        if device != self.device.unsigned_abs() {
            return Err(outside(format!(
                "in device {device}'s memory, the handle is of device {}",
                self.device
            )));
        }
        let (mut first, mut size) = (0, 0);
        // SAFETY: both numbers go to variables of ours.
        let asked = unsafe { sys::cuMemGetAddressRange_v2(&raw mut first, &raw mut size, start) };
        named("cuMemGetAddressRange", asked)?;
        let room = (first + size as u64).saturating_sub(start);
        if bytes > room {
            return Err(outside(format!("{bytes} bytes, and {room} to the end of the allocation")));
        }
        Ok(())
    }
}

/// Pinned memory of the host, kept for good: nothing tells when the last launch of a graph was.
#[derive(Clone, Copy, Debug)]
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

    /// Runs `f` on the bytes, in a function that a stream calls.
    pub(crate) fn with(self, f: impl FnOnce(&mut [u8])) {
        // SAFETY: the memory is never freed, and has this size; a stream's work uses it one after the other.
        f(unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.bytes as usize) });
    }
}

/// So many pieces of a matrix, from one place to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// From one to the next.
    pub(crate) from_step: u64,
    pub(crate) to_step: u64,
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
        named("cuStreamIsCapturing", unsafe {
            sys::cuStreamIsCapturing(self.raw(), &raw mut status)
        })?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Enqueues copies between memory of a device and pinned memory; gaps between pieces are not touched.
    pub(crate) fn copy(self, to: u64, from: u64, pieces: Pieces) -> Outcome {
        let Pieces { count, bytes, from_step, to_step } = pieces;
        let whole = from_step == bytes && to_step == bytes;
        let (count, bytes) = if whole { (1, count * bytes) } else { (count, bytes) };
        for i in 0..count {
            let (to, from) = (to + i * to_step, from + i * from_step);
            // SAFETY: the caller has checked its matrix (`Place::holds`), and the other is pinned memory of the matrix's size.
            named("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(to, from, bytes as usize, self.raw())
            })?;
        }
        Ok(())
    }

    /// Enqueues bytes that are no numbers, over what nobody may use.
    pub(crate) fn spoil(self, start: u64, bytes: u64) -> Outcome {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller has checked its workspace (`Place::holds`).
        named("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(start, 0xff, bytes as usize, self.raw())
        })
    }

    /// Enqueues calls of `task`: one, or one for each launch of the graph that is captured. It stays for good.
    pub(crate) fn call(self, task: Task) -> Outcome {
        let task = Box::into_raw(Box::new(task));
        // SAFETY: the driver calls `run` with the box, which nobody frees.
        let enqueued =
            unsafe { result::stream::launch_host_function(self.raw(), run, task.cast::<c_void>()) };
        enqueued.map_err(|e| failed("cuLaunchHostFunc", e))
    }
}

pub(crate) type Task = Box<dyn Fn() + Send + Sync>;

unsafe extern "C" fn run(task: *mut c_void) {
    // SAFETY: `Stream::call` passed a box of this type, which is never freed.
    let task = unsafe { &*task.cast::<Task>() };
    // A panic would leave through the driver; the result, which then is not written, is what shows it.
    _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
}
