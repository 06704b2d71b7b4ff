//! Points of a stream's work.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A point in a stream that work has reached or not.
#[derive(Debug, Default)]
pub struct Ticket {
    reached: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Ticket {
    /// Work has come here; only the first time counts.
    pub fn reach(&self) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// When it was reached.
    #[must_use]
    pub fn time(&self) -> Option<Instant> {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is reached.
    pub fn wait(&self) {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(reached, |reached| reached.is_none()));
    }

    /// Whether it was reached in time; without a bound it always is.
    #[must_use]
    pub fn wait_for(&self, bound: Option<Duration>) -> bool {
        let Some(bound) = bound else {
            self.wait();
            return true;
        };
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(reached, bound, |reached| reached.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_some()
    }
}
