//! Graphs: what streams were asked to do while they were capturing.
//!
//! A graph runs its work in the order of capture, each operation after those that streams and events put before it: two that nothing
//! orders and that use the same memory are found when it runs.

use crate::code::{Code, Failure, Outcome};
use crate::runtime::Kind;
use crate::stream::{Site, Step, Work};
use halyard_sim_memory::Past;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// `ACL_MODEL_RI_CAPTURE_MODE_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl TryFrom<u32> for Mode {
    type Error = Failure;

    fn try_from(number: u32) -> Outcome<Self> {
        match number {
            0 => Ok(Self::Global),
            1 => Ok(Self::ThreadLocal),
            2 => Ok(Self::Relaxed),
            _ => Err(Failure::argument("mode", format!("{number} is no capture mode (0, 1, 2)"))),
        }
    }
}

/// An operation of a graph.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) name: &'static str,
    /// Operations of the capture, from 1, that happen before it.
    pub(crate) past: Past,
    pub(crate) source: Source,
}

/// Where an operation's work is.
#[derive(Clone)]
pub(crate) enum Source {
    Own(Work),
    /// In a task group, which may be updated.
    Grouped(Arc<TaskGroup>, usize),
}

/// The external wait of a graph, which is captured.
const AWAITING: &str = "aclrtStreamWaitEvent";

impl Source {
    pub(crate) fn run(&self, site: &Site<'_>) -> Outcome {
        match self {
            Self::Own(work) => work(site),
            Self::Grouped(group, index) => {
                group.runs(site)?;
                let work = Arc::clone(&group.steps()[*index].work);
                work(site)
            }
        }
    }
}

/// Operations of a graph that may be replaced.
#[derive(Default)]
pub(crate) struct TaskGroup {
    steps: Mutex<Vec<Step>>,
    /// It runs when an event of the outside lets it: who records that is behind the update, and resets it when it ran.
    awaits: bool,
    uses: Mutex<Uses>,
}

/// Operations of streams that use a task group.
#[derive(Default)]
struct Uses {
    /// The last update.
    update: Option<u32>,
    /// Runs since then that none of the others is behind.
    runs: Vec<u32>,
}

impl Kind for TaskGroup {
    const NAME: &'static str = "task group";
}

impl TaskGroup {
    fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unordered(what: &str, site: &Site<'_>, other: u32) -> Failure {
        let name = site.runtime.timeline().name(other);
        let text = format!(
            "{what}: no event or synchronisation orders it and operation {other} ({name}) of the same task group"
        );
        Failure::new(Code::MODEL_EXECUTE, text)
    }

    /// An operation of the group runs, which must be behind the last update.
    fn runs(&self, site: &Site<'_>) -> Outcome {
        let (order, mut uses) = (site.order, self.uses());
        if let Some(update) = uses.update.filter(|&one| !self.awaits && !order.past.contains(one)) {
            return Err(Self::unordered("a task of a graph", site, update));
        }
        uses.runs.retain(|&one| !order.past.contains(one));
        uses.runs.push(order.op);
        Ok(())
    }

    /// An update, which must be behind all that ran.
    pub(crate) fn updates(&self, site: &Site<'_>) -> Outcome {
        let (order, mut uses) = (site.order, self.uses());
        let run = uses.runs.iter().find(|&&one| !self.awaits && !order.past.contains(one));
        if let Some(&run) = run {
            return Err(Self::unordered("an update of a task group", site, run));
        }
        *uses = Uses { update: Some(order.op), runs: Vec::new() };
        Ok(())
    }

    /// Number and kind of the operations must be the same.
    pub(crate) fn check(&self, fresh: &[Step]) -> Outcome {
        let names = |steps: &[Step]| steps.iter().map(|step| step.name).collect::<Vec<_>>();
        let (old, new) = (names(&self.steps()), names(fresh));
        if old == new {
            return Ok(());
        }
        let text = format!("argument `handle`: the group has {old:?}, the update {new:?}");
        Err(Failure::new(Code::PARAM, text))
    }

    pub(crate) fn replace(&self, fresh: &[Step]) {
        *self.steps() = fresh.to_vec();
    }
}

/// A capture under way, of one stream and those that joined it by its events.
pub(crate) struct Capture {
    mode: Mode,
    thread: ThreadId,
    nodes: Mutex<Vec<Node>>,
    /// Handles of the streams that take part.
    streams: Mutex<Vec<usize>>,
    /// Handles of its task groups.
    groups: Mutex<Vec<usize>>,
    /// Why it cannot be ended well.
    invalid: Mutex<Option<String>>,
}

/// A stream's part in a capture.
pub(crate) struct Member {
    pub(crate) capture: Arc<Capture>,
    /// It began the capture, and may end it.
    pub(crate) origin: bool,
    pub(crate) past: Past,
    /// The task group that is open.
    pub(crate) group: Option<Arc<TaskGroup>>,
    /// An event of the outside lets what comes next run.
    awaits: bool,
}

/// Captures that have not ended.
static ACTIVE: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());

fn active() -> MutexGuard<'static, Vec<Arc<Capture>>> {
    ACTIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static THREAD_MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// `aclmdlRICaptureThreadExchangeMode`
pub(crate) fn exchange_mode(mode: Mode) -> Mode {
    THREAD_MODE.replace(mode)
}

impl Capture {
    /// Begins a capture on the stream with this handle.
    pub(crate) fn begin(mode: Mode, stream: usize) -> Member {
        let capture = Arc::new(Self {
            mode,
            thread: thread::current().id(),
            nodes: Mutex::default(),
            streams: Mutex::new(vec![stream]),
            groups: Mutex::default(),
            invalid: Mutex::default(),
        });
        active().push(Arc::clone(&capture));
        Member { capture, origin: true, past: Past::default(), group: None, awaits: false }
    }

    /// Whether it is under way.
    pub(crate) fn is_active(&self) -> bool {
        active().iter().any(|one| std::ptr::eq(&raw const **one, self))
    }

    /// Whether this thread must not wait for or ask after work while this capture is under way.
    fn binds_this_thread(&self) -> bool {
        let own = self.thread == thread::current().id();
        match (self.mode, THREAD_MODE.get()) {
            (Mode::Relaxed, _) | (_, Mode::Relaxed) => false,
            (Mode::ThreadLocal, _) | (Mode::Global, Mode::ThreadLocal) => own,
            (Mode::Global, Mode::Global) => true,
        }
    }

    /// Fails, and ends every capture that does not allow it, for a call that waits, asks or copies at once.
    pub(crate) fn forbid() -> Outcome {
        let text = "not allowed while a stream is capturing (mode GLOBAL: on no thread; THREAD_LOCAL: not on the thread that began it)";
        Self::refuse(Code::CAPTURE_MODE, text)
    }

    /// Work on the default stream would depend on what is captured.
    pub(crate) fn forbid_default_stream() -> Outcome {
        let text = "argument `stream`: the default stream was used while another is capturing";
        Self::refuse(Code::CAPTURE_IMPLICIT, text)
    }

    fn refuse(code: Code, text: &str) -> Outcome {
        let mut refused = false;
        for capture in active().iter().filter(|one| one.binds_this_thread()) {
            capture.invalidate(text);
            refused = true;
        }
        if refused { Err(Failure::new(code, text)) } else { Ok(()) }
    }

    /// It will not give a graph.
    pub(crate) fn invalidate(&self, why: &str) {
        let mut invalid = self.invalid.lock().unwrap_or_else(PoisonError::into_inner);
        invalid.get_or_insert_with(|| why.to_owned());
    }

    pub(crate) fn invalid(&self) -> Option<String> {
        self.invalid.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn groups(&self) -> MutexGuard<'_, Vec<usize>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// A stream that waited for an event of the capture.
    pub(crate) fn joined(capture: Arc<Capture>, past: Past, stream: usize) -> Self {
        capture.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        Self { capture, origin: false, past, group: None, awaits: false }
    }

    /// Begins a task group.
    pub(crate) fn begin_group(&mut self) {
        self.group = Some(Arc::new(TaskGroup { awaits: self.awaits, ..TaskGroup::default() }));
    }

    /// The handle of a task group that ended.
    pub(crate) fn ended_group(&self, handle: usize) {
        self.capture.groups().push(handle);
    }

    /// Captures an operation.
    pub(crate) fn add(&mut self, step: Step) -> Outcome {
        if let Some(why) = self.capture.invalid() {
            return Err(Failure::new(
                Code::CAPTURE_INVALIDATED,
                format!("the capture ended: {why}"),
            ));
        }
        let name = step.name;
        self.awaits |= name == AWAITING;
        let source = match &self.group {
            None => Source::Own(step.work),
            Some(group) => {
                let mut steps = group.steps();
                steps.push(step);
                Source::Grouped(Arc::clone(group), steps.len() - 1)
            }
        };
        let mut nodes = self.capture.nodes();
        let past = self.past.clone();
        nodes.push(Node { name, past, source });
        self.past.insert(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        Ok(())
    }

    /// The graph, if all that was captured happens before the end of this stream, which began the capture.
    pub(crate) fn finish(self) -> Outcome<Model> {
        let Self { capture, past, group, .. } = self;
        active().retain(|one| !Arc::ptr_eq(one, &capture));
        if let Some(why) = capture.invalid() {
            return Err(Failure::new(Code::CAPTURE_INVALIDATED, why));
        }
        if group.is_some() {
            let text = "argument `stream`: a task group was begun and not ended";
            return Err(Failure::new(Code::PARAM, text));
        }
        let nodes = std::mem::take(&mut *capture.nodes());
        for (node, number) in nodes.iter().zip(1..) {
            if !past.contains(number) {
                let text = format!(
                    "argument `stream`: operation {number} of the capture, {}, is on a stream that did not join this one again",
                    node.name
                );
                return Err(Failure::new(Code::CAPTURE_UNJOINED, text));
            }
        }
        let streams = capture.streams.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let groups = std::mem::take(&mut *capture.groups());
        Ok(Model { nodes, streams, groups })
    }
}

/// A graph.
pub(crate) struct Model {
    pub(crate) nodes: Vec<Node>,
    /// Streams that must outlive it.
    pub(crate) streams: Vec<usize>,
    /// Task groups that go with it.
    pub(crate) groups: Vec<usize>,
}

impl Kind for Model {
    const NAME: &'static str = "model";
}
