//! An engine against the outputs of an independent implementation.

use halyard_core::Device;
use halyard_engine::{Dtype, EngineEvent, LoadOptions, SamplingParams, TokenLogprobs};

use super::{
    Golden, events, goldens, greedy, ids, log_softmax, options, start_shared, submit, tokens,
};

const VOCAB: u32 = 1024;
const TOLERANCE: f64 = 1e-3;

/// The distribution at every position, and the greedy tokens, of a model that the devices share.
pub(crate) fn check(devices: &[Device], model: &str, goldens: &[Golden], options: &LoadOptions) {
    let options = LoadOptions { max_logprobs: VOCAB, ..options.clone() };
    let engine = start_shared(devices, model, &options, Box::new(()));
    assert_eq!(engine.info().tensor_parallel_size, devices.len());
    let name = format!("{model} on {}", engine.info().device);
    for golden in goldens {
        let params = SamplingParams {
            logprobs: Some(VOCAB),
            prompt_logprobs: Some(VOCAB),
            ..greedy(u32::try_from(golden.generated.len()).expect("few"))
        };
        let mut events = events(submit(&engine, &golden.prompt, params)).into_iter();
        let Some(EngineEvent::Prompt(prompt)) = events.next() else { panic!("{name}: no prompt") };
        let prompt = prompt.logprobs.expect("asked for");
        assert_eq!(prompt.len(), golden.prompt.len());
        for (row, found) in prompt[1..].iter().enumerate() {
            let found = found.as_ref().expect("all but the first");
            compare(&name, row, found, &golden.logits[row], golden.prompt[row + 1]);
        }
        let mut generated = Vec::new();
        for event in events {
            if let EngineEvent::Token(token) = event {
                let row = generated.len();
                let found = token.logprobs.expect("asked for");
                compare(&name, row, &found, &golden.generated_logits[row], golden.generated[row]);
                generated.push(token.id);
            }
        }
        assert_eq!(generated, golden.generated, "{name}");
    }
    engine.shutdown();
}

/// The greedy tokens alone, of activations of a type.
pub(crate) fn check_tokens(devices: &[Device], model: &str, dtype: Dtype) {
    let options = LoadOptions { dtype, ..options() };
    let engine = start_shared(devices, model, &options, Box::new(()));
    assert_eq!(engine.info().dtype, dtype.to_string());
    for golden in goldens(&format!("{model}/golden.tensors")) {
        let count = u32::try_from(golden.generated.len()).expect("few");
        let found = tokens(submit(&engine, &golden.prompt, greedy(count)));
        assert_eq!(ids(&found), golden.generated, "{model} in {dtype} on {} ranks", devices.len());
    }
    engine.shutdown();
}

/// Every id's log-probability, and that of the token that stands there.
fn compare(name: &str, row: usize, found: &TokenLogprobs, logits: &[f32], token: u32) {
    let expected = log_softmax(logits);
    assert_eq!(found.top.len(), logits.len());
    for &(id, logprob) in &found.top {
        let difference = (f64::from(logprob) - expected[id as usize]).abs();
        assert!(difference < TOLERANCE, "{name}: row {row}, id {id}: off by {difference}");
    }
    let difference = (f64::from(found.logprob) - expected[token as usize]).abs();
    assert!(difference < TOLERANCE, "{name}: row {row}, its own token: off by {difference}");
}
