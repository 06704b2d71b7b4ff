//! What the callers' threads and the engine's thread both see.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::request::{EngineInfo, SubmitError};

/// State shared by all handles and the loop.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) info: EngineInfo,
    max_num_queued_reqs: usize,
    step_timeout: Duration,
    queue: Mutex<Queue>,
    cause_of_death: OnceLock<String>,
    epoch: Instant,
    /// Nanoseconds from `epoch` to the start of the running step, plus one; `0` between steps.
    step_started: AtomicU64,
    seeds: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    closed: bool,
    /// Requests accepted and not yet ended.
    live: usize,
    /// Of these, those never scheduled yet.
    queued: usize,
    /// The last step could not admit everyone.
    congested: bool,
}

impl Shared {
    pub(crate) fn new(
        info: EngineInfo,
        max_num_queued_reqs: usize,
        step_timeout: Duration,
        seed: u64,
    ) -> Self {
        Self {
            info,
            max_num_queued_reqs,
            step_timeout,
            queue: Mutex::default(),
            cause_of_death: OnceLock::new(),
            epoch: Instant::now(),
            step_started: AtomicU64::new(0),
            seeds: AtomicU64::new(seed),
        }
    }

    /// A seed for a request that brought none.
    pub(crate) fn next_seed(&self) -> u64 {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        mix(self.seeds.fetch_add(GOLDEN, Ordering::Relaxed))
    }

    /// A place in the queue, if there is one.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Ticket, SubmitError> {
        if let Some(cause) = self.cause_of_death.get() {
            return Err(SubmitError::EngineDead(cause.clone()));
        }
        let mut queue = self.queue();
        if queue.closed {
            return Err(SubmitError::ShuttingDown);
        }
        // Seats that the next step will fill do not count against the queue.
        let taken = queue.live - queue.queued;
        let seats = if queue.congested { 0 } else { self.info.max_num_seqs.saturating_sub(taken) };
        let limit = self.max_num_queued_reqs;
        if queue.queued >= limit.saturating_add(seats) {
            return Err(SubmitError::QueueFull { waiting: queue.queued, limit });
        }
        queue.live += 1;
        queue.queued += 1;
        Ok(Ticket { shared: Arc::clone(self), state: TicketState::Queued })
    }

    /// Accepts no further requests.
    pub(crate) fn close(&self) {
        self.queue().closed = true;
    }

    pub(crate) fn num_live(&self) -> usize {
        self.queue().live
    }

    pub(crate) fn set_congested(&self, congested: bool) {
        self.queue().congested = congested;
    }

    pub(crate) fn step_begins(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.step_started.store(now + 1, Ordering::Release);
    }

    pub(crate) fn step_ends(&self) {
        self.step_started.store(0, Ordering::Release);
    }

    /// The loop has ended or is about to; the first cause counts.
    pub(crate) fn die(&self, cause: String) {
        let _ = self.cause_of_death.set(cause);
        self.close();
    }

    pub(crate) fn cause_of_death(&self) -> Option<&str> {
        self.cause_of_death.get().map(String::as_str)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        if let Some(cause) = self.cause_of_death() {
            return Err(cause.to_owned());
        }
        let Some(started) = self.step_started.load(Ordering::Acquire).checked_sub(1) else {
            return Ok(());
        };
        let running = self.epoch.elapsed().saturating_sub(Duration::from_nanos(started));
        if running > self.step_timeout {
            return Err(format!("a step of the engine has been running for {running:.0?}"));
        }
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while holding it, and plain counters are valid in any state.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SplitMix64's finaliser: neighbouring states give unrelated numbers.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One accepted request's place in the counts of [`Shared`].
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    state: TicketState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TicketState {
    Queued,
    Admitted,
    GivenBack,
}

impl Ticket {
    /// The request is scheduled for the first time.
    pub(crate) fn admitted(&mut self) {
        if self.state == TicketState::Queued {
            self.state = TicketState::Admitted;
            self.shared.queue().queued -= 1;
        }
    }

    pub(crate) fn give_back(&mut self) {
        let before = std::mem::replace(&mut self.state, TicketState::GivenBack);
        let mut queue = self.shared.queue();
        queue.live -= usize::from(before != TicketState::GivenBack);
        queue.queued -= usize::from(before == TicketState::Queued);
    }

    pub(crate) fn cause_of_death(&self) -> String {
        self.shared.cause_of_death().unwrap_or("its loop has ended").to_owned()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_back();
    }
}
