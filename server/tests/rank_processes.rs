//! The real binary with ranks that are processes, over HTTP: golden tokens, and each way in which one of them can end.

mod common;

use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{
    MODELS, SERVE, Server, body_of,
    failure::{error, refused, refused_after},
    golden::{PLAIN, answers_golden, greedy},
    gpu::Machine,
    halyard,
};
use serde_json::{Value, json};

const MP: [&str; 2] = ["--distributed-executor-backend", "mp"];

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        sleep(Duration::from_millis(2));
    }
}

fn flags<'a>(ranks: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["-tp", ranks], &MP[..], more].concat()
}

/// The processes that a process has started and that are there yet, those that nobody waited for among them.
fn children(of: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{of}/task")) else { return Vec::new() };
    let lists = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
    let lists: Vec<String> = lists.map(Result::unwrap_or_default).collect();
    let ids = lists.iter().flat_map(|list| list.split_whitespace());
    let mut ids: Vec<u32> = ids.map(|id| id.parse().expect("a number")).collect();
    ids.sort_unstable();
    ids
}

/// Whether a process is there and has not ended.
fn lives(id: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { return false };
    // After the name, which is in brackets, comes the state.
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn kill(signal: &str, id: u32) {
    let status = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// With the gate as usual: kernels of all ranks, and exchanges between the processes.
#[test]
fn golden_tokens_from_processes() {
    for (model, ranks) in [("llama", 2), ("qwen3", 4), ("qwen2_moe", 2)] {
        let mut server = Server::start(model, &flags(&ranks.to_string(), &[]));
        let processes = children(server.id());
        assert_eq!(processes.len(), ranks - 1);
        answers_golden(server.client(), model);
        let metrics = server.client().get("/metrics");
        for rank in 0..ranks {
            let labels = format!("device=\"cpu:0\",rank=\"{rank}\"");
            assert!(metrics.contains(&labels), "{labels}: {metrics}");
        }
        assert_eq!(server.client().get("/health"), "");
        server.signal("TERM");
        assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(0));
        assert!(!processes.iter().any(|&id| lives(id)));
        let log = server.rest_of_log();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

#[test]
fn golden_tokens_from_software_gpus_in_processes() {
    for (devices, ranks, more) in [
        ("h100,h100", "2", vec!["--dtype", "float32", "--conformance", "require"]),
        ("h100,h100,h100,h100", "4", vec!["--dtype", "float32"]),
        ("a100-80g,a100-80g", "2", vec!["--dtype", "bfloat16", "--enforce-eager"]),
    ] {
        let machine = Machine::with(devices);
        let mut server = Server::run(&mut machine.serve("llama", &flags(ranks, &more)));
        answers_golden(server.client(), "llama");
        let metrics = server.client().get("/metrics");
        let graphs = metrics.lines().find(|l| l.starts_with("halyard:graph_launches_total"));
        let replayed = graphs.is_some_and(|line| !line.ends_with(" 0"));
        assert_eq!(replayed, !more.contains(&"--enforce-eager"), "{graphs:?}");
        for rank in 0..ranks.parse().expect("a number") {
            let labels =
                format!("memory_allocated_bytes{{device=\"cuda:{rank}\",rank=\"{rank}\"}}");
            assert!(metrics.contains(&labels), "{labels}: {metrics}");
        }
        server.signal("TERM");
        assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(0));
    }
}

/// A server that has lost a rank: everybody is told, and it ends in order.
fn lost(server: &mut Server, words: &[&str]) {
    let client = server.client();
    eventually("its health", || client.status("/health") == 503);
    let health = error(&body_of(client.ask("/health"), 503));
    let refused = error(&body_of(client.send(PLAIN, &greedy(&json!("a"), 4)), 503));
    for word in words {
        assert!(health.contains(word) && refused.contains(word), "{word}: {health}; {refused}");
    }
    assert!(client.get("/metrics").contains("halyard:num_requests_running{"));
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(0));
    let log = server.rest_of_log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_process_that_is_killed_is_named() {
    for busy in [false, true] {
        let mut server = Server::start("llama", &flags("2", &[]));
        let [rank] = children(server.id())[..] else { panic!("one process") };
        let answer = busy.then(|| {
            let answer = server.client().send(PLAIN, &greedy(&json!("a"), 500));
            eventually("the request", || server.client().get("/load").contains('1'));
            answer
        });
        kill("KILL", rank);
        let cause = format!("rank 1 of 2 (pid {rank}) was killed by signal 9");
        if let Some(answer) = answer {
            let failed = error(&body_of(answer, 500));
            assert!(failed.contains(&cause), "{failed}");
        }
        eventually("its end", || children(server.id()).is_empty());
        lost(&mut server, &[&cause]);
    }
    // The others see it leave, too, and are not the cause.
    let mut server = Server::start("llama", &flags("4", &[]));
    let processes = children(server.id());
    let answer = server.client().send(PLAIN, &greedy(&json!("a"), 500));
    eventually("the request", || server.client().get("/load").contains('1'));
    kill("KILL", processes[2]);
    let cause = format!("(pid {}) was killed by signal 9", processes[2]);
    let failed = error(&body_of(answer, 500));
    assert!(failed.contains(&cause), "{failed}");
    lost(&mut server, &[&cause]);
    assert!(!processes.iter().any(|&id| lives(id)));
}

#[test]
fn a_device_that_is_lost_takes_only_its_process_down() {
    let machine = Machine::with("h100,h100").failing("700 launch 150 of attention on 1");
    let more = ["--dtype", "float32"];
    let mut server = Server::run(&mut machine.serve("llama", &flags("2", &more)));
    let failed = server.client().send(PLAIN, &greedy(&json!("a"), 200));
    let failed = error(&body_of(failed, 500));
    for word in ["rank 1 of 2 (pid ", "CUDA_ERROR_ILLEGAL_ADDRESS", "attention_f32_f32"] {
        assert!(failed.contains(word), "{failed}");
    }
    lost(&mut server, &["rank 1 of 2 (pid ", "CUDA_ERROR_ILLEGAL_ADDRESS"]);
}

#[test]
fn what_keeps_a_process_from_loading_ends_the_start() {
    // Stopped, so that it is still loading when it is killed.
    let stop = |server: u32| {
        eventually("a process", || !children(server).is_empty());
        let rank = children(server)[0];
        kill("STOP", rank);
        kill("KILL", rank);
    };
    let mut serve = halyard("serve");
    serve.arg(format!("{MODELS}/llama")).args(SERVE).args(["--device", "cpu"]);
    let words = ["cannot load", "rank 1 of 2 (pid ", "was killed by signal 9"];
    refused_after(serve.args(flags("2", &[])), stop, &words);

    let few = Machine::with("l20,l20");
    let words = ["rank 1 of 2 (pid ", "cuda:5 is not there", "has 2 devices"];
    refused(&mut few.serve("llama", &flags("2", &["--device", "cuda:0,5"])), &words);
    let words = ["--tensor-parallel-size 4 needs 4 devices", "cuda has 2"];
    refused(&mut few.serve("llama", &flags("4", &[])), &words);
    let small = Machine::with("l20,l20:1M");
    let words = ["rank 1 of 2 (pid ", "MiB for weights", "device's 1.0 MiB"];
    refused(&mut small.serve("llama", &flags("2", &[])), &words);
}

#[test]
fn processes_end_with_their_server() {
    let mut server = Server::start("llama", &flags("4", &[]));
    let processes = children(server.id());
    let _busy = server.client().send(PLAIN, &greedy(&json!("a"), 500));
    server.signal("KILL");
    server.wait(Duration::from_secs(10));
    eventually("their end", || !processes.iter().any(|&id| lives(id)));

    // While loading, when nobody reads what they say.
    let mut serve = halyard("serve");
    serve.arg(format!("{MODELS}/llama")).args(SERVE).args(["--device", "cpu"]);
    let mut process = serve.args(flags("2", &[])).stderr(Stdio::null()).spawn().expect("starts");
    eventually("a process", || !children(process.id()).is_empty());
    let processes = children(process.id());
    process.kill().expect("our child");
    process.wait().expect("our child");
    eventually("their end", || !processes.iter().any(|&id| lives(id)));
}

/// As a terminal does it: every process gets the signal.
#[test]
fn a_signal_to_all_lets_requests_finish() {
    let mut server = Server::start("llama", &flags("2", &[]));
    let processes = children(server.id());
    let answer = server.client().send(PLAIN, &greedy(&json!("a"), 300));
    eventually("the request", || server.client().get("/load").contains('1'));
    for &id in &processes {
        kill("INT", id);
        kill("TERM", id);
    }
    server.signal("INT");
    let answer: Value = serde_json::from_str(&body_of(answer, 200)).expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 300);
    assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(0));
    assert!(!processes.iter().any(|&id| lives(id)));
}

#[test]
fn lines_of_the_log_say_whose_they_are() {
    for (format, begin) in [("text", "rank 1 of 2: 2"), ("json", "{\"rank\":1,\"timestamp\":")] {
        let mut generate = halyard("generate");
        generate.arg(format!("{MODELS}/llama")).args(["--device", "cpu", "--max-tokens", "2"]);
        generate.args(flags("2", &["--log-format", format])).stdin(Stdio::piped());
        generate.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = generate.spawn().expect("starts");
        std::io::Write::write_all(&mut process.stdin.take().expect("piped"), b"a\nb\n")
            .expect("written");
        let (mut answers, mut log) = (String::new(), String::new());
        process.stdout.take().expect("piped").read_to_string(&mut answers).expect("UTF-8");
        process.stderr.take().expect("piped").read_to_string(&mut log).expect("UTF-8");
        assert_eq!(process.wait().expect("our child").code(), Some(0), "{log}");
        assert_eq!(answers.lines().count(), 2, "{answers}");
        assert!(log.lines().any(|line| line.starts_with(begin)), "{log}");
        if format == "json" {
            let is_json = |line: &str| serde_json::from_str::<Value>(line).is_ok();
            assert!(log.lines().all(is_json), "{log}");
        }
    }
}

#[test]
fn the_command_is_not_for_people() {
    let output = halyard("rank").arg("1").stdin(Stdio::null()).output().expect("starts");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.starts_with("error: `halyard rank` is started by"), "{error}");
    let help = halyard("--help").output().expect("starts").stdout;
    assert!(!String::from_utf8_lossy(&help).contains("rank"));
}
