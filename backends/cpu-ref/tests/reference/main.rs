//! Every op against small cases worked by hand, and every weight format against vectors from the `gguf` package.

mod attention;
mod harness;
mod logits;
mod moe;
mod refusals;
mod rows;
mod weights;
