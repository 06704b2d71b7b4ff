//! The embedded CPU backend: SIMD kernels, worker pool, packed and quantised weights.

mod attention;
mod elem;
mod gemm;
mod isa;
mod kv;
mod pack;
mod pool;
mod simd;
