//! Contexts: the primary one of each device, and which is current in a thread.

use super::Out;
use crate::code::{Code, Failure, Outcome};
use crate::driver::{Device, Driver};
use std::cell::Cell;
use std::ffi::{c_int, c_uint};
use std::sync::atomic::Ordering::SeqCst;

/// Handle of the first device's context; the others follow.
const FIRST: usize = 0x1000;

thread_local! {
    /// The context that calls of this thread mean, or 0.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The device of a context.
fn device_of(driver: &'static Driver, context: usize) -> Outcome<&'static Device> {
    let index = context.checked_sub(FIRST).ok_or(Code::InvalidContext)?;
    let device = driver.devices.get(index).ok_or(Code::InvalidContext)?;
    if device.retained.load(SeqCst) == 0 {
        return Err(Failure::new(Code::InvalidContext, "the context was released"));
    }
    Ok(device)
}

/// The driver and the device that this thread's calls mean.
pub(super) fn current() -> Outcome<(&'static Driver, &'static Device)> {
    let driver = Driver::get()?;
    Ok((driver, device_of(driver, CURRENT.get())?))
}

entries! {
    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: c_int) {
        let device = Driver::get()?.device(device)?;
        device.retained.fetch_add(1, SeqCst);
        context.set(FIRST + device.index as usize)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let device = Driver::get()?.device(device)?;
        let released = device.retained.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1));
        if released.map_err(|_| Code::InvalidContext)? == 1 {
            device.reset();
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(device: c_int) {
        Driver::get()?.device(device)?.reset();
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: c_int, flags: Out<c_uint>, active: Out<c_int>) {
        let device = Driver::get()?.device(device)?;
        flags.set(0)?;
        active.set(c_int::from(device.retained.load(SeqCst) > 0))
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) {
        Driver::get()?.device(device).map(|_| ())
    }

    fn cuCtxGetCurrent(context: Out<usize>) {
        Driver::get()?;
        context.set(CURRENT.get())
    }

    fn cuCtxSetCurrent(context: usize) {
        let driver = Driver::get()?;
        if context != 0 {
            device_of(driver, context)?;
        }
        CURRENT.set(context);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<c_int>) {
        device.set(current()?.1.index.cast_signed())
    }

    fn cuCtxSynchronize() {
        let (driver, device) = current()?;
        driver.synchronize(device)
    }

    fn cuCtxEnablePeerAccess(peer: usize, flags: c_uint) {
        let (driver, device) = current()?;
        let peer = device_of(driver, peer)?;
        if flags != 0 || peer.index == device.index {
            return Err(Code::InvalidValue.into());
        }
        let bit = 1u64.checked_shl(peer.index).unwrap_or(0);
        if device.peers.fetch_or(bit, SeqCst) & bit != 0 {
            return Err(Code::PeerAlreadyEnabled.into());
        }
        Ok(())
    }
}
