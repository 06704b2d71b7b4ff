//! The host's buffers: device memory and pinned host memory.

use std::sync::Arc;

use halyard_sdk::{AllocReq, Buffer, Error, Result, vendor};

pub(crate) use vendor::ALIGN;

use crate::driver::{self, Memory, Stream};

/// What a buffer owns.
#[derive(Debug)]
pub(crate) enum Owned {
    Device(#[expect(dead_code, reason = "it frees itself when it is dropped")] Memory),
    Pinned(u64),
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Self::Pinned(start) = self
            && let Err(error) = driver::free_pinned(*start)
        {
            tracing::debug!(%error, "pinned memory of a device that failed");
        }
    }
}

/// The device's memory, and the buffers that a host has of it.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// In whose order memory comes and goes; nothing else is enqueued there. None once the device is closed.
    stream: Option<Arc<Stream>>,
    pub(crate) named: vendor::Buffers<Owned>,
}

impl Buffers {
    /// Buffers of the device whose context is bound.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { stream: Some(Arc::new(Stream::create(0)?)), named: vendor::Buffers::default() })
    }

    /// Device memory that is no buffer of the host's.
    pub(crate) fn private(&self, bytes: usize) -> Result<Memory> {
        let stream = self.stream.as_ref();
        Memory::alloc(bytes, stream.ok_or_else(|| Error::invalid("the device is closed"))?)
    }

    /// Allocates; the device's context is bound.
    pub(crate) fn alloc(&self, req: &AllocReq) -> Result<Buffer> {
        let device = |bytes| {
            let memory = self.private(bytes)?;
            Ok((memory.start(), Owned::Device(memory)))
        };
        let pinned = |bytes| {
            let start = driver::alloc_pinned(bytes)?;
            Ok((start, Owned::Pinned(start)))
        };
        self.named.alloc(req, device, pinned)
    }

    /// Frees everything; the device's context is bound.
    pub(crate) fn clear(&mut self) {
        self.named.clear();
        self.stream = None;
    }
}
