//! Kept argument blocks: checked when they change, so that a launch only passes them on.

use std::sync::Arc;

use halyard_abi::{
    LaunchArgs, RSlice, TensorView, Weight as RawWeight,
    ops::{Sym, check::check_views, schema::Access},
    traits::CAPTURABLE,
    types::FLAG_OPAQUE,
};

use crate::{
    Device, DeviceBuffer, Kernel, Plan, Result, Stream, Tensor, Weight,
    device::DeviceInner,
    error::{DeviceError, Named},
    graph::unsupported,
};

/// Scratch memory of one stream; contents are undefined between launches.
#[derive(Debug)]
pub struct Workspace {
    device: Arc<DeviceInner>,
    buffer: Option<DeviceBuffer>,
    bytes: u64,
}

impl Workspace {
    /// Scratch of `bytes`; 0 allocates nothing.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let buffer = if bytes == 0 { None } else { Some(device.alloc(bytes)?) };
        Ok(Self { device: Arc::clone(&device.inner), buffer, bytes })
    }

    /// The first `bytes` of a buffer as scratch; what comes after them is none of a kernel's business.
    ///
    /// # Errors
    /// If the buffer has fewer.
    pub fn within(buffer: &DeviceBuffer, bytes: u64) -> Result<Self> {
        buffer.check_range(0, bytes, "workspace")?;
        let device = Arc::clone(buffer.device());
        Ok(Self { device, buffer: Some(buffer.clone()), bytes })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its memory, if any: a test may poison it.
    #[must_use]
    pub fn buffer(&self) -> Option<&DeviceBuffer> {
        self.buffer.as_ref()
    }
}

/// The arguments of a kernel, ready to launch again and again.
///
/// The tensors given at first set the largest extents; [`Launch::set`] moves the dynamic ones within them. Everything is checked
/// here: presence, dtypes, dims, strides, bounds, aliasing. What lies in index tensors (block tables, slots, ids) only the backend
/// can check, as far as its device can.
#[derive(Debug)]
pub struct Launch {
    kernel: Kernel,
    views: Vec<TensorView>,
    /// The views with the largest extents.
    limits: Vec<TensorView>,
    buffers: Vec<Option<DeviceBuffer>>,
    raw_weights: Vec<RawWeight>,
    weights: Vec<Weight>,
    scalars: Vec<u64>,
    plan: Option<Arc<Plan>>,
    workspace_bytes: u64,
}

impl Launch {
    /// Arguments for `kernel`, slot by slot; trailing absent slots may be left out.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming op, slot and what is wrong.
    pub fn new(kernel: &Kernel, tensors: &[Option<&Tensor>], weights: &[&Weight]) -> Result<Self> {
        let count = kernel.op().tensors().len().max(tensors.len());
        let view =
            |i: usize| tensors.get(i).copied().flatten().map_or(TensorView::NONE, |t| t.view);
        let views: Vec<_> = (0..count).map(view).collect();
        let buffer = |i: usize| tensors.get(i).copied().flatten().map(|t| t.buffer.clone());
        let mut this = Self {
            kernel: kernel.clone(),
            limits: views.clone(),
            views,
            buffers: (0..count).map(buffer).collect(),
            raw_weights: weights.iter().map(|w| w.inner.raw).collect(),
            weights: weights.iter().map(|&w| w.clone()).collect(),
            scalars: vec![0; kernel.inner.schema.scalars.len()],
            plan: None,
            workspace_bytes: 0,
        };
        this.check_weights()?;
        this.check_tensors()?;
        this.size_workspace();
        Ok(this)
    }

    fn bad(&self, message: impl std::fmt::Display) -> DeviceError {
        DeviceError::invalid("launch", format!("{}: {message}", self.kernel.op().kind()))
    }

    fn check_weights(&self) -> Result<()> {
        let expected = self.kernel.op().weights();
        if expected.len() != self.weights.len() {
            let (got, want) = (self.weights.len(), expected.len());
            return Err(self.bad(format!("{got} weights, prepared for {want}")));
        }
        for (i, (want, weight)) in expected.iter().zip(&self.weights).enumerate() {
            let got = weight.desc();
            // The role may differ: a tied embedding serves as output layer.
            let key = |w: &halyard_abi::WeightDesc<'_>| {
                (w.scheme, w.dtype, w.groups, w.n, w.k, w.group_size)
            };
            if key(want) != key(got) {
                return Err(self.bad(format!("weight {i} is {got:?}, prepared for {want:?}")));
            }
            self.same_device(&weight.inner.device)?;
        }
        Ok(())
    }

    fn same_device(&self, other: &Arc<DeviceInner>) -> Result<()> {
        if Arc::ptr_eq(other, &self.kernel.inner.device) {
            return Ok(());
        }
        Err(self.bad("an argument belongs to another device"))
    }

    fn check_tensors(&self) -> Result<()> {
        let kernel = &self.kernel.inner;
        check_views(&kernel.op.desc(), kernel.schema, &self.views).named("launch")?;
        for buffer in self.buffers.iter().flatten() {
            self.same_device(buffer.device())?;
        }
        for (w, written) in kernel.schema.slots.iter().enumerate() {
            if written.access == Access::In || w >= self.views.len() {
                continue;
            }
            for (o, other) in kernel.schema.slots.iter().enumerate().take(self.views.len()) {
                // Each pair once, from its written side; two written slots from the first.
                if o == w || (other.access != Access::In && o < w) {
                    continue;
                }
                let (a, b) = (&self.views[w], &self.views[o]);
                let same =
                    a.data == b.data && a.byte_offset == b.byte_offset && a.strides == b.strides;
                let allowed = same && kernel.schema.may_alias.contains(&(w, o));
                if !allowed && overlap(a, b) {
                    return Err(self.bad(format!("{} overlaps {}", written.name, other.name)));
                }
            }
        }
        Ok(())
    }

    fn size_workspace(&mut self) {
        let shapes: Vec<_> = self.limits.iter().map(TensorView::spec).collect();
        self.workspace_bytes = self.workspace_bytes.max(self.kernel.workspace_bytes(&shapes));
    }

    /// Which kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Scratch bytes that any launch of this block needs.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }

    /// Sets a dynamic dimension in every slot that has it.
    ///
    /// # Errors
    /// If the op does not have it, it was fixed at `prepare`, or it exceeds what the tensors hold.
    pub fn set(&mut self, sym: Sym, value: usize) -> Result<()> {
        if self.kernel.inner.bindings.get(sym) != Some(-1) {
            return Err(self.bad(format!("{sym:?} is not dynamic")));
        }
        let schema = self.kernel.inner.schema;
        let value = value.cast_signed() as i64;
        for (i, slot) in schema.slots.iter().enumerate().take(self.views.len()) {
            let (view, limit) = (&mut self.views[i], &self.limits[i]);
            for (axis, dim) in slot.axes(usize::from(view.rank)).enumerate() {
                if dim.sym() != Some(sym) {
                    continue;
                }
                let extent = dim.of(value);
                if extent > limit.dims[axis] {
                    let most = limit.dims[axis];
                    let name = slot.name;
                    return Err(self.bad(format!("{name} dim {axis} of {extent}, it holds {most}")));
                }
                view.dims[axis] = extent;
            }
        }
        Ok(())
    }

    /// Sets the first dimension of the first slot, and of every slot that shares it: the number of rows.
    ///
    /// # Errors
    /// As [`Launch::set`].
    pub fn set_rows(&mut self, rows: usize) -> Result<()> {
        let first = &self.kernel.inner.schema.slots[0];
        let sym = first.axes(usize::from(self.views[0].rank)).next().and_then(|d| d.sym());
        match sym {
            Some(sym) => self.set(sym, rows),
            None => Err(self.bad("the first slot has no rows")),
        }
    }

    /// Puts another tensor into a slot.
    ///
    /// # Errors
    /// As [`Launch::new`]; the block is unchanged then.
    pub fn set_tensor(&mut self, slot: usize, tensor: &Tensor) -> Result<()> {
        if slot >= self.views.len() {
            return Err(self.bad(format!("slot {slot} was not prepared for")));
        }
        let old = (self.views[slot], self.limits[slot]);
        let new = tensor.view;
        (self.views[slot], self.limits[slot]) = (new, new);
        let before = self.buffers[slot].replace(tensor.buffer.clone());
        if let Err(error) = self.check_tensors() {
            (self.views[slot], self.limits[slot]) = old;
            self.buffers[slot] = before;
            return Err(error);
        }
        self.size_workspace();
        Ok(())
    }

    /// Sets a scalar by its place in the op's list.
    ///
    /// # Errors
    /// If the op has no such scalar.
    pub fn set_scalar(&mut self, index: usize, value: u64) -> Result<()> {
        match self.scalars.get_mut(index) {
            Some(scalar) => *scalar = value,
            None => return Err(self.bad(format!("there is no scalar {index}"))),
        }
        Ok(())
    }

    /// Uses a plan from [`Launch::plan`], of this block or of another of the same kernel.
    ///
    /// # Errors
    /// If the plan is another kernel's.
    pub fn set_plan(&mut self, plan: Option<Arc<Plan>>) -> Result<()> {
        if plan.as_ref().is_some_and(|p| !Arc::ptr_eq(&p.kernel, &self.kernel.inner)) {
            return Err(self.bad("the plan is another kernel's"));
        }
        self.plan = plan;
        Ok(())
    }

    /// Prepares a step for the present dims, scalars and host arrays.
    ///
    /// # Errors
    /// As [`Launch::run`].
    pub fn plan(&self, stream: &Stream, host: &[&[i32]]) -> Result<Arc<Plan>> {
        let raw = self.with_args(None, host, |args| {
            self.kernel.inner.raw.plan(stream.raw, args).named("plan")
        })?;
        Ok(Arc::new(Plan { raw, kernel: Arc::clone(&self.kernel.inner) }))
    }

    /// Prepares a plan anew, for these host arrays and the dims and scalars that it was made with: what was captured with the plan goes by
    /// it from the next launch of the graph on. The kernel has [`PLAN_UPDATE`](crate::PLAN_UPDATE).
    ///
    /// # Errors
    /// If the plan is another kernel's, the stream is capturing or another device's, or the backend fails.
    pub fn update_plan(&self, stream: &Stream, plan: &Plan, host: &[&[i32]]) -> Result<()> {
        if !Arc::ptr_eq(&plan.kernel, &self.kernel.inner) {
            return Err(self.bad("the plan is another kernel's"));
        }
        self.same_device(&stream.device)?;
        stream.refuse_in_capture("plan_update")?;
        self.with_args(None, host, |args| {
            self.kernel.inner.raw.plan_update(stream.raw, plan.raw, args).named("plan_update")
        })
    }

    /// Enqueues the operation. `host` holds the mirrors of the op's length arrays, in its order (none for most ops).
    ///
    /// # Errors
    /// If `workspace` is too small or of another device, a host array is missing, or the backend fails.
    pub fn run(&self, stream: &Stream, workspace: &Workspace, host: &[&[i32]]) -> Result<()> {
        if workspace.bytes() < self.workspace_bytes {
            let (have, need) = (workspace.bytes(), self.workspace_bytes);
            return Err(self.bad(format!("a workspace of {have} bytes, {need} are needed")));
        }
        if !Arc::ptr_eq(&stream.device, &self.kernel.inner.device)
            || !Arc::ptr_eq(&workspace.device, &stream.device)
        {
            return Err(self.bad("stream or workspace of another device"));
        }
        if stream.is_capturing() {
            self.note_capture(stream, workspace)?;
        }
        self.with_args(Some(workspace), host, |args| {
            self.kernel.inner.raw.launch(stream.raw, args).named("launch")
        })
    }

    /// An open capture learns what this launch uses.
    fn note_capture(&self, stream: &Stream, workspace: &Workspace) -> Result<()> {
        if self.kernel.flags() & CAPTURABLE == 0 {
            let op = self.kernel.op().kind();
            return Err(unsupported("launch", format!("{op}: its kernel cannot be captured")));
        }
        stream.captured(|uses| {
            uses.kernel(&self.kernel);
            let buffers = self.buffers.iter().flatten().chain(workspace.buffer());
            buffers.for_each(|buffer| uses.buffer(buffer));
            self.weights.iter().for_each(|weight| uses.weight(weight));
            self.plan.iter().for_each(|plan| uses.plan(plan));
        });
        Ok(())
    }

    fn with_args<T>(
        &self,
        workspace: Option<&Workspace>,
        host: &[&[i32]],
        f: impl FnOnce(&LaunchArgs<'_>) -> Result<T>,
    ) -> Result<T> {
        const MOST: usize = 4;
        let expected = self.kernel.inner.schema.host.len();
        if host.len() != expected || expected > MOST {
            return Err(self.bad(format!("{} host arrays, expected {expected}", host.len())));
        }
        let mut arrays = [RSlice::EMPTY; MOST];
        for (array, &values) in arrays.iter_mut().zip(host) {
            *array = RSlice::from_slice(values);
        }
        f(&LaunchArgs {
            plan: self.plan.as_ref().map_or(halyard_abi::Plan::NONE, |p| p.raw),
            workspace: workspace.and_then(Workspace::buffer).map_or(0, DeviceBuffer::base),
            workspace_bytes: workspace.map_or(0, Workspace::bytes),
            tensors: RSlice::from_slice(&self.views),
            weights: RSlice::from_slice(&self.raw_weights),
            scalars: RSlice::from_slice(&self.scalars),
            host: RSlice::from_slice(&arrays[..expected]),
        })
    }
}

/// Whether two views may share an element. Views that interleave by rows of one pitch, each in its own columns, do not.
fn overlap(a: &TensorView, b: &TensorView) -> bool {
    if a.is_none() || b.is_none() || a.data != b.data {
        return false;
    }
    if (a.flags | b.flags) & FLAG_OPAQUE != 0 {
        return true;
    }
    let (Some(a_bytes), Some(b_bytes)) = (a.extent_bytes(), b.extent_bytes()) else { return true };
    let (a0, b0) = (a.byte_offset, b.byte_offset);
    if a_bytes == 0 || b_bytes == 0 || a0 + a_bytes <= b0 || b0 + b_bytes <= a0 {
        return false;
    }
    let pitch = |v: &TensorView| v.dtype.bytes(v.strides[0].cast_unsigned());
    let (Some(pitch), true) = (pitch(a), pitch(a) == pitch(b)) else { return true };
    let row = |v: &TensorView| TensorView { dims: one_row(v), ..*v }.extent_bytes();
    let (Some(a_row), Some(b_row)) = (row(a), row(b)) else { return true };
    if pitch == 0 {
        return true;
    }
    let (a1, b1) = (a0 % pitch, b0 % pitch);
    let inside = a1 + a_row <= pitch && b1 + b_row <= pitch;
    !(inside && (a1 + a_row <= b1 || b1 + b_row <= a1))
}

fn one_row(view: &TensorView) -> [i64; halyard_abi::types::MAX_RANK] {
    let mut dims = view.dims;
    dims[0] = dims[0].min(1);
    dims
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_abi::{DType, TensorSpec};

    fn view(offset: u64, dims: &[i64], pitch: i64) -> TensorView {
        let mut v = TensorView::contiguous(1, offset * 4, &TensorSpec::new(DType::F32, dims));
        v.strides[0] = pitch;
        v
    }

    #[test]
    fn columns_of_one_matrix_do_not_overlap() {
        let (q, k) = (view(0, &[5, 4], 8), view(4, &[5, 4], 8));
        assert!(!overlap(&q, &k));
        assert!(overlap(&q, &view(3, &[5, 4], 8)));
        assert!(overlap(&q, &view(4, &[5, 4], 9)));
        assert!(!overlap(&view(0, &[5, 4], 8), &view(40, &[5, 4], 8)));
        assert!(overlap(&q, &q));
    }
}
