//! Streams and events: order and handles.

use crate::common::*;
use crate::{Misuse, all, settled};

const ORDER: &[Misuse] = &[
    (
        "two streams without an event",
        || {
            let (s, t) = (stream(), stream());
            let (a, b, c) = (upload(&[1.0f32; 8]), upload(&[2.0f32; 8]), upload(&[0.0f32; 8]));
            assert_eq!(add(a, b, c, 8, s), 0);
            assert_eq!(add(c, b, a, 8, t), 0);
            let first = call("aclrtSynchronizeStream", (s,));
            settled(first, t)
        },
        507_015,
        &["aclrtSynchronizeStream: aclnnAdd", "is aclnnAdd", "no event or synchronisation orders"],
    ),
    (
        "free before the stream passed the operator",
        || {
            let s = stream();
            let (a, b, c) = (upload(&[1.0f32; 8]), upload(&[2.0f32; 8]), malloc(32));
            // Late on purpose: many operators are before it.
            for _ in 0..50 {
                assert_eq!(add(a, b, c, 8, s), 0);
            }
            let freed = call("aclrtFree", (a,));
            let status = settled(freed, s);
            // It is told at the free or at the stream, whichever comes first.
            i32::from(status == 107_000 || status == 507_015)
        },
        1,
        &["aclnnAdd"],
    ),
    (
        "a stream that was destroyed",
        || {
            let s = stream();
            ok("aclrtDestroyStream", (s,));
            call("aclrtSynchronizeStream", (s,))
        },
        107_017,
        &["aclrtSynchronizeStream: argument `stream`", "was destroyed"],
    ),
    (
        "an event as a stream",
        || call("aclrtSynchronizeStream", (event(0),)),
        107_017,
        &["argument `stream`", "is of kind event; kind stream was expected"],
    ),
    (
        "a stream of another device",
        || {
            let s = stream();
            use_device(1);
            call("aclrtSynchronizeStream", (s,))
        },
        107_003,
        &["argument `stream`: a stream of device 0"],
    ),
    (
        "an event destroyed twice",
        || {
            let e = event(0);
            ok("aclrtDestroyEvent", (e,));
            call("aclrtDestroyEvent", (e,))
        },
        107_017,
        &["aclrtDestroyEvent: argument `event`", "was destroyed"],
    ),
    (
        "times of events without a time line",
        || {
            let (s, e) = (stream(), event(1));
            ok("aclrtRecordEvent", (e, s));
            sync(s);
            let mut ms = 0f32;
            call("aclrtEventElapsedTime", (&raw mut ms, e, e))
        },
        100_000,
        &["aclrtEventElapsedTime: argument `startEvent`", "ACL_EVENT_TIME_LINE"],
    ),
    (
        "memory of another device",
        || {
            let a = upload(&[1.0f32; 8]);
            use_device(1);
            let (b, c) = (upload(&[1.0f32; 8]), malloc(32));
            add(a, b, c, 8, stream())
        },
        161_002,
        &["aclnnAddGetWorkspaceSize: argument `self`", "memory of device 0"],
    ),
];

#[test]
fn order() {
    all(ORDER);
}

#[test]
fn a_missing_synchronisation_before_reading_back() {
    use_device(0);
    let s = stream();
    let (a, b, c) = (upload(&[1.0f32; 8]), upload(&[2.0f32; 8]), upload(&[0.0f32; 8]));
    assert_eq!(add(a, b, c, 8, s), 0);
    let mut host = [9f32; 8];
    let read = call("aclrtMemcpy", (host.as_mut_ptr(), 32usize, c, 32usize, TO_HOST));
    let status = settled(read, s);
    let said = message();
    // Told by the copy if the operator came first, else by the stream, and the result was the old one.
    assert!(status != 0 && said.contains("no event or synchronisation orders"), "{status} {said}");
    assert!(said.contains("aclnnAdd") && said.contains("aclrtMemcpy"), "{said}");
    assert!(read != 0 || host == [0.0; 8]);
}
