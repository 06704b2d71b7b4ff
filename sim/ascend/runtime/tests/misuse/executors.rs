//! The two phases of an operator.

use crate::common::*;
use crate::{DEFAULT, Misuse, all, settled};

/// The first phase of a negation of two floats.
fn planned() -> (usize, [usize; 2]) {
    let tensors = [tensor(F32, &[2], upload(&[1.0f32, 2.0])), tensor(F32, &[2], malloc(8))];
    let (mut size, mut executor) = (0u64, 0usize);
    ok("aclnnNegGetWorkspaceSize", (tensors[0], tensors[1], &raw mut size, &raw mut executor));
    (executor, tensors)
}

const NOTHING: u64 = 0;

const EXECUTORS: &[Misuse] = &[
    (
        "an executor used twice",
        || {
            let (executor, _) = planned();
            ok("aclnnNeg", (NOTHING, 0u64, executor, DEFAULT));
            call("aclnnNeg", (NOTHING, 0u64, executor, DEFAULT))
        },
        161_002,
        &["aclnnNeg: argument `executor`", "an executor is used once"],
    ),
    (
        "an executor of another operator",
        || call("aclnnExp", (NOTHING, 0u64, planned().0, DEFAULT)),
        161_002,
        &["aclnnExp: argument `executor`: it was made by aclnnNegGetWorkspaceSize"],
    ),
    (
        "another workspace than was said",
        || call("aclnnNeg", (malloc(64), 64u64, planned().0, DEFAULT)),
        161_002,
        &["aclnnNeg: argument `workspaceSize`: 64 bytes; the first phase said 0"],
    ),
    (
        "a workspace that is too small",
        || {
            let (executor, size) = sorted();
            call("aclnnTopk", (malloc(32), size - 512, executor, DEFAULT))
        },
        161_002,
        &["aclnnTopk: argument `workspaceSize`"],
    ),
    (
        "less memory than the workspace's size",
        || {
            let (executor, size) = sorted();
            call("aclnnTopk", (malloc(1), size, executor, DEFAULT))
        },
        161_002,
        &["aclnnTopk: argument `workspace`"],
    ),
    (
        "a workspace of the host",
        || {
            let (executor, size) = sorted();
            let host = vec![0u8; size as usize];
            call("aclnnTopk", (host.as_ptr(), size, executor, DEFAULT))
        },
        161_002,
        &["aclnnTopk: argument `workspace`", "memory of the host"],
    ),
    (
        "a tensor destroyed between the phases",
        || {
            let (executor, tensors) = planned();
            ok("aclDestroyTensor", (tensors[1],));
            call("aclnnNeg", (NOTHING, 0u64, executor, DEFAULT))
        },
        161_002,
        &["aclnnNeg: between the two phases: argument `out`", "was destroyed"],
    ),
    (
        "an executor destroyed that is not repeatable",
        || call("aclDestroyAclOpExecutor", (planned().0,)),
        161_002,
        &["aclDestroyAclOpExecutor: argument `executor`: only a repeatable executor"],
    ),
    (
        "an address set without a repeatable executor",
        || {
            let (executor, tensors) = planned();
            call("aclSetInputTensorAddr", (executor, 0usize, tensors[0], malloc(8)))
        },
        161_002,
        &["aclSetInputTensorAddr: argument `executor`: it was not made repeatable"],
    ),
    (
        "a repeatable executor whose tensor was destroyed",
        || {
            let (executor, tensors) = planned();
            ok("aclSetAclOpExecutorRepeatable", (executor,));
            ok("aclnnNeg", (NOTHING, 0u64, executor, DEFAULT));
            ok("aclDestroyTensor", (tensors[0],));
            call("aclnnNeg", (NOTHING, 0u64, executor, DEFAULT))
        },
        161_002,
        &["aclnnNeg: between the two phases: argument `self`", "was destroyed"],
    ),
    (
        "a repeatable executor used after it was destroyed",
        || {
            let (executor, _) = planned();
            ok("aclSetAclOpExecutorRepeatable", (executor,));
            ok("aclDestroyAclOpExecutor", (executor,));
            call("aclnnNeg", (NOTHING, 0u64, executor, DEFAULT))
        },
        161_002,
        &["aclnnNeg: argument `executor`", "was used or destroyed"],
    ),
    (
        "an address of a tensor that the operator lacks",
        || {
            let (executor, tensors) = planned();
            ok("aclSetAclOpExecutorRepeatable", (executor,));
            call("aclSetTensorAddr", (executor, 2usize, tensors[0], malloc(8)))
        },
        161_002,
        &["aclSetTensorAddr: argument `index`: 2: aclnnNeg has no such tensor"],
    ),
    (
        "an address of the host set later",
        || {
            let (executor, tensors) = planned();
            ok("aclSetAclOpExecutorRepeatable", (executor,));
            let host = [0u64; 8];
            let at = host.as_ptr().addr().next_multiple_of(32);
            call("aclSetInputTensorAddr", (executor, 0usize, tensors[0], at))
        },
        161_002,
        &["aclSetInputTensorAddr: argument `", "memory of the host"],
    ),
    (
        "a tensor that has no address when it runs",
        || {
            let (x, out) = (tensor(F32, &[2], 0), tensor(F32, &[2], malloc(8)));
            run("aclnnNeg", 0, |size, e| call("aclnnNegGetWorkspaceSize", (x, out, size, e)))
        },
        161_001,
        &["aclnnNeg: argument `self`: its tensor has no address"],
    ),
    (
        "an operator that reads what nothing wrote",
        || {
            let s = stream();
            let (x, out) = (tensor(F32, &[2], malloc(8)), tensor(F32, &[2], malloc(8)));
            let ran =
                run("aclnnNeg", s, |size, e| call("aclnnNegGetWorkspaceSize", (x, out, size, e)));
            settled(ran, s)
        },
        507_015,
        &["aclrtSynchronizeStream: aclnnNeg", "self: ", "nothing wrote byte 0"],
    ),
];

#[test]
fn executors() {
    all(EXECUTORS);
}

/// The first phase of an operator with a workspace.
fn sorted() -> (usize, u64) {
    let x = tensor(F32, &[4, 64], upload(&[1.0f32; 256]));
    let (values, indices) = (tensor(F32, &[4, 2], malloc(32)), tensor(I64, &[4, 2], malloc(64)));
    let (mut size, mut executor) = (0u64, 0usize);
    ok(
        "aclnnTopkGetWorkspaceSize",
        (x, 2i64, -1i64, 1u8, 1u8, values, indices, &raw mut size, &raw mut executor),
    );
    (executor, size)
}
