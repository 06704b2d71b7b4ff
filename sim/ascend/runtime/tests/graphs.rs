//! Graphs: captured work runs again, on other values, with updated operators, on streams that fork and join.
#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests: results are exact")]

mod common;

use common::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Captures forbid what others do meanwhile, in GLOBAL mode on every thread: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    use_device(0);
    guard
}

const GLOBAL: u32 = 0;
const EXTERNAL: u32 = 0x20;

fn begin(s: usize) {
    ok("aclmdlRICaptureBegin", (s, GLOBAL));
}

fn end(s: usize) -> usize {
    let mut model = 0usize;
    ok("aclmdlRICaptureEnd", (s, &raw mut model));
    model
}

fn execute(model: usize, s: usize) {
    ok("aclmdlRIExecuteAsync", (model, s));
}

#[test]
fn a_graph_runs_on_the_values_that_are_there() {
    let _alone = alone();
    let s = stream();
    let (a, b, c) = (upload(&[1.0f32; 4]), upload(&[2.0f32; 4]), malloc(16));
    begin(s);
    let mut status = 0u32;
    ok("aclmdlRICaptureGetInfo", (s, &raw mut status, std::ptr::null::<usize>()));
    assert_eq!(status, 1);
    assert_eq!(add(a, b, c, 4, s), 0);
    assert_eq!(add(c, b, a, 4, s), 0);
    let model = end(s);
    // Nothing ran yet.
    assert_eq!(download::<f32>(a, 4), [1.0; 4]);
    for round in 1..=3u8 {
        execute(model, s);
        sync(s);
        assert_eq!(download::<f32>(a, 4), [1.0 + 4.0 * f32::from(round); 4]);
    }
    ok("aclmdlRIDestroy", (model,));
    assert_eq!(call("aclmdlRIExecuteAsync", (model, s)), 107_017);
    assert!(message().contains("argument `modelRI`"));
    ok("aclrtDestroyStream", (s,));
}

#[test]
fn memory_of_a_graph_must_outlive_it() {
    let _alone = alone();
    let s = stream();
    let (a, b, c) = (upload(&[1.0f32; 4]), upload(&[2.0f32; 4]), malloc(16));
    begin(s);
    assert_eq!(add(a, b, c, 4, s), 0);
    let model = end(s);
    execute(model, s);
    sync(s);
    ok("aclrtFree", (a,));
    execute(model, s);
    assert_eq!(call("aclrtSynchronizeStream", (s,)), 507_015);
    let said = message();
    assert!(
        said.contains("aclnnAdd") && said.contains("self") && said.contains("freed memory"),
        "{said}"
    );
}

#[test]
fn streams_fork_and_join() {
    let _alone = alone();
    let (s, t) = (stream(), stream());
    let (forked, joined) = (event(1), event(1));
    let (a, b) = (upload(&[1.0f32; 4]), upload(&[2.0f32; 4]));
    let (c, d, e) = (malloc(16), malloc(16), malloc(16));
    begin(s);
    ok("aclrtRecordEvent", (forked, s));
    ok("aclrtStreamWaitEvent", (t, forked));
    assert_eq!(add(a, b, c, 4, s), 0);
    assert_eq!(add(b, b, d, 4, t), 0);
    ok("aclrtRecordEvent", (joined, t));
    ok("aclrtStreamWaitEvent", (s, joined));
    assert_eq!(add(c, d, e, 4, s), 0);
    let model = end(s);
    execute(model, s);
    sync(s);
    assert_eq!(download::<f32>(e, 4), [7.0; 4]);
}

#[test]
fn branches_that_use_the_same_memory_are_found() {
    let _alone = alone();
    let (s, t) = (stream(), stream());
    let (forked, joined) = (event(1), event(1));
    let (a, b, c) = (upload(&[1.0f32; 4]), upload(&[2.0f32; 4]), malloc(16));
    begin(s);
    ok("aclrtRecordEvent", (forked, s));
    ok("aclrtStreamWaitEvent", (t, forked));
    assert_eq!(add(a, b, c, 4, s), 0);
    assert_eq!(add(b, b, c, 4, t), 0);
    ok("aclrtRecordEvent", (joined, t));
    ok("aclrtStreamWaitEvent", (s, joined));
    let model = end(s);
    execute(model, s);
    assert_eq!(call("aclrtSynchronizeStream", (s,)), 507_015);
    assert!(message().contains("no event or synchronisation orders"));
}

#[test]
fn a_task_group_is_updated_between_runs() {
    let _alone = alone();
    let (s, update, ready) = (stream(), stream(), event(EXTERNAL));
    let (a, b, c) = (upload(&[1.0f32; 4]), upload(&[2.0f32; 4]), upload(&[10.0f32; 4]));
    let out = malloc(16);
    let mut group = 0usize;
    begin(s);
    ok("aclrtStreamWaitEvent", (s, ready));
    ok("aclrtResetEvent", (ready, s));
    ok("aclmdlRICaptureTaskGrpBegin", (s,));
    assert_eq!(add(a, b, out, 4, s), 0);
    ok("aclmdlRICaptureTaskGrpEnd", (s, &raw mut group));
    let model = end(s);
    for (other, wanted) in [(b, 3.0), (c, 11.0), (b, 3.0)] {
        // The graph waits for the update that comes after it was started.
        execute(model, s);
        ok("aclmdlRICaptureTaskUpdateBegin", (update, group));
        assert_eq!(add(a, other, out, 4, update), 0);
        ok("aclmdlRICaptureTaskUpdateEnd", (update,));
        ok("aclrtRecordEvent", (ready, update));
        sync(s);
        sync(update);
        assert_eq!(download::<f32>(out, 4), [wanted; 4]);
    }
}

/// A graph whose addition is a task group of its own, with the stream, the group and where the sum goes.
fn updatable() -> (usize, usize, usize, u64, [u64; 2]) {
    let (s, out) = (stream(), malloc(16));
    let (a, b) = (upload(&[1.0f32; 4]), upload(&[2.0f32; 4]));
    let mut group = 0usize;
    begin(s);
    ok("aclmdlRICaptureTaskGrpBegin", (s,));
    assert_eq!(add(a, b, out, 4, s), 0);
    ok("aclmdlRICaptureTaskGrpEnd", (s, &raw mut group));
    (end(s), s, group, out, [a, b])
}

fn update(group: usize, on: usize, enqueue: impl FnOnce()) {
    ok("aclmdlRICaptureTaskUpdateBegin", (on, group));
    enqueue();
    ok("aclmdlRICaptureTaskUpdateEnd", (on,));
}

#[test]
fn updates_are_ordered_with_runs_by_events() {
    let _alone = alone();
    let (model, s, group, out, [a, _]) = updatable();
    let (on, done, updated) = (stream(), event(1), event(1));
    for round in 1..=3u8 {
        ok("aclrtStreamWaitEvent", (on, done));
        update(group, on, || assert_eq!(add(a, upload(&[f32::from(round); 4]), out, 4, on), 0));
        ok("aclrtRecordEvent", (updated, on));
        ok("aclrtStreamWaitEvent", (s, updated));
        execute(model, s);
        ok("aclrtRecordEvent", (done, s));
        sync(s);
        assert_eq!(download::<f32>(out, 4), [1.0 + f32::from(round); 4]);
    }
}

#[test]
fn an_update_that_nothing_orders_with_a_run_is_found() {
    let _alone = alone();
    let (model, s, group, out, [a, b]) = updatable();
    let on = stream();
    update(group, on, || assert_eq!(add(a, b, out, 4, on), 0));
    execute(model, s);
    let told = [s, on].map(|one| (call("aclrtSynchronizeStream", (one,)), message()));
    // Whichever came second.
    let (_, said) = told.iter().find(|(code, _)| *code == 507_011).unwrap();
    assert!(said.contains("of the same task group"), "{said}");
}

#[test]
fn an_update_has_the_operators_that_were_captured() {
    let _alone = alone();
    let (model, s, group, out, [a, b]) = updatable();
    for times in [0, 2] {
        ok("aclmdlRICaptureTaskUpdateBegin", (s, group));
        (0..times).for_each(|_| assert_eq!(add(a, b, out, 4, s), 0));
        assert_eq!(call("aclmdlRICaptureTaskUpdateEnd", (s,)), 107_000);
        assert!(message().contains("argument `handle`: the group has"));
    }
    ok("aclmdlRIDestroy", (model,));
    assert_eq!(call("aclmdlRICaptureTaskUpdateBegin", (s, group)), 107_017);
    assert!(message().contains("argument `handle`"));
}

#[test]
fn a_thread_may_say_that_it_is_not_bound() {
    let _alone = alone();
    let (s, t) = (stream(), stream());
    begin(s);
    let mut mode = 2u32;
    ok("aclmdlRICaptureThreadExchangeMode", (&raw mut mode,));
    assert_eq!(mode, GLOBAL);
    sync(t);
    ok("aclmdlRICaptureThreadExchangeMode", (&raw mut mode,));
    assert_eq!(mode, 2);
    let model = end(s);
    ok("aclmdlRIDestroy", (model,));
}
