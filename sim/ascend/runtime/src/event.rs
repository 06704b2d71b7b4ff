//! Events: points in streams.

use crate::capture::Capture;
use crate::code::Code;
use crate::runtime::Kind;
use halyard_sim_memory::{Past, Ticket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

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
