//! Every op against small cases worked by hand and against PyTorch, and every weight format against vectors from the `gguf` package.

mod activations;
mod attention;
mod contiguous;
mod eight_bit_caches;
mod fusions;
mod golden;
mod harness;
mod latents;
mod logits;
mod moe;
mod refusals;
mod rows;
mod sorted_experts;
mod weights;
