//! From a line to its meaning.

use std::{ffi::OsString, fs};

use clap::CommandFactory;

use super::{
    values::{Conformance, Dtype, Length, SchedulingPolicy},
    *,
};

fn parsed(line: &[&str]) -> Cli {
    let args = ["halyard"].iter().chain(line).map(OsString::from).collect();
    parse(args).unwrap_or_else(|error| panic!("{line:?}: {error}")).0
}

fn serve(line: &[&str]) -> ServeCommand {
    match parsed(&[&["serve"], line].concat()).command {
        Command::Serve(command) => *command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_commands_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_long_line() {
    let command = serve(&[
        "models/m",
        "--host",
        "::1",
        "--port",
        "0",
        "--served_model_name",
        "a",
        "b",
        "--device",
        "cuda:1",
        "--backend-path",
        "/a",
        "--backend-path=/b",
        "--dtype=half",
        "--max-model-len",
        "4k",
        "--max-num-seqs",
        "8",
        "--max_num_batched_tokens",
        "1K",
        "--block-size",
        "32",
        "--gpu_memory_utilization",
        "0.5",
        "--no-enable-prefix-caching",
        "--enable-chunked-prefill",
        "--api-key",
        "k1",
        "k2",
        "--seed",
        "3",
        "--max-logprobs",
        "9",
        "--shutdown-timeout",
        "5",
        "--max-num-queued-reqs",
        "7",
        "--allowed-origins",
        "[\"*\"]",
        "--conformance",
        "warn",
        "--threads",
        "2",
        "--scheduling-policy",
        "priority",
        "--enforce-eager",
        "--trust-remote-code",
        "--load-format",
        "gguf",
        "--chat-template",
        "{{ messages }}",
        "--generation-config",
        "vllm",
        "--disable-log-requests",
        "--uvicorn-log-level",
        "warning",
    ]);
    assert_eq!(command.model.path(), Some("models/m"));
    assert_eq!(command.model.dtype, Dtype::Float16);
    assert_eq!(command.model.max_model_len, Length::Tokens(4000));
    assert_eq!(command.server.served_model_name, ["a", "b"]);
    assert_eq!(command.server.api_key, ["k1", "k2"]);
    assert_eq!((command.server.host.as_str(), command.server.port), ("::1", 0));
    assert_eq!(command.device.device.to_string(), "cuda:1");
    assert_eq!(command.device.search.backend_path.len(), 2);
    assert_eq!(command.device.conformance, Conformance::Warn);
    let engine = command.engine;
    assert_eq!((engine.max_num_seqs, engine.max_num_batched_tokens), (Some(8), Some(1024)));
    assert_eq!((engine.block_size, engine.max_num_queued_reqs), (Some(32), Some(7)));
    assert!(engine.no_enable_prefix_caching && !engine.no_enable_chunked_prefill);
    assert_eq!(engine.scheduling_policy, SchedulingPolicy::Priority);
}

#[test]
fn the_last_of_two_wins() {
    let command = serve(&[
        "m",
        "--port",
        "1",
        "--port",
        "2",
        "--api-key",
        "a",
        "b",
        "--api-key",
        "c",
        "--no-enable-prefix-caching",
        "--enable-prefix-caching",
    ]);
    assert_eq!((command.server.port, command.server.api_key), (2, vec!["c".to_owned()]));
    assert!(!command.engine.no_enable_prefix_caching);
}

#[test]
fn the_line_wins_over_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.yaml");
    let yaml = "model: of-file\nport: 1\nserved-model-name: [a, b]\nenable-prefix-caching: false\ndtype: fp16\nenforce_eager: false\n";
    fs::write(&path, yaml).expect("written");
    let path = path.to_str().expect("UTF-8");
    let command = serve(&["--config", path]);
    assert_eq!(command.model.path(), Some("of-file"));
    assert_eq!((command.server.port, command.server.served_model_name.len()), (1, 2));
    assert!(command.engine.no_enable_prefix_caching);
    assert_eq!(command.model.dtype, Dtype::Float16);
    let command = serve(&["of-line", "--port", "2", "--config", path, "--served-model-name", "c"]);
    assert_eq!(command.model.path(), Some("of-line"));
    assert_eq!((command.server.port, command.server.served_model_name), (2, vec!["c".to_owned()]));
}

#[test]
fn other_commands() {
    let Command::Bench(bench) = parsed(&["bench", "m", "-p", "1,2", "-g", "0", "-r", "3"]).command
    else {
        panic!("no bench");
    };
    assert_eq!((bench.bench.prompt_tokens, bench.bench.repetitions), (vec![1, 2], 3));
    let line = ["bench", "serve", "--url", "http://x", "--request-rate", "2.5"];
    let Command::Bench(bench) = parsed(&line).command else { panic!("no bench") };
    let Some(BenchSubcommand::Serve(args)) = bench.command else { panic!("no serve") };
    assert_eq!(args.request_rate, Some(2.5));
    let line = ["verify", "cuda:1", "cpu", "--profile", "quant", "--op", "linear"];
    let Command::Verify(verify) = parsed(&line).command else { panic!("no verify") };
    assert_eq!(verify.backends, ["cuda:1", "cpu"]);
    let line = ["generate", "m", "-i", "in", "-o", "out", "--top-k", "-1", "--stop", "a"];
    let Command::Generate(generate) = parsed(&line).command else { panic!("no generate") };
    assert_eq!(generate.sampling.top_k, Some(-1));
}
