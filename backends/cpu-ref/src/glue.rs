//! The boundary to raw memory: the only `unsafe` code of this crate.

use halyard_sdk::{Error, HostTensor, LaunchArgs, Result, TensorView};

use crate::weights::{RefWeight, Weights};

/// The arguments of a launch, opened.
pub(crate) struct Args {
    views: Vec<TensorView>,
    weights: Vec<RefWeight>,
}

impl Args {
    /// Takes a launch's tensors and finds its weights.
    pub(crate) fn of_launch(args: &LaunchArgs<'_>, weights: &Weights) -> Result<Self> {
        Ok(Self {
            views: args.tensors.to_vec(),
            weights: args.weights.iter().map(|&w| weights.get(w)).collect::<Result<_>>()?,
        })
    }

    fn open(view: &TensorView) -> Result<HostTensor> {
        // SAFETY: the host has checked the view against its buffer, which lives and is ours until `launch` returns.
        unsafe { HostTensor::new(view) }
    }

    /// A slot that the op must have.
    pub(crate) fn tensor(&self, slot: usize) -> Result<HostTensor> {
        self.optional(slot)?.ok_or_else(|| Error::invalid(format!("slot {slot} is missing")))
    }

    /// A slot that may be absent.
    pub(crate) fn optional(&self, slot: usize) -> Result<Option<HostTensor>> {
        self.views.get(slot).filter(|v| !v.is_none()).map(Self::open).transpose()
    }

    /// A weight.
    pub(crate) fn weight(&self, slot: usize) -> Result<&RefWeight> {
        self.weights
            .get(slot)
            .ok_or_else(|| Error::invalid(format!("weight slot {slot} is missing")))
    }
}

/// The memory of a packed weight.
#[derive(Debug)]
pub(crate) struct WeightMemory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is the host's, which keeps it until `weight_destroy`, and does not touch it; it is written by fills only,
// one at a time under the weight table's lock, and read by launches only after the weight is sealed.
unsafe impl Send for WeightMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for WeightMemory {}

impl WeightMemory {
    /// # Safety
    /// `bytes` bytes from `start` are valid for reads and writes until this is dropped.
    unsafe fn new(start: *mut u8, bytes: usize) -> Self {
        Self { start, bytes }
    }

    /// The memory at `place`, which the host keeps for the weight until it is destroyed.
    pub(crate) fn at(
        memory: &halyard_sdk::HostMemory,
        place: &halyard_sdk::MemRef,
        bytes: u64,
    ) -> Result<Self> {
        let start = memory.resolve(place, bytes)?;
        let bytes = usize::try_from(bytes).map_err(|_| Error::invalid("a weight too large"))?;
        // SAFETY: `resolve` found the span in a live buffer; the host keeps it until `weight_destroy`.
        Ok(unsafe { Self::new(start, bytes) })
    }

    fn check(&self, offset: usize, bytes: usize) {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "bytes {offset}+{bytes} of a weight of {} bytes", self.bytes);
    }

    /// Some bytes.
    ///
    /// # Panics
    /// If they leave the weight: a bug of this crate, caught by the SDK's guard.
    pub(crate) fn read(&self, offset: usize, bytes: usize) -> &[u8] {
        self.check(offset, bytes);
        // SAFETY: inside the memory, as just checked.
        let start = unsafe { self.start.add(offset) };
        // SAFETY: as above; only sealed weights are read, and those are written no more.
        unsafe { std::slice::from_raw_parts(start, bytes) }
    }

    /// Copies row `row` of a fill's part, `bytes` long, to `offset`.
    ///
    /// # Panics
    /// As [`WeightMemory::read`].
    pub(crate) fn write_row(&self, offset: usize, part: &TensorView, row: u64, bytes: usize) {
        self.check(offset, bytes);
        let bits = u64::from(part.dtype.bits().unwrap_or(8));
        let start = row * part.strides[0].cast_unsigned() * bits / 8;
        let from = part.data + part.byte_offset + start;
        // SAFETY: inside the memory, as just checked.
        let to = unsafe { self.start.add(offset) };
        // SAFETY: the host vouches for the part's bytes; the table has checked its shape. The two do not overlap: the
        // destination is the weight's own memory.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to, bytes) };
    }
}
