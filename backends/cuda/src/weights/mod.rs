//! Packed weights: rows as the kernels read them, copied to the device through a pinned buffer.
//!
//! A matrix is one or more *planes*, each of rows that begin at multiples of 16 bytes, so that kernels read them 16 bytes at a time.

use std::sync::{Arc, Mutex, PoisonError};

use halyard_sdk::{
    DType, Error, Result, Role, Scheme, TensorView, Weight, WeightDesc, WeightFill, WeightPlan,
    WeightTable, abi::scheme::parts,
};

use crate::{
    driver::{self, Event, Plane, Stream},
    memory::ALIGN,
};

/// Schemes this backend computes with.
pub(crate) const SCHEMES: [Scheme; 1] = [Scheme::DENSE];

/// Identity of the packed form, for caches on disk: a change of this file needs a new number.
const FORMAT: u64 = 0x6375_6461_0001;

/// Bytes of the pinned buffer, of which each half is filled while the other is copied.
const STAGING: usize = 8 << 20;

/// Rows of plane begin at multiples of this.
pub(crate) const ROW_ALIGN: u64 = 16;

/// The form of each group of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) scheme: Scheme,
    /// Of the data (dense) or the scales.
    pub(crate) dtype: DType,
    pub(crate) n: u64,
    pub(crate) k: u64,
    /// Bytes from row to row.
    pub(crate) pitch: u64,
}

impl Layout {
    /// # Errors
    /// `UNSUPPORTED` for a scheme, role or flag this backend does not have; `INVALID_ARGUMENT` for a shape that the scheme does not
    /// have.
    pub(crate) fn of(w: &WeightDesc<'_>) -> Result<Self> {
        let roles = [Role::LINEAR, Role::EMBEDDING, Role::EXPERTS, Role::BATCHED];
        if !roles.contains(&Role(w.role)) {
            return Err(Error::unsupported(format!("a weight of role {}", Role(w.role))));
        }
        if !SCHEMES.contains(&w.scheme) {
            return Err(Error::unsupported(format!(
                "weights of scheme {}; supported: {}",
                w.scheme,
                SCHEMES.map(|s| s.to_string()).join(", ")
            )));
        }
        parts(w)?;
        let bytes = w.dtype.bytes(w.k).and_then(|b| b.checked_next_multiple_of(ROW_ALIGN));
        let limit = i32::MAX.unsigned_abs().into();
        match bytes {
            Some(pitch) if w.n > 0 && w.n <= limit && w.k <= limit => {
                Ok(Self { scheme: w.scheme, dtype: w.dtype, n: w.n, k: w.k, pitch })
            }
            _ => Err(Error::invalid(format!("a {} weight of [{}, {}]", w.scheme, w.n, w.k))),
        }
    }

    /// How kernels' names call this form.
    pub(crate) fn kernel_name(&self) -> &'static str {
        match self.dtype {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            _ => "f32",
        }
    }

    /// Bytes of a group.
    pub(crate) fn bytes(&self) -> u64 {
        self.pitch * self.n
    }
}

/// A weight on the device.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    pub(crate) groups: u32,
    /// Address of the first group's first row.
    pub(crate) start: u64,
}

/// Weights by handle.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    table: WeightTable<Packed>,
    staging: Mutex<Option<Staging>>,
}

impl Weights {
    /// What a weight takes.
    pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let group = Layout::of(w)?.bytes();
        let bytes = group.checked_mul(u64::from(w.groups)).filter(|&b| b > 0 && b < 1 << 46);
        let bytes = bytes.ok_or_else(|| {
            Error::invalid(format!("a weight of {} groups of {group} bytes", w.groups))
        })?;
        Ok(WeightPlan { bytes, align: ALIGN, scratch_bytes: 0, format: FORMAT })
    }

    pub(crate) fn create(&self, w: &WeightDesc<'_>, start: u64) -> Result<Weight> {
        let layout = Layout::of(w)?;
        if !start.is_multiple_of(ALIGN) {
            return Err(Error::invalid(format!("a weight at {start:#x}, not aligned to {ALIGN}")));
        }
        self.table.create(w, Packed { layout, groups: w.groups, start })
    }

    /// Packs rows; they are on the device when the stream has reached this point. The context is bound.
    pub(crate) fn fill(&self, on: &Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.table.fill(w, f, |_, packed| {
            let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            let staging = match &mut *staging {
                Some(staging) => staging,
                none => none.insert(Staging::new()?),
            };
            let [data] = f.parts.as_slice() else {
                return Err(Error::invalid("expected one part"));
            };
            let layout = &packed.layout;
            let group = packed.start + u64::from(f.group) * layout.bytes();
            let rows = Rows::of(data)?;
            let to = group + f.row0 * layout.pitch;
            // SAFETY: the table has checked that the rows are the weight's, whose memory the host keeps, and that the part has them.
            unsafe { staging.send(on, &rows, f.rows as usize, to, layout.pitch as usize) }
        })
    }

    pub(crate) fn seal(&self, w: Weight) -> Result<()> {
        self.table.seal(w)
    }

    pub(crate) fn destroy(&self, w: Weight) -> Result<()> {
        self.table.destroy(w)
    }

    /// A sealed weight.
    pub(crate) fn get(&self, w: Weight) -> Result<Arc<Packed>> {
        Ok(self.table.get(w)?.1)
    }

    /// Frees what the driver gave; the context is bound.
    pub(crate) fn clear(&self) {
        *self.staging.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Rows of a part in host memory.
struct Rows {
    start: *const u8,
    pitch: usize,
    bytes: usize,
}

impl Rows {
    fn of(view: &TensorView) -> Result<Self> {
        let bits = view.dtype.bits().unwrap_or(0) as usize;
        let (columns, pitch) = match view.rank {
            2 => (view.dims[1] as usize, view.strides[0] as usize * bits),
            rank => return Err(Error::invalid(format!("a part of rank {rank}, expected 2"))),
        };
        if !pitch.is_multiple_of(8) {
            return Err(Error::invalid("rows that do not begin with a byte"));
        }
        let start = (view.data + view.byte_offset) as *const u8;
        Ok(Self { start, pitch: pitch / 8, bytes: (columns * bits).div_ceil(8) })
    }

    /// # Safety
    /// There is such a row.
    unsafe fn row(&self, row: usize) -> &[u8] {
        // SAFETY: the caller's promise.
        let start = unsafe { self.start.add(row * self.pitch) };
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(start, self.bytes) }
    }
}

/// A pinned buffer in two halves: one is filled while the other is copied.
#[derive(Debug)]
struct Staging {
    start: u64,
    copied: [Event; 2],
    next: usize,
}

impl Staging {
    fn new() -> Result<Self> {
        let copied = [Event::create(false)?, Event::create(false)?];
        Ok(Self { start: driver::alloc_pinned(STAGING)?, copied, next: 0 })
    }

    /// Copies rows to rows of `pitch` bytes at `to`, with zeros after each row's end.
    ///
    /// # Safety
    /// There are as many rows, and `to` is device memory of their size that nothing else uses until the stream has reached this point.
    unsafe fn send(
        &mut self,
        on: &Stream,
        rows: &Rows,
        count: usize,
        to: u64,
        pitch: usize,
    ) -> Result<()> {
        let half = STAGING / 2;
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
            for (i, target) in room.chunks_exact_mut(pitch).enumerate() {
                // SAFETY: the caller's promise.
                let row = unsafe { rows.row(first + i) };
                target[..row.len()].copy_from_slice(row);
                target[row.len()..].fill(0);
            }
            let plane = |start: u64, on_host: bool| Plane { start, on_host, pitch: pitch as u64 };
            let dst = plane(to + (first * pitch) as u64, false);
            // SAFETY: the caller's promise for the target; the half is not written before its event.
            unsafe { driver::copy(on, dst, plane(from, true), (here * pitch) as u64, 1) }?;
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
