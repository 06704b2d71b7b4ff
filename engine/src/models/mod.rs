//! The models: what each family computes, recorded as a program.

mod decoder;
mod shares;

pub(crate) use decoder::record;
pub(crate) use shares::Shares;

#[cfg(test)]
mod tests;
