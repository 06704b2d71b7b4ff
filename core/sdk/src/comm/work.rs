//! Checked calls, and what they do.

use halyard_abi::{A2av, TensorView};

use super::{
    Id,
    call::{Call, Kind},
    channel::Transfer,
    member::{Member, Seat},
    reduce::reduce,
    region::PIECE,
    step::Shown,
};
use crate::{Error, Result};

/// Contiguous memory of the caller's, which the host keeps for a call (in a group: until its end), and which nothing else writes or,
/// where the call writes it, reads meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    address: u64,
    pub(super) bytes: u64,
}

impl Span {
    /// The memory of a view that `collective` has checked.
    pub(super) fn of(view: &TensorView, bytes: u64) -> Self {
        Self { address: view.data + view.byte_offset, bytes }
    }

    /// Some bytes of it.
    ///
    /// # Panics
    /// If they leave it: a bug of this module, caught by the SDK's guard.
    pub(super) fn part(self, from: u64, bytes: u64) -> Self {
        let inside = from.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "bytes {from}+{bytes} of {}", self.bytes);
        Self { address: self.address + from, bytes }
    }

    pub(super) fn copy_to(self, to: &mut [u8]) {
        assert_eq!(to.len() as u64, self.bytes);
        // SAFETY: the host vouches for the view's bytes (`Span`); `to` is no memory of the caller's.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address as *const u8, to.as_mut_ptr(), to.len());
        };
    }

    pub(super) fn copy_from(self, from: &[u8]) {
        assert_eq!(from.len() as u64, self.bytes);
        // SAFETY: as for `copy_to`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.address as *mut u8, from.len());
        };
    }

    /// Copies between memory of the caller's, which may be the same.
    fn copy_within(self, to: Self) {
        assert_eq!(to.bytes, self.bytes);
        let (from, to) = (self.address as *const u8, to.address as *mut u8);
        // SAFETY: the host vouches for both views' bytes (`Span`).
        unsafe { std::ptr::copy(from, to, self.bytes as usize) };
    }

    /// Fills it through `f`.
    fn write(self, f: impl FnOnce(&mut [u8])) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: the host vouches for the view's bytes (`Span`), which nobody else touches.
        f(unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes as usize) });
    }
}

/// A call that may run.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// `dst = op over ranks of src`.
    Reduce {
        call: Call,
        src: Span,
        dst: Span,
    },
    /// `dst[rank] = src of rank`.
    Gather {
        call: Call,
        src: Span,
        dst: Span,
    },
    /// `dst = op over ranks of src[own rank]`.
    Scatter {
        call: Call,
        src: Span,
        dst: Span,
    },
    Broadcast {
        call: Call,
        buf: Span,
    },
    Barrier,
    AllToAll(AllToAll),
    Transfer(Transfer),
}

/// Rows to and from each peer.
#[derive(Clone, Debug)]
pub(super) struct AllToAll {
    call: Call,
    send: Span,
    recv: Span,
    row_bytes: u64,
    peers: Vec<Rows>,
}

#[derive(Clone, Copy, Debug)]
struct Rows {
    send_count: u64,
    send_from: u64,
    recv_count: u64,
    recv_from: u64,
}

impl AllToAll {
    /// A checked call with rows of `row_bytes`.
    pub(super) fn new(a: &A2av<'_>, call: Call, row_bytes: u64) -> Self {
        let peer = |i: usize| Rows {
            send_count: a.send_counts[i],
            send_from: a.send_displs[i],
            recv_count: a.recv_counts[i],
            recv_from: a.recv_displs[i],
        };
        let span = |v: &TensorView| Span::of(v, v.dims()[0].cast_unsigned() * row_bytes);
        let (send, recv) = (span(&a.send), span(&a.recv));
        Self { call, send, recv, row_bytes, peers: (0..a.send_counts.len()).map(peer).collect() }
    }

    fn to(&self, rows: &Rows) -> Span {
        self.send.part(rows.send_from * self.row_bytes, rows.send_count * self.row_bytes)
    }

    fn from(&self, rows: &Rows) -> Span {
        self.recv.part(rows.recv_from * self.row_bytes, rows.recv_count * self.row_bytes)
    }
}

impl Member {
    /// Runs a call. `step` counts the communicator's steps.
    pub(super) fn run(&self, work: &mut Work, step: &mut u64) -> Result<()> {
        match work {
            Work::Reduce { call, src, dst } => self.all_reduce(step, call, *src, *dst),
            Work::Gather { call, src, dst } => self.all_gather(step, call, *src, *dst),
            Work::Scatter { call, src, dst } => self.reduce_scatter(step, call, *src, *dst),
            Work::Broadcast { call, buf } => self.broadcast(step, call, *buf),
            Work::Barrier => self.step(step, &Call::bare(Kind::BARRIER), |_| (), |_| Ok(())),
            Work::AllToAll(a) => self.all_to_all(step, a),
            Work::Transfer(message) => self.transfer(std::slice::from_mut(message)),
        }
    }

    fn all_reduce(&self, step: &mut u64, call: &Call, src: Span, dst: Span) -> Result<()> {
        for (from, bytes) in pieces(src.bytes, PIECE as u64) {
            let show =
                |piece: &mut [u8]| src.part(from, bytes).copy_to(&mut piece[..bytes as usize]);
            self.step(step, call, show, |shown| {
                let part = |rank| &shown.of(rank)[..bytes as usize];
                dst.part(from, bytes).write(|out| self.reduce(call, &part, out));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn all_gather(&self, step: &mut u64, call: &Call, src: Span, dst: Span) -> Result<()> {
        for (from, bytes) in pieces(src.bytes, PIECE as u64) {
            let show =
                |piece: &mut [u8]| src.part(from, bytes).copy_to(&mut piece[..bytes as usize]);
            self.step(step, call, show, |shown| {
                for rank in 0..self.seat.world {
                    let place = dst.part(u64::from(rank) * src.bytes + from, bytes);
                    place.copy_from(&shown.of(rank)[..bytes as usize]);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Each step shows a slice of every rank's part.
    fn reduce_scatter(&self, step: &mut u64, call: &Call, src: Span, dst: Span) -> Result<()> {
        let world = u64::from(self.seat.world);
        // Of whole elements of any size.
        let slice = PIECE as u64 / world / 8 * 8;
        for (from, bytes) in pieces(dst.bytes, slice) {
            let show = |piece: &mut [u8]| {
                for (rank, piece) in (0..world).zip(piece.chunks_exact_mut(slice as usize)) {
                    let part = src.part(rank * dst.bytes + from, bytes);
                    part.copy_to(&mut piece[..bytes as usize]);
                }
            };
            let mine = self.seat.rank as usize * slice as usize;
            self.step(step, call, show, |shown| {
                let part = |rank| &shown.of(rank)[mine..mine + bytes as usize];
                dst.part(from, bytes).write(|out| self.reduce(call, &part, out));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn reduce<'a>(&self, call: &Call, part: &dyn Fn(u32) -> &'a [u8], out: &mut [u8]) {
        reduce(call.dtype, call.op, self.seat.world, part, out);
    }

    fn broadcast(&self, step: &mut u64, call: &Call, buf: Span) -> Result<()> {
        let is_root = call.root == self.seat.rank;
        for (from, bytes) in pieces(buf.bytes, PIECE as u64) {
            let part = buf.part(from, bytes);
            let show = |piece: &mut [u8]| {
                if is_root {
                    part.copy_to(&mut piece[..bytes as usize]);
                }
            };
            self.step(step, call, show, |shown| {
                if !is_root {
                    part.copy_from(&shown.of(call.root)[..bytes as usize]);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// First everybody's counts, which have to fit, then the rows.
    fn all_to_all(&self, step: &mut u64, a: &AllToAll) -> Result<()> {
        let world = self.seat.world as usize;
        let show = |piece: &mut [u8]| {
            let words = piece.as_chunks_mut::<8>().0;
            for (peer, rows) in a.peers.iter().enumerate() {
                words[peer] = rows.send_count.to_le_bytes();
                words[world + peer] = rows.recv_count.to_le_bytes();
            }
        };
        self.step(step, &a.call, show, |shown| self.compare_counts(shown))?;
        let mut messages = Vec::with_capacity(2 * world);
        for (peer, rows) in (0..self.seat.world).zip(&a.peers) {
            if peer == self.seat.rank {
                a.to(rows).copy_within(a.from(rows));
                continue;
            }
            for (sends, span) in [(true, a.to(rows)), (false, a.from(rows))] {
                if span.bytes > 0 {
                    messages.push(Transfer::new(a.call, peer, sends, span));
                }
            }
        }
        self.transfer(&mut messages)
    }

    fn compare_counts(&self, shown: Shown<'_>) -> Result<()> {
        let world = self.seat.world;
        let word =
            |rank: u32, at: u32| u64::from_le_bytes(shown.of(rank).as_chunks::<8>().0[at as usize]);
        for (from, to) in (0..world).flat_map(|from| (0..world).map(move |to| (from, to))) {
            let (sent, expected) = (word(from, to), word(to, world + from));
            if sent != expected {
                let message = format!("rank {from} sends {sent} rows, but rank {to}");
                return Err(self.fail(&format!("all_to_all_v: {message} expects {expected}")));
            }
        }
        Ok(())
    }

    /// The seats of those who pass the same `color`, which meet under the id that their first brings. `None` without a color.
    pub(super) fn split(&self, step: &mut u64, color: i32, key: i32) -> Result<Option<(Id, Seat)>> {
        let fresh = Id::fresh()?;
        let mut all = Vec::with_capacity(self.seat.world as usize);
        let show = |piece: &mut [u8]| {
            piece[..4].copy_from_slice(&color.to_le_bytes());
            piece[4..8].copy_from_slice(&key.to_le_bytes());
            piece[8..8 + Id::BYTES].copy_from_slice(&fresh.to_bytes());
        };
        self.step(step, &Call::bare(Kind::SPLIT), show, |shown| {
            for rank in 0..self.seat.world {
                let piece = shown.of(rank);
                let number = |at: usize| {
                    i32::from_le_bytes([piece[at], piece[at + 1], piece[at + 2], piece[at + 3]])
                };
                if number(0) == color {
                    all.push((number(4), rank, Id::from_bytes(&piece[8..8 + Id::BYTES])?));
                }
            }
            Ok(())
        })?;
        if color < 0 {
            return Ok(None);
        }
        all.sort_unstable_by_key(|&(key, rank, _)| (key, rank));
        let at = all.iter().position(|&(_, rank, _)| rank == self.seat.rank);
        let (Some(at), Some(&(_, _, id))) = (at, all.first()) else {
            return Err(Error::new(halyard_abi::Code::INTERNAL, "a rank is not in its own group"));
        };
        let name = format!("{}/{color}", self.seat.name);
        let (rank, world) = (at as u32, all.len() as u32);
        Ok(Some((id, Seat { rank, world, name, timeout_ms: self.seat.timeout_ms })))
    }
}

/// Start and size of each piece of `bytes`; an empty whole is one empty piece, so that its call is compared, too.
fn pieces(bytes: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..bytes.max(1)).step_by(most as usize).map(move |at| (at, most.min(bytes - at)))
}
