//! The command line of the real binary: what it says and how it ends.

use std::{
    fs,
    process::{Command, Output},
};

fn halyard(line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halyard"))
        .args(line)
        .env_remove("HALYARD_BACKEND_PATH")
        .env_remove("RUST_LOG")
        .output()
        .expect("the binary starts")
}

/// Exit code and standard error.
fn fails(line: &[&str]) -> (i32, String) {
    let output = halyard(line);
    (output.status.code().expect("no signal"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn says(line: &[&str]) -> String {
    let output = halyard(line);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line:?}: {complaint}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn help_and_version() {
    assert_eq!(says(&["--version"]), format!("halyard {}\n", env!("CARGO_PKG_VERSION")));
    let help = says(&["--help"]);
    for command in ["serve", "generate", "bench", "verify", "backends", "devices", "completions"] {
        assert!(help.contains(command), "{command} is not in\n{help}");
    }
    let help = says(&["serve", "--help"]);
    for part in ["Model:", "Device:", "Memory and scheduling:", "Server:", "--max-model-len"] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
    assert!(says(&["bench", "serve", "--help"]).contains("--max-concurrency"));
}

#[test]
fn completions_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(says(&["completions", shell]).contains("halyard"), "{shell}");
    }
}

#[test]
fn lines_that_cannot_be_understood_end_with_2() {
    for (line, message) in [
        (&["serve", "m", "--max-modle-len", "5"][..], "did you mean --max-model-len?"),
        (
            &["serve", "m", "--pipeline-parallel-size", "2"],
            "not supported yet: devices share a model by --tensor-parallel-size only",
        ),
        (&["serve", "m", "-tp", "0"], "no count"),
        (&["serve", "m", "--enable-lora"], "not supported yet"),
        (&["serve", "m", "--max-model-len", "lots"], "no count"),
        (&["serve", "m", "--dtype", "int3"], "float32"),
        (&["serve", "m", "--port", "70000"], "70000"),
        (&["serve", "m", "--gpu-memory-utilization", "1.5"], "above 0 and at most 1"),
        (&["serve", "m", "--config", "/nonexistent.yaml"], "cannot read the configuration"),
        (&["sevre", "m"], "serve"),
        (&[], "Usage"),
    ] {
        let (code, text) = fails(line);
        assert_eq!(code, 2, "{line:?}: {text}");
        assert!(text.contains(message), "{line:?}: {text}");
    }
}

#[test]
fn failures_end_with_1_and_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("UTF-8");
    for (line, message) in [
        (&["serve", "/nonexistent", "--port", "0"][..], "/nonexistent"),
        (&["serve", "--port", "0"], "name a model"),
        (&["serve", folder, "--port", "0"], folder),
        (&["generate", "/nonexistent", "-i", "/nonexistent"], "cannot read the prompts"),
        (&["backends", "info", "none"], "there is no backend `none`"),
        (&["backends", "list", "--backend-path", "/nonexistent/x.so"], "/nonexistent/x.so"),
        (&["bench", "serve", "--url", "https://x"], "TLS is not supported"),
        (&["bench", "serve", "--url", "http://127.0.0.1:1"], "cannot connect"),
    ] {
        let (code, text) = fails(line);
        assert_eq!(code, 1, "{line:?}: {text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{line:?}: {text}");
        assert!(errors[0].contains(message), "{line:?}: {text}");
    }
}

#[test]
fn a_configuration_gives_flags_and_the_line_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("serve.yaml");
    let path = path.to_str().expect("UTF-8");
    let run = |yaml: &str, line: &[&str]| {
        fs::write(path, yaml).expect("written");
        fails(&[&["serve", "--config", path], line].concat())
    };
    let (code, text) = run("model: /from/the/file\nport: 0\nmax_model_len: 4k\n", &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("/from/the/file"), "{text}");
    let (_, text) = run("model: /from/the/file\nport: 0\n", &["/from/the/line"]);
    assert!(text.contains("/from/the/line"), "{text}");
    let (code, text) = run("model: m\nmax-modle-len: 5\n", &[]);
    assert_eq!(code, 2);
    assert!(text.contains("unknown key `max-modle-len`; did you mean `max-model-len`?"), "{text}");
    let (code, text) = run("model: m\npipeline_parallel_size: 2\n", &[]);
    assert_eq!(code, 2);
    assert!(text.contains("not supported yet"), "{text}");
    let (code, text) = run("a: b: c", &[]);
    assert_eq!(code, 2);
    assert!(text.contains("serve.yaml is wrong"), "{text}");
    let (code, text) = run(
        "model: m\nport: 0\nworker_use_ray: false\nenable_prometheus: true\napi_keys: []\nlog_level: INFO\nenable-prefix-caching: false\n",
        &[],
    );
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("--enable-prometheus is an old flag"), "{text}");
}

#[test]
fn devices_that_cannot_share_a_model_say_what_would_do() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/models/llama");
    let run = |flags: &[&str]| {
        let (code, text) = fails(&[&["bench", model, "--device"], flags].concat());
        assert_eq!(code, 1, "{text}");
        text
    };
    let text = run(&["cpu", "-tp", "3"]);
    assert!(text.contains("num_attention_heads = 4 is no multiple of 3; 1, 2, 4 work"), "{text}");
    let text = run(&["cpu:0,1"]);
    assert!(text.contains("cpu:0,1 names 2 devices, --tensor-parallel-size is 1"), "{text}");
    let text = run(&["cpu:0,1", "-tp", "2"]);
    assert!(text.contains("cpu:1 is not there"), "{text}");
}

#[test]
fn what_is_no_backend_is_said_of_the_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("libhalyard_backend_bad.so");
    fs::write(&library, b"not a library").expect("written");
    let list = says(&["backends", "list", "--backend-path", library.to_str().expect("UTF-8")]);
    assert!(list.contains("bad"), "{list}");
    assert!(list.contains("cannot load it"), "{list}");
}
