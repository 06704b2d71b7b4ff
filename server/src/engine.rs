//! The seam to the engine: as much of it as the API needs.

use std::{fmt, pin::Pin};

use futures_util::{Stream, StreamExt, stream};
use halyard_engine::{EngineEvent, EngineHandle, EngineInfo, EngineRequest, SubmitError};

/// The events of one request. Dropping it aborts the request.
pub type Events = Pin<Box<dyn Stream<Item = EngineEvent> + Send>>;

/// A running engine. A trait so that the API can be driven by a scripted one.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Fixed facts.
    fn info(&self) -> &EngineInfo;
    /// Hands over a request; never blocks.
    ///
    /// # Errors
    /// See [`SubmitError`].
    fn submit(&self, request: EngineRequest) -> Result<Events, SubmitError>;
    /// `Err` with the cause once the engine is dead or stuck.
    ///
    /// # Errors
    /// The cause, for people.
    fn health(&self) -> Result<(), String>;
    /// Requests waiting or running.
    fn load(&self) -> usize;
    /// Stops accepting requests; returns at once.
    fn begin_drain(&self);
    /// Ends every request and the engine; returns when it has ended.
    fn shutdown(&self);
}

impl Engine for EngineHandle {
    fn info(&self) -> &EngineInfo {
        self.info()
    }

    fn submit(&self, request: EngineRequest) -> Result<Events, SubmitError> {
        let handle = self.submit(request)?;
        let next = async |mut handle: halyard_engine::RequestHandle| {
            let event = handle.next().await?;
            Some((event, handle))
        };
        // Fused: a request whose stream broke off is asked once more.
        Ok(Box::pin(stream::unfold(handle, next).fuse()))
    }

    fn health(&self) -> Result<(), String> {
        self.health()
    }

    fn load(&self) -> usize {
        self.load()
    }

    fn begin_drain(&self) {
        self.begin_drain();
    }

    fn shutdown(&self) {
        self.shutdown();
    }
}
