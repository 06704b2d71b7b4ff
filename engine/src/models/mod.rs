//! The models: what each family computes, recorded as a program.

mod decoder;

pub(crate) use decoder::{Decoder, record};

#[cfg(test)]
mod tests;
