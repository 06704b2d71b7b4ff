//! The command line: what can be typed, and what it means.

pub mod args;
mod config_file;
mod foreign;
mod normalize;
pub mod values;

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

use args::{DeviceArgs, EngineArgs, LogArgs, ModelArgs, SearchArgs, ServerArgs};
pub use config_file::{ConfigError, Setting, parse_config};
pub use normalize::{Line, UsageError, normalize};

/// Serves large language models on whatever accelerator a machine has.
#[derive(Clone, Debug, Parser)]
#[command(name = "halyard", version, about, args_override_self = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve a model over the OpenAI API
    Serve(Box<ServeCommand>),
    /// Run a file of prompts through a model
    Generate(Box<GenerateCommand>),
    /// Measure throughput and latency of a model, or of a server
    Bench(Box<BenchCommand>),
    /// Check a backend's kernels against the reference
    Verify(VerifyCommand),
    /// Show the backends that were found
    Backends(BackendsCommand),
    /// Show the devices of all backends
    Devices(DevicesCommand),
    /// Write completions for a shell to standard output
    Completions(CompletionsCommand),
    /// A rank of a model, in a process of its own: started by the others, with its socket as standard input
    #[command(hide = true)]
    Rank(RankCommand),
}

/// `halyard rank`
#[derive(Args, Clone, Copy, Debug)]
pub struct RankCommand {
    /// Its number, for people who list processes
    #[arg(value_name = "RANK")]
    pub rank: usize,
}

/// `halyard serve`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "documented at their types")]
pub struct ServeCommand {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub server: ServerArgs,
    /// Read flags from a YAML file whose keys are long flags; the command line wins
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Server")]
    pub config: Option<PathBuf>,
}

/// `halyard generate`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "documented at their types")]
pub struct GenerateCommand {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Prompts in, answers out.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input and output")]
pub struct BatchArgs {
    /// Prompts: JSON objects, one a line, with `prompt` or `messages` and any sampling field of the
    /// API; or plain text, one prompt a line. `-` reads standard input
    #[arg(long, short, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    pub input: PathBuf,

    /// Answers as JSON, one a line, in the order of the prompts. `-` writes to standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,

    /// Wrap plain lines in the model's chat template as a user's message
    #[arg(long)]
    pub chat: bool,

    /// Show no progress bar
    #[arg(long, short)]
    pub quiet: bool,
}

/// Sampling for prompts that say nothing of their own. The names are those of the API.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens an answer
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the shortest list of tokens with this mass
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep the k likeliest tokens
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<i64>,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Lower what has appeared
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Lower what has appeared, by how often
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Divide the logits of what has appeared
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Answers a prompt
    #[arg(long, value_name = "N")]
    pub n: Option<i64>,
    /// End at this text; may be given several times
    #[arg(long, value_name = "TEXT", action = ArgAction::Append)]
    pub stop: Vec<String>,
    /// Go on past the model's end-of-sequence ids
    #[arg(long)]
    pub ignore_eos: bool,
}

/// `halyard bench`
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[expect(missing_docs, reason = "documented at their types")]
pub struct BenchCommand {
    #[command(subcommand)]
    pub command: Option<BenchSubcommand>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub bench: OfflineBenchArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What `bench` can measure beside a model.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchSubcommand {
    /// Load a running server and measure what its clients see
    Serve(BenchServeArgs),
}

/// How much to measure.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Measurement")]
pub struct OfflineBenchArgs {
    /// Lengths of prompts to process, each a measurement
    #[arg(long, short = 'p', value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    pub prompt_tokens: Vec<usize>,

    /// Numbers of tokens to generate, each a measurement
    #[arg(long, short = 'g', value_name = "TOKENS", value_delimiter = ',', default_value = "128")]
    pub generate_tokens: Vec<usize>,

    /// Sequences at once, each a round of measurements
    #[arg(long, short = 'b', value_name = "N", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,

    /// Times each measurement is repeated, after one that does not count
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    pub repetitions: usize,

    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `halyard bench serve`
#[derive(Args, Clone, Debug)]
pub struct BenchServeArgs {
    /// The server, for example http://127.0.0.1:8000
    #[arg(long, value_name = "URL")]
    pub url: String,

    /// The model's name; the server's first by default
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// The server's key; HALYARD_API_KEY by default
    #[arg(long, value_name = "KEY", env = "HALYARD_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Requests to send
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub num_prompts: usize,

    /// Requests at once, at most
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub max_concurrency: usize,

    /// Requests a second, arriving at random; without it each waits only for a free place
    #[arg(long, value_name = "R")]
    pub request_rate: Option<f64>,

    /// Tokens a prompt, about
    #[arg(long, alias = "random-input-len", value_name = "TOKENS", default_value_t = 128)]
    pub input_len: usize,

    /// Tokens an answer, exactly
    #[arg(long, alias = "random-output-len", value_name = "TOKENS", default_value_t = 64)]
    pub output_len: usize,

    /// Begin every prompt with this many tokens that all share
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub prefix_len: usize,

    /// Makes prompts and arrivals reproducible
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `halyard verify`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "some are documented at their types")]
pub struct VerifyCommand {
    /// Backends by id or library, with a device's number as in cuda:1; all that were found by default
    #[arg(value_name = "BACKEND")]
    pub backends: Vec<String>,

    #[command(flatten)]
    pub search: SearchArgs,

    /// The full sweep: the default cases and tens of thousands more, for every combination of sizes, dtypes, schemes and options
    /// that models bring; takes minutes instead of seconds
    #[arg(long)]
    pub full: bool,

    /// Time kernels at the shapes of real models instead: microseconds, GB/s, GFLOP/s and the share of what the device can do at
    /// best, which its own COPY and dense LINEAR tell in the same run; --case, --op, --profile and --json work as for cases
    #[arg(long, conflicts_with_all = ["full", "junit", "html"])]
    pub perf: bool,

    /// Only the case of this name, or those whose names hold this
    #[arg(long, value_name = "TEXT")]
    pub case: Option<String>,

    /// Only cases of this profile, such as dense, moe, sample, quant or quant:q4_k; may be given several times
    #[arg(long, value_name = "PROFILE", action = ArgAction::Append)]
    pub profile: Vec<String>,

    /// Only cases of this op, such as linear; may be given several times
    #[arg(long, value_name = "OP", action = ArgAction::Append)]
    pub op: Vec<String>,

    /// Seed of the inputs
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// Threads of the cpu backend; all cores by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Write the reports as JSON to this file; `-` is standard output, without the table
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,

    /// Write the reports as JUnit XML to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub junit: Option<PathBuf>,

    /// Write the reports as one HTML page to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub html: Option<PathBuf>,
}

/// `halyard backends`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "documented at their types")]
pub struct BackendsCommand {
    #[command(subcommand)]
    pub command: BackendsSubcommand,
}

/// What to show of backends.
#[derive(Clone, Debug, Subcommand)]
pub enum BackendsSubcommand {
    /// All that were found, and what was wrong with those that cannot be used
    List(BackendsListArgs),
    /// One backend: versions, devices, what it can compute
    Info(BackendsInfoArgs),
}

/// `halyard backends list`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "some are documented at their types")]
pub struct BackendsListArgs {
    #[command(flatten)]
    pub search: SearchArgs,

    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `halyard backends info`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "documented at their types")]
pub struct BackendsInfoArgs {
    /// A backend's id or library
    #[arg(value_name = "BACKEND")]
    pub backend: String,
    #[command(flatten)]
    pub list: BackendsListArgs,
}

/// `halyard devices`
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "documented at their types")]
pub struct DevicesCommand {
    #[command(flatten)]
    pub list: BackendsListArgs,
}

/// `halyard completions`
#[derive(Args, Clone, Debug)]
pub struct CompletionsCommand {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Parses a line as typed; what is to be logged comes beside it.
///
/// # Errors
/// A [`clap::Error`] that prints itself and knows its exit code; also `--help` and `--version`.
pub fn parse(args: Vec<OsString>) -> Result<(Cli, Vec<String>), clap::Error> {
    use clap::CommandFactory;
    let line = normalize(args, Cli::command()).map_err(|error| {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Cli::command().error(clap::error::ErrorKind::UnknownArgument, message)
    })?;
    Ok((Cli::try_parse_from(line.args)?, line.warnings))
}

#[cfg(test)]
mod tests;
