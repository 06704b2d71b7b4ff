//! Flags that people know from elsewhere and that this server does not have.
//!
//! A tutorial's line should run, or say in one sentence why it cannot. So every flag of vLLM that is
//! not ours stands here with what is to be done about it.

/// How many values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    None,
    One,
    Many,
}

/// What is done about a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It asks for nothing that is not so anyway. Dropped silently.
    Accepted,
    /// It was removed from vLLM or never did what it says. Dropped with a warning that holds this.
    Old(&'static str),
    /// Refused with this, unless its value is one of the list, which asks for what is so anyway.
    Unsupported(&'static str, &'static [&'static str]),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreign {
    pub(super) name: &'static str,
    pub(super) values: Values,
    pub(super) verdict: Verdict,
}

impl Foreign {
    pub(super) fn takes_values(&self) -> bool {
        self.values != Values::None
    }
}

const fn accepted(name: &'static str, values: Values) -> Foreign {
    Foreign { name, values, verdict: Verdict::Accepted }
}

const fn old(name: &'static str, values: Values, note: &'static str) -> Foreign {
    Foreign { name, values, verdict: Verdict::Old(note) }
}

const fn refused(
    name: &'static str,
    values: Values,
    note: &'static str,
    harmless: &'static [&'static str],
) -> Foreign {
    Foreign { name, values, verdict: Verdict::Unsupported(note, harmless) }
}

const ONE_DEVICE: &str = "devices share a model by --tensor-parallel-size only so far";
const ONE_NODE: &str = "a model runs on one machine so far";
const ONE_REPLICA: &str = "there is one replica so far; start one server a replica";
const NO_EXPERTS: &str = "all experts are on one device so far";
const NO_LORA: &str = "adapters are not supported yet; merge them into the weights";
const NO_SPECULATION: &str = "speculative decoding is not supported yet";
const NO_TOOLS: &str = "tool calls are not supported yet";
const NO_REASONING: &str = "reasoning is not split from the answer yet; it stays in the text";
const NO_GRAMMAR: &str = "structured output is not supported yet";
const NO_TLS: &str = "TLS is not supported yet; put a proxy before the server";
const NO_MEDIA: &str = "only text models are supported so far";
const NO_HUB: &str = "models are local files so far; give a path";
const NO_PYTHON: &str = "it names Python code, and this server runs none";
const NO_TRACING: &str = "traces are not exported yet; /metrics and the log are there";
const NO_OFFLOAD: &str = "weights and KV cache stay on the device so far";
const V0: &str = "it belonged to an engine that is gone; the scheduler decides by itself";

use Values::{Many, None as Switch, One};

/// Sorted by what they are about.
pub(super) const FOREIGN: &[Foreign] = &[
    // Several devices, machines, replicas.
    refused("pipeline-parallel-size", One, ONE_DEVICE, &["1"]),
    refused("decode-context-parallel-size", One, ONE_DEVICE, &["1"]),
    refused("prefill-context-parallel-size", One, ONE_DEVICE, &["1"]),
    refused("data-parallel-size", One, ONE_REPLICA, &["1"]),
    refused("data-parallel-size-local", One, ONE_REPLICA, &["1"]),
    refused("data-parallel-rank", One, ONE_REPLICA, &["0"]),
    refused("data-parallel-start-rank", One, ONE_REPLICA, &["0"]),
    refused("data-parallel-address", One, ONE_REPLICA, &[]),
    refused("data-parallel-rpc-port", One, ONE_REPLICA, &[]),
    refused("data-parallel-backend", One, ONE_REPLICA, &["mp"]),
    refused("data-parallel-hybrid-lb", Switch, ONE_REPLICA, &[]),
    refused("data-parallel-external-lb", Switch, ONE_REPLICA, &[]),
    refused("api-server-count", One, ONE_REPLICA, &["1"]),
    refused("enable-expert-parallel", Switch, NO_EXPERTS, &[]),
    refused("enable-eplb", Switch, NO_EXPERTS, &[]),
    refused("eplb-config", One, NO_EXPERTS, &[]),
    refused("num-redundant-experts", One, NO_EXPERTS, &["0"]),
    refused("worker-use-ray", Switch, ONE_NODE, &["false", "False"]),
    refused("nnodes", One, ONE_NODE, &["1"]),
    refused("node-rank", One, ONE_NODE, &["0"]),
    refused("master-addr", One, ONE_NODE, &["127.0.0.1", "localhost"]),
    accepted("master-port", One),
    refused("headless", Switch, ONE_NODE, &[]),
    accepted("disable-custom-all-reduce", Switch),
    accepted("max-parallel-loading-workers", One),
    refused("worker-cls", One, NO_PYTHON, &["auto"]),
    refused("worker-extension-cls", One, NO_PYTHON, &[]),
    // Model.
    refused("revision", One, NO_HUB, &["main"]),
    refused("code-revision", One, NO_HUB, &["main"]),
    refused("tokenizer-revision", One, NO_HUB, &["main"]),
    refused("hf-config-path", One, NO_HUB, &[]),
    refused("hf-overrides", One, "edit the model's config.json instead", &["{}"]),
    accepted("hf-token", One),
    accepted("download-dir", One),
    accepted("ignore-patterns", Many),
    refused("tokenizer-mode", One, "there is one tokenizer", &["auto", "hf", "slow"]),
    refused("config-format", One, "the format is found out", &["auto", "hf"]),
    refused(
        "runner",
        One,
        "only models that generate text are supported so far",
        &["auto", "generate"],
    ),
    refused(
        "convert",
        One,
        "only models that generate text are supported so far",
        &["auto", "none"],
    ),
    refused("model-impl", One, "there is one implementation", &["auto"]),
    refused("logits-processors", Many, NO_PYTHON, &[]),
    refused("logits-processor-pattern", One, NO_PYTHON, &[]),
    refused("model-loader-extra-config", One, "the loader has no options", &["{}"]),
    refused("skip-tokenizer-init", Switch, "the API needs the tokenizer", &[]),
    refused("enable-prompt-embeds", Switch, "prompts are text or token ids", &[]),
    refused(
        "enable-sleep-mode",
        Switch,
        "a loaded model stays loaded; stop the server instead",
        &[],
    ),
    refused("disable-sliding-window", Switch, "the model's window is always used", &[]),
    refused("logprobs-mode", One, "log-probabilities are those of the model", &["raw_logprobs"]),
    refused("allowed-local-media-path", One, NO_MEDIA, &[]),
    refused("allowed-media-domains", Many, NO_MEDIA, &[]),
    refused("limit-mm-per-prompt", One, NO_MEDIA, &["{}"]),
    refused("mm-processor-kwargs", One, NO_MEDIA, &["{}"]),
    refused("media-io-kwargs", One, NO_MEDIA, &["{}"]),
    accepted("disable-cascade-attn", Switch),
    accepted("use-tqdm-on-load", Switch),
    accepted("pt-load-map-location", One),
    old("task", One, "the model's config.json says what it does"),
    old("swap-space", One, "preempted sequences are computed again"),
    old("rope-scaling", One, "edit the model's config.json instead"),
    old("rope-theta", One, "edit the model's config.json instead"),
    old("max-context-len-to-capture", One, "nothing is captured"),
    old("max-seq-len-to-capture", One, "nothing is captured"),
    // Memory and scheduling.
    refused("kv-cache-dtype", One, "the KV cache has the compute type so far", &["auto"]),
    refused("cpu-offload-gb", One, NO_OFFLOAD, &["0", "0.0"]),
    refused("kv-offloading-size", One, NO_OFFLOAD, &["0"]),
    refused("kv-offloading-backend", One, NO_OFFLOAD, &[]),
    refused("calculate-kv-scales", Switch, "the KV cache has the compute type so far", &[]),
    refused("kv-transfer-config", One, "KV blocks are not moved between servers yet", &["{}"]),
    refused("kv-events-config", One, "KV events are not published yet", &["{}"]),
    refused("stream-interval", One, "every token is sent at once", &["1"]),
    refused("scheduler-cls", One, NO_PYTHON, &[]),
    accepted("prefix-caching-hash-algo", One),
    accepted("max-num-partial-prefills", One),
    accepted("max-long-partial-prefills", One),
    accepted("long-prefill-token-threshold", One),
    accepted("async-scheduling", Switch),
    accepted("no-async-scheduling", Switch),
    accepted("disable-hybrid-kv-cache-manager", Switch),
    accepted("disable-chunked-mm-input", Switch),
    old("num-scheduler-steps", One, V0),
    old("multi-step-stream-outputs", One, V0),
    old("scheduler-delay-factor", One, V0),
    old("num-lookahead-slots", One, V0),
    old("preemption-mode", One, V0),
    old("use-v2-block-manager", Switch, V0),
    old("disable-async-output-proc", Switch, V0),
    // Adapters, speculation, structured output, tools.
    refused("enable-lora", Switch, NO_LORA, &[]),
    refused("lora-modules", Many, NO_LORA, &[]),
    refused("max-loras", One, NO_LORA, &[]),
    refused("max-lora-rank", One, NO_LORA, &[]),
    refused("max-cpu-loras", One, NO_LORA, &[]),
    refused("lora-dtype", One, NO_LORA, &["auto"]),
    refused("fully-sharded-loras", Switch, NO_LORA, &[]),
    refused("speculative-config", One, NO_SPECULATION, &["{}"]),
    refused("speculative-model", One, NO_SPECULATION, &[]),
    refused("num-speculative-tokens", One, NO_SPECULATION, &["0"]),
    refused("enable-auto-tool-choice", Switch, NO_TOOLS, &[]),
    refused("tool-call-parser", One, NO_TOOLS, &[]),
    refused("tool-parser-plugin", One, NO_PYTHON, &[]),
    refused("tool-server", One, NO_TOOLS, &[]),
    accepted("exclude-tools-when-tool-choice-none", Switch),
    refused("reasoning-parser", One, NO_REASONING, &[]),
    refused("reasoning-parser-plugin", One, NO_PYTHON, &[]),
    old("enable-reasoning", Switch, "--reasoning-parser does it"),
    refused("structured-outputs-config", One, NO_GRAMMAR, &["{}"]),
    old("guided-decoding-backend", One, NO_GRAMMAR),
    old("guided-decoding-disable-fallback", Switch, NO_GRAMMAR),
    // The server.
    refused("uds", One, "the server listens on TCP so far", &[]),
    refused("ssl-keyfile", One, NO_TLS, &[]),
    refused("ssl-certfile", One, NO_TLS, &[]),
    refused("ssl-ca-certs", One, NO_TLS, &[]),
    refused("ssl-cert-reqs", One, NO_TLS, &["0"]),
    refused("enable-ssl-refresh", Switch, NO_TLS, &[]),
    refused("root-path", One, "paths begin at / so far; let the proxy cut the prefix", &["", "/"]),
    refused("middleware", Many, NO_PYTHON, &[]),
    refused("allowed-methods", Many, "all methods of the API are allowed", &["[\"*\"]", "*"]),
    refused("allowed-headers", Many, "all headers are allowed", &["[\"*\"]", "*"]),
    refused("allow-credentials", Switch, "keys are sent as headers", &[]),
    refused(
        "chat-template-content-format",
        One,
        "the format is found out from the template",
        &["auto"],
    ),
    refused("trust-request-chat-template", Switch, "templates of requests are not run", &[]),
    refused("enable-tokenizer-info-endpoint", Switch, "there is no such endpoint", &[]),
    refused("log-config-file", One, "use --log-level, --log-format or RUST_LOG", &[]),
    refused("otlp-traces-endpoint", One, NO_TRACING, &[]),
    refused("collect-detailed-traces", Many, NO_TRACING, &[]),
    refused("show-hidden-metrics-for-version", One, "there are no hidden metrics", &[]),
    accepted("disable-fastapi-docs", Switch),
    accepted("disable-frontend-multiprocessing", Switch),
    accepted("enable-server-load-tracking", Switch),
    accepted("disable-log-stats", Switch),
    accepted("enable-log-outputs", Switch),
    accepted("enable-log-deltas", Switch),
    accepted("log-error-stack", Switch),
    accepted("max-log-len", One),
    accepted("h11-max-incomplete-event-size", One),
    accepted("h11-max-header-count", One),
    old("enable-prometheus", Switch, "/metrics is always there"),
    old("engine-use-ray", Switch, ONE_NODE),
    old("disable-log-stats-in-api", Switch, "/metrics is always there"),
    // Compilation.
    accepted("compilation-config", One),
    accepted("optimization-level", One),
    accepted("cudagraph-capture-sizes", Many),
    accepted("max-cudagraph-capture-size", One),
    refused("additional-config", One, "there is no further configuration", &["{}"]),
];

/// Short spellings of more than one letter, which vLLM's parser takes.
pub(super) const SHORT: &[(&str, &str)] = &[
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-dpl", "--data-parallel-size-local"),
    ("-dpn", "--data-parallel-rank"),
    ("-dpr", "--data-parallel-start-rank"),
    ("-dpa", "--data-parallel-address"),
    ("-dpp", "--data-parallel-rpc-port"),
    ("-dpb", "--data-parallel-backend"),
    ("-dph", "--data-parallel-hybrid-lb"),
    ("-dpe", "--data-parallel-external-lb"),
    ("-ep", "--enable-expert-parallel"),
    ("-dcp", "--decode-context-parallel-size"),
    ("-pcp", "--prefill-context-parallel-size"),
    ("-asc", "--api-server-count"),
    ("-n", "--nnodes"),
    ("-r", "--node-rank"),
    ("-q", "--quantization"),
    ("-O", "--optimization-level"),
    ("-sc", "--speculative-config"),
];
