//! Device memory.

use std::sync::Arc;

use halyard_abi::{AllocReq, Buffer, CopyReq, DType, MemRef, types::mem};

use crate::{
    Device, Result, Stream,
    device::DeviceInner,
    error::{DeviceError, Named},
};

/// Memory on a device. Cheap to clone; freed when the last clone is gone and no work uses it any more.
#[derive(Clone, Debug)]
pub struct DeviceBuffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: Arc<DeviceInner>,
    raw: Buffer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.device.retire(self.raw);
    }
}

/// Elements of the host's, and where in a buffer they go.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    to: &'a DeviceBuffer,
    offset: u64,
    from: &'a [u8],
    row_bytes: u64,
    rows: u64,
    /// Bytes from row to row of the buffer.
    pitch: u64,
}

impl Upload<'_> {
    fn enqueue(&self, stream: &Stream) -> Result<()> {
        const CALL: &str = "copy";
        let Self { to, offset, from, row_bytes, rows, pitch } = *self;
        to.is_of(stream, CALL)?;
        if rows == 0 || row_bytes == 0 {
            return Ok(());
        }
        let span = (rows - 1).checked_mul(pitch).and_then(|start| start.checked_add(row_bytes));
        let span = span.ok_or_else(|| DeviceError::invalid(CALL, "rows beyond any memory"))?;
        to.check_range(offset, span, CALL)?;
        let src = MemRef { base: from.as_ptr() as u64, offset: 0, kind: mem::HOST, device: 0 };
        let (dst, dst_pitch, src_pitch) = (to.place(offset), pitch, row_bytes);
        let req = CopyReq { dst, src, row_bytes, rows, dst_pitch, src_pitch };
        stream.device.raw.copy(stream.raw, &req).named(CALL)
    }
}

impl Stream {
    /// Copies to the device, in stream order; returns when everything has left the host's memory.
    ///
    /// # Errors
    /// If something does not fit, or a copy fails; others may have been made then.
    pub fn upload(&self, copies: &[Upload<'_>]) -> Result<()> {
        self.refuse_in_capture("copy")?;
        let enqueued = copies.iter().try_for_each(|copy| copy.enqueue(self));
        // Also after a failure: copies before it still read what is only borrowed.
        let done = if self.device.inline { Ok(()) } else { self.sync() };
        enqueued.and(done)
    }
}

/// A Rust type that is a dtype's element.
pub trait Element: Copy + Send + Sync + sealed::Sealed + 'static {
    /// Which dtype.
    const DTYPE: DType;
}

mod sealed {
    /// Types without padding for which any bits are valid.
    #[expect(unnameable_types, reason = "that is what sealing is")]
    pub trait Sealed {}
}

macro_rules! elements {
    ($($ty:ty = $dtype:ident),*) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(f32 = F32, half::f16 = F16, half::bf16 = BF16, i8 = I8, u8 = U8, i32 = I32, i64 = I64);
elements!(u32 = U32, u64 = U64);

/// The bytes of elements.
pub(crate) fn as_bytes<T: Element>(data: &[T]) -> &[u8] {
    // SAFETY: elements have no padding (`Sealed`), so every byte of the slice is initialised.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

impl Device {
    /// Allocates `bytes` (at least 1) of device memory; its contents are undefined.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn alloc(&self, bytes: u64) -> Result<DeviceBuffer> {
        self.alloc_aligned(bytes, 256)
    }

    /// Allocates with an alignment (a power of two; at least 256 is given).
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn alloc_aligned(&self, bytes: u64, align: u64) -> Result<DeviceBuffer> {
        self.inner.reap();
        let req = AllocReq { bytes: bytes.max(1), align, kind: mem::DEVICE, flags: 0 };
        let raw = self.inner.raw.alloc(&req).named("alloc")?;
        let inner = Inner { device: Arc::clone(&self.inner), raw };
        Ok(DeviceBuffer { inner: Arc::new(inner) })
    }
}

impl DeviceBuffer {
    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.raw.bytes
    }

    /// Tells buffers that live apart.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.inner).addr()
    }

    pub(crate) fn base(&self) -> u64 {
        self.inner.raw.base
    }

    pub(crate) fn device(&self) -> &Arc<DeviceInner> {
        &self.inner.device
    }

    pub(crate) fn place(&self, offset: u64) -> MemRef {
        MemRef { base: self.inner.raw.base, offset, kind: self.inner.raw.kind, device: 0 }
    }

    pub(crate) fn is_of(&self, stream: &Stream, call: &'static str) -> Result<()> {
        if Arc::ptr_eq(&self.inner.device, &stream.device) {
            return Ok(());
        }
        Err(DeviceError::invalid(call, "stream and memory belong to different devices"))
    }

    /// Checks that a backend may lay something out here: memory of this device, large enough, and aligned if the buffer's start is.
    pub(crate) fn check_room(
        &self,
        device: &Arc<DeviceInner>,
        (offset, bytes): (u64, u64),
        align: u64,
        call: &'static str,
    ) -> Result<()> {
        if !Arc::ptr_eq(&self.inner.device, device) {
            return Err(DeviceError::invalid(call, "memory of another device"));
        }
        if !offset.is_multiple_of(align.max(1)) {
            return Err(DeviceError::invalid(call, format!("offset {offset}, not of {align}")));
        }
        self.check_range(offset, bytes, call)
    }

    pub(crate) fn check_range(&self, offset: u64, bytes: u64, call: &'static str) -> Result<()> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.bytes()) {
            return Ok(());
        }
        let size = self.bytes();
        Err(DeviceError::invalid(
            call,
            format!("{bytes} bytes at offset {offset} of a buffer of {size} bytes"),
        ))
    }

    /// Copies elements to the device, in stream order; returns when they have left `data`.
    ///
    /// # Errors
    /// If they do not fit, or the copy fails.
    pub fn write<T: Element>(&self, stream: &Stream, offset: u64, data: &[T]) -> Result<()> {
        stream.upload(&[self.upload(offset, data)])
    }

    /// A copy of elements to `offset` bytes, for [`Stream::upload`].
    #[must_use]
    pub fn upload<'a, T: Element>(&'a self, offset: u64, data: &'a [T]) -> Upload<'a> {
        let bytes = size_of_val(data) as u64;
        let from = as_bytes(data);
        Upload { to: self, offset, from, row_bytes: bytes, rows: 1, pitch: bytes }
    }

    /// The same with `columns` elements a row, of rows that begin `pitch` elements apart.
    #[must_use]
    pub fn upload_rows<'a, T: Element>(
        &'a self,
        offset: u64,
        data: &'a [T],
        (columns, pitch): (usize, usize),
    ) -> Upload<'a> {
        let bytes = |elements: usize| (elements * size_of::<T>()) as u64;
        let rows = data.len().checked_div(columns).unwrap_or(0) as u64;
        let from = as_bytes(data);
        Upload { to: self, offset, from, row_bytes: bytes(columns), rows, pitch: bytes(pitch) }
    }

    /// Copies elements from the device, after all earlier work of the stream; returns when they are in `data`.
    ///
    /// # Errors
    /// If there are not so many, or earlier work or the copy failed.
    pub fn read<T: Element>(&self, stream: &Stream, offset: u64, data: &mut [T]) -> Result<()> {
        let bytes = size_of_val(data) as u64;
        stream.refuse_in_capture("copy")?;
        self.is_of(stream, "copy")?;
        self.check_range(offset, bytes, "copy")?;
        let dst = MemRef { base: data.as_mut_ptr() as u64, offset: 0, kind: mem::HOST, device: 0 };
        if bytes > 0 {
            let src = self.place(offset);
            let (row_bytes, rows, dst_pitch, src_pitch) = (bytes, 1, bytes, bytes);
            let req = CopyReq { dst, src, row_bytes, rows, dst_pitch, src_pitch };
            self.inner.device.raw.copy(stream.raw, &req).named("copy")?;
        }
        stream.sync()
    }

    /// Fills a range (both numbers multiples of 4) with a 32-bit pattern.
    ///
    /// # Errors
    /// If the range leaves the buffer, or the fill fails.
    pub fn fill(&self, stream: &Stream, offset: u64, bytes: u64, pattern: u32) -> Result<()> {
        self.is_of(stream, "fill")?;
        self.check_range(offset, bytes, "fill")?;
        stream.captured(|uses| uses.buffer(self));
        self.inner.device.raw.fill(stream.raw, &self.place(offset), pattern, bytes).named("fill")
    }
}
