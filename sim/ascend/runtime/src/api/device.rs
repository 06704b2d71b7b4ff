//! Devices.

use super::Out;
use crate::capture::Capture;
use crate::code::{Code, Failure, Outcome};
use crate::runtime::{Context, Device, Runtime, here, runtime, set_current_context};
use std::sync::Arc;
use std::time::Duration;

/// `aclrtUtilizationInfo`: percent.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Utilization {
    cube: i32,
    vector: i32,
    ai_cpu: i32,
    memory: i32,
    extend: u64,
}

const _: () = assert!(size_of::<Utilization>() == 24);

/// A bound in milliseconds; -1 is none.
pub(super) fn bound(timeout: i32) -> Outcome<Option<Duration>> {
    match u64::try_from(timeout) {
        Ok(ms) => Ok(Some(Duration::from_millis(ms))),
        Err(_) if timeout == -1 => Ok(None),
        Err(_) => Err(Failure::argument("timeout", format!("{timeout} ms"))),
    }
}

/// The context that a device has of its own.
fn default_context(runtime: &Runtime, device: &Device) -> usize {
    *device.context.get_or_init(|| runtime.handles.add(Arc::new(Context { device: device.index })))
}

fn synchronize(timeout: i32) -> Outcome {
    let (runtime, device) = here()?;
    Capture::forbid()?;
    for stream in runtime.streams_of(device) {
        stream.synchronize(runtime, bound(timeout)?, Code::STREAM_TIMEOUT)?;
    }
    device.healthy()
}

fn reset(index: i32) -> Outcome {
    let runtime = runtime()?;
    let device = runtime.device("deviceId", index)?;
    for stream in runtime.streams_of(device) {
        // What failed is forgotten by the reset.
        _ = stream.synchronize(runtime, None, Code::STREAM_TIMEOUT);
    }
    device.reset(runtime);
    set_current_context(0);
    Ok(())
}

/// A value that `aclrtDevAttr` names.
fn attribute(device: &Device, attribute: u32) -> Outcome<i64> {
    let chip = device.chip;
    match attribute {
        101 | 102 => Ok(chip.cube_cores),
        201 => Ok(chip.vector_cores),
        301 => Ok(chip.hbm_bytes.cast_signed()),
        302 => Ok(chip.l2_bytes),
        501 => Ok(0),
        _ => Err(Failure::argument("attr", format!("attribute {attribute} is not simulated"))),
    }
}

entries! { ENTRIES of Acl:
    fn aclrtGetDeviceCount(count: Out<u32>) {
        count.set("count", u32::try_from(runtime()?.devices.len()).unwrap_or(u32::MAX))
    }

    fn aclrtSetDevice(index: i32) {
        let runtime = runtime()?;
        let device = runtime.device("deviceId", index)?;
        set_current_context(default_context(runtime, device));
        Ok(())
    }

    fn aclrtGetDevice(index: Out<i32>) {
        index.set("deviceId", here()?.1.index.cast_signed())
    }

    fn aclrtResetDevice(index: i32) {
        reset(index)
    }

    fn aclrtResetDeviceForce(index: i32) {
        reset(index)
    }

    fn aclrtSynchronizeDevice() {
        synchronize(-1)
    }

    fn aclrtSynchronizeDeviceWithTimeout(timeout: i32) {
        synchronize(timeout)
    }

    fn aclGetDeviceCapability(index: u32, info: u32, value: Out<i64>) {
        let chip = runtime()?.device("deviceId", index.cast_signed())?.chip;
        let answer = match info {
            0 => chip.cube_cores,
            1 => chip.vector_cores,
            2 => chip.l2_bytes,
            _ => return Err(Failure::argument("deviceInfo", format!("{info} (0 to 2)"))),
        };
        value.set("value", answer)
    }

    fn aclGetCannAttribute(attribute: u32, value: Out<i32>) {
        match attribute {
            0..=2 => value.set("value", 1),
            _ => Err(Failure::argument("cannAttr", format!("{attribute} (0 to 2)"))),
        }
    }

    fn aclrtQueryDeviceStatus(index: i32, status: Out<u32>) {
        let device = runtime()?.device("deviceId", index)?;
        status.set("deviceStatus", u32::from(device.healthy().is_err()))
    }

    fn aclrtGetDeviceUtilizationRate(index: i32, info: Out<Utilization>) {
        let runtime = runtime()?;
        let device = runtime.device("deviceId", index)?;
        let mut busy = false;
        for stream in runtime.streams_of(device) {
            busy |= stream.point()?.0.time().is_none();
        }
        let percent = if busy { 100 } else { 0 };
        let info_now = Utilization { cube: percent, vector: percent, ai_cpu: 0, memory: -1, extend: 0 };
        info.set("utilizationInfo", info_now)
    }

    fn aclrtDeviceCanAccessPeer(can: Out<i32>, index: i32, peer: i32) {
        let runtime = runtime()?;
        let (device, peer) = (runtime.device("deviceId", index)?, runtime.device("peerDeviceId", peer)?);
        can.set("canAccessPeer", i32::from(device.index != peer.index))
    }

    fn aclrtDeviceEnablePeerAccess(peer: i32, flags: u32) {
        let (runtime, device) = here()?;
        if flags != 0 {
            return Err(Failure::argument("flags", format!("{flags}; 0 was expected")));
        }
        match runtime.device("peerDeviceId", peer)?.index == device.index {
            true => Err(Failure::argument("peerDeviceId", "this thread's own device")),
            false => Ok(()),
        }
    }

    fn aclrtSetOpExecuteTimeOut(_timeout: u32) {
        runtime().map(|_| ())
    }

    fn aclrtSetOpWaitTimeout(_timeout: u32) {
        runtime().map(|_| ())
    }

    // Operators give the same bits every time whatever is chosen.
    fn aclrtCtxSetSysParamOpt(option: u32, value: i64) {
        here()?;
        check_option(option, value)
    }

    fn aclrtSetSysParamOpt(option: u32, value: i64) {
        runtime()?;
        check_option(option, value)
    }
}

fn check_option(option: u32, value: i64) -> Outcome {
    match (option, value) {
        (0 | 1, 0 | 1) => Ok(()),
        (0 | 1, _) => Err(Failure::argument("value", format!("{value} (0 or 1)"))),
        _ => Err(Failure::argument("opt", format!("{option} (0 or 1)"))),
    }
}

entries! { ENTRIES_9 of Acl:
    fn aclrtGetDeviceInfo(index: u32, attr: u32, value: Out<i64>) {
        let device = runtime()?.device("deviceId", index.cast_signed())?;
        value.set("value", attribute(device, attr)?)
    }
}
