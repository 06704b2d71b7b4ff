//! From logits to tokens.

mod counts;
mod rows;

pub(crate) use counts::TokenCounts;
pub(crate) use rows::{Changes, SampleRows};
