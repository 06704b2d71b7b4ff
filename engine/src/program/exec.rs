//! A program bound to a device: memory, weights and argument blocks that stay, and the running of sections.

use halyard_core::{
    Device, DeviceBuffer, DeviceError, Element, Kernel, KvCache, KvDesc, Launch, Stream, Sym,
    TensorSpec, Weight, Workspace, ops::OpSchema,
};

use super::{Call, Place, Program, Section, Size, Sizes, Tensor};

/// Everything of a program that lives on the device.
#[derive(Debug)]
pub(crate) struct Executable {
    stream: Stream,
    workspace: Workspace,
    buffers: Vec<DeviceBuffer>,
    caches: Vec<KvCache>,
    weights: Vec<Weight>,
    kernels: Vec<Kernel>,
    sections: Vec<Vec<Bound>>,
    limits: Sizes,
}

/// A call with its kept arguments.
#[derive(Debug)]
struct Bound {
    call: Call,
    /// `None` if the shapes differ too much from step to step to keep the arguments.
    launch: Option<Launch>,
    /// Dimensions of the op that change, and with what.
    dynamic: Vec<(Sym, Size)>,
    /// What they are now.
    sizes: Sizes,
    takes_lengths: bool,
}

/// What attention wants to know on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths<'a> {
    pub(crate) cu_q: &'a [i32],
    pub(crate) kv_len: &'a [i32],
    pub(crate) max_q: usize,
    pub(crate) max_kv: usize,
    /// Leading sequences that compute one token.
    pub(crate) num_single: usize,
}

/// What the binding of a program needs.
pub(crate) struct Parts<'a> {
    pub(crate) device: &'a Device,
    pub(crate) stream: Stream,
    /// One for each of the program's operations.
    pub(crate) kernels: Vec<Kernel>,
    /// One for each of the program's weights.
    pub(crate) weights: Vec<Weight>,
    pub(crate) kv: KvDesc<'static>,
    /// The largest sizes.
    pub(crate) limits: Sizes,
}

impl Executable {
    /// Allocates buffers and caches, and fills in all arguments.
    pub(crate) fn new(program: Program, parts: Parts<'_>) -> Result<Self, DeviceError> {
        let Parts { device, stream, kernels, weights, kv, limits } = parts;
        let bytes = |spec: &super::BufferSpec| spec.bytes(&limits);
        let buffers = program.buffers.iter().map(|spec| device.alloc(bytes(spec)));
        let buffers = buffers.collect::<Result<_, _>>()?;
        let caches = (0..program.kv_layers).map(|_| device.kv_cache(&kv, limits.pool_blocks));
        let caches = caches.collect::<Result<_, _>>()?;
        let workspace = Workspace::new(device, workspace_bytes(&program, &kernels, &limits))?;
        let sections = Vec::with_capacity(program.calls.len());
        let mut this =
            Self { stream, workspace, buffers, caches, weights, kernels, sections, limits };
        for calls in program.calls {
            let bound = calls.into_iter().map(|call| this.bind(call)).collect::<Result<_, _>>()?;
            this.sections.push(bound);
        }
        Ok(this)
    }

    /// Enqueues a section. `lengths` is for sections with attention.
    pub(crate) fn run(
        &mut self,
        section: Section,
        sizes: &Sizes,
        lengths: Option<Lengths<'_>>,
    ) -> Result<(), DeviceError> {
        let sizes = &Sizes { pool_blocks: self.limits.pool_blocks, ..*sizes };
        // Taken out for the time being, so that `self` is free for the odd call that must be bound anew.
        let mut calls = std::mem::take(&mut self.sections[section as usize]);
        let result = self.run_calls(&mut calls, sizes, lengths);
        self.sections[section as usize] = calls;
        result
    }

    /// Sets what a buffer of the program holds at first.
    pub(crate) fn fill_buffer(&self, index: usize, values: &[f32]) -> Result<(), DeviceError> {
        self.buffers[index].write(&self.stream, 0, values)
    }

    /// Copies values to the start of a tensor.
    pub(crate) fn write<T: Element>(&self, to: &Tensor, data: &[T]) -> Result<(), DeviceError> {
        self.write_at(to, 0, data)
    }

    /// The same from element `first` on.
    pub(crate) fn write_at<T: Element>(
        &self,
        to: &Tensor,
        first: usize,
        data: &[T],
    ) -> Result<(), DeviceError> {
        let at = (to.offset + first) * size_of::<T>();
        self.buffer(to).write(&self.stream, at as u64, data)
    }

    /// Copies values from element `first` of a tensor on; waits for them.
    pub(crate) fn read<T: Element>(
        &self,
        from: &Tensor,
        first: usize,
        data: &mut [T],
    ) -> Result<(), DeviceError> {
        let at = (from.offset + first) * size_of::<T>();
        self.buffer(from).read(&self.stream, at as u64, data)
    }

    /// What the last call of a section writes.
    #[cfg(test)]
    pub(crate) fn output(&self, section: Section) -> Tensor {
        let call = &self.sections[section as usize].last().expect("not empty").call;
        call.tensors.last().cloned().flatten().expect("outputs come last")
    }

    fn buffer(&self, tensor: &Tensor) -> &DeviceBuffer {
        match tensor.place {
            Place::Buffer(index) => &self.buffers[index],
            Place::Cache { .. } => unreachable!("caches are opaque to the host"),
        }
    }

    fn run_calls(
        &self,
        calls: &mut [Bound],
        sizes: &Sizes,
        lengths: Option<Lengths<'_>>,
    ) -> Result<(), DeviceError> {
        let mut plan = None;
        for bound in calls {
            let shifted = sizes.first_row > 0 && bound.call.tensors().any(Tensor::shifts);
            let Some(launch) = bound.launch.as_mut().filter(|_| !shifted) else {
                self.launch(&bound.call, sizes)?.run(&self.stream, &self.workspace, &[])?;
                continue;
            };
            if bound.sizes != *sizes {
                for &(sym, size) in &bound.dynamic {
                    launch.set(sym, sizes.of(size))?;
                }
                bound.sizes = *sizes;
            }
            let Some(lengths) = lengths.filter(|_| bound.takes_lengths) else {
                launch.run(&self.stream, &self.workspace, &[])?;
                continue;
            };
            let scalars = [lengths.max_q, lengths.max_kv, lengths.num_single];
            for (index, value) in scalars.into_iter().enumerate() {
                launch.set_scalar(index, value as u64)?;
            }
            let host = [lengths.cu_q, lengths.kv_len];
            // All layers with the same kernel share one plan.
            let plan = match &plan {
                Some((op, plan)) if *op == bound.call.op => plan,
                _ => {
                    launch.set_plan(None)?;
                    let fresh = launch.plan(&self.stream, &host)?;
                    &plan.insert((bound.call.op, fresh)).1
                }
            };
            launch.set_plan(Some(plan.clone()))?;
            launch.run(&self.stream, &self.workspace, &host)?;
        }
        Ok(())
    }

    fn bind(&self, call: Call) -> Result<Bound, DeviceError> {
        let schema = schema(&self.kernels[call.op]);
        let mut dynamic: Vec<(Sym, Size)> = Vec::new();
        let slots = schema.slots.iter().zip(&call.tensors);
        for (slot, tensor) in slots.filter_map(|(slot, tensor)| Some((slot, tensor.as_ref()?))) {
            for (dim, &size) in slot.axes(tensor.dims.len()).zip(&tensor.dims) {
                let changes = !matches!(size, Size::Fixed(_) | Size::PoolBlocks);
                // `SeqEnds` follows from `Seqs`, which some other slot of the op has.
                if let (true, Some(sym)) = (changes && size != Size::SeqEnds, dim.sym())
                    && !dynamic.iter().any(|&(known, _)| known == sym)
                {
                    dynamic.push((sym, size));
                }
            }
        }
        let keeps = !dynamic.iter().any(|&(_, size)| size == Size::ListRows)
            && !call.tensors().any(|tensor| tensor.dims.contains(&Size::ListRows));
        let launch = if keeps { Some(self.launch(&call, &self.limits)?) } else { None };
        let takes_lengths = !schema.host.is_empty();
        Ok(Bound { call, launch, dynamic, sizes: self.limits, takes_lengths })
    }

    fn launch(&self, call: &Call, sizes: &Sizes) -> Result<Launch, DeviceError> {
        let tensors = call.tensors.iter().map(|tensor| {
            let tensor = tensor.as_ref().map(|tensor| self.tensor(tensor, sizes));
            tensor.transpose()
        });
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let tensors: Vec<_> = tensors.iter().map(Option::as_ref).collect();
        let weights: Vec<_> = call.weights.iter().map(|&index| &self.weights[index]).collect();
        Launch::new(&self.kernels[call.op], &tensors, &weights)
    }

    fn tensor(&self, tensor: &Tensor, sizes: &Sizes) -> Result<halyard_core::Tensor, DeviceError> {
        let index = match tensor.place {
            Place::Buffer(index) => index,
            Place::Cache { layer, plane: 0 } => return Ok(self.caches[layer].k.clone()),
            Place::Cache { layer, .. } => {
                let values = self.caches[layer].v.clone();
                return Ok(values.expect("recorded with the backend's own layout in hand"));
            }
        };
        let dims: Vec<usize> = tensor.dims.iter().map(|&size| sizes.of(size)).collect();
        let strides = tensor.strides.clone().unwrap_or_else(|| packed(&dims));
        let shift = if tensor.shifts() { sizes.first_row * strides[0] } else { 0 };
        let bytes = tensor.dtype.bytes((tensor.offset + shift) as u64);
        let bytes = bytes.expect("buffers are far smaller than the address space");
        let buffer = &self.buffers[index];
        halyard_core::Tensor::strided(buffer, tensor.dtype, &dims, &strides, bytes)
    }
}

impl Call {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().flatten()
    }
}

impl Tensor {
    /// Its first row is the first of the section's rows.
    fn shifts(&self) -> bool {
        self.dims.first() == Some(&Size::Rows)
    }
}

/// Scratch that the most demanding call needs. Works on shapes alone, so that memory can be planned.
pub(crate) fn workspace_bytes(program: &Program, kernels: &[Kernel], limits: &Sizes) -> u64 {
    // Lists trade rows for columns; either may be at its largest.
    let widest = Sizes {
        list_width: limits.rows * limits.list_width,
        bias_width: limits.rows * limits.bias_width,
        ..*limits
    };
    let calls = program.calls.iter().flatten();
    let bytes = calls.map(|call| {
        let shape = |tensor: &Option<Tensor>| {
            tensor.as_ref().map_or(TensorSpec::NONE, |tensor| tensor.spec_at(&widest))
        };
        let shapes: Vec<TensorSpec> = call.tensors.iter().map(shape).collect();
        kernels[call.op].workspace_bytes(&shapes)
    });
    bytes.max().unwrap_or(0)
}

fn schema(kernel: &Kernel) -> &'static OpSchema {
    let kind = kernel.op().kind();
    OpSchema::of(kind).expect("a kernel was prepared, so its op is in the catalogue")
}

fn packed(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}
