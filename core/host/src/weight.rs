//! Weights in the backend's packed form.

use std::sync::Arc;

use halyard_abi::{
    DType, RSlice, TensorSpec, TensorView, Weight as RawWeight, WeightDesc, WeightFill, WeightPlan,
    types::FLAG_HOST,
};

use crate::{
    Device, DeviceBuffer, Result, Stream,
    device::DeviceInner,
    error::{DeviceError, Named},
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
    /// Freed after `drop` has told the backend to forget the weight.
    buffer: DeviceBuffer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.device.raw.weight_destroy(self.raw).named("weight_destroy") {
            tracing::warn!(%error, "could not destroy a weight");
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
        let plan = self.weight_plan(&desc)?;
        let buffer = self.alloc_aligned(plan.bytes, plan.align.max(1))?;
        let raw = self.inner.raw.weight_create(&desc, &buffer.place(0)).named("weight_create")?;
        Ok(WeightBuilder { inner: Inner { device: Arc::clone(&self.inner), raw, desc, buffer } })
    }
}

impl WeightBuilder {
    /// Packs `rows` rows of `group` from `row0` on, from their canonical form: row-major elements of a dense weight, or the file's
    /// bytes of a GGUF scheme. Any number of times, until every row has come once.
    ///
    /// # Errors
    /// If `data` does not hold exactly these rows, they lie outside the weight or came before.
    pub fn fill(
        &mut self,
        stream: &Stream,
        group: u32,
        row0: u64,
        rows: u64,
        data: &[u8],
    ) -> Result<()> {
        let desc = &self.inner.desc;
        let (dtype, width) = match desc.scheme.gguf_block() {
            Some((elements, bytes)) => (DType::U8, desc.k / elements * bytes),
            None => (desc.dtype, desc.k),
        };
        let dims = [rows.cast_signed(), width.cast_signed()];
        let mut spec = TensorSpec::new(dtype, &dims);
        spec.flags |= FLAG_HOST;
        let part = [TensorView::contiguous(data.as_ptr() as u64, 0, &spec)];
        if part[0].extent_bytes() != Some(data.len() as u64) {
            return Err(DeviceError::invalid(
                "weight_fill",
                format!("{} bytes for {rows} rows of {width} {dtype}", data.len()),
            ));
        }
        let fill = WeightFill { group, flags: 0, row0, rows, parts: RSlice::from_slice(&part) };
        let device = &self.inner.device;
        device.raw.weight_fill(stream.raw, self.inner.raw, &fill).named("weight_fill")?;
        // The backend reads `data` until the stream has reached this point.
        if device.inline { Ok(()) } else { stream.sync() }
    }

    /// Ends filling.
    ///
    /// # Errors
    /// If rows are missing.
    pub fn seal(self, stream: &Stream) -> Result<Weight> {
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
        self.inner.buffer.bytes()
    }
}
