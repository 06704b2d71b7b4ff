//! The driver itself, its devices, and the context that calls run in.

use core::ffi::{CStr, c_char, c_int};
use core::marker::PhantomData;

use cudarc::driver::{
    result::{self, device, primary_ctx},
    sys::{self, CUcontext, CUdevice, CUdevice_attribute},
};
use halyard_sdk::{Code, Error, Result};

use super::error::Named;

/// The oldest driver whose interface this crate is compiled for, as `cuDriverGetVersion` says it: CUDA 12.2, driver 535.
const OLDEST_DRIVER: i32 = 12020;

/// `12.4` of 12040.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Loads the driver and starts it; its version.
///
/// # Errors
/// `UNSUPPORTED` if there is no driver or an older one, and what `cuInit` says.
pub(crate) fn start() -> Result<i32> {
    // SAFETY: looking for the library runs its initialisers, which the driver's own are made for.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::unsupported(
            "no libcuda.so.1: the NVIDIA driver is not installed, or not on the library path",
        ));
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    // SAFETY: whether it has the entry is all that is asked.
    if unsafe { library.get::<unsafe extern "C" fn()>(b"cuDriverGetVersion") }.is_err() {
        return Err(Error::unsupported(
            "libcuda.so.1 is no NVIDIA driver: it has no cuDriverGetVersion; look at the library path",
        ));
    }
    let mut version = 0;
    // SAFETY: the version goes to a variable of ours.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.named("cuDriverGetVersion")?;
    if version < OLDEST_DRIVER {
        return Err(Error::unsupported(format!(
            "the NVIDIA driver supports CUDA {}, at least {} is needed (driver 535 or newer)",
            dotted(version),
            dotted(OLDEST_DRIVER)
        )));
    }
    result::init().named("cuInit")?;
    Ok(version)
}

/// The driver's version for people.
pub(crate) fn version_text() -> String {
    start().map_or_else(|_| String::new(), |v| format!("CUDA {}", dotted(v)))
}

/// Devices present.
///
/// # Errors
/// As [`start`]; what the driver says.
pub(crate) fn count() -> Result<u32> {
    match start() {
        // The driver does not start without a device.
        Err(error) if error.vendor_code == sys::CUresult::CUDA_ERROR_NO_DEVICE as i32 => {
            return Ok(0);
        }
        started => started?,
    };
    let count = device::get_count().named("cuDeviceGetCount")?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// A device and its primary context, which is kept as long as this is.
#[derive(Debug)]
pub(crate) struct Context {
    device: CUdevice,
    raw: CUcontext,
}

// SAFETY: a context is a name that the driver takes from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// # Errors
    /// What the driver says.
    pub(crate) fn retain(ordinal: u32) -> Result<Self> {
        start()?;
        let ordinal =
            c_int::try_from(ordinal).map_err(|_| Error::invalid("a device beyond 2³¹"))?;
        let device = device::get(ordinal).named("cuDeviceGet")?;
        // SAFETY: the device is one that the driver gave.
        let raw = unsafe { primary_ctx::retain(device) }.named("cuDevicePrimaryCtxRetain")?;
        Ok(Self { device, raw })
    }

    /// Makes this the calling thread's context until the guard is dropped.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn bind(&self) -> Result<Bound<'_>> {
        let mut before = core::ptr::null_mut();
        // SAFETY: the context goes to a variable of ours.
        unsafe { sys::cuCtxGetCurrent(&raw mut before) }.named("cuCtxGetCurrent")?;
        if before != self.raw {
            set(self.raw)?;
        }
        Ok(Bound { before, current: self.raw, _context: PhantomData })
    }

    /// A number about the device.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn attribute(&self, which: CUdevice_attribute) -> Result<u32> {
        // SAFETY: the device is one that the driver gave.
        let value = unsafe { device::get_attribute(self.device, which) };
        let value = value.named("cuDeviceGetAttribute")?;
        u32::try_from(value)
            .map_err(|_| Error::new(Code::INTERNAL, format!("{which:?} of the device is {value}")))
    }

    /// Bytes of device memory.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn total_memory(&self) -> Result<u64> {
        // SAFETY: the device is one that the driver gave.
        let bytes = unsafe { device::total_mem(self.device) }.named("cuDeviceTotalMem")?;
        Ok(bytes as u64)
    }

    /// Free and total bytes now.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn memory_now(&self) -> Result<(u64, u64)> {
        let _bound = self.bind()?;
        let (free, total) = result::mem_get_info().named("cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }

    /// Lets the other devices of this process use memory of this one's pool, as far as they are linked. NCCL reads and writes the
    /// memory of ranks in one process directly, and takes it that devices may; those that are not linked are reached otherwise.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn share_pool(&self) -> Result<()> {
        let mut pool = core::ptr::null_mut();
        // SAFETY: the pool goes to a variable of ours; the device is one that the driver gave.
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, self.device) }
            .named("cuDeviceGetDefaultMemPool")?;
        let mut linked = Vec::new();
        for ordinal in 0..count()? {
            let peer = device::get(ordinal.cast_signed()).named("cuDeviceGet")?;
            let mut can = 0;
            // SAFETY: the answer goes to a variable of ours; the devices are ones that the driver gave.
            unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, peer, self.device) }
                .named("cuDeviceCanAccessPeer")?;
            if can != 0 {
                linked.push(sys::CUmemAccessDesc {
                    location: sys::CUmemLocation {
                        type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                        id: peer,
                    },
                    flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
                });
            }
        }
        if linked.is_empty() {
            return Ok(());
        }
        // SAFETY: the list is read before the call returns.
        unsafe { sys::cuMemPoolSetAccess(pool, linked.as_ptr(), linked.len()) }
            .named("cuMemPoolSetAccess")
    }

    /// The device's name.
    pub(crate) fn name(&self) -> String {
        device::get_name(self.device).unwrap_or_default()
    }

    /// The device's universal id, as `nvidia-smi -L` prints it.
    pub(crate) fn uuid(&self) -> String {
        let Ok(uuid) = device::get_uuid(self.device) else { return String::new() };
        let hex: Vec<String> = uuid.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect();
        let part = |from: usize, to: usize| hex[from..to].concat();
        format!("GPU-{}-{}-{}-{}-{}", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16))
    }

    /// The device's place on the bus, as `nvidia-smi` prints it.
    pub(crate) fn bus_id(&self) -> String {
        let mut text = [0 as c_char; 32];
        // SAFETY: the text has as much room as is said.
        let got = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), 32, self.device) };
        if got.result().is_err() {
            return String::new();
        }
        let bytes = text.map(|c| c as u8);
        CStr::from_bytes_until_nul(&bytes)
            .map_or_else(|_| String::new(), |t| t.to_string_lossy().into_owned())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once by `retain`, and nothing of it is used after this.
        let released = unsafe { primary_ctx::release(self.device) };
        if let Err(error) = released.named("cuDevicePrimaryCtxRelease") {
            tracing::warn!(%error, "closing the device");
        }
    }
}

/// The calling thread's context while this lives.
#[derive(Debug)]
pub(crate) struct Bound<'a> {
    before: CUcontext,
    current: CUcontext,
    _context: PhantomData<&'a Context>,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if self.before != self.current
            && let Err(error) = set(self.before)
        {
            tracing::warn!(%error, "the thread's former context is gone");
        }
    }
}

fn set(context: CUcontext) -> Result<()> {
    // SAFETY: the context is retained, or was the thread's before (null is none).
    unsafe { result::ctx::set_current(context) }.named("cuCtxSetCurrent")
}
