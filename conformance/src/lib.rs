//! Proves a backend's kernels against the CPU reference.
