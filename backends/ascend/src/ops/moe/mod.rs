//! Mixtures of experts: which experts a token gets, rows in the order of their experts, and back.

mod experts;
mod router;
mod rows;

pub(super) use experts::prepare as experts;
pub(super) use router::prepare as router;
pub(super) use rows::{permute, unpermute};
