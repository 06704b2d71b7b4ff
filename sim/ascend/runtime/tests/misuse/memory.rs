//! Memory: addresses, sizes, what was freed or never written.

use crate::common::*;
use crate::{Misuse, all};
use std::thread;

const MEMORY: &[Misuse] = &[
    (
        "pointer of the host as one of the device",
        || {
            let (a, b) = ([1u8; 16], [2u8; 16]);
            call("aclrtMemcpy", (a.as_ptr(), 16usize, b.as_ptr(), 16usize, TO_DEVICE))
        },
        100_000,
        &["aclrtMemcpy: argument `dst`: memory of the host"],
    ),
    (
        "pointer of the device as one of the host",
        || {
            let a = upload(&[1.0f32; 4]);
            call("aclrtMemcpy", (a, 16usize, a, 16usize, TO_HOST))
        },
        100_000,
        &["aclrtMemcpy: argument `dst`: memory of the device"],
    ),
    (
        "more bytes than there is room for",
        || {
            let (a, b) = (malloc(64), [0u8; 64]);
            call("aclrtMemcpy", (a, 32usize, b.as_ptr(), 64usize, TO_DEVICE))
        },
        100_000,
        &["aclrtMemcpy: argument `count`: 64 bytes", "destMax"],
    ),
    (
        "a copy beyond the allocation",
        || {
            let (a, b) = (malloc(64), [0u8; 4096]);
            call("aclrtMemcpy", (a, 4096usize, b.as_ptr(), 4096usize, TO_DEVICE))
        },
        107_000,
        &["aclrtMemcpy: argument `dst`: 4096 bytes", "the allocation has 96 bytes"],
    ),
    (
        "free twice",
        || {
            let a = malloc(64);
            ok("aclrtFree", (a,));
            call("aclrtFree", (a,))
        },
        107_000,
        &["aclrtFree: argument `devPtr`", "freed memory"],
    ),
    (
        "free of pinned memory as the device's",
        || {
            let mut host = 0u64;
            ok("aclrtMallocHost", (&raw mut host, 64usize));
            call("aclrtFree", (host,))
        },
        100_000,
        &["aclrtFree: argument `devPtr`: pinned memory of the host"],
    ),
    (
        "read of freed memory",
        || {
            let (a, mut host) = (upload(&[1.0f32; 4]), [0f32; 4]);
            ok("aclrtFree", (a,));
            call("aclrtMemcpy", (host.as_mut_ptr(), 16usize, a, 16usize, TO_HOST))
        },
        107_000,
        &["aclrtMemcpy: argument `src`", "freed memory"],
    ),
    (
        "read of memory that nothing wrote",
        || {
            let (a, mut host) = (malloc(16), [0f32; 4]);
            call("aclrtMemcpy", (host.as_mut_ptr(), 16usize, a, 16usize, TO_HOST))
        },
        107_000,
        &["aclrtMemcpy: argument `src`", "nothing wrote byte 0"],
    ),
    (
        "memset of the host's memory",
        || {
            let a = [0u8; 16];
            call("aclrtMemset", (a.as_ptr(), 16usize, 0i32, 16usize))
        },
        100_000,
        &["aclrtMemset: argument `devPtr`", "memory of the host"],
    ),
    (
        "more memory than there is",
        || {
            let mut address = 0u64;
            call("aclrtMalloc", (&raw mut address, 1usize << 40, 0u32))
        },
        207_001,
        &["aclrtMalloc: argument `size`", "of device 0 free"],
    ),
    (
        "no device on this thread",
        || {
            thread::spawn(|| {
                let mut address = 0u64;
                let status = call("aclrtMalloc", (&raw mut address, 64usize, 0u32));
                assert!(message().contains("aclrtMalloc: this thread has no device"));
                status
            })
            .join()
            .unwrap()
        },
        107_002,
        &[],
    ),
    (
        "a device that is not there",
        || call("aclrtSetDevice", (77i32,)),
        107_001,
        &["aclrtSetDevice: argument `deviceId`: device 77 of 6"],
    ),
];

#[test]
fn memory() {
    all(MEMORY);
}
