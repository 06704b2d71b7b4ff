//! Stand-ins for tests of everything that needs no device.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::{
    batch::Batch,
    kv::KvCache,
    request::{DecodeGraphs, EngineInfo, EngineRequest, SamplingParams, TokenLogprobs},
    runner::{ModelRunner, StepError, StepOutput},
    scheduler::{Scheduler, SchedulerConfig},
    sequence::{Client, Sequence},
    shared::Shared,
};

/// Ids of the fake's vocabulary.
pub(crate) const VOCAB: usize = 1000;

/// Longest sequence of the fake.
pub(crate) const MAX_MODEL_LEN: usize = 200;

pub(crate) fn info() -> EngineInfo {
    EngineInfo {
        max_model_len: MAX_MODEL_LEN,
        vocab_size: VOCAB,
        eos_token_ids: vec![7],
        block_size: 4,
        num_blocks: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 16,
        prefix_caching: true,
        max_logprobs: 5,
        dtype: "float32".into(),
        device: "fake:0".into(),
        tensor_parallel_size: 1,
        weight_bytes: 0,
        kv_bytes: 0,
        dispatch: None,
        graphs: DecodeGraphs::Off("a fake".into()),
    }
}

pub(crate) fn scheduler(
    num_blocks: usize,
    block_size: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
) -> Scheduler {
    let config = SchedulerConfig { max_num_batched_tokens, max_num_seqs, chunked_prefill: true };
    Scheduler::new(config, KvCache::new(num_blocks, block_size, true))
}

pub(crate) fn request(prompt: &[u32], params: &SamplingParams) -> EngineRequest {
    EngineRequest {
        prompt: prompt.to_vec(),
        params: params.clone(),
        cache_salt: None,
        priority: 0,
        arrival: Instant::now(),
    }
}

/// A sequence that nobody listens to.
pub(crate) fn sequence(prompt: &[u32], params: &SamplingParams) -> Sequence {
    let shared = Arc::new(Shared::new(info(), usize::MAX, Duration::from_secs(60), 0));
    let (events, _) = mpsc::unbounded_channel();
    let ticket = shared.enter().expect("open");
    let abandoned = Arc::new(AtomicBool::new(false));
    let client = Client::new(events, abandoned, ticket, Instant::now());
    Sequence::new(request(prompt, params), &info(), 0, client)
}

/// A hash of everything a sequence holds.
fn digest(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01B3).rotate_left(23)
    })
}

/// The token that the fake model says follows `tokens`. Never an end-of-sequence id.
pub(crate) fn next_token(tokens: &[u32]) -> u32 {
    let id = digest(tokens) % (VOCAB as u64 - 10);
    u32::try_from(id).expect("below the vocabulary size") + 10
}

/// What the fake model says of a prompt token after `prefix`.
pub(crate) fn prompt_logprob(prefix: &[u32]) -> TokenLogprobs {
    let logprob = -f32::from(u8::try_from(digest(prefix) % 251).expect("small"));
    TokenLogprobs { logprob, top: Vec::new() }
}

/// What a sequence alone would generate.
pub(crate) fn continuation(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(next_token(&tokens));
    }
    tokens.split_off(prompt.len())
}

/// A model whose every token depends on all tokens before it, read back from a paged cache: a wrong
/// slot, block, position or length anywhere gives a wrong token.
#[derive(Debug)]
pub(crate) struct FakeRunner {
    cache: Vec<Option<(u32, usize)>>,
    block_size: usize,
    /// Called before each step.
    pub(crate) before: fn(&Batch) -> Result<(), StepError>,
}

impl FakeRunner {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self { cache: vec![None; num_blocks * block_size], block_size, before: |_| Ok(()) }
    }

    fn read(&self, batch: &Batch, row: usize) -> Vec<u32> {
        let end = i32::try_from(row + 1).expect("small");
        let member = batch.cu_q[1..].iter().position(|&cu| cu >= end).expect("a row of the batch");
        let kv_len = index(batch.kv_len[member]);
        let after = index(batch.cu_q[member + 1]) - 1 - row;
        let table = &batch.block_table[member * batch.max_blocks..][..batch.max_blocks];
        let read = |position: usize| {
            let block = index(table[position / self.block_size]);
            let cell = self.cache[block * self.block_size + position % self.block_size];
            let (token, written_for) = cell.expect("read before it was written");
            assert_eq!(written_for, position, "another position's token");
            token
        };
        (0..kv_len - after).map(read).collect()
    }
}

fn index(value: i32) -> usize {
    usize::try_from(value).expect("not negative")
}

impl ModelRunner for FakeRunner {
    fn run(
        &mut self,
        batch: &mut Batch,
        _seqs: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), StepError> {
        (self.before)(batch)?;
        for (at, &slot) in batch.slots.iter().enumerate() {
            let token = u32::try_from(batch.ids[at]).expect("not negative");
            let slot = usize::try_from(slot).expect("not negative");
            self.cache[slot] = Some((token, index(batch.positions[at])));
        }
        for sample in &batch.samples {
            out.tokens.push(next_token(&self.read(batch, sample.row)));
            out.logprobs.push(None);
        }
        for prompt in &batch.prompts {
            let rows = prompt.row..prompt.row + prompt.count;
            out.prompts.push(rows.map(|row| prompt_logprob(&self.read(batch, row))).collect());
        }
        Ok(())
    }
}
