//! Matrices in the driver's memory: what is checked of them, and how they get to pinned memory and back.

use halyard_sim_cuda_calls::{Pinned, Place, Stream, allocation};

use crate::status::{Failure, Outcome};

/// Checks that so many bytes are in one allocation of this device.
///
/// # Errors
/// `INVALID_VALUE`, naming `what`.
pub(crate) fn check_held(place: &Place, what: &str, start: u64, bytes: u64) -> Outcome {
    let outside = |why: String| Failure::value(format!("{what} at {start:#x}: {why}"));
    let found = allocation(start).map_err(|_| outside("no memory of the driver's".into()))?;
    let (device, room) = found.ok_or_else(|| outside("not in a device's memory".into()))?;
    if device != place.device().unsigned_abs() {
        return Err(outside(format!(
            "in device {device}'s memory, the handle is of device {}",
            place.device()
        )));
    }
    if bytes > room {
        return Err(outside(format!("{bytes} bytes, and {room} to the end of the allocation")));
    }
    Ok(())
}

/// Pinned memory that is kept for good: nothing tells when the last launch of a graph was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept(&'static Pinned);

impl Kept {
    pub(crate) fn alloc(bytes: u64) -> Outcome<Self> {
        Ok(Self(Box::leak(Box::new(Pinned::alloc(bytes)?))))
    }

    pub(crate) fn start(self) -> u64 {
        self.0.start()
    }

    pub(crate) fn bytes(self) -> u64 {
        self.0.bytes()
    }

    /// Runs `f` on the bytes, in a function that a stream calls.
    pub(crate) fn with(self, f: impl FnOnce(&mut [u8])) {
        // SAFETY: the memory is never freed, and has this size; a stream's work uses it one after the other.
        f(unsafe {
            std::slice::from_raw_parts_mut(self.start() as *mut u8, self.bytes() as usize)
        });
    }
}

/// So many pieces of a matrix, from one place to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// From one to the next.
    pub(crate) from_step: u64,
    pub(crate) to_step: u64,
}

impl Pieces {
    /// Enqueues copies between memory of a device and pinned memory; gaps between pieces are not touched.
    pub(crate) fn copy(self, stream: Stream, to: u64, from: u64) -> Outcome {
        let Self { count, bytes, from_step, to_step } = self;
        let whole = from_step == bytes && to_step == bytes;
        let (count, bytes) = if whole { (1, count * bytes) } else { (count, bytes) };
        for i in 0..count {
            stream.copy(to + i * to_step, from + i * from_step, bytes)?;
        }
        Ok(())
    }
}
