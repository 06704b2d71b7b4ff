//! The embedded CPU backend: SIMD kernels, worker pool, packed and quantised weights.

mod elem;
mod gemm;
mod isa;
mod pack;
mod pool;
mod simd;
