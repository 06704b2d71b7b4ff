//! The host's buffers: device memory and pinned host memory.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use halyard_abi::{AllocReq, Buffer, CopyReq, MemRef, types::mem};

use crate::{
    Error, Result,
    requests::{alignment, check_fill, check_host, check_inside, spans, unknown},
};

/// Alignment of every allocation that a driver's layer gives.
pub const ALIGN: u64 = 256;

#[derive(Debug)]
struct Allocation<M> {
    id: u64,
    bytes: u64,
    kind: u32,
    _owned: M,
}

/// Buffers by base address. `M` owns a buffer's memory and frees it when it is dropped.
#[derive(Debug)]
pub struct Buffers<M> {
    last: AtomicU64,
    by_base: Mutex<HashMap<u64, Allocation<M>>>,
}

impl<M> Default for Buffers<M> {
    fn default() -> Self {
        Self { last: AtomicU64::default(), by_base: Mutex::default() }
    }
}

/// A place that a host named, found.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where it is.
    pub address: u64,
    /// Whether it is host memory.
    pub on_host: bool,
}

/// One side of a copy: rows somewhere.
#[derive(Clone, Copy, Debug)]
pub struct Plane {
    /// Address of the first row.
    pub start: u64,
    /// Whether it is host memory.
    pub on_host: bool,
    /// Bytes from row to row.
    pub pitch: u64,
}

impl<M> Buffers<M> {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Allocation<M>>> {
        self.by_base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a buffer of what `device` or `pinned` gives: so many bytes' address, aligned to [`ALIGN`], and owner.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a request that no device can meet, `UNSUPPORTED` for another kind of memory; theirs.
    pub fn alloc(
        &self,
        req: &AllocReq,
        device: impl FnOnce(usize) -> Result<(u64, M)>,
        pinned: impl FnOnce(usize) -> Result<(u64, M)>,
    ) -> Result<Buffer> {
        let align = alignment(req)?;
        // What wants more than the driver gives is aligned inside.
        let slack = if align > ALIGN { align } else { 0 };
        let bytes = req.bytes.checked_add(slack).and_then(|b| usize::try_from(b).ok());
        let bytes =
            bytes.ok_or_else(|| Error::invalid(format!("{} bytes of memory", req.bytes)))?;
        let (start, owned) = match req.kind {
            mem::DEVICE => device(bytes)?,
            mem::PINNED => pinned(bytes)?,
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

    /// Drops a buffer's owner.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is no such buffer.
    pub fn free(&self, buffer: &Buffer) -> Result<()> {
        let mut by_base = self.lock();
        match by_base.get(&buffer.base) {
            Some(a) if a.id == buffer.id => {
                by_base.remove(&buffer.base);
                Ok(())
            }
            _ => Err(unknown("buffer", buffer.id)),
        }
    }

    /// Bytes allocated now on the device.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.lock().values().filter(|a| a.kind == mem::DEVICE).map(|a| a.bytes).sum()
    }

    /// Where `bytes` bytes at `place` are, which must lie within one buffer (or be the caller's own host memory).
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is no such buffer, it is of another kind, or the range leaves it.
    pub fn resolve(&self, place: &MemRef, bytes: u64) -> Result<Place> {
        if place.kind == mem::HOST {
            check_host(place, bytes)?;
            return Ok(Place { address: place.base + place.offset, on_host: true });
        }
        let by_base = self.lock();
        let a = by_base.get(&place.base).ok_or_else(|| unknown("buffer at", place.base))?;
        if a.kind != place.kind {
            return Err(Error::invalid(format!(
                "a buffer of kind {}, named as {}",
                a.kind, place.kind
            )));
        }
        check_inside(place, bytes, a.bytes)?;
        Ok(Place { address: place.base + place.offset, on_host: a.kind == mem::PINNED })
    }

    /// Both sides of a copy, its destination first; `None` if there is nothing to copy.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if a side is not in one buffer, or destination rows overlap.
    pub fn planes(&self, req: &CopyReq) -> Result<Option<[Plane; 2]>> {
        let Some([to, from]) = spans(req)? else { return Ok(None) };
        let plane = |place: &MemRef, span: u64, pitch: u64| {
            let Place { address, on_host } = self.resolve(place, span)?;
            Ok(Plane { start: address, on_host, pitch })
        };
        let dst = plane(&req.dst, to, req.dst_pitch)?;
        Ok(Some([dst, plane(&req.src, from, req.src_pitch)?]))
    }

    /// Where whole words are that will be filled.
    ///
    /// # Errors
    /// As [`Buffers::resolve`]; `INVALID_ARGUMENT` if they are no whole, aligned words.
    pub fn words(&self, dst: &MemRef, bytes: u64) -> Result<Place> {
        check_fill(bytes)?;
        let found = self.resolve(dst, bytes)?;
        if !found.address.is_multiple_of(4) {
            return Err(Error::invalid("a fill that does not begin at a multiple of 4"));
        }
        Ok(found)
    }

    /// Drops all owners.
    pub fn clear(&self) {
        self.lock().clear();
    }
}
