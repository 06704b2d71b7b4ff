//! What a management library measures: the functions of NVML that backends ask, for a link named `libnvidia-ml.so.1`.
//!
//! Whether a kernel runs is so; degrees and watts are made up, different for each device.

use super::{In, Out};
use crate::code::{Code, Outcome};
use crate::driver::{Device, Driver};
use std::ffi::{c_char, c_uint, c_ulonglong};
use std::sync::atomic::Ordering::SeqCst;

/// Handle of the first device; the others follow.
const FIRST: usize = 0x3000;

/// `nvmlReturn_t` of a `CUresult`.
pub(super) fn result(code: u32) -> u32 {
    const INVALID_ARGUMENT: u32 = 2;
    const NOT_SUPPORTED: u32 = 3;
    const UNKNOWN: u32 = 999;
    match code {
        0 => 0,
        code if code == Code::InvalidValue as u32 => INVALID_ARGUMENT,
        code if code == Code::NotSupported as u32 => NOT_SUPPORTED,
        _ => UNKNOWN,
    }
}

fn device(handle: usize) -> Outcome<&'static Device> {
    let index = handle.checked_sub(FIRST).ok_or(Code::InvalidValue)?;
    Driver::get()?.devices.get(index).ok_or_else(|| Code::InvalidValue.into())
}

/// Percent.
fn busy(device: &Device) -> c_uint {
    if device.running.load(SeqCst) > 0 { 100 } else { 0 }
}

management_entries! {
    fn nvmlInit_v2() {
        Driver::start().map(|_| ())
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(bus: In<c_char>, handle: Out<usize>) {
        let bus = bus.text()?;
        let devices = &Driver::get()?.devices;
        let found = devices.iter().position(|device| device.bus_id() == bus);
        handle.set(FIRST + found.ok_or(Code::InvalidValue)?)
    }

    fn nvmlDeviceGetTemperature(handle: usize, sensor: c_uint, celsius: Out<c_uint>) {
        let device = device(handle)?;
        if sensor != 0 {
            return Err(Code::InvalidValue.into());
        }
        celsius.set(40 + device.index)
    }

    fn nvmlDeviceGetPowerUsage(handle: usize, milliwatts: Out<c_uint>) {
        milliwatts.set(75_500 + 1000 * device(handle)?.index)
    }

    fn nvmlDeviceGetUtilizationRates(handle: usize, percent: Out<[c_uint; 2]>) {
        let busy = busy(device(handle)?);
        percent.set([busy, busy])
    }

    fn nvmlDeviceGetClockInfo(handle: usize, _domain: c_uint, megahertz: Out<c_uint>) {
        megahertz.set(device(handle)?.profile.clock_khz / 1000)
    }

    fn nvmlDeviceGetTotalEccErrors(handle: usize, _kind: c_uint, _since: c_uint, count: Out<c_ulonglong>) {
        // Memory of cards for players corrects nothing.
        if device(handle)?.profile.name == "rtx4090" {
            return Err(Code::NotSupported.into());
        }
        count.set(0)
    }
}
