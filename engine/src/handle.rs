//! The caller's side of the engine: submit a request, read its events, let go of it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc as thread_mpsc,
    },
    thread::JoinHandle,
};

use tokio::sync::mpsc;

use crate::{
    engine_loop::Message,
    request::{EngineEvent, EngineInfo, EngineRequest, SubmitError},
    sequence::{Client, Sequence},
    shared::Shared,
    validate::validate,
};

/// A cheap, cloneable handle to a running engine. When the last one is gone, the engine finishes what
/// it has accepted and ends.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    inbox: Arc<thread_mpsc::Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EngineHandle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: Arc<thread_mpsc::Sender<Message>>,
        thread: JoinHandle<()>,
    ) -> Self {
        Self { inner: Arc::new(Inner { shared, inbox, thread: Mutex::new(Some(thread)) }) }
    }

    /// Fixed facts about the engine.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.inner.shared.info
    }

    /// Hands a request to the engine. Never blocks.
    ///
    /// # Errors
    /// See [`SubmitError`]; an invalid request costs the engine nothing.
    pub fn submit(&self, request: EngineRequest) -> Result<RequestHandle, SubmitError> {
        let shared = &self.inner.shared;
        validate(&shared.info, &request)?;
        let ticket = shared.enter()?;
        let (sender, events) = mpsc::unbounded_channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let client = Client::new(sender, Arc::clone(&abandoned), ticket, request.arrival);
        let seq = Sequence::new(request, &shared.info, shared.next_seed(), client);
        match self.inner.inbox.send(Message::Add(Box::new(seq))) {
            Ok(()) => Ok(RequestHandle { events, abandoned }),
            Err(_) => Err(match shared.cause_of_death() {
                Some(cause) => SubmitError::EngineDead(cause.to_owned()),
                None => SubmitError::ShuttingDown,
            }),
        }
    }

    /// `Err` with the cause once the engine's loop has ended or makes no progress with work at hand.
    ///
    /// # Errors
    /// The cause, for people.
    pub fn health(&self) -> Result<(), String> {
        self.inner.shared.health()
    }

    /// Requests waiting or running.
    #[must_use]
    pub fn load(&self) -> usize {
        self.inner.shared.num_live()
    }

    /// Stops accepting requests; those accepted go on. Returns at once.
    pub fn begin_drain(&self) {
        self.inner.shared.close();
    }

    /// Ends every request with [`FinishReason::Aborted`](crate::FinishReason::Aborted) and the loop with it.
    /// Returns when the loop has ended.
    pub fn shutdown(&self) {
        self.inner.shared.close();
        // Fails only if the loop has ended by itself.
        let _ = self.inner.inbox.send(Message::Shutdown);
        let mut thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // The loop catches its own panics and has told everyone.
            let _ = thread.join();
        }
    }
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
