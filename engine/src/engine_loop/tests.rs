//! The loop with a fake model: what callers see, whatever happens.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    fake::{self, FakeRunner},
    handle::RequestHandle,
    kv::KvCache,
    request::{EngineInfo, EngineRequest, RequestStats, SamplingParams, SubmitError},
    scheduler::SchedulerConfig,
};

/// A started engine over the fake model.
struct Setup {
    info: EngineInfo,
    chunked_prefill: bool,
    max_num_queued_reqs: usize,
    step_timeout: Duration,
    before: fn(&Batch) -> Result<(), StepError>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            info: fake::info(),
            chunked_prefill: true,
            max_num_queued_reqs: usize::MAX,
            step_timeout: Duration::from_secs(60),
            before: |_| Ok(()),
        }
    }
}

impl Setup {
    fn start(self) -> EngineHandle {
        self.start_observed(Box::new(()))
    }

    fn start_observed(self, observer: Box<dyn Observer>) -> EngineHandle {
        let info = self.info;
        let kv = KvCache::new(info.num_blocks, info.block_size, info.prefix_caching);
        let config = SchedulerConfig {
            max_num_batched_tokens: info.max_num_batched_tokens,
            max_num_seqs: info.max_num_seqs,
            chunked_prefill: self.chunked_prefill,
        };
        let mut runner = FakeRunner::new(info.num_blocks, info.block_size);
        runner.before = self.before;
        let shared = Shared::new(info, self.max_num_queued_reqs, self.step_timeout, 1);
        spawn(shared, Scheduler::new(config, kv), runner, observer).expect("a thread starts")
    }
}

fn params(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens, ..SamplingParams::default() }
}

fn request(prompt: &[u32], max_tokens: u32) -> EngineRequest {
    fake::request(prompt, &params(max_tokens))
}

fn events(handle: &mut RequestHandle) -> Vec<EngineEvent> {
    std::iter::from_fn(|| handle.blocking_next()).collect()
}

fn tokens(events: &[EngineEvent]) -> Vec<u32> {
    let id = |event: &EngineEvent| match event {
        EngineEvent::Token(token) => Some(token.id),
        _ => None,
    };
    events.iter().filter_map(id).collect()
}

/// A model that takes its time, so that a test can act while it runs.
fn slow(_: &Batch) -> Result<(), StepError> {
    thread::sleep(Duration::from_millis(5));
    Ok(())
}

#[test]
fn sixty_four_callers_each_get_their_own_tokens() {
    for (num_blocks, chunk, prefix_caching) in
        [(400, 512, true), (60, 16, true), (60, 16, false), (55, 64, true)]
    {
        let info = EngineInfo {
            num_blocks,
            prefix_caching,
            max_num_batched_tokens: chunk,
            max_num_seqs: 16,
            ..fake::info()
        };
        let engine = Setup { info, ..Setup::default() }.start();
        thread::scope(|scope| {
            for caller in 0..64_u32 {
                let engine = &engine;
                scope.spawn(move || {
                    let prompt: Vec<u32> = (0..40 + caller).map(|at| at.min(30 + caller)).collect();
                    let mut handle = engine.submit(request(&prompt, 50)).expect("accepted");
                    let events = events(&mut handle);
                    assert!(matches!(events[0], EngineEvent::Prompt(_)));
                    assert_eq!(tokens(&events), fake::continuation(&prompt, 50));
                    assert_eq!(events.last(), Some(&EngineEvent::Finished(FinishReason::Length)));
                });
            }
        });
        assert_eq!(engine.load(), 0);
        assert_eq!(engine.health(), Ok(()));
        engine.shutdown();
    }
}

#[test]
fn prompt_logprobs_come_once_and_complete_under_preemption_and_chunks() {
    let info = EngineInfo { num_blocks: 30, max_num_batched_tokens: 8, ..fake::info() };
    let engine = Setup { info, ..Setup::default() }.start();
    let handles: Vec<_> = (0..8_u32)
        .map(|caller| {
            let prompt: Vec<u32> = (0..30 + caller).collect();
            let params = SamplingParams { prompt_logprobs: Some(0), ..params(40) };
            let handle = engine.submit(fake::request(&prompt, &params)).expect("accepted");
            (prompt, handle)
        })
        .collect();
    for (prompt, mut handle) in handles {
        let events = events(&mut handle);
        let EngineEvent::Prompt(output) = &events[0] else { panic!("{events:?}") };
        let expected: Vec<_> = std::iter::once(None)
            .chain((1..prompt.len()).map(|end| Some(fake::prompt_logprob(&prompt[..end]))))
            .collect();
        assert_eq!(output.logprobs.as_ref(), Some(&expected));
        assert_eq!(tokens(&events), fake::continuation(&prompt, 40));
    }
}

#[test]
fn the_ways_to_end() {
    let engine = Setup::default().start();
    let next = fake::continuation(&[1, 2, 3], 3);
    let stop = SamplingParams { stop_token_ids: vec![next[1]], ..params(9) };
    let mut handle = engine.submit(fake::request(&[1, 2, 3], &stop)).expect("accepted");
    let got = events(&mut handle);
    assert_eq!(tokens(&got), next[..2]);
    assert_eq!(got.last(), Some(&EngineEvent::Finished(FinishReason::StopToken(next[1]))));

    let mut handle = engine.submit(request(&[1, 2, 3], 0)).expect("accepted");
    let got = events(&mut handle);
    assert!(matches!(
        got[..],
        [EngineEvent::Prompt(_), EngineEvent::Finished(FinishReason::Length)]
    ));

    let mut handle = engine.submit(request(&[1; 190], 1000)).expect("accepted");
    let got = events(&mut handle);
    assert_eq!(tokens(&got).len(), 10, "the context ends at 200");
    assert_eq!(got.last(), Some(&EngineEvent::Finished(FinishReason::Length)));
}

#[test]
fn the_end_of_sequence_id_ends_unless_ignored() {
    let engine = Setup {
        info: EngineInfo { eos_token_ids: vec![fake::next_token(&[4, 4])], ..fake::info() },
        ..Setup::default()
    }
    .start();
    let mut handle = engine.submit(request(&[4, 4], 5)).expect("accepted");
    let got = events(&mut handle);
    assert_eq!(got.last(), Some(&EngineEvent::Finished(FinishReason::EndOfSequence)));
    assert_eq!(tokens(&got).len(), 1);

    let ignore = SamplingParams { ignore_eos: true, ..params(5) };
    let mut handle = engine.submit(fake::request(&[4, 4], &ignore)).expect("accepted");
    assert_eq!(tokens(&events(&mut handle)), fake::continuation(&[4, 4], 5));
}

#[test]
fn a_lone_sequence_beyond_the_pool_ends_by_length() {
    let info = EngineInfo { num_blocks: 3, ..fake::info() };
    let engine = Setup { info, ..Setup::default() }.start();
    let mut handle = engine.submit(request(&[1; 10], 50)).expect("accepted");
    let got = events(&mut handle);
    assert_eq!(tokens(&got), fake::continuation(&[1; 10], 3));
    assert_eq!(got.last(), Some(&EngineEvent::Finished(FinishReason::Length)));
    let mut handle = engine.submit(request(&[1; 13], 50)).expect("accepted");
    assert_eq!(events(&mut handle), [EngineEvent::Finished(FinishReason::Length)]);
}

#[test]
fn letting_go_frees_the_place_by_the_next_step() {
    let engine = Setup { before: slow, ..Setup::default() }.start();
    let mut handle = engine.submit(request(&[1, 2], 150)).expect("accepted");
    handle.blocking_next().expect("the prompt");
    assert_eq!(engine.load(), 1);
    drop(handle);
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.load() > 0 {
        assert!(Instant::now() < deadline, "still there");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn draining_finishes_what_runs_and_takes_nothing_new() {
    let engine = Setup { before: slow, ..Setup::default() }.start();
    let mut handle = engine.submit(request(&[1, 2], 20)).expect("accepted");
    engine.begin_drain();
    assert_eq!(engine.submit(request(&[1], 1)).err(), Some(SubmitError::ShuttingDown));
    assert_eq!(tokens(&events(&mut handle)).len(), 20);
    assert_eq!(engine.health(), Ok(()));
}

#[test]
fn shutdown_aborts_everyone_and_returns_after_the_loop() {
    let engine = Setup { before: slow, ..Setup::default() }.start();
    let mut handles: Vec<_> =
        (0..20).map(|_| engine.submit(request(&[1, 2], 150)).expect("accepted")).collect();
    engine.shutdown();
    engine.shutdown();
    for handle in &mut handles {
        let got = events(handle);
        assert_eq!(got.last(), Some(&EngineEvent::Finished(FinishReason::Aborted)));
    }
    assert!(engine.health().is_err());
    assert_eq!(engine.load(), 0);
    assert!(matches!(engine.submit(request(&[1], 1)), Err(SubmitError::EngineDead(_))));
}

#[test]
fn requests_outlive_the_last_engine_handle() {
    let engine = Setup { before: slow, ..Setup::default() }.start();
    let mut handle = engine.submit(request(&[1, 2], 10)).expect("accepted");
    drop(engine);
    assert_eq!(tokens(&events(&mut handle)).len(), 10);
}

#[test]
fn the_queue_is_bounded_but_free_seats_are_not_queue() {
    let info = EngineInfo { max_num_seqs: 2, ..fake::info() };
    let setup = Setup { info, max_num_queued_reqs: 1, before: slow, ..Setup::default() };
    let engine = setup.start();
    let mut handles: Vec<_> =
        (0..3).map(|_| engine.submit(request(&[1, 2], 150)).expect("accepted")).collect();
    for handle in &mut handles[..2] {
        handle.blocking_next().expect("running");
    }
    let refused = engine.submit(request(&[1, 2], 1)).err();
    assert_eq!(refused, Some(SubmitError::QueueFull { waiting: 1, limit: 1 }));
    handles.remove(0);
    handles.last_mut().expect("waiting").blocking_next().expect("its turn has come");
    engine.submit(request(&[1, 2], 1)).expect("room again");
}

#[test]
fn a_failed_step_ends_only_its_own_requests() {
    static FAIL: AtomicBool = AtomicBool::new(true);
    let before = |batch: &Batch| {
        if batch.ids.contains(&666) && FAIL.swap(false, Ordering::Relaxed) {
            return Err(StepError { message: "kernel 14 said no".into(), sticky: false });
        }
        Ok(())
    };
    let engine = Setup { before, ..Setup::default() }.start();
    let prompt = [1, 2, 3, 4, 666, 6, 7, 8, 9];
    let mut handle = engine.submit(request(&prompt, 5)).expect("accepted");
    let expected = RequestError::Device("kernel 14 said no".into());
    assert_eq!(events(&mut handle), [EngineEvent::Failed(expected)]);
    assert_eq!(engine.health(), Ok(()));
    // The blocks of the failed step must not be found again.
    let mut handle = engine.submit(request(&prompt, 5)).expect("accepted");
    let got = events(&mut handle);
    assert!(matches!(&got[0], EngineEvent::Prompt(output) if output.cached_tokens == 0));
    assert_eq!(tokens(&got), fake::continuation(&prompt, 5));
}

#[test]
fn a_failed_step_spares_who_was_not_in_it() {
    static FAIL: AtomicBool = AtomicBool::new(false);
    let before = |batch: &Batch| {
        slow(batch)?;
        if FAIL.swap(false, Ordering::Relaxed) {
            return Err(StepError { message: "once".into(), sticky: false });
        }
        Ok(())
    };
    let info = EngineInfo { max_num_seqs: 1, ..fake::info() };
    let engine = Setup { info, before, ..Setup::default() }.start();
    let mut first = engine.submit(request(&[1, 2], 150)).expect("accepted");
    let mut second = engine.submit(request(&[1, 2], 5)).expect("accepted");
    first.blocking_next().expect("running");
    FAIL.store(true, Ordering::Relaxed);
    assert!(matches!(events(&mut first).last(), Some(EngineEvent::Failed(_))));
    assert_eq!(tokens(&events(&mut second)), fake::continuation(&[1, 2], 5));
}

#[test]
fn who_waits_for_blocks_is_queue_though_seats_are_free() {
    let info = EngineInfo { num_blocks: 48, ..fake::info() };
    let setup = Setup { info, max_num_queued_reqs: 1, before: slow, ..Setup::default() };
    let engine = setup.start();
    let submit = || engine.submit(request(&[1; 150], 40));
    let mut first = submit().expect("accepted");
    first.blocking_next().expect("running");
    let _second = engine.submit(request(&[2; 150], 40)).expect("it may wait");
    // The engine must have seen that it cannot start.
    for _ in 0..3 {
        first.blocking_next().expect("running");
    }
    let refused = engine.submit(request(&[3; 150], 40)).err();
    assert_eq!(refused, Some(SubmitError::QueueFull { waiting: 1, limit: 1 }));
}

#[test]
fn a_lost_device_fails_everyone_and_the_health() {
    let before = |batch: &Batch| {
        if batch.ids.contains(&666) {
            return Err(StepError { message: "fell off the bus".into(), sticky: true });
        }
        slow(batch)
    };
    let engine = Setup { before, ..Setup::default() }.start();
    let mut bystander = engine.submit(request(&[1, 2], 150)).expect("accepted");
    bystander.blocking_next().expect("running");
    let mut culprit = engine.submit(request(&[666], 5)).expect("accepted");
    for handle in [&mut bystander, &mut culprit] {
        let got = events(handle);
        let expected = RequestError::Device("fell off the bus".into());
        assert_eq!(got.last(), Some(&EngineEvent::Failed(expected)));
    }
    // The cause is set before the events are sent.
    assert!(engine.health().expect_err("dead").contains("fell off the bus"));
    assert!(matches!(engine.submit(request(&[1], 1)), Err(SubmitError::EngineDead(_))));
}

#[test]
fn a_panic_tells_everyone() {
    let before = |batch: &Batch| {
        assert!(!batch.ids.contains(&666), "a bug");
        slow(batch)
    };
    let engine = Setup { before, ..Setup::default() }.start();
    let mut bystander = engine.submit(request(&[1, 2], 150)).expect("accepted");
    bystander.blocking_next().expect("running");
    let mut culprit = engine.submit(request(&[666], 5)).expect("accepted");
    for handle in [&mut bystander, &mut culprit] {
        match events(handle).pop() {
            Some(EngineEvent::Failed(RequestError::EngineDead(cause))) => {
                assert!(cause.contains("a bug"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(engine.health().expect_err("dead").contains("a bug"));
    engine.shutdown();
}

#[test]
fn a_step_that_hangs_is_bad_health() {
    static RELEASE: Mutex<()> = Mutex::new(());
    let before = |_: &Batch| {
        drop(RELEASE.lock().expect("not poisoned"));
        Ok(())
    };
    let step_timeout = Duration::from_millis(20);
    let engine = Setup { before, step_timeout, ..Setup::default() }.start();
    let hang = RELEASE.lock().expect("not poisoned");
    let mut handle = engine.submit(request(&[1], 1)).expect("accepted");
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.health().is_ok() {
        assert!(Instant::now() < deadline, "the watchdog sleeps");
        thread::sleep(Duration::from_millis(1));
    }
    drop(hang);
    events(&mut handle);
    while engine.health().is_err() {
        assert!(Instant::now() < deadline, "health does not recover");
        thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Clone, Default)]
struct Counts {
    first: Arc<AtomicUsize>,
    next: Arc<AtomicUsize>,
    ended: Arc<Mutex<Vec<RequestStats>>>,
    generated: Arc<AtomicUsize>,
    prompt: Arc<AtomicUsize>,
    steps: Arc<AtomicUsize>,
}

impl Observer for Counts {
    fn step(&mut self, stats: &StepStats) {
        assert!((0.0..=1.0).contains(&stats.kv_usage));
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.generated.fetch_add(stats.generated_tokens, Ordering::Relaxed);
        self.prompt.fetch_add(stats.prompt_tokens, Ordering::Relaxed);
    }
    fn first_token(&mut self, _: Duration) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }
    fn next_token(&mut self, _: Duration) {
        self.next.fetch_add(1, Ordering::Relaxed);
    }
    fn request_finished(&mut self, stats: &RequestStats) {
        self.ended.lock().expect("not poisoned").push(stats.clone());
    }
}

#[test]
fn the_observer_sees_every_token_and_end() {
    let counts = Counts::default();
    let engine = Setup::default().start_observed(Box::new(counts.clone()));
    for prompt in [[1; 9], [1; 9]] {
        let mut handle = engine.submit(request(&prompt, 5)).expect("accepted");
        events(&mut handle);
    }
    engine.shutdown();
    assert_eq!(counts.steps.load(Ordering::Relaxed), 2 * 5);
    assert_eq!(counts.first.load(Ordering::Relaxed), 2);
    assert_eq!(counts.next.load(Ordering::Relaxed), 8);
    assert_eq!(counts.generated.load(Ordering::Relaxed), 10);
    assert_eq!(counts.prompt.load(Ordering::Relaxed), 9 + 1);
    let ended = counts.ended.lock().expect("not poisoned");
    let cached: Vec<_> = ended.iter().map(|stats| stats.cached_tokens).collect();
    assert_eq!(cached, [0, 8]);
    assert!(ended.iter().all(|stats| stats.finish == Some(FinishReason::Length)));
    assert!(ended.iter().all(|stats| stats.e2e_time >= stats.decode_time));
}

/// Chooses the same token for everyone.
struct Constant;

impl ModelRunner for Constant {
    fn run(
        &mut self,
        batch: &mut Batch,
        _: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), StepError> {
        out.tokens.resize(batch.samples.len(), 3);
        out.logprobs.resize(batch.samples.len(), None);
        Ok(())
    }
}

#[test]
fn a_step_allocates_nothing_of_its_own() {
    let info = fake::info();
    let kv = KvCache::new(1000, info.block_size, true);
    let config =
        SchedulerConfig { max_num_batched_tokens: 16, max_num_seqs: 8, chunked_prefill: true };
    let shared = Arc::new(Shared::new(info, usize::MAX, Duration::from_secs(60), 1));
    let (_sender, inbox) = channel();
    let scheduler = Scheduler::new(config, kv);
    let mut engine = EngineLoop::new(shared, inbox, scheduler, Constant, Box::new(()));
    for caller in 0..8 {
        engine.scheduler.add(fake::sequence(&[caller; 10], &params(190)));
    }
    for _ in 0..20 {
        engine.step().expect("never fails");
    }
    let info = allocation_counter::measure(|| {
        for _ in 0..100 {
            engine.step().expect("never fails");
        }
    });
    assert_eq!(engine.scheduler.running().len(), 8);
    assert_eq!(info.count_total, 0, "of {} bytes", info.bytes_total);
}
