//! Graphs: work that a stream captured, and its tasks whose arguments change from launch to launch.
//!
//! The library takes an operator's lengths from the host when it plans it, so they are part of what is captured. Such operators are
//! captured as task groups: before the graph is launched again each is planned with the lengths of the moment, enqueued on a stream that does
//! nothing else, between `aclmdlRICaptureTaskUpdateBegin` and `End`, and takes the place of what was there.

use std::{
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use halyard_ascend_sys::types::{ACL_MODEL_RI_CAPTURE_MODE_RELAXED, aclmdlRI, aclrtTaskGrp};
use halyard_sdk::{Code, Error, Result};

use super::{Driver, Event, Stream, memory::Memory};

/// An operator with arguments that change.
pub(crate) trait Changing: Send {
    /// Whether they are others than those it was enqueued with last.
    fn has_changed(&self) -> bool;
    /// Enqueues it with those of the moment. Captured, it is the same operator each time, with tensors of the same dims.
    fn enqueue(&mut self, on: &Stream) -> Result<()>;
}

/// A changing operator in a graph.
struct Task {
    group: aclrtTaskGrp,
    operator: Box<dyn Changing>,
    /// Its last update failed.
    is_stale: bool,
    /// What it was given as scratch memory.
    scratch: Arc<Memory>,
}

// SAFETY: a task group is a name that the runtime takes from any thread.
unsafe impl Send for Task {}

/// The changing operators of a capture that is under way.
#[derive(Default)]
pub(super) struct Capture(Vec<Task>);

/// Captured work.
pub(crate) struct Graph {
    model: Model,
    tasks: Mutex<Vec<Task>>,
    /// Where it was captured, which does it: its operators have that stream's scratch memory.
    stream: Arc<Stream>,
    /// What the others of its operators were given as scratch memory.
    _scratch: Arc<Memory>,
}

/// What orders the launches of a stream's graphs, and the updates between them.
#[derive(Debug)]
pub(super) struct Lane {
    updates: Stream,
    /// The caller's work before a launch, on another stream; the updates; the launch.
    before: Event,
    updated: Event,
    done: Event,
    is_launched: bool,
}

/// A graph of the runtime's.
struct Model {
    driver: &'static Driver,
    raw: aclmdlRI,
}

// SAFETY: a model is a name that the runtime takes from any thread.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({:?})", self.model.raw)
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Capture of {} changing operators so far", self.0.len())
    }
}

impl Stream {
    /// What is enqueued from now on is kept instead of done.
    pub(crate) fn begin_capture(&self) -> Result<()> {
        // Other streams and threads go on with calls that a stricter mode would refuse meanwhile.
        let mode = ACL_MODEL_RI_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as this.
        unsafe { call!(&self.driver.acl, aclmdlRICaptureBegin(self.raw(), mode)) }?;
        *self.capture() = Some(Capture::default());
        Ok(())
    }

    pub(crate) fn is_capturing(&self) -> bool {
        self.capture().is_some()
    }

    /// Enqueues an operator whose arguments change: if it is captured, they are those of the moment at each launch.
    pub(crate) fn enqueue_changing(&self, mut operator: Box<dyn Changing>) -> Result<()> {
        if !self.is_capturing() {
            return operator.enqueue(self);
        }
        let acl = &self.driver.acl;
        // SAFETY: the stream lives as long as this.
        unsafe { call!(acl, aclmdlRICaptureTaskGrpBegin(self.raw())) }?;
        let enqueued = operator.enqueue(self);
        let mut group = ptr::null_mut();
        // SAFETY: as above; the group goes to a variable of ours.
        let ended = unsafe { call!(acl, aclmdlRICaptureTaskGrpEnd(self.raw(), &raw mut group)) };
        enqueued.and(ended)?;
        let task = Task { group, operator, is_stale: false, scratch: self.scratch_now() };
        if let Some(Capture(tasks)) = &mut *self.capture() {
            tasks.push(task);
        }
        Ok(())
    }
}

impl Graph {
    /// Ends what [`Stream::begin_capture`] began.
    pub(crate) fn end(stream: Arc<Stream>) -> Result<Self> {
        let Capture(tasks) = stream.capture().take().unwrap_or_default();
        let (driver, mut raw) = (stream.driver, ptr::null_mut());
        // SAFETY: the stream lives as long as this; the graph goes to a variable of ours.
        unsafe { call!(&driver.acl, aclmdlRICaptureEnd(stream.raw(), &raw mut raw)) }?;
        let (model, tasks) = (Model { driver, raw }, Mutex::new(tasks));
        let mut lane = stream.lane();
        if lane.is_none() {
            *lane = Some(Box::new(Lane::beside(&stream)?));
        }
        drop(lane);
        let scratch = stream.scratch_now();
        Ok(Self { model, tasks, stream, _scratch: scratch })
    }

    /// Enqueues all of it, with the arguments of the moment.
    pub(crate) fn launch(&self, on: &Stream) -> Result<()> {
        let own = &*self.stream;
        if own.is_capturing() {
            return Err(Error::new(Code::BUSY, "the graph's stream is capturing another"));
        }
        let mut lane = own.lane();
        let lane = lane.as_mut().ok_or_else(|| Error::invalid("a graph without a stream"))?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_elsewhere = on.raw() != own.raw();
        if is_elsewhere {
            lane.before.record(on)?;
            lane.before.hold(own)?;
        }
        lane.update(&mut tasks, own)?;
        // SAFETY: both live as long as these, and so does what the graph uses.
        unsafe { call!(&own.driver.acl, aclmdlRIExecuteAsync(self.model.raw, own.raw())) }?;
        lane.done.record(own)?;
        lane.is_launched = true;
        if is_elsewhere { lane.done.hold(on) } else { Ok(()) }
    }
}

impl Lane {
    fn beside(stream: &Stream) -> Result<Self> {
        let event = || Event::create(stream.driver, false);
        let (before, updated, done) = (event()?, event()?, event()?);
        Ok(Self { updates: stream.beside()?, before, updated, done, is_launched: false })
    }

    /// Replaces the operators whose arguments have changed, after the last launch and before what is enqueued on `own` next.
    fn update(&self, tasks: &mut [Task], own: &Stream) -> Result<()> {
        let is_changed = |task: &&mut Task| task.is_stale || task.operator.has_changed();
        let mut changed = tasks.iter_mut().filter(is_changed).peekable();
        if changed.peek().is_none() {
            return Ok(());
        }
        if self.is_launched {
            self.done.hold(&self.updates)?;
        }
        changed.try_for_each(|task| task.update(&self.updates))?;
        self.updated.record(&self.updates)?;
        self.updated.hold(own)
    }
}

impl Task {
    fn update(&mut self, on: &Stream) -> Result<()> {
        self.is_stale = true;
        let acl = &on.driver.acl;
        // SAFETY: the stream lives as long as this, and the group is of a graph that does.
        unsafe { call!(acl, aclmdlRICaptureTaskUpdateBegin(on.raw(), self.group)) }?;
        let enqueued = self.operator.enqueue(on);
        // SAFETY: as above.
        let ended = unsafe { call!(acl, aclmdlRICaptureTaskUpdateEnd(on.raw())) };
        on.outgrown(std::mem::replace(&mut self.scratch, on.scratch_now()));
        enqueued.and(ended)?;
        self.is_stale = false;
        Ok(())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: nothing uses it after this.
        if let Err(error) = unsafe { call!(&self.driver.acl, aclmdlRIDestroy(self.raw)) } {
            tracing::debug!(%error, "a graph of a device that failed");
        }
    }
}
