//! The real binary with a tiny model, over HTTP.

mod common;

use std::{
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use common::{
    Client, Server, body_of,
    golden::{PLAIN, answers_golden, greedy, prompts},
};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// The ids of a streamed answer.
fn streamed(client: Client<'_>, request: &Value) -> Vec<Value> {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let events = client.events(PLAIN, &request);
    events
        .iter()
        .flat_map(|e| e["choices"][0]["token_ids"].as_array().expect("ids").clone())
        .collect()
}

fn load(client: Client<'_>) -> u64 {
    let load: Value = serde_json::from_str(&client.get("/load")).expect("JSON");
    load["server_load"].as_u64().expect("a count")
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn golden_tokens_over_http() {
    for model in ["llama", "llama32", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe"] {
        answers_golden(Server::start(model, &[]).client(), model);
    }
}

/// With the gate as usual: the shares' kernels are proved, too.
#[test]
fn devices_that_share_a_model_answer_alike() {
    for (model, flag, ranks) in
        [("llama", "--tensor-parallel-size", 2), ("qwen2_moe", "-tp", 2), ("qwen3", "--tp", 4)]
    {
        let mut server = Server::start(model, &[flag, &ranks.to_string()]);
        let client = server.client();
        answers_golden(client, model);
        let metrics = client.get("/metrics");
        let line = metrics.lines().find(|l| l.starts_with("halyard:tensor_parallel_size{"));
        assert!(line.is_some_and(|line| line.ends_with(&format!(" {ranks}"))), "{line:?}");
        assert_eq!(client.get("/health"), "");
        server.signal("TERM");
        assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
    }
}

/// Requests of many lengths, some of which begin alike.
fn mixed_requests() -> Vec<Value> {
    let prompts: Vec<Vec<u32>> = prompts("llama").into_iter().map(|prompt| prompt.ids).collect();
    (0..64)
        .map(|i| {
            let mut ids: Vec<u32> = Vec::new();
            while ids.len() < 5 + 7 * (i % 13) {
                ids.extend_from_slice(&prompts[(ids.len() + i % 4) % prompts.len()]);
            }
            greedy(&json!(ids), 8 + i % 23)
        })
        .collect()
}

#[test]
fn sixty_four_streams_get_what_each_would_get_alone() {
    let requests = mixed_requests();
    let alone: Vec<Vec<Value>> = {
        let server = Server::start("llama", &["--no-enable-prefix-caching"]);
        requests.iter().map(|request| streamed(server.client(), request)).collect()
    };
    for (request, ids) in requests.iter().zip(&alone) {
        assert_eq!(request["max_tokens"], ids.len());
    }
    let chunks = |tokens: &'static str, seqs: &'static str| {
        vec!["--max-num-batched-tokens", tokens, "--max-num-seqs", seqs]
    };
    let with = |mut flags: Vec<&'static str>, more: &[&'static str]| {
        flags.extend_from_slice(more);
        flags
    };
    for flags in [
        chunks("512", "64"),
        chunks("16", "16"),
        with(chunks("64", "64"), &["--no-enable-prefix-caching"]),
        // Blocks for little more than the longest sequence: the others are preempted.
        with(
            chunks("128", "64"),
            &["--block-size", "16", "--num-gpu-blocks-override", "16", "--max-model-len", "256"],
        ),
    ] {
        let server = Server::start("llama", &flags);
        let client = server.client();
        scope(|scope| {
            let handles: Vec<_> = requests
                .iter()
                .map(|request| scope.spawn(move || streamed(client, request)))
                .collect();
            for (i, (handle, alone)) in handles.into_iter().zip(&alone).enumerate() {
                let together = handle.join().expect("no panic");
                assert_eq!(together, *alone, "request {i} with {flags:?}");
            }
        });
        if flags.contains(&"16") && flags.contains(&"--num-gpu-blocks-override") {
            let metrics = client.get("/metrics");
            let line = metrics.lines().find(|l| l.starts_with("halyard:num_preemptions_total"));
            assert!(!line.expect("the series").ends_with(" 0"), "nothing was preempted");
        }
    }
}

#[test]
fn a_client_that_goes_away_frees_its_blocks() {
    let server = Server::start("llama", &[]);
    let client = server.client();
    for stream in [false, true] {
        let mut request = greedy(&json!("a"), 500);
        request["stream"] = json!(stream);
        request["n"] = json!(4);
        request["temperature"] = json!(1);
        let socket = client.send(PLAIN, &request);
        eventually("the request", || load(client) == 4);
        drop(socket);
        eventually("its end", || load(client) == 0);
    }
    let metrics = client.get("/metrics");
    let is_free =
        |line: &str| line.starts_with("halyard:kv_cache_usage_perc") && line.ends_with(" 0.0");
    assert!(metrics.lines().any(is_free), "{metrics}");
}

#[test]
fn chats_and_errors() {
    let server = Server::start("llama", &["--enable-prompt-tokens-details"]);
    let client = server.client();
    let request = json!({
        "messages": [{"role": "user", "content": "Where does the river go, and why does it run?"}],
        "max_tokens": 4, "temperature": 0,
    });
    let first = client.post(CHAT, &request);
    let again = client.post(CHAT, &request);
    assert_eq!(first["choices"], again["choices"]);
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached.expect("a count") >= 16, "{again}");
    let error = body_of(client.send(CHAT, &json!({"messages": []})), 400);
    assert!(error.contains("\"param\":\"messages\""), "{error}");
}

#[test]
fn a_signal_drains_and_ends_with_0() {
    let mut server = Server::start("llama", &[]);
    let request = greedy(&json!("a"), 300);
    let socket = server.client().send(PLAIN, &request);
    eventually("the request", || load(server.client()) == 1);
    server.signal("TERM");
    let answer: Value = serde_json::from_str(&body_of(socket, 200)).expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 300);
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_drain_has_a_limit_and_a_second_signal_has_none() {
    // More tokens than can be made before the end, on any machine.
    let long = json!({
        "prompt": vec!["a"; 64], "max_tokens": 500, "temperature": 1, "ignore_eos": true,
        "stream": true, "n": 8,
    });
    let mut server = Server::start("llama", &["--shutdown-timeout", "0"]);
    let socket = server.client().send(PLAIN, &long);
    eventually("the request", || load(server.client()) == 512);
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
    let text = body_of(socket, 200);
    assert!(text.contains("\"finish_reason\":\"abort\""), "the streams end in order");

    let mut server = Server::start("llama", &["--shutdown-timeout", "600"]);
    let _socket = server.client().send(PLAIN, &long);
    eventually("the request", || load(server.client()) == 512);
    server.signal("TERM");
    sleep(Duration::from_millis(300));
    server.signal("INT");
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(130));
}
