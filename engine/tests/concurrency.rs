//! Sixty-four callers at once get exactly what each would get alone, bit for bit.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use halyard_core::Device;
use halyard_engine::{
    Dtype, LoadOptions, Observer, RequestHandle, SamplingParams, StepStats, TokenOutput,
};
use support::{greedy, options, ranks, start_shared, submit, tokens};

const CALLERS: usize = 64;

/// Prompts of many lengths; some begin alike.
fn prompts() -> Vec<Vec<u32>> {
    let mut state = 1_u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % 1000
    };
    let common: Vec<u32> = (0..100).map(|_| draw()).collect();
    (0..CALLERS)
        .map(|caller| {
            let shared = [0, 16, 40, 100][caller % 4];
            let own = 1 + caller * 2 % 60;
            common[..shared].iter().copied().chain((0..own).map(|_| draw())).collect()
        })
        .collect()
}

/// A mix of ways to choose, each reproducible.
fn params(caller: usize) -> SamplingParams {
    let base = SamplingParams { logprobs: Some(3), ..greedy(24) };
    match caller % 4 {
        0 | 1 => base,
        2 => SamplingParams {
            temperature: 0.9,
            top_p: 0.9,
            top_k: 40,
            seed: Some(caller as u64),
            ..base
        },
        _ => SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.2,
            frequency_penalty: 0.1,
            logit_bias: vec![(7, 1.5)],
            ..base
        },
    }
}

/// A token with the bits of its log-probability, and of those of the likeliest.
type Exact = (u32, u32, Vec<(u32, u32)>);

/// What must be equal, exactly.
fn bits(outputs: &[TokenOutput]) -> Vec<Exact> {
    let row = |output: &TokenOutput| {
        let logprobs = output.logprobs.as_ref().expect("asked for");
        let top = logprobs.top.iter().map(|&(id, logprob)| (id, logprob.to_bits()));
        (output.id, logprobs.logprob.to_bits(), top.collect())
    };
    outputs.iter().map(row).collect()
}

/// Prefix caching, tokens a step, blocks: few ones force preemption.
type Setting = (bool, usize, Option<usize>);

const SETTINGS: [Setting; 7] = [
    (true, 64, Some(40)),
    (false, 16, Some(24)),
    (true, 128, Some(16)),
    (false, 64, Some(40)),
    (true, 512, None),
    (false, 512, None),
    (true, 16, None),
];

fn check_each(model: &str) {
    let [oracle, fast] = ranks(1);
    // The oracle is slow, and has no tricks whose order could matter.
    check(&oracle, model, Dtype::Float32, &SETTINGS[..2]);
    check(&fast, model, Dtype::Float32, &SETTINGS);
}

fn check(devices: &[Device], model: &str, dtype: Dtype, settings: &[Setting]) {
    let alone = LoadOptions {
        dtype,
        max_num_seqs: 1,
        max_num_batched_tokens: Some(512),
        enable_prefix_caching: false,
        max_model_len: Some(256),
        ..options()
    };
    let prompts = prompts();
    let engine = start_shared(devices, model, &alone, Box::new(()));
    let one = |(caller, prompt): (usize, &Vec<u32>)| {
        bits(&tokens(submit(&engine, prompt, params(caller))))
    };
    let expected: Vec<_> = prompts.iter().enumerate().map(one).collect();
    engine.shutdown();

    for &(caching, chunk, blocks) in settings {
        let crowd = LoadOptions {
            max_num_seqs: 64.min(chunk),
            max_num_batched_tokens: Some(chunk),
            enable_prefix_caching: caching,
            num_blocks_override: blocks,
            block_size: Some(16),
            ..alone.clone()
        };
        let preemptions = Preemptions::default();
        let engine = start_shared(devices, model, &crowd, Box::new(preemptions.clone()));
        let submit = |(caller, prompt): (usize, &Vec<u32>)| submit(&engine, prompt, params(caller));
        let handles: Vec<RequestHandle> = prompts.iter().enumerate().map(submit).collect();
        for (caller, handle) in handles.into_iter().enumerate() {
            let found = bits(&tokens(handle));
            let setting = format!("caching {caching}, chunk {chunk}, blocks {blocks:?}");
            assert_eq!(found, expected[caller], "{model}, caller {caller}, {setting}");
        }
        engine.shutdown();
        let preemptions = preemptions.0.load(Ordering::Relaxed);
        assert_eq!(preemptions > 0, blocks.is_some(), "{blocks:?}: {preemptions} preemptions");
    }
}

/// Counts preemptions.
#[derive(Clone, Default)]
struct Preemptions(Arc<AtomicUsize>);

impl Observer for Preemptions {
    fn step(&mut self, stats: &StepStats) {
        self.0.fetch_add(stats.preemptions, Ordering::Relaxed);
    }
}

#[test]
fn dense() {
    check_each("qwen3");
}

#[test]
fn experts() {
    check_each("qwen2_moe");
}

#[test]
fn quantised() {
    check_each("gguf/llama/model-q4_1.gguf");
}

#[test]
fn sixteen_bits() {
    let [_, fast] = ranks(1);
    check(&fast, "llama", Dtype::BFloat16, &SETTINGS[..3]);
    check(&fast, "mixtral", Dtype::Float16, &SETTINGS[..3]);
}

#[test]
fn shared_by_two() {
    let [_, fast] = ranks(2);
    check(&fast, "qwen2_moe", Dtype::Float32, &SETTINGS[..3]);
    check(&fast, "llama", Dtype::BFloat16, &SETTINGS[3..6]);
}
