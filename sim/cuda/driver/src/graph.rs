//! Graphs: what streams were asked to do while they were capturing.
//!
//! A graph runs its work in the order of capture, which every dependency of the captured streams allows.

use crate::stream::Work;
use std::sync::{Mutex, PoisonError};

/// A capture under way, of one stream and those that joined it by its events.
#[derive(Default)]
pub(crate) struct Capture {
    work: Mutex<Vec<Work>>,
}

impl Capture {
    pub(crate) fn add(&self, work: Work) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).push(work);
    }

    pub(crate) fn finish(&self) -> Graph {
        Graph {
            work: std::mem::take(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// Captured work.
pub(crate) struct Graph {
    pub(crate) work: Vec<Work>,
}
