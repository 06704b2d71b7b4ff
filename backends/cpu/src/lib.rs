//! The embedded CPU backend: SIMD kernels, worker pool, packed and quantised weights.
