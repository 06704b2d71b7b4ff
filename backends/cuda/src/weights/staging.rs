//! Rows on their way from the host to the device.

use halyard_sdk::{Error, Result};

use crate::driver::{self, Event, Plane, Stream};

/// Bytes of the pinned buffer, of which each half is filled while the other is copied.
const BYTES: usize = 8 << 20;

/// A pinned buffer in two halves.
#[derive(Debug)]
pub(super) struct Staging {
    start: u64,
    copied: [Event; 2],
    next: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Self> {
        let copied = [Event::create(false)?, Event::create(false)?];
        Ok(Self { start: driver::alloc_pinned(BYTES)?, copied, next: 0 })
    }

    /// Copies `count` rows of `pitch` bytes to `to`, each as `write` makes it in a row of zeros.
    ///
    /// # Safety
    /// `to` is device memory of their size that nothing else uses until the stream has reached this point.
    pub(super) unsafe fn send(
        &mut self,
        on: &Stream,
        (to, pitch): (u64, usize),
        count: usize,
        mut write: impl FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        let half = BYTES / 2;
        let a_time = half / pitch;
        if a_time == 0 {
            return Err(Error::unsupported(format!(
                "weights with rows of {pitch} bytes, at most {half}"
            )));
        }
        for first in (0..count).step_by(a_time) {
            let here = a_time.min(count - first);
            let copied = &self.copied[self.next];
            copied.synchronize()?;
            let from = self.start + (self.next * half) as u64;
            // SAFETY: the half is ours, and no copy from it is under way any more.
            let room = unsafe { std::slice::from_raw_parts_mut(from as *mut u8, here * pitch) };
            room.fill(0);
            for (i, row) in room.chunks_exact_mut(pitch).enumerate() {
                write(first + i, row);
            }
            let plane = |start, on_host| Plane { start, on_host, pitch: pitch as u64 };
            let (dst, src) = (plane(to + (first * pitch) as u64, false), plane(from, true));
            // SAFETY: the caller's promise for the target; the half is not written before its event.
            unsafe { driver::copy(on, dst, src, (here * pitch) as u64, 1) }?;
            copied.record(on)?;
            self.next ^= 1;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = driver::free_pinned(self.start) {
            tracing::debug!(%error, "pinned memory of a device that failed");
        }
    }
}
