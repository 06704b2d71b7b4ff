//! The bugs, by what they are about.

mod attention;
mod cache;
mod conduct;
mod contiguous;
mod elementwise;
mod experts;
mod fused;
mod gather;
mod large;
mod latent;
mod linear;
mod logits;
mod masks;
mod norm;
mod promises;
mod quant;
mod rope;
mod router;
mod sample;
mod sorted;

use crate::mutant::Mutant;
pub(crate) use conduct::lose;

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
    latent::MUTANTS,
    contiguous::MUTANTS,
    sorted::MUTANTS,
    fused::MUTANTS,
    promises::MUTANTS,
    large::MUTANTS,
    conduct::MUTANTS,
];

/// Every mutant.
pub(crate) fn all() -> impl Iterator<Item = &'static Mutant> {
    FILES.iter().copied().flatten()
}
