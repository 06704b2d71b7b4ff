//! Streams: each a thread that does in order what was enqueued, while the caller goes on.

use crate::code::{Code, Failure, Outcome};
use crate::driver::{Device, Driver, Function};
use crate::event::{Event, Recorded};
use crate::faults;
use crate::graph::Capture;
use halyard_sim_cuda_exec::{Launch, Order, Past, Ticket};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Something to be done in order; a graph keeps it to do it again.
#[derive(Clone)]
pub(crate) enum Work {
    Launch(Box<Start>),
    /// Between allocations, pinned memory of the host among them.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// Bytes that were taken from the host's memory when this was enqueued.
    Write {
        to: u64,
        bytes: Arc<[u8]>,
    },
    Fill {
        to: u64,
        pattern: Arc<[u8]>,
        bytes: usize,
    },
    Free(u64),
    Call(Arc<dyn Fn() + Send + Sync>),
    /// Sends bytes to a caller that waits for them.
    Read {
        from: u64,
        bytes: usize,
        reply: Sender<Vec<u8>>,
    },
}

/// A launch before it is ordered.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) function: Arc<Function>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) params: Vec<u8>,
}

enum Task {
    Do(Work, Order),
    Wait(Arc<Ticket>),
    Reach(Arc<Ticket>),
}

pub(crate) struct Stream {
    pub(crate) device: u32,
    /// Waits for the null stream, and it for this.
    blocking: bool,
    tasks: Mutex<Sender<Task>>,
    /// How many tasks were enqueued and are not done.
    left: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What happens before whatever comes next.
    past: Past,
    capture: Option<Arc<Capture>>,
    /// It began the capture, and may end it.
    origin: bool,
}

impl Stream {
    /// Starts a stream of `device`.
    pub(crate) fn new(driver: &'static Driver, device: u32, blocking: bool) -> Outcome<Arc<Self>> {
        let (tasks, receiver) = channel();
        let left = Arc::<AtomicUsize>::default();
        let done = left.clone();
        let spawned = thread::Builder::new()
            .name("cuda-stream".to_owned())
            .spawn(move || serve(driver, &driver.devices[device as usize], &receiver, &done));
        spawned.map_err(|error| {
            Failure::new(Code::Unknown, format!("no thread for a stream: {error}"))
        })?;
        let tasks = Mutex::new(tasks);
        Ok(Arc::new(Self { device, blocking, tasks, left, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, task: Task) -> Outcome {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        self.left.fetch_add(1, SeqCst);
        tasks.send(task).map_err(|_| Failure::new(Code::Unknown, "the stream's thread is gone"))
    }

    /// Enqueues `work`, or adds it to the capture.
    pub(crate) fn enqueue(&self, driver: &'static Driver, work: Work) -> Outcome {
        driver.device(self.device.cast_signed())?.healthy()?;
        if let Some(capture) = self.capturing() {
            if matches!(work, Work::Read { .. } | Work::Free(_)) {
                return Err(Code::CaptureUnsupported.into());
            }
            capture.add(work);
            return Ok(());
        }
        self.meet_null_stream(driver)?;
        let mut timeline = driver.timeline();
        let mut state = self.state();
        state.past.union(&timeline.host);
        let order = Order { op: timeline.next(), past: state.past.clone() };
        state.past.insert(order.op);
        self.send(Task::Do(work, order))
    }

    /// Orders blocking streams with the null stream, as the driver's legacy default stream is.
    fn meet_null_stream(&self, driver: &'static Driver) -> Outcome {
        let device = driver.device(self.device.cast_signed())?;
        let null = device.null_stream.get();
        if !self.blocking {
            return Ok(());
        }
        let is_null = null.is_some_and(|null| std::ptr::eq(&raw const **null, self));
        if !is_null {
            return null.map_or(Ok(()), |null| self.follow(null));
        }
        for stream in driver.streams_of(device) {
            if stream.blocking
                && !std::ptr::eq(&raw const *stream, self)
                && stream.capturing().is_none()
            {
                self.follow(&stream)?;
            }
        }
        Ok(())
    }

    /// Makes what comes next wait for all that `other` has.
    fn follow(&self, other: &Self) -> Outcome {
        let (ticket, past) = other.point()?;
        if ticket.time().is_none() {
            self.send(Task::Wait(ticket))?;
        }
        self.state().past.union(&past);
        Ok(())
    }

    /// A point behind all that was enqueued, and what happens before it.
    fn point(&self) -> Outcome<(Arc<Ticket>, Past)> {
        let ticket = Arc::new(Ticket::default());
        let state = self.state();
        self.send(Task::Reach(ticket.clone()))?;
        Ok((ticket, state.past.clone()))
    }

    pub(crate) fn capturing(&self) -> Option<Arc<Capture>> {
        self.state().capture.clone()
    }

    pub(crate) fn begin_capture(&self) -> Outcome {
        let mut state = self.state();
        if state.capture.is_some() {
            return Err(Code::CaptureUnsupported.into());
        }
        (state.capture, state.origin) = (Some(Arc::default()), true);
        Ok(())
    }

    /// Ends the capture, also of the streams that joined it.
    pub(crate) fn end_capture(&self, driver: &Driver) -> Outcome<Arc<Capture>> {
        let capture = {
            let mut state = self.state();
            if !state.origin {
                return Err(Code::CaptureUnmatched.into());
            }
            state.origin = false;
            state.capture.take().ok_or(Code::CaptureUnmatched)?
        };
        for stream in driver.streams.values() {
            let mut state = stream.state();
            if state.capture.as_ref().is_some_and(|there| Arc::ptr_eq(there, &capture)) {
                state.capture = None;
            }
        }
        Ok(capture)
    }

    /// Waits until all that was enqueued is done.
    pub(crate) fn synchronize(&self, driver: &Driver) -> Outcome {
        if self.capturing().is_some() {
            return Err(Code::CaptureUnsupported.into());
        }
        let (ticket, past) = self.point()?;
        ticket.wait();
        driver.timeline().host.union(&past);
        driver.device(self.device.cast_signed())?.healthy()
    }

    /// Whether all that was enqueued is done.
    pub(crate) fn is_idle(&self, driver: &Driver) -> Outcome<bool> {
        // What was enqueued before this moment; what another thread adds meanwhile is not waited for.
        let past = self.state().past.clone();
        let idle = self.left.load(SeqCst) == 0;
        if idle {
            driver.timeline().host.union(&past);
        }
        Ok(idle)
    }

    pub(crate) fn record(&self, event: &Event) -> Outcome {
        if let Some(capture) = self.capturing() {
            event.record(Recorded::In(capture));
            return Ok(());
        }
        let (ticket, past) = self.point()?;
        event.record(Recorded::At(ticket, past));
        Ok(())
    }

    /// Makes what comes next wait for `event`.
    pub(crate) fn wait_for(&self, event: &Event) -> Outcome {
        match (event.recorded(), self.capturing()) {
            (Recorded::Never, _) => Ok(()),
            (Recorded::In(capture), None) => {
                self.state().capture = Some(capture);
                Ok(())
            }
            (Recorded::In(capture), Some(own)) if Arc::ptr_eq(&capture, &own) => Ok(()),
            (Recorded::In(_) | Recorded::At(..), Some(_)) => Err(Failure::new(
                Code::CaptureIsolation,
                "a capturing stream was made to wait for an event recorded outside its capture",
            )),
            (Recorded::At(ticket, past), None) => {
                self.send(Task::Wait(ticket))?;
                self.state().past.union(&past);
                Ok(())
            }
        }
    }
}

/// Does a stream's tasks until its last handle is gone.
fn serve(
    driver: &'static Driver,
    device: &'static Device,
    tasks: &Receiver<Task>,
    left: &AtomicUsize,
) {
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Wait(ticket) => ticket.wait(),
            Task::Reach(ticket) => {
                // Before whoever waits for the point is let go: it may ask whether the stream is idle.
                left.fetch_sub(1, SeqCst);
                ticket.reach();
                continue;
            }
            // After a fault nothing is done any more, but whoever waits is let go.
            Task::Do(..) if device.healthy().is_err() => {}
            Task::Do(work, order) => {
                if let Err(failure) = perform(driver, device, work, order) {
                    device.fail(failure);
                }
            }
        }
        left.fetch_sub(1, SeqCst);
    }
}

fn perform(driver: &Driver, device: &Device, work: Work, order: Order) -> Outcome {
    let memory = driver.memory();
    match work {
        Work::Launch(start) => launch(driver, device, *start, order)?,
        Work::Copy { to, from, bytes } => memory.copy(to, from, bytes, &order)?,
        Work::Write { to, bytes } => memory.write_bytes(to, &bytes, &order)?,
        Work::Fill { to, pattern, bytes } => memory.fill(to, &pattern, bytes, &order)?,
        Work::Free(address) => memory.free(address, &order)?,
        Work::Call(call) => call(),
        Work::Read { from, bytes, reply } => {
            let mut data = vec![0; bytes];
            memory.read_bytes(from, &mut data, &order)?;
            // The caller waits; if it does not, nobody misses the bytes.
            _ = reply.send(data);
        }
    }
    Ok(())
}

fn launch(driver: &Driver, device: &Device, start: Start, order: Order) -> Outcome {
    let Start { function, grid, block, shared_bytes, params } = start;
    let name = function.kernel.name().to_owned();
    faults::launch(&name, device.index)?;
    let launch = Launch {
        kernel: function.kernel.clone(),
        grid,
        block,
        shared_bytes,
        params,
        device: device.index,
        peers: device.peers.load(SeqCst),
        seed: driver.seed ^ u64::from(order.op),
        order,
    };
    device.running.fetch_add(1, SeqCst);
    let run = driver.executor.run(launch);
    device.running.fetch_sub(1, SeqCst);
    let counters = run.map_err(|fault| Failure::from(&*fault))?;
    let mut totals = driver.totals.lock().unwrap_or_else(PoisonError::into_inner);
    let total = totals.entry(name).or_default();
    total.0 += 1;
    total.1.add(&counters);
    Ok(())
}
