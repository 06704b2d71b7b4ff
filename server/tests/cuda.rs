//! The real binary with the CUDA backend's own library, on the software GPU in the driver's place: golden models over HTTP.

mod common;

use common::{
    MODELS, Server,
    golden::{answers_golden_at_once, answers_golden_from_ranks, answers_golden_to_the_end},
    gpu::Machine,
    printed, value,
};
use serde_json::{Value, json};

/// The first with every kernel verified before, as users have it.
#[test]
fn each_architecture_answers_with_golden_tokens() {
    for (device, dtype, conformance) in
        [("a100-80g", "bfloat16", "require"), ("h100", "float32", "off"), ("l20", "float16", "off")]
    {
        let flags = ["--dtype", dtype, "--conformance", conformance];
        answers(&Machine::with(device), "llama", &flags);
    }
}

#[test]
fn dense_models_and_mixtures_of_experts() {
    for model in ["qwen2", "qwen3", "mixtral", "qwen2_moe"] {
        answers(&Machine::with("h100"), model, &["--dtype", "float32"]);
    }
}

/// AWQ, GPTQ in act-order, FP8, the last in experts, too.
#[test]
fn quantised_models() {
    let machine = Machine::with("l20");
    for (model, like) in [
        ("llama_awq", "llama"),
        ("qwen2_gptq_act_order", "qwen2"),
        ("llama_fp8", "llama"),
        ("qwen3_moe_fp8", "qwen3_moe"),
    ] {
        let tokenizer = format!("{MODELS}/{like}");
        answers(&machine, model, &["--dtype", "float32", "--tokenizer", &tokenizer]);
    }
}

/// Products of codes with codes, alone and on two devices; the first of each with its kernels verified.
#[test]
fn weights_and_inputs_of_eight_bits() {
    for (model, like) in [("qwen2_w8a8", "qwen2"), ("qwen3_moe_w8a8", "qwen3_moe")] {
        let tokenizer = format!("{MODELS}/{like}");
        for (devices, flags) in [
            ("a100-80g", ["--dtype", "bfloat16", "--conformance", "require"]),
            ("h100,h100", ["--dtype", "float32", "--tensor-parallel-size", "2"]),
            ("l20,l20", ["--dtype", "float16", "--tensor-parallel-size", "2"]),
        ] {
            let flags = [&["--tokenizer", &tokenizer], &flags[..]].concat();
            answers(&Machine::with(devices), model, &flags);
        }
    }
}

/// Prompts are multiplied by cuBLASLt, and verified before with bf16.
#[test]
fn dense_layers_by_cublaslt() {
    let machine = Machine::with("a100-80g").with_cublaslt();
    let devices = printed(machine.halyard("devices").arg("--json"));
    assert!(devices.contains("cuBLASLt 12.2.5"), "{devices}");
    answers(&machine, "llama", &["--dtype", "bfloat16", "--conformance", "require"]);
    answers(&machine, "qwen2", &["--dtype", "float32"]);
}

fn answers(machine: &Machine, model: &str, flags: &[&str]) {
    answers_golden_to_the_end(Server::run(&mut machine.serve(model, flags)), model);
}

#[test]
fn devices_that_share_a_model() {
    let machine = Machine::with("h100,h100,h100,h100");
    for (model, ranks) in [("llama", 2), ("llama", 4), ("qwen3_moe", 2)] {
        let flags = ["--dtype", "float32", "--tensor-parallel-size", &ranks.to_string()];
        let server = Server::run(&mut machine.serve(model, &flags));
        answers_golden_from_ranks(&server, model, "cuda", ranks);
    }
}

#[test]
fn devices_that_share_a_quantised_model() {
    let machine = Machine::with("h100,h100");
    for (model, like) in [("llama_awq", "llama"), ("llama_gptq", "llama")] {
        let tokenizer = format!("{MODELS}/{like}");
        let flags = ["--dtype", "float32", "-tp", "2", "--tokenizer", &tokenizer];
        answers(&machine, model, &flags);
    }
}

/// What the ranks exchange is verified, too.
#[test]
fn shared_models_of_sixteen_bits_are_verified_and_answer_alike() {
    let flags = ["--dtype", "bfloat16", "-tp", "2", "--conformance", "require"];
    answers(&Machine::with("a100-80g,a100-80g"), "llama", &flags);
}

#[test]
fn many_requests_at_a_time_get_what_each_gets_alone() {
    let server = Server::run(&mut Machine::with("l20").serve("llama", &["--dtype", "float32"]));
    answers_golden_at_once(server.client(), "llama", 24);
}

#[test]
fn what_devices_measure_is_shown() {
    let machine = Machine::with("l20,rtx4090");
    let table = printed(&mut machine.halyard("devices"));
    let row = |device: &str| table.lines().find(|line| line.starts_with(device)).expect("a row");
    assert!(row("cuda:0").contains("0 B used, 0 % busy, 40 °C, 76 W"), "{table}");
    assert!(row("cuda:1").contains("0 B used, 0 % busy, 41 °C, 76 W"), "{table}");
    let json = printed(machine.halyard("devices").arg("--json"));
    let devices: Value = serde_json::from_str(&json).expect("JSON");
    let of = |index: usize| &devices.as_array().expect("a list")[index]["telemetry"];
    assert_eq!((&of(1)["temp_c"], &of(1)["ecc_errors"]), (&json!(40.0), &json!(0.0)));
    assert_eq!(of(2)["ecc_errors"], Value::Null, "a card that does not count them");

    let server = Server::run(&mut machine.serve("llama", &[]));
    let metrics = server.client().get("/metrics");
    let measured = |name: &str| value(&metrics, name, "device=\"cuda:0\",rank=\"0\"");
    assert_eq!(measured("halyard:device_temperature_celsius"), Some(40.0), "{metrics}");
    assert_eq!(measured("halyard:device_power_watts"), Some(75.5), "{metrics}");
    assert_eq!(measured("halyard:device_utilization_ratio"), Some(0.0), "{metrics}");
    assert_eq!(measured("halyard:device_clock_hertz"), Some(2.52e9), "{metrics}");
    assert_eq!(measured("halyard:device_ecc_errors_total"), Some(0.0), "{metrics}");
    let used = measured("halyard:device_memory_used_bytes").expect("measured");
    let free = measured("halyard:device_memory_free_bytes").expect("measured");
    let total = 48.0 * f64::from(1 << 30);
    assert!(used > 1e6 && (used + free - total).abs() < 1.0, "{metrics}");
}

/// Nothing is shown, and nothing is wrong.
#[test]
fn without_the_management_library_memory_alone_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let nothing = folder.path().join("nothing");
    std::fs::write(&nothing, "no library").expect("written");
    let machine = Machine::with("l20").replacing("libnvidia-ml.so.1", &nothing);
    let output = machine.halyard("devices").output().expect("the binary starts");
    let (table, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && log.is_empty(), "{log}");
    let row = table.lines().find(|line| line.starts_with("cuda:0")).expect("a row");
    assert!(row.contains("0 B used") && !row.contains("°C") && !row.contains("busy"), "{row}");
    let server = Server::run(&mut machine.serve("llama", &[]));
    let metrics = server.client().get("/metrics");
    assert!(value(&metrics, "halyard:device_memory_used_bytes", "").is_some(), "{metrics}");
    assert!(!metrics.contains("temperature"), "{metrics}");
}
