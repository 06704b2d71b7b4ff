//! The driver's functions that substitutes of the vendor's libraries call: what they enqueue are copies to pinned memory, a function of the
//! host that works on it, and copies back. Nothing is used but the public driver API, so any driver library does.
#![expect(clippy::cast_possible_truncation, reason = "sizes: usize is u64 here")]

use std::{ffi::c_void, ptr};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUcontext, CUpointer_attribute as Attribute, CUresult, CUstream},
};

/// `CU_MEMORYTYPE_DEVICE`
const ON_DEVICE: u32 = 2;

/// Why the driver could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The library is not there.
    #[error("there is no libcuda.so")]
    NoDriver,
    /// A thread has chosen no device.
    #[error("no CUDA context is current in this thread")]
    NoContext,
    /// A function refused.
    #[error("{call}: {text}")]
    Failed {
        /// The function.
        call: &'static str,
        /// What the driver says of its result.
        text: String,
    },
}

/// What the driver gives.
pub type Result<T = (), E = CallError> = std::result::Result<T, E>;

fn failed(call: &'static str) -> impl Fn(DriverError) -> CallError {
    move |error| {
        let text = error.error_string();
        let text = text.map_or("unknown".into(), |text| text.to_string_lossy().into_owned());
        CallError::Failed { call, text }
    }
}

fn done(call: &'static str, result: CUresult) -> Result {
    result.result().map_err(failed(call))
}

fn present() -> Result {
    // SAFETY: looking for the library runs its initialisers, which the driver's own are made for.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(CallError::NoDriver) }
}

/// A context and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    context: CUcontext,
    device: i32,
}

// SAFETY: a context is a name that the driver takes from any thread.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// What is current in this thread.
    ///
    /// # Errors
    /// There is no driver, or no context.
    pub fn current() -> Result<Self> {
        present()?;
        let context = result::ctx::get_current().map_err(failed("cuCtxGetCurrent"))?;
        let context = context.ok_or(CallError::NoContext)?;
        let mut device = 0;
        // SAFETY: the device goes to a variable of ours.
        done("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&raw mut device) })?;
        Ok(Self { context, device })
    }

    /// The primary context of a device, which stays retained.
    ///
    /// # Errors
    /// There is no driver, or no such device.
    pub fn of(device: i32) -> Result<Self> {
        present()?;
        result::init().map_err(failed("cuInit"))?;
        let device = result::device::get(device).map_err(failed("cuDeviceGet"))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) };
        Ok(Self { context: context.map_err(failed("cuDevicePrimaryCtxRetain"))?, device })
    }

    /// The device's number.
    #[must_use]
    pub fn device(&self) -> i32 {
        self.device
    }

    /// Tells devices of a host apart.
    ///
    /// # Errors
    /// The driver does not tell it.
    pub fn uuid(&self) -> Result<[u8; 16]> {
        let uuid = result::device::get_uuid(self.device).map_err(failed("cuDeviceGetUuid"))?;
        Ok(uuid.bytes.map(|byte| byte.cast_unsigned()))
    }

    /// Runs `f` with the context current.
    ///
    /// # Errors
    /// Those of `f`, or the driver's.
    pub fn within<T, E: From<CallError>>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = result::ctx::get_current().map_err(failed("cuCtxGetCurrent"))?;
        set_current(self.context)?;
        let result = f();
        set_current(before.unwrap_or(ptr::null_mut()))?;
        result
    }
}

fn set_current(context: CUcontext) -> Result {
    // SAFETY: the context is retained, or was current before (null is none).
    unsafe { result::ctx::set_current(context) }.map_err(failed("cuCtxSetCurrent"))
}

/// The device whose memory has the byte at `address`, and how many bytes there are from it to the end of its allocation. `None` if it is
/// not in a device's memory.
///
/// # Errors
/// The driver knows of no memory there.
pub fn allocation(address: u64) -> Result<Option<(u32, u64)>> {
    let ask = |attribute: Attribute| {
        let mut value = 0u32;
        // SAFETY: the attributes asked for are numbers of 32 bits.
        let asked =
            unsafe { sys::cuPointerGetAttribute((&raw mut value).cast(), attribute, address) };
        done("cuPointerGetAttribute", asked).map(|()| value)
    };
    if ask(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE)? != ON_DEVICE {
        return Ok(None);
    }
    let device = ask(Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)?;
    let (mut first, mut size) = (0, 0);
    // SAFETY: both numbers go to variables of ours.
    let asked = unsafe { sys::cuMemGetAddressRange_v2(&raw mut first, &raw mut size, address) };
    done("cuMemGetAddressRange", asked)?;
    Ok(Some((device, (first + size as u64).saturating_sub(address))))
}

/// Pinned memory of the host.
#[derive(Debug)]
pub struct Pinned {
    start: u64,
    bytes: u64,
}

impl Pinned {
    /// So many bytes, with anything in them.
    ///
    /// # Errors
    /// The host has not so many.
    pub fn alloc(bytes: u64) -> Result<Self> {
        // SAFETY: nothing reads the memory before it is written.
        let start = unsafe { result::malloc_host(bytes as usize, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let start = start.map_err(failed("cuMemHostAlloc"))?;
        Ok(Self { start: start.addr() as u64, bytes })
    }

    /// Its address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Frees it, after all that is enqueued on its device, whose context is current.
    ///
    /// # Errors
    /// The driver's.
    pub fn free(self) -> Result {
        // SAFETY: it is the address that `alloc` got, and nothing uses it after this.
        unsafe { result::free_host(self.start as *mut c_void) }.map_err(failed("cuMemFreeHost"))
    }
}

/// What a stream calls, once or in each launch of a graph.
pub type Task = Box<dyn Fn() + Send + Sync>;

/// A stream of the caller's, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub usize);

impl Stream {
    fn raw(self) -> CUstream {
        self.0 as CUstream
    }

    /// Whether what is enqueued is kept for a graph.
    ///
    /// # Errors
    /// The driver's.
    pub fn is_capturing(self) -> Result<bool> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the status goes to a variable of ours.
        let asked = unsafe { sys::cuStreamIsCapturing(self.raw(), &raw mut status) };
        done("cuStreamIsCapturing", asked)?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Enqueues a copy between memory of a device and pinned memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn copy(self, to: u64, from: u64, bytes: u64) -> Result {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: one side is a buffer that the caller of a library's entry vouches for, the other pinned memory that the library sized for it.
        done("cuMemcpyAsync", unsafe { sys::cuMemcpyAsync(to, from, bytes as usize, self.raw()) })
    }

    /// Enqueues writes of `byte` to memory of a device.
    ///
    /// # Errors
    /// The driver's.
    pub fn fill(self, start: u64, byte: u8, bytes: u64) -> Result {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as in `copy`.
        let enqueued = unsafe { sys::cuMemsetD8Async(start, byte, bytes as usize, self.raw()) };
        done("cuMemsetD8Async", enqueued)
    }

    /// Enqueues a call of `task`.
    ///
    /// # Errors
    /// The driver's.
    pub fn call(self, task: Box<dyn FnOnce() + Send>) -> Result {
        let task = Box::into_raw(Box::new(task));
        // SAFETY: the driver calls `run` once with the box, which that takes back.
        let enqueued =
            unsafe { result::stream::launch_host_function(self.raw(), run, task.cast::<c_void>()) };
        if enqueued.is_err() {
            // SAFETY: the driver refused, so nobody else has the box.
            drop(unsafe { Box::from_raw(task) });
        }
        enqueued.map_err(failed("cuLaunchHostFunc"))
    }

    /// Enqueues calls of `task`: one, or one for each launch of the graph that is captured. Nothing tells when the last one was, so it stays
    /// for good.
    ///
    /// # Errors
    /// The driver's.
    pub fn call_again(self, task: Task) -> Result {
        let task = Box::into_raw(Box::new(task));
        // SAFETY: the driver calls `run_again` with the box, which nobody frees.
        let enqueued = unsafe {
            result::stream::launch_host_function(self.raw(), run_again, task.cast::<c_void>())
        };
        enqueued.map_err(failed("cuLaunchHostFunc"))
    }
}

unsafe extern "C" fn run_again(task: *mut c_void) {
    // SAFETY: `Stream::call_again` passed a box of this type, which is never freed.
    let task = unsafe { &*task.cast::<Task>() };
    // As in `run`.
    _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
}

unsafe extern "C" fn run(task: *mut c_void) {
    // SAFETY: `Stream::call` passed a box of this type, to one call.
    let task = unsafe { Box::from_raw(task.cast::<Box<dyn FnOnce() + Send>>()) };
    // A panic would leave through the driver; whoever waits for what the task was to do sees that it is not done.
    _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
}
