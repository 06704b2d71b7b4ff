//! The trait: checks a call, then runs it or keeps it for the end of the group.

use std::sync::{Mutex, MutexGuard, PoisonError};

use halyard_abi::{A2av, Code, ReduceOp, Stream, TensorView, collective};

use super::{
    Group,
    call::{Call, Kind},
    channel::Transfer,
    member::{Member, Seat},
    work::{AllToAll, Span, Work},
};
use crate::{Collective, Error, Result};

/// A rank's end of a communicator.
#[derive(Debug)]
pub(super) struct Communicator {
    member: Member,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Steps of collectives so far.
    step: u64,
    /// Calls of the open group.
    group: Group<Work>,
}

impl Communicator {
    pub(super) fn new(member: Member) -> Self {
        Self { member, state: Mutex::default() }
    }

    /// Calls are serialised by the caller; the lock costs next to nothing and holds those that are not.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(&self, work: Work) -> Result<()> {
        let state = &mut *self.state();
        self.member.check()?;
        match state.group.keep(work) {
            None => Ok(()),
            Some(mut work) => self.member.run(&mut work, &mut state.step),
        }
    }

    /// Runs a message.
    fn message(&self, view: &TensorView, peer: u32, sends: bool) -> Result<()> {
        let &Seat { rank, world, .. } = &self.member.seat;
        let bytes = collective::message(view, peer, (rank, world), self.state().group.is_open())?;
        let call = described(Kind::SEND, view);
        let transfer = Transfer::new(call, peer, sends, Span::of(view, bytes));
        self.issue(Work::Transfer(transfer))
    }
}

fn described(kind: Kind, view: &TensorView) -> Call {
    Call { dtype: view.dtype, elements: view.elements().unwrap_or(0), ..Call::bare(kind) }
}

/// The memory of two checked views.
fn spans(src: &TensorView, dst: &TensorView) -> Result<(Span, Span)> {
    let span = |what, view| Ok(Span::of(view, collective::contiguous_bytes(what, view)?));
    Ok((span("src", src)?, span("dst", dst)?))
}

impl Collective for Communicator {
    fn all_reduce(
        &self,
        _: Stream,
        src: &TensorView,
        dst: &TensorView,
        op: ReduceOp,
    ) -> Result<()> {
        collective::all_reduce(src, dst, op)?;
        let call = Call { op, ..described(Kind::ALL_REDUCE, src) };
        let (src, dst) = spans(src, dst)?;
        self.issue(Work::Reduce { call, src, dst })
    }

    fn all_gather(&self, _: Stream, src: &TensorView, dst: &TensorView) -> Result<()> {
        let seat = &self.member.seat;
        collective::all_gather(src, dst, seat.rank, seat.world)?;
        let call = described(Kind::ALL_GATHER, src);
        let (src, dst) = spans(src, dst)?;
        self.issue(Work::Gather { call, src, dst })
    }

    fn reduce_scatter(
        &self,
        _: Stream,
        src: &TensorView,
        dst: &TensorView,
        op: ReduceOp,
    ) -> Result<()> {
        let seat = &self.member.seat;
        collective::reduce_scatter(src, dst, op, seat.rank, seat.world)?;
        let call = Call { op, ..described(Kind::REDUCE_SCATTER, dst) };
        let (src, dst) = spans(src, dst)?;
        self.issue(Work::Scatter { call, src, dst })
    }

    fn broadcast(&self, _: Stream, buf: &TensorView, root: u32) -> Result<()> {
        collective::member("root", root, self.member.seat.world)?;
        let bytes = collective::contiguous_bytes("buf", buf)?;
        let call = Call { root, ..described(Kind::BROADCAST, buf) };
        self.issue(Work::Broadcast { call, buf: Span::of(buf, bytes) })
    }

    fn all_to_all_v(&self, _: Stream, a: &A2av<'_>) -> Result<()> {
        let row_bytes = collective::all_to_all_v(a, self.member.seat.world)?;
        let bits = u64::from(a.send.dtype.bits().unwrap_or(8));
        let elements = row_bytes * 8 / bits;
        let call = Call { elements, ..described(Kind::ALL_TO_ALL, &a.send) };
        self.issue(Work::AllToAll(AllToAll::new(a, call, row_bytes)))
    }

    fn send(&self, _: Stream, src: &TensorView, peer: u32) -> Result<()> {
        self.message(src, peer, true)
    }

    fn recv(&self, _: Stream, dst: &TensorView, peer: u32) -> Result<()> {
        self.message(dst, peer, false)
    }

    fn group_begin(&self) -> Result<()> {
        let mut state = self.state();
        self.member.check()?;
        state.group.begin()
    }

    /// First the group's collectives, in their order, then its messages, all at once.
    fn group_end(&self) -> Result<()> {
        let state = &mut *self.state();
        let group = state.group.end()?;
        let mut messages = Vec::new();
        for mut work in group {
            match work {
                Work::Transfer(message) => messages.push(message),
                _ => self.member.run(&mut work, &mut state.step)?,
            }
        }
        self.member.transfer(&mut messages)
    }

    fn barrier(&self, _: Stream) -> Result<()> {
        self.issue(Work::Barrier)
    }

    fn status(&self) -> Result<()> {
        self.member.check()
    }

    fn abort(&self) -> Result<()> {
        self.member.abort();
        Ok(())
    }

    fn split(&self, color: i32, key: i32) -> Result<Box<dyn Collective>> {
        let state = &mut *self.state();
        state.group.check_split()?;
        Ok(match self.member.split(&mut state.step, color, key)? {
            Some((id, seat)) => Box::new(Self::new(Member::join(&id, seat)?)),
            None => outsider(),
        })
    }
}

/// What a rank without a color gets from a split: a communicator without ranks, whose every call is `INVALID_ARGUMENT`.
#[must_use]
pub fn outsider() -> Box<dyn Collective> {
    Box::new(Outsider)
}

/// A member of no communicator.
#[derive(Debug)]
struct Outsider;

impl Outsider {
    fn refuse() -> Result<()> {
        let message = "this rank split off without a color: it is in no communicator";
        Err(Error::new(Code::INVALID_ARGUMENT, message))
    }
}

impl Collective for Outsider {
    fn all_reduce(&self, _: Stream, _: &TensorView, _: &TensorView, _: ReduceOp) -> Result<()> {
        Self::refuse()
    }
    fn all_gather(&self, _: Stream, _: &TensorView, _: &TensorView) -> Result<()> {
        Self::refuse()
    }
    fn reduce_scatter(&self, _: Stream, _: &TensorView, _: &TensorView, _: ReduceOp) -> Result<()> {
        Self::refuse()
    }
    fn broadcast(&self, _: Stream, _: &TensorView, _: u32) -> Result<()> {
        Self::refuse()
    }
    fn all_to_all_v(&self, _: Stream, _: &A2av<'_>) -> Result<()> {
        Self::refuse()
    }
    fn send(&self, _: Stream, _: &TensorView, _: u32) -> Result<()> {
        Self::refuse()
    }
    fn recv(&self, _: Stream, _: &TensorView, _: u32) -> Result<()> {
        Self::refuse()
    }
    fn group_begin(&self) -> Result<()> {
        Self::refuse()
    }
    fn group_end(&self) -> Result<()> {
        Self::refuse()
    }
    fn barrier(&self, _: Stream) -> Result<()> {
        Self::refuse()
    }
    fn status(&self) -> Result<()> {
        Self::refuse()
    }
    fn abort(&self) -> Result<()> {
        Self::refuse()
    }
}
