//! The operators on a memory of the tests' own: numbers worked out apart from the crate, and refusals.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    clippy::cast_precision_loss,
    reason = "tests: small sizes, exact numbers"
)]

mod activation;
mod attention;
mod cache;
mod catalogue;
mod compare;
mod copy;
mod device;
mod elementwise;
mod fill;
mod format;
mod gating;
mod grouped;
mod index;
mod matmul;
mod mutate;
mod norm;
mod quant;
mod quant_matmul;
mod reduce;
mod rope;
mod routing;
mod sample;
mod strided;
