//! A device that fails, and files that are wrong: each is an error for whom it concerns, never the end of the process.

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use halyard_core::Device;
use halyard_engine::{
    DecodeGraphs, EngineEvent, FinishReason, LoadError, LoadOptions, LoadProgress, Plan,
    RequestError, SubmitError,
};
use halyard_weights::Checkpoint;
use support::{
    changed, devices, ends_with, events,
    faulty::{Mode, faulty, set},
    folder, greedy, options, start, start_shared, submit, tokens,
};

#[test]
fn a_failing_kernel_fails_the_requests_of_its_step() {
    let engine = start(&faulty::<0>(), "llama", &options());
    let expected = tokens(submit(&engine, &[1, 2, 3], greedy(5)));
    set::<0>(Mode::Fail);
    match &events(submit(&engine, &[1, 2, 3], greedy(5)))[..] {
        [EngineEvent::Failed(RequestError::Device(message))] => {
            assert!(message.contains("no attention today"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    set::<0>(Mode::Fine);
    assert_eq!(engine.health(), Ok(()));
    assert_eq!(tokens(submit(&engine, &[1, 2, 3], greedy(5))), expected);
    engine.shutdown();
}

#[test]
fn a_panicking_kernel_ends_the_engine_and_not_the_process() {
    let engine = start(&faulty::<1>(), "llama", &options());
    let mut bystander = submit(&engine, &[1, 2, 3], greedy(200));
    bystander.blocking_next().expect("running");
    set::<1>(Mode::Panic);
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

/// What a request that was running is told when a rank comes to harm: `WHICH` is faulty, the other device the reference.
fn harmed<const WHICH: usize>(devices: &[Device], mode: Mode) -> String {
    // A hang is only found by waiting; everything else must not need to.
    let timeout = Duration::from_secs(if mode == Mode::Hang { 2 } else { 3600 });
    let options = LoadOptions { step_timeout: timeout, ..options() };
    let engine = start_shared(devices, "llama", &options, Box::new(()));
    let mut bystander = submit(&engine, &[1, 2, 3], greedy(200));
    bystander.blocking_next().expect("running");
    set::<WHICH>(mode);
    let last = events(bystander).pop();
    let Some(EngineEvent::Failed(RequestError::Device(message))) = last else { panic!("{last:?}") };
    ends_with(&engine, &message, Duration::from_secs(10));
    // Nothing waits for a rank that is gone or hangs.
    engine.shutdown();
    set::<WHICH>(Mode::Fine);
    message
}

fn reference() -> Device {
    devices().swap_remove(0)
}

#[test]
fn a_rank_that_fails_ends_the_engine_by_its_name() {
    let message = harmed::<2>(&[reference(), faulty::<2>()], Mode::Fail);
    assert!(message.starts_with("rank 1 of 2: "), "{message}");
    assert!(message.contains("no attention today"), "{message}");
    let message = harmed::<2>(&[reference(), reference(), faulty::<2>(), reference()], Mode::Panic);
    assert!(message.starts_with("rank 2 of 4: "), "{message}");
    assert!(message.contains("attention lost its head"), "{message}");
}

#[test]
fn the_first_rank_may_be_the_one_that_fails() {
    let message = harmed::<3>(&[faulty::<3>(), reference()], Mode::Fail);
    assert!(message.starts_with("rank 0 of 2: "), "{message}");
    assert!(message.contains("no attention today"), "{message}");
    let message = harmed::<3>(&[faulty::<3>(), reference()], Mode::Panic);
    assert!(message.starts_with("rank 0 of 2: ") && message.contains("lost its head"), "{message}");
}

#[test]
fn a_rank_that_hangs_is_not_waited_for() {
    let message = harmed::<4>(&[reference(), faulty::<4>()], Mode::Hang);
    assert!(message.contains("rank 1"), "{message}");
    assert!(message.contains("waited") && message.contains("all_reduce"), "{message}");
}

#[test]
fn a_rank_that_cannot_load_is_named() {
    set::<5>(Mode::NoRoom);
    let devices = [reference(), faulty::<5>()];
    let plan = Plan::new(&devices, Checkpoint::open(&folder("llama")).expect("opens"), &options());
    let error = plan.expect("fits").load(Box::new(()), &mut |_| {}).expect_err("no room");
    assert!(error.to_string().starts_with("rank 1 (cpu-ref:0"), "{error}");
    let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    assert!(causes.any(|cause| cause.to_string().contains("no room for a weight")), "{error:?}");
}

fn plan(path: &Path, options: &LoadOptions) -> Result<Plan, LoadError> {
    Plan::new(&devices()[..1], Checkpoint::open(path).expect("opens"), options)
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
    let graphs = DecodeGraphs::Off("the backend cpu-ref has no graphs".into());
    assert_eq!(plan.info().graphs, graphs);
    let mut note = |progress| match progress {
        LoadProgress::Weights { bytes, total_bytes } => seen.push((bytes, total_bytes)),
        LoadProgress::Graphs { .. } => panic!("a processor has no graphs"),
    };
    let engine = plan.load(Box::new(()), &mut note).expect("loads");
    assert!(seen.is_sorted());
    let &(bytes, total_bytes) = seen.last().expect("called");
    assert_eq!(bytes, total_bytes);
    engine.shutdown();
}
