//! Runs an op on a device through the safe handles, in surroundings made to show mistakes.

mod cache;
mod layout;
mod timed;

use halyard_abi::ops::schema::Layout as Allowed;
use halyard_core::{
    Code, Device, DeviceError, Kernel, KvCache, Launch, OpBuf, Stream, Tensor, Weight, Workspace,
    ops::{Access, OpSchema},
};

use crate::{
    array::Array,
    generate::{Inputs, Slot},
    weight::WeightSource,
};
use cache::Cache;
use layout::Guarded;
pub(crate) use layout::Layout;

/// Why a launch gave no outputs to compare.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// A call failed.
    Device(DeviceError),
    /// The backend wrote where it must not.
    Violation(String),
    /// The case cannot be put to this device.
    Case(String),
    /// The oracle gave nothing to compare with.
    Reference(Box<Trouble>),
}

impl From<DeviceError> for Trouble {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(error) => error.fmt(f),
            Self::Violation(text) | Self::Case(text) => f.write_str(text),
            Self::Reference(why) => write!(f, "the reference cannot check this: {why}"),
        }
    }
}

impl Trouble {
    /// The device can do nothing any more until it is opened anew.
    pub(crate) fn is_sticky(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_sticky())
    }

    /// The backend does not do this.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_unsupported())
    }

    /// This machine has no room for it.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self {
            Self::Device(error) => error.code == Code::OUT_OF_MEMORY,
            // What the oracle cannot do is no excuse of the device's, nor a fault.
            Self::Reference(why) => why.is_unsupported() || why.is_unavailable(),
            _ => false,
        }
    }
}

/// What a launch left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outputs {
    /// Written slots by position.
    pub(crate) slots: Vec<Option<Array>>,
    /// For ops that change a cache: what it holds afterwards, seen by attention over every block, or its keys and values.
    pub(crate) probe: Vec<Array>,
}

/// An op prepared on a device, with its weights.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    device: &'a Device,
    stream: Stream,
    kernel: Kernel,
    weights: Vec<Weight>,
}

/// The surroundings of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) layout: Layout,
    /// What scratch memory holds.
    pub(crate) scratch: u32,
}

impl<'a> Prepared<'a> {
    /// Prepares the op and packs its weights.
    pub(crate) fn new(
        device: &'a Device,
        op: &OpBuf,
        weights: &[WeightSource],
    ) -> Result<Self, Trouble> {
        let op = cache::op_for(device, op)?;
        let stream = device.stream(0)?;
        let kernel = device.prepare(op)?;
        let weights: Result<_, _> = weights.iter().map(|w| w.load(device, &stream)).collect();
        Ok(Self { device, stream, kernel, weights: weights? })
    }

    /// The kernel's promises.
    pub(crate) fn flags(&self) -> u64 {
        self.kernel.flags()
    }

    /// Launches once, in fresh memory.
    pub(crate) fn launch(&self, inputs: &Inputs, setting: Setting) -> Result<Outputs, Trouble> {
        let cache = match &inputs.cache {
            Some(contents) => Some(Cache::new(self.device, &self.stream, contents)?),
            None => None,
        };
        let placed = self.place(inputs, setting.layout)?;
        let kind = self.kernel.op().kind();
        let caches = cache.as_ref().map(|c| c.seen_by(kind));
        let tensors = self.tensors(inputs, &placed, caches.as_ref());
        let weights: Vec<&Weight> = self.weights.iter().collect();
        let mut launch = Launch::new(&self.kernel, &tensors, &weights)?;
        for (i, &scalar) in inputs.scalars.iter().enumerate() {
            launch.set_scalar(i, scalar)?;
        }
        let host: Vec<&[i32]> = inputs.host.iter().map(Vec::as_slice).collect();
        if !host.is_empty() {
            let plan = launch.plan(&self.stream, &host)?;
            launch.set_plan(Some(plan))?;
        }
        let workspace = Workspace::new(self.device, launch.workspace_bytes())?;
        if let Some(scratch) = workspace.buffer() {
            scratch.fill(&self.stream, 0, scratch.bytes() / 4 * 4, setting.scratch)?;
        }
        launch.run(&self.stream, &workspace, &host)?;
        self.stream.sync()?;

        let mut slots = Vec::new();
        for (slot, placed) in self.schema().slots.iter().zip(&placed) {
            let now = placed.as_ref().map(|p| p.finish(&self.stream)).transpose()?;
            slots.push(now.filter(|_| slot.access != Access::In));
        }
        let probe = match (&cache, &inputs.cache) {
            (Some(cache), Some(contents)) => cache.probe(contents)?,
            _ => Vec::new(),
        };
        Ok(Outputs { slots, probe })
    }

    fn schema(&self) -> &'static OpSchema {
        OpSchema::of(self.kernel.op().kind()).expect("a prepared op is in the catalogue")
    }

    /// Puts every array between guards. With [`Layout::Alias`], an output that may share an input's memory is left out here.
    fn place(&self, inputs: &Inputs, layout: Layout) -> Result<Vec<Option<Guarded>>, Trouble> {
        let schema = self.schema();
        let mut placed = Vec::new();
        for (slot, data) in schema.slots.iter().zip(&inputs.slots) {
            placed.push(match data {
                Slot::Array(array) if slot.layout != Allowed::Opaque => {
                    Some(Guarded::new((self.device, &self.stream), layout, slot, array)?)
                }
                _ => None,
            });
        }
        if layout == Layout::Alias {
            for &(output, input) in schema.may_alias {
                let shared = placed.get_mut(input).and_then(Option::take);
                if let Some(mut shared) = shared {
                    shared.shared();
                    placed[output] = Some(shared);
                }
            }
        }
        Ok(placed)
    }

    fn tensors<'t>(
        &self,
        inputs: &Inputs,
        placed: &'t [Option<Guarded>],
        cache: Option<&'t KvCache>,
    ) -> Vec<Option<&'t Tensor>> {
        let mut tensors: Vec<Option<&Tensor>> = inputs
            .slots
            .iter()
            .zip(placed)
            .map(|(slot, placed)| match slot {
                Slot::Absent => None,
                Slot::Array(_) => placed.as_ref().map(Guarded::tensor),
                Slot::Keys => cache.map(|c| &c.k),
                Slot::Values => cache.and_then(|c| c.v.as_ref()),
            })
            .collect();
        for &(output, input) in self.schema().may_alias {
            let present = matches!(inputs.slots.get(input), Some(Slot::Array(_)));
            if present && tensors[input].is_none() {
                tensors[input] = tensors[output];
            }
        }
        tensors.truncate(self.kernel.op().tensors().len());
        tensors
    }
}
