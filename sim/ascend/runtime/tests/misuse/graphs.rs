//! Captures.

use crate::common::*;
use crate::{DEFAULT, GLOBAL, Misuse, all};

/// A stream that is capturing.
pub(crate) fn capturing() -> usize {
    let s = stream();
    ok("aclmdlRICaptureBegin", (s, GLOBAL));
    s
}

pub(crate) fn end(s: usize) -> i32 {
    let mut model = 0usize;
    call("aclmdlRICaptureEnd", (s, &raw mut model))
}

/// The code of `misuse` while a stream is capturing, which gives no graph any more.
fn within(misuse: impl FnOnce(usize) -> i32) -> i32 {
    let s = capturing();
    let status = misuse(s);
    let ended = end(s);
    if ended == 507_903 { status } else { ended }
}

const CAPTURES: &[Misuse] = &[
    (
        "a synchronisation of the stream",
        || within(|s| call("aclrtSynchronizeStream", (s,))),
        107_027,
        &["aclrtSynchronizeStream: argument `stream`: it is capturing"],
    ),
    (
        "a synchronisation of another stream",
        || {
            let t = stream();
            within(|_| call("aclrtSynchronizeStream", (t,)))
        },
        107_030,
        &["aclrtSynchronizeStream: not allowed while a stream is capturing"],
    ),
    (
        "a synchronisation of the device",
        || within(|_| call("aclrtSynchronizeDevice", ())),
        107_030,
        &["aclrtSynchronizeDevice"],
    ),
    (
        "a copy at once",
        || {
            let (a, host) = (malloc(16), [0u8; 16]);
            within(|_| call("aclrtMemcpy", (a, 16usize, host.as_ptr(), 16usize, TO_DEVICE)))
        },
        107_030,
        &["aclrtMemcpy: not allowed"],
    ),
    (
        "the default stream",
        || {
            let a = malloc(16);
            within(|_| call("aclrtMemsetAsync", (a, 16usize, 0i32, 16usize, DEFAULT)))
        },
        107_031,
        &["aclrtMemsetAsync: argument `stream`: the default stream"],
    ),
    (
        "a capture of the default stream",
        || call("aclmdlRICaptureBegin", (DEFAULT, GLOBAL)),
        107_031,
        &["aclmdlRICaptureBegin: argument `stream`: the default stream"],
    ),
    (
        "pageable memory of the host",
        || {
            let (s, a, host) = (capturing(), malloc(16), [0u8; 16]);
            let status =
                call("aclrtMemcpyAsync", (a, 16usize, host.as_ptr(), 16usize, TO_DEVICE, s));
            end(s);
            status
        },
        100_000,
        &["aclrtMemcpyAsync: argument `src`", "aclrtMallocHost"],
    ),
    (
        "a stream that does not join again",
        || {
            let (s, t, e) = (capturing(), stream(), event(1));
            ok("aclrtRecordEvent", (e, s));
            ok("aclrtStreamWaitEvent", (t, e));
            ok("aclrtMemsetAsync", (malloc(16), 16usize, 0i32, 16usize, t));
            end(s)
        },
        107_025,
        &["aclmdlRICaptureEnd: argument `stream`", "aclrtMemsetAsync"],
    ),
    (
        "an event of outside",
        || {
            let (t, e) = (stream(), event(1));
            ok("aclrtRecordEvent", (e, t));
            within(|s| call("aclrtStreamWaitEvent", (s, e)))
        },
        107_024,
        &["aclrtStreamWaitEvent: argument `event`"],
    ),
    (
        "the end of no capture",
        || end(stream()),
        107_029,
        &["aclmdlRICaptureEnd: argument `stream`: it is not capturing"],
    ),
    (
        "a stream that is destroyed before its graph",
        || {
            let s = capturing();
            assert_eq!(end(s), 0);
            call("aclrtDestroyStream", (s,))
        },
        107_026,
        &["aclrtDestroyStream: argument `stream`: model"],
    ),
    (
        "an update of other operators",
        || {
            let (s, t, a) = (capturing(), stream(), malloc(16));
            let mut group = 0usize;
            ok("aclmdlRICaptureTaskGrpBegin", (s,));
            ok("aclrtMemsetAsync", (a, 16usize, 0i32, 16usize, s));
            ok("aclmdlRICaptureTaskGrpEnd", (s, &raw mut group));
            assert_eq!(end(s), 0);
            ok("aclmdlRICaptureTaskUpdateBegin", (t, group));
            ok("aclrtMemsetAsync", (a, 16usize, 0i32, 16usize, t));
            ok("aclrtMemsetAsync", (a, 16usize, 0i32, 16usize, t));
            call("aclmdlRICaptureTaskUpdateEnd", (t,))
        },
        107_000,
        &["aclmdlRICaptureTaskUpdateEnd: argument `handle`: the group has"],
    ),
];

/// One after the other and in a program of its own where tests share a process: a capture forbids what others do.
#[test]
#[ignore = "run by `captures`"]
fn captures_alone() {
    all(CAPTURES);
}

#[test]
fn captures() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let done = command
        .args(["graphs::captures_alone", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
