//! A device that fails, and files that are wrong: each is an error for whom it concerns, never the end of the process.

mod support;

use std::{
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use halyard_core::{Backend, Device};
use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_engine::{
    EngineEvent, FinishReason, LoadError, LoadOptions, Plan, RequestError, SubmitError,
};
use halyard_sdk::{
    Error, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc, KvLayout, LaunchArgs, MemRef, OpDesc,
    OpKind, Options, PropKey, Result, Stream, Support, Weight, WeightDesc, WeightFill, WeightPlan,
};
use halyard_weights::Checkpoint;
use support::{changed, events, folder, greedy, options, start, submit, tokens};

const FINE: u8 = 0;
const FAIL: u8 = 1;
const PANIC: u8 = 2;

/// The reference backend, whose attention does what `MODE` says.
struct Faulty<const WHICH: usize>;
struct FaultyDevice<const WHICH: usize>(RefDevice);
struct FaultyKernel<const WHICH: usize>(Box<dyn Kernel>);

static MODE: [AtomicU8; 2] = [const { AtomicU8::new(FINE) }; 2];

impl<const WHICH: usize> halyard_sdk::Backend for Faulty<WHICH> {
    type Device = FaultyDevice<WHICH>;

    fn info(key: InfoKey) -> String {
        CpuRef::info(key)
    }
    fn probe() -> i32 {
        1
    }
    fn device_count() -> Result<u32> {
        Ok(1)
    }
    fn open(ordinal: u32, options: Options) -> Result<Self::Device> {
        Ok(FaultyDevice(CpuRef::open(ordinal, options)?))
    }
}

impl<const WHICH: usize> InlineDevice for FaultyDevice<WHICH> {
    fn memory(&self) -> &HostMemory {
        self.0.memory()
    }
    fn property(&self, key: PropKey) -> Option<u64> {
        InlineDevice::property(&self.0, key)
    }
    fn info(&self, key: InfoKey) -> String {
        InlineDevice::info(&self.0, key)
    }
    fn support(&self, op: &OpDesc<'_>) -> Support {
        InlineDevice::support(&self.0, op)
    }
    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        let kernel = InlineDevice::prepare(&self.0, op)?;
        if op.kind == OpKind::PAGED_ATTENTION {
            return Ok(Box::new(FaultyKernel::<WHICH>(kernel)));
        }
        Ok(kernel)
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        InlineDevice::weight_plan(&self.0, w)
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        InlineDevice::weight_create(&self.0, w, dst)
    }
    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        InlineDevice::weight_fill(&self.0, w, f)
    }
    fn weight_seal(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_seal(&self.0, w)
    }
    fn weight_destroy(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_destroy(&self.0, w)
    }
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        InlineDevice::kv_layout(&self.0, kv)
    }
}

impl<const WHICH: usize> Kernel for FaultyKernel<WHICH> {
    fn flags(&self) -> u64 {
        self.0.flags()
    }
    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        match MODE[WHICH].load(Ordering::Relaxed) {
            FAIL => Err(Error::invalid("no attention today")),
            PANIC => panic!("attention lost its head"),
            _ => self.0.launch(stream, args),
        }
    }
}

fn faulty<const WHICH: usize>() -> Device {
    let module = halyard_sdk::module::<Faulty<WHICH>>();
    Backend::builtin(module).open(0, &[]).expect("opens")
}

#[test]
fn a_failing_kernel_fails_the_requests_of_its_step() {
    let engine = start(&faulty::<0>(), "llama", &options());
    let expected = tokens(submit(&engine, &[1, 2, 3], greedy(5)));
    MODE[0].store(FAIL, Ordering::Relaxed);
    match &events(submit(&engine, &[1, 2, 3], greedy(5)))[..] {
        [EngineEvent::Failed(RequestError::Device(message))] => {
            assert!(message.contains("no attention today"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    MODE[0].store(FINE, Ordering::Relaxed);
    assert_eq!(engine.health(), Ok(()));
    assert_eq!(tokens(submit(&engine, &[1, 2, 3], greedy(5))), expected);
    engine.shutdown();
}

#[test]
fn a_panicking_kernel_ends_the_engine_and_not_the_process() {
    let engine = start(&faulty::<1>(), "llama", &options());
    let mut bystander = submit(&engine, &[1, 2, 3], greedy(200));
    bystander.blocking_next().expect("running");
    MODE[1].store(PANIC, Ordering::Relaxed);
    let last = events(bystander).pop();
    let Some(EngineEvent::Failed(RequestError::Device(message))) = last else { panic!("{last:?}") };
    assert!(message.contains("attention lost its head"), "{message}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.health().is_ok() {
        assert!(Instant::now() < deadline, "still healthy");
    }
    let refused = engine.submit(support::request(&[1], greedy(1)));
    assert!(matches!(refused, Err(SubmitError::EngineDead(_))));
    engine.shutdown();
}

fn plan(path: &Path, options: &LoadOptions) -> std::result::Result<Plan, LoadError> {
    let device = Backend::builtin(halyard_sdk::module::<CpuRef>()).open(0, &[]).expect("opens");
    Plan::new(&[device], Checkpoint::open(path).expect("opens"), options)
}

#[test]
fn tensors_that_are_missing_or_misshapen_are_named() {
    for (key, value, tensor) in [
        ("num_hidden_layers", 3, "model.layers.2.input_layernorm.weight"),
        ("intermediate_size", 192, "model.layers.0.mlp.gate_proj.weight"),
        ("vocab_size", 1000, "model.embed_tokens.weight"),
    ] {
        let folder = changed("llama", &[(key, value.into())]);
        let error = plan(folder.path(), &options()).expect_err(key).to_string();
        assert!(error.contains(tensor), "{key}: {error}");
    }
}

#[test]
fn options_that_cannot_be_met_are_named() {
    let llama = folder("llama");
    for (options, expected) in [
        (LoadOptions { max_model_len: Some(513), ..options() }, "max_model_len"),
        (LoadOptions { max_num_seqs: 0, ..options() }, "max_num_seqs"),
        (LoadOptions { max_num_batched_tokens: Some(7), ..options() }, "max_num_batched_tokens"),
        (LoadOptions { block_size: Some(12), ..options() }, "block_size"),
        (LoadOptions { gpu_memory_utilization: 1.5, ..options() }, "gpu_memory_utilization"),
        (
            LoadOptions {
                max_model_len: Some(512),
                kv_cache_memory_bytes: Some(1 << 16),
                ..options()
            },
            "one sequence of max_model_len = 512 tokens needs",
        ),
    ] {
        let error = plan(&llama, &options).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_small_cache_lowers_a_length_that_nobody_asked_for() {
    let small = LoadOptions { num_blocks_override: Some(10), block_size: Some(16), ..options() };
    let plan = plan(&folder("llama"), &small).expect("fits");
    assert_eq!((plan.info().max_model_len, plan.info().num_blocks), (160, 10));
    let engine = plan.load(Box::new(()), &mut |_| {}).expect("loads");
    let all = events(submit(&engine, &[5; 150], greedy(50)));
    assert_eq!(all.last(), Some(&EngineEvent::Finished(FinishReason::Length)));
    assert_eq!(all.len(), 1 + 10 + 1);
    engine.shutdown();
}

#[test]
fn the_progress_ends_at_its_total() {
    let mut seen = Vec::new();
    let plan = plan(&folder("qwen3_moe"), &options()).expect("fits");
    assert!(plan.kernel_sets()[0].1.len() > 10);
    let engine = plan.load(Box::new(()), &mut |progress| seen.push(progress)).expect("loads");
    assert!(seen.is_sorted_by_key(|progress| progress.bytes));
    let last = seen.last().expect("called");
    assert_eq!(last.bytes, last.total_bytes);
    engine.shutdown();
}
