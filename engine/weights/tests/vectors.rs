//! Dequantisation and rotary frequencies against independent implementations.

use std::path::{Path, PathBuf};

use halyard_weights::{
    Checkpoint, ModelConfig, RopeScaling, TensorFormat, dequantize, inverse_frequencies, rope_table,
};
use serde_json::Value;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

#[test]
fn every_block_type_is_dequantized_to_the_last_bit() {
    let vectors = Checkpoint::open(&testdata("quant_vectors.safetensors")).unwrap();
    let formats = [
        TensorFormat::Q4_0,
        TensorFormat::Q4_1,
        TensorFormat::Q5_0,
        TensorFormat::Q5_1,
        TensorFormat::Q8_0,
        TensorFormat::Q2_K,
        TensorFormat::Q3_K,
        TensorFormat::Q4_K,
        TensorFormat::Q5_K,
        TensorFormat::Q6_K,
        TensorFormat::IQ4_NL,
    ];
    assert_eq!(vectors.names().count(), 2 * formats.len());
    for format in formats {
        let blocks = vectors.tensor(&format!("{format:?}.blocks")).unwrap();
        let expected = vectors.tensor(&format!("{format:?}.values")).unwrap().dequantize().unwrap();
        let values = dequantize(format, blocks.bytes).unwrap();
        assert_eq!(values.len(), expected.len());
        for (index, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{format:?}[{index}]: {value} {expected}"
            );
        }
    }
}

#[test]
fn dequantize_refuses_what_it_must() {
    assert!(dequantize(TensorFormat::Q4_0, &[0; 17]).is_err());
    assert!(dequantize(TensorFormat::I32, &[0; 4]).is_err());
    assert_eq!(dequantize(TensorFormat::F16, &[0, 0x3c]).unwrap(), [1.0]);
    assert_eq!(dequantize(TensorFormat::BF16, &[0x80, 0x3f]).unwrap(), [1.0]);
    assert!(halyard_weights::dequantize_into(TensorFormat::F32, &[0; 8], &mut [0.0]).is_err());
}

#[test]
fn rotary_frequencies_of_every_scaling() {
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(testdata("rope_vectors.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let config = ModelConfig::from_json(&case["config"].to_string(), None).unwrap();
        let frequencies = inverse_frequencies(&config.rope);
        let expected: Vec<f64> =
            serde_json::from_value(case["inverse_frequencies"].clone()).unwrap();
        assert_eq!(frequencies.len(), expected.len());
        for (frequency, expected) in frequencies.iter().zip(expected) {
            // The reference computes in f32 throughout; a few of its steps round differently.
            let error = (f64::from(*frequency) / expected - 1.0).abs();
            assert!(error < 4e-7, "{frequency} {expected} {:?}", config.rope);
        }
        let magnitude = match config.rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        assert!((magnitude - case["magnitude"].as_f64().unwrap()).abs() < 1e-9);
        // Row 0 has no angle, row 1 the frequencies themselves.
        let table = rope_table(&config, 2);
        let half = config.rope.dim / 2;
        assert_eq!(table.len(), 4 * half);
        let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-6;
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(*frequency);
            assert!(near(table[i], magnitude) && near(table[half + i], 0.0));
            assert!(near(table[2 * half + i], magnitude * angle.cos()));
            assert!(near(table[3 * half + i], magnitude * angle.sin()));
        }
    }
}
