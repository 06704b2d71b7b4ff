//! ARGMAX, TOPK, LOGPROBS, LOGITS_PROCESS, SAMPLE.

use halyard_cpu_ref::sampling::uniform;
use halyard_sdk::{
    DType,
    abi::ops::attrs::{Argmax, LogitsProcess, Logprobs, Sample, Topk},
};

use crate::harness::{Tensor, absent, close, f32s, i32s, output, refused, run, tensor};

const INF: f64 = f64::INFINITY;

#[test]
fn the_largest_with_ties_nan_and_nothing() {
    let rows = [1., 3., 3., f64::NAN, 1., 2., -INF, f64::NAN, -INF, f64::NAN, f64::NAN, -INF];
    let mut t = [f32s(&[3, 4], &rows), output(DType::I32, &[3])];
    run(&Argmax {}, &mut t, &[]);
    close(&t[1].memory(), &[1., 1., 0.]);
}

#[test]
fn the_largest_few_in_order() {
    let mut t = [
        tensor(DType::BF16, &[1, 5], &[1., 4., f64::NAN, 4., 2.]),
        output(DType::F32, &[1, 4]),
        output(DType::I32, &[1, 4]),
    ];
    run(&Topk {}, &mut t, &[]);
    close(&t[1].memory(), &[4., 4., 2., 1.]);
    close(&t[2].memory(), &[1., 3., 4., 0.]);
    let mut t =
        [f32s(&[1, 2], &[1., 2.]), output(DType::F32, &[1, 3]), output(DType::I32, &[1, 3])];
    assert!(refused(&Topk {}, &mut t, &[]).contains("the 3 largest of 2"));
}

#[test]
fn log_softmax_at_ids() {
    let logits = [1f64.ln(), 2f64.ln(), 5f64.ln(), -INF];
    let mut t =
        [f32s(&[1, 4], &logits), i32s(&[1, 4], &[2, -1, 0, 3]), output(DType::F32, &[1, 4])];
    run(&Logprobs {}, &mut t, &[]);
    close(&t[2].memory(), &[(5f64 / 8.).ln(), 0.0, (1f64 / 8.).ln(), -INF]);
    let mut t = [f32s(&[1, 2], &[1e4, 1e4]), i32s(&[1, 1], &[0]), output(DType::F32, &[1, 1])];
    run(&Logprobs {}, &mut t, &[]);
    close(&t[2].memory(), &[-(2f64.ln())]);
}

/// Five logits through LOGITS_PROCESS with the slots from `mask` on.
fn processed(rest: &[Tensor]) -> Vec<f64> {
    let mut t = vec![f32s(&[1, 5], &[2., -2., 1., 0., 4.])];
    t.extend_from_slice(rest);
    run(&LogitsProcess {}, &mut t, &[]);
    t[0].memory()
}

#[test]
fn penalties_by_hand() {
    let rest = [
        absent(),
        i32s(&[1, 4], &[0, 1, 4, -1]),
        i32s(&[1, 4], &[1, 3, 0, 5]),
        i32s(&[1, 4], &[0, 2, 0, 5]),
        f32s(&[1, 3], &[2.0, 0.5, 0.25]),
    ];
    // 0: 2 / 2; 1: -2 · 2 - 0.25 · 2 - 0.5; 4 has not been seen; -1 is padding.
    close(&processed(&rest), &[1., -5., 1., 0., 4.]);
}

#[test]
fn bias_comes_first_and_the_mask_last() {
    let rest = [
        tensor(DType::U32, &[1, 1], &[f64::from(0b01111u32)]),
        i32s(&[1, 1], &[1]),
        i32s(&[1, 1], &[1]),
        i32s(&[1, 1], &[0]),
        f32s(&[1, 3], &[2.0, 0.0, 0.0]),
        i32s(&[1, 3], &[1, 4, -1]),
        f32s(&[1, 3], &[3.0, 100.0, 7.0]),
    ];
    // 1: (-2 + 3) is positive, so divided; 4: biased, then masked.
    close(&processed(&rest), &[2., 0.5, 1., 0., -INF]);
}

#[test]
fn the_mask_goes_on_in_the_next_word() {
    let logits = f32s(&[1, 34], &[1.0; 34]);
    let mask = tensor(DType::U32, &[1, 2], &[f64::from(1u32 << 31 | 1), 2.0]);
    let mut t = [logits, mask];
    run(&LogitsProcess {}, &mut t, &[]);
    let kept: Vec<usize> =
        t[0].memory().iter().enumerate().filter(|(_, l)| l.is_finite()).map(|(i, _)| i).collect();
    assert_eq!(kept, [0, 31, 33]);
}

#[test]
fn half_a_list_is_refused() {
    let mut t = [f32s(&[1, 5], &[0.; 5]), absent(), i32s(&[1, 1], &[0])];
    assert!(refused(&LogitsProcess {}, &mut t, &[]).contains("come together"));
    let mut t = [f32s(&[1, 33], &[0.; 33]), tensor(DType::U32, &[1, 1], &[1.])];
    assert!(refused(&LogitsProcess {}, &mut t, &[]).contains("1 mask words for 33 ids"));
}

#[test]
fn draws_follow_the_generator() {
    // Probabilities 1/4 and 3/4: sorted, id 1 comes first and takes u < 3/4.
    let rows = 64;
    let logits: Vec<f64> = (0..rows).flat_map(|_| [1f64.ln(), 3f64.ln()]).collect();
    let full = |v: f64| vec![v; rows];
    let offsets: Vec<f64> = (0..rows).map(|b| b as f64).collect();
    let b = rows as i64;
    let mut t = [
        f32s(&[b, 2], &logits),
        f32s(&[b], &full(1.0)),
        i32s(&[b], &vec![0; rows]),
        f32s(&[b], &full(1.0)),
        f32s(&[b], &full(0.0)),
        tensor(DType::U64, &[b], &full(42.0)),
        tensor(DType::U64, &[b], &offsets),
        output(DType::I32, &[b]),
        output(DType::F32, &[b]),
    ];
    run(&Sample {}, &mut t, &[]);
    let want = |b: usize| if uniform(42, b as u64) < 0.75 { 1.0 } else { 0.0 };
    let want: Vec<f64> = (0..rows).map(want).collect();
    close(&t[7].memory(), &want);
    let ones = want.iter().sum::<f64>();
    assert!((36.0..60.0).contains(&ones), "{ones} of 64 draws with probability 3/4");
    let logprob: Vec<f64> =
        want.iter().map(|id| if *id > 0. { 0.75f64.ln() } else { 0.25f64.ln() }).collect();
    close(&t[8].memory(), &logprob);
}

#[test]
fn temperature_scales_the_logprob_and_zero_takes_the_largest() {
    let one = |v: f64| f32s(&[2], &[v, 0.0]);
    let mut t = [
        f32s(&[2, 2], &[0.0, 2f64.ln(), 0.0, 2f64.ln()]),
        one(0.5),
        i32s(&[2], &[1, 0]),
        one(1.0),
        one(0.0),
        tensor(DType::U64, &[2], &[0., 0.]),
        tensor(DType::U64, &[2], &[0., 0.]),
        output(DType::I32, &[2]),
        output(DType::F32, &[2]),
    ];
    run(&Sample {}, &mut t, &[]);
    close(&t[7].memory(), &[1., 1.]);
    // At temperature 1/2: 1 and 4; at 0, of the logits themselves: 1 and 2.
    close(&t[8].memory(), &[0.8f64.ln(), (2f64 / 3.).ln()]);
}
