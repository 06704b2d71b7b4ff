//! Events: points in streams.

use crate::capture::Capture;
use crate::code::Code;
use crate::runtime::Kind;
use halyard_sim_memory::Past;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A point in a stream that work has reached or not.
#[derive(Default)]
pub(crate) struct Ticket {
    reached: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Ticket {
    pub(crate) fn reach(&self) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    pub(crate) fn time(&self) -> Option<Instant> {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait(&self) {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(reached, |reached| reached.is_none()));
    }

    /// Whether it was reached in time; without a bound it always is.
    pub(crate) fn wait_for(&self, bound: Option<Duration>) -> bool {
        let Some(bound) = bound else {
            self.wait();
            return true;
        };
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(reached, bound, |reached| reached.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_some()
    }
}

/// Where an event was recorded last.
#[derive(Clone)]
pub(crate) enum Recorded {
    Never,
    /// In a stream: the point, and all that happens before it.
    At(Arc<Ticket>, Past),
    /// In a stream that was capturing: which of the capture's operations happen before it.
    In(Arc<Capture>, Past),
}

/// `ACL_EVENT_TIME_LINE`
pub(crate) const TIME_LINE: u32 = 0x8;
/// `ACL_EVENT_EXTERNAL`
pub(crate) const EXTERNAL: u32 = 0x20;
/// All flags that are known.
pub(crate) const KNOWN_FLAGS: u32 = 0x1 | 0x2 | TIME_LINE | 0x10 | EXTERNAL | 0x40;

pub(crate) struct Event {
    recorded: Mutex<Recorded>,
    pub(crate) flags: u32,
    /// Of an event that graphs use as it is when they run: whether it is set.
    external: (Mutex<bool>, Condvar),
}

impl Kind for Event {
    const NAME: &'static str = "event";
    const BAD: Code = Code::HANDLE;
}

impl Event {
    pub(crate) fn new(flags: u32) -> Self {
        Self { recorded: Mutex::new(Recorded::Never), flags, external: Default::default() }
    }

    /// Whether a graph uses it when it runs, rather than while it is captured.
    pub(crate) fn is_external(&self) -> bool {
        self.flags & EXTERNAL != 0
    }

    pub(crate) fn recorded(&self) -> Recorded {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn record(&self, at: Recorded) {
        *self.recorded.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Sets or resets what a graph waits for.
    pub(crate) fn set(&self, value: bool) {
        *self.external.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.external.1.notify_all();
    }

    /// Waits until it is set; false if that took longer than `bound`.
    pub(crate) fn await_set(&self, bound: Duration) -> bool {
        let set = self.external.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.external.1.wait_timeout_while(set, bound, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
