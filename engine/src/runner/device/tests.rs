//! The golden models' logits at every prompt position, as the device computes them.

use std::path::PathBuf;

use halyard_core::{Backend, Device};
use halyard_weights::Checkpoint;
use safetensors::SafeTensors;

use super::*;
use crate::{Dtype, LoadOptions, Plan, fake, request::SamplingParams};

mod graphs;

const TOLERANCE: f32 = 1e-3;

fn folder(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(file)
}

fn backends() -> [Backend; 2] {
    [halyard_sdk::module::<halyard_cpu_ref::CpuRef>(), halyard_cpu::module()].map(Backend::builtin)
}

/// As many devices as there are to be ranks.
fn open(backend: &Backend, ranks: usize) -> Vec<Device> {
    (0..ranks).map(|_| backend.open(0, &[]).expect("opens")).collect()
}

fn words(tensors: &SafeTensors<'_>, name: &str) -> Vec<[u8; 4]> {
    let tensor = tensors.tensor(name).expect("test data");
    tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
}

/// The logits of all positions of a prompt.
fn logits(devices: &[Device], model: &str, prompt: &[u32]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(&folder(model)).expect("test data");
    let options = LoadOptions {
        dtype: Dtype::Float32,
        max_num_seqs: prompt.len(),
        max_num_batched_tokens: Some(prompt.len()),
        num_blocks_override: Some(8),
        block_size: Some(16),
        max_model_len: Some(128),
        ..LoadOptions::default()
    };
    let plan = Plan::new(devices, checkpoint, &options).expect("a model we know");
    let vocab = plan.config().vocab_size;
    let (mut scheduler, mut runner) = plan.assemble(&mut |_| {}).expect("loads");
    scheduler.add(fake::sequence(prompt, &SamplingParams::default()));
    scheduler.schedule();
    let mut batch = Batch::default();
    batch.build(scheduler.running(), 16);
    runner.forward(&batch).expect("runs");
    let rows: Vec<i32> = (0..prompt.len()).map(small).collect();
    runner.head(&rows, &batch).expect("runs");
    let mut logits = vec![0.0; prompt.len() * vocab];
    let exec = &runner.model.exec;
    exec.read(&runner.sampler.logits, 0, &mut logits).expect("reads");
    logits
}

fn check(model: &str, golden: &str, ranks: usize) {
    let bytes = std::fs::read(folder(golden)).expect("test data");
    let tensors = SafeTensors::deserialize(&bytes).expect("test data");
    for backend in backends() {
        let devices = open(&backend, ranks);
        for k in 0..3 {
            let prompt = words(&tensors, &format!("p{k}.input_ids"));
            let prompt: Vec<u32> = prompt.into_iter().map(u32::from_le_bytes).collect();
            let expected = words(&tensors, &format!("p{k}.logits"));
            let found = logits(&devices, model, &prompt);
            assert_eq!(found.len(), expected.len());
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                let difference = (found - f32::from_le_bytes(expected)).abs();
                assert!(
                    difference < TOLERANCE,
                    "{model} on {devices:?}, prompt {k}, element {at}: off by {difference}"
                );
            }
        }
    }
}

#[test]
fn dense_models() {
    for model in ["llama", "llama32", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"] {
        for ranks in [1, 2, 4] {
            check(model, &format!("{model}/golden.tensors"), ranks);
        }
    }
}

#[test]
fn quantised_models() {
    for form in
        ["iq4_nl", "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0"]
    {
        let model = format!("gguf/llama/model-{form}.gguf");
        check(&model, &format!("gguf/llama/golden-{form}.tensors"), 1);
    }
}
