//! MLA_WRITE, MLA_ATTENTION, and the LATENT attribute of KV_GATHER and KV_COPY_BLOCKS.

use halyard_sdk::{
    DType,
    abi::ops::attrs::{KvCopyBlocks, KvGather, MlaAttention, MlaWrite},
};

use crate::harness::{Tensor, close, f32s, i32s, output, refused, run, tensor};

const NONE: f64 = f64::NEG_INFINITY;

#[test]
fn latents_go_to_their_slots_and_negative_ones_nowhere() {
    let slots = |s: &[f64]| tensor(DType::I64, &[3], s);
    let tensors = |s: &[f64]| {
        [
            f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]),
            f32s(&[3, 1], &[10., 20., 257.]),
            slots(s),
            tensor(DType::BF16, &[2, 2, 2], &[-9.; 8]),
            tensor(DType::BF16, &[2, 2, 1], &[-9.; 4]),
        ]
    };
    let mut t = tensors(&[3., -1., 0.]);
    run(&MlaWrite {}, &mut t, &[]);
    close(&t[3].memory(), &[5., 6., -9., -9., -9., -9., 1., 2.]);
    // 257 rounds to the cache's bf16.
    close(&t[4].memory(), &[256., -9., -9., 10.]);
    let mut t = tensors(&[0., 1., 4.]);
    assert!(refused(&MlaWrite {}, &mut t, &[]).contains("slot is 4, there are 4"));
    close(&t[3].memory(), &[-9.; 8]);
}

/// Latents `(ln w, value)` with `w` 1, 2, 3 and values 10, 20, 30, rotated parts `ln u` with `u` 3, 1, 1; blocks of 2, sequence 0 in
/// blocks 2 and 0, sequence 1 in block 1. Queries of two heads: `qc = (1, 0)` and `qr` 0 and 1, so that the softmax weights are `w`
/// in head 0 and `w u` in head 1.
fn attend(attrs: &MlaAttention, cu_q: &[i64], kv_len: &[i64], rows: usize) -> [Vec<f64>; 2] {
    let tokens = rows as i64;
    let (nan, ln) = (f64::NAN, |x: f64| x.ln());
    let latents = [ln(3.), 30., nan, nan, ln(5.), 50., ln(7.), 70., 0., 10., ln(2.), 20.];
    let rotated = [0., nan, 0., 0., ln(3.), 0.];
    let sequences = kv_len.len() as i64;
    let table: Vec<i64> = [2, 0, 1, -1].into_iter().take(kv_len.len() * 2).collect();
    let mut t: Vec<Tensor> = vec![
        f32s(&[tokens, 2, 2], &[1., 0.].repeat(2 * rows)),
        f32s(&[tokens, 2, 1], &[0., 1.].repeat(rows)),
        f32s(&[3, 2, 2], &latents),
        f32s(&[3, 2, 1], &rotated),
        i32s(&[sequences, 2], &table),
        i32s(&[sequences + 1], cu_q),
        i32s(&[sequences], kv_len),
        output(DType::F32, &[tokens, 2, 2]),
        output(DType::F32, &[tokens, 2]),
    ];
    run(attrs, &mut t, &[]);
    [t[7].memory(), t[8].memory()]
}

#[test]
fn all_heads_share_latents_and_rotated_parts() {
    let [o, lse] = attend(&MlaAttention::default(), &[0, 1], &[3], 1);
    // Head 0: weights 1, 2, 3 of 6; head 1: 3, 2, 3 of 8. Outputs are the latents' averages.
    let logs = 2. * 2f64.ln() + 3. * 3f64.ln();
    close(&o, &[logs / 6., 140. / 6., logs / 8., 160. / 8.]);
    close(&lse, &[6f64.ln(), 8f64.ln()]);
}

#[test]
fn chunks_empty_sequences_and_padding() {
    // Two queries of three keys, a padded decode, a padding token.
    let [o, lse] = attend(&MlaAttention::default(), &[0, 2, 3], &[3, 0], 4);
    let values: Vec<f64> = o.chunks(2).map(|o| o[1]).collect();
    close(&values, &[50. / 3., 14., 140. / 6., 20., 0., 0., 0., 0.]);
    close(&lse, &[3f64.ln(), 5f64.ln(), 6f64.ln(), 8f64.ln(), NONE, NONE, NONE, NONE]);
    // More queries than keys: the first is before position 0.
    let [o, lse] = attend(&MlaAttention::default(), &[0, 0, 2], &[3, 1], 2);
    close(&o, &[0., 0., 0., 0., 5f64.ln(), 50., 5f64.ln(), 50.]);
    close(&lse, &[NONE, NONE, 5f64.ln(), 5f64.ln()]);
}

#[test]
fn scale_window_and_softcap_as_in_paged_attention() {
    let values = |attrs| attend(&attrs, &[0, 1], &[3], 1)[0].chunks(2).map(|o| o[1]).collect();
    let plain = MlaAttention::default();
    let is = |got: Vec<f64>, want: &[f64]| close(&got, want);
    is(values(MlaAttention { scale: 2.0, ..plain }), &[360. / 14., 440. / 22.]);
    is(values(MlaAttention { window: 1, ..plain }), &[26., 26.]);
    is(values(MlaAttention { window: 0, causal: false, ..plain }), &[140. / 6., 20.]);
    let capped = |w: f64| (0.5 * (w.ln() / 0.5).tanh()).exp();
    let average = |w: [f64; 3]| {
        let e = w.map(capped);
        (10. * e[0] + 20. * e[1] + 30. * e[2]) / (e[0] + e[1] + e[2])
    };
    let want = [average([1., 2., 3.]), average([3., 2., 3.])];
    is(values(MlaAttention { softcap: 0.5, ..plain }), &want);
}

#[test]
fn latents_are_gathered_and_copied_as_one_head() {
    let c_cache = || f32s(&[2, 2, 1, 2], &[1., 2., 3., 4., 5., 6., 7., 8.]);
    let r_cache = || f32s(&[2, 2, 1, 1], &[10., 20., 30., 40.]);
    let mut t = [
        c_cache(),
        r_cache(),
        i32s(&[1, 2], &[1, 0]),
        i32s(&[2], &[0, 3]),
        output(DType::BF16, &[4, 1, 2]),
        output(DType::BF16, &[4, 1, 1]),
    ];
    run(&KvGather { latent: true }, &mut t, &[]);
    close(&t[4].memory(), &[5., 6., 7., 8., 1., 2., 0., 0.]);
    close(&t[5].memory(), &[30., 40., 10., 0.]);
    let mut t = [c_cache(), r_cache(), i32s(&[1, 2], &[1, 0])];
    run(&KvCopyBlocks { latent: true }, &mut t, &[]);
    close(&t[0].memory(), &[5., 6., 7., 8., 5., 6., 7., 8.]);
    close(&t[1].memory(), &[30., 40., 30., 40.]);
}
