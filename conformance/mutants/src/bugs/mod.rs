//! The bugs, by what they are about.

mod attention;
mod cache;
mod elementwise;
mod experts;
mod gather;
mod linear;
mod logits;
mod masks;
mod norm;
mod promises;
mod quant;
mod rope;
mod router;
mod sample;

use crate::mutant::Mutant;

const FILES: &[&[Mutant]] = &[
    elementwise::MUTANTS,
    gather::MUTANTS,
    norm::MUTANTS,
    rope::MUTANTS,
    linear::MUTANTS,
    quant::MUTANTS,
    cache::MUTANTS,
    attention::MUTANTS,
    masks::MUTANTS,
    router::MUTANTS,
    experts::MUTANTS,
    logits::MUTANTS,
    sample::MUTANTS,
    promises::MUTANTS,
];

/// Every mutant.
pub(crate) fn all() -> impl Iterator<Item = &'static Mutant> {
    FILES.iter().copied().flatten()
}
