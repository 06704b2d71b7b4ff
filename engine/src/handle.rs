//! The caller's side of the engine: submit a request, read its events, let go of it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::mpsc;

use crate::request::{EngineEvent, EngineInfo, EngineRequest, SubmitError};

/// A cheap, cloneable handle to a running engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    info: EngineInfo,
}

impl EngineHandle {
    /// Fixed facts about the engine.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Hands a request to the engine. Never blocks.
    ///
    /// # Errors
    /// See [`SubmitError`]; an invalid request costs the engine nothing.
    pub fn submit(&self, _request: EngineRequest) -> Result<RequestHandle, SubmitError> {
        Err(SubmitError::EngineDead("not started".into()))
    }

    /// `Err` with the cause once the engine's loop has ended or makes no progress with work at hand.
    ///
    /// # Errors
    /// The cause, for people.
    pub fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// Requests waiting or running.
    #[must_use]
    pub fn load(&self) -> usize {
        0
    }

    /// Stops accepting requests; those accepted go on. Returns at once.
    pub fn begin_drain(&self) {}

    /// Ends every request with [`FinishReason::Aborted`](crate::FinishReason::Aborted) and the loop with it.
    /// Returns when the loop has ended.
    pub fn shutdown(&self) {}
}

/// One request's stream of events. Dropping it aborts the request: its slot and blocks are free by the next step.
#[derive(Debug)]
pub struct RequestHandle {
    events: mpsc::UnboundedReceiver<EngineEvent>,
    abandoned: Arc<AtomicBool>,
}

impl RequestHandle {
    /// The next event; `None` after `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<EngineEvent> {
        self.events.recv().await
    }

    /// The same for a plain thread.
    ///
    /// # Panics
    /// If called from within an asynchronous task.
    pub fn blocking_next(&mut self) -> Option<EngineEvent> {
        self.events.blocking_recv()
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Release);
    }
}
