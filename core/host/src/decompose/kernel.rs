//! A kernel that launches others.

use std::sync::{Arc, Mutex, PoisonError};

use halyard_abi::{
    AbiError, CopyReq, KernelBox, LaunchArgs, MemRef, R, RSlice, Stream, TensorSpec, TensorView,
    Weight,
    exporting::TD_Opaque,
    traits::{self, CAPTURABLE, HOST_LENGTHS, Kernel_TO, PLAN_UPDATE},
    types::mem,
};

use super::recipe::{Arg, Mirror, Part, Recipe, Shapes, Starts, Step, view};
use crate::device::DeviceInner;

/// Most slots and weights of a step.
const SLOTS: usize = 12;
const WEIGHTS: usize = 2;
/// Most scalars and host arrays of a step.
const SCALARS: usize = 4;
/// Most temporary tensors.
const TEMPS: usize = 8;
/// Where temporary tensors start.
const ALIGN: u64 = 256;

/// The kernel of a recipe; `kernels` are those that it launches, in their order.
pub(super) fn built(
    device: &Arc<DeviceInner>,
    recipe: Recipe,
    kernels: Vec<KernelBox>,
) -> KernelBox {
    assert!(recipe.temps.len() <= TEMPS, "{} temporary tensors", recipe.temps.len());
    for step in &recipe.steps {
        if let Step::Launch(part) = step {
            assert!(part.args.len() <= SLOTS && part.weights.len() <= WEIGHTS);
            assert!(part.scalars.len() <= SCALARS && part.host.len() <= SCALARS);
        }
    }
    let (device, starts) = (Arc::clone(device), Mutex::default());
    Kernel_TO::from_value(Built { recipe, kernels, starts, device }, TD_Opaque)
}

struct Built {
    recipe: Recipe,
    /// Of the steps that launch.
    kernels: Vec<KernelBox>,
    /// Where each sequence's keys begin, of the launch that goes on.
    starts: Mutex<Vec<i32>>,
    device: Arc<DeviceInner>,
}

/// What the steps of a launch share.
struct Running<'a> {
    stream: Stream,
    args: &'a LaunchArgs<'a>,
    temps: [TensorView; TEMPS],
    /// Where in the workspace the steps' own scratch begins.
    scratch: u64,
    starts: &'a [i32],
}

impl Built {
    fn parts(&self) -> impl Iterator<Item = (&Part, &KernelBox)> {
        let steps = self.recipe.steps.iter().filter_map(|step| match step {
            Step::Launch(part) => Some(part),
            Step::AllReduce { .. } => None,
        });
        steps.zip(&self.kernels)
    }

    /// Where each temporary tensor lies in the workspace, and where they end.
    fn temps(&self, shapes: Shapes<'_>, base: u64) -> ([TensorView; TEMPS], u64) {
        let mut temps = [TensorView::NONE; TEMPS];
        let mut end = 0u64;
        for (at, temp) in temps.iter_mut().enumerate().take(self.recipe.temps.len()) {
            *temp = TensorView::contiguous(base, end, &self.recipe.spec(&Arg::Temp(at), shapes));
            // A shape beyond all memory asks for all memory.
            let bytes = temp.extent_bytes().unwrap_or(u64::MAX / 2);
            end = end.saturating_add(bytes).div_ceil(ALIGN).saturating_mul(ALIGN);
        }
        (temps, end)
    }

    /// Sums of the lengths: where each sequence's keys begin, and at the end how many there are.
    fn sum(starts: &mut Vec<i32>, lengths: &[i32]) -> Result<(), AbiError> {
        starts.clear();
        starts.push(0);
        let mut end = 0i32;
        for &length in lengths {
            let sum = end.checked_add(length).filter(|_| length >= 0);
            end = sum.ok_or_else(|| AbiError::invalid(format!("a sequence of {length} keys")))?;
            starts.push(end);
        }
        Ok(())
    }

    /// Copies the sums to their temporary tensor.
    fn send(&self, starts: Starts, run: &Running<'_>) -> Result<(), AbiError> {
        let bytes = size_of_val(run.starts) as u64;
        let (base, offset) = (run.args.workspace, run.temps[starts.temp].byte_offset);
        let host = run.starts.as_ptr() as u64;
        let request = CopyReq {
            dst: MemRef { base, offset, kind: mem::DEVICE, device: 0 },
            src: MemRef { base: host, offset: 0, kind: mem::HOST, device: 0 },
            row_bytes: bytes,
            rows: 1,
            dst_pitch: bytes,
            src_pitch: bytes,
        };
        self.device.raw.copy(run.stream, &request).into_result()?;
        if self.device.inline {
            return Ok(());
        }
        // The numbers have to stay until they are copied, and the next launch writes others.
        self.device.raw.stream_sync(run.stream, u64::MAX).into_result()
    }

    fn run(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<(), AbiError> {
        let mut specs = [TensorSpec::NONE; SLOTS];
        for (spec, view) in specs.iter_mut().zip(args.tensors.iter()) {
            *spec = view.spec();
        }
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = self.recipe.starts {
            let lengths = args.host.get(of.lengths).map_or(&[][..], |h| h.as_slice());
            Self::sum(&mut starts, lengths)?;
        }
        let keys = starts.last().copied().map_or(0, i64::from);
        let (temps, scratch) = self.temps(Shapes { specs: &specs, keys }, args.workspace);
        if scratch > args.workspace_bytes {
            let have = args.workspace_bytes;
            let message = format!("a workspace of {have} bytes, {scratch} and more are needed");
            return Err(AbiError::invalid(message));
        }
        let run = Running { stream, args, temps, scratch, starts: &starts };
        if let Some(starts) = self.recipe.starts {
            self.send(starts, &run)?;
        }
        let mut kernels = self.kernels.iter();
        for step in &self.recipe.steps {
            match step {
                Step::Launch(part) => {
                    let kernel = kernels.next().expect("each launch has one");
                    launch(part, kernel, &run)?;
                }
                Step::AllReduce { temp, number } => {
                    self.device.communicator(*number)?.sum(run.stream, &run.temps[*temp])?;
                }
            }
        }
        Ok(())
    }
}

fn launch(step: &Part, kernel: &KernelBox, run: &Running<'_>) -> Result<(), AbiError> {
    let args = run.args;
    let mut views = [TensorView::NONE; SLOTS];
    for (place, arg) in views.iter_mut().zip(&step.args) {
        *place = view(arg, &args.tensors, &run.temps);
    }
    let mut weights = [Weight::NONE; WEIGHTS];
    for (place, &at) in weights.iter_mut().zip(&step.weights) {
        *place = args.weights[at];
    }
    let mut scalars = [0; SCALARS];
    for (place, &at) in scalars.iter_mut().zip(&step.scalars) {
        *place = args.scalars[at];
    }
    let mut host = [RSlice::EMPTY; SCALARS];
    for (place, mirror) in host.iter_mut().zip(&step.host) {
        *place = match *mirror {
            Mirror::Own(at) => args.host[at],
            Mirror::Starts => RSlice::from_slice(run.starts),
        };
    }
    // Descriptors drop trailing absent slots, and launches follow them.
    let views = &views[..step.args.len()];
    let absent = views.iter().rev().take_while(|v| v.is_none()).count();
    let step_args = LaunchArgs {
        plan: halyard_abi::Plan::NONE,
        workspace: args.workspace + run.scratch,
        workspace_bytes: args.workspace_bytes - run.scratch,
        tensors: RSlice::from_slice(&views[..views.len() - absent]),
        weights: RSlice::from_slice(&weights[..step.weights.len()]),
        scalars: RSlice::from_slice(&scalars[..step.scalars.len()]),
        host: RSlice::from_slice(&host[..step.host.len()]),
    };
    kernel.launch(run.stream, &step_args).into_result()
}

impl traits::Kernel for Built {
    /// What all steps promise: sums over ranks nothing. Lengths that one step reads on the host are wanted for all of them, and a capture
    /// would freeze them, since the steps have no plan.
    fn flags(&self) -> u64 {
        if self.recipe.communicators().next().is_some() {
            return 0;
        }
        let flags = self.kernels.iter().map(|kernel| kernel.flags());
        let (all, any) = flags.fold((u64::MAX, 0), |(all, any), own| (all & own, any | own));
        let promised = (all & !PLAN_UPDATE) | (any & HOST_LENGTHS);
        match self.recipe.starts {
            Some(_) => (promised & !CAPTURABLE) | HOST_LENGTHS,
            None => promised,
        }
    }

    /// The temporary tensors, and the most that a step needs.
    fn workspace_bytes(&self, shape: RSlice<'_, TensorSpec>) -> u64 {
        let keys = self.recipe.starts.map_or(0, |starts| starts.most(&shape));
        let shapes = Shapes { specs: &shape, keys };
        let scratch = |(step, kernel): (&Part, &KernelBox)| {
            let mut specs: Vec<TensorSpec> =
                step.args.iter().map(|arg| self.recipe.spec(arg, shapes)).collect();
            while specs.last().is_some_and(TensorSpec::is_none) {
                specs.pop();
            }
            kernel.workspace_bytes(RSlice::from_slice(&specs))
        };
        let own = self.temps(shapes, 0).1;
        own.saturating_add(self.parts().map(scratch).max().unwrap_or(0))
    }

    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<()> {
        self.run(stream, args).into()
    }
}
