//! How ranks fail together: what ends a communicator on one rank ends it on all.
//!
//! NCCL has no bound for its waits, and tells nobody of an abort. So ranks keep a control beside it, in the host's shared memory. A thread
//! watches the work under way; when the time is over, or the control says that another rank has ended the communicator, it aborts NCCL's,
//! which lets the stream go on.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use halyard_sdk::{Code, Error, Result, Stream, comm::Control};

use crate::{
    device::Shared,
    driver::{self, Event},
    nccl::Comm,
};

/// How often the watch looks at work that is under way.
const LOOK: Duration = Duration::from_millis(1);
/// How long work may be under way before the watch asks whether the other ranks still live.
const DOUBT: Duration = Duration::from_secs(5);

/// The control of the ranks.
#[derive(Debug)]
pub(crate) struct Health {
    pub(super) control: Control,
}

impl Health {
    pub(super) fn new(control: Control) -> Self {
        Self { control }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.control.timeout_ms())
    }

    /// Ends the communicator for all, unless it has ended before; gives what it ended with. The cause is this rank's, whoever tells
    /// of it first.
    pub(super) fn fail(&self, error: &Error) -> Error {
        let Self { control } = self;
        control.fail(&format!("rank {} of {}: {}", control.rank(), control.world(), error.message))
    }

    /// For waits in a call: gives an error once the communicator has ended, or the time is over.
    pub(super) fn patience(&self, what: &'static str) -> impl Fn() -> Result<()> {
        let start = Instant::now();
        move || {
            self.control.status()?;
            if start.elapsed() < self.timeout() {
                return Ok(());
            }
            Err(self.control.fail(&self.late(what, start.elapsed())))
        }
    }

    fn late(&self, what: &str, waited: Duration) -> String {
        format!("rank {} waited {} ms in {what}", self.control.rank(), waited.as_millis())
    }
}

/// What the rank and its watch share.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(super) shared: Arc<Shared>,
    pub(super) health: Health,
    pub(super) comm: Comm,
    work: Mutex<Work>,
    changed: Condvar,
    /// The last call's stream and end.
    last: Mutex<Option<(Stream, Arc<Event>)>>,
}

#[derive(Debug, Default)]
struct Work {
    under_way: VecDeque<Mark>,
    /// Events to be used again.
    spare: Vec<Arc<Event>>,
    closing: bool,
}

/// The end of a call in its stream.
#[derive(Debug)]
struct Mark {
    event: Arc<Event>,
    what: &'static str,
    since: Instant,
}

impl Watched {
    pub(super) fn new(shared: &Arc<Shared>, health: Health, comm: Comm) -> Self {
        let shared = Arc::clone(shared);
        let (work, changed, last) = Default::default();
        Self { shared, health, comm, work, changed, last }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the communicator ended, if it did.
    pub(crate) fn status(&self) -> Result<()> {
        self.health.control.status()?;
        match self.comm.in_progress() {
            Ok(_) => Ok(()),
            Err(error) => {
                let first = self.health.fail(&error);
                self.comm.abort();
                Err(first)
            }
        }
    }

    /// Ends the communicator for all at somebody's wish.
    pub(super) fn abort(&self) {
        self.health.control.abort();
        self.comm.abort();
    }

    fn last(&self) -> MutexGuard<'_, Option<(Stream, Arc<Event>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a stream wait for the last call if another has it: calls share NCCL's memory and ours.
    pub(crate) fn follow(&self, s: Stream, on: &driver::Stream) -> Result<()> {
        match &*self.last() {
            Some((before, end)) if *before != s => end.hold(on),
            _ => Ok(()),
        }
    }

    /// Waits for the end of the last call.
    pub(super) fn wait_for_last(&self) -> Result<()> {
        self.last().take().map_or(Ok(()), |(_, end)| end.synchronize())
    }

    /// Marks the stream's end as that of a call, which is watched from now on.
    pub(crate) fn mark(&self, s: Stream, on: &driver::Stream, what: &'static str) -> Result<()> {
        let mut work = self.work();
        let spare = work.spare.iter().position(|e| Arc::strong_count(e) == 1);
        let event = match spare {
            Some(at) => work.spare.swap_remove(at),
            None => Arc::new(Event::create(false)?),
        };
        event.record(on)?;
        if work.under_way.is_empty() {
            self.changed.notify_all();
        }
        work.under_way.push_back(Mark { event: Arc::clone(&event), what, since: Instant::now() });
        drop(work);
        *self.last() = Some((s, event));
        Ok(())
    }

    /// Begins to watch.
    pub(super) fn watch(self: &Arc<Self>) -> Result<thread::JoinHandle<()>> {
        let this = Arc::clone(self);
        let spawned = thread::Builder::new().name("cuda-collective".into()).spawn(move || {
            if let Err(error) = this.look_on() {
                tracing::debug!(%error, "a communicator ended");
                this.comm.abort();
            }
        });
        spawned.map_err(|e| Error::new(Code::INTERNAL, format!("no thread for a watch: {e}")))
    }

    /// Ends the watch.
    pub(super) fn close(&self) {
        self.work().closing = true;
        self.changed.notify_all();
    }

    /// Frees the events; the device's context is bound.
    pub(super) fn clear(&self) {
        *self.work() = Work::default();
    }

    fn look_on(&self) -> Result<()> {
        let _bound = self.shared.bind()?;
        let mut work = self.work();
        while !work.closing {
            if work.under_way.is_empty() {
                work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            self.sweep(&mut work)?;
            if let Some(first) = work.under_way.front() {
                self.judge(first)?;
            }
            work = self.changed.wait_timeout(work, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Takes out what is done.
    fn sweep(&self, work: &mut Work) -> Result<()> {
        while let Some(first) = work.under_way.front() {
            match first.event.query() {
                Err(error) if error.code == Code::NOT_READY => return Ok(()),
                Err(error) => return Err(self.health.fail(&error)),
                Ok(()) => {}
            }
            let done = work.under_way.pop_front();
            work.spare.extend(done.map(|mark| mark.event));
            // What comes next was not waited for as long as others were before it.
            if let Some(next) = work.under_way.front_mut() {
                next.since = Instant::now();
            }
        }
        Ok(())
    }

    /// Whether the first call under way may be waited for any longer.
    fn judge(&self, first: &Mark) -> Result<()> {
        self.status()?;
        let waited = first.since.elapsed();
        if waited >= self.health.timeout() {
            return Err(self.health.control.fail(&self.health.late(first.what, waited)));
        }
        if waited >= DOUBT {
            self.health.control.look_for_leavers()?;
        }
        Ok(())
    }
}
