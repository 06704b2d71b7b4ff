//! The golden models on the CUDA backend, whose kernels the software GPU executes: distributions for one prompt each, since that is slow,
//! and greedy tokens for all.

mod support;

use std::{
    slice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use halyard_engine::{DecodeGraphs, Dtype, LoadOptions, Observer, StepStats};
use support::{
    DENSE, QUANTISED, W8A8,
    check::{check, check_deviation, check_tokens},
    cuda, goldens, greedy, ids, options, quantised, start_shared, submit, tokens,
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
    for model in DENSE.into_iter().chain(W8A8) {
        for dtype in [Dtype::BFloat16, Dtype::Float16] {
            check_tokens(&devices, model, dtype);
        }
    }
}

#[test]
fn logits_in_sixteen_bits_are_as_close_as_the_type_lets_them() {
    let device = &cuda::open([0])[0];
    for model in W8A8 {
        for dtype in [Dtype::BFloat16, Dtype::Float16] {
            check_deviation(device, model, dtype);
        }
    }
}

/// Counts graphs that were launched.
#[derive(Clone, Default)]
struct Launches(Arc<AtomicUsize>);

impl Observer for Launches {
    fn step(&mut self, stats: &StepStats) {
        self.0.fetch_add(stats.graphs, Ordering::Relaxed);
    }
}

/// All prompts at once, so that steps have padding; most tests here replay what they can.
#[test]
fn steps_are_replayed_unless_they_should_not_be() {
    for (model, ranks, enforce_eager) in
        [("llama", 1, false), ("llama", 1, true), ("mixtral", 2, false), ("mixtral", 2, true)]
    {
        let options = LoadOptions { enforce_eager, ..options() };
        let launches = Launches::default();
        let devices = cuda::open(0..ranks);
        let engine = start_shared(&devices, model, &options, Box::new(launches.clone()));
        let captured = matches!(engine.info().graphs, DecodeGraphs::Captured { .. });
        assert_eq!(captured, !enforce_eager, "{:?}", engine.info().graphs);
        let goldens = goldens(&format!("{model}/golden.tensors"));
        let start = |golden: &support::Golden| {
            let count = u32::try_from(golden.generated.len()).expect("few");
            submit(&engine, &golden.prompt, greedy(count))
        };
        let all: Vec<_> = goldens.iter().map(start).collect();
        for (handle, golden) in all.into_iter().zip(&goldens) {
            assert_eq!(ids(&tokens(handle)), golden.generated, "{model}");
        }
        engine.shutdown();
        let launches = launches.0.load(Ordering::Relaxed);
        let decodes = goldens.iter().map(|golden| golden.generated.len() - 1).max().expect("some");
        assert!(if enforce_eager { launches == 0 } else { launches >= decodes }, "{launches}");
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

/// Codes times codes, alone and in two parts.
#[test]
fn inputs_of_eight_bits() {
    for model in W8A8 {
        for (count, file) in [(1, "golden"), (2, "golden-tp2")] {
            let goldens = goldens(&format!("{model}/{file}.tensors"));
            check(&cuda::open(0..count), model, &goldens[..1], &options());
        }
    }
}
