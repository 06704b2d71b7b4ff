//! Tensors, lists, arrays.

use crate::common::*;
use crate::{Misuse, all};

const OBJECTS: &[Misuse] = &[
    (
        "a tensor of a list destroyed alone",
        || {
            let a = tensor(F32, &[4], malloc(16));
            list(&[a]);
            call("aclDestroyTensor", (a,))
        },
        161_002,
        &["aclDestroyTensor: argument `tensor`: it belongs to tensor list"],
    ),
    (
        "a list that was freed",
        || {
            let (a, out) = (tensor(F32, &[4], malloc(16)), tensor(F32, &[4], malloc(16)));
            let l = list(&[a]);
            ok("aclDestroyTensorList", (l,));
            run("aclnnCat", 0, |size, e| call("aclnnCatGetWorkspaceSize", (l, 0i64, out, size, e)))
        },
        161_002,
        &["aclnnCatGetWorkspaceSize: argument `tensors`", "was destroyed"],
    ),
    (
        "a tensor destroyed twice",
        || {
            let a = tensor(F32, &[4], 0);
            ok("aclDestroyTensor", (a,));
            call("aclDestroyTensor", (a,))
        },
        161_002,
        &["aclDestroyTensor: argument `tensor`", "was destroyed"],
    ),
    (
        "a tensor in memory of the host",
        || {
            let host = vec![0u64; 64];
            try_tensor(F32, &[4], host.as_ptr().addr() as u64 & !31) as i32
        },
        0,
        &["aclCreateTensor: argument `tensorData`", "memory of the host"],
    ),
    (
        "an address that is not aligned",
        || try_tensor(F32, &[4], malloc(64) + 4) as i32,
        0,
        &["aclCreateTensor: argument `tensorData`", "is no multiple of 32"],
    ),
    (
        "a view beyond its storage",
        || {
            let (dims, stored, strides) = ([2i64, 4], [8i64], [5i64, 1]);
            value::<usize>(
                "aclCreateTensor",
                (
                    dims.as_ptr(),
                    2u64,
                    F32,
                    strides.as_ptr(),
                    0i64,
                    ND,
                    stored.as_ptr(),
                    1u64,
                    malloc(64),
                ),
            ) as i32
        },
        0,
        &["aclCreateTensor: argument `storageDims`: 8 elements", "goes beyond"],
    ),
    (
        "a data type that the chip lacks",
        || try_tensor(36, &[4], 0) as i32,
        0,
        &["aclCreateTensor: argument `dataType`: 36"],
    ),
    (
        "an array where a tensor is due",
        || {
            let (a, out) = (int_array(&[1, 2]), tensor(F32, &[2], malloc(8)));
            run("aclnnNeg", 0, |size, e| call("aclnnNegGetWorkspaceSize", (a, out, size, e)))
        },
        161_002,
        &[
            "aclnnNegGetWorkspaceSize: argument `self`",
            "is of kind int array; kind tensor was expected",
        ],
    ),
    (
        "an argument that is NULL",
        || {
            let out = tensor(F32, &[2], malloc(8));
            run("aclnnNeg", 0, |size, e| call("aclnnNegGetWorkspaceSize", (0usize, out, size, e)))
        },
        161_001,
        &["aclnnNegGetWorkspaceSize", "self: null"],
    ),
    (
        "a tensor of freed memory",
        || {
            let (a, b) = (malloc(8), malloc(8));
            let (x, out) = (tensor(F32, &[2], a), tensor(F32, &[2], b));
            ok("aclrtFree", (a,));
            run("aclnnNeg", 0, |size, e| call("aclnnNegGetWorkspaceSize", (x, out, size, e)))
        },
        161_002,
        &["aclnnNegGetWorkspaceSize: argument `self`", "freed memory"],
    ),
    (
        "a tensor larger than its memory",
        || {
            let (x, out) = (tensor(F32, &[100], malloc(8)), tensor(F32, &[100], malloc(400)));
            run("aclnnNeg", 0, |size, e| call("aclnnNegGetWorkspaceSize", (x, out, size, e)))
        },
        161_002,
        &["aclnnNegGetWorkspaceSize: argument `self`: 400 bytes"],
    ),
];

#[test]
fn objects() {
    all(OBJECTS);
}
