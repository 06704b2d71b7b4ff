//! Prepared operations.

use std::sync::Arc;

use halyard_abi::{
    KernelBox, OpBuf, Plan as RawPlan, RSlice, TensorSpec,
    ops::{
        OpSchema,
        check::{Bindings, check_desc},
    },
};

use crate::{Device, Result, decompose, device::DeviceInner, error::Named};

/// A prepared operation; shared by all layers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) raw: KernelBox,
    pub(crate) device: Arc<DeviceInner>,
    pub(crate) op: OpBuf,
    pub(crate) schema: &'static OpSchema,
    pub(crate) bindings: Bindings,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.op)
    }
}

/// A step's preparation of a kernel, reused by all layers.
#[derive(Debug)]
pub struct Plan {
    pub(crate) raw: RawPlan,
    pub(crate) kernel: Arc<Inner>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        if self.raw != RawPlan::NONE {
            self.kernel.raw.plan_free(self.raw);
        }
    }
}

impl Kernel {
    pub(crate) fn new(device: &Device, op: OpBuf) -> Result<Self> {
        let (schema, bindings) = check_desc(&op.desc()).named("prepare")?;
        let raw = decompose::prepare(&device.inner, device.decompose, &op)?;
        let device = Arc::clone(&device.inner);
        Ok(Self { inner: Arc::new(Inner { raw, device, op, schema, bindings }) })
    }

    /// What it was prepared from.
    #[must_use]
    pub fn op(&self) -> &OpBuf {
        &self.inner.op
    }

    /// [`CAPTURABLE`](crate::CAPTURABLE), [`DETERMINISTIC`](crate::DETERMINISTIC), [`HOST_LENGTHS`](crate::HOST_LENGTHS),
    /// [`BATCH_INVARIANT`](crate::BATCH_INVARIANT), [`PLAN_UPDATE`](crate::PLAN_UPDATE).
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.inner.raw.flags()
    }

    /// Scratch bytes that a launch with these shapes needs at most.
    #[must_use]
    pub fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.inner.raw.workspace_bytes(RSlice::from_slice(shapes))
    }
}
