//! VARLEN_ATTENTION, MERGE_ATTENTION, KV_GATHER.

use halyard_sdk::{
    DType,
    abi::ops::attrs::{KvGather, MergeAttention, VarlenAttention},
};

use crate::harness::{Tensor, absent, close, f32s, i32s, output, refused, run};

const NONE: f64 = f64::NEG_INFINITY;

/// Keys `ln` of 1, 2, 3 and values `(10, 1), (20, 2), (30, 3)` of sequence 0, then key `ln 5`, value `(50, 5)`; with `q = 1` the
/// softmax weights are the numbers of the keys.
fn tensors(cu_q: &[i64], cu_k: &[i64], rows: usize, sink: Option<f64>) -> Vec<Tensor> {
    let tokens = rows as i64;
    vec![
        f32s(&[tokens, 1, 1], &vec![1.; rows]),
        f32s(&[4, 1, 1], &[1f64, 2., 3., 5.].map(f64::ln)),
        f32s(&[4, 1, 2], &[10., 1., 20., 2., 30., 3., 50., 5.]),
        i32s(&[cu_q.len() as i64], cu_q),
        i32s(&[cu_k.len() as i64], cu_k),
        output(DType::F32, &[tokens, 1, 2]),
        output(DType::F32, &[tokens, 1]),
        sink.map_or_else(absent, |s| f32s(&[1], &[s])),
    ]
}

/// The first dims of `o`, whose second ones are a tenth, and `lse`.
#[track_caller]
fn gives(attrs: &VarlenAttention, mut t: Vec<Tensor>, o: &[f64], lse: &[f64]) {
    run(attrs, &mut t, &[]);
    let wide: Vec<f64> = o.iter().flat_map(|o| [*o, o / 10.]).collect();
    close(&t[5].memory(), &wide);
    close(&t[6].memory(), lse);
}

#[test]
fn sequences_see_their_own_keys() {
    let plain = VarlenAttention::default();
    let (second, third) = (50. / 3., 140. / 6.);
    let lse = [0., 3f64.ln(), 6f64.ln(), 5f64.ln()];
    gives(&plain, tensors(&[0, 3, 4], &[0, 3, 4], 4, None), &[10., second, third, 50.], &lse);
    // A chunk, padding queries, and a key that belongs to nobody.
    let chunk = tensors(&[0, 2], &[0, 3], 3, None);
    gives(&plain, chunk, &[second, third, 0.], &[3f64.ln(), 6f64.ln(), NONE]);
    let all = VarlenAttention { causal: false, ..plain };
    let chunk = tensors(&[0, 2], &[0, 3], 2, None);
    gives(&all, chunk, &[third, third], &[6f64.ln(); 2]);
}

#[test]
fn empty_sequences_and_more_queries_than_keys() {
    let plain = VarlenAttention::default();
    // No queries; then a query without keys; then one key and three queries, of which the first two are before it.
    let t = tensors(&[0, 0, 1, 4], &[0, 3, 3, 4], 4, None);
    gives(&plain, t, &[0., 0., 0., 50.], &[NONE, NONE, NONE, 5f64.ln()]);
    let all = VarlenAttention { causal: false, ..plain };
    let t = tensors(&[0, 0, 1, 4], &[0, 3, 3, 4], 4, None);
    gives(&all, t, &[0., 50., 50., 50.], &[NONE, 5f64.ln(), 5f64.ln(), 5f64.ln()]);
}

#[test]
fn windows_soft_caps_and_sinks() {
    let plain = VarlenAttention::default();
    let window = VarlenAttention { window: 1, ..plain };
    let t = || tensors(&[0, 1], &[0, 3], 1, None);
    gives(&window, t(), &[26.], &[5f64.ln()]);
    gives(&VarlenAttention { window: i64::MAX, ..plain }, t(), &[140. / 6.], &[6f64.ln()]);
    let e = [1f64, 2., 3.].map(|w| (0.5 * (w.ln() / 0.5).tanh()).exp());
    let sum: f64 = e.iter().sum();
    let o = (10. * e[0] + 20. * e[1] + 30. * e[2]) / sum;
    gives(&VarlenAttention { softcap: 0.5, ..plain }, t(), &[o], &[sum.ln()]);
    // A sink that weighs 4 beside keys of 6; a query that sees nothing has none either.
    let t = tensors(&[0, 1, 2], &[0, 3, 3], 2, Some(4f64.ln()));
    gives(&plain, t, &[14., 0.], &[10f64.ln(), NONE]);
}

#[test]
fn lengths_that_contradict_the_rows_are_refused() {
    let refuse = |cu_q: &[i64], cu_k: &[i64]| {
        refused(&VarlenAttention::default(), &mut tensors(cu_q, cu_k, 1, None), &[])
    };
    assert!(refuse(&[0, 2], &[0, 3]).contains("cu_q [0, 2] for 1 rows"));
    assert!(refuse(&[0, 1], &[0, 5]).contains("cu_k [0, 5] for 4 rows"));
    assert!(refuse(&[0, 1], &[1, 2]).contains("expected to rise from 0"));
}

fn merge(lse1: f64, lse2: f64) -> [Vec<f64>; 2] {
    let mut t = [
        f32s(&[1, 1, 2], &[1., 2.]),
        f32s(&[1, 1], &[lse1]),
        f32s(&[1, 1, 2], &[5., -6.]),
        f32s(&[1, 1], &[lse2]),
        output(DType::F32, &[1, 1, 2]),
        output(DType::F32, &[1, 1]),
    ];
    run(&MergeAttention {}, &mut t, &[]);
    [t[4].memory(), t[5].memory()]
}

#[test]
fn merging_weighs_by_the_sums() {
    let is = |got: [Vec<f64>; 2], o: &[f64], lse: f64| {
        close(&got[0], o);
        close(&got[1], &[lse]);
    };
    is(merge(0., 3f64.ln()), &[(1. + 15.) / 4., (2. - 18.) / 4.], 4f64.ln());
    is(merge(NONE, -700.), &[5., -6.], -700.);
    is(merge(2., NONE), &[1., 2.], 2.);
    is(merge(NONE, NONE), &[0., 0.], NONE);
    is(merge(1000., 1000.), &[3., -2.], 1000. + 2f64.ln());
    is(merge(1000., 0.), &[1., 2.], 1000.);
}

fn gather(cu_k: &[i64], table: &[i64]) -> [Tensor; 6] {
    let nan = f64::NAN;
    [
        f32s(&[3, 2, 2, 1], &[1., 2., 3., 4., nan, nan, nan, nan, 5., 6., nan, nan]),
        f32s(&[3, 2, 2, 1], &[10., 20., 30., 40., nan, nan, nan, nan, 50., 60., nan, nan]),
        i32s(&[2, 2], table),
        i32s(&[3], cu_k),
        output(DType::F32, &[5, 2, 1]),
        output(DType::F32, &[5, 2, 1]),
    ]
}

#[test]
fn gathered_sequences_are_packed_and_padded_with_zeros() {
    let mut t = gather(&[0, 3, 4], &[0, 2, 0, -1]);
    run(&KvGather::default(), &mut t, &[]);
    close(&t[4].memory(), &[1., 2., 3., 4., 5., 6., 1., 2., 0., 0.]);
    close(&t[5].memory(), &[10., 20., 30., 40., 50., 60., 10., 20., 0., 0.]);
    let mut t = gather(&[0, 0, 0], &[-1; 4]);
    run(&KvGather::default(), &mut t, &[]);
    close(&t[4].memory(), &[0.; 10]);
}

#[test]
fn gathering_refuses_what_the_cache_has_not() {
    let refuse = |cu_k: &[i64], table| refused(&KvGather::default(), &mut gather(cu_k, table), &[]);
    assert!(refuse(&[0, 3, 6], &[0, 2, 0, 0]).contains("cu_k [0, 3, 6] for 5 rows"));
    assert!(refuse(&[0, 5, 5], &[0, 2, 0, 0]).contains("block is 2, there are 2"));
    assert!(refuse(&[0, 3, 4], &[0, 3, 0, 0]).contains("block id is 3, there are 3"));
}
