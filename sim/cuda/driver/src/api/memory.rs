//! Memory: device, pinned, pools, copies, fills.

use super::context::current;
use super::stream::here;
use super::{In, Out};
use crate::code::{Code, Failure, Outcome};
use crate::driver::{Device, Driver};
use crate::stream::{Stream, Work};
use halyard_sim_cuda_exec::Home;
use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;

/// Handle of the one pool of each device.
const POOL: usize = 0x2000;

/// `CUmemAccessDesc`: what a device may do with a pool's memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Access {
    place_type: c_int,
    device: c_int,
    flags: c_uint,
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`
const ON_A_DEVICE: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_NONE` and `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`
const NO_ACCESS: c_uint = 0;
const READ_AND_WRITE: c_uint = 3;

fn allocate(address: &Out<u64>, bytes: usize) -> Outcome {
    let (driver, device) = current()?;
    device.healthy()?;
    if bytes == 0 {
        return Err(Code::InvalidValue.into());
    }
    address.set(driver.memory().allocate(bytes, Home::Device(device.index))?)
}

/// Whether `bytes` bytes at `address` are in an allocation, of a device or pinned.
fn is_known(driver: &Driver, address: u64, bytes: usize) -> bool {
    let found = driver.memory().lookup(address);
    found.is_some_and(|(base, size, _)| address - base + bytes as u64 <= size as u64)
}

/// A copy from memory of the host. Pageable memory is read before this returns, as the driver does.
fn from_host(
    driver: &'static Driver,
    stream: &Stream,
    to: u64,
    from: &In<u8>,
    bytes: usize,
) -> Outcome {
    let address = from.0.addr() as u64;
    if is_known(driver, address, bytes) {
        return stream.enqueue(driver, Work::Copy { to, from: address, bytes });
    }
    stream.enqueue(driver, Work::Write { to, bytes: from.bytes(bytes)?.into() })
}

/// A copy to memory of the host. For pageable memory this returns when it is done, as the driver does.
fn to_host(
    driver: &'static Driver,
    stream: &Stream,
    to: &Out<u8>,
    from: u64,
    bytes: usize,
) -> Outcome {
    let address = to.0.addr() as u64;
    if is_known(driver, address, bytes) {
        return stream.enqueue(driver, Work::Copy { to: address, from, bytes });
    }
    let (reply, answer) = channel();
    stream.enqueue(driver, Work::Read { from, bytes, reply })?;
    stream.synchronize(driver)?;
    let data = answer.recv().map_err(|_| Failure::new(Code::Unknown, "the copy was not done"))?;
    to.set_all(&data)
}

fn fill(stream: usize, to: u64, pattern: &[u8], count: usize) -> Outcome {
    let (driver, _, stream) = here(stream)?;
    let bytes = count.checked_mul(pattern.len()).ok_or(Code::InvalidValue)?;
    if !to.is_multiple_of(pattern.len() as u64) {
        return Err(Code::InvalidValue.into());
    }
    stream.enqueue(driver, Work::Fill { to, pattern: pattern.into(), bytes })
}

/// `CU_MEMORYTYPE_HOST` and `CU_MEMORYTYPE_DEVICE`.
const ON_HOST: u32 = 1;
const ON_DEVICE: u32 = 2;

/// `CUDA_MEMCPY2D`: rows from one pitched place to another.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Copy2D {
    from_x: usize,
    from_y: usize,
    from_type: u32,
    from_host: *const u8,
    from_device: u64,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_type: u32,
    to_host: *mut u8,
    to_device: u64,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

impl Copy2D {
    /// Row after row, as copies of their own.
    fn enqueue(&self, driver: &'static Driver, stream: &Stream) -> Outcome {
        if self.from_pitch < self.width || self.to_pitch < self.width {
            return Err(Code::InvalidValue.into());
        }
        for row in 0..self.height {
            let from = self.from_x + (self.from_y + row) * self.from_pitch;
            let to = self.to_x + (self.to_y + row) * self.to_pitch;
            let (source, target) = (self.from_device + from as u64, self.to_device + to as u64);
            match (self.from_type, self.to_type) {
                (ON_DEVICE, ON_DEVICE) => {
                    stream.enqueue(
                        driver,
                        Work::Copy { to: target, from: source, bytes: self.width },
                    )?;
                }
                (ON_HOST, ON_DEVICE) => {
                    let host = In(self.from_host.wrapping_add(from));
                    from_host(driver, stream, target, &host, self.width)?;
                }
                (ON_DEVICE, ON_HOST) => {
                    let host = Out(self.to_host.wrapping_add(to));
                    to_host(driver, stream, &host, source, self.width)?;
                }
                _ => return Err(Code::NotSupported.into()),
            }
        }
        Ok(())
    }
}

/// Runs `enqueue` on the null stream and waits for it.
fn at_once(enqueue: impl FnOnce(&'static Driver, &Stream) -> Outcome) -> Outcome {
    let (driver, _, stream) = here(0)?;
    enqueue(driver, &stream)?;
    stream.synchronize(driver)
}

/// Frees after everything on the device is done.
fn free(driver: &'static Driver, device: &Device, address: u64) -> Outcome {
    driver.synchronize(device)?;
    let order = driver.timeline().host_order();
    Ok(driver.memory().free(address, &order)?)
}

entries! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let (driver, device) = current()?;
        let (left, all) = driver.memory().info(device.index);
        free.set(usize::try_from(left).unwrap_or(usize::MAX))?;
        total.set(usize::try_from(all).unwrap_or(usize::MAX))
    }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        allocate(&address, bytes)
    }

    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) {
        here(stream)?;
        allocate(&address, bytes)
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, _pool: usize, stream: usize) {
        here(stream)?;
        allocate(&address, bytes)
    }

    fn cuMemFree_v2(address: u64) {
        let (driver, device) = current()?;
        if address == 0 { Ok(()) } else { free(driver, device, address) }
    }

    fn cuMemFreeAsync(address: u64, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        if address == 0 { Ok(()) } else { stream.enqueue(driver, Work::Free(address)) }
    }

    fn cuMemHostAlloc(address: Out<usize>, bytes: usize, _flags: c_uint) {
        let (driver, _) = current()?;
        let at = driver.memory().allocate(bytes, Home::Host)?;
        address.set(usize::try_from(at).map_err(|_| Code::OutOfMemory)?)
    }

    fn cuMemAllocHost_v2(address: Out<usize>, bytes: usize) {
        let (driver, _) = current()?;
        let at = driver.memory().allocate(bytes, Home::Host)?;
        address.set(usize::try_from(at).map_err(|_| Code::OutOfMemory)?)
    }

    fn cuMemFreeHost(address: usize) {
        let (driver, device) = current()?;
        if address == 0 { Ok(()) } else { free(driver, device, address as u64) }
    }

    fn cuMemHostGetDevicePointer_v2(device_address: Out<u64>, address: usize, _flags: c_uint) {
        let (driver, _) = current()?;
        match driver.memory().lookup(address as u64) {
            Some((.., Home::Host)) => device_address.set(address as u64),
            _ => Err(Code::InvalidValue.into()),
        }
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let (driver, _) = current()?;
        let (start, size, _) = driver.memory().lookup(address).ok_or(Code::NotFound)?;
        base.set_if_wanted(start);
        bytes.set_if_wanted(size);
        Ok(())
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: In<u8>, bytes: usize, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        from_host(driver, &stream, to, &from, bytes)
    }

    fn cuMemcpyHtoD_v2(to: u64, from: In<u8>, bytes: usize) {
        at_once(|driver, stream| from_host(driver, stream, to, &from, bytes))
    }

    fn cuMemcpyDtoHAsync_v2(to: Out<u8>, from: u64, bytes: usize, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        to_host(driver, &stream, &to, from, bytes)
    }

    fn cuMemcpyDtoH_v2(to: Out<u8>, from: u64, bytes: usize) {
        at_once(|driver, stream| to_host(driver, stream, &to, from, bytes))
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        stream.enqueue(driver, Work::Copy { to, from, bytes })
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        at_once(|driver, stream| stream.enqueue(driver, Work::Copy { to, from, bytes }))
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        stream.enqueue(driver, Work::Copy { to, from, bytes })
    }

    fn cuMemcpy2DAsync_v2(copy: In<Copy2D>, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        copy.at(0)?.enqueue(driver, &stream)
    }

    fn cuMemcpyPeerAsync(to: u64, _to_context: usize, from: u64, _from_context: usize, bytes: usize, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        stream.enqueue(driver, Work::Copy { to, from, bytes })
    }

    fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: usize) {
        fill(stream, to, &[value], count)
    }

    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: usize) {
        fill(stream, to, &value.to_le_bytes(), count)
    }

    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: usize) {
        fill(stream, to, &value.to_le_bytes(), count)
    }

    fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) {
        at_once(|driver, stream| stream.enqueue(driver, Work::Fill { to, pattern: Arc::new([value]), bytes: count }))
    }

    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: c_int) {
        let device = Driver::get()?.device(device)?;
        pool.set(POOL + device.index as usize)
    }

    fn cuDeviceGetMemPool(pool: Out<usize>, device: c_int) {
        let device = Driver::get()?.device(device)?;
        pool.set(POOL + device.index as usize)
    }

    fn cuMemPoolSetAccess(pool: usize, list: In<Access>, count: usize) {
        let driver = Driver::get()?;
        let owner = pool.checked_sub(POOL).and_then(|i| driver.devices.get(i));
        let owner = owner.ok_or(Code::InvalidValue)?.index;
        for i in 0..count {
            let Access { place_type, device, flags } = list.at(i)?;
            let peer = driver.device(device)?;
            let bit = 1u64.checked_shl(owner).unwrap_or(0);
            match (place_type, flags) {
                (ON_A_DEVICE, _) if peer.index == owner => {}
                (ON_A_DEVICE, NO_ACCESS) => _ = peer.peers.fetch_and(!bit, SeqCst),
                (ON_A_DEVICE, READ_AND_WRITE) => _ = peer.peers.fetch_or(bit, SeqCst),
                _ => return Err(Code::NotSupported.into()),
            }
        }
        Ok(())
    }

    // The pool gives every allocation fresh addresses, so its thresholds have nothing to decide.
    fn cuMemPoolSetAttribute(_pool: usize, _attribute: c_int, _value: In<u64>) {
        Driver::get().map(|_| ())
    }

    fn cuMemPoolTrimTo(_pool: usize, _keep: usize) {
        Driver::get().map(|_| ())
    }

    fn cuPointerGetAttribute(data: *mut c_void, attribute: c_int, address: u64) {
        let (driver, _) = current()?;
        let (_, _, home) = driver.memory().lookup(address).ok_or(Code::InvalidValue)?;
        let value = match (attribute, home) {
            // CU_POINTER_ATTRIBUTE_MEMORY_TYPE: host 1, device 2.
            (2, Home::Host) => 1,
            (2, Home::Device(_)) => 2,
            // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL.
            (9, Home::Device(device)) => device,
            _ => return Err(Code::NotSupported.into()),
        };
        Out(data.cast::<u32>()).set(value)
    }
}
