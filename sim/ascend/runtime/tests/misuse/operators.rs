//! What operators do not take.

use crate::common::*;
use crate::{BF16, Misuse, all};
use std::ffi::CStr;
use std::thread;

/// A call of attention over pages: tokens `[T, N, D]`, caches `[8, block, 2 D]`.
struct Attention {
    layout: &'static CStr,
    width: i64,
    block: i64,
    q_lens: &'static [i64],
    kv_lens: &'static [i64],
    sparse: i64,
    table: i32,
}

const ATTENTION: Attention = Attention {
    layout: c"TND",
    width: 64,
    block: 128,
    q_lens: &[2, 3],
    kv_lens: &[100, 130],
    sparse: 0,
    table: I32,
};

impl Attention {
    fn call(&self) -> i32 {
        let Self { width, block, .. } = *self;
        let bytes = |dims: &[i64]| 2 * dims.iter().product::<i64>() as usize;
        let made = |dims: &[i64]| tensor(BF16, dims, malloc(bytes(dims)));
        let tokens = [3, 4, width];
        let (query, out) = (made(&tokens), made(&tokens));
        let [key, value] = [0; 2].map(|_| list(&[made(&[8, block, 2 * width])]));
        let table = tensor(self.table, &[2, 4], malloc(64));
        let (q, kv) = (int_array(self.q_lens), int_array(self.kv_lens));
        let (n, far) = (0usize, i64::from(i32::MAX));
        let name = "aclnnFusedInferAttentionScoreV3";
        run(name, 0, |size, executor| {
            call(
                &format!("{name}GetWorkspaceSize"),
                (
                    query,
                    key,
                    value,
                    n,
                    n,
                    q,
                    kv,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    table,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    n,
                    4i64,
                    0.125f64,
                    far,
                    far,
                    self.layout.as_ptr(),
                    2i64,
                    self.sparse,
                    0i64,
                    block,
                    0i64,
                    0u8,
                    0i64,
                    0i64,
                    out,
                    n,
                    size,
                    executor,
                ),
            )
        })
    }
}

const OPERATORS: &[Misuse] = &[
    (
        "shapes that do not fit",
        || {
            let (a, b, out) = (
                tensor(F32, &[2, 3], malloc(24)),
                tensor(F32, &[4, 5], malloc(80)),
                tensor(F32, &[2, 5], malloc(40)),
            );
            run("aclnnMm", 0, |size, e| call("aclnnMmGetWorkspaceSize", (a, b, out, 0i8, size, e)))
        },
        161_002,
        &["aclnnMmGetWorkspaceSize", "mat2: shape [4, 5]"],
    ),
    (
        "int32 where int64 is due",
        || {
            let x = tensor(F32, &[4], malloc(16));
            let (values, indices) = (tensor(F32, &[2], malloc(8)), tensor(I32, &[2], malloc(8)));
            run("aclnnTopk", 0, |size, e| {
                call(
                    "aclnnTopkGetWorkspaceSize",
                    (x, 2i64, -1i64, 1u8, 1u8, values, indices, size, e),
                )
            })
        },
        161_002,
        &["aclnnTopkGetWorkspaceSize", "indicesOut"],
    ),
    (
        "ends of groups in int32 where int64 is due",
        || grouped(I32, 96),
        161_002,
        &["aclnnGroupedMatmulV4GetWorkspaceSize", "groupList: dtype INT32, expected INT64"],
    ),
    (
        "a matrix too wide for groups",
        || grouped(I64, 65_536),
        161_002,
        &["aclnnGroupedMatmulV4GetWorkspaceSize", "65536"],
    ),
    (
        "a layout that is none",
        || Attention { layout: c"TDN", ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3GetWorkspaceSize", "inputLayout: \"TDN\""],
    ),
    (
        "cumulative lengths of pages",
        || Attention { kv_lens: &[400, 800], ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3", "actualSeqLengthsKv"],
    ),
    (
        "lengths of a batch where cumulative ones are due",
        || Attention { q_lens: &[2, 1], ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3", "actualSeqLengths: [2, 1] falls, expected cumulative"],
    ),
    (
        "heads out of limits",
        || Attention { width: 40, ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3", "query: heads of 40"],
    ),
    (
        "blocks out of limits",
        || Attention { block: 256, ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3", "blockSize: 256"],
    ),
    (
        "a sparse mode that the layout lacks",
        || Attention { sparse: 2, ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3", "sparseMode: 2"],
    ),
    (
        "a block table of int64",
        || Attention { table: I64, ..ATTENTION }.call(),
        161_002,
        &["aclnnFusedInferAttentionScoreV3", "blockTable"],
    ),
];

/// A product of two groups' rows, `[4, 32]` by `[2, 32, width]`, with the groups' ends of a type.
fn grouped(ends: i32, width: i64) -> i32 {
    let made = |dims: &[i64]| {
        let bytes = 2 * dims.iter().product::<i64>() as usize;
        list(&[tensor(BF16, dims, malloc(bytes))])
    };
    let (x, w, y) = (made(&[4, 32]), made(&[2, 32, width]), made(&[4, width]));
    let (ends, n) = (tensor(ends, &[2], malloc(16)), 0usize);
    let name = "aclnnGroupedMatmulV4";
    run(name, 0, |size, executor| {
        let (one, rows, cumulative, none) = (3i64, 0i64, 0i64, 0i64);
        call(
            &format!("{name}GetWorkspaceSize"),
            (
                x, w, n, n, n, n, n, n, ends, n, n, n, one, rows, cumulative, none, y, n, n, size,
                executor,
            ),
        )
    })
}

#[test]
fn operators() {
    assert_eq!(
        thread::spawn(|| {
            use_device(0);
            ATTENTION.call()
        })
        .join()
        .unwrap(),
        0
    );
    all(OPERATORS);
}
