//! What the host's buffers own: device memory and pinned host memory.

use halyard_sdk::{AllocReq, Buffer, Result, vendor};

pub(crate) use vendor::ALIGN;

use crate::driver::{Driver, Memory, Pinned};

/// What a buffer owns.
#[derive(Debug)]
pub(crate) enum Owned {
    Device(#[expect(dead_code, reason = "it frees itself when it is dropped")] Memory),
    Pinned(#[expect(dead_code, reason = "as above")] Pinned),
}

pub(crate) type Buffers = vendor::Buffers<Owned>;

/// Allocates; the device's context is bound.
pub(crate) fn alloc(driver: &'static Driver, buffers: &Buffers, req: &AllocReq) -> Result<Buffer> {
    let device = |bytes| {
        let memory = Memory::alloc(driver, bytes)?;
        Ok((memory.start(), Owned::Device(memory)))
    };
    let pinned = |bytes| {
        let memory = Pinned::alloc(driver, bytes)?;
        Ok((memory.start(), Owned::Pinned(memory)))
    };
    buffers.alloc(req, device, pinned)
}
