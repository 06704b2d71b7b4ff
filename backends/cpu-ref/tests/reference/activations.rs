//! QUANT_ACT, and ACT_QUANT in the linear layers.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::attrs::{GroupedLinear, Linear, MoeExperts, QuantAct},
};

use crate::harness::{Filled, absent, close, dense, f32s, i32s, output, refused, run};

const INT8: QuantAct = QuantAct { mode: 1 };
const FP8: QuantAct = QuantAct { mode: 2 };

fn quantise(attrs: &QuantAct, dims: &[i64; 2], x: &[f64]) -> [Vec<f64>; 2] {
    let (dtype, scales) =
        if attrs.mode == 1 { (DType::I8, 1) } else { (DType::F8E4M3, (dims[1] + 127) / 128) };
    let mut t = [f32s(dims, x), output(dtype, dims), output(DType::F32, &[dims[0], scales])];
    run(attrs, &mut t, &[]);
    [t[1].memory(), t[2].memory()]
}

#[test]
fn bytes_have_a_scale_a_row() {
    let x = [127., -63.5, 0.5, 1.5, 2., -254., 3., 0., 0., 0., 0., -0.];
    let [q, scale] = quantise(&INT8, &[3, 4], &x);
    // Ties go to even; a row of zeros has scale 1.
    close(&q, &[127., -64., 0., 2., 1., -127., 2., 0., 0., 0., 0., 0.]);
    close(&scale, &[1., 2., 1.]);
    let [q, scale] = quantise(&INT8, &[1, 2], &[0.1, -0.3]);
    close(&q, &[42., -127.]);
    close(&scale, &[0.3 / 127.]);
}

#[test]
fn eight_bit_floats_have_a_scale_a_group_and_the_last_may_be_short() {
    let mut x = vec![0.0; 2 * 130];
    // Row 0: 448 makes scale 1, 17 is half way between 16 and 18, 2^-10 half of the smallest; then 896 and 1.
    (x[0], x[127], x[5], x[6]) = (-448., 17., 2f64.powi(-10), 19.);
    (x[128], x[129]) = (896., 1.);
    // Row 1: nothing in its first group.
    x[130 + 129] = -4.48;
    let [q, scale] = quantise(&FP8, &[2, 130], &x);
    close(&scale, &[1., 2., 1., 0.01]);
    close(&[q[0], q[127], q[5], q[6]], &[-448., 16., 0., 20.]);
    close(&q[128..130], &[448., 0.5]);
    close(&q[130..258], &[0.; 128]);
    close(&q[258..], &[0., -448.]);
}

#[test]
fn scales_that_f32_cannot_hold_and_values_that_are_none() {
    // A hundredth of the smallest f32 would be a scale of 0.
    let tiny = f64::from(f32::from_bits(1));
    let [q, scale] = quantise(&INT8, &[1, 2], &[tiny, 0.]);
    close(&q, &[0., 0.]);
    close(&scale, &[1.]);
    let [q, scale] = quantise(&INT8, &[2, 2], &[f64::NAN, 1., f64::INFINITY, 1.]);
    close(&q, &[0., 0., 0., 0.]);
    assert!(scale[0].is_nan() && scale[1].is_infinite(), "{scale:?}");
    let [q, _] = quantise(&FP8, &[1, 2], &[f64::NAN, 1.]);
    assert!(q.iter().all(|q| q.is_nan()), "{q:?}");
}

#[test]
fn outputs_that_do_not_fit_the_mode_are_refused() {
    let refuse = |attrs: &QuantAct, dtype, scales| {
        let x = f32s(&[1, 130], &[1.; 130]);
        let mut t = [x, output(dtype, &[1, 130]), output(DType::F32, &[1, scales])];
        refused(attrs, &mut t, &[])
    };
    assert!(refuse(&INT8, DType::F8E4M3, 1).contains("mode 1 writes i8, q is f8e4m3"));
    assert!(refuse(&FP8, DType::F8E4M3, 1).contains("1 scales a row of 130, expected 2"));
    assert!(refuse(&INT8, DType::I8, 2).contains("2 scales a row of 130, expected 1"));
    assert!(refuse(&QuantAct { mode: 3 }, DType::I8, 1).contains("mode 3; supported: 1"));
}

fn weight(n: u64, k: u64, values: &[f64]) -> Filled {
    dense(WeightDesc::linear(Scheme::DENSE, DType::F32, n, k), values)
}

#[test]
fn linear_sees_the_rounded_inputs() {
    let product = |act_quant, x: &[f64]| {
        let mut t = [f32s(&[1, 3], x), absent(), output(DType::F32, &[1, 2])];
        let w = weight(2, 3, &[1., 0., 0., 0., 1., 1.]);
        run(&Linear { act_quant, ..Default::default() }, &mut t, &[w]);
        t[2].memory()
    };
    // Scale 2: 3 becomes 2 · 2 = 4.
    close(&product(0, &[3., -254., 1.]), &[3., -253.]);
    close(&product(1, &[3., -254., 1.]), &[4., -254.]);
    close(&product(2, &[17., -448., 1.]), &[16., -447.]);
}

#[test]
fn grouped_linear_quantises_each_row() {
    let w = dense(WeightDesc::experts(Scheme::DENSE, DType::F32, 2, 1, 2), &[1., 1., 1., -1.]);
    let mut t = [
        f32s(&[2, 2], &[127., 1.4, 254., 3.]),
        i32s(&[3], &[0, 1, 2]),
        output(DType::F32, &[2, 1]),
    ];
    run(&GroupedLinear { act_quant: 1 }, &mut t, &[w]);
    close(&t[2].memory(), &[128., 250.]);
}

#[test]
fn experts_quantise_what_goes_into_either_layer() {
    // x becomes (127, 1): gates 1000 and 3 with ups 1, so (1000, silu 3); of that, 2.86 is below half a step of 1000 / 127.
    let w = |n, k| WeightDesc::experts(Scheme::DENSE, DType::F32, 1, n, k);
    let up = 1. / 127.;
    let weights =
        [dense(w(4, 2), &[0., 1000., 0., 3., up, 0., up, 0.]), dense(w(2, 2), &[1., 1., 0., 2.])];
    let mut t = [
        f32s(&[1, 2], &[127., 0.6]),
        i32s(&[1, 1], &[0]),
        f32s(&[1, 1], &[1.]),
        output(DType::F32, &[1, 2]),
    ];
    run(&MoeExperts { act_quant: 1, ..Default::default() }, &mut t, &weights);
    close(&t[3].memory(), &[1000., 0.]);
}
