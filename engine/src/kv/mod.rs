//! Paged KV: which block of the cache holds which tokens of which sequence.
//!
//! The cache itself lives on the device and is opaque here; this module hands out block numbers. A
//! full block can be found again by the hash of everything that led to it (prefix cache), also after
//! its sequence has ended, until the block is needed for something else.

mod cache;
mod hash;
mod pool;

pub(crate) use cache::{BlockTable, KvCache};
