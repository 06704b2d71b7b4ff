//! A rank's part of HCCL, as the watch over its calls sees it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use halyard_sdk::{
    Code, Error, Result, Stream,
    vendor::{Health, Link, Mark},
};

use super::preflight;
use crate::{
    device::Shared,
    driver::{
        self, Bound, Event,
        hccl::{Comm, RootInfo},
    },
};

/// How often a wait for HCCL's own joining looks whether it has become pointless.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) struct Rank {
    pub(super) shared: Arc<Shared>,
    pub(super) comm: Comm,
    /// Streams on which it was called.
    streams: Mutex<Vec<(Stream, Arc<driver::Stream>)>>,
    is_aborted: AtomicBool,
}

impl Rank {
    pub(super) fn new(shared: &Arc<Shared>, comm: Comm) -> Self {
        let (streams, is_aborted) = Default::default();
        Self { shared: Arc::clone(shared), comm, streams, is_aborted }
    }

    /// HCCL's joining cannot be ended from outside, and waits at least two minutes: it has a thread, which outlives a wait that is over.
    pub(super) fn join(shared: &Arc<Shared>, health: &Health, info: RootInfo) -> Result<Comm> {
        let (rank, world) = (health.control.rank(), health.control.world());
        let (done, joined) = mpsc::channel();
        let device = Arc::clone(shared);
        let spawned = thread::Builder::new().name("ascend-join".into()).spawn(move || {
            let bound = device.bind();
            let outcome = bound.as_ref().map_err(Clone::clone);
            let outcome = outcome.and_then(|_| Comm::join(&info, rank, world));
            if let Err(mpsc::SendError(Ok(comm))) = done.send(outcome) {
                comm.close();
            }
        });
        spawned.map_err(|e| Error::new(Code::INTERNAL, format!("no thread to join: {e}")))?;
        let patience = health.patience("joining");
        loop {
            match joined.recv_timeout(LOOK) {
                Ok(outcome) => {
                    return outcome.map_err(|error| health.fail(&preflight::explain(&error)));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => patience()?,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(Code::INTERNAL, "the thread that joins panicked"));
                }
            }
        }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<(Stream, Arc<driver::Stream>)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that it is called on a stream.
    pub(super) fn uses(&self, s: Stream, on: &Arc<driver::Stream>) {
        let mut streams = self.streams();
        if !streams.iter().any(|(known, _)| *known == s) {
            streams.push((s, Arc::clone(on)));
        }
    }

    /// Whether it was called on a stream.
    pub(super) fn used(&self, s: Stream) -> bool {
        self.streams().iter().any(|(known, _)| *known == s)
    }

    /// Forgets its streams; their names.
    pub(super) fn forget_streams(&self) -> Vec<Stream> {
        std::mem::take(&mut *self.streams()).into_iter().map(|(s, _)| s).collect()
    }
}

impl Link for Rank {
    type Mark = Event;
    type Bound<'a> = Bound<'a>;

    fn bind(&self) -> Result<Bound<'_>> {
        self.shared.bind()
    }

    fn mark(&self) -> Result<Event> {
        Event::create(self.shared.driver(), false)
    }

    fn check(&self) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.comm.check()
    }

    /// HCCL has no abort: what waits for other ranks ends with the streams that it is on.
    fn abort(&self) {
        if self.is_aborted.swap(true, Ordering::SeqCst) {
            return;
        }
        let Ok(_bound) = self.shared.bind() else { return };
        for (_, stream) in &*self.streams() {
            if let Err(error) = stream.abort() {
                tracing::warn!(%error, "a stream of a communicator that ended");
            }
        }
    }
}

impl Mark for Event {
    type Stream = driver::Stream;

    fn record(&self, on: &driver::Stream) -> Result<()> {
        Self::record(self, on)
    }

    fn hold(&self, on: &driver::Stream) -> Result<()> {
        Self::hold(self, on)
    }

    fn query(&self) -> Result<()> {
        Self::query(self)
    }

    fn synchronize(&self) -> Result<()> {
        Self::synchronize(self)
    }
}
