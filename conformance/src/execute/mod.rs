//! Runs an op on a device through the safe handles, in surroundings made to show mistakes.

mod cache;
mod fenced;
mod layout;
mod timed;

use std::{cell::RefCell, rc::Rc};

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
use fenced::Fenced;
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
    stream: Rc<Stream>,
    kernel: Kernel,
    weights: Vec<Weight>,
    /// What the launch before worked on: as it lives on, the next one's memory is other memory.
    kept: RefCell<Option<Kept>>,
}

/// Memory of a launch that is over, with what it held then.
#[derive(Debug)]
struct Kept {
    placed: Vec<Option<Guarded>>,
    held: Vec<Option<Array>>,
    /// Scratch and caches.
    memory: Vec<Fenced>,
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
        Self::on(device, Rc::new(device.stream(0)?), op, weights)
    }

    /// The same on a stream that there is.
    pub(crate) fn on(
        device: &'a Device,
        stream: Rc<Stream>,
        op: &OpBuf,
        weights: &[WeightSource],
    ) -> Result<Self, Trouble> {
        let op = cache::op_for(device, op)?;
        let kernel = device.prepare(op)?;
        let mut this = Self { device, stream, kernel, weights: vec![], kept: RefCell::default() };
        this.weights = this.pack(weights)?;
        Ok(this)
    }

    /// The kernel's promises.
    pub(crate) fn flags(&self) -> u64 {
        self.kernel.flags()
    }

    /// Launches once, in fresh memory that is not the launch's before.
    pub(crate) fn launch(&self, inputs: &Inputs, setting: Setting) -> Result<Outputs, Trouble> {
        let flight = self.board(inputs, setting.layout)?;
        let scratch =
            Scratch::new(self.device, &self.stream, flight.scratch_bytes(), setting.scratch)?;
        flight.go(scratch.as_ref())?;
        self.stream.sync()?;
        let mut memory = Vec::new();
        if let Some(scratch) = scratch {
            scratch.check(&self.stream)?;
            memory.push(scratch.memory);
        }
        let (outputs, kept) = flight.land(memory)?;
        let before = self.kept.replace(Some(kept));
        if let Some(before) = before {
            self.check_kept(&before)?;
        }
        Ok(outputs)
    }

    /// Other weights for the same kernel.
    pub(crate) fn pack(&self, weights: &[WeightSource]) -> Result<Vec<Weight>, Trouble> {
        weights.iter().map(|w| load(w, self.device, &self.stream)).collect()
    }

    /// Makes a launch ready: memory, arguments, plan.
    pub(crate) fn board<'p>(
        &'p self,
        inputs: &'p Inputs,
        layout: Layout,
    ) -> Result<Flight<'p>, Trouble> {
        self.board_with(&self.weights, inputs, layout)
    }

    /// The same with other weights.
    pub(crate) fn board_with<'p>(
        &'p self,
        weights: &[Weight],
        inputs: &'p Inputs,
        layout: Layout,
    ) -> Result<Flight<'p>, Trouble> {
        let cache = match &inputs.cache {
            Some(contents) => Some(Cache::new(self.device, &self.stream, contents)?),
            None => None,
        };
        let read_only = match &cache {
            Some(cache) if !self.writes_cache() => Some(cache.bytes()?),
            _ => None,
        };
        let placed = self.place(inputs, layout)?;
        let caches = cache.as_ref().map(|c| c.seen_by(self.kernel.op().kind()));
        let tensors = self.tensors(inputs, &placed, caches.as_ref());
        let weights: Vec<&Weight> = weights.iter().collect();
        let mut launch = Launch::new(&self.kernel, &tensors, &weights)?;
        for (i, &scalar) in inputs.scalars.iter().enumerate() {
            launch.set_scalar(i, scalar)?;
        }
        let host: Vec<&[i32]> = inputs.host.iter().map(Vec::as_slice).collect();
        if !host.is_empty() {
            let plan = launch.plan(&self.stream, &host)?;
            launch.set_plan(Some(plan))?;
        }
        Ok(Flight { prepared: self, inputs, cache, read_only, placed, launch })
    }

    /// What the launch before left must be as it was.
    fn check_kept(&self, kept: &Kept) -> Result<(), Trouble> {
        for (placed, held) in kept.placed.iter().zip(&kept.held) {
            let now = placed.as_ref().map(|p| p.finish(&self.stream)).transpose()?;
            if now != *held {
                return Err(Trouble::Violation(
                    "a second launch wrote to a tensor of the first one".into(),
                ));
            }
        }
        for piece in &kept.memory {
            piece.check(&self.stream, "the first launch's memory")?;
        }
        Ok(())
    }

    fn writes_cache(&self) -> bool {
        let opaque = |s: &&halyard_abi::ops::schema::Slot| s.layout == Allowed::Opaque;
        self.schema().slots.iter().filter(opaque).any(|s| s.access != Access::In)
    }

    fn schema(&self) -> &'static OpSchema {
        OpSchema::of(self.kernel.op().kind()).expect("a prepared op is in the catalogue")
    }

    /// Puts every array between guards. If outputs lie in inputs' memory, an output that may share an input's memory is left out here.
    fn place(&self, inputs: &Inputs, layout: Layout) -> Result<Vec<Option<Guarded>>, Trouble> {
        let schema = self.schema();
        let mut placed = Vec::new();
        for (at, (slot, data)) in schema.slots.iter().zip(&inputs.slots).enumerate() {
            placed.push(match data {
                Slot::Array(array) if slot.layout != Allowed::Opaque => {
                    Some(Guarded::new((self.device, &self.stream), layout, (slot, at), array)?)
                }
                _ => None,
            });
        }
        if layout.aliases() {
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

/// A launch on its way.
pub(crate) struct Flight<'p> {
    prepared: &'p Prepared<'p>,
    inputs: &'p Inputs,
    cache: Option<Cache<'p>>,
    /// What the cache holds, if the op only reads it.
    read_only: Option<Vec<Vec<u8>>>,
    placed: Vec<Option<Guarded>>,
    launch: Launch,
}

impl Flight<'_> {
    /// Scratch memory that it needs.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.launch.workspace_bytes()
    }

    /// Enqueues it.
    pub(crate) fn go(&self, scratch: Option<&Scratch>) -> Result<(), Trouble> {
        let workspace = match scratch {
            Some(scratch) => scratch.memory.workspace()?,
            None => Workspace::new(self.prepared.device, 0)?,
        };
        let host: Vec<&[i32]> = self.inputs.host.iter().map(Vec::as_slice).collect();
        Ok(self.launch.run(&self.prepared.stream, &workspace, &host)?)
    }

    /// The tensor in a slot.
    pub(crate) fn tensor(&self, slot: usize) -> Option<&Tensor> {
        self.placed.get(slot)?.as_ref().map(Guarded::tensor)
    }

    /// What it left, once its stream has reached its end; nothing but the outputs may have changed.
    pub(crate) fn outputs(self) -> Result<Outputs, Trouble> {
        self.land(Vec::new()).map(|(outputs, _)| outputs)
    }

    /// The same, and its memory, with that which it is given.
    fn land(self, mut memory: Vec<Fenced>) -> Result<(Outputs, Kept), Trouble> {
        let Self { prepared, inputs, cache, read_only, placed, .. } = self;
        let finish = |p: &Option<Guarded>| {
            let now = p.as_ref().map(|p| p.finish(&prepared.stream));
            now.transpose()
        };
        let held: Vec<Option<Array>> = placed.iter().map(finish).collect::<Result<_, _>>()?;
        let slots = prepared.schema().slots.iter().zip(&held);
        let slots = slots.map(|(slot, now)| now.clone().filter(|_| slot.access != Access::In));
        let slots = slots.collect();
        let mut probe = Vec::new();
        if let (Some(cache), Some(contents)) = (cache, &inputs.cache) {
            cache.check(read_only.as_deref())?;
            probe = cache.probe(contents)?;
            memory.extend(cache.into_memory());
        }
        Ok((Outputs { slots, probe }, Kept { placed, held, memory }))
    }
}

/// Scratch memory of one stream, with a guard behind it.
#[derive(Debug)]
pub(crate) struct Scratch {
    memory: Fenced,
}

impl Scratch {
    /// Full of a pattern; none if there are no bytes of it.
    pub(crate) fn new(
        device: &Device,
        stream: &Stream,
        bytes: u64,
        pattern: u32,
    ) -> Result<Option<Self>, Trouble> {
        if bytes == 0 {
            return Ok(None);
        }
        let memory = Fenced::first((device, stream), bytes)?;
        memory.fill(stream, pattern)?;
        Ok(Some(Self { memory }))
    }

    /// Checks that nothing was written behind it.
    pub(crate) fn check(&self, stream: &Stream) -> Result<(), Trouble> {
        self.memory.check(stream, "scratch memory")
    }
}

/// A weight, packed between guards.
fn load(source: &WeightSource, device: &Device, stream: &Stream) -> Result<Weight, Trouble> {
    let mut memory = None;
    let weight = source.load(device, stream, &mut |bytes, align| {
        let piece = Fenced::new((device, stream), bytes, align)?;
        // To begin a weight is no work of the stream's.
        stream.sync()?;
        let place = (piece.buffer.clone(), piece.offset);
        memory = Some(piece);
        Ok(place)
    })?;
    match memory {
        Some(piece) => piece.check(stream, "a packed weight").map(|()| weight),
        None => Ok(weight),
    }
}
