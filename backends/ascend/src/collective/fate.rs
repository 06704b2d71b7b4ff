//! Why a stream failed: the runtime names a task, and the cause is a communicator's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use halyard_sdk::{Code, Error, Stream, vendor::Watched};

use super::rank::Rank;

/// The communicators of a device, and streams that ended with one.
#[derive(Debug, Default)]
pub(crate) struct Fates(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    alive: Vec<Weak<Watched<Rank>>>,
    /// Of communicators that are gone: what each stream's next failure means.
    ended: HashMap<Stream, Error>,
}

impl Fates {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, comm: &Arc<Watched<Rank>>) {
        let mut known = self.known();
        known.alive.retain(|one| one.strong_count() > 0);
        known.alive.push(Arc::downgrade(comm));
    }

    /// Keeps how a communicator that goes ended its streams.
    pub(super) fn remember(&self, streams: Vec<Stream>, error: &Error) {
        self.known().ended.extend(streams.into_iter().map(|s| (s, error.clone())));
    }

    /// Forgets a stream that goes.
    pub(crate) fn forget(&self, s: Stream) {
        self.known().ended.remove(&s);
    }

    /// The cause of a stream's failure, if that is a communicator.
    pub(crate) fn cause(&self, s: Stream, error: Error) -> Error {
        if [Code::NOT_READY, Code::UNSUPPORTED, Code::INVALID_ARGUMENT].contains(&error.code) {
            return error;
        }
        let comms: Vec<_> = {
            let mut known = self.known();
            if let Some(cause) = known.ended.remove(&s) {
                return cause;
            }
            known.alive.iter().filter_map(Weak::upgrade).collect()
        };
        let ended = comms.iter().filter(|comm| comm.link.used(s));
        ended.filter_map(|comm| comm.status().err()).next().unwrap_or(error)
    }
}
