//! From logits to tokens.

mod counts;
mod ops;
mod rows;

pub(crate) use counts::TokenCounts;
pub(crate) use ops::{SamplerTensors, record};
pub(crate) use rows::SampleRows;
