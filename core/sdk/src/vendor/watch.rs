//! How the ranks of a communicator whose data a vendor's library moves fail together: what ends it on one rank ends it on all.
//!
//! Such libraries wait without a bound, or for minutes, and tell nobody of an abort. So ranks keep a [`Control`] beside it, in the host's
//! shared memory. A thread watches the work under way; when the time is over, or the control says that another rank has ended the
//! communicator, it aborts the library's part, which lets the streams go on.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use halyard_abi::{Code, Stream};

use crate::{Error, Result, comm::Control};

/// How often the watch looks at work that is under way.
const LOOK: Duration = Duration::from_millis(1);
/// How long work may be under way before the watch asks whether the other ranks still live.
const DOUBT: Duration = Duration::from_secs(5);

/// A point in one of the vendor's streams.
#[expect(clippy::missing_errors_doc, reason = "each gives what the vendor says")]
pub trait Mark: Send + Sync + 'static {
    /// The vendor's stream.
    type Stream;

    /// Makes this the stream's present end.
    fn record(&self, on: &Self::Stream) -> Result<()>;

    /// Makes later work of a stream wait for this.
    fn hold(&self, on: &Self::Stream) -> Result<()>;

    /// `NOT_READY` until it is reached.
    fn query(&self) -> Result<()>;

    /// Waits until it is reached.
    fn synchronize(&self) -> Result<()>;
}

/// The library's part of a rank.
pub trait Link: Send + Sync + 'static {
    /// The vendor's events.
    type Mark: Mark;

    /// The device's context, bound to the thread until it is dropped.
    type Bound<'a>
    where
        Self: 'a;

    /// Binds the device's context to the thread.
    ///
    /// # Errors
    /// What the vendor says.
    fn bind(&self) -> Result<Self::Bound<'_>>;

    /// A mark that is nowhere yet.
    ///
    /// # Errors
    /// What the vendor says.
    fn mark(&self) -> Result<Self::Mark>;

    /// Whether the library found an error by itself. Never blocks.
    ///
    /// # Errors
    /// That error.
    fn check(&self) -> Result<()>;

    /// Lets everything end that waits in the library.
    fn abort(&self);
}

/// The control of the ranks.
#[derive(Debug)]
pub struct Health {
    /// Who is there, and how it ended.
    pub control: Control,
}

impl Health {
    /// Of ranks that have come together.
    #[must_use]
    pub fn new(control: Control) -> Self {
        Self { control }
    }

    /// The bound of waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.control.timeout_ms())
    }

    /// Ends the communicator for all, unless it has ended before; gives what it ended with. The cause is this rank's, whoever tells
    /// of it first.
    #[must_use]
    pub fn fail(&self, error: &Error) -> Error {
        let Self { control } = self;
        control.fail(&format!("rank {} of {}: {}", control.rank(), control.world(), error.message))
    }

    /// For waits in a call: gives an error once the communicator has ended, or the time is over.
    pub fn patience(&self, what: &'static str) -> impl Fn() -> Result<()> {
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
pub struct Watched<L: Link> {
    /// The ranks' control.
    pub health: Health,
    /// The library's part.
    pub link: L,
    work: Mutex<Work<L::Mark>>,
    changed: Condvar,
    /// The last call's stream and end.
    last: Mutex<Option<(Stream, Arc<L::Mark>)>>,
}

impl<L: Link> fmt::Debug for Watched<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("health", &self.health).finish_non_exhaustive()
    }
}

struct Work<M> {
    under_way: VecDeque<Call<M>>,
    /// Events to be used again.
    spare: Vec<Arc<M>>,
    closing: bool,
}

impl<M> Default for Work<M> {
    fn default() -> Self {
        Self { under_way: VecDeque::new(), spare: Vec::new(), closing: false }
    }
}

/// A call that is enqueued, and its end in the stream.
struct Call<M> {
    end: Arc<M>,
    what: &'static str,
    since: Instant,
}

impl<L: Link> Watched<L> {
    /// A rank of which no call is under way.
    #[must_use]
    pub fn new(health: Health, link: L) -> Self {
        let (work, changed, last) = Default::default();
        Self { health, link, work, changed, last }
    }

    fn work(&self) -> MutexGuard<'_, Work<L::Mark>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the communicator ended, if it did.
    ///
    /// # Errors
    /// `COMM_ERROR` or `COMM_ABORTED`, with the text of whoever ended it.
    pub fn status(&self) -> Result<()> {
        self.health.control.status()?;
        self.link.check().map_err(|error| {
            let first = self.health.fail(&error);
            self.link.abort();
            first
        })
    }

    /// Ends the communicator for all at somebody's wish.
    pub fn abort(&self) {
        self.health.control.abort();
        self.link.abort();
    }

    fn last(&self) -> MutexGuard<'_, Option<(Stream, Arc<L::Mark>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a stream wait for the last call if another has it: calls share the library's memory and ours.
    ///
    /// # Errors
    /// What the vendor says.
    pub fn follow(&self, s: Stream, on: &<L::Mark as Mark>::Stream) -> Result<()> {
        match &*self.last() {
            Some((before, end)) if *before != s => end.hold(on),
            _ => Ok(()),
        }
    }

    /// Waits for the end of the last call.
    ///
    /// # Errors
    /// What the vendor says.
    pub fn wait_for_last(&self) -> Result<()> {
        self.last().take().map_or(Ok(()), |(_, end)| end.synchronize())
    }

    /// Marks the stream's end as that of a call, which is watched from now on.
    ///
    /// # Errors
    /// What the vendor says.
    pub fn mark(
        &self,
        s: Stream,
        on: &<L::Mark as Mark>::Stream,
        what: &'static str,
    ) -> Result<()> {
        let mut work = self.work();
        let spare = work.spare.iter().position(|e| Arc::strong_count(e) == 1);
        let end = match spare {
            Some(at) => work.spare.swap_remove(at),
            None => Arc::new(self.link.mark()?),
        };
        end.record(on)?;
        if work.under_way.is_empty() {
            self.changed.notify_all();
        }
        work.under_way.push_back(Call { end: Arc::clone(&end), what, since: Instant::now() });
        drop(work);
        *self.last() = Some((s, end));
        Ok(())
    }

    /// Begins to watch, on a thread of this name.
    ///
    /// # Errors
    /// `INTERNAL` if there is no thread.
    pub fn watch(self: &Arc<Self>, name: &str) -> Result<thread::JoinHandle<()>> {
        let this = Arc::clone(self);
        let spawned = thread::Builder::new().name(name.into()).spawn(move || {
            if let Err(error) = this.look_on() {
                tracing::debug!(%error, "a communicator ended");
                this.link.abort();
            }
        });
        spawned.map_err(|e| Error::new(Code::INTERNAL, format!("no thread for a watch: {e}")))
    }

    /// Ends the watch.
    pub fn close(&self) {
        self.work().closing = true;
        self.changed.notify_all();
    }

    /// Frees the marks; the device's context is bound.
    pub fn clear(&self) {
        *self.last() = None;
        *self.work() = Work::default();
    }

    fn look_on(&self) -> Result<()> {
        let _bound = self.link.bind()?;
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
    fn sweep(&self, work: &mut Work<L::Mark>) -> Result<()> {
        while let Some(first) = work.under_way.front() {
            match first.end.query() {
                Err(error) if error.code == Code::NOT_READY => return Ok(()),
                Err(error) => return Err(self.health.fail(&error)),
                Ok(()) => {}
            }
            let done = work.under_way.pop_front();
            work.spare.extend(done.map(|call| call.end));
            // What comes next was not waited for as long as others were before it.
            if let Some(next) = work.under_way.front_mut() {
                next.since = Instant::now();
            }
        }
        Ok(())
    }

    /// Whether the first call under way may be waited for any longer.
    fn judge(&self, first: &Call<L::Mark>) -> Result<()> {
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
