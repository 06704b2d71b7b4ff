//! Messages from one rank to another, packet by packet.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{
    call::Call,
    member::{Member, Ranks},
    region::PACKET,
    work::Span,
};
use crate::Result;

/// A message that is being sent or received.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) call: Call,
    pub(super) peer: u32,
    pub(super) sends: bool,
    /// The memory of the whole message.
    pub(super) span: Span,
    /// Bytes that have gone.
    done: u64,
    /// An empty message is one empty packet.
    finished: bool,
}

impl Transfer {
    pub(super) fn new(call: Call, peer: u32, sends: bool, span: Span) -> Self {
        Self { call, peer, sends, span, done: 0, finished: false }
    }

    fn is_same_way(&self, other: &Self) -> bool {
        (self.peer, self.sends) == (other.peer, other.sends)
    }
}

impl Member {
    /// Runs messages to their ends, all at once; those to (or from) one peer in their order.
    ///
    /// # Errors
    /// How the communicator ended, for example because the peer expects another message.
    pub(super) fn transfer(&self, messages: &mut [Transfer]) -> Result<()> {
        self.check()?;
        loop {
            let mut moved = false;
            for at in 0..messages.len() {
                let (before, rest) = messages.split_at_mut(at);
                let message = &mut rest[0];
                let next = !before.iter().any(|b| !b.finished && b.is_same_way(message));
                while next && !message.finished && self.is_ready(message) {
                    self.packet(message)?;
                    moved = true;
                }
            }
            let mut open = messages.iter().filter(|m| !m.finished);
            let Some(first) = open.next() else { return Ok(()) };
            if !moved {
                let awaited = || self.awaited(messages);
                self.wait(&awaited, &first.call)?;
            }
        }
    }

    /// Whether the next packet can go.
    fn is_ready(&self, message: &Transfer) -> bool {
        let (from, to) = self.ends(message);
        let channel = self.region.channel(from, to);
        let waiting = channel.sent.load(Acquire) - channel.received.load(Acquire);
        if message.sends { waiting < 2 } else { waiting > 0 }
    }

    /// The peers that keep every message from going on; none if one can.
    fn awaited(&self, messages: &[Transfer]) -> Ranks {
        let mut peers = 0;
        for (at, message) in messages.iter().enumerate().filter(|(_, m)| !m.finished) {
            if messages[..at].iter().any(|b| !b.finished && b.is_same_way(message)) {
                continue;
            }
            if self.is_ready(message) {
                return 0;
            }
            peers |= 1 << message.peer;
        }
        peers
    }

    /// Sender and receiver.
    fn ends(&self, message: &Transfer) -> (u32, u32) {
        let me = self.seat.rank;
        if message.sends { (me, message.peer) } else { (message.peer, me) }
    }

    /// Moves a packet, which is ready.
    fn packet(&self, message: &mut Transfer) -> Result<()> {
        let (from, to) = self.ends(message);
        let channel = self.region.channel(from, to);
        let counter = if message.sends { &channel.sent } else { &channel.received };
        let number = counter.load(Relaxed);
        let parity = (number % 2) as usize;
        let packet = self.region.packet(from, to, parity);
        let bytes = (message.span.bytes - message.done).min(PACKET as u64);
        let part = message.span.part(message.done, bytes);
        if message.sends {
            channel.calls[parity].set(&message.call);
            // SAFETY: `packet` gives PACKET bytes of the mapping; the receiver has taken out what was there (`is_ready`) and waits
            // for the counter below.
            part.copy_to(unsafe { std::slice::from_raw_parts_mut(packet, bytes as usize) });
        } else {
            let sent = channel.calls[parity].get();
            if sent != message.call {
                let expects = format!("rank {to} expects {}", message.call);
                return Err(self.fail(&format!("rank {from} sent {sent}, but {expects}")));
            }
            // SAFETY: as above; the sender has filled it (`is_ready`) and waits for the counter below.
            part.copy_from(unsafe { std::slice::from_raw_parts(packet, bytes as usize) });
        }
        message.done += bytes;
        message.finished = message.done == message.span.bytes;
        counter.store(number + 1, Release);
        self.ring(message.peer);
        Ok(())
    }
}
