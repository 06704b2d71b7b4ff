//! Events: points in streams.

use crate::graph::Capture;
use halyard_sim_cuda_exec::{Past, Ticket};
use std::sync::{Arc, Mutex, PoisonError};

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
