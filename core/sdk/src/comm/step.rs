//! Steps: every rank shows a piece, waits for all, and reads what it needs.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::{
    call::Call,
    member::{Member, bits},
    region::PIECE,
};
use crate::Result;

/// What all ranks show in a step: valid until the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    member: &'a Member,
    parity: usize,
}

impl<'a> Shown<'a> {
    /// A rank's piece.
    pub(super) fn of(self, rank: u32) -> &'a [u8] {
        let start = self.member.region.piece(rank, self.parity);
        // SAFETY: `piece` gives PIECE bytes of the mapping. Their rank has come to this step and writes them again only two steps
        // on, which it cannot reach before this rank comes to the next one, after its last use of `Shown` (`Member::step`).
        unsafe { std::slice::from_raw_parts(start, PIECE) }
    }
}

impl Member {
    /// Step number `step` of this communicator, as part of `call`: `show` fills this rank's piece, `read` sees everybody's.
    ///
    /// # Errors
    /// How the communicator ended, for example because another rank is in another call.
    pub(super) fn step(
        &self,
        step: &mut u64,
        call: &Call,
        show: impl FnOnce(&mut [u8]),
        read: impl FnOnce(Shown<'_>) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        let parity = (*step % 2) as usize;
        let mine = self.region.piece(self.seat.rank, parity);
        // SAFETY: PIECE bytes of the mapping that only this rank writes, one call at a time (`Communicator` holds a lock); others
        // read them in steps of this parity, and all have come to the step before this one, so none is still in the one before it.
        show(unsafe { std::slice::from_raw_parts_mut(mine, PIECE) });
        self.me().calls[parity].set(call);
        *step += 1;
        self.arrive(*step, call)?;
        self.compare(parity, call)?;
        read(Shown { member: self, parity })
    }

    /// Comes to a step and waits for the others.
    fn arrive(&self, step: u64, call: &Call) -> Result<()> {
        let control = self.region.control();
        let all = step * u64::from(self.seat.world);
        let last = control.arrived.fetch_add(1, AcqRel) + 1 == all;
        self.me().steps.store(step, Release);
        if last {
            self.ring_all();
            return Ok(());
        }
        let late = || {
            if control.arrived.load(Acquire) >= all {
                return 0;
            }
            let ranks = &control.ranks[..self.seat.world as usize];
            let late = bits(ranks.iter().map(|r| r.steps.load(Acquire) < step));
            // Somebody has come and is about to say so: not there yet.
            if late == 0 { 1 << self.seat.rank } else { late }
        };
        self.wait(&late, call)
    }

    /// All must be in the same call.
    fn compare(&self, parity: usize, call: &Call) -> Result<()> {
        let ranks = &self.region.control().ranks[..self.seat.world as usize];
        let first = ranks[0].calls[parity].get();
        for (rank, other) in ranks.iter().map(|r| r.calls[parity].get()).enumerate() {
            if other != first {
                let message = format!("rank 0 is in {first}, but rank {rank} in {other}");
                return Err(self.fail(&message));
            }
        }
        debug_assert_eq!(first, *call, "this rank's own call is among them");
        Ok(())
    }
}
