//! The trait: checks a call, then enqueues it or keeps it for the end of the group.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use halyard_sdk::{
    A2av, Collective, Error, ReduceOp, Result, Stream, TensorView,
    abi::collective,
    comm::{Group, outsider},
    vendor::{Health, Link as _, Plane, Watched},
};

use super::{
    call::Call,
    combine::{Combine, Ways, wait},
    fresh_info, preflight,
    rank::Rank,
};
use crate::{
    device::Shared,
    driver::{
        self,
        hccl::{Comm, Elements, Message, Move, RootInfo, rounds},
    },
};

/// A rank's end of a communicator.
pub(super) struct Communicator {
    watched: Arc<Watched<Rank>>,
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
    /// Joins HCCL's communicator as the rank that the control says.
    pub(super) fn join(shared: &Arc<Shared>, health: Health, info: RootInfo) -> Result<Self> {
        let (rank, world) = (health.control.rank(), health.control.world());
        let comm = Rank::join(shared, &health, info)?;
        if world > 1 {
            let met = meet(shared, &health, &comm);
            met.map_err(|error| {
                comm.close();
                health.fail(&preflight::explain(&error))
            })?;
        }
        let watched = Arc::new(Watched::new(health, Rank::new(shared, comm)));
        let combine = {
            let _bound = shared.bind()?;
            Some(Combine::new(shared, world)?)
        };
        shared.fates.add(&watched);
        let watch = Some(watched.watch("ascend-collective")?);
        Ok(Self { watched, rank, world, combine, state: Mutex::default(), watch })
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
        self.enqueue(s, call.name(), |combine, ways| call.enqueue(combine, ways))
    }

    /// Runs `work` in the order of a stream, behind this communicator's last call.
    fn enqueue(
        &self,
        s: Stream,
        what: &'static str,
        work: impl FnOnce(&Combine, &Ways<'_>) -> Result<()>,
    ) -> Result<()> {
        let Watched { health, link, .. } = &*self.watched;
        let _bound = link.shared.bind()?;
        let stream = link.shared.stream(s)?;
        link.uses(s, &stream);
        self.watched.follow(s, &stream)?;
        let issue = |call: &Move| {
            // SAFETY: the addresses are of views that were checked, which the host keeps until the work is done, and of scratch
            // memory, which lives as long as this.
            unsafe { link.comm.issue(call, &stream) }
        };
        let patience = health.patience(what);
        let ways = Ways { on: &stream, issue: &issue, patience: &patience };
        let combine = self.combine.as_ref().ok_or_else(|| Error::invalid("it is closed"))?;
        if let Err(error) = work(combine, &ways) {
            let first = health.fail(&error);
            link.abort();
            return Err(first);
        }
        self.watched.mark(s, &stream, what)
    }

    fn message(&self, s: Stream, view: &TensorView, peer: u32, call: Call) -> Result<()> {
        let in_group = self.state().group.is_open();
        collective::message(view, peer, (self.rank, self.world), in_group)?;
        self.issue(s, call)
    }

    /// Messages of a group: those to itself are copies.
    fn exchange(&self, messages: &[Message], ways: &Ways<'_>) -> Result<()> {
        let (own, others): (Vec<Message>, Vec<Message>) =
            messages.iter().partition(|m| m.peer == self.rank);
        let (sent, received): (Vec<Message>, Vec<Message>) = own.into_iter().partition(|m| m.sends);
        if sent.len() != received.len() {
            let (sent, received) = (sent.len(), received.len());
            return Err(Error::invalid(format!(
                "{sent} messages to itself in a group, and {received} from itself"
            )));
        }
        for (from, to) in sent.iter().zip(&received) {
            if from.bytes != to.bytes {
                return Err(Error::invalid(format!(
                    "a message of {} bytes to itself, expected {}",
                    from.bytes, to.bytes
                )));
            }
            let plane = |start| Plane { start, on_host: false, pitch: 0 };
            if from.bytes > 0 {
                // SAFETY: both views were checked, and the host keeps them until the stream has reached this point.
                unsafe { driver::copy(ways.on, plane(to.at), plane(from.at), from.bytes, 1) }?;
            }
        }
        rounds(&others).into_iter().try_for_each(|round| ways.issue(&Move::Batch(round)))
    }

    /// What every rank shows, by rank; all show as many bytes.
    fn show(&self, mine: &[u8]) -> Result<Vec<u8>> {
        let (bytes, world) = (mine.len(), self.world as usize);
        let mut shown = vec![0; bytes * world];
        let plane = |start, on_host| Plane { start, on_host, pitch: 0 };
        self.enqueue(Stream::NONE, "split", |combine, ways| {
            // Parts begin where operators could read them, too.
            let dst = combine.parts();
            let src = dst + (bytes * world).next_multiple_of(256) as u64;
            let (host, own) = (plane(mine.as_ptr() as u64, true), plane(src, false));
            // SAFETY: both have so many bytes, and live until the wait below is over.
            unsafe { driver::copy(ways.on, own, host, bytes as u64, 1) }?;
            let elements = Elements::of(halyard_sdk::DType::U8, bytes as u64);
            ways.issue(&Move::AllGather { src, dst, elements })?;
            let (all, host) = (plane(dst, false), plane(shown.as_mut_ptr() as u64, true));
            // SAFETY: as above.
            unsafe { driver::copy(ways.on, host, all, shown.len() as u64, 1) }?;
            ways.wait()
        })?;
        Ok(shown)
    }
}

/// Waits until all ranks have joined HCCL's communicator: links are made, and nobody ends it while others still join.
fn meet(shared: &Shared, health: &Health, comm: &Comm) -> Result<()> {
    let _bound = shared.bind()?;
    let stream = driver::Stream::create(shared.driver())?;
    // SAFETY: it has no memory.
    let issued = unsafe { comm.issue(&Move::Barrier, &stream) };
    let met = issued.and_then(|()| wait(&stream, &health.patience("joining")));
    if met.is_err() {
        // Else the stream's end would wait for it.
        stream.abort()?;
    }
    met
}

/// What a rank shows of its part in a split: color, whether it leads, and the id that the leader offers.
struct Offer;

impl Offer {
    const BYTES: usize = 8 + RootInfo::BYTES;

    fn to_bytes(color: i32, info: Option<&RootInfo>) -> Vec<u8> {
        let mut bytes = color.to_le_bytes().to_vec();
        bytes.extend(u32::from(info.is_some()).to_le_bytes());
        bytes.extend(info.map_or(&[][..], |info| info.bytes()));
        bytes.resize(Self::BYTES, 0);
        bytes
    }

    /// What the leader of this color offers.
    fn of(shown: &[u8], color: i32) -> Option<RootInfo> {
        let mut head = color.to_le_bytes().to_vec();
        head.extend(1u32.to_le_bytes());
        let offer = shown.chunks_exact(Self::BYTES).find(|offer| offer.starts_with(&head))?;
        offer[8..].try_into().ok().map(RootInfo::from_bytes)
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
        self.issue(s, Call::all_to_all_v(a, row_bytes))
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
                self.enqueue(s, call.name(), |combine, ways| call.enqueue(combine, ways))?;
                continue;
            };
            if stream.is_some_and(|other| other != s) {
                return Err(Error::unsupported("messages of one group on several streams"));
            }
            stream = Some(s);
            messages.push(message);
        }
        let Some(s) = stream else { return Ok(()) };
        self.enqueue(s, "a group of messages", |_, ways| self.exchange(&messages, ways))
    }

    fn barrier(&self, s: Stream) -> Result<()> {
        self.issue(s, Call::barrier())
    }

    fn status(&self) -> Result<()> {
        self.watched.status()
    }

    fn abort(&self) -> Result<()> {
        self.watched.abort();
        Ok(())
    }

    /// The first rank of each part offers an id of HCCL's, and all ranks see all offers.
    fn split(&self, color: i32, key: i32) -> Result<Box<dyn Collective>> {
        let state = self.state();
        state.group.check_split()?;
        let Watched { health, link, .. } = &*self.watched;
        let control = health.control.split(color, key)?;
        let leads = control.as_ref().is_some_and(|control| control.rank() == 0);
        let offered = leads.then(|| fresh_info(&link.shared)).transpose();
        let offered = offered.map_err(|error| health.fail(&error))?;
        let shown = self.show(&Offer::to_bytes(color, offered.as_ref()))?;
        let Some(control) = control else { return Ok(outsider()) };
        let info = Offer::of(&shown, color)
            .ok_or_else(|| health.control.fail("a part of a split has no leader"))?;
        Ok(Box::new(Self::join(&link.shared, Health::new(control), info)?))
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
        let Watched { health, link, .. } = &*self.watched;
        let Ok(_bound) = link.shared.bind() else { return };
        let streams = match health.control.status() {
            // A communicator is given back when its work is done.
            Ok(()) => self.watched.wait_for_last().map(|()| None),
            Err(error) => Ok(Some(error)),
        };
        match streams {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                // What the streams had of it ends now, if it did not before.
                link.abort();
                link.shared.fates.remember(link.forget_streams(), &error);
            }
        }
        link.comm.close();
        self.watched.clear();
        self.combine = None;
    }
}
