//! Streams: each a thread that does in order what was enqueued, late, while the caller goes on.

use crate::capture::{Capture, Member, Node, Source, TaskGroup};
use crate::code::{Code, Failure, Outcome, write_line};
use crate::event::{Event, Recorded};
use crate::fault;
use crate::random::Random;
use crate::runtime::{Device, Kind, Runtime};
use halyard_sim_memory::{Order, Past, Ticket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Where an operation runs.
pub(crate) struct Site<'a> {
    pub(crate) runtime: &'static Runtime,
    pub(crate) order: &'a Order,
    shared: &'a Shared,
    epoch: u64,
}

impl Site<'_> {
    /// Does work that waits for others; `stop` lets it end when the stream is aborted meanwhile.
    pub(crate) fn stoppable(
        &self,
        stop: impl Fn() + Send + Sync + 'static,
        work: impl FnOnce() -> Outcome,
    ) -> Outcome {
        *self.shared.stop() = Some(Arc::new(stop));
        // An abort that came before found nothing to stop.
        let is_wanted = self.shared.epoch.load(SeqCst) == self.epoch;
        let done = if is_wanted { work() } else { Ok(()) };
        *self.shared.stop() = None;
        done
    }
}

/// What an operation does; a graph does it again and again.
pub(crate) type Work = Arc<dyn Fn(&Site<'_>) -> Outcome + Send + Sync>;

/// An operation: the call that enqueued it, and what it does.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
}

enum Task {
    Do { name: &'static str, source: Source, order: Order, epoch: u64 },
    Wait(Arc<Ticket>),
    Reach(Arc<Ticket>),
}

pub(crate) struct Stream {
    pub(crate) device: u32,
    pub(crate) id: i32,
    is_default: bool,
    tasks: Mutex<Sender<Task>>,
    state: Mutex<State>,
    shared: Arc<Shared>,
    /// How its callbacks are called: by a thread that subscribed, or by the stream itself.
    pub(crate) callbacks: Mutex<Option<&'static str>>,
}

#[derive(Default)]
struct State {
    /// What happens before whatever comes next.
    past: Past,
    capture: Option<Member>,
    /// A task group, and the operations that will replace its own.
    update: Option<(Arc<TaskGroup>, Vec<Step>)>,
}

/// What the stream's thread and its callers share.
#[derive(Default)]
struct Shared {
    failed: Mutex<Option<Failure>>,
    stops: AtomicBool,
    /// How many tasks were enqueued and are not done.
    left: AtomicUsize,
    /// Tasks of an earlier epoch are left out.
    epoch: AtomicU64,
    /// Lets the task that runs end, if it waits for others.
    stop: Mutex<Option<Stop>>,
}

type Stop = Arc<dyn Fn() + Send + Sync>;

impl Kind for Stream {
    const NAME: &'static str = "stream";
}

static NEXT_ID: AtomicI32 = AtomicI32::new(0);

impl Stream {
    pub(crate) fn new(
        runtime: &'static Runtime,
        device: &'static Device,
        is_default: bool,
    ) -> Outcome<Arc<Self>> {
        let (tasks, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let id = NEXT_ID.fetch_add(1, SeqCst);
        let worker = Worker { runtime, device, shared: Arc::clone(&shared) };
        let random = Random(runtime.seed ^ u64::from(id.cast_unsigned()));
        let spawned = thread::Builder::new()
            .name(format!("acl-stream-{id}"))
            .spawn(move || worker.serve(&receiver, random));
        spawned
            .map_err(|e| Failure::new(Code::INTERNAL, format!("no thread for a stream: {e}")))?;
        Ok(Arc::new(Self {
            device: device.index,
            id,
            is_default,
            tasks: Mutex::new(tasks),
            state: Mutex::default(),
            shared,
            callbacks: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, task: Task) -> Outcome {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.left.fetch_add(1, SeqCst);
        tasks.send(task).map_err(|_| Failure::new(Code::INTERNAL, "the stream's thread is gone"))
    }

    /// Enqueues an operation, or adds it to the capture or the update that is under way.
    pub(crate) fn enqueue(
        &self,
        runtime: &'static Runtime,
        name: &'static str,
        work: Work,
    ) -> Outcome {
        self.accepts()?;
        let mut state = self.state();
        if let Some((_, update)) = &mut state.update {
            update.push(Step { name, work });
            return Ok(());
        }
        if let Some(member) = &mut state.capture {
            return member.add(Step { name, work });
        }
        drop(state);
        if self.is_default {
            Capture::forbid_default_stream()?;
        }
        let mut timeline = runtime.timeline();
        let mut state = self.state();
        state.past.union(&timeline.host);
        let order = Order { op: timeline.next(name), past: state.past.clone() };
        state.past.insert(order.op);
        self.post(name, Source::Own(work), order)
    }

    fn post(&self, name: &'static str, source: Source, order: Order) -> Outcome {
        self.send(Task::Do { name, source, order, epoch: self.shared.epoch.load(SeqCst) })
    }

    /// Enqueues the operations of a graph.
    pub(crate) fn replay(&self, runtime: &'static Runtime, nodes: &[Node]) -> Outcome {
        self.accepts()?;
        if self.capturing().is_some() {
            let text = "argument `stream`: a graph cannot be run on a stream that is capturing";
            return Err(Failure::new(Code::STREAM_CAPTURED, text));
        }
        let mut timeline = runtime.timeline();
        let mut state = self.state();
        state.past.union(&timeline.host);
        let before = state.past.clone();
        let mut first = None;
        for node in nodes {
            let op = timeline.next(node.name);
            let base = *first.get_or_insert(op) - 1;
            let mut past = node.past.shifted(base);
            past.union(&before);
            state.past.insert(op);
            self.post(node.name, node.source.clone(), Order { op, past })?;
        }
        Ok(())
    }

    fn accepts(&self) -> Outcome {
        let failed = self.failure();
        match failed {
            Some(failure) if self.shared.stops.load(SeqCst) => {
                Err(failure.within("the stream stopped at its first failure"))
            }
            _ => Ok(()),
        }
    }

    /// `aclrtSetStreamFailureMode`.
    pub(crate) fn set_stops(&self, stops: bool) {
        self.shared.stops.store(stops, SeqCst);
    }

    /// A point behind all that was enqueued, and what happens before it.
    pub(crate) fn point(&self) -> Outcome<(Arc<Ticket>, Past)> {
        let ticket = Arc::new(Ticket::default());
        let state = self.state();
        self.send(Task::Reach(ticket.clone()))?;
        Ok((ticket, state.past.clone()))
    }

    pub(crate) fn capturing(&self) -> Option<Arc<Capture>> {
        self.state().capture.as_ref().map(|member| Arc::clone(&member.capture))
    }

    /// Changes this stream's part in a capture.
    pub(crate) fn with_capture<T>(
        &self,
        change: impl FnOnce(&mut Option<Member>) -> Outcome<T>,
    ) -> Outcome<T> {
        if self.is_default {
            let text = "argument `stream`: the default stream cannot be captured";
            return Err(Failure::new(Code::CAPTURE_IMPLICIT, text));
        }
        change(&mut self.state().capture)
    }

    /// Collects what comes next for the update of a task group.
    pub(crate) fn begin_update(&self, group: Arc<TaskGroup>) -> Outcome {
        let mut state = self.state();
        if state.capture.is_some() {
            let text = "argument `stream`: a task update was begun on a stream that is capturing";
            return Err(Failure::new(Code::STREAM_CAPTURED, text));
        }
        if state.update.is_some() {
            let text = "argument `stream`: a task update was begun before and not ended";
            return Err(Failure::new(Code::PARAM, text));
        }
        state.update = Some((group, Vec::new()));
        Ok(())
    }

    /// The group, and what was collected.
    pub(crate) fn end_update(&self) -> Outcome<(Arc<TaskGroup>, Vec<Step>)> {
        self.state().update.take().ok_or_else(|| {
            Failure::new(Code::PARAM, "argument `stream`: no task update was begun on it")
        })
    }

    /// Waits until all that was enqueued is done; `late` is the code if `bound` passes before.
    pub(crate) fn synchronize(
        &self,
        runtime: &Runtime,
        bound: Option<Duration>,
        late: Code,
    ) -> Outcome {
        let (ticket, past) = self.point()?;
        if !ticket.wait_for(bound) {
            let text = format!("stream {} was not done within {bound:?}", self.id);
            return Err(Failure::new(late, text));
        }
        runtime.timeline().host.union(&past);
        let failure = self.failure();
        if failure.as_ref().is_some_and(|failure| failure.code == Code::STREAM_ABORT) {
            // Told once: the stream takes new work.
            self.forgive();
        }
        failure.map_or(Ok(()), Err)
    }

    /// Whether all that was enqueued is done.
    pub(crate) fn is_idle(&self, runtime: &Runtime) -> bool {
        // What was enqueued before this moment; what another thread adds meanwhile is not waited for.
        let past = self.state().past.clone();
        let idle = self.shared.left.load(SeqCst) == 0;
        if idle {
            runtime.timeline().host.union(&past);
        }
        idle
    }

    /// Records an event that no graph waits for when it runs.
    pub(crate) fn record(&self, event: &Event) -> Outcome {
        if let Some(member) = &self.state().capture {
            event.record(Recorded::In(Arc::clone(&member.capture), member.past.clone()));
            return Ok(());
        }
        let (ticket, past) = self.point()?;
        event.record(Recorded::At(ticket, past));
        Ok(())
    }

    /// Makes what comes next wait for `event`.
    pub(crate) fn wait_for(&self, handle: usize, event: &Event) -> Outcome {
        let recorded = event.recorded();
        let mut state = self.state();
        match (recorded, &mut state.capture) {
            (Recorded::Never, _) => Ok(()),
            (Recorded::In(capture, _), _) if !capture.is_active() => {
                let text = "argument `event`: it was recorded in a capture that ended";
                Err(Failure::new(Code::EVENT_CAPTURED, text))
            }
            (Recorded::In(capture, past), None) => {
                if self.is_default {
                    let text = "argument `stream`: the default stream cannot join a capture";
                    return Err(Failure::new(Code::CAPTURE_IMPLICIT, text));
                }
                state.capture = Some(Member::joined(capture, past, handle));
                Ok(())
            }
            (Recorded::In(capture, past), Some(own)) if Arc::ptr_eq(&capture, &own.capture) => {
                own.past.union(&past);
                Ok(())
            }
            (Recorded::In(..) | Recorded::At(..), Some(own)) => {
                let text = "argument `event`: a capturing stream was made to wait for an event that was recorded outside its capture";
                own.capture.invalidate(text);
                Err(Failure::new(Code::CAPTURE_DEPENDENCY, text))
            }
            (Recorded::At(ticket, past), None) => {
                self.send(Task::Wait(ticket))?;
                state.past.union(&past);
                Ok(())
            }
        }
    }

    /// `aclrtStreamAbort`: leaves out what has not begun, and stops what waits for others.
    pub(crate) fn abort(&self) {
        self.shared.epoch.fetch_add(1, SeqCst);
        let text = format!("stream {} was aborted", self.id);
        *self.shared.failed() = Some(Failure::new(Code::STREAM_ABORT, text));
        let stop = self.shared.stop().clone();
        if let Some(stop) = stop {
            stop();
        }
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.shared.failed().clone()
    }

    /// Forgets its failure.
    pub(crate) fn forgive(&self) {
        *self.shared.failed() = None;
    }
}

impl Shared {
    fn stop(&self) -> MutexGuard<'_, Option<Stop>> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, failure: Failure) {
        self.failed().get_or_insert(failure);
    }
}

/// The thread of a stream.
struct Worker {
    runtime: &'static Runtime,
    device: &'static Device,
    shared: Arc<Shared>,
}

impl Worker {
    /// Does a stream's tasks until its last handle is gone.
    fn serve(&self, tasks: &Receiver<Task>, mut random: Random) {
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Wait(ticket) => ticket.wait(),
                Task::Reach(ticket) => {
                    // Before whoever waits for the point is let go: it may ask whether the stream is idle.
                    self.shared.left.fetch_sub(1, SeqCst);
                    ticket.reach();
                    continue;
                }
                Task::Do { name, source, order, epoch } => {
                    self.delay(&mut random);
                    if self.is_wanted(epoch) {
                        self.perform(name, &source, &order, epoch);
                    }
                }
            }
            self.shared.left.fetch_sub(1, SeqCst);
        }
    }

    /// Now and then an operation begins late.
    fn delay(&self, random: &mut Random) {
        let number = random.next();
        if self.runtime.delay_us > 0 && number.is_multiple_of(4) {
            thread::sleep(Duration::from_micros((number >> 8) % self.runtime.delay_us));
        }
    }

    fn is_wanted(&self, epoch: u64) -> bool {
        let stopped = self.shared.stops.load(SeqCst) && self.shared.failed().is_some();
        epoch == self.shared.epoch.load(SeqCst) && !stopped && self.device.healthy().is_ok()
    }

    fn perform(&self, name: &'static str, source: &Source, order: &Order, epoch: u64) {
        let site = Site { runtime: self.runtime, order, shared: &self.shared, epoch };
        let outcome = fault::on_stream(self.device, name).and_then(|()| {
            let run = AssertUnwindSafe(|| source.run(&site));
            catch_unwind(run).unwrap_or_else(|_| {
                Err(Failure::new(Code::INTERNAL, "a bug in the simulator: panic"))
            })
        });
        if let Err(failure) = outcome {
            if self.shared.epoch.load(SeqCst) != epoch {
                // It was stopped, which the abort tells.
                return;
            }
            let failure = failure.within(format!("{name} (operation {})", order.op));
            write_line(&format!("{} [{}]", failure.text, failure.code.0));
            self.shared.fail(failure);
        }
    }
}
