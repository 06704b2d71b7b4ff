//! The golden models on the CUDA backend, whose kernels the software GPU executes: distributions for one prompt each, since that is slow,
//! and greedy tokens for all.

mod support;

use std::slice;

use halyard_engine::{Dtype, LoadOptions};
use support::{
    DENSE, QUANTISED, check::check, cuda, goldens, greedy, ids, options, quantised, submit, tokens,
};

#[test]
fn dense_models() {
    for model in DENSE {
        // Kernels of each architecture.
        let devices = cuda::open(if model == "llama" { cuda::KINDS.to_vec() } else { vec![0] });
        for device in devices {
            let goldens = goldens(&format!("{model}/golden.tensors"));
            check(slice::from_ref(&device), model, &goldens[..1], &options());
        }
    }
}

#[test]
fn dense_models_that_devices_share() {
    for model in DENSE {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        for count in [2, 4] {
            check(&cuda::open(0..count), model, &goldens[..1], &options());
        }
    }
}

/// What ranks exchange is summed by a kernel of the backend.
#[test]
fn shared_models_of_sixteen_bits_choose_the_same_tokens() {
    for count in [2, 4] {
        let options = LoadOptions { dtype: Dtype::BFloat16, ..options() };
        let engine = support::start_shared(&cuda::open(0..count), "llama", &options, Box::new(()));
        for golden in goldens("llama/golden.tensors") {
            let tokens_wanted = u32::try_from(golden.generated.len()).expect("few");
            let found = tokens(submit(&engine, &golden.prompt, greedy(tokens_wanted)));
            assert_eq!(ids(&found), golden.generated, "{count} ranks");
        }
        engine.shutdown();
    }
}

#[test]
fn sixteen_bit_activations_choose_the_same_tokens() {
    let device = cuda::open([0]).remove(0);
    for model in DENSE {
        for dtype in [Dtype::BFloat16, Dtype::Float16] {
            let engine = support::start(&device, model, &LoadOptions { dtype, ..options() });
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
fn quantised_models() {
    let devices = cuda::open([0]);
    for form in quantised() {
        let goldens = goldens(&format!("gguf/llama/golden-{form}.tensors"));
        check(&devices, &format!("gguf/llama/model-{form}.gguf"), &goldens[..1], &options());
    }
}

/// None of their weights is turned into plain numbers.
#[test]
fn quantised_checkpoints() {
    let devices = cuda::open([0]);
    for model in QUANTISED {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        check(&devices, model, &goldens[..1], &options());
    }
}
