//! Weight formats.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::attrs::{Embedding, Linear},
};

use crate::harness::{Filled, absent, close, dense, f32s, i32s, output, run, tensor};

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
