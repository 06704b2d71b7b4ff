//! What calls enqueue: copies to pinned memory, the exchange there, copies back.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use halyard_sim_cuda_calls::{Pinned, Stream};

use crate::{
    call::Call,
    comm::{Comm, Member},
    fault,
    result::{Failure, Outcome},
};

/// Alignment of what several messages have in one memory.
const ALIGN: u64 = 256;

/// Pinned memory by stream. A stream's work is ordered, so its next call may use the same.
#[derive(Default)]
pub(crate) struct Streams {
    by_stream: HashMap<Stream, Pinned>,
    /// Memory that was too small; work under way may still use it.
    outgrown: Vec<Pinned>,
}

impl Streams {
    fn room(&mut self, stream: Stream, bytes: u64) -> Outcome<u64> {
        if let Some(pinned) = self.by_stream.get(&stream).filter(|p| p.bytes() >= bytes) {
            return Ok(pinned.start());
        }
        let fresh = Pinned::alloc(bytes.next_power_of_two().max(4096))?;
        let start = fresh.start();
        self.outgrown.extend(self.by_stream.insert(stream, fresh));
        Ok(start)
    }

    /// All of the memory, to be freed.
    pub(crate) fn take(&mut self) -> Vec<Pinned> {
        let mut all = std::mem::take(&mut self.outgrown);
        all.extend(self.by_stream.drain().map(|(_, pinned)| pinned));
        all
    }
}

/// Enqueues calls that belong together: collectives in their order, then all messages at once, as they do not wait for each other.
pub(crate) fn issue(comm: &Arc<Comm>, calls: &[Call]) -> Outcome {
    let Some(first) = calls.first() else { return Ok(()) };
    if calls.iter().any(|c| c.stream != first.stream) {
        return Err(Failure::usage("the software NCCL wants one stream a communicator and group"));
    }
    let member = comm.member()?;
    member.collective.status()?;
    let (messages, collectives): (Vec<Call>, Vec<Call>) =
        calls.iter().partition(|c| c.is_message());
    comm.place.within(|| {
        let capturing = first.stream.is_capturing()?;
        for call in collectives {
            enqueue(comm, &member, vec![call], capturing)?;
        }
        if messages.is_empty() { Ok(()) } else { enqueue(comm, &member, messages, capturing) }
    })
}

/// Enqueues one collective, or messages.
fn enqueue(comm: &Arc<Comm>, member: &Member, calls: Vec<Call>, capturing: bool) -> Outcome {
    let (rank, world) = (member.rank, member.world);
    let mut bytes = 0;
    let mut offsets = Vec::with_capacity(calls.len());
    for call in &calls {
        offsets.push(bytes);
        bytes += call.bytes(world).next_multiple_of(ALIGN);
    }
    let stream = calls[0].stream;
    // Held until all is enqueued: turns are in the order of the streams' work.
    let mut streams = comm.streams.lock().unwrap_or_else(PoisonError::into_inner);
    let start = streams.room(stream, bytes)?;
    let placed: Vec<(Call, u64)> =
        calls.into_iter().zip(offsets.into_iter().map(|o| start + o)).collect();
    for (call, at) in &placed {
        let (offset, bytes) = call.input(rank, world);
        stream.copy(at + offset, call.send, bytes)?;
    }
    let called = if capturing {
        stream.call_again(again(comm, member, placed.clone()))
    } else {
        stream.call(once(comm, member, placed.clone()))
    };
    if let Err(failure) = called.map_err(Failure::from) {
        comm.fail(failure.clone());
        return Err(failure);
    }
    for (call, at) in &placed {
        let (offset, bytes) = call.output(rank, world);
        stream.copy(call.recv, at + offset, bytes)?;
    }
    Ok(())
}

/// The exchange of what is enqueued now, in its turn.
fn once(comm: &Arc<Comm>, member: &Member, placed: Vec<(Call, u64)>) -> Box<dyn FnOnce() + Send> {
    let (comm, member) = (Arc::clone(comm), member.clone());
    let turn = comm.turns.take();
    Box::new(move || {
        if let Err(failure) = comm.turns.run(turn, &member, || run(&comm, &member, &placed)) {
            comm.fail(failure);
        }
    })
}

/// The exchange of each launch of a graph: when its stream comes to it, as its place among other streams' is not known before.
fn again(
    comm: &Arc<Comm>,
    member: &Member,
    placed: Vec<(Call, u64)>,
) -> Box<dyn Fn() + Send + Sync> {
    // The graph does not keep the communicator.
    let (comm, member) = (Arc::downgrade(comm), member.clone());
    Box::new(move || {
        let Some(comm) = comm.upgrade() else { return };
        if let Err(failure) = comm.turns.between(&member, || run(&comm, &member, &placed)) {
            comm.fail(failure);
        }
    })
}

fn run(comm: &Comm, member: &Member, placed: &[(Call, u64)]) -> Outcome {
    let Member { collective, rank, world } = member;
    fault::check(*rank, comm.exchanges.fetch_add(1, Relaxed))?;
    let grouped = placed.len() > 1;
    if grouped {
        collective.group_begin()?;
    }
    for (call, at) in placed {
        call.exchange(&**collective, *at, *rank, *world)?;
    }
    if grouped {
        collective.group_end()?;
    }
    Ok(())
}
