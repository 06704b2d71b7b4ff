//! How much memory is left for the KV cache.

use super::options::Resolved;
use crate::{error::LoadError, process::Offer};

/// Most bytes the KV caches of all ranks take of the host's own memory unless more is asked for.
const HOST_DEFAULT: u64 = 4 << 30;

/// What a model needs beside the KV cache, in bytes, and what a block takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    pub(super) weights: u64,
    pub(super) activations: u64,
    /// Of captured steps.
    pub(super) graphs: u64,
    /// Of all layers.
    pub(super) block: u64,
}

impl Demand {
    /// Of all ranks, those here and what others have offered.
    pub(super) fn sum(here: &[Self], others: &[Offer]) -> Self {
        let others = others.iter().map(|offer| Self {
            weights: offer.weights,
            activations: 0,
            graphs: offer.graph_bytes,
            block: offer.block,
        });
        let all = here.iter().copied().chain(others);
        let none = Self { weights: 0, activations: 0, graphs: 0, block: 0 };
        all.fold(none, |sum, demand| Self {
            weights: sum.weights + demand.weights,
            activations: sum.activations + demand.activations,
            graphs: sum.graphs + demand.graphs,
            block: sum.block + demand.block,
        })
    }
}

/// The size of the KV cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pool {
    pub(super) num_blocks: usize,
    /// Longest sequence that fits.
    pub(super) max_model_len: usize,
}

impl Pool {
    /// What a rank has offered.
    pub(super) fn of(offer: &Offer) -> Self {
        Self { num_blocks: offer.num_blocks, max_model_len: offer.max_model_len }
    }

    /// What both have.
    pub(super) fn min(self, other: Self) -> Self {
        Self {
            num_blocks: self.num_blocks.min(other.num_blocks),
            max_model_len: self.max_model_len.min(other.max_model_len),
        }
    }

    pub(super) fn plan(
        options: &Resolved,
        demand: &Demand,
        total: Option<u64>,
    ) -> Result<Self, LoadError> {
        let per_seq = options.max_model_len.div_ceil(options.block_size);
        let (num_blocks, budget) = match options.num_blocks_override {
            Some(blocks) => (blocks, blocks as u64 * demand.block),
            None => {
                let budget = budget(options, demand, total)?;
                // All running sequences at their longest, and as much again to remember prefixes.
                let useful = 2 * options.max_num_seqs.saturating_mul(per_seq);
                let blocks = usize::try_from(budget / demand.block.max(1)).unwrap_or(usize::MAX);
                (blocks.min(useful), budget)
            }
        };
        // Block tables hold 32-bit numbers.
        let num_blocks = num_blocks.min(i32::MAX as usize);
        if num_blocks >= per_seq {
            return Ok(Self { num_blocks, max_model_len: options.max_model_len });
        }
        let max_model_len = num_blocks * options.block_size;
        if options.max_model_len_is_fixed || max_model_len == 0 {
            let needed = per_seq as u64 * demand.block;
            return Err(LoadError::Memory(format!(
                "one sequence of max_model_len = {} tokens needs {} of KV cache, there is {} \
                 ({num_blocks} blocks of {} tokens, {} each; weights take {}, activations {}, graphs {}): \
                 lower max_model_len to {max_model_len}, or raise gpu_memory_utilization or \
                 kv_cache_memory_bytes",
                options.max_model_len,
                mib(needed),
                mib(budget),
                options.block_size,
                mib(demand.block),
                mib(demand.weights),
                mib(demand.activations),
                mib(demand.graphs),
            )));
        }
        Ok(Self { num_blocks, max_model_len })
    }
}

fn budget(options: &Resolved, demand: &Demand, total: Option<u64>) -> Result<u64, LoadError> {
    if let Some(bytes) = options.kv_cache_memory_bytes {
        return Ok(bytes);
    }
    let Some(total) = total else {
        return Ok(HOST_DEFAULT / options.ranks as u64);
    };
    // Devices that are the host's own processor share its memory.
    let sharing = if options.on_host { options.ranks as u64 } else { 1 };
    let total = total / sharing;
    let usable = share(total, options.gpu_memory_utilization);
    let fixed = demand.weights + demand.activations + demand.graphs;
    let left = usable.checked_sub(fixed).ok_or_else(|| {
        LoadError::Memory(format!(
            "the model needs {} for weights, {} for activations and {} for graphs; gpu_memory_utilization = {} of \
             the device's {} is {}",
            mib(demand.weights),
            mib(demand.activations),
            mib(demand.graphs),
            options.gpu_memory_utilization,
            mib(total),
            mib(usable),
        ))
    })?;
    Ok(if options.on_host { left.min(HOST_DEFAULT / sharing) } else { left })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share in (0, 1] of a u64 is a u64"
)]
fn share(total: u64, part: f64) -> u64 {
    (total as f64 * part) as u64
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use halyard_core::DType;

    use super::{super::options::Dtype, *};

    const MIB: u64 = 1 << 20;

    fn options() -> Resolved {
        Resolved {
            dtype: Dtype::Float32,
            compute: DType::F32,
            fallback: None,
            max_model_len: 1000,
            max_model_len_is_fixed: true,
            max_num_seqs: 4,
            max_num_batched_tokens: 512,
            block_size: 16,
            gpu_memory_utilization: 0.5,
            kv_cache_memory_bytes: None,
            num_blocks_override: None,
            prefix_caching: true,
            chunked_prefill: true,
            seed: None,
            max_logprobs: 20,
            max_num_queued_reqs: usize::MAX,
            step_timeout: Duration::from_secs(60),
            measure_dispatch: false,
            enforce_eager: false,
            on_host: false,
            ranks: 1,
        }
    }

    const DEMAND: Demand =
        Demand { weights: 300 * MIB, activations: 60 * MIB, graphs: 40 * MIB, block: MIB };

    fn pool(options: &Resolved) -> Result<Pool, LoadError> {
        Pool::plan(options, &DEMAND, Some(1000 * MIB))
    }

    #[test]
    fn the_cache_gets_what_weights_and_activations_leave() {
        let plan = pool(&options()).expect("fits");
        assert_eq!(plan, Pool { num_blocks: 100, max_model_len: 1000 });
    }

    #[test]
    fn a_length_that_was_asked_for_must_fit_and_another_is_lowered() {
        let small = Resolved { gpu_memory_utilization: 0.45, ..options() };
        let error = pool(&small).expect_err("50 blocks hold 800 tokens").to_string();
        assert!(error.contains("needs 63.0 MiB") && error.contains("to 800"), "{error}");
        let free = Resolved { max_model_len_is_fixed: false, ..small };
        assert_eq!(pool(&free).expect("lowered"), Pool { num_blocks: 50, max_model_len: 800 });
    }

    #[test]
    fn weights_beyond_the_memory_are_an_error_with_numbers() {
        let error = pool(&Resolved { gpu_memory_utilization: 0.3, ..options() }).expect_err("full");
        assert!(error.to_string().contains("300.0 MiB for weights"), "{error}");
    }

    #[test]
    fn more_blocks_than_could_be_of_use_are_not_taken() {
        let plan = Pool::plan(&options(), &DEMAND, Some(100_000 * MIB)).expect("fits");
        assert_eq!(plan.num_blocks, 2 * 4 * 63);
    }

    #[test]
    fn a_host_keeps_most_of_its_memory_for_itself() {
        let host = Resolved { on_host: true, max_num_seqs: 1000, ..options() };
        let plan = Pool::plan(&host, &DEMAND, Some(1_000_000 * MIB)).expect("fits");
        assert_eq!(plan.num_blocks, 4096);
        let more = Resolved { kv_cache_memory_bytes: Some(5000 * MIB), ..host };
        assert_eq!(pool(&more).expect("fits").num_blocks, 5000);
    }

    #[test]
    fn ranks_on_the_host_share_its_memory() {
        let two = Resolved { on_host: true, ranks: 2, max_num_seqs: 1000, ..options() };
        let half = Demand { block: DEMAND.block / 2, ..DEMAND };
        let plan = Pool::plan(&two, &half, Some(1_000_000 * MIB)).expect("fits");
        assert_eq!(plan.num_blocks, 4096, "as many as one rank would have");
        assert!(pool(&two).is_err(), "half of half of 1000 MiB is less than the weights");
        assert_eq!(pool(&Resolved { on_host: false, ..two }).expect("fits").num_blocks, 100);
    }

    #[test]
    fn a_number_of_blocks_counts_as_it_is() {
        let few = Resolved { num_blocks_override: Some(63), ..options() };
        assert_eq!(pool(&few).expect("fits").num_blocks, 63);
        assert!(pool(&Resolved { num_blocks_override: Some(62), ..options() }).is_err());
    }
}
