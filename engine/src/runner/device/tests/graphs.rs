//! Decode steps on the software GPU and the software NPU, replayed from graphs: the bits of the same steps launched kernel by kernel.

#[path = "../../../../tests/support/ascend.rs"]
mod ascend;
#[path = "../../../../tests/support/cuda.rs"]
mod cuda;
#[path = "../../../../tests/support/plugin.rs"]
mod plugin;

use super::*;
use crate::{
    batch::Sample, program::Inputs, request::DecodeGraphs, scheduler::Scheduler, sequence::Sequence,
};

const BLOCK: usize = 16;

/// A request: the step in which it comes, tokens of its prompt, and tokens that it gets.
type Caller = (usize, usize, u32);

/// Between the sizes that are captured, in growing lengths, with prompts in the midst of decode steps.
const CALLERS: [Caller; 6] =
    [(0, 3, 14), (0, 30, 5), (0, 17, 12), (3, 40, 8), (7, 1, 9), (7, 9, 6)];

struct Engine {
    scheduler: Scheduler,
    runner: DeviceRunner,
    vocab: usize,
    batch: Batch,
    out: StepOutput,
}

/// What a step gave: tokens, logits and graphs that were launched.
type Step = (Vec<u32>, Vec<u32>, usize);

fn sequence((_, prompt, max_tokens): Caller, seed: u32) -> Sequence {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let length = u32::try_from(prompt).expect("small");
    let prompt: Vec<u32> = (0..length).map(|at| (at * 37 + seed * 101 + 5) % 1000).collect();
    fake::sequence(&prompt, &params)
}

impl Engine {
    fn load(devices: &[Device], model: &str, dtype: Dtype, enforce_eager: bool) -> Self {
        let checkpoint = Checkpoint::open(&folder(model)).expect("test data");
        let options = LoadOptions {
            dtype,
            enforce_eager,
            max_num_seqs: 6,
            max_num_batched_tokens: Some(64),
            num_blocks_override: Some(64),
            block_size: Some(BLOCK),
            // Long enough for keys to be split.
            max_model_len: Some(512),
            ..LoadOptions::default()
        };
        let plan = Plan::new(devices, checkpoint, &options).expect("a model we know");
        match &plan.info().graphs {
            DecodeGraphs::Captured { sizes, bytes } => {
                assert!(!enforce_eager && sizes == &[1, 2, 4, 6] && *bytes > 0);
            }
            DecodeGraphs::Off(why) => {
                assert_eq!((enforce_eager, &why[..]), (true, "--enforce-eager"));
            }
        }
        let vocab = plan.config().vocab_size;
        let (scheduler, runner) = plan.assemble(&mut |_| {}).expect("loads");
        let (batch, out) = (Batch::with_capacity(64, 6, 32), StepOutput::default());
        Self { scheduler, runner, vocab, batch, out }
    }

    fn schedule(&mut self) -> bool {
        let plan = self.scheduler.schedule();
        self.batch.build(self.scheduler.running(), BLOCK);
        plan.tokens > 0
    }

    fn logits(&self, rows: usize) -> Vec<u32> {
        let mut logits = vec![0.0_f32; rows * self.vocab];
        let exec = &self.runner.model.exec;
        exec.read(&self.runner.sampler.logits, 0, &mut logits).expect("reads");
        logits.into_iter().map(f32::to_bits).collect()
    }

    fn step(&mut self) -> Step {
        self.out.clear();
        self.runner.run(&mut self.batch, self.scheduler.running(), &mut self.out).expect("runs");
        let logits = self.logits(self.batch.samples.len());
        self.scheduler.commit();
        for (&Sample { seq, .. }, &id) in self.batch.samples.iter().zip(&self.out.tokens) {
            self.scheduler.running_mut()[seq].push(id, &[]);
        }
        self.scheduler.retire(|seq| seq.is_over(), drop);
        (self.out.tokens.clone(), logits, self.out.graphs)
    }

    fn play(mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for step in 0.. {
            for (seed, &caller) in (0..).zip(&CALLERS) {
                if caller.0 == step {
                    self.scheduler.add(sequence(caller, seed));
                }
            }
            if !self.schedule() {
                break;
            }
            steps.push(self.step());
        }
        steps
    }
}

fn compare(devices: &[Device], model: &str, dtype: Dtype) {
    let run = |eager| Engine::load(devices, model, dtype, eager).play();
    let (eager, replayed) = (run(true), run(false));
    assert_eq!(eager.len(), replayed.len());
    let mut decodes = 0;
    for (at, (eager, replayed)) in eager.iter().zip(&replayed).enumerate() {
        let name = format!("{model} in {dtype} on {} devices, step {at}", devices.len());
        assert_eq!(eager.0, replayed.0, "{name}: tokens");
        assert!(eager.1 == replayed.1, "{name}: logits");
        assert_eq!(eager.2, 0, "{name}");
        decodes += usize::from(replayed.2 == 2);
    }
    // All but the four in which a prompt is computed.
    assert!(decodes >= 10 && decodes + 2 <= replayed.len(), "{decodes} of {}", replayed.len());
}

#[test]
fn replayed_steps_have_the_bits_of_launched_ones() {
    for (model, dtype) in [
        ("llama", Dtype::BFloat16),
        ("qwen3", Dtype::Float16),
        ("qwen2_moe", Dtype::BFloat16),
        ("mixtral", Dtype::Float32),
        ("gguf/llama/model-q4_k.gguf", Dtype::Float32),
        ("qwen2_awq", Dtype::BFloat16),
    ] {
        compare(&cuda::open([0]), model, dtype);
    }
    for device in cuda::open(cuda::KINDS) {
        compare(&[device], "llama", Dtype::Float16);
    }
}

/// Attention takes lengths from the host there, so its captured tasks are replaced before each replay. Dense, of experts,
/// with weights of four bits, with weights and inputs of eight.
#[test]
fn replayed_steps_of_the_npu_have_the_bits_of_launched_ones() {
    for (model, dtype) in [
        ("llama", Dtype::Float16),
        ("qwen3", Dtype::BFloat16),
        ("qwen3_moe", Dtype::BFloat16),
        ("mixtral_awq", Dtype::Float16),
        ("qwen2_w8a8", Dtype::BFloat16),
    ] {
        compare(&[ascend::open()], model, dtype);
    }
}

/// In f32 the NPU's attention is composed of operators whose number depends on the lengths.
#[test]
fn attention_that_cannot_follow_lengths_is_launched() {
    let checkpoint = Checkpoint::open(&folder("llama")).expect("test data");
    let options = LoadOptions { dtype: Dtype::Float32, ..LoadOptions::default() };
    let plan = Plan::new(&[ascend::open()], checkpoint, &options).expect("a model we know");
    let why = "the kernel of paged_attention reads lengths on the host";
    assert_eq!(plan.info().graphs, DecodeGraphs::Off(why.into()));
}

#[test]
fn replayed_steps_of_devices_that_share_a_model() {
    compare(&cuda::open(0..2), "llama", Dtype::BFloat16);
    compare(&cuda::open(0..2), "qwen2_moe", Dtype::Float32);
    compare(&cuda::open(0..4), "llama", Dtype::Float32);
}

type Spoil<'a> = &'a dyn Fn(&Executable, &Inputs) -> Result<(), DeviceError>;

/// A decode step of three sequences that each begin their second block, filled up to four, and the step before.
struct Replay {
    engine: Engine,
    batch: Batch,
    before: Batch,
}

impl Replay {
    fn on(device: Device) -> Self {
        let mut engine = Engine::load(&[device], "llama", Dtype::BFloat16, false);
        for seed in 0..3 {
            engine.scheduler.add(sequence((0, 12, 100), seed));
        }
        let (mut batch, mut before) = (Batch::default(), Batch::default());
        while engine.schedule() && engine.batch.kv_len != [17; 3] {
            before.copy_inputs(&engine.batch);
            engine.step();
        }
        engine.batch.pad(4);
        batch.copy_inputs(&engine.batch);
        assert!(batch.block_table != before.block_table && batch.max_blocks == 2);
        Self { engine, batch, before }
    }

    /// The logits of its replay, with inputs on the device that are spoilt and other numbers of keys on the host.
    fn run(&mut self, spoil: Spoil<'_>, kv_len: &[i32]) -> Vec<u32> {
        let Engine { runner, vocab, .. } = &mut self.engine;
        let model = &mut runner.model;
        model.write_inputs(&self.batch).expect("copies");
        spoil(&model.exec, &model.inputs).expect("copies");
        let mut batch = Batch::default();
        batch.copy_inputs(&self.batch);
        kv_len.clone_into(&mut batch.kv_len);
        let launched = model.exec.replays();
        model.body(&batch).expect("replays");
        model.head(&[0, 1, 2, 0], 4, Some(4)).expect("replays");
        assert_eq!(model.exec.replays(), launched + 2);
        let mut logits = vec![0.0_f32; 3 * *vocab];
        model.exec.read(&runner.sampler.logits, 0, &mut logits).expect("reads");
        logits.into_iter().map(f32::to_bits).collect()
    }
}

/// Each input of a replayed step is read anew: one that is as it was a step before gives other logits.
fn stale_inputs_are_seen(device: Device, lengths_on_host: bool) {
    let mut replay = Replay::on(device);
    let (mut before, first_block) = (Batch::default(), replay.batch.block_table[0]);
    before.copy_inputs(&replay.before);
    let (kv_len, old) = (replay.batch.kv_len.clone(), [&before.kv_len[..], &[0]].concat());
    let fresh: Spoil<'_> = &|_, _| Ok(());
    let expected = replay.run(fresh, &kv_len);
    let stale: [(&str, Spoil<'_>, &[i32]); 6] = [
        ("ids", &|exec, inputs| exec.write(&inputs.ids, &before.ids), &kv_len),
        ("positions", &|exec, inputs| exec.write(&inputs.positions, &before.positions), &kv_len),
        ("kv_len", &|exec, inputs| exec.write(&inputs.kv_len, &before.kv_len), &kv_len),
        ("kv_len on the host", fresh, &old),
        (
            "block_table",
            &|exec, inputs| exec.write(&inputs.block_table, &[first_block, 0]),
            &kv_len,
        ),
        // Last, since it spoils what was written a step before.
        ("slots", &|exec, inputs| exec.write(&inputs.slots, &before.slots), &kv_len),
    ];
    for (name, spoil, host) in stale {
        let is_read = match name {
            "kv_len" => !lengths_on_host,
            "kv_len on the host" => lengths_on_host,
            _ => true,
        };
        assert_eq!(replay.run(spoil, host) != expected, is_read, "{name} of the step before");
        if name != "slots" {
            assert!(replay.run(fresh, &kv_len) == expected, "after {name}");
        }
    }
}

#[test]
fn a_stale_input_is_seen() {
    stale_inputs_are_seen(cuda::open([0]).remove(0), false);
}

#[test]
fn a_stale_input_is_seen_on_the_npu() {
    stale_inputs_are_seen(ascend::open(), true);
}
