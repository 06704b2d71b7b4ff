//! Weight formats.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::{
        ops::attrs::{Embedding, Linear, MoeExperts},
        types::{WEIGHT_PERM, WEIGHT_ZERO},
    },
};

use crate::harness::{
    Filled, absent, close, dense, encode, f32s, i32s, output, refused, run, tensor,
};

/// Random blocks dequantised by the `gguf` package; `data/make_dequant.py` writes them.
const VECTORS: &str = include_str!("../data/dequant.txt");

#[test]
fn every_gguf_format_agrees_with_the_gguf_package() {
    let mut seen = Vec::new();
    for line in VECTORS.lines() {
        let mut words = line.split(' ');
        let scheme = Scheme::from_name(words.next().unwrap()).unwrap();
        let hex = words.next().unwrap();
        let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let bits = |w: &str| f64::from(f32::from_bits(u32::from_str_radix(w, 16).unwrap()));
        let want: Vec<f64> = words.map(bits).collect();

        let k = want.len() as u64;
        let w = Filled(WeightDesc::embedding(scheme, DType::NONE, 1, k), bytes);
        let mut t = [i32s(&[1], &[0]), output(DType::F32, &[1, k as i64])];
        run(&Embedding::default(), &mut t, &[w]);
        // The package computes in f32: two roundings of the largest term apart.
        let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
        for (i, (got, want)) in t[1].memory().iter().zip(&want).enumerate() {
            let error = (got - want).abs();
            assert!(error <= largest * 2.5e-7, "{scheme} value {i}: {got}, expected {want}");
        }
        seen.push(scheme);
    }
    seen.dedup();
    let all = Scheme::ALL.iter().filter(|s| s.gguf_block().is_some()).count();
    assert_eq!(seen.len(), all, "a vector for every GGUF scheme");
}

#[test]
fn dense_weights_of_each_float_type() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let w =
            dense(WeightDesc::linear(Scheme::DENSE, dtype, 2, 3), &[1., 2., 3., -1., 0.5, 0.25]);
        let x = tensor(dtype, &[1, 3], &[1., 10., 100.]);
        let mut t = [x, absent(), output(DType::F32, &[1, 2])];
        run(&Linear::default(), &mut t, &[w]);
        close(&t[2].memory(), &[321.0, 29.0]);
    }
}

#[test]
fn a_row_spans_several_blocks() {
    // Two blocks a row; d = 1 and 2, codes 8 + 1 = value 1 and 8 - 3 = value -3.
    let block = |d: u16, code: u8| [d.to_le_bytes().as_slice(), &[code << 4 | code; 16]].concat();
    let row = [block(0x3c00, 9), block(0x4000, 5)].concat();
    let w = Filled(WeightDesc::linear(Scheme::GGUF_Q4_0, DType::NONE, 1, 64), row);
    let x: Vec<f64> = (0..64).map(f64::from).collect();
    let mut t = [f32s(&[1, 64], &x), absent(), output(DType::F32, &[1, 1])];
    run(&Linear::default(), &mut t, &[w]);
    // Σ 0..32 = 496, Σ 32..64 = 1520.
    close(&t[2].memory(), &[496.0 - 6.0 * 1520.0]);
}

fn numbers(dtype: DType, values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|&v| encode(dtype, v)).collect()
}

#[test]
fn fp8_blocks_have_a_scale_for_128_rows_and_columns() {
    // All codes are 1; two rows and two columns beyond the first block.
    let scales = numbers(DType::F32, &[1., 2., 3., 4.]);
    let bytes = [vec![0x38; 130 * 130], scales].concat();
    let w = Filled(WeightDesc::linear(Scheme::FP8_BLOCK, DType::F32, 130, 130), bytes);
    let mut t = [f32s(&[1, 130], &[1.0; 130]), absent(), output(DType::F32, &[1, 130])];
    run(&Linear::default(), &mut t, &[w]);
    let mut want = [128.0 + 2.0 * 2.0; 130];
    want[128..].fill(128.0 * 3.0 + 2.0 * 4.0);
    close(&t[2].memory(), &want);
}

#[test]
fn fp8_rows_have_a_scale_each() {
    // 448, -1.125, 2^-9, then 0.5, -0, 1.
    let codes = [0x7e, 0xb9, 0x01, 0x30, 0x80, 0x38];
    let bytes = [codes.to_vec(), numbers(DType::F32, &[2.0, 0.5])].concat();
    let w = Filled(WeightDesc::linear(Scheme::FP8_CHANNEL, DType::F32, 2, 3), bytes);
    let x = f32s(&[2, 3], &[1.0, 0.0, 512.0, 0.0, 8.0, 0.0]);
    let mut t = [x, absent(), output(DType::F32, &[2, 2])];
    run(&Linear::default(), &mut t, &[w]);
    close(&t[2].memory(), &[2.0 * (448.0 + 1.0), 0.5 * 512.5, -18.0, 0.0]);
}

#[test]
fn int8_embeddings_and_experts() {
    let codes = [1u8, 0xff, 127, 0x80, 2, 3];
    let parts = |codes: &[u8], scales: &[f64]| [codes, &numbers(DType::F32, scales)].concat();
    let table = parts(&codes, &[0.5, 2.0, 1.0]);
    let w = Filled(WeightDesc::embedding(Scheme::INT8_CHANNEL, DType::F32, 3, 2), table);
    let mut t = [i32s(&[2], &[1, 0]), output(DType::F32, &[2, 2])];
    run(&Embedding::default(), &mut t, &[w]);
    close(&t[1].memory(), &[254.0, -256.0, 0.5, -0.5]);

    // Two experts of one column in and out. Gate and up of expert 1 are 2 · 5 and -1 · 5; it goes on with 3 · 0.5.
    let gate_up = [parts(&[0, 0], &[1.0, 1.0]), parts(&[2, 0xff], &[5.0, 5.0])].concat();
    let down = [parts(&[0], &[1.0]), parts(&[3], &[0.5])].concat();
    let experts =
        |n, bytes| Filled(WeightDesc::experts(Scheme::INT8_CHANNEL, DType::F32, 2, n, 1), bytes);
    let mut t = [
        f32s(&[1, 1], &[1.0]),
        i32s(&[1, 1], &[1]),
        f32s(&[1, 1], &[1.0]),
        output(DType::F32, &[1, 1]),
        absent(),
    ];
    run(&MoeExperts::default(), &mut t, &[experts(2, gate_up), experts(1, down)]);
    let silu = 10.0 / (1.0 + (-10f64).exp());
    close(&t[3].memory(), &[silu * -5.0 * 1.5]);
}

/// A row of codes 1, 15, 0, 8 in groups of two.
fn int4(flags: u32, dtype: DType, rest: &[Vec<u8>]) -> Filled {
    let desc = WeightDesc::linear(Scheme::INT4_GROUP, dtype, 1, 4);
    let scales = numbers(dtype, &[0.5, 2.0]);
    let bytes = [vec![0xf1, 0x80], scales, rest.concat()].concat();
    Filled(WeightDesc { group_size: 2, flags, ..desc }, bytes)
}

#[test]
fn int4_groups_with_and_without_zeros_and_permutation() {
    let zeros = vec![3, 9];
    let perm: Vec<u8> = [2i32, 0, 3, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    let products = |w: Filled| {
        let x = f32s(&[1, 4], &[1.0, 10.0, 100.0, 1000.0]);
        let mut t = [x, absent(), output(DType::F32, &[1, 1])];
        run(&Linear::default(), &mut t, &[w]);
        t[2].memory()
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        // (q - 8) scale: -3.5, 3.5, -16, 0.
        close(&products(int4(0, dtype, &[])), &[-3.5 + 35.0 - 1600.0]);
        // (q - zero) scale: -1, 6, -18, -2.
        let w = int4(WEIGHT_ZERO, dtype, std::slice::from_ref(&zeros));
        close(&products(w), &[-1.0 + 60.0 - 1800.0 - 2000.0]);
        // The columns belong to inputs 2, 0, 3, 1.
        let w = int4(WEIGHT_ZERO | WEIGHT_PERM, dtype, &[zeros.clone(), perm.clone()]);
        close(&products(w), &[-100.0 + 6.0 - 18_000.0 - 20.0]);
        let w = int4(WEIGHT_PERM, dtype, std::slice::from_ref(&perm));
        close(&products(w), &[-350.0 + 3.5 - 16_000.0]);
    }
}

#[test]
fn a_permutation_stays_inside_the_columns() {
    for outside in [4i32, -1] {
        let perm: Vec<u8> = [0, 1, 2, outside].iter().flat_map(|v| v.to_le_bytes()).collect();
        let w = int4(WEIGHT_PERM, DType::F32, &[perm]);
        let mut t = [f32s(&[1, 4], &[1.0; 4]), absent(), output(DType::F32, &[1, 1])];
        assert!(refused(&Linear::default(), &mut t, &[w]).contains("there are 4"));
    }
}
