//! Membership alone: for communicators whose data goes another way.

use std::sync::{Mutex, PoisonError};

use halyard_abi::CommDesc;

use super::member::Member;
use crate::{Error, Result};

/// A rank of a communicator whose data a vendor's library moves. Ranks come, fail, abort and split together; what ends one ends all.
#[derive(Debug)]
pub struct Control {
    member: Member,
    /// Splits so far.
    step: Mutex<u64>,
}

impl Control {
    /// Joins under an id of [`unique_id`](super::unique_id); waits until all ranks have come.
    ///
    /// # Errors
    /// As [`join`](super::join).
    pub fn join(desc: &CommDesc<'_>) -> Result<Self> {
        Ok(Self::new(super::sit(desc)?))
    }

    fn new(member: Member) -> Self {
        Self { member, step: Mutex::default() }
    }

    /// The rank's number.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.member.seat.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world(&self) -> u32 {
        self.member.seat.world
    }

    /// Bound of waits, in milliseconds.
    #[must_use]
    pub fn timeout_ms(&self) -> u64 {
        self.member.seat.timeout_ms
    }

    /// How the communicator ended, if it did. Never blocks.
    ///
    /// # Errors
    /// `COMM_ERROR` or `COMM_ABORTED`, with the text of whoever ended it.
    pub fn status(&self) -> Result<()> {
        self.member.check()
    }

    /// Ends the communicator for all ranks with `COMM_ERROR`, unless it has ended before; gives what it ended with.
    #[must_use]
    pub fn fail(&self, message: &str) -> Error {
        self.member.fail(message)
    }

    /// Ends the communicator for all ranks with `COMM_ABORTED`, unless it has ended before.
    pub fn abort(&self) {
        self.member.abort();
    }

    /// Ends the communicator if a rank has left it: dropped this, or died.
    ///
    /// # Errors
    /// `COMM_ERROR` naming the ranks; as [`Self::status`].
    pub fn look_for_leavers(&self) -> Result<()> {
        self.status()?;
        self.member.look_for_leavers()
    }

    /// The ranks that pass the same `color`, by `key`, then rank. All ranks call it. `None` for those whose `color` is negative.
    ///
    /// # Errors
    /// How the communicator ended, or that of the part's ranks one did not come.
    pub fn split(&self, color: i32, key: i32) -> Result<Option<Self>> {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let part = self.member.split(&mut step, color, key)?;
        part.map(|(id, seat)| Ok(Self::new(Member::join(&id, seat)?))).transpose()
    }
}
