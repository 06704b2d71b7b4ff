//! A real model, SmolLM2-135M-Instruct in Q4_1, against an independent implementation's answers.
//!
//! The file is not in the project; `HALYARD_SMOLLM2` names it, or it lies where the demo puts it.

mod support;

use std::path::PathBuf;

use halyard_engine::{EngineEvent, LoadOptions, Plan, SamplingParams};
use halyard_weights::Checkpoint;
use support::{devices, events, folder, greedy, ids, options, submit, tokens};

fn model() -> Option<PathBuf> {
    let named = std::env::var_os("HALYARD_SMOLLM2").map(PathBuf::from);
    let demo = folder("../../target/demo/SmolLM2-135M-Instruct.Q4_1.gguf");
    named.or_else(|| demo.exists().then_some(demo))
}

fn numbers(value: &serde_json::Value) -> Vec<u32> {
    let number = |id: &serde_json::Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array().expect("a list").iter().map(|id| number(id).expect("an id")).collect()
}

#[test]
fn answers_and_perplexity_where_the_model_is_at_hand() {
    let Some(path) = model() else {
        eprintln!("SmolLM2 is not at hand: `cargo xtask demo` fetches it");
        return;
    };
    let text = std::fs::read_to_string(folder("../real/real-smollm2.json")).expect("test data");
    let golden: serde_json::Value = serde_json::from_str(&text).expect("test data");
    // The oracle would take minutes.
    let device = devices().pop().expect("the fast one comes last");
    let options = LoadOptions { max_model_len: Some(1024), ..options() };
    let plan = Plan::new(&[device], Checkpoint::open(&path).expect("opens"), &options);
    let engine = plan.expect("a model we know").load(Box::new(()), &mut |_| {}).expect("loads");

    for case in golden["cases"].as_array().expect("a list") {
        let expected = numbers(&case["generated"]);
        let params = greedy(u32::try_from(expected.len()).expect("few"));
        let found = ids(&tokens(submit(&engine, &numbers(&case["input_ids"]), params)));
        assert_eq!(found, expected);
    }

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
