//! QKV_POST, LINEAR_ACT_MUL, RMS_NORM_QUANT: by hand, and as what they fuse.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::{
        Act,
        attrs::{
            ActMul, KvWrite, Linear, LinearActMul, QkvPost, QuantAct, RmsNorm, RmsNormQuant, Rope,
        },
    },
};

use crate::harness::{
    Filled, Tensor, absent, close, dense, f32s, i32s, output, refused, run, tensor,
};

/// Two tokens of two queries and one key of four, one value of three.
const QKV: [f64; 30] = [
    1., 2., 3., 4., -1., 0.5, 2., 1., 5., -6., 7., 8., 10., 20., 30., //
    0.5, 1., -2., 4., 3., 3., -3., 3., 1., 2., 1., -2., 40., 50., 60.,
];

/// A table of two positions for two rotated dims: no rotation, and a turn by a quarter.
fn table() -> Tensor {
    f32s(&[2, 2], &[1., 0., 0., 1.])
}

fn post(pos: &[i64], slots: &[f64], gamma: [Tensor; 2], dtype: DType) -> Vec<Tensor> {
    let [q_gamma, k_gamma] = gamma;
    vec![
        f32s(&[2, 15], &QKV),
        q_gamma,
        k_gamma,
        i32s(&[2], pos),
        table(),
        tensor(DType::I64, &[2], slots),
        output(DType::F32, &[2, 2, 4]),
        tensor(dtype, &[1, 3, 1, 4], &[-9.; 12]),
        tensor(dtype, &[1, 3, 1, 3], &[-9.; 9]),
    ]
}

#[test]
fn without_norms_it_rotates_and_writes() {
    let attrs = QkvPost { offset: 1, ..Default::default() };
    // The second token turns dims 1 and 2, (a, b) to (-b, a); the first has no position and no slot.
    let mut t = post(&[-1, 1], &[-1., 2.], [absent(), absent()], DType::F32);
    run(&attrs, &mut t, &[]);
    let q = [QKV[..8].to_vec(), vec![0.5, 2., 1., 4., 3., 3., 3., 3.]].concat();
    close(&t[6].memory(), &q);
    close(&t[7].memory(), &[&[-9.; 8], [1., -1., 2., -2.].as_slice()].concat());
    close(&t[8].memory(), &[&[-9.; 6], [40., 50., 60.].as_slice()].concat());
}

#[test]
fn it_is_its_steps_in_order() {
    let gamma = || [f32s(&[4], &[1., 2., 0.5, -1.]), f32s(&[4], &[0.5, 0.25, 3., 1.])];
    let attrs = QkvPost { eps: 0.5, plus_one: true, interleaved: true, offset: 2 };
    let mut fused = post(&[1, 0], &[2., 0.], gamma(), DType::F32);
    run(&attrs, &mut fused, &[]);

    let part =
        |first: usize, len: usize| [&QKV[first..first + len], &QKV[15 + first..][..len]].concat();
    let norm = RmsNorm { eps: 0.5, plus_one: true };
    let [q_gamma, k_gamma] = gamma();
    let mut q = [f32s(&[2, 2, 4], &part(0, 8)), q_gamma, output(DType::F32, &[2, 2, 4])];
    run(&norm, &mut q, &[]);
    let mut k = [f32s(&[2, 1, 4], &part(8, 4)), k_gamma, output(DType::F32, &[2, 1, 4])];
    run(&norm, &mut k, &[]);
    let ([_, _, q], [_, _, k]) = (q, k);
    let mut turned = [q, k, i32s(&[2], &[1, 0]), table()];
    run(&Rope { interleaved: true, offset: 2 }, &mut turned, &[]);
    let [q, k, ..] = turned;
    let mut written = [
        k,
        f32s(&[2, 1, 3], &part(12, 3)),
        tensor(DType::I64, &[2], &[2., 0.]),
        f32s(&[1, 3, 1, 4], &[-9.; 12]),
        f32s(&[1, 3, 1, 3], &[-9.; 9]),
    ];
    run(&KvWrite {}, &mut written, &[]);
    close(&fused[6].memory(), &q.memory());
    close(&fused[7].memory(), &written[3].memory());
    close(&fused[8].memory(), &written[4].memory());
}

#[test]
fn it_writes_eight_bit_caches_by_their_scales() {
    let mut t = post(&[0, 0], &[0., 1.], [absent(), absent()], DType::I8);
    t.extend([f32s(&[1], &[0.5]), f32s(&[1], &[10.])]);
    run(&QkvPost::default(), &mut t, &[]);
    close(&t[7].memory(), &[10., -12., 14., 16., 2., 4., 2., -4., -9., -9., -9., -9.]);
    close(&t[8].memory(), &[1., 2., 3., 4., 5., 6., -9., -9., -9.]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let plain = || post(&[0, 0], &[0., 1.], [absent(), absent()], DType::F32);
    let mut narrow = plain();
    narrow[0] = f32s(&[2, 14], &QKV[..28]);
    let why = refused(&QkvPost::default(), &mut narrow, &[]);
    assert!(
        why.contains("rows of 14, expected 15: 2 queries of 4, 1 keys of 4, 1 values of 3"),
        "{why}"
    );
    let why = refused(&QkvPost { offset: 3, ..Default::default() }, &mut plain(), &[]);
    assert!(why.contains("qkv_post: 2 dims from 3 of a head of 4"), "{why}");
    let mut far = post(&[0, 2], &[0., 1.], [absent(), absent()], DType::F32);
    assert!(refused(&QkvPost::default(), &mut far, &[]).contains("qkv_post: pos is 2"));
    close(&far[7].memory(), &[-9.; 12]);
    let mut full = post(&[0, 1], &[0., 3.], [absent(), absent()], DType::F32);
    assert!(refused(&QkvPost::default(), &mut full, &[]).contains("qkv_post: slot is 3"));
    close(&full[7].memory(), &[-9.; 12]);
}

fn gate_up() -> Filled {
    let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, 4, 3);
    dense(desc, &[1., 0., 0., 0., 1., 0., 0., 0., 1., 1., 1., 1.])
}

#[test]
fn linear_act_mul_is_linear_then_act_mul() {
    for act_quant in [0, 1, 2] {
        let x = f32s(&[2, 3], &[1., -2., 0.3, 4., 0.1, -1.]);
        let bias = f32s(&[4], &[0.5, 0., -1., 2.]);
        let attrs = LinearActMul { act: Act::GeluErf, limit: 2.0, act_quant };
        let mut fused = [x.clone(), bias.clone(), output(DType::F32, &[2, 2])];
        run(&attrs, &mut fused, &[gate_up()]);
        let mut first = [x, bias, output(DType::F32, &[2, 4])];
        run(&Linear { act_quant, ..Default::default() }, &mut first, &[gate_up()]);
        let [_, _, gu] = first;
        let mut second = [gu, output(DType::F32, &[2, 2])];
        run(&ActMul { act: Act::GeluErf, limit: 2.0 }, &mut second, &[]);
        close(&fused[2].memory(), &second[1].memory());
    }
    // Gate 1 and 0, up 2 and 3.
    let mut t = [f32s(&[1, 3], &[1., 0., 2.]), absent(), output(DType::F32, &[1, 2])];
    run(&LinearActMul::default(), &mut t, &[gate_up()]);
    close(&t[2].memory(), &[2. / (1. + (-1f64).exp()), 0.]);
}

#[test]
fn rms_norm_quant_norms_and_keeps_the_residual() {
    // s = (3, -4); mean of squares 12.5, plus eps 3.5 = 16: (0.75, -2) with gamma (1, 2), so scale 2 / 127.
    let attrs = RmsNormQuant { eps: 3.5, plus_one: false, mode: 1 };
    let mut t = [
        f32s(&[1, 2], &[1., -1.]),
        f32s(&[2], &[1., 2.]),
        output(DType::I8, &[1, 2]),
        output(DType::F32, &[1, 1]),
        f32s(&[1, 2], &[2., -3.]),
    ];
    run(&attrs, &mut t, &[]);
    close(&t[2].memory(), &[48., -127.]);
    close(&t[3].memory(), &[2. / 127.]);
    close(&t[4].memory(), &[3., -4.]);
}

#[test]
fn rms_norm_quant_is_rms_norm_then_quant_act() {
    let x: Vec<f64> = (0..130).map(|i| f64::from(i * 37 % 101) - 50.).collect();
    let gamma = || f32s(&[130], &[0.5; 130]);
    let mut fused = [
        f32s(&[1, 130], &x),
        gamma(),
        output(DType::F8E4M3, &[1, 130]),
        output(DType::F32, &[1, 2]),
    ];
    run(&RmsNormQuant { eps: 1e-6, plus_one: true, mode: 2 }, &mut fused, &[]);
    let mut first = [f32s(&[1, 130], &x), gamma(), output(DType::F32, &[1, 130])];
    run(&RmsNorm { eps: 1e-6, plus_one: true }, &mut first, &[]);
    let [_, _, normed] = first;
    let mut second = [normed, output(DType::F8E4M3, &[1, 130]), output(DType::F32, &[1, 2])];
    run(&QuantAct { mode: 2 }, &mut second, &[]);
    close(&fused[2].memory(), &second[1].memory());
    close(&fused[3].memory(), &second[2].memory());
    let mut short = fused;
    short[3] = output(DType::F32, &[1, 1]);
    let why = refused(&RmsNormQuant { mode: 2, ..Default::default() }, &mut short, &[]);
    assert!(why.contains("rms_norm_quant: 1 scales a row of 130, expected 2"), "{why}");
}
