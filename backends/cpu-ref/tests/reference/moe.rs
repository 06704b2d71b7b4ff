//! MOE_ROUTER and MOE_EXPERTS.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::attrs::{MoeExperts, MoeRouter},
};

use crate::harness::{Filled, Tensor, absent, close, dense, f32s, i32s, output, refused, run};

fn route(attrs: &MoeRouter, logits: &[f64], bias: Option<&[f64]>, top: i64) -> [Vec<f64>; 2] {
    let experts = logits.len() as i64;
    let mut t = [
        f32s(&[1, experts], logits),
        bias.map_or_else(absent, |b| f32s(&[experts], b)),
        output(DType::I32, &[1, top]),
        output(DType::F32, &[1, top]),
    ];
    run(attrs, &mut t, &[]);
    [t[2].memory(), t[3].memory()]
}

fn ln(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.ln()).collect()
}

#[test]
fn softmax_over_all_experts_then_the_best() {
    let logits = ln(&[1., 3., 2., 4.]);
    let [ids, weight] = route(&MoeRouter::default(), &logits, None, 2);
    close(&ids, &[3., 1.]);
    close(&weight, &[0.4, 0.3]);
    let normed = MoeRouter { norm: true, scale: 2.0, ..Default::default() };
    let [_, weight] = route(&normed, &logits, None, 2);
    close(&weight, &[8. / 7., 6. / 7.]);
}

#[test]
fn ties_go_to_the_lower_expert() {
    let [ids, _] = route(&MoeRouter::default(), &[1., 2., 2., 1.], None, 3);
    close(&ids, &[1., 2., 0.]);
}

#[test]
fn bias_chooses_but_does_not_weigh() {
    let sigmoid = MoeRouter { sigmoid: true, ..Default::default() };
    // Scores 1/2, 3/4, 1/4.
    let logits = [0.0, 3f64.ln(), -3f64.ln()];
    let [ids, weight] = route(&sigmoid, &logits, Some(&[0.0, -0.5, 0.5]), 2);
    close(&ids, &[2., 0.]);
    close(&weight, &[0.25, 0.5]);
}

#[test]
fn groups_are_chosen_by_their_best_or_their_best_two() {
    // Scores (sigmoid) of two groups of three: one high, or two middling.
    let score = |s: f64| (s / (1.0 - s)).ln();
    let logits = [score(0.9), score(0.1), score(0.1), score(0.6), score(0.5), score(0.2)];
    let by = |group_sum_of_two| MoeRouter {
        sigmoid: true,
        n_group: 2,
        topk_group: 1,
        group_sum_of_two,
        ..Default::default()
    };
    close(&route(&by(false), &logits, None, 2)[0], &[0., 1.]);
    close(&route(&by(true), &logits, None, 2)[0], &[3., 4.]);
    let mut t = [
        f32s(&[1, 4], &[0.; 4]),
        absent(),
        output(DType::I32, &[1, 3]),
        output(DType::F32, &[1, 3]),
    ];
    let small = MoeRouter { n_group: 2, ..Default::default() };
    assert!(refused(&small, &mut t, &[]).contains("3 of 4 experts in 2 groups"));
}

/// Two experts with hidden size 1 and one inner value: up weight 1, gate weight 1; down 10 and 100. With x = 1, expert e gives
/// `down_e silu(1)`.
fn experts() -> [Filled; 2] {
    let w = |n, k| WeightDesc::experts(Scheme::DENSE, DType::F32, 2, n, k);
    [dense(w(2, 1), &[1., 1., 1., 1.]), dense(w(1, 1), &[10., 100.])]
}

fn mix(attrs: &MoeExperts, ids: &[i64], weight: &[f64], add: Tensor) -> f64 {
    let top = ids.len() as i64;
    let mut t = [
        f32s(&[1, 1], &[1.0]),
        i32s(&[1, top], ids),
        f32s(&[1, top], weight),
        output(DType::F32, &[1, 1]),
        add,
    ];
    run(attrs, &mut t, &experts());
    t[3].memory()[0]
}

#[test]
fn experts_are_weighted_and_summed() {
    let silu = 1.0 / (1.0 + (-1f64).exp());
    let plain = MoeExperts::default();
    let is = |got: f64, want: f64| close(&[got], &[want]);
    is(mix(&plain, &[0, 1], &[0.5, 2.0], absent()), silu * 205.0);
    is(mix(&plain, &[0, 1], &[0.5, 2.0], f32s(&[1, 1], &[7.0])), silu * 205.0 + 7.0);
    // Twice the same, and none of the slice.
    is(mix(&plain, &[1, 1], &[0.5, 2.0], absent()), silu * 250.0);
    is(mix(&plain, &[-1, 2], &[0.5, 2.0], f32s(&[1, 1], &[7.0])), 7.0);
}

#[test]
fn a_slice_starts_where_it_says_and_the_weight_may_come_first() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let slice = MoeExperts { expert_start: 4, ..Default::default() };
    close(&[mix(&slice, &[5, 3], &[2.0, 9.0], absent())], &[200.0 * silu(1.0)]);
    let first = MoeExperts { weight_on_input: true, ..Default::default() };
    close(&[mix(&first, &[0, -1], &[2.0, 9.0], absent())], &[10.0 * 2.0 * silu(2.0)]);
}

#[test]
fn gate_rows_come_before_up_rows() {
    // Gate weight 0 makes silu(0) = 0 whatever up is; up weight 0 as well.
    let w = |n, k| WeightDesc::experts(Scheme::DENSE, DType::F32, 1, n, k);
    for (w0, want) in [
        ([2., 3.], 3.0 * 2.0 / (1.0 + (-2f64).exp())),
        ([3., 2.], 2.0 * 3.0 / (1.0 + (-3f64).exp())),
    ] {
        let weights = [dense(w(2, 1), &w0), dense(w(1, 1), &[1.0])];
        let mut t = [
            f32s(&[1, 1], &[1.0]),
            i32s(&[1, 1], &[0]),
            f32s(&[1, 1], &[1.0]),
            output(DType::F32, &[1, 1]),
        ];
        run(&MoeExperts::default(), &mut t, &weights);
        close(&t[3].memory(), &[want]);
    }
}
