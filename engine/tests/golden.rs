//! The golden models against the outputs of an independent implementation, through the whole engine:
//! the distribution at every position, and the greedy tokens.

mod support;

use std::slice;

use halyard_core::Device;
use halyard_engine::{Dtype, LoadOptions, Plan};
use halyard_weights::{Checkpoint, QuantMethod};
use support::{
    DENSE, Golden, QUANTISED, W8A8,
    check::{check, check_deviation, check_tokens},
    devices, goldens, options, quantised, widened,
};

fn check_alone(device: &Device, model: &str, goldens: &[Golden]) {
    check(slice::from_ref(device), model, goldens, &options());
}

#[test]
fn dense_models() {
    for device in devices() {
        for model in DENSE {
            check_alone(&device, model, &goldens(&format!("{model}/golden.tensors")));
        }
    }
}

#[test]
fn quantised_models() {
    for device in devices() {
        for form in quantised() {
            let goldens = goldens(&format!("gguf/llama/golden-{form}.tensors"));
            check_alone(&device, &format!("gguf/llama/model-{form}.gguf"), &goldens);
        }
    }
}

#[test]
fn quantised_checkpoints() {
    for device in devices() {
        for model in QUANTISED {
            let goldens = goldens(&format!("{model}/golden.tensors"));
            // A device that lacks a scheme computes with plain numbers: the values are the same.
            let options = LoadOptions { allow_dequant: true, ..options() };
            check(slice::from_ref(&device), model, &goldens, &options);
        }
    }
}

#[test]
fn the_oracle_reads_quantised_checkpoints_as_they_are() {
    for model in QUANTISED {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        check_alone(&devices()[0], model, &goldens);
    }
}

/// No code is another than the golden one: prompts and tokens have no input close to halfway between two (`testdata/make_w8a8_models.py`).
#[test]
fn inputs_of_eight_bits() {
    for device in devices() {
        for model in W8A8 {
            check_alone(&device, model, &goldens(&format!("{model}/golden.tensors")));
        }
    }
}

#[test]
fn a_wish_for_a_quantisation_is_a_check() {
    let plan = |model: &str, quantization| {
        let checkpoint = Checkpoint::open(&support::folder(model)).expect("test data");
        let options = LoadOptions { quantization, ..options() };
        Plan::new(&devices()[..1], checkpoint, &options).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(plan("llama_awq", Some(QuantMethod::Awq)), Ok(()));
    assert_eq!(plan("gguf/llama/model-q4_0.gguf", Some(QuantMethod::Gguf)), Ok(()));
    assert_eq!(plan("qwen3_moe_w8a8", Some(QuantMethod::Ascend)), Ok(()));
    let error = plan("llama_awq", Some(QuantMethod::Gptq)).expect_err("another");
    assert_eq!(error, "quantization: gptq was asked for, the model's weights are awq's");
    let error = plan("llama", Some(QuantMethod::Fp8)).expect_err("none");
    assert_eq!(error, "quantization: fp8 was asked for, the model's weights are not quantised");
}

#[test]
fn sixteen_bit_activations_choose_the_same_tokens() {
    for device in devices() {
        for model in DENSE.into_iter().chain(W8A8) {
            for dtype in [Dtype::BFloat16, Dtype::Float16] {
                check_tokens(slice::from_ref(&device), model, dtype);
            }
        }
    }
}

#[test]
fn logits_in_sixteen_bits_are_as_close_as_the_type_lets_them() {
    let [_, cpu] = &devices()[..] else { unreachable!("two") };
    for model in ["llama", "qwen3_moe", "llama_awq", W8A8[0], W8A8[1]] {
        for dtype in [Dtype::BFloat16, Dtype::Float16] {
            check_deviation(cpu, model, dtype);
        }
    }
}

#[test]
fn dense_models_as_gguf() {
    for device in devices() {
        for model in DENSE.iter().filter(|model| **model != "llama") {
            let goldens = goldens(&format!("{model}/golden.tensors"));
            check_alone(&device, &format!("gguf/{model}/model-bf16.gguf"), &goldens);
        }
    }
}

#[test]
fn parts_of_a_layer_may_be_stored_differently() {
    let model = widened("qwen2", |name| name.contains("k_proj") || name.contains("up_proj"));
    for device in devices() {
        let goldens = goldens("qwen2/golden.tensors");
        check_alone(&device, model.path().to_str().expect("UTF-8"), &goldens);
    }
}
