//! Memory that a backend lays out itself (scratch, caches, packed weights) between zones that nobody may write.

use halyard_core::{Device, DeviceBuffer, DeviceError, Stream, Workspace};

use super::{Trouble, layout::GUARD_BYTE};

/// Bytes of a zone: a block of a small cache, since that is what an index beyond the ends hits.
const GUARD: u64 = 4096;

/// A piece of a buffer.
#[derive(Clone, Debug)]
pub(super) struct Fenced {
    pub(super) buffer: DeviceBuffer,
    /// Where the piece begins.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Fenced {
    /// A piece with guards on both sides, aligned.
    pub(super) fn new(
        (device, stream): (&Device, &Stream),
        bytes: u64,
        align: u64,
    ) -> Result<Self, DeviceError> {
        Self::behind(align.max(GUARD), (device, stream), bytes, align)
    }

    /// A piece at the start of its buffer, with a guard after it.
    pub(super) fn first(
        (device, stream): (&Device, &Stream),
        bytes: u64,
    ) -> Result<Self, DeviceError> {
        Self::behind(0, (device, stream), bytes, 1)
    }

    fn behind(
        offset: u64,
        (device, stream): (&Device, &Stream),
        bytes: u64,
        align: u64,
    ) -> Result<Self, DeviceError> {
        let total = offset + bytes.next_multiple_of(4) + GUARD;
        let buffer = device.alloc_aligned(total, align)?;
        buffer.fill(stream, 0, total, u32::from_ne_bytes([GUARD_BYTE; 4]))?;
        Ok(Self { buffer, offset, bytes })
    }

    /// Fills the piece itself.
    pub(super) fn fill(&self, stream: &Stream, pattern: u32) -> Result<(), DeviceError> {
        self.buffer.fill(stream, self.offset, self.bytes / 4 * 4, pattern)
    }

    /// The piece as scratch memory; it must be the first.
    pub(super) fn workspace(&self) -> Result<Workspace, DeviceError> {
        Workspace::within(&self.buffer, self.bytes)
    }

    /// What it holds.
    pub(super) fn read(&self, stream: &Stream) -> Result<Vec<u8>, DeviceError> {
        let mut held = vec![0; self.bytes as usize];
        self.buffer.read(stream, self.offset, &mut held)?;
        Ok(held)
    }

    /// Checks the guards.
    pub(super) fn check(&self, stream: &Stream, what: &str) -> Result<(), Trouble> {
        let end = self.offset + self.bytes;
        let zones = [("before", 0, self.offset), ("after", end, self.buffer.bytes() - end)];
        for (side, start, bytes) in zones {
            let mut zone = vec![0; bytes as usize];
            self.buffer.read(stream, start, &mut zone)?;
            if let Some(at) = zone.iter().position(|&b| b != GUARD_BYTE) {
                let from = if side == "before" { bytes as usize - at } else { at };
                let size = self.bytes;
                return Err(Trouble::Violation(format!(
                    "memory was written {from} bytes {side} {what} of {size} bytes"
                )));
            }
        }
        Ok(())
    }
}
