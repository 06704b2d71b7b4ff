//! Devices that are the host's own processor: a launch does its work before it returns, so streams and events are bookkeeping.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    collections::{HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use halyard_abi::{
    AllocReq, Buffer, Code, CommDesc, CopyReq, Event, InfoKey, KvDesc, KvLayout, MemRef, Metric,
    MetricKey, OpDesc, PropKey, Stream, Weight, WeightDesc, WeightFill, WeightPlan, types::mem,
};

use crate::{
    Error, Result,
    backend::{Collective, Device, Kernel, Support},
    comm,
    requests::{alignment, check_fill, check_host, check_inside, spans, unknown},
};

/// A device whose memory is the host's and whose launches are synchronous. Implementing this gives [`Device`].
#[expect(clippy::missing_errors_doc, reason = "the boundary's trait says them")]
pub trait InlineDevice: Send + Sync + 'static {
    /// Its memory, streams and events.
    fn memory(&self) -> &HostMemory;
    /// A number about the device. [`PropKey::INLINE`], [`PropKey::ALIGN`] and [`PropKey::TOTAL_MEMORY`] have answers already.
    fn property(&self, key: PropKey) -> Option<u64>;
    /// A string about the device.
    fn info(&self, key: InfoKey) -> String;
    /// How well an op is supported.
    fn support(&self, op: &OpDesc<'_>) -> Support;
    /// Prepares a kernel.
    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>>;
    /// Size of a packed weight.
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan>;
    /// Begins a weight.
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight>;
    /// Packs rows.
    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()>;
    /// Ends filling.
    fn weight_seal(&self, w: Weight) -> Result<()>;
    /// Forgets a weight.
    fn weight_destroy(&self, w: Weight) -> Result<()>;
    /// Arrangement of a paged cache.
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout>;
    /// A fresh communicator id: of [`comm`](crate::comm), between threads and processes of this host.
    fn comm_unique_id(&self, out: &mut [u8]) -> Result<u32> {
        comm::unique_id(out)
    }
    /// Joins a communicator.
    fn comm_create(&self, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
        comm::join(desc)
    }
}

impl<T: InlineDevice> Device for T {
    fn property(&self, key: PropKey) -> Option<u64> {
        InlineDevice::property(self, key).or(match key {
            PropKey::INLINE => Some(1),
            PropKey::ALIGN => Some(ALIGN as u64),
            PropKey::TOTAL_MEMORY => physical_memory(),
            _ => None,
        })
    }
    fn info(&self, key: InfoKey) -> String {
        InlineDevice::info(self, key)
    }
    fn telemetry(&self, out: &mut [Metric]) -> u32 {
        let used = self.memory().used_bytes();
        #[expect(clippy::cast_precision_loss, reason = "a measurement for people")]
        let used = Metric { key: MetricKey::MEM_USED_BY_US, index: 0, value: used as f64 };
        if let Some(first) = out.first_mut() {
            *first = used;
        }
        1
    }
    fn alloc(&self, req: &AllocReq) -> Result<Buffer> {
        self.memory().alloc(req)
    }
    fn free(&self, buffer: Buffer) -> Result<()> {
        self.memory().free(&buffer)
    }
    fn copy(&self, s: Stream, req: &CopyReq) -> Result<()> {
        self.memory().check_stream(s)?;
        self.memory().copy(req)
    }
    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()> {
        self.memory().check_stream(s)?;
        self.memory().fill(dst, pattern, bytes)
    }
    fn stream_create(&self, _priority: i32, flags: u32) -> Result<Stream> {
        if flags != 0 {
            return Err(Error::unsupported(format!("stream flags {flags:#x}, none is known")));
        }
        Ok(Stream(self.memory().new_handle(|m| &m.streams)))
    }
    fn stream_destroy(&self, s: Stream) -> Result<()> {
        self.memory().drop_handle("stream", s.0, |m| &m.streams)
    }
    fn stream_sync(&self, s: Stream, _timeout_ns: u64) -> Result<()> {
        self.memory().check_stream(s)
    }
    fn stream_query(&self, s: Stream) -> Result<()> {
        self.memory().check_stream(s)
    }
    fn event_create(&self, flags: u32) -> Result<Event> {
        if flags > 1 {
            return Err(Error::unsupported(format!("event flags {flags:#x}, 1 (timing) is known")));
        }
        Ok(Event(self.memory().new_handle(|m| &m.events)))
    }
    fn event_destroy(&self, e: Event) -> Result<()> {
        lock(&self.memory().reached).remove(&e.0);
        self.memory().drop_handle("event", e.0, |m| &m.events)
    }
    fn event_record(&self, e: Event, s: Stream) -> Result<()> {
        self.memory().check_stream(s)?;
        self.memory().check_event(e)?;
        lock(&self.memory().reached).insert(e.0, Instant::now());
        Ok(())
    }
    fn event_wait(&self, s: Stream, e: Event) -> Result<()> {
        self.memory().check_stream(s)?;
        self.memory().check_event(e)
    }
    fn event_sync(&self, e: Event, _timeout_ns: u64) -> Result<()> {
        self.memory().check_event(e)
    }
    fn event_query(&self, e: Event) -> Result<()> {
        self.memory().check_event(e)
    }
    fn event_elapsed_ns(&self, a: Event, b: Event) -> Result<u64> {
        let reached = lock(&self.memory().reached);
        match (reached.get(&a.0), reached.get(&b.0)) {
            (Some(a), Some(b)) => {
                Ok(u64::try_from(b.duration_since(*a).as_nanos()).unwrap_or(u64::MAX))
            }
            _ => Err(Error::invalid("both events must have been recorded")),
        }
    }
    fn support(&self, op: &OpDesc<'_>) -> Support {
        InlineDevice::support(self, op)
    }
    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        InlineDevice::prepare(self, op)
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        InlineDevice::weight_plan(self, w)
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        InlineDevice::weight_create(self, w, dst)
    }
    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.memory().check_stream(s)?;
        InlineDevice::weight_fill(self, w, f)
    }
    fn weight_seal(&self, s: Stream, w: Weight) -> Result<()> {
        self.memory().check_stream(s)?;
        InlineDevice::weight_seal(self, w)
    }
    fn weight_destroy(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_destroy(self, w)
    }
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        InlineDevice::kv_layout(self, kv)
    }
    fn comm_unique_id(&self, out: &mut [u8]) -> Result<u32> {
        InlineDevice::comm_unique_id(self, out)
    }
    fn comm_create(&self, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
        InlineDevice::comm_create(self, desc)
    }
}

/// Alignment of every allocation.
const ALIGN: usize = 256;

/// Buffers, streams and events of an inline device.
#[derive(Debug, Default)]
pub struct HostMemory {
    /// By base address.
    buffers: Mutex<HashMap<u64, Allocation>>,
    streams: Mutex<HashSet<u64>>,
    events: Mutex<HashSet<u64>>,
    /// When each event was last recorded.
    reached: Mutex<HashMap<u64, Instant>>,
    last_handle: AtomicU64,
}

#[derive(Debug)]
struct Allocation {
    id: u64,
    bytes: u64,
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the pointer is an allocation's own start, used only to free it.
unsafe impl Send for Allocation {}

/// A panic while a table is locked leaves it whole: each is changed by one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostMemory {
    /// No buffers, streams or events.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes allocated now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        lock(&self.buffers).values().map(|a| a.bytes).sum()
    }

    fn fresh(&self) -> u64 {
        self.last_handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn new_handle(&self, set: impl Fn(&Self) -> &Mutex<HashSet<u64>>) -> u64 {
        let handle = self.fresh();
        lock(set(self)).insert(handle);
        handle
    }

    fn drop_handle(
        &self,
        what: &str,
        handle: u64,
        set: impl Fn(&Self) -> &Mutex<HashSet<u64>>,
    ) -> Result<()> {
        if lock(set(self)).remove(&handle) { Ok(()) } else { Err(unknown(what, handle)) }
    }

    /// Refuses a stream that does not exist; the default stream always does.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the handle.
    pub fn check_stream(&self, s: Stream) -> Result<()> {
        if s == Stream::NONE || lock(&self.streams).contains(&s.0) {
            return Ok(());
        }
        Err(unknown("stream", s.0))
    }

    fn check_event(&self, e: Event) -> Result<()> {
        if lock(&self.events).contains(&e.0) { Ok(()) } else { Err(unknown("event", e.0)) }
    }

    fn alloc(&self, req: &AllocReq) -> Result<Buffer> {
        let align = alignment(req)?;
        if !matches!(req.kind, mem::DEVICE | mem::PINNED | mem::MANAGED) {
            return Err(Error::invalid(format!("memory kind {}", req.kind)));
        }
        let too_big =
            || Error::new(Code::OUT_OF_MEMORY, format!("no {} bytes of host memory", req.bytes));
        let align = usize::try_from(align).map_err(|_| too_big())?.max(ALIGN);
        let bytes = usize::try_from(req.bytes).map_err(|_| too_big())?;
        let padded = bytes.checked_add(align).ok_or_else(too_big)?;
        // A small alignment makes the allocator use fresh zero pages for what is large: untouched memory costs nothing. The
        // wanted alignment is made inside.
        let layout = Layout::from_size_align(padded, 16).map_err(|_| too_big())?;
        // SAFETY: the layout's size is at least `align`, which is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(too_big());
        }
        let base = (start as u64).next_multiple_of(align as u64);
        let id = self.fresh();
        lock(&self.buffers).insert(base, Allocation { id, bytes: req.bytes, start, layout });
        Ok(Buffer { id, base, bytes: req.bytes, kind: req.kind, flags: 0 })
    }

    fn free(&self, buffer: &Buffer) -> Result<()> {
        let mut buffers = lock(&self.buffers);
        match buffers.get(&buffer.base) {
            Some(a) if a.id == buffer.id => {
                if let Some(a) = buffers.remove(&buffer.base) {
                    release(&a);
                }
                Ok(())
            }
            _ => Err(unknown("buffer", buffer.id)),
        }
    }

    /// The address of `bytes` bytes at `place`, which lie within one buffer (or are the caller's own host memory).
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is no such buffer or the range leaves it.
    pub fn resolve(&self, place: &MemRef, bytes: u64) -> Result<*mut u8> {
        if place.kind == mem::HOST {
            check_host(place, bytes)?;
        } else {
            let buffers = lock(&self.buffers);
            let a = buffers.get(&place.base).ok_or_else(|| unknown("buffer at", place.base))?;
            check_inside(place, bytes, a.bytes)?;
        }
        Ok((place.base + place.offset) as *mut u8)
    }

    fn copy(&self, req: &CopyReq) -> Result<()> {
        let Some([to, from]) = spans(req)? else { return Ok(()) };
        let (dst, src) = (self.resolve(&req.dst, to)?, self.resolve(&req.src, from)?);
        for row in 0..req.rows {
            let (d, s) = ((row * req.dst_pitch) as usize, (row * req.src_pitch) as usize);
            // SAFETY: `resolve` found the span inside a live buffer, or it is the caller's, who vouches for it.
            let d = unsafe { dst.add(d) };
            // SAFETY: as above.
            let s = unsafe { src.add(s) };
            // SAFETY: as above; source and destination may overlap.
            unsafe { std::ptr::copy(s, d, req.row_bytes as usize) };
        }
        Ok(())
    }

    fn fill(&self, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()> {
        check_fill(bytes)?;
        let start = self.resolve(dst, bytes)?;
        // SAFETY: `resolve` found the span inside a live buffer, or it is the caller's, who vouches for it.
        let words = unsafe { std::slice::from_raw_parts_mut(start, bytes as usize) };
        for word in words.chunks_exact_mut(4) {
            word.copy_from_slice(&pattern.to_ne_bytes());
        }
        Ok(())
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        for a in lock(&self.buffers).values() {
            release(a);
        }
    }
}

fn release(a: &Allocation) {
    // SAFETY: start and layout are those of its allocation, which is forgotten with this.
    unsafe { dealloc(a.start, a.layout) };
}

/// Bytes of physical memory.
fn physical_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: u64) -> AllocReq {
        AllocReq { bytes, align: 64, kind: mem::DEVICE, flags: 0 }
    }

    fn host(data: &[u8]) -> MemRef {
        MemRef { base: data.as_ptr() as u64, offset: 0, kind: mem::HOST, device: 0 }
    }

    fn device(buffer: &Buffer, offset: u64) -> MemRef {
        MemRef { base: buffer.base, offset, kind: mem::DEVICE, device: 0 }
    }

    #[test]
    fn bytes_make_the_round_trip_and_bounds_are_kept() {
        let memory = HostMemory::new();
        let buffer = memory.alloc(&request(10)).unwrap();
        assert_eq!(buffer.base % 256, 0);
        let flat = |dst, src, row_bytes| CopyReq {
            dst,
            src,
            row_bytes,
            rows: 1,
            dst_pitch: 0,
            src_pitch: 0,
        };
        let data = [1u8, 2, 3, 4];
        let mut back = [0u8; 4];
        let to_back = MemRef { base: back.as_mut_ptr() as u64, ..host(&data) };
        memory.copy(&flat(device(&buffer, 6), host(&data), 4)).unwrap();
        memory.copy(&flat(to_back, device(&buffer, 6), 4)).unwrap();
        assert_eq!(back, data);
        let error = memory.copy(&flat(device(&buffer, 7), host(&data), 4)).unwrap_err();
        assert_eq!(error.message, "4 bytes at offset 7 of a buffer of 10 bytes");
        assert!(memory.fill(&device(&buffer, 0), 0, 12).is_err());
        memory.free(&buffer).unwrap();
        assert!(memory.free(&buffer).is_err());
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn nonsense_is_refused() {
        let memory = HostMemory::new();
        assert!(memory.alloc(&request(0)).is_err());
        assert!(memory.alloc(&AllocReq { align: 3, ..request(8) }).is_err());
        assert!(memory.alloc(&AllocReq { kind: 9, ..request(8) }).is_err());
        assert_eq!(memory.alloc(&request(u64::MAX)).unwrap_err().code, Code::OUT_OF_MEMORY);
        assert!(memory.check_stream(Stream(7)).is_err());
        assert!(memory.check_stream(Stream::NONE).is_ok());
    }
}
