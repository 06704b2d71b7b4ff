//! Events: points in streams.

use crate::graph::Capture;
use halyard_sim_cuda_exec::Past;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

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
}

/// Where an event was recorded last.
#[derive(Clone)]
pub(crate) enum Recorded {
    Never,
    /// In a stream: the point, and all that happens before it.
    At(Arc<Ticket>, Past),
    /// In a stream that was capturing.
    In(Arc<Capture>),
}

pub(crate) struct Event {
    recorded: Mutex<Recorded>,
    /// Whether times may be taken between it and others.
    pub(crate) timed: bool,
}

impl Event {
    pub(crate) fn new(timed: bool) -> Self {
        Self { recorded: Mutex::new(Recorded::Never), timed }
    }

    pub(crate) fn recorded(&self) -> Recorded {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn record(&self, at: Recorded) {
        *self.recorded.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}
