//! The flags, grouped as `--help` shows them. Names are vLLM's wherever it has one.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};
use halyard_core::Door;

use super::values::{
    Conformance, DeviceChoice, Dtype, ExecutorBackend, Length, Quantization, SchedulingPolicy,
    parse_count, parse_pin, parse_quantization, parse_share,
};

/// Which model, and how to read it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A GGUF file, or a folder with config.json, safetensors and tokenizer.json
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,

    /// The same as MODEL
    #[arg(long = "model", alias = "model-path", value_name = "MODEL", hide = true)]
    pub model_flag: Option<String>,

    /// Read the tokenizer from this file or folder instead of the model's
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// What the weights must be quantised by (awq, gptq, fp8, compressed-tensors, gguf): a check, they are read as they are
    #[arg(long, value_name = "METHOD", value_parser = parse_quantization)]
    pub quantization: Option<Quantization>,

    /// Make quantised weights plain numbers where the device has no kernels for them, instead of ending the start
    #[arg(long)]
    pub allow_dequant: bool,

    /// Type to compute in: auto is the checkpoint's own, float32 for quantised GGUF
    #[arg(long, value_name = "TYPE", default_value = "auto", ignore_case = true)]
    pub dtype: Dtype,

    /// Longest sequence, prompt and output together: a number, 1k (1000), 1K (1024) or auto
    #[arg(long, value_name = "TOKENS", default_value = "auto", allow_negative_numbers = true)]
    pub max_model_len: Length,

    /// How the weights are stored
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = ["auto", "safetensors", "gguf"])]
    pub load_format: String,

    /// Where sampling defaults come from: auto (the model's folder), vllm (none) or a folder
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    pub generation_config: String,

    /// Sampling defaults as JSON, over those of --generation-config
    #[arg(long, value_name = "JSON")]
    pub override_generation_config: Option<String>,

    /// Jinja chat template, as a file or as text, instead of the model's
    #[arg(long, value_name = "FILE|TEXT")]
    pub chat_template: Option<String>,

    /// Accepted and without effect: no code of a model is ever run
    #[arg(long, hide_short_help = true)]
    pub trust_remote_code: bool,
}

impl ModelArgs {
    /// The model's path, from the positional argument or the flag.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.model.as_deref().or(self.model_flag.as_deref())
    }
}

/// Where backends are looked for, and which of them are trusted.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Device")]
pub struct SearchArgs {
    /// A backend's library, or a folder of them, instead of the usual places; may be given several times
    #[arg(long, value_name = "PATH", action = ArgAction::Append)]
    pub backend_path: Vec<PathBuf>,

    /// SHA-256 that the library of a backend must have; may be given several times
    #[arg(long, value_name = "ID=SHA256", action = ArgAction::Append, value_parser = parse_pin)]
    pub pin: Vec<(String, String)>,

    /// Load libraries that other users of the machine could have changed
    #[arg(long)]
    pub insecure_plugins: bool,

    /// Door to take, rust or c, of a library that has both; by default its manifest's, else rust
    #[arg(long, value_name = "DOOR")]
    pub door: Option<Door>,
}

/// Which device, through which backend.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Device")]
#[expect(missing_docs, reason = "some are documented at their types")]
pub struct DeviceArgs {
    /// auto, cpu, or another backend's id or library, with device numbers as in cuda:0,1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Devices that share the model, each with a part of every layer: the backend's first N, or those that --device names; cpu is
    /// opened N times
    #[arg(long, alias = "tp", value_name = "N", default_value = "1", value_parser = parse_count)]
    pub tensor_parallel_size: usize,

    /// What those devices' ranks are: threads of this process, or mp, a process each, so that a device that fails takes only its own
    /// down
    #[arg(long, value_name = "KIND", default_value = "threads")]
    pub distributed_executor_backend: ExecutorBackend,

    #[command(flatten)]
    pub search: SearchArgs,

    /// Threads of the cpu backend, all ranks together; all cores by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// What to do about a kernel that differs from the reference: require ends the start
    #[arg(long, value_name = "POLICY", default_value = "require")]
    pub conformance: Conformance,
}

/// How memory and steps are used.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Memory and scheduling")]
pub struct EngineArgs {
    /// Share of the device's memory for weights and KV cache
    #[arg(
        long,
        value_name = "SHARE",
        aliases = ["device-memory-utilization", "gpumemoryutilization"],
        value_parser = parse_share
    )]
    pub gpu_memory_utilization: Option<f64>,

    /// Bytes of the KV cache, whatever --gpu-memory-utilization says: a number, 4g or 4G
    #[arg(long, value_name = "BYTES", value_parser = parse_count)]
    pub kv_cache_memory_bytes: Option<usize>,

    /// Number of KV blocks, whatever the memory
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub num_gpu_blocks_override: Option<usize>,

    /// Tokens a KV block
    #[arg(long, value_name = "TOKENS", value_parser = parse_count)]
    pub block_size: Option<usize>,

    /// Sequences a step, at most
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub max_num_seqs: Option<usize>,

    /// Tokens a step, at most
    #[arg(long, value_name = "TOKENS", value_parser = parse_count)]
    pub max_num_batched_tokens: Option<usize>,

    /// Requests that may wait; more are answered with 503
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub max_num_queued_reqs: Option<usize>,

    /// Reuse the KV blocks of shared prefixes (the default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,

    /// Do not reuse the KV blocks of shared prefixes
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,

    /// Mix pieces of long prompts with running sequences (the default)
    #[arg(long, overrides_with = "no_enable_chunked_prefill")]
    pub enable_chunked_prefill: bool,

    /// Compute each prompt in one step
    #[arg(long, overrides_with = "enable_chunked_prefill")]
    pub no_enable_chunked_prefill: bool,

    /// Who goes first: fcfs (by arrival) or priority (by the request's field, smaller first)
    #[arg(long, value_name = "POLICY", default_value = "fcfs")]
    pub scheduling_policy: SchedulingPolicy,

    /// Seed of the draws of requests that give none
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,

    /// Most alternatives that `logprobs` may ask for
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub max_logprobs: u32,

    /// Launch decode steps kernel by kernel, also where the device could replay them from captured graphs; answers are the same
    #[arg(long)]
    pub enforce_eager: bool,
}

/// Where and how the API is served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address or name to listen on; all interfaces by default
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub host: String,

    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,

    /// Names of the model in the API; its path by default
    #[arg(long, value_name = "NAME", num_args = 1.., action = ArgAction::Set)]
    pub served_model_name: Vec<String>,

    /// Keys, one of which requests under /v1 must carry; also HALYARD_API_KEY and VLLM_API_KEY
    #[arg(long, alias = "api-keys", value_name = "KEY", num_args = 1.., action = ArgAction::Set)]
    pub api_key: Vec<String>,

    /// Origins that browsers may call from, as a JSON list or one a word; none by default
    #[arg(long, value_name = "ORIGIN", num_args = 1.., action = ArgAction::Set)]
    pub allowed_origins: Vec<String>,

    /// On SIGTERM, seconds to let running requests finish; 0 ends them at once
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    pub shutdown_timeout: u64,

    /// Report the prompt tokens taken from the prefix cache in `usage`
    #[arg(long)]
    pub enable_prompt_tokens_details: bool,

    /// Report usage in every stream, asked for or not
    #[arg(long)]
    pub enable_force_include_usage: bool,

    /// Answer with the request's X-Request-Id
    #[arg(long)]
    pub enable_request_id_headers: bool,

    /// Write tokens in log-probabilities as token_id:N
    #[arg(long)]
    pub return_tokens_as_token_ids: bool,

    /// Role of the answers
    #[arg(long, value_name = "ROLE", default_value = "assistant")]
    pub response_role: String,

    /// Values for every chat template, as JSON; the request's own win
    #[arg(long, value_name = "JSON")]
    pub default_chat_template_kwargs: Option<String>,

    /// Log each request's parameters
    #[arg(long, overrides_with = "no_enable_log_requests")]
    pub enable_log_requests: bool,

    /// Do not log each request's parameters (the default)
    #[arg(long, alias = "disable-log-requests", overrides_with = "enable_log_requests")]
    pub no_enable_log_requests: bool,

    /// Do not log a line a response
    #[arg(long)]
    pub disable_uvicorn_access_log: bool,
}

impl ServerArgs {
    /// How long a drain may take.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout)
    }
}

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Least severe level: error, warning, info, debug or trace; RUST_LOG may say more
    #[arg(
        long,
        global = true,
        alias = "uvicorn-log-level",
        value_name = "LEVEL",
        default_value = "info",
        ignore_case = true
    )]
    pub log_level: LogLevel,

    /// How lines are written
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How severe an event must be to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Nothing but errors.
    #[value(alias = "critical")]
    Error,
    /// Warnings too.
    #[value(alias = "warn")]
    Warning,
    /// The default.
    Info,
    /// For finding faults.
    Debug,
    /// Everything.
    Trace,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}
