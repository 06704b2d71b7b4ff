//! A program bound to a device: memory, weights and argument blocks that stay, and the running of sections.

use std::{collections::HashMap, sync::Arc, time::Duration};

use halyard_core::{
    CommHandle, Communicator, Device, DeviceBuffer, DeviceError, Element, Kernel, KvCache, KvDesc,
    Launch, PLAN_UPDATE, Plan, ReduceOp, Stream, Sym, TensorSpec, Upload, Weight, Workspace,
    ops::OpSchema,
};

use super::{Call, Exchange, Place, Program, Section, Size, Sizes, Step, Tensor};

/// Everything of a program that lives on the device.
#[derive(Debug)]
pub(crate) struct Executable {
    /// By section and number of sequences. They go before what they use.
    graphs: HashMap<(Section, usize), Captured>,
    /// How often one of them was launched.
    replays: u64,
    /// Of the section that ran last.
    plans: Vec<Planned>,
    stream: Arc<Stream>,
    /// With the other ranks, if there are any.
    comm: Option<Communicator>,
    workspace: Workspace,
    buffers: Vec<DeviceBuffer>,
    caches: Vec<KvCache>,
    weights: Vec<Weight>,
    kernels: Vec<Kernel>,
    sections: Vec<Vec<Bound>>,
    limits: Sizes,
}

/// A section that was captured.
#[derive(Debug)]
struct Captured {
    graph: halyard_core::Graph,
    sizes: Sizes,
    /// Of operations that are told lengths on the host before each replay.
    plans: Vec<Planned>,
}

/// The plan of an operation for a section's lengths.
#[derive(Debug)]
struct Planned {
    op: usize,
    /// The first of the section's steps that has it.
    step: usize,
    plan: Arc<Plan>,
}

/// A step of a section with its kept arguments.
#[derive(Debug)]
enum Bound {
    Launch(Box<BoundLaunch>),
    Exchange(Box<BoundExchange>),
}

/// What all ranks do together, with the tensors of the present sizes.
#[derive(Debug)]
struct BoundExchange {
    exchange: Exchange,
    tensors: Option<(Sizes, [halyard_core::Tensor; 2])>,
}

/// A launch with its kept arguments.
#[derive(Debug)]
struct BoundLaunch {
    call: Call,
    /// `None` until it runs for the first time if strides follow the sizes: then it is kept for as long as those stay.
    launch: Option<Launch>,
    /// The strides do not follow the sizes, which can be set.
    keeps: bool,
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
    /// With the other ranks, if there are any.
    pub(crate) comm: Option<Communicator>,
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
        let Parts { device, stream, comm, kernels, weights, kv, limits } = parts;
        let bytes = |spec: &super::BufferSpec| spec.bytes(&limits);
        let buffers = program.buffers.iter().map(|spec| device.alloc(bytes(spec)));
        let buffers = buffers.collect::<Result<_, _>>()?;
        let caches = (0..program.kv_layers).map(|_| device.kv_cache(&kv, limits.pool_blocks));
        let caches = caches.collect::<Result<_, _>>()?;
        let workspace = Workspace::new(device, workspace_bytes(&program, &kernels, &limits))?;
        let sections = Vec::with_capacity(program.steps.len());
        let mut this = Self {
            graphs: HashMap::new(),
            replays: 0,
            plans: Vec::new(),
            stream: Arc::new(stream),
            comm,
            workspace,
            buffers,
            caches,
            weights,
            kernels,
            sections,
            limits,
        };
        for steps in program.steps {
            let bound = steps.into_iter().map(|step| match step {
                Step::Launch(call) => Ok(Bound::Launch(Box::new(this.bind(call)?))),
                Step::Exchange(exchange) => {
                    Ok(Bound::Exchange(Box::new(BoundExchange { exchange, tensors: None })))
                }
            });
            let bound = bound.collect::<Result<_, _>>()?;
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
        let sizes = &self.whole(sizes);
        // Taken out for the time being, so that `self` is free for the odd call that must be bound anew.
        let mut steps = std::mem::take(&mut self.sections[section as usize]);
        let mut plans = std::mem::take(&mut self.plans);
        plans.clear();
        let result = self.run_steps((&mut steps, &mut plans), sizes, lengths);
        self.sections[section as usize] = steps;
        self.plans = plans;
        result
    }

    /// Sizes of a section, with what does not change.
    fn whole(&self, sizes: &Sizes) -> Sizes {
        Sizes { pool_blocks: self.limits.pool_blocks, ..*sizes }
    }

    /// Captures what [`Self::run`] would enqueue, for [`Self::replay`] with a key.
    pub(crate) fn capture(
        &mut self,
        (section, key): (Section, usize),
        sizes: &Sizes,
        lengths: Option<Lengths<'_>>,
    ) -> Result<(), DeviceError> {
        let stream = Arc::clone(&self.stream);
        let graph = stream.capture(|| self.run(section, sizes, lengths))?;
        let mut plans = std::mem::take(&mut self.plans);
        plans.retain(|planned| self.kernels[planned.op].flags() & PLAN_UPDATE != 0);
        let sizes = self.whole(sizes);
        self.graphs.insert((section, key), Captured { graph, sizes, plans });
        Ok(())
    }

    /// Enqueues what was captured of a section with a key, for other lengths; `false` if nothing was.
    pub(crate) fn replay(
        &mut self,
        (section, key): (Section, usize),
        lengths: Option<Lengths<'_>>,
    ) -> Result<bool, DeviceError> {
        let mut steps = std::mem::take(&mut self.sections[section as usize]);
        let result = self.replay_with(&mut steps, (section, key), lengths);
        self.sections[section as usize] = steps;
        let replayed = result?;
        self.replays += u64::from(replayed);
        Ok(replayed)
    }

    fn replay_with(
        &self,
        steps: &mut [Bound],
        key: (Section, usize),
        lengths: Option<Lengths<'_>>,
    ) -> Result<bool, DeviceError> {
        let Some(Captured { graph, sizes, plans }) = self.graphs.get(&key) else {
            return Ok(false);
        };
        if let Some(lengths) = &lengths {
            for planned in plans {
                let Bound::Launch(bound) = &mut steps[planned.step] else {
                    unreachable!("exchanges have no plans")
                };
                let launch = self.told(bound, sizes, lengths)?;
                launch.update_plan(&self.stream, &planned.plan, &lengths.host())?;
            }
        }
        graph.launch(&self.stream)?;
        Ok(true)
    }

    /// How often captured work was launched.
    pub(crate) fn replays(&self) -> u64 {
        self.replays
    }

    /// Ends the exchanges of all ranks, from any thread; `None` if there is but one.
    pub(crate) fn comm_handle(&self) -> Option<CommHandle> {
        self.comm.as_ref().map(Communicator::handle)
    }

    /// Waits until everything is done.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<(), DeviceError> {
        self.stream.sync_timeout(timeout)
    }

    /// Sets what a buffer of the program holds at first.
    pub(crate) fn fill_buffer(&self, index: usize, values: &[f32]) -> Result<(), DeviceError> {
        self.buffers[index].write(&self.stream, 0, values)
    }

    /// Copies values to the start of a tensor.
    pub(crate) fn write<T: Element>(&self, to: &Tensor, data: &[T]) -> Result<(), DeviceError> {
        self.write_all(&[self.input(to, data)])
    }

    /// Values for the start of a tensor, for [`Self::write_all`].
    pub(crate) fn input<'a, T: Element>(&'a self, to: &Tensor, data: &'a [T]) -> Upload<'a> {
        self.buffer(to).upload((to.offset * size_of::<T>()) as u64, data)
    }

    /// The same of rows of `columns` values for a tensor whose rows are `pitch` apart.
    pub(crate) fn input_rows<'a, T: Element>(
        &'a self,
        to: &Tensor,
        data: &'a [T],
        (columns, pitch): (usize, usize),
    ) -> Upload<'a> {
        self.buffer(to).upload_rows((to.offset * size_of::<T>()) as u64, data, (columns, pitch))
    }

    /// Copies everything and waits once.
    pub(crate) fn write_all(&self, inputs: &[Upload<'_>]) -> Result<(), DeviceError> {
        self.stream.upload(inputs)
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

    fn buffer(&self, tensor: &Tensor) -> &DeviceBuffer {
        match tensor.place {
            Place::Buffer(index) => &self.buffers[index],
            Place::Cache { .. } => unreachable!("caches are opaque to the host"),
        }
    }

    fn run_steps(
        &mut self,
        (steps, plans): (&mut [Bound], &mut Vec<Planned>),
        sizes: &Sizes,
        lengths: Option<Lengths<'_>>,
    ) -> Result<(), DeviceError> {
        for (number, step) in steps.iter_mut().enumerate() {
            match (step, lengths) {
                (Bound::Exchange(bound), _) => self.exchange(bound, sizes)?,
                (Bound::Launch(bound), Some(lengths)) if bound.takes_lengths => {
                    self.run_attention((number, bound), sizes, &lengths, plans)?;
                }
                (Bound::Launch(bound), _) => self.run_launch(bound, sizes)?,
            }
        }
        Ok(())
    }

    fn run_launch(&self, bound: &mut BoundLaunch, sizes: &Sizes) -> Result<(), DeviceError> {
        if sizes.first_row > 0 && bound.call.tensors().any(Tensor::shifts) {
            return self.launch(&bound.call, sizes)?.run(&self.stream, &self.workspace, &[]);
        }
        self.resized(bound, sizes)?.run(&self.stream, &self.workspace, &[])
    }

    fn run_attention(
        &self,
        (step, bound): (usize, &mut BoundLaunch),
        sizes: &Sizes,
        lengths: &Lengths<'_>,
        plans: &mut Vec<Planned>,
    ) -> Result<(), DeviceError> {
        let op = bound.call.op;
        let launch = self.told(bound, sizes, lengths)?;
        // All layers with the same attention share one plan.
        let plan = match plans.iter().find(|planned| planned.op == op) {
            Some(planned) => Arc::clone(&planned.plan),
            None => {
                launch.set_plan(None)?;
                let plan = launch.plan(&self.stream, &lengths.host())?;
                plans.push(Planned { op, step, plan: Arc::clone(&plan) });
                plan
            }
        };
        launch.set_plan(Some(plan))?;
        launch.run(&self.stream, &self.workspace, &lengths.host())
    }

    /// The kept arguments, with these sizes and what is said of the lengths.
    fn told<'b>(
        &self,
        bound: &'b mut BoundLaunch,
        sizes: &Sizes,
        lengths: &Lengths<'_>,
    ) -> Result<&'b mut Launch, DeviceError> {
        let launch = self.resized(bound, sizes)?;
        let scalars = [lengths.max_q, lengths.max_kv, lengths.num_single];
        for (index, value) in scalars.into_iter().enumerate() {
            launch.set_scalar(index, value as u64)?;
        }
        Ok(launch)
    }

    /// The kept arguments, with these sizes.
    fn resized<'b>(
        &self,
        bound: &'b mut BoundLaunch,
        sizes: &Sizes,
    ) -> Result<&'b mut Launch, DeviceError> {
        if bound.sizes != *sizes || bound.launch.is_none() {
            match &mut bound.launch {
                Some(launch) if bound.keeps => {
                    for &(sym, size) in &bound.dynamic {
                        launch.set(sym, sizes.of(size))?;
                    }
                }
                launch => *launch = Some(self.launch(&bound.call, sizes)?),
            }
            bound.sizes = *sizes;
        }
        Ok(bound.launch.as_mut().expect("made above"))
    }

    fn exchange(&mut self, bound: &mut BoundExchange, sizes: &Sizes) -> Result<(), DeviceError> {
        let tensors = match bound.tensors.take().filter(|(of, _)| of == sizes) {
            Some((_, tensors)) => tensors,
            None => match &bound.exchange {
                Exchange::AllReduce(x) => {
                    let x = self.tensor(x, sizes)?;
                    [x.clone(), x]
                }
                Exchange::AllGather { own, all } => {
                    [self.tensor(own, sizes)?, self.tensor(all, sizes)?]
                }
            },
        };
        let (_, [from, to]) = bound.tensors.insert((*sizes, tensors));
        let Self { stream, comm: Some(comm), .. } = self else {
            unreachable!("exchanges are recorded for several ranks only")
        };
        match &bound.exchange {
            Exchange::AllReduce(_) => comm.all_reduce(stream, from, to, ReduceOp::SUM),
            Exchange::AllGather { .. } => comm.all_gather(stream, from, to),
        }
    }

    fn bind(&self, call: Call) -> Result<BoundLaunch, DeviceError> {
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
        Ok(BoundLaunch { call, launch, keeps, dynamic, sizes: self.limits, takes_lengths })
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

impl<'a> Lengths<'a> {
    /// In the order of the op's host arrays.
    fn host(&self) -> [&'a [i32]; 2] {
        [self.cu_q, self.kv_len]
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
    let calls = program.steps.iter().flatten().filter_map(|step| match step {
        Step::Launch(call) => Some(call),
        Step::Exchange(_) => None,
    });
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
