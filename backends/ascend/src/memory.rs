//! The host's buffers: device memory and pinned host memory.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use halyard_sdk::{AllocReq, Buffer, Error, MemRef, Result, abi::types::mem};

use crate::driver::{Driver, Memory, Pinned};

/// Alignment of every allocation.
pub(crate) const ALIGN: u64 = 256;

#[derive(Debug)]
enum Owned {
    Device(#[expect(dead_code, reason = "it frees itself when it is dropped")] Memory),
    Pinned(#[expect(dead_code, reason = "as above")] Pinned),
}

#[derive(Debug)]
struct Allocation {
    id: u64,
    bytes: u64,
    kind: u32,
    _owned: Owned,
}

/// Buffers by base address.
#[derive(Debug)]
pub(crate) struct Buffers {
    driver: &'static Driver,
    last: AtomicU64,
    by_base: Mutex<HashMap<u64, Allocation>>,
}

/// A place that a host named, found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) address: u64,
    pub(crate) on_host: bool,
}

impl Buffers {
    pub(crate) fn new(driver: &'static Driver) -> Self {
        Self { driver, last: AtomicU64::default(), by_base: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Allocation>> {
        self.by_base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates; the device's context is bound.
    pub(crate) fn alloc(&self, req: &AllocReq) -> Result<Buffer> {
        let align = req.align.max(1);
        if req.bytes == 0 || req.flags != 0 || !align.is_power_of_two() {
            return Err(Error::invalid(format!(
                "allocation of {} bytes aligned to {} with flags {:#x}",
                req.bytes, req.align, req.flags
            )));
        }
        // The driver layer aligns to 256; what wants more is aligned inside.
        let slack = if align > ALIGN { align } else { 0 };
        let bytes = req.bytes.checked_add(slack).and_then(|b| usize::try_from(b).ok());
        let bytes =
            bytes.ok_or_else(|| Error::invalid(format!("{} bytes of memory", req.bytes)))?;
        let (start, owned) = match req.kind {
            mem::DEVICE => {
                let memory = Memory::alloc(self.driver, bytes)?;
                (memory.start(), Owned::Device(memory))
            }
            mem::PINNED => {
                let memory = Pinned::alloc(self.driver, bytes)?;
                (memory.start(), Owned::Pinned(memory))
            }
            kind => {
                return Err(Error::unsupported(format!(
                    "memory kind {kind}; there are {} (device) and {} (pinned)",
                    mem::DEVICE,
                    mem::PINNED
                )));
            }
        };
        let base = start.next_multiple_of(align);
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let allocation = Allocation { id, bytes: req.bytes, kind: req.kind, _owned: owned };
        self.lock().insert(base, allocation);
        Ok(Buffer { id, base, bytes: req.bytes, kind: req.kind, flags: 0 })
    }

    /// Frees; the device's context is bound.
    pub(crate) fn free(&self, buffer: &Buffer) -> Result<()> {
        let mut by_base = self.lock();
        match by_base.get(&buffer.base) {
            Some(a) if a.id == buffer.id => {
                by_base.remove(&buffer.base);
                Ok(())
            }
            _ => Err(Error::invalid(format!("no buffer {:#x}", buffer.id))),
        }
    }

    /// Bytes allocated now on the device.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.lock().values().filter(|a| a.kind == mem::DEVICE).map(|a| a.bytes).sum()
    }

    /// Where `bytes` bytes at `place` are, which must lie within one buffer (or be the caller's own host memory).
    pub(crate) fn resolve(&self, place: &MemRef, bytes: u64) -> Result<Place> {
        let end = place.offset.checked_add(bytes);
        if place.kind == mem::HOST {
            if place.base == 0 || end.and_then(|e| place.base.checked_add(e)).is_none() {
                return Err(Error::invalid("a host address of 0, or beyond the address space"));
            }
            return Ok(Place { address: place.base + place.offset, on_host: true });
        }
        let by_base = self.lock();
        let a = by_base
            .get(&place.base)
            .ok_or_else(|| Error::invalid(format!("no buffer at {:#x}", place.base)))?;
        if a.kind != place.kind {
            return Err(Error::invalid(format!(
                "a buffer of kind {}, named as {}",
                a.kind, place.kind
            )));
        }
        if end.is_none_or(|e| e > a.bytes) {
            return Err(Error::invalid(format!(
                "{bytes} bytes at offset {} of a buffer of {} bytes",
                place.offset, a.bytes
            )));
        }
        Ok(Place { address: place.base + place.offset, on_host: a.kind == mem::PINNED })
    }

    /// Frees everything; the device's context is bound.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }
}
