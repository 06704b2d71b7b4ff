//! KV_WRITE, PAGED_ATTENTION, KV_GATHER, KV_COPY_BLOCKS on f8e4m3 and i8 caches.

use halyard_sdk::{
    DType,
    abi::ops::attrs::{KvCopyBlocks, KvGather, KvWrite, PagedAttention},
};

use crate::harness::{Tensor, absent, close, f32s, i32s, output, run, tensor};

/// Two heads of one token, one dimension of keys and of values.
fn write(dtype: DType, k: [f64; 2], v: [f64; 2], scales: [Tensor; 2]) -> [Vec<f64>; 2] {
    let [k_scale, v_scale] = scales;
    let mut t = [
        f32s(&[1, 2, 1], &k),
        f32s(&[1, 2, 1], &v),
        tensor(DType::I64, &[1], &[1.]),
        tensor(dtype, &[1, 2, 2, 1], &[-9.; 4]),
        tensor(dtype, &[1, 2, 2, 1], &[-9.; 4]),
        k_scale,
        v_scale,
    ];
    run(&KvWrite {}, &mut t, &[]);
    [t[3].memory(), t[4].memory()]
}

#[test]
fn writes_divide_by_the_heads_scale_round_and_saturate() {
    let scales = || [f32s(&[2], &[0.5, 2.]), f32s(&[2], &[1., 4.])];
    let [k, v] = write(DType::I8, [1.25, -5.], [1e9, f64::NAN], scales());
    // 2.5 and -2.5 round to even.
    close(&k, &[-9., -9., 2., -2.]);
    close(&v, &[-9., -9., 127., 0.]);
    let [k, v] = write(DType::F8E4M3, [0.53, 34.], [-1e9, f64::NAN], scales());
    // 1.06 lies between 1 and 1.125; 17 half way between 16 and 18.
    close(&k, &[-9., -9., 1., 16.]);
    close(&v, &[-9., -9., -448., f64::NAN]);
    let [k, v] = write(DType::I8, [1.6, -200.], [0.4, 3.], [absent(), absent()]);
    close(&k, &[-9., -9., 2., -128.]);
    close(&v, &[-9., -9., 0., 3.]);
}

/// Two KV heads, each with keys 0 and 1 (times their scale) and values 2 and 4 (times theirs).
fn caches(dtype: DType) -> [Tensor; 2] {
    [
        tensor(dtype, &[1, 2, 2, 1], &[0., 0., 1., 1.]),
        tensor(dtype, &[1, 2, 2, 1], &[2., 2., 4., 4.]),
    ]
}

#[test]
fn attention_multiplies_by_the_scales() {
    for dtype in [DType::I8, DType::F8E4M3] {
        let [k_cache, v_cache] = caches(dtype);
        let mut t = [
            f32s(&[1, 2, 1], &[1., 1.]),
            k_cache,
            v_cache,
            i32s(&[1, 1], &[0]),
            i32s(&[2], &[0, 1]),
            i32s(&[1], &[2]),
            output(DType::F32, &[1, 2, 1]),
            output(DType::F32, &[1, 2]),
            f32s(&[2], &[3f64.ln(), 4f64.ln()]),
            f32s(&[2], &[0.5, 10.]),
        ];
        run(&PagedAttention::default(), &mut t, &[]);
        // Head 0: weights 1 and 3 on values 1 and 2; head 1: 1 and 4 on 20 and 40.
        close(&t[6].memory(), &[7. / 4., 180. / 5.]);
        close(&t[7].memory(), &[4f64.ln(), 5f64.ln()]);
    }
}

#[test]
fn gathered_rows_are_scaled_and_copied_blocks_are_not() {
    for dtype in [DType::I8, DType::F8E4M3] {
        let [k_cache, v_cache] = caches(dtype);
        let mut t = [
            k_cache,
            v_cache,
            i32s(&[1, 1], &[0]),
            i32s(&[2], &[0, 2]),
            output(DType::BF16, &[2, 2, 1]),
            output(DType::BF16, &[2, 2, 1]),
            f32s(&[2], &[3., -1.]),
            absent(),
        ];
        run(&KvGather::default(), &mut t, &[]);
        close(&t[4].memory(), &[0., 0., 3., -1.]);
        close(&t[5].memory(), &[2., 2., 4., 4.]);
        let cache = || tensor(dtype, &[2, 1, 1, 2], &[1., 2., -128., 3.]);
        let mut t = [cache(), cache(), i32s(&[1, 2], &[1, 0])];
        run(&KvCopyBlocks::default(), &mut t, &[]);
        close(&t[0].memory(), &[-128., 3., -128., 3.]);
        close(&t[1].memory(), &[-128., 3., -128., 3.]);
    }
}
