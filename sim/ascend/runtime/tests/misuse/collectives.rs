//! Collectives.

use crate::common::*;
use crate::graphs::{capturing, end};
use crate::{Misuse, all};

/// A communicator of one rank.
fn comm() -> usize {
    let (mut info, mut comm) = (vec![0u8; 4108], 0usize);
    ok("HcclGetRootInfo", (info.as_mut_ptr(),));
    ok("HcclCommInitRootInfo", (1u32, info.as_ptr(), 0u32, &raw mut comm));
    comm
}

const COLLECTIVES: &[Misuse] = &[
    (
        "a buffer of the host",
        || {
            let host = [0f32; 4];
            call("HcclAllReduce", (host.as_ptr(), malloc(16), 4u64, 4u32, 0u32, comm(), stream()))
        },
        1,
        &["HcclAllReduce: argument `sendBuf`", "memory of the host"],
    ),
    (
        "a buffer that is too small",
        || call("HcclAllGather", (malloc(16), malloc(16), 400u64, 4u32, comm(), stream())),
        1,
        &["HcclAllGather: argument `sendBuf`: 1600 bytes"],
    ),
    (
        "a reduction that the chip lacks",
        || {
            let a = malloc(16);
            call("HcclAllReduce", (a, a, 8u64, 11u32, 1u32, comm(), stream()))
        },
        5,
        &["HcclAllReduce: argument `dataType`: BFP16 is not combined by Prod"],
    ),
    (
        "a root that is not there",
        || call("HcclBroadcast", (malloc(16), 4u64, 4u32, 3u32, comm(), stream())),
        1,
        &["HcclBroadcast: argument `root`: 3 of 1 ranks"],
    ),
    (
        "a message to itself",
        || call("HcclSend", (malloc(16), 4u64, 4u32, 0u32, comm(), stream())),
        1,
        &["HcclSend: argument `destRank`"],
    ),
    (
        "counts on the device",
        || {
            let (a, b, n) = (malloc(32), malloc(32), upload(&[1u64]));
            call("HcclAlltoAllV", (a, n, n, 4u32, b, n, n, 4u32, comm(), stream()))
        },
        1,
        &["HcclAlltoAllV: argument `sendCounts`: memory of the device; an array of the host"],
    ),
    (
        "an all-to-all in place",
        || {
            let a = malloc(32);
            call("HcclAlltoAll", (a, 4u64, 4u32, a, 4u64, 4u32, comm(), stream()))
        },
        1,
        &["HcclAlltoAll: argument `recvBuf`: it overlaps sendBuf"],
    ),
    (
        "a communicator that was destroyed",
        || {
            let c = comm();
            ok("HcclCommDestroy", (c,));
            call("HcclBarrier", (c, stream()))
        },
        1,
        &["HcclBarrier: argument `comm`", "was destroyed"],
    ),
    (
        "a configuration without its magic",
        || {
            let (info, config, mut comm) = ([0u8; 4108], [0u8; 300], 0usize);
            call(
                "HcclCommInitRootInfoConfig",
                (1u32, info.as_ptr(), 0u32, config.as_ptr(), &raw mut comm),
            )
        },
        1,
        &["HcclCommInitRootInfoConfig: argument `config`: magic 0x0"],
    ),
    (
        "a rank beyond the world",
        || {
            let (info, mut comm) = ([0u8; 4108], 0usize);
            call("HcclCommInitRootInfo", (2u32, info.as_ptr(), 2u32, &raw mut comm))
        },
        1,
        &["HcclCommInitRootInfo: argument `rank`: 2 of 2"],
    ),
    (
        "a root's info that none gave",
        || {
            let (info, mut comm) = ([0u8; 4108], 0usize);
            call("HcclCommInitRootInfo", (1u32, info.as_ptr(), 0u32, &raw mut comm))
        },
        1,
        &["HcclCommInitRootInfo: argument `rootInfo`"],
    ),
    (
        "a collective in a capture",
        || {
            let (c, s, a) = (comm(), capturing(), malloc(16));
            let status = call("HcclAllReduce", (a, a, 4u64, 4u32, 0u32, c, s));
            end(s);
            status
        },
        5,
        &["HcclAllReduce: argument `stream`: capturing", "HCCL_OP_EXPANSION_MODE=AIV"],
    ),
    (
        "a destroyed communicator with calls that have not run",
        || {
            let (c, s, e, a) = (comm(), stream(), event(0x20), upload(&[1.0f32]));
            let mut host = 0u64;
            ok("aclrtMallocHost", (&raw mut host, 4usize));
            for _ in 0..400 {
                ok("HcclAllReduce", (a, a, 1u64, 4u32, 0u32, c, s));
            }
            let status = call("HcclCommDestroy", (c,));
            sync(s);
            ok("aclrtDestroyEvent", (e,));
            status
        },
        1,
        &["HcclCommDestroy: argument `comm`: calls on it have not run"],
    ),
    (
        "a rank that does not come",
        || {
            let (mut info, mut comm) = (vec![0u8; 4108], 0usize);
            ok("HcclGetRootInfo", (info.as_mut_ptr(),));
            call("HcclCommInitRootInfo", (2u32, info.as_ptr(), 0u32, &raw mut comm))
        },
        9,
        &["HcclCommInitRootInfo", "rank 1"],
    ),
    (
        "the end of no group",
        || call("HcclGroupEnd", ()),
        1,
        &["HcclGroupEnd: HcclGroupStart was not called"],
    ),
];

#[test]
#[ignore = "run by `collectives`"]
fn collectives_alone() {
    all(COLLECTIVES);
}

#[test]
fn collectives() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.env("HALYARD_SIM_ASCEND_HCCL_TIMEOUT_MS", "300");
    let done = command
        .args(["collectives::collectives_alone", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
