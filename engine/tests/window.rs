//! Sliding-window attention: what lies before the window has no influence, what lies in it has.

mod support;

use halyard_core::Device;
use halyard_engine::{EngineEvent, LoadOptions, SamplingParams};
use support::{changed, devices, events, greedy, options, start, submit};

/// The whole distribution after each of a prompt's tokens but the last, by a model of one layer.
fn distributions(device: &Device, window: Option<usize>, prompt: &[u32]) -> Vec<Vec<f32>> {
    let model = changed(
        "llama",
        &[
            ("model_type", "mistral".into()),
            ("architectures", serde_json::json!(["MistralForCausalLM"])),
            ("num_hidden_layers", 1.into()),
            ("sliding_window", window.into()),
        ],
    );
    // Chunks smaller than the window and blocks smaller than both.
    let options = LoadOptions {
        max_logprobs: 1024,
        max_num_batched_tokens: Some(8),
        block_size: Some(4),
        enable_prefix_caching: false,
        ..options()
    };
    let engine = start(device, model.path().to_str().expect("UTF-8"), &options);
    let params = SamplingParams { prompt_logprobs: Some(1024), ..greedy(0) };
    let mut all = events(submit(&engine, prompt, params));
    engine.shutdown();
    let EngineEvent::Prompt(output) = all.remove(0) else { panic!("{all:?}") };
    let by_id = |mut top: Vec<(u32, f32)>| {
        top.sort_by_key(|entry| entry.0);
        top.into_iter().map(|entry| entry.1).collect()
    };
    let rows = output.logprobs.expect("asked for").into_iter().flatten();
    rows.map(|row| by_id(row.top)).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_query_sees_exactly_the_window() {
    const WINDOW: usize = 11;
    let prompt: Vec<u32> = (0..40).map(|at| (at * at * 7 + 3) % 1000).collect();
    for device in devices() {
        let whole = distributions(&device, None, &prompt);
        let windowed = distributions(&device, Some(WINDOW), &prompt);
        for (at, row) in windowed.iter().enumerate() {
            if at < WINDOW {
                assert_eq!(row, &whole[at], "position {at} sees everything");
                continue;
            }
            assert!(distance(row, &whole[at]) > 1e-2, "position {at} sees too much");
            // Rotary embeddings are relative: the window alone, moved to the start, says the same.
            let last = |first: usize| {
                let part = distributions(&device, None, &prompt[first..at + 2]);
                part.last().expect("a row a token").clone()
            };
            if at % 9 == 0 {
                assert!(distance(row, &last(at + 1 - WINDOW)) < 1e-3, "position {at}");
                assert!(distance(row, &last(at + 2 - WINDOW)) > 1e-2, "position {at} sees less");
            }
        }
    }
}
