//! Graphs: work that a stream captured, to be enqueued again as a whole.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use halyard_abi::{AbiError, Code, Graph as RawGraph, PropKey, Stream as RawStream};

use crate::{
    Device, DeviceBuffer, Kernel, Plan, Result, Stream, Tensor, Weight, comm,
    device::DeviceInner,
    error::{DeviceError, Named, could_not},
};

/// Captured launches and exchanges. Addresses, dims, scalars and host arrays are those of the capture; what tensors hold is read anew by
/// each [`Graph::launch`], and plans are as they are then ([`Launch::update_plan`](crate::Launch::update_plan)).
///
/// It keeps alive all that its work uses: memory, weights, kernels, communicators. Waits for its launches before it goes.
#[derive(Debug)]
pub struct Graph {
    device: Arc<DeviceInner>,
    raw: RawGraph,
    uses: Uses,
    /// Where it was launched.
    streams: Mutex<Vec<RawStream>>,
}

/// What captured work uses, each thing once.
#[derive(Debug, Default)]
pub(crate) struct Uses(HashMap<usize, Kept>);

/// A thing that captured work uses.
#[derive(Debug)]
#[expect(dead_code, reason = "what is kept is not looked at")]
enum Kept {
    Buffer(DeviceBuffer),
    Kernel(Kernel),
    Plan(Arc<Plan>),
    Weight(Weight),
    Comm(Arc<comm::Shared>),
}

impl Uses {
    pub(crate) fn buffer(&mut self, buffer: &DeviceBuffer) {
        self.0.entry(buffer.identity()).or_insert_with(|| Kept::Buffer(buffer.clone()));
    }

    pub(crate) fn kernel(&mut self, kernel: &Kernel) {
        let at = Arc::as_ptr(&kernel.inner).addr();
        self.0.entry(at).or_insert_with(|| Kept::Kernel(kernel.clone()));
    }

    pub(crate) fn plan(&mut self, plan: &Arc<Plan>) {
        self.0.entry(Arc::as_ptr(plan).addr()).or_insert_with(|| Kept::Plan(Arc::clone(plan)));
    }

    pub(crate) fn weight(&mut self, weight: &Weight) {
        let at = Arc::as_ptr(&weight.inner).addr();
        self.0.entry(at).or_insert_with(|| Kept::Weight(weight.clone()));
    }

    pub(crate) fn comm(&mut self, comm: &Arc<comm::Shared>, tensors: &[&Tensor]) {
        self.0.entry(Arc::as_ptr(comm).addr()).or_insert_with(|| Kept::Comm(Arc::clone(comm)));
        tensors.iter().for_each(|tensor| self.buffer(&tensor.buffer));
    }
}

impl Device {
    /// Whether its streams can capture graphs.
    #[must_use]
    pub fn has_graphs(&self) -> bool {
        self.property(PropKey::GRAPH) == Some(1)
    }

    /// Whether the calls of its communicators can be captured.
    #[must_use]
    pub fn captures_exchanges(&self) -> bool {
        self.has_graphs() && self.property(PropKey::GRAPH_COMM) == Some(1)
    }
}

impl Stream {
    /// What `work` enqueues on this stream is kept instead of done. It may launch kernels that are
    /// [`CAPTURABLE`](crate::CAPTURABLE), fill memory, and call communicators if [`Device::captures_exchanges`] says so; copies from
    /// and to the host, events, waits and other graphs are refused.
    ///
    /// # Errors
    /// `UNSUPPORTED` if the device has no graphs or a kernel cannot be captured, what `work` says, or the backend's failure. Nothing
    /// is kept then.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        if self.device.raw.property(PropKey::GRAPH).into_option() != Some(1) {
            return Err(unsupported("graph_begin", "the device has no graphs"));
        }
        let open = Open::begin(self)?;
        let result = work();
        let graph = open.end();
        result.and(graph)
    }

    /// Lets an open capture know what a call uses.
    pub(crate) fn captured(&self, uses: impl FnOnce(&mut Uses)) {
        if let Some(open) = &mut *self.open() {
            uses(open);
        }
    }

    pub(crate) fn is_capturing(&self) -> bool {
        self.open().is_some()
    }

    /// Refuses a call that cannot be part of a graph.
    pub(crate) fn refuse_in_capture(&self, call: &'static str) -> Result<()> {
        if self.is_capturing() {
            return Err(DeviceError::invalid(call, "the stream is capturing a graph"));
        }
        Ok(())
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Option<Uses>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn unsupported(call: &'static str, message: impl Into<String>) -> DeviceError {
    let message: String = message.into();
    DeviceError::new(call, AbiError::new(Code::UNSUPPORTED, message))
}

/// A capture under way. Whatever becomes of it, the stream is as before at its end.
struct Open<'a> {
    stream: &'a Stream,
}

impl<'a> Open<'a> {
    fn begin(stream: &'a Stream) -> Result<Self> {
        let mut open = stream.open();
        if open.is_some() {
            return Err(DeviceError::invalid("graph_begin", "the stream is capturing a graph"));
        }
        stream.device.raw.graph_begin(stream.raw).named("graph_begin")?;
        stream.device.capture_begins();
        *open = Some(Uses::default());
        drop(open);
        Ok(Self { stream })
    }

    fn end(self) -> Result<Graph> {
        self.finish()
    }

    fn finish(&self) -> Result<Graph> {
        let Stream { device, raw, .. } = self.stream;
        let uses = self.stream.open().take().unwrap_or_default();
        let raw = device.raw.graph_end(*raw).named("graph_end");
        device.capture_ends();
        Ok(Graph { device: Arc::clone(device), raw: raw?, uses, streams: Mutex::default() })
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // It was ended, unless what was to be captured panicked.
        if self.stream.is_capturing() {
            drop(self.finish());
        }
    }
}

impl Graph {
    /// Enqueues all of it. Launches of one graph do not overlap.
    ///
    /// # Errors
    /// If the stream is another device's or capturing, a communicator in it has ended, or the backend fails.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        if !Arc::ptr_eq(&self.device, &stream.device) {
            return Err(DeviceError::invalid("graph_launch", "the stream is another device's"));
        }
        stream.refuse_in_capture("graph_launch")?;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if !streams.contains(&stream.raw) {
            streams.push(stream.raw);
        }
        self.device.raw.graph_launch(self.raw, stream.raw).named("graph_launch")
    }

    /// How many things it keeps alive.
    #[must_use]
    pub fn num_uses(&self) -> usize {
        self.uses.0.len()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let launched =
            std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in launched {
            self.device.wait_for(stream);
        }
        if let Err(error) = self.device.raw.graph_destroy(self.raw).named("graph_destroy") {
            could_not("destroy a graph", &error);
        }
    }
}
