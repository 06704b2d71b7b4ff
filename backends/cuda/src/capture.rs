//! Captures under way, and graphs with the communicators whose calls are in them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use halyard_sdk::{Error, Result, Stream};

use crate::{collective::Watched, driver};

/// By stream: communicators that were called since the capture began.
#[derive(Debug, Default)]
pub(crate) struct Captures(Mutex<HashMap<Stream, Comms>>);

type Comms = Vec<Weak<Watched>>;

impl Captures {
    fn lock(&self) -> MutexGuard<'_, HashMap<Stream, Comms>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, s: Stream, stream: &driver::Stream) -> Result<()> {
        driver::Graph::begin(stream)?;
        self.lock().insert(s, Comms::new());
        Ok(())
    }

    /// Whether a call on a stream is captured; the graph knows the communicator then.
    pub(crate) fn takes(&self, s: Stream, comm: &Arc<Watched>) -> bool {
        let mut open = self.lock();
        let Some(comms) = open.get_mut(&s) else { return false };
        let new = Arc::downgrade(comm);
        if !comms.iter().any(|known| known.ptr_eq(&new)) {
            comms.push(new);
        }
        true
    }

    pub(crate) fn end(&self, s: Stream, stream: &driver::Stream) -> Result<Graph> {
        let comms = self.lock().remove(&s).unwrap_or_default();
        Ok(Graph { work: driver::Graph::end(stream)?, comms })
    }
}

/// Captured work.
#[derive(Debug)]
pub(crate) struct Graph {
    work: driver::Graph,
    comms: Comms,
}

impl Graph {
    /// Enqueues it. Communicators treat it as one call: behind their last one, and watched until its end.
    pub(crate) fn launch(&self, s: Stream, stream: &driver::Stream) -> Result<()> {
        let comms = self.comms.iter().map(Weak::upgrade).collect::<Option<Vec<_>>>();
        let comms = comms.ok_or_else(|| {
            Error::invalid("a graph with calls of a communicator that is gone".to_owned())
        })?;
        for comm in &comms {
            comm.status()?;
            comm.follow(s, stream)?;
        }
        self.work.launch(stream)?;
        comms.iter().try_for_each(|comm| comm.mark(s, stream, "a graph"))
    }
}
