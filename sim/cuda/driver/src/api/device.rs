//! Initialisation, devices and error texts.

use super::Out;
use crate::code::{Code, describe, meaning};
use crate::driver::Driver;
use crate::faults;
use halyard_sim_cuda_exec::Profile;
use std::ffi::{c_char, c_int, c_uint};

/// The newest CUDA version whose entries are here.
const DRIVER_VERSION: c_int = 12_040;

/// The CUDA version that the driver says it supports.
pub(super) fn driver_version() -> c_int {
    faults::version().unwrap_or(DRIVER_VERSION)
}

entries! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Code::InvalidValue.into());
        }
        faults::check()?;
        Driver::start().map(|_| ())
    }

    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(driver_version())
    }

    fn cuDeviceGetCount(count: Out<c_int>) {
        count.set(c_int::try_from(Driver::get()?.devices.len()).unwrap_or(c_int::MAX))
    }

    fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) {
        Driver::get()?.device(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetName(name: Out<c_char>, len: c_int, device: c_int) {
        let text = format!("Simulated {}", Driver::get()?.device(device)?.profile.name);
        let room = usize::try_from(len).unwrap_or(0).saturating_sub(1);
        let mut bytes: Vec<c_char> = text.bytes().take(room).map(u8::cast_signed).collect();
        bytes.push(0);
        name.set_all(&bytes)
    }

    fn cuDeviceGetPCIBusId(text: Out<c_char>, len: c_int, device: c_int) {
        let bus = format!("{}\0", Driver::get()?.device(device)?.bus_id());
        if usize::try_from(len).unwrap_or(0) < bus.len() {
            return Err(Code::InvalidValue.into());
        }
        text.set_all(&bus.bytes().map(u8::cast_signed).collect::<Vec<_>>())
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: c_int) {
        uuid.set(identity(Driver::get()?.device(device)?.index))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) {
        uuid.set(identity(Driver::get()?.device(device)?.index))
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) {
        let total = Driver::get()?.device(device)?.profile.memory_bytes;
        bytes.set(usize::try_from(total).unwrap_or(usize::MAX))
    }

    fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) {
        let device = Driver::get()?.device(device)?;
        let found = attribute_of(device.profile, device.index, attribute).ok_or(Code::InvalidValue)?;
        value.set(c_int::try_from(found).unwrap_or(c_int::MAX))
    }

    fn cuDeviceCanAccessPeer(can: Out<c_int>, device: c_int, peer: c_int) {
        let driver = Driver::get()?;
        let apart = driver.device(device)?.index != driver.device(peer)?.index;
        can.set(c_int::from(apart))
    }

    fn cuGetErrorName(code: u32, text: Out<*const c_char>) {
        let (name, _) = describe(code).ok_or(Code::InvalidValue)?;
        text.set(name.as_ptr())
    }

    fn cuGetErrorString(code: u32, text: Out<*const c_char>) {
        let found = meaning(code).ok_or(Code::InvalidValue)?;
        text.set(found.as_ptr())
    }
}

fn identity(index: u32) -> [u8; 16] {
    let mut uuid = *b"halyard-sim-....";
    uuid[12..].copy_from_slice(&index.to_be_bytes());
    uuid
}

/// Width of every device's memory bus; the clock makes up for it.
const MEMORY_BUS_BITS: u32 = 4096;

/// The memory clock that gives the profile's bandwidth, at two transfers a clock.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few million")]
fn memory_clock_khz(profile: &Profile) -> u32 {
    (profile.memory_rate / f64::from(2 * MEMORY_BUS_BITS / 8) / 1e3) as u32
}

/// The attribute with this number; those of features that are not simulated are 0.
fn attribute_of(profile: &Profile, index: u32, attribute: c_int) -> Option<u32> {
    Some(match attribute {
        1..=3 => Profile::BLOCK_THREADS,
        4 => 64,
        5 => i32::MAX.cast_unsigned(),
        6 | 7 => 65_535,
        8 => Profile::SHARED_BYTES,
        9 => 65_536,
        10 => 32,
        12 | 82 => Profile::SM_REGISTERS,
        13 => profile.clock_khz,
        16 => profile.multiprocessors,
        // Kernels run beside each other, addresses are one space, memory pools are there.
        31 | 41 | 115 => 1,
        33 => index,
        36 => memory_clock_khz(profile),
        37 => MEMORY_BUS_BITS,
        38 => profile.l2_bytes,
        39 => profile.sm_threads,
        40 => 2,
        75 => profile.capability / 10,
        76 => profile.capability % 10,
        81 => profile.shared_sm_bytes,
        97 => profile.shared_opt_in_bytes,
        106 => profile.sm_blocks,
        111 => Profile::SHARED_RESERVED,
        other if (1..=200).contains(&other) => 0,
        _ => return None,
    })
}
