//! From logits to tokens.

mod counts;

pub(crate) use counts::TokenCounts;
