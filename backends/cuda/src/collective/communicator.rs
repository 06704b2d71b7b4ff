//! The trait: checks a call, then enqueues it or keeps it for the end of the group.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use halyard_sdk::{
    A2av, Collective, Error, ReduceOp, Result, Stream, TensorView,
    abi::collective,
    comm::{Group, outsider},
    vendor::Health,
};

use super::{
    Watched,
    call::Call,
    combine::{Combine, Issue},
    rank::Rank,
};
use crate::{
    device::Shared,
    driver,
    nccl::{Comm, Move},
};

/// How long a communicator that is given back may take to end its work.
const GOODBYE: Duration = Duration::from_secs(5);

/// A rank's end of a communicator.
pub(super) struct Communicator {
    watched: Arc<Watched>,
    rank: u32,
    world: u32,
    /// None once it is dropped.
    combine: Option<Combine>,
    state: Mutex<State>,
    watch: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// Calls of the open group.
    group: Group<(Stream, Call)>,
}

impl Communicator {
    /// The device's context is bound.
    pub(super) fn new(shared: &Arc<Shared>, health: Health, comm: Comm) -> Result<Self> {
        let (rank, world) = (health.control.rank(), health.control.world());
        let watched = Arc::new(Watched::new(health, Rank { shared: Arc::clone(shared), comm }));
        let combine = Combine::new(shared, world)?;
        let stream = shared.stream(Stream::NONE)?;
        // SAFETY: the word is memory of ours.
        unsafe { driver::fill(&stream, combine.word(), 0, 1) }?;
        stream.synchronize()?;
        let watch = Some(watched.watch("cuda-collective")?);
        let state = Mutex::default();
        Ok(Self { watched, rank, world, combine: Some(combine), state, watch })
    }

    /// Calls are serialised by the host; the lock holds those that are not.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues a call, or keeps it for the end of the group.
    fn issue(&self, s: Stream, call: Call) -> Result<()> {
        let state = &mut *self.state();
        self.watched.health.control.status()?;
        let Some((s, call)) = state.group.keep((s, call)) else { return Ok(()) };
        self.enqueue(s, call.name(), |combine, on, issue| call.enqueue(combine, on, issue))
    }

    /// Runs `work` in the order of a stream, behind this communicator's last call.
    fn enqueue(
        &self,
        s: Stream,
        what: &'static str,
        work: impl FnOnce(&Combine, &driver::Stream, Issue<'_>) -> Result<()>,
    ) -> Result<()> {
        let watched = &self.watched;
        let _bound = watched.link.shared.bind()?;
        let stream = watched.link.shared.stream(s)?;
        // The graph is what is ordered and watched, each time that it is launched.
        let captured = watched.link.shared.captures.takes(s, watched);
        if !captured {
            watched.follow(s, &stream)?;
        }
        let issue = |moves: &[Move]| {
            // SAFETY: the addresses are of views that were checked, which the host keeps until the work is done, and of scratch
            // memory, which lives as long as this.
            unsafe { watched.link.comm.issue(moves, &stream, watched.health.patience(what)) }
        };
        let combine = self.combine.as_ref().ok_or_else(|| Error::invalid("it is closed"))?;
        if let Err(error) = work(combine, &stream, &issue) {
            let first = watched.health.fail(&error);
            watched.link.comm.abort();
            return Err(first);
        }
        if captured { Ok(()) } else { watched.mark(s, &stream, what) }
    }

    fn message(&self, s: Stream, view: &TensorView, peer: u32, call: Call) -> Result<()> {
        let place = (self.rank, self.world);
        collective::message(view, peer, place, self.state().group.is_open())?;
        self.issue(s, call)
    }
}

impl Collective for Communicator {
    fn all_reduce(
        &self,
        s: Stream,
        src: &TensorView,
        dst: &TensorView,
        op: ReduceOp,
    ) -> Result<()> {
        collective::all_reduce(src, dst, op)?;
        self.issue(s, Call::all_reduce(src, dst, op))
    }

    fn all_gather(&self, s: Stream, src: &TensorView, dst: &TensorView) -> Result<()> {
        collective::all_gather(src, dst, self.rank, self.world)?;
        self.issue(s, Call::all_gather(src, dst))
    }

    fn reduce_scatter(
        &self,
        s: Stream,
        src: &TensorView,
        dst: &TensorView,
        op: ReduceOp,
    ) -> Result<()> {
        collective::reduce_scatter(src, dst, op, self.rank, self.world)?;
        self.issue(s, Call::reduce_scatter(src, dst, op))
    }

    fn broadcast(&self, s: Stream, buf: &TensorView, root: u32) -> Result<()> {
        collective::member("root", root, self.world)?;
        collective::contiguous_bytes("buf", buf)?;
        self.issue(s, Call::broadcast(buf, root))
    }

    fn all_to_all_v(&self, s: Stream, a: &A2av<'_>) -> Result<()> {
        let row_bytes = collective::all_to_all_v(a, self.world)?;
        self.issue(s, Call::all_to_all_v(a, row_bytes, self.world))
    }

    fn send(&self, s: Stream, src: &TensorView, peer: u32) -> Result<()> {
        self.message(s, src, peer, Call::send(src, peer))
    }

    fn recv(&self, s: Stream, dst: &TensorView, peer: u32) -> Result<()> {
        self.message(s, dst, peer, Call::recv(dst, peer))
    }

    fn group_begin(&self) -> Result<()> {
        let mut state = self.state();
        self.watched.health.control.status()?;
        state.group.begin()
    }

    fn group_end(&self) -> Result<()> {
        let state = &mut *self.state();
        let group = state.group.end()?;
        self.watched.health.control.status()?;
        let (mut messages, mut stream) = (Vec::new(), None);
        for (s, call) in group {
            let Call::Message(message) = call else {
                self.enqueue(s, call.name(), |c, on, issue| call.enqueue(c, on, issue))?;
                continue;
            };
            if stream.is_some_and(|other| other != s) {
                return Err(Error::unsupported("messages of one group on several streams"));
            }
            stream = Some(s);
            messages.push(message);
        }
        let Some(s) = stream else { return Ok(()) };
        self.enqueue(s, "a group of messages", |_, _, issue| issue(&messages))
    }

    fn barrier(&self, s: Stream) -> Result<()> {
        self.issue(s, Call::Barrier)
    }

    fn status(&self) -> Result<()> {
        self.watched.status()
    }

    fn abort(&self) -> Result<()> {
        self.watched.abort();
        Ok(())
    }

    fn split(&self, color: i32, key: i32) -> Result<Box<dyn Collective>> {
        let state = self.state();
        state.group.check_split()?;
        let watched = &self.watched;
        let control = watched.health.control.split(color, key)?;
        let _bound = watched.link.shared.bind()?;
        let part = watched.link.comm.split(color, key, watched.health.patience("split"));
        match (control, part.map_err(|error| watched.health.fail(&error))?) {
            (Some(control), Some(comm)) => {
                Ok(Box::new(Self::new(&watched.link.shared, Health::new(control), comm)?))
            }
            (None, None) => Ok(outsider()),
            _ => Err(watched.health.control.fail("NCCL and the control split in different ways")),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.watched.close();
        if let Some(watch) = self.watch.take()
            && watch.join().is_err()
        {
            tracing::error!("the watch over a communicator panicked");
        }
        let Ok(_bound) = self.watched.link.shared.bind() else { return };
        match self.watched.health.control.status() {
            Ok(()) => self.watched.link.comm.close(GOODBYE),
            Err(_) => self.watched.link.comm.abort(),
        }
        // An abort lets the streams go on: what still runs ends before its memory goes.
        if let Err(error) = self.watched.wait_for_last() {
            tracing::debug!(%error, "work of a device that failed");
        }
        self.watched.clear();
        self.combine = None;
    }
}
