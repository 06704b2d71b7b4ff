//! The golden models on the Ascend backend, on the software NPU: distributions, not just tokens.

mod support;

use std::slice;

use halyard_engine::{Dtype, Plan};
use halyard_weights::Checkpoint;
use support::{
    W8A8, ascend,
    check::{check, check_deviation},
    folder, goldens, options,
};

fn check_deviations(models: &[&str], dtype: Dtype) {
    let device = ascend::open();
    for model in models {
        check_deviation(&device, model, dtype);
    }
}

/// Dense, of experts, with weights of four bits, with weights and inputs of eight.
#[test]
fn logits_in_f16_are_as_close_as_the_type_lets_them() {
    let models = ["llama", "qwen2", "qwen3_moe", "llama_awq", "mixtral_awq"];
    check_deviations(&[&models, &W8A8[..]].concat(), Dtype::Float16);
}

/// Without those of four bits, whose scales are f16.
#[test]
fn logits_in_bf16_are_as_close_as_the_type_lets_them() {
    let models = ["llama", "qwen2", "qwen3_moe"];
    check_deviations(&[&models, &W8A8[..]].concat(), Dtype::BFloat16);
}

/// One prompt each: products of f32 with weights in codes go the slow way.
#[test]
fn logits_in_f32_are_the_golden_ones() {
    let device = ascend::open();
    for model in ["llama", "qwen3_moe", "llama_awq", "mixtral_awq"] {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        check(slice::from_ref(&device), model, &goldens[..1], &options());
    }
}

#[test]
fn inputs_of_eight_bits_want_activations_of_sixteen() {
    let device = ascend::open();
    for model in W8A8 {
        let checkpoint = Checkpoint::open(&folder(model)).expect("test data");
        let plan = Plan::new(slice::from_ref(&device), checkpoint, &options());
        let loaded = plan.and_then(|plan| plan.load(Box::new(()), &mut |_| {}));
        let mut error: &dyn std::error::Error = &loaded.expect_err("f32");
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            (error, text) = (source, format!("{text}: {source}"));
        }
        assert!(text.contains("supported: 1 (int8 a token) with int8_channel, both f16"), "{text}");
    }
}
