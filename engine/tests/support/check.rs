//! An engine against the outputs of an independent implementation.

use std::slice;

use halyard_core::Device;
use halyard_engine::{Dtype, EngineEvent, LoadOptions, SamplingParams, TokenLogprobs};

use super::{
    Golden, devices, events, goldens, greedy, ids, log_softmax, options, start_shared, submit,
    tokens,
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

/// How often an operation of a backend may round to the compute type where the oracle's rounds once: its experts gate, multiply, multiply
/// again and add up.
const ROUNDINGS: f64 = 4.0;

/// The golden tokens, and logits as close to the golden ones as 16 bits let them be.
///
/// How far a type of 16 bits leads from the goldens, which are of f32, no number says for all models: it is measured. The oracle in the same type
/// computes every operation in f64 and rounds its result once, so its deviation is what the type alone costs. A backend's operations round
/// up to [`ROUNDINGS`] times as often. Errors of roundings are independent, so their squares add up, and a root of the mean square may be
/// `sqrt(ROUNDINGS)` times the oracle's; the largest of as many deviations grows with it. What is wrong deviates by more: a
/// row, a head, a scale or a position that is another's moves logits by their own size.
///
/// Inputs of eight bits make the oracle's own deviation larger, since one code that is another changes all that come after it. Whether they are rounded
/// at all shows in f32 alone, where the goldens' bound is a hundredth of what that rounding costs.
///
/// Only the logits that tokens were chosen from are compared: the prompts of the goldens are such that no expert is exchanged for another there by
/// rounding, which elsewhere may happen.
pub(crate) fn check_deviation(device: &Device, model: &str, dtype: Dtype) {
    let found = Deviation::of(device, model, dtype);
    let oracle = Deviation::of(&devices()[0], model, dtype);
    let most = ROUNDINGS.sqrt();
    let fits = found.rms <= most * oracle.rms && found.largest <= most * oracle.largest;
    assert!(fits, "{model} in {dtype}: {found:?}, the oracle's {oracle:?}");
}

/// Of log-probabilities from the golden ones.
#[derive(Debug)]
struct Deviation {
    /// The root of the mean square.
    rms: f64,
    largest: f64,
}

impl Deviation {
    /// Of every id at each generated token, which must be the golden one.
    fn of(device: &Device, model: &str, dtype: Dtype) -> Self {
        let options = LoadOptions { dtype, max_logprobs: VOCAB, ..options() };
        let engine = start_shared(slice::from_ref(device), model, &options, Box::new(()));
        let name = format!("{model} in {dtype} on {}", engine.info().device);
        let mut all = Vec::new();
        for golden in goldens(&format!("{model}/golden.tensors")) {
            let count = u32::try_from(golden.generated.len()).expect("few");
            let params = SamplingParams { logprobs: Some(VOCAB), ..greedy(count) };
            let found = tokens(submit(&engine, &golden.prompt, params));
            assert_eq!(ids(&found), golden.generated, "{name}");
            for (token, logits) in found.iter().zip(&golden.generated_logits) {
                let expected = log_softmax(logits);
                let found = token.logprobs.as_ref().expect("asked for");
                assert_eq!(found.top.len(), expected.len(), "{name}");
                let off = |&(id, logprob): &(u32, f32)| f64::from(logprob) - expected[id as usize];
                all.extend(found.top.iter().map(off));
            }
        }
        engine.shutdown();
        let squares: f64 = all.iter().map(|off| off * off).sum();
        let largest = all.iter().fold(0.0, |most: f64, off| most.max(off.abs()));
        assert!(squares.is_finite(), "{name}");
        Self { rms: (squares / all.len() as f64).sqrt(), largest }
    }
}
