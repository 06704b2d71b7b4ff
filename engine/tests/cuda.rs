//! The golden models on the CUDA backend, whose kernels the software GPU executes: distributions for one prompt each, since that is slow,
//! and greedy tokens for all.

mod support;

use std::slice;

use halyard_engine::Dtype;
use support::{
    DENSE, QUANTISED,
    check::{check, check_tokens},
    cuda, goldens, options, quantised,
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
        check_tokens(&cuda::open(0..count), "llama", Dtype::BFloat16);
    }
}

#[test]
fn sixteen_bit_activations_choose_the_same_tokens() {
    let devices = cuda::open([0]);
    for model in DENSE {
        for dtype in [Dtype::BFloat16, Dtype::Float16] {
            check_tokens(&devices, model, dtype);
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
