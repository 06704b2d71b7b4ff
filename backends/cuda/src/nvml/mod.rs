//! NVML as safe Rust: what the driver's management library measures of a device.
//!
//! It is optional. Nothing is linked; the library is looked for when measurements are first wanted, and where it or one of its functions is
//! missing, or a device does not have a sensor, the measurement is left out.

use std::{
    ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void},
    ptr,
    sync::OnceLock,
};

use halyard_sdk::MetricKey;
use libloading::Library;

/// `nvmlDevice_t`
type RawDevice = *mut c_void;
/// `nvmlReturn_t`; 0 is success.
type Return = c_int;

/// `NVML_TEMPERATURE_GPU`
const ON_DIE: c_uint = 0;
/// `NVML_CLOCK_SM`
const OF_PROCESSORS: c_uint = 1;
/// `NVML_MEMORY_ERROR_TYPE_UNCORRECTED`
const UNCORRECTED: c_uint = 1;
/// `NVML_VOLATILE_ECC`: since the driver was loaded.
const SINCE_LOAD: c_uint = 0;

/// `nvmlUtilization_t`: percent of the last sampling period.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Utilization {
    /// In which a kernel ran.
    processors: c_uint,
    /// In which memory was read or written.
    memory: c_uint,
}

/// The functions in use, by NVML's names. They stay where they are: a library is never unloaded.
#[derive(Debug)]
struct Functions {
    by_bus_id: unsafe extern "C" fn(*const c_char, *mut RawDevice) -> Return,
    temperature: Option<unsafe extern "C" fn(RawDevice, c_uint, *mut c_uint) -> Return>,
    power: Option<unsafe extern "C" fn(RawDevice, *mut c_uint) -> Return>,
    utilization: Option<unsafe extern "C" fn(RawDevice, *mut Utilization) -> Return>,
    clock: Option<unsafe extern "C" fn(RawDevice, c_uint, *mut c_uint) -> Return>,
    ecc_errors: Option<unsafe extern "C" fn(RawDevice, c_uint, c_uint, *mut c_ulonglong) -> Return>,
    _library: Library,
}

/// The library, started once a process; none if it is not there or does not start.
fn functions() -> Option<&'static Functions> {
    static KNOWN: OnceLock<Option<Functions>> = OnceLock::new();
    KNOWN.get_or_init(start).as_ref()
}

fn start() -> Option<Functions> {
    // SAFETY: loading runs the library's initialisers, which are made for that.
    let library = match unsafe { Library::new("libnvidia-ml.so.1") } {
        Ok(library) => library,
        Err(error) => {
            tracing::debug!(%error, "no libnvidia-ml.so.1: no temperature, power and utilization");
            return None;
        }
    };
    let begin: unsafe extern "C" fn() -> Return = function(&library, b"nvmlInit_v2")?;
    // SAFETY: it takes nothing, and may be called at any time.
    let result = unsafe { begin() };
    if result != 0 {
        tracing::debug!(result, "nvmlInit failed: no temperature, power and utilization");
        return None;
    }
    Some(Functions {
        by_bus_id: function(&library, b"nvmlDeviceGetHandleByPciBusId_v2")?,
        temperature: function(&library, b"nvmlDeviceGetTemperature"),
        power: function(&library, b"nvmlDeviceGetPowerUsage"),
        utilization: function(&library, b"nvmlDeviceGetUtilizationRates"),
        clock: function(&library, b"nvmlDeviceGetClockInfo"),
        ecc_errors: function(&library, b"nvmlDeviceGetTotalEccErrors"),
        _library: library,
    })
}

/// A function of the library; `F` is its type in NVML's header.
fn function<F: Copy>(library: &Library, name: &[u8]) -> Option<F> {
    // SAFETY: the types in `Functions` are those of NVML's header, which keeps what it has once published.
    unsafe { library.get::<F>(name) }.ok().map(|found| *found)
}

/// A device's sensors.
#[derive(Debug)]
pub(crate) struct Sensors {
    functions: &'static Functions,
    device: RawDevice,
}

// SAFETY: NVML is thread-safe, and a device is a name that it takes from any thread.
unsafe impl Send for Sensors {}
// SAFETY: as above.
unsafe impl Sync for Sensors {}

impl Sensors {
    /// Those of the device at this place on the bus; none without NVML. CUDA and NVML number devices differently.
    pub(crate) fn of(bus_id: &str) -> Option<Self> {
        let functions = functions()?;
        let text = CString::new(bus_id).ok()?;
        let mut device = ptr::null_mut();
        // SAFETY: the text ends with a zero; the device goes to a variable of ours.
        let result = unsafe { (functions.by_bus_id)(text.as_ptr(), &raw mut device) };
        if result != 0 {
            tracing::debug!(bus_id, result, "NVML does not know the device");
            return None;
        }
        Some(Self { functions, device })
    }

    /// What they say now.
    pub(crate) fn read(&self) -> impl Iterator<Item = (MetricKey, u64)> {
        let Functions { temperature, power, clock, utilization, ecc_errors, .. } = self.functions;
        let (device, small) = (self.device, u64::from);
        // SAFETY: NVML gave the device; the number goes to a variable of ours. So in all that follow.
        let temperature = measured(*temperature, |f, to| unsafe { f(device, ON_DIE, to) });
        // SAFETY: as above.
        let power = measured(*power, |f, to| unsafe { f(device, to) });
        // SAFETY: as above.
        let clock = measured(*clock, |f, to| unsafe { f(device, OF_PROCESSORS, to) });
        // SAFETY: as above.
        let busy = measured(*utilization, |f, to| unsafe { f(device, to) });
        let ecc_errors =
            // SAFETY: as above.
            measured(*ecc_errors, |f, to| unsafe { f(device, UNCORRECTED, SINCE_LOAD, to) });
        let all = [
            (MetricKey::UTIL_PCT, busy.map(|busy: Utilization| small(busy.processors))),
            (MetricKey::MEM_BW_PCT, busy.map(|busy| small(busy.memory))),
            (MetricKey::TEMP_C, temperature.map(small)),
            (MetricKey::POWER_MW, power.map(small)),
            (MetricKey::CLOCK_MHZ, clock.map(small)),
            (MetricKey::ECC_ERRORS, ecc_errors),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?)))
    }
}

/// What a function writes, if it is there and succeeds.
fn measured<F, T: Default>(
    function: Option<F>,
    call: impl FnOnce(F, *mut T) -> Return,
) -> Option<T> {
    let mut value = T::default();
    (call(function?, &raw mut value) == 0).then_some(value)
}
