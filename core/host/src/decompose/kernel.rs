//! A kernel that launches others.

use halyard_abi::{
    AbiError, KernelBox, LaunchArgs, R, RResult, RSlice, Stream, TensorSpec, TensorView, Weight,
    exporting::TD_Opaque,
    traits::{self, Kernel_TO},
};

use super::recipe::{Arg, Recipe, Step, view};

/// Most slots and weights of a step.
const SLOTS: usize = 12;
const WEIGHTS: usize = 2;
/// Most temporary tensors.
const TEMPS: usize = 8;
/// Where temporary tensors start.
const ALIGN: u64 = 256;

/// The kernel of a recipe; `kernels` are those of its steps.
pub(super) fn built(recipe: Recipe, kernels: Vec<KernelBox>) -> KernelBox {
    assert!(recipe.temps.len() <= TEMPS, "{} temporary tensors", recipe.temps.len());
    assert!(recipe.steps.iter().all(|s| s.args.len() <= SLOTS && s.weights.len() <= WEIGHTS));
    Kernel_TO::from_value(Built { recipe, kernels }, TD_Opaque)
}

struct Built {
    recipe: Recipe,
    kernels: Vec<KernelBox>,
}

impl Built {
    fn steps(&self) -> impl Iterator<Item = (&Step, &KernelBox)> {
        self.recipe.steps.iter().zip(&self.kernels)
    }

    /// Where each temporary tensor lies in the workspace, and where the steps' own scratch begins.
    fn temps(&self, shapes: &[TensorSpec], base: u64) -> ([TensorView; TEMPS], u64) {
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

    fn launch_step(
        &self,
        (step, kernel): (&Step, &KernelBox),
        stream: Stream,
        args: &LaunchArgs<'_>,
        (temps, scratch): (&[TensorView], u64),
    ) -> R<()> {
        let mut views = [TensorView::NONE; SLOTS];
        for (place, arg) in views.iter_mut().zip(&step.args) {
            *place = match *arg {
                Arg::Temp(at) => temps[at],
                _ => view(arg, &args.tensors),
            };
        }
        let mut weights = [Weight::NONE; WEIGHTS];
        for (place, &at) in weights.iter_mut().zip(&step.weights) {
            *place = args.weights[at];
        }
        let trailing = step.args.len() - absent_at_end(&views[..step.args.len()]);
        kernel.launch(
            stream,
            &LaunchArgs {
                plan: halyard_abi::Plan::NONE,
                workspace: args.workspace + scratch,
                workspace_bytes: args.workspace_bytes - scratch,
                tensors: RSlice::from_slice(&views[..trailing]),
                weights: RSlice::from_slice(&weights[..step.weights.len()]),
                scalars: RSlice::EMPTY,
                host: RSlice::EMPTY,
            },
        )
    }
}

/// Descriptors drop trailing absent slots, and launches follow them.
fn absent_at_end(views: &[TensorView]) -> usize {
    views.iter().rev().take_while(|v| v.is_none()).count()
}

impl traits::Kernel for Built {
    /// What all steps promise.
    fn flags(&self) -> u64 {
        self.kernels.iter().fold(u64::MAX, |all, k| all & k.flags())
    }

    /// The temporary tensors, and the most that a step needs.
    fn workspace_bytes(&self, shape: RSlice<'_, TensorSpec>) -> u64 {
        let own = self.temps(&shape, 0).1;
        let scratch = |(step, kernel): (&Step, &KernelBox)| {
            let mut specs: Vec<TensorSpec> =
                step.args.iter().map(|arg| self.recipe.spec(arg, &shape)).collect();
            while specs.last().is_some_and(TensorSpec::is_none) {
                specs.pop();
            }
            kernel.workspace_bytes(RSlice::from_slice(&specs))
        };
        own.saturating_add(self.steps().map(scratch).max().unwrap_or(0))
    }

    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<()> {
        let mut shapes = [TensorSpec::NONE; SLOTS];
        for (shape, view) in shapes.iter_mut().zip(args.tensors.iter()) {
            *shape = view.spec();
        }
        let (temps, scratch) = self.temps(&shapes, args.workspace);
        if scratch > args.workspace_bytes {
            let have = args.workspace_bytes;
            let message = format!("a workspace of {have} bytes, {scratch} and more are needed");
            return RResult::RErr(AbiError::invalid(message));
        }
        for step in self.steps() {
            if let RResult::RErr(error) = self.launch_step(step, stream, args, (&temps, scratch)) {
                return RResult::RErr(error);
            }
        }
        RResult::ROk(())
    }
}
