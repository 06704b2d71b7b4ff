//! What warps know of each other beside the order of their steps: which writes of shared memory the async proxy may see.
//!
//! `fence.proxy.async` shows it everything that happened before the fence: writes of the thread itself, and of others that a
//! barrier lies behind. A warp's fences become known to others as its steps do.

use super::registers::{LANES, lanes};
use super::{Env, Warp};
use crate::shared::{Clock, learn};

/// What one warp knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Steps of each warp.
    pub(crate) clock: Clock,
    /// Steps of each warp, before which all writes are fenced.
    pub(crate) fenced: Clock,
}

impl Known {
    pub(crate) fn learn(&mut self, other: &Self) {
        learn(&mut self.clock, &other.clock);
        learn(&mut self.fenced, &other.fenced);
    }
}

/// The fences of a warp.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fences {
    /// Steps of each warp, before which all writes are fenced.
    pub(crate) warps: Clock,
    /// The last step up to which each lane fenced its own writes.
    lanes: [u32; LANES],
}

impl Fences {
    /// Whether the write by `lane` of `warp` at `step` is fenced, as warp `own` knows.
    pub(super) fn cover(&self, own: u32, (warp, lane, step): (usize, u32, u32)) -> bool {
        step < self.warps[warp & 31]
            || warp == own as usize && step <= self.lanes[lane as usize & 31]
    }
}

/// `fence.proxy.async` by the lanes `m`.
pub(super) fn fence(w: &mut Warp, m: u32) {
    let step = w.own_step();
    let clock = w.clock;
    learn(&mut w.fences.warps, &clock);
    if m == w.live {
        // All of its writes so far: those of this step, too.
        w.fences.warps[w.index as usize & 31] = step + 1;
        w.step_to(step + 1);
    } else {
        lanes(m).for_each(|lane| w.fences.lanes[lane] = step);
    }
}

impl Warp {
    /// All that it knows. Others are told that a step is fenced as soon as one lane fenced what it wrote in it.
    pub(crate) fn known(&self) -> Known {
        let mut fenced = self.fences.warps;
        let lanes = self.fences.lanes.iter().copied().max().unwrap_or(0);
        let own = &mut fenced[self.index as usize & 31];
        *own = (*own).max(lanes + 1);
        Known { clock: self.clock, fenced }
    }

    /// Learns what another knows.
    pub(crate) fn learn_all(&mut self, known: &Known) {
        learn(&mut self.fences.warps, &known.fenced);
        self.learn(&known.clock);
    }

    /// Begins to read 16 bytes of shared memory at each of `pieces` through the async proxy: for `lane`, or for all lanes
    /// `together`.
    pub(super) fn begin_reading(
        &self,
        e: &mut Env<'_>,
        (lane, together): (u32, bool),
        pieces: impl Iterator<Item = usize>,
    ) -> crate::fault::Step<u64> {
        let (fences, own) = (self.fences, self.index);
        let is_fenced = |warp, lane, step| fences.cover(own, (warp, lane, step));
        let who = self.who(e.pc, together);
        e.shared.begin_reading(&who, lane, is_fenced, pieces)
    }

    /// A fault unless what the generic proxy wrote of 16 bytes is fenced before the async proxy writes them.
    pub(super) fn check_overwrite(&self, e: &Env<'_>, lane: u32, at: usize) -> crate::fault::Step {
        let is_fenced = |warp, of, step| self.fences.cover(self.index, (warp, of, step));
        e.shared.check_fence(lane, at / 16, ("writes", &is_fenced))
    }
}
