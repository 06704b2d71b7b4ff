//! Weights in the backend's packed form.

use std::sync::Arc;

use halyard_abi::{
    RSlice, TensorSpec, TensorView, Weight as RawWeight, WeightDesc, WeightFill, WeightPlan,
    scheme, types::FLAG_HOST,
};

use crate::{
    Device, DeviceBuffer, Result, Stream,
    device::DeviceInner,
    error::{DeviceError, Named, could_not},
};

/// A packed weight. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Weight {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) device: Arc<DeviceInner>,
    pub(crate) raw: RawWeight,
    pub(crate) desc: WeightDesc<'static>,
    bytes: u64,
    /// Freed after `drop` has told the backend to forget the weight.
    _buffer: DeviceBuffer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.device.raw.weight_destroy(self.raw).named("weight_destroy") {
            could_not("destroy a weight", &error);
        }
    }
}

/// A weight that is being filled.
#[derive(Debug)]
pub struct WeightBuilder {
    inner: Inner,
}

impl Device {
    /// How many bytes the packed form of a weight takes.
    ///
    /// # Errors
    /// If the backend cannot use such a weight.
    pub fn weight_plan(&self, desc: &WeightDesc<'static>) -> Result<WeightPlan> {
        self.inner.raw.weight_plan(desc).named("weight_plan")
    }

    /// Begins a weight.
    ///
    /// # Errors
    /// If the backend cannot use such a weight, or `OUT_OF_MEMORY`.
    pub fn weight(&self, desc: WeightDesc<'static>) -> Result<WeightBuilder> {
        self.weight_in(desc, &mut |bytes, align| Ok((self.alloc_aligned(bytes, align)?, 0)))
    }

    /// Begins a weight in memory that `place` finds: given bytes and alignment, a buffer and the offset in it.
    ///
    /// # Errors
    /// If the backend cannot use such a weight, what `place` says, or if that is no room for it.
    pub fn weight_in(
        &self,
        desc: WeightDesc<'static>,
        place: &mut dyn FnMut(u64, u64) -> Result<(DeviceBuffer, u64)>,
    ) -> Result<WeightBuilder> {
        let WeightPlan { bytes, align, .. } = self.weight_plan(&desc)?;
        let (buffer, offset) = place(bytes, align.max(1))?;
        buffer.check_room(&self.inner, (offset, bytes), align, "weight_create")?;
        let dst = buffer.place(offset);
        let raw = self.inner.raw.weight_create(&desc, &dst).named("weight_create")?;
        let device = Arc::clone(&self.inner);
        Ok(WeightBuilder { inner: Inner { device, raw, desc, bytes, _buffer: buffer } })
    }
}

impl WeightBuilder {
    /// Packs `rows` rows of `group` from `row0` on, from the parts of the scheme ([`scheme::parts`]), each contiguous: row-major elements
    /// of a dense weight, the file's bytes of a GGUF scheme. Any number of times, until every row has come once.
    ///
    /// # Errors
    /// If `parts` do not hold exactly these rows, they lie outside the weight or came before.
    pub fn fill(
        &mut self,
        stream: &Stream,
        group: u32,
        row0: u64,
        rows: u64,
        parts: &[&[u8]],
    ) -> Result<()> {
        stream.refuse_in_capture("weight_fill")?;
        let described = scheme::parts(&self.inner.desc).named("weight_fill")?;
        let wrong = |why: String| Err(DeviceError::invalid("weight_fill", why));
        if described.len() != parts.len() {
            return wrong(format!("{} parts, expected {}", parts.len(), described.len()));
        }
        let mut views = Vec::with_capacity(parts.len());
        for (part, data) in described.iter().zip(parts) {
            if part.bytes(rows) != Some(data.len() as u64) {
                let (name, dims, dtype) = (part.name, part.dims(rows), part.dtype);
                return wrong(format!("{} bytes for {name} {dims:?} of {dtype}", data.len()));
            }
            let mut spec = TensorSpec::new(part.dtype, &part.dims(rows));
            spec.flags |= FLAG_HOST;
            views.push(TensorView::contiguous(data.as_ptr() as u64, 0, &spec));
        }
        let fill = WeightFill { group, flags: 0, row0, rows, parts: RSlice::from_slice(&views) };
        let device = &self.inner.device;
        device.raw.weight_fill(stream.raw, self.inner.raw, &fill).named("weight_fill")?;
        // The backend reads the parts until the stream has reached this point.
        if device.inline { Ok(()) } else { stream.sync() }
    }

    /// Ends filling.
    ///
    /// # Errors
    /// If rows are missing.
    pub fn seal(self, stream: &Stream) -> Result<Weight> {
        stream.refuse_in_capture("weight_seal")?;
        let device = &self.inner.device;
        device.raw.weight_seal(stream.raw, self.inner.raw).named("weight_seal")?;
        Ok(Weight { inner: Arc::new(self.inner) })
    }
}

impl Weight {
    /// What it is.
    #[must_use]
    pub fn desc(&self) -> &WeightDesc<'static> {
        &self.inner.desc
    }

    /// Bytes of the packed form.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.bytes
    }
}
