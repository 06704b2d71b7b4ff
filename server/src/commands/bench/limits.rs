//! What this machine's memory and processors can do at best, measured on the spot.

use std::{hint::black_box, thread, time::Instant};

use serde::Serialize;

use super::stats::{bytes_to_f64, to_f64};

/// How long is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// The best of so many rounds counts: what disturbs only makes slower.
    rounds: usize,
    /// Bytes read a round: far beyond the caches.
    buffer_bytes: usize,
    /// Multiplications and additions a lane a round.
    fma_steps: usize,
}

const EFFORT: Effort = Effort { rounds: 5, buffer_bytes: 512 << 20, fma_steps: 20_000_000 };

/// Independent chains, enough to hide the latency of two multiply-add units.
const CHAINS: usize = 12;

/// The machine's limits with so many threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Limits {
    /// Bytes a second, reading.
    pub(super) memory_bytes_per_s: f64,
    /// Operations a second: 32-bit multiplications and additions, fused.
    pub(super) f32_flops: f64,
}

impl Limits {
    pub(super) fn measure(threads: usize) -> Self {
        Self::measure_with(EFFORT, threads.max(1))
    }

    fn measure_with(effort: Effort, threads: usize) -> Self {
        let (memory, compute) = (memory(effort, threads), compute(effort, threads));
        Self { memory_bytes_per_s: memory, f32_flops: compute }
    }
}

/// All threads sum their own part of one buffer.
fn memory(effort: Effort, threads: usize) -> f64 {
    let buffer = vec![1_u64; effort.buffer_bytes / size_of::<u64>()];
    let part = buffer.len().div_ceil(threads);
    let sum = |part: &[u64]| {
        let mut sums = [0_u64; 32];
        let mut chunks = part.chunks_exact(32);
        for chunk in &mut chunks {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum = sum.wrapping_add(*value);
            }
        }
        black_box(sums);
    };
    let round = || {
        let begun = Instant::now();
        thread::scope(|scope| {
            for part in buffer.chunks(part) {
                scope.spawn(move || sum(part));
            }
        });
        bytes_to_f64(u64::try_from(effort.buffer_bytes).unwrap_or(0))
            / begun.elapsed().as_secs_f64()
    };
    (0..effort.rounds).map(|_| round()).fold(0.0, f64::max)
}

/// All threads multiply and add in registers, in the widest vectors there are.
fn compute(effort: Effort, threads: usize) -> f64 {
    let round = || {
        let begun = Instant::now();
        let lanes: usize = thread::scope(|scope| {
            let run = || pulp::Arch::new().dispatch(MultiplyAdd { steps: effort.fma_steps });
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            handles.into_iter().map(|handle| handle.join().unwrap_or(0)).sum()
        });
        2.0 * to_f64(effort.fma_steps) * to_f64(CHAINS * lanes) / begun.elapsed().as_secs_f64()
    };
    (0..effort.rounds).map(|_| round()).fold(0.0, f64::max)
}

/// Returns how many numbers a vector holds.
struct MultiplyAdd {
    steps: usize,
}

impl pulp::WithSimd for MultiplyAdd {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> usize {
        // Stays near 1: neither overflows nor gets into slow tiny numbers.
        let (factor, term) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.5)));
        let mut chains = [simd.splat_f32s(black_box(1.0)); CHAINS];
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, factor, term);
            }
        }
        for chain in chains {
            black_box(simd.reduce_sum_f32s(chain));
        }
        S::F32_LANES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_of_this_century() {
        // Without optimisation a full measurement takes half a minute.
        let effort = Effort { rounds: 2, buffer_bytes: 16 << 20, fma_steps: 200_000 };
        let limits = Limits::measure_with(effort, 1);
        assert!(limits.memory_bytes_per_s > 1e8, "{limits:?}");
        assert!(limits.f32_flops > 1e8, "{limits:?}");
    }
}
