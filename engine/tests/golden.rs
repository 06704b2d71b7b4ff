//! The golden models against the outputs of an independent implementation, through the whole engine:
//! the distribution at every position, and the greedy tokens.

mod support;

use halyard_core::Device;
use halyard_engine::{Dtype, EngineEvent, LoadOptions, Plan, SamplingParams, TokenLogprobs};
use halyard_weights::{Checkpoint, QuantMethod};
use support::{
    DENSE, Golden, QUANTISED, devices, goldens, greedy, ids, log_softmax, options, quantised,
    submit, tokens, widened,
};

const VOCAB: u32 = 1024;
const TOLERANCE: f64 = 1e-3;

fn check(device: &Device, model: &str, goldens: &[Golden]) {
    check_with(device, model, goldens, &options());
}

fn check_with(device: &Device, model: &str, goldens: &[Golden], options: &LoadOptions) {
    let options = LoadOptions { max_logprobs: VOCAB, ..options.clone() };
    let engine = support::start(device, model, &options);
    let name = format!("{model} on {}", engine.info().device);
    for golden in goldens {
        let params = SamplingParams {
            logprobs: Some(VOCAB),
            prompt_logprobs: Some(VOCAB),
            ..greedy(u32::try_from(golden.generated.len()).expect("few"))
        };
        let mut events = support::events(submit(&engine, &golden.prompt, params)).into_iter();
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

#[test]
fn dense_models() {
    for device in devices() {
        for model in DENSE {
            check(&device, model, &goldens(&format!("{model}/golden.tensors")));
        }
    }
}

#[test]
fn quantised_models() {
    for device in devices() {
        for form in quantised() {
            let goldens = goldens(&format!("gguf/llama/golden-{form}.tensors"));
            check(&device, &format!("gguf/llama/model-{form}.gguf"), &goldens);
        }
    }
}

#[test]
fn quantised_checkpoints() {
    for device in devices() {
        for model in QUANTISED {
            let goldens = goldens(&format!("{model}/golden.tensors"));
            // A device that lacks a scheme computes with plain numbers: the values are the same.
            check_with(&device, model, &goldens, &LoadOptions { allow_dequant: true, ..options() });
        }
    }
}

#[test]
fn the_oracle_reads_quantised_checkpoints_as_they_are() {
    for model in QUANTISED {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        check(&devices()[0], model, &goldens);
    }
}

#[test]
fn a_wish_for_a_quantisation_is_a_check() {
    let plan = |model: &str, quantization| {
        let checkpoint = Checkpoint::open(&support::folder(model)).expect("test data");
        let options = LoadOptions { quantization, ..options() };
        Plan::new(&devices()[0], checkpoint, &options).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(plan("llama_awq", Some(QuantMethod::Awq)), Ok(()));
    assert_eq!(plan("gguf/llama/model-q4_0.gguf", Some(QuantMethod::Gguf)), Ok(()));
    let error = plan("llama_awq", Some(QuantMethod::Gptq)).expect_err("another");
    assert_eq!(error, "quantization: gptq was asked for, the model's weights are awq's");
    let error = plan("llama", Some(QuantMethod::Fp8)).expect_err("none");
    assert_eq!(error, "quantization: fp8 was asked for, the model's weights are not quantised");
}

#[test]
fn sixteen_bit_activations_choose_the_same_tokens() {
    for device in devices() {
        for (dtype, model) in DENSE
            .iter()
            .flat_map(|model| [Dtype::BFloat16, Dtype::Float16].map(|dtype| (dtype, model)))
        {
            let engine = support::start(&device, model, &LoadOptions { dtype, ..options() });
            assert_eq!(engine.info().dtype, dtype.to_string());
            for golden in goldens(&format!("{model}/golden.tensors")) {
                let count = u32::try_from(golden.generated.len()).expect("few");
                let found = tokens(submit(&engine, &golden.prompt, greedy(count)));
                assert_eq!(ids(&found), golden.generated, "{model} in {dtype}");
            }
            engine.shutdown();
        }
    }
}

#[test]
fn dense_models_as_gguf() {
    for device in devices() {
        for model in DENSE.iter().filter(|model| **model != "llama") {
            let goldens = goldens(&format!("{model}/golden.tensors"));
            check(&device, &format!("gguf/{model}/model-bf16.gguf"), &goldens);
        }
    }
}

#[test]
fn parts_of_a_layer_may_be_stored_differently() {
    let model = widened("qwen2", |name| name.contains("k_proj") || name.contains("up_proj"));
    for device in devices() {
        let goldens = goldens("qwen2/golden.tensors");
        check(&device, model.path().to_str().expect("UTF-8"), &goldens);
    }
}
