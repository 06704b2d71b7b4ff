//! What can be chosen when a model is loaded, and what it comes to on a given device.

use std::{fmt, str::FromStr, time::Duration};

use halyard_core::{DType, Device, MAX_WORLD, PropKey};
use halyard_weights::{ModelConfig, QuantMethod, TensorFormat};

use super::party::Here;
use crate::{error::LoadError, program::Fallback};

/// Choices for loading a model; the defaults are those of vLLM.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// Type of activations and of the KV cache.
    pub dtype: Dtype,
    /// How the weights must be quantised. `None`: as they are.
    pub quantization: Option<QuantMethod>,
    /// Whether quantised weights that the device has no kernels for, or that the ranks cannot share as they are, may become plain
    /// numbers of `dtype`, which takes two to eight times the memory. If not, they are an error.
    pub allow_dequant: bool,
    /// Longest sequence. `None`: the model's, lowered if the KV cache cannot hold it.
    pub max_model_len: Option<usize>,
    /// Sequences a step, at most.
    pub max_num_seqs: usize,
    /// Tokens a step, at most. `None`: 512 if the device is the host's own processor, else 2048; more
    /// where the other options need it.
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens a KV block. `None`: what the device prefers.
    pub block_size: Option<usize>,
    /// Share of the device's memory for weights, activations and KV cache.
    pub gpu_memory_utilization: f64,
    /// Bytes of the KV cache of each device. `None`: what `gpu_memory_utilization` leaves; at most 4 GiB, of all devices
    /// together, if their memory is the host's.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Blocks of the KV cache, whatever the memory.
    pub num_blocks_override: Option<usize>,
    /// Whether equal beginnings of prompts are computed once.
    pub enable_prefix_caching: bool,
    /// Whether a prompt may be computed over several steps.
    pub enable_chunked_prefill: bool,
    /// Where the seeds of requests without one start from. `None`: different in every run.
    pub seed: Option<u64>,
    /// Most alternatives that a request may ask for in `logprobs`.
    pub max_logprobs: u32,
    /// Most requests that may wait. `None`: any number.
    pub max_num_queued_reqs: Option<usize>,
    /// How long a step may take before the engine counts as unhealthy, and how long ranks wait for each other.
    pub step_timeout: Duration,
    /// Whether decode steps are launched kernel by kernel where they could be replayed from graphs. Results are the same.
    pub enforce_eager: bool,
    /// Whether to find out what launching a step costs, for [`EngineInfo::dispatch`](crate::EngineInfo::dispatch).
    pub measure_dispatch: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: Dtype::Auto,
            quantization: None,
            allow_dequant: false,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: None,
            block_size: None,
            gpu_memory_utilization: 0.9,
            kv_cache_memory_bytes: None,
            num_blocks_override: None,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            seed: None,
            max_logprobs: 20,
            max_num_queued_reqs: None,
            step_timeout: Duration::from_secs(60),
            enforce_eager: false,
            measure_dispatch: false,
        }
    }
}

/// Type of activations and of the KV cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Dtype {
    /// The checkpoint's; float32 if its weights are quantised.
    #[default]
    Auto,
    /// IEEE single precision.
    Float32,
    /// bfloat16.
    BFloat16,
    /// IEEE half precision.
    Float16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
            Self::Float16 => "float16",
        })
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "float32" | "float" => Self::Float32,
            "bfloat16" => Self::BFloat16,
            "float16" | "half" => Self::Float16,
            other => {
                return Err(format!(
                    "{other:?} is not a dtype; there are auto, float32, bfloat16 and float16"
                ));
            }
        })
    }
}

/// How far a load has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadProgress {
    /// Weights come to the devices.
    Weights {
        /// Bytes that are there.
        bytes: u64,
        /// Bytes altogether.
        total_bytes: u64,
    },
    /// Decode steps are captured.
    Graphs {
        /// Sizes that are done.
        sizes: usize,
        /// Sizes altogether.
        total_sizes: usize,
    },
}

/// Options with every choice made, and checked against each other.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// Never `Auto`.
    pub(super) dtype: Dtype,
    pub(super) compute: DType,
    /// Which weights become dense.
    pub(super) fallback: Option<Fallback>,
    pub(super) max_model_len: usize,
    /// The length was asked for, so it must not be lowered.
    pub(super) max_model_len_is_fixed: bool,
    pub(super) max_num_seqs: usize,
    pub(super) max_num_batched_tokens: usize,
    pub(super) block_size: usize,
    pub(super) gpu_memory_utilization: f64,
    pub(super) kv_cache_memory_bytes: Option<u64>,
    pub(super) num_blocks_override: Option<usize>,
    pub(super) prefix_caching: bool,
    pub(super) chunked_prefill: bool,
    pub(super) seed: Option<u64>,
    pub(super) max_logprobs: u32,
    pub(super) max_num_queued_reqs: usize,
    pub(super) step_timeout: Duration,
    pub(super) enforce_eager: bool,
    pub(super) measure_dispatch: bool,
    /// The devices' memory is the host's.
    pub(super) on_host: bool,
    /// Devices that share the model.
    pub(super) ranks: usize,
}

/// Tokens a block where neither the caller nor the device has a wish.
const BLOCK_SIZE: usize = 16;

fn refuse<T>(option: &'static str, message: impl Into<String>) -> Result<T, LoadError> {
    Err(LoadError::Option { option, message: message.into() })
}

impl Resolved {
    pub(super) fn new(
        options: &LoadOptions,
        config: &ModelConfig,
        here: Here<'_>,
    ) -> Result<Self, LoadError> {
        let device = first_of(here)?;
        let on_host = device.property(PropKey::INLINE) == Some(1);
        let dtype = dtype(options.dtype, config);
        let compute = match dtype {
            Dtype::BFloat16 => DType::BF16,
            Dtype::Float16 => DType::F16,
            _ => DType::F32,
        };
        let max_model_len = max_model_len(options, config)?;
        if options.max_num_seqs == 0 {
            return refuse("max_num_seqs", "must be at least 1, got 0");
        }
        let utilization = options.gpu_memory_utilization;
        if !(utilization > 0.0 && utilization <= 1.0) {
            return refuse(
                "gpu_memory_utilization",
                format!("must be in (0, 1], got {utilization}"),
            );
        }
        let vocab = u32::try_from(config.vocab_size).unwrap_or(u32::MAX);
        Ok(Self {
            dtype,
            compute,
            fallback: fallback(options.allow_dequant, device, compute),
            max_model_len,
            max_model_len_is_fixed: options.max_model_len.is_some(),
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: batched_tokens(options, max_model_len, on_host)?,
            block_size: block_size(options, device)?,
            gpu_memory_utilization: utilization,
            kv_cache_memory_bytes: options.kv_cache_memory_bytes,
            num_blocks_override: options.num_blocks_override,
            prefix_caching: options.enable_prefix_caching,
            chunked_prefill: options.enable_chunked_prefill,
            seed: options.seed,
            max_logprobs: options.max_logprobs.min(vocab),
            max_num_queued_reqs: options.max_num_queued_reqs.unwrap_or(usize::MAX),
            step_timeout: options.step_timeout,
            enforce_eager: options.enforce_eager,
            measure_dispatch: options.measure_dispatch,
            on_host,
            ranks: here.world,
        })
    }
}

/// The device that speaks for all: they are of one backend.
fn first_of(Here { devices, world, .. }: Here<'_>) -> Result<&Device, LoadError> {
    let count = if devices.is_empty() { 0 } else { world };
    let Some(first) = devices.first().filter(|_| count <= MAX_WORLD as usize) else {
        return refuse("tensor_parallel_size", format!("must be 1 to {MAX_WORLD}, got {count}"));
    };
    let id = first.backend().id();
    if let Some(other) = devices.iter().map(|device| device.backend().id()).find(|&o| o != id) {
        let message = format!("devices of one backend share a model, got {id} and {other}");
        return refuse("tensor_parallel_size", message);
    }
    Ok(first)
}

fn fallback(allowed: bool, device: &Device, dtype: DType) -> Option<Fallback> {
    allowed.then(|| Fallback { schemes: device.property(PropKey::SCHEME_MASK), dtype })
}

fn dtype(wanted: Dtype, config: &ModelConfig) -> Dtype {
    match (wanted, config.dtype) {
        (Dtype::Auto, Some(TensorFormat::BF16)) => Dtype::BFloat16,
        (Dtype::Auto, Some(TensorFormat::F16)) => Dtype::Float16,
        (Dtype::Auto, _) => Dtype::Float32,
        (wanted, _) => wanted,
    }
}

fn max_model_len(options: &LoadOptions, config: &ModelConfig) -> Result<usize, LoadError> {
    let most = config.max_position_embeddings;
    match options.max_model_len {
        None => Ok(most),
        Some(0) => refuse("max_model_len", "must be at least 1, got 0"),
        Some(len) if len > most => {
            refuse("max_model_len", format!("{len} is greater than the model's {most}"))
        }
        Some(len) => Ok(len),
    }
}

fn batched_tokens(
    options: &LoadOptions,
    max_model_len: usize,
    on_host: bool,
) -> Result<usize, LoadError> {
    let mut least = options.max_num_seqs;
    if !options.enable_chunked_prefill {
        least = least.max(max_model_len);
    }
    match options.max_num_batched_tokens {
        None => Ok(least.max(if on_host { 512 } else { 2048 })),
        Some(tokens) if tokens < options.max_num_seqs => refuse(
            "max_num_batched_tokens",
            format!(
                "{tokens} is less than max_num_seqs = {}: not every sequence could take a step",
                options.max_num_seqs
            ),
        ),
        Some(tokens) if tokens < least => refuse(
            "max_num_batched_tokens",
            format!(
                "{tokens} is less than max_model_len = {max_model_len}, and without chunked prefill \
                 a prompt must fit one step"
            ),
        ),
        Some(tokens) => Ok(tokens),
    }
}

fn block_size(options: &LoadOptions, device: &Device) -> Result<usize, LoadError> {
    let preferred = device.property(PropKey::PREFERRED_KV_BLOCK);
    let preferred = preferred.and_then(|block| usize::try_from(block).ok());
    let size = options.block_size.or(preferred).unwrap_or(BLOCK_SIZE);
    let Some(mask) = device.property(PropKey::KV_BLOCK_MASK) else {
        return if size == 0 {
            refuse("block_size", "must be at least 1, got 0")
        } else {
            Ok(size)
        };
    };
    let works = |size: usize| size.is_power_of_two() && mask >> size.trailing_zeros() & 1 == 1;
    if works(size) {
        return Ok(size);
    }
    let all: Vec<String> = (0..64)
        .map(|bit| 1_usize << bit)
        .filter(|&size| works(size))
        .map(|size| size.to_string())
        .collect();
    refuse(
        "block_size",
        format!("{size} does not work on this device; these do: {}", all.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_read_back_as_written() {
        for dtype in [Dtype::Auto, Dtype::Float32, Dtype::BFloat16, Dtype::Float16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("int8".parse::<Dtype>().is_err());
    }

    #[test]
    fn a_step_holds_every_sequence_and_without_chunks_every_prompt() {
        let options = LoadOptions::default();
        assert_eq!(batched_tokens(&options, 8192, true).expect("fits"), 512);
        assert_eq!(batched_tokens(&options, 8192, false).expect("fits"), 2048);
        let whole = LoadOptions { enable_chunked_prefill: false, ..options.clone() };
        assert_eq!(batched_tokens(&whole, 8192, true).expect("fits"), 8192);
        for bad in [
            LoadOptions { max_num_batched_tokens: Some(255), ..options },
            LoadOptions { max_num_batched_tokens: Some(4096), ..whole },
        ] {
            assert!(batched_tokens(&bad, 8192, true).is_err());
        }
    }
}
