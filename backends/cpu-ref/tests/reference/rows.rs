//! COPY, ADD, MUL, GATHER_ROWS, EMBEDDING, RMS_NORM, ROPE, ACT_MUL, LINEAR.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::{
        Act,
        attrs::{ActMul, Add, Copy, Embedding, GatherRows, Linear, Mul, RmsNorm, Rope},
    },
};

use crate::harness::{Tensor, absent, close, dense, f32s, i32s, output, refused, run, tensor};

#[test]
fn copy_rounds_half_to_even_and_saturates() {
    let x = f32s(&[8], &[0.5, 1.5, -2.5, 3e9, -3e9, f64::NAN, f64::INFINITY, -0.4]);
    let mut t = [x.clone(), output(DType::I32, &[8])];
    run(&Copy {}, &mut t, &[]);
    let (max, min) = (f64::from(i32::MAX), f64::from(i32::MIN));
    close(&t[1].memory(), &[0.0, 2.0, -2.0, max, min, 0.0, max, 0.0]);
    let mut t = [x, output(DType::U32, &[8])];
    run(&Copy {}, &mut t, &[]);
    close(&t[1].memory(), &[0.0, 2.0, 0.0, 3e9, 0.0, 0.0, f64::from(u32::MAX), 0.0]);
}

#[test]
fn copy_rounds_floats_to_nearest_even_and_overflows_to_infinity() {
    // bf16 has 8 significant bits: 257 lies between 256 and 258, 259 between 258 and 260.
    let mut t = [f32s(&[4], &[257.0, 259.0, 3.4e38, f64::NAN]), output(DType::BF16, &[4])];
    run(&Copy {}, &mut t, &[]);
    close(&t[1].memory(), &[256.0, 260.0, f64::INFINITY, f64::NAN]);
    let mut t = [f32s(&[3], &[65504.0, 65520.0, 6e-8]), output(DType::F16, &[3])];
    run(&Copy {}, &mut t, &[]);
    close(&t[1].memory(), &[65504.0, f64::INFINITY, 2f64.powi(-24)]);
}

#[test]
fn copy_to_bytes_saturates_and_back_is_exact() {
    let x = f32s(&[5], &[300.0, -1e9, 2.5, f64::NAN, f64::INFINITY]);
    for (dtype, want) in [
        (DType::I8, [127., -128., 2., 0., 127.]),
        (DType::F8E4M3, [288., -448., 2.5, f64::NAN, 448.]),
    ] {
        let mut t = [x.clone(), output(dtype, &[5])];
        run(&Copy {}, &mut t, &[]);
        let [_, bytes] = t;
        close(&bytes.memory(), &want);
        let mut back = [bytes, output(DType::F16, &[5])];
        run(&Copy {}, &mut back, &[]);
        close(&back[1].memory(), &want);
    }
    let mut wide = [tensor(DType::I64, &[3], &[1e12, -129., 7.]), output(DType::I8, &[3])];
    run(&Copy {}, &mut wide, &[]);
    close(&wide[1].memory(), &[127., -128., 7.]);
}

#[test]
fn copy_transposes_broadcasts_and_leaves_gaps_alone() {
    let x = f32s(&[6], &[1., 2., 3., 4., 5., 6.]).seen(&[3, 2], &[1, 3]);
    let y = f32s(&[9], &[-9.0; 9]).seen(&[3, 2], &[3, 1]);
    let mut t = [x, y];
    run(&Copy {}, &mut t, &[]);
    close(&t[1].memory(), &[1., 4., -9., 2., 5., -9., 3., 6., -9.]);
    let mut t = [f32s(&[2], &[7., 8.]).seen(&[3, 2], &[0, 1]), output(DType::F32, &[3, 2])];
    run(&Copy {}, &mut t, &[]);
    close(&t[1].memory(), &[7., 8., 7., 8., 7., 8.]);
}

#[test]
fn copy_keeps_every_bit_of_64_bit_integers() {
    let mut x = tensor(DType::U64, &[2], &[0.0, 0.0]);
    *x.bytes_mut() = [u64::MAX - 1, (1 << 53) + 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    let want = x.bytes_mut().clone();
    let mut t = [x, tensor(DType::U64, &[2], &[0.0, 0.0])];
    run(&Copy {}, &mut t, &[]);
    assert_eq!(*t[1].bytes_mut(), want);
}

#[test]
fn add_and_mul_broadcast_over_leading_dims() {
    let a = f32s(&[2, 2, 2], &[1., 2., 3., 4., 5., 6., 7., 8.]);
    let mut t = [a.clone(), f32s(&[2], &[10., 20.]), output(DType::F32, &[2, 2, 2])];
    run(&Add { alpha: -0.5 }, &mut t, &[]);
    close(&t[2].memory(), &[-4., -8., -2., -6., 0., -4., 2., -2.]);
    let mut t = [a, f32s(&[2, 2], &[1., 0., -1., 2.]), output(DType::F32, &[2, 2, 2])];
    run(&Mul {}, &mut t, &[]);
    close(&t[2].memory(), &[1., 0., -3., 8., 5., 0., -7., 16.]);
}

#[test]
fn add_rounds_once() {
    // 256 + 1.0078125 (bf16) = 257.0078125, above the middle of 256 and 258.
    let one = |v: f64| tensor(DType::BF16, &[1], &[v]);
    let mut t = [one(256.0), one(1.007_812_5), output(DType::BF16, &[1])];
    run(&Add::default(), &mut t, &[]);
    close(&t[2].memory(), &[258.0]);
}

#[test]
fn gathered_rows_and_padding() {
    let x = f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]);
    let mut t = [x.clone(), i32s(&[4], &[2, -1, 0, 2]), output(DType::F32, &[4, 2])];
    run(&GatherRows {}, &mut t, &[]);
    close(&t[2].memory(), &[5., 6., 0., 0., 1., 2., 5., 6.]);
    let mut t = [x, i32s(&[1], &[3]), output(DType::F32, &[1, 2])];
    assert!(refused(&GatherRows {}, &mut t, &[]).contains("idx is 3, there are 3"));
}

#[test]
fn embedding_of_a_shard() {
    let table = || dense(WeightDesc::embedding(Scheme::DENSE, DType::F32, 2, 2), &[1., 2., 3., 4.]);
    let ids = i32s(&[5], &[10, 11, 12, 9, -1]);
    let mut t = [ids, output(DType::BF16, &[5, 2])];
    run(&Embedding { scale: 2.0, vocab_start: 10 }, &mut t, &[table()]);
    close(&t[1].memory(), &[2., 4., 6., 8., 0., 0., 0., 0., 0., 0.]);
    // A negative id is padding even where the shard's arithmetic would find a row.
    let mut t = [i32s(&[1], &[-1]), output(DType::F32, &[1, 2])];
    run(&Embedding { scale: 1.0, vocab_start: -1 }, &mut t, &[table()]);
    close(&t[1].memory(), &[0., 0.]);
}

#[test]
fn rms_norm_by_hand() {
    // mean of squares (9 + 16) / 2 = 12.5, plus eps 3.5 = 16.
    let norm = RmsNorm { eps: 3.5, plus_one: false };
    let mut t = [f32s(&[1, 2], &[3., -4.]), f32s(&[2], &[1., 2.]), output(DType::F32, &[1, 2])];
    run(&norm, &mut t, &[]);
    close(&t[2].memory(), &[0.75, -2.0]);
    run(&RmsNorm { plus_one: true, ..norm }, &mut t, &[]);
    close(&t[2].memory(), &[1.5, -3.0]);
}

#[test]
fn rms_norm_of_zeros_needs_eps_and_rank_three_is_by_row() {
    let mut t = [
        f32s(&[1, 2, 2], &[0., 0., 2., 2.]),
        f32s(&[2], &[1., 1.]),
        output(DType::F32, &[1, 2, 2]),
    ];
    run(&RmsNorm { eps: 1e-6, plus_one: false }, &mut t, &[]);
    close(&t[2].memory(), &[0., 0., 1.0 - 1.25e-7, 1.0 - 1.25e-7]);
}

#[test]
fn rms_norm_rounds_the_residual_sum_and_norms_the_rounded() {
    let b = |v: &[f64]| tensor(DType::BF16, &[1, 2], v);
    // 256 + 1 = 257 rounds to 256 in bf16; the norm sees 256.
    let mut t =
        [b(&[1., 0.]), f32s(&[2], &[1., 1.]), output(DType::BF16, &[1, 2]), b(&[256., 256.])];
    run(&RmsNorm { eps: 0.0, plus_one: false }, &mut t, &[]);
    close(&t[3].memory(), &[256., 256.]);
    close(&t[2].memory(), &[1., 1.]);
}

/// A table of one position: cos 0.6 and 0, sin 0.8 and 1; position 0 is no rotation.
fn table() -> Tensor {
    f32s(&[2, 4], &[1., 1., 0., 0., 0.6, 0.0, 0.8, 1.0])
}

#[test]
fn rope_in_both_styles_and_with_an_offset() {
    let q = f32s(&[1, 1, 5], &[9., 1., 2., 3., 4.]);
    let rope = Rope { interleaved: false, offset: 1 };
    let mut t = [q.clone(), absent(), i32s(&[1], &[1]), table()];
    run(&rope, &mut t, &[]);
    // Pairs (1, 3) by (0.6, 0.8) and (2, 4) by (0, 1).
    close(&t[0].memory(), &[9., 0.6 - 2.4, -4., 1.8 + 0.8, 2.]);
    let mut t = [q, absent(), i32s(&[1], &[1]), table()];
    run(&Rope { interleaved: true, ..rope }, &mut t, &[]);
    // Pairs (1, 2) and (3, 4).
    close(&t[0].memory(), &[9., 0.6 - 1.6, 1.2 + 0.8, -4., 3.]);
}

#[test]
fn rope_turns_keys_too_and_leaves_padding_alone() {
    let q = f32s(&[2, 2, 4], &[1.; 16]);
    let k = f32s(&[2, 1, 4], &[1.; 8]);
    let mut t = [q, k, i32s(&[2], &[-1, 1]), table()];
    run(&Rope::default(), &mut t, &[]);
    let turned = [0.6 - 0.8, -1.0, 0.6 + 0.8, 1.0];
    close(&t[1].memory(), &[&[1.; 4], turned.as_slice()].concat());
    close(&t[0].memory(), &[&[1.; 8], turned.as_slice(), &turned].concat());
}

#[test]
fn rope_refuses_positions_beyond_its_table() {
    let mut t = [f32s(&[1, 1, 4], &[1.; 4]), absent(), i32s(&[1], &[2]), table()];
    assert!(refused(&Rope::default(), &mut t, &[]).contains("pos is 2, there are 2"));
    close(&t[0].memory(), &[1.; 4]);
}

#[test]
fn act_mul_takes_gate_then_up() {
    let gu = f32s(&[2, 4], &[0., 1., 5., 7., -1., 2., 3., 4.]);
    let mut t = [gu, output(DType::F32, &[2, 2])];
    run(&ActMul { act: Act::Silu, limit: 0.0 }, &mut t, &[]);
    let silu = |g: f64| g / (1.0 + (-g).exp());
    close(&t[1].memory(), &[0., 7. * silu(1.), 3. * silu(-1.), 4. * silu(2.)]);
}

fn two_by_two() -> crate::harness::Filled {
    dense(WeightDesc::linear(Scheme::DENSE, DType::F32, 2, 2), &[1., 2., 3., 4.])
}

#[test]
fn linear_with_bias_and_accumulation() {
    let x = f32s(&[2, 2], &[1., 1., 2., -1.]);
    let bias = f32s(&[2], &[0.5, -0.5]);
    let mut t = [x.clone(), bias, output(DType::F32, &[2, 2])];
    run(&Linear::default(), &mut t, &[two_by_two()]);
    close(&t[2].memory(), &[3.5, 6.5, 0.5, 1.5]);
    let mut t = [x, absent(), f32s(&[2, 2], &[100., 200., 300., 400.])];
    run(&Linear { accumulate: true, act_quant: 0 }, &mut t, &[two_by_two()]);
    close(&t[2].memory(), &[103., 207., 300., 402.]);
}

#[test]
fn linear_of_strided_rows_and_of_none() {
    // Rows of 2 at a pitch of 3, outputs at a pitch of 4.
    let x = f32s(&[5], &[1., 1., 99., 2., -1.]).seen(&[2, 2], &[3, 1]);
    let y = f32s(&[6], &[-9.; 6]).seen(&[2, 2], &[4, 1]);
    let mut t = [x, absent(), y];
    run(&Linear::default(), &mut t, &[two_by_two()]);
    close(&t[2].memory(), &[3., 7., -9., -9., 0., 2.]);
    let mut t = [f32s(&[0, 2], &[]), absent(), output(DType::F32, &[0, 2])];
    run(&Linear::default(), &mut t, &[two_by_two()]);
}

#[test]
fn sums_are_wider_than_f32() {
    // In f32, 1e8 + 1 - 1e8 is 0.
    let w = dense(WeightDesc::linear(Scheme::DENSE, DType::F32, 1, 3), &[1e8, 1., -1e8]);
    let mut t = [f32s(&[1, 3], &[1.; 3]), absent(), output(DType::F32, &[1, 1])];
    run(&Linear::default(), &mut t, &[w]);
    close(&t[2].memory(), &[1.0]);
}
