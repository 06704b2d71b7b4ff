//! Memory: of devices, pinned, virtual; copies and fills.

use super::stream::find;
use super::{In, Out};
use crate::capture::Capture;
use crate::code::{Code, Failure, Outcome};
use crate::runtime::{Device, FIRST_DEVICE_ADDRESS, Runtime, here, runtime};
use crate::stream::{Site, Work};
use halyard_sim_memory::{Home, MemoryError};
use std::sync::Arc;
use std::sync::mpsc::channel;

/// What a size is rounded up to, and what is added to it.
const ROUND: usize = 32;

/// Policies without the bits of bandwidth and access.
const POLICIES: u32 = 8;
const POLICY_BITS: u32 = 0x100 | 0x1000 | 0x0010_0000;

/// `aclrtPtrAttributes`: the location's id and type, the page's size.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct PointerAttributes {
    id: i32,
    kind: u32,
    page_bytes: u32,
    reserved: [u32; 4],
}

const _: () = assert!(size_of::<PointerAttributes>() == 28);

/// `ACL_MEM_LOCATION_TYPE_*`
const ON_HOST: u32 = 0;
const ON_DEVICE: u32 = 1;

fn allocate(out: &Out<u64>, size: usize, policy: u32) -> Outcome {
    let (runtime, device) = here()?;
    if size == 0 {
        return Err(Failure::argument("size", "0 bytes"));
    }
    if policy & !POLICY_BITS >= POLICIES {
        return Err(Failure::argument("policy", format!("{policy:#x} is no policy")));
    }
    if out.is_null() {
        return Err(Failure::null("devPtr"));
    }
    let bytes = size.checked_next_multiple_of(ROUND).and_then(|size| size.checked_add(ROUND));
    let bytes = bytes.ok_or_else(|| Failure::argument("size", format!("{size} bytes")))?;
    let address = runtime.memory.allocate(bytes, Home::Device(device.index));
    out.set("devPtr", address.map_err(|e| Failure::from(e).within("argument `size`"))?)
}

/// Frees; operations that the host does not know to be done must not use the memory.
fn free(argument: &str, name: &'static str, address: u64, pinned: bool) -> Outcome {
    let runtime = runtime()?;
    let is_base = runtime.memory.lookup(address).filter(|(base, ..)| *base == address);
    match is_base {
        Some((.., Home::Host)) if !pinned => {
            return Err(Failure::argument(
                argument,
                "pinned memory of the host: aclrtFreeHost frees it",
            ));
        }
        Some((.., Home::Device(_))) if pinned => {
            return Err(Failure::argument(argument, "memory of a device: aclrtFree frees it"));
        }
        _ => {}
    }
    let order = runtime.timeline().host_order(name);
    let freed = runtime.memory.free(address, &order);
    freed.map_err(|e| runtime.explain(e).within(format!("argument `{argument}`")))
}

/// Where the bytes of a copy are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Pinned,
    Pageable,
}

fn side(
    runtime: &Runtime,
    device: &Device,
    argument: &str,
    address: u64,
    bytes: usize,
) -> Outcome<Side> {
    if address == 0 {
        return Err(Failure::null(argument));
    }
    match runtime.memory.lookup(address) {
        Some((base, size, Home::Host)) if address - base + bytes as u64 <= size as u64 => {
            return Ok(Side::Pinned);
        }
        None if address < FIRST_DEVICE_ADDRESS => return Ok(Side::Pageable),
        _ => {}
    }
    // A copy between devices names memory of another one.
    let owner = match runtime.memory.lookup(address) {
        Some((.., Home::Device(owner))) => &runtime.devices[owner as usize],
        _ => device,
    };
    let checked = runtime.check_device_range(owner, address, bytes as u64);
    checked.map_err(|what| Failure::argument(argument, what).coded(Code::PARAM))?;
    Ok(Side::Device)
}

/// A copy that was asked for.
struct Copy<'a> {
    name: &'static str,
    to: &'a Out<u8>,
    from: &'a In<u8>,
    /// Bytes from the start of either side.
    at: (usize, usize),
    bytes: usize,
    kind: u32,
}

impl Copy<'_> {
    fn addresses(&self) -> (u64, u64) {
        (self.to.address() + self.at.0 as u64, self.from.address() + self.at.1 as u64)
    }

    /// The sides, which must be as the kind says.
    fn sides(&self, runtime: &Runtime, device: &Device) -> Outcome<(Side, Side)> {
        let (to, from) = self.addresses();
        let to = side(runtime, device, "dst", to, self.bytes)?;
        let from = side(runtime, device, "src", from, self.bytes)?;
        let wanted = match self.kind {
            0 => Some((false, false)),
            1 | 5 => Some((true, false)),
            2 => Some((false, true)),
            3 | 6 | 7 => Some((true, true)),
            4 => None,
            kind => return Err(Failure::argument("kind", format!("{kind} (0 to 7)"))),
        };
        let Some(wanted) = wanted else { return Ok((to, from)) };
        for (argument, side, on_device) in [("dst", to, wanted.0), ("src", from, wanted.1)] {
            if (side == Side::Device) != on_device {
                let place = |on_device| if on_device { "the device" } else { "the host" };
                let what = format!(
                    "memory of {}; kind {} wants memory of {}",
                    place(side == Side::Device),
                    self.kind,
                    place(on_device)
                );
                return Err(Failure::argument(argument, what));
            }
        }
        Ok((to, from))
    }

    /// Copies before it returns.
    fn now(&self) -> Outcome {
        let (runtime, device) = here()?;
        Capture::forbid()?;
        let (to, from) = self.addresses();
        let order = runtime.timeline().host_order(self.name);
        let on = |argument: &'static str| {
            move |e: MemoryError| runtime.explain(e).within(format!("argument `{argument}`"))
        };
        match self.sides(runtime, device)? {
            (Side::Device, Side::Device) => {
                runtime.memory.copy(to, from, self.bytes, &order).map_err(on("src"))
            }
            (Side::Device, _) => {
                let bytes = self.from.bytes("src", self.at.1, self.bytes)?;
                runtime.memory.write_bytes(to, &bytes, &order).map_err(on("dst"))
            }
            (_, Side::Device) => {
                let mut bytes = vec![0; self.bytes];
                runtime.memory.read_written(from, &mut bytes, &order).map_err(on("src"))?;
                self.to.set_all("dst", self.at.0, &bytes)
            }
            _ => self.to.set_all("dst", self.at.0, &self.from.bytes("src", self.at.1, self.bytes)?),
        }
    }

    /// Enqueues the copy; memory of the host that is not pinned makes it wait.
    fn on(&self, handle: usize) -> Outcome {
        let (runtime, device, stream) = find(handle)?;
        let ((to, from), bytes) = (self.addresses(), self.bytes);
        let sides = self.sides(runtime, device)?;
        if stream.capturing().is_some() && (sides.0 == Side::Pageable || sides.1 == Side::Pageable)
        {
            let argument = if sides.0 == Side::Pageable { "dst" } else { "src" };
            return Err(Failure::argument(
                argument,
                "memory of the host in a captured copy must come from aclrtMallocHost",
            ));
        }
        match sides {
            (Side::Pinned | Side::Pageable, Side::Pinned | Side::Pageable) => {
                let text =
                    "argument `kind`: copies from the host to the host are not done on streams";
                Err(Failure::new(Code::NOT_SUPPORTED, text))
            }
            (_, Side::Pageable) => {
                let data = self.from.bytes("src", self.at.1, bytes)?;
                stream.enqueue(
                    runtime,
                    self.name,
                    work(move |site| site.runtime.memory.write_bytes(to, &data, site.order)),
                )
            }
            (Side::Pageable, _) => {
                let (reply, answer) = channel();
                stream.enqueue(
                    runtime,
                    self.name,
                    work(move |site| {
                        let mut data = vec![0; bytes];
                        site.runtime.memory.read_written(from, &mut data, site.order)?;
                        // The caller waits; if it does not, nobody misses the bytes.
                        _ = reply.send(data);
                        Ok(())
                    }),
                )?;
                stream.synchronize(runtime, None, Code::STREAM_TIMEOUT)?;
                let data = answer
                    .recv()
                    .map_err(|_| Failure::new(Code::INTERNAL, "the copy was not done"))?;
                self.to.set_all("dst", self.at.0, &data)
            }
            (Side::Pinned, Side::Device) => stream.enqueue(
                runtime,
                self.name,
                work(move |site| {
                    let mut data = vec![0; bytes];
                    site.runtime.memory.read_written(from, &mut data, site.order)?;
                    site.runtime.memory.write_bytes(to, &data, site.order)
                }),
            ),
            _ => stream.enqueue(
                runtime,
                self.name,
                work(move |site| site.runtime.memory.copy(to, from, bytes, site.order)),
            ),
        }
    }
}

/// Work on memory, whose failure is one of the driver.
fn work(run: impl Fn(&Site<'_>) -> Result<(), MemoryError> + Send + Sync + 'static) -> Work {
    Arc::new(move |site| run(site).map_err(|e| site.runtime.explain(e).coded(Code::DRIVER)))
}

fn check_room(max: usize, count: usize, argument: &str) -> Outcome {
    if count > max {
        return Err(Failure::argument(
            "count",
            format!("{count} bytes, and `{argument}` says {max}"),
        ));
    }
    Ok(())
}

/// Each row of a copy of rows.
fn rows(
    copy: &Copy<'_>,
    pitches: (usize, usize),
    (width, height): (usize, usize),
    each: impl Fn(&Copy<'_>) -> Outcome,
) -> Outcome {
    for (argument, pitch) in [("dpitch", pitches.0), ("spitch", pitches.1)] {
        if pitch < width {
            return Err(Failure::argument(argument, format!("{pitch} bytes, rows have {width}")));
        }
    }
    for row in 0..height {
        each(&Copy { at: (row * pitches.0, row * pitches.1), bytes: width, ..*copy })?;
    }
    Ok(())
}

fn check_fill(address: u64, max: usize, value: i32, count: usize) -> Outcome {
    check_room(max, count, "maxCount")?;
    if u8::try_from(value).is_err() {
        return Err(Failure::argument("value", format!("{value} is no byte")));
    }
    let (runtime, device) = here()?;
    if side(runtime, device, "devPtr", address, count)? != Side::Device {
        return Err(Failure::argument(
            "devPtr",
            format!("{address:#x} is memory of the host; memory of the device was expected"),
        ));
    }
    Ok(())
}

fn no_virtual_memory() -> Failure {
    Failure::new(
        Code::NOT_SUPPORTED,
        "the simulator has no virtual addresses; aclrtMalloc gives memory",
    )
}

fn byte(value: i32) -> [u8; 1] {
    [value.to_le_bytes()[0]]
}

entries! { ENTRIES of Acl:
    fn aclrtMalloc(dev_ptr: Out<u64>, size: usize, policy: u32) {
        allocate(&dev_ptr, size, policy)
    }

    fn aclrtFree(dev_ptr: u64) {
        if dev_ptr == 0 {
            return Err(Failure::null("devPtr"));
        }
        free("devPtr", "aclrtFree", dev_ptr, false)
    }

    fn aclrtMallocHost(host_ptr: Out<u64>, size: usize) {
        let (runtime, _) = here()?;
        if size == 0 {
            return Err(Failure::argument("size", "0 bytes"));
        }
        if host_ptr.is_null() {
            return Err(Failure::null("hostPtr"));
        }
        host_ptr.set("hostPtr", runtime.memory.allocate(size, Home::Host)?)
    }

    fn aclrtFreeHost(host_ptr: u64) {
        if host_ptr == 0 {
            return Err(Failure::null("hostPtr"));
        }
        free("hostPtr", "aclrtFreeHost", host_ptr, true)
    }

    fn aclrtHostRegister(_ptr: u64, _size: u64, _kind: u32, _dev_ptr: Out<u64>) {
        Err(Failure::new(Code::NOT_SUPPORTED, "the simulator has no registered memory of the host"))
    }

    fn aclrtHostUnregister(_ptr: u64) {
        Err(Failure::new(Code::NOT_SUPPORTED, "the simulator has no registered memory of the host"))
    }

    fn aclrtReserveMemAddress(_virtual: Out<u64>, _size: usize, _alignment: usize, _expected: u64, _flags: u64) {
        Err(no_virtual_memory())
    }

    fn aclrtReleaseMemAddress(_virtual: u64) {
        Err(no_virtual_memory())
    }

    fn aclrtMallocPhysical(_handle: Out<usize>, _size: usize, _property: In<u8>, _flags: u64) {
        Err(no_virtual_memory())
    }

    fn aclrtFreePhysical(_handle: usize) {
        Err(no_virtual_memory())
    }

    fn aclrtMapMem(_virtual: u64, _size: usize, _offset: usize, _handle: usize, _flags: u64) {
        Err(no_virtual_memory())
    }

    fn aclrtUnmapMem(_virtual: u64) {
        Err(no_virtual_memory())
    }

    fn aclrtMemGetAllocationGranularity(_property: In<u8>, _option: u32, _granularity: Out<usize>) {
        Err(no_virtual_memory())
    }

    fn aclrtGetMemInfo(attribute: u32, free: Out<usize>, total: Out<usize>) {
        let (runtime, device) = here()?;
        let (left, all) = match attribute {
            // HBM, of any page size.
            1 | 4 | 5 | 8 | 9 | 10 | 11 => runtime.memory.info(device.index),
            0 | 2 | 3 | 6 | 7 => (0, 0),
            _ => return Err(Failure::argument("attr", format!("{attribute} (0 to 11)"))),
        };
        free.set("free", usize::try_from(left).unwrap_or(usize::MAX))?;
        total.set("total", usize::try_from(all).unwrap_or(usize::MAX))
    }

    fn aclrtPointerGetAttributes(ptr: u64, attributes: Out<PointerAttributes>) {
        let runtime = runtime()?;
        let (id, kind) = match runtime.memory.lookup(ptr) {
            Some((.., Home::Device(device))) => (device.cast_signed(), ON_DEVICE),
            _ => (0, ON_HOST),
        };
        attributes.set("attributes", PointerAttributes { id, kind, page_bytes: 4096, reserved: [0; 4] })
    }

    fn aclrtMemcpy(dst: Out<u8>, dest_max: usize, src: In<u8>, count: usize, kind: u32) {
        check_room(dest_max, count, "destMax")?;
        Copy { name: "aclrtMemcpy", to: &dst, from: &src, at: (0, 0), bytes: count, kind }.now()
    }

    fn aclrtMemcpyAsync(dst: Out<u8>, dest_max: usize, src: In<u8>, count: usize, kind: u32, stream: usize) {
        check_room(dest_max, count, "destMax")?;
        Copy { name: "aclrtMemcpyAsync", to: &dst, from: &src, at: (0, 0), bytes: count, kind }.on(stream)
    }

    fn aclrtMemcpy2d(
        dst: Out<u8>, dpitch: usize, src: In<u8>, spitch: usize, width: usize, height: usize, kind: u32,
    ) {
        let copy = Copy { name: "aclrtMemcpy2d", to: &dst, from: &src, at: (0, 0), bytes: width, kind };
        rows(&copy, (dpitch, spitch), (width, height), |row| row.now())
    }

    fn aclrtMemcpy2dAsync(
        dst: Out<u8>, dpitch: usize, src: In<u8>, spitch: usize, width: usize, height: usize, kind: u32, stream: usize,
    ) {
        let copy = Copy { name: "aclrtMemcpy2dAsync", to: &dst, from: &src, at: (0, 0), bytes: width, kind };
        rows(&copy, (dpitch, spitch), (width, height), |row| row.on(stream))
    }

    fn aclrtMemset(dev_ptr: u64, max_count: usize, value: i32, count: usize) {
        check_fill(dev_ptr, max_count, value, count)?;
        Capture::forbid()?;
        let (runtime, _) = here()?;
        let order = runtime.timeline().host_order("aclrtMemset");
        let filled = runtime.memory.fill(dev_ptr, &byte(value), count, &order);
        filled.map_err(|e| runtime.explain(e).within("argument `devPtr`"))
    }

    fn aclrtMemsetAsync(dev_ptr: u64, max_count: usize, value: i32, count: usize, stream: usize) {
        check_fill(dev_ptr, max_count, value, count)?;
        let (runtime, _, stream) = find(stream)?;
        let byte = byte(value);
        stream.enqueue(runtime, "aclrtMemsetAsync", work(move |site| site.runtime.memory.fill(dev_ptr, &byte, count, site.order)))
    }
}
