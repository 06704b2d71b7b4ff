use crate::device::{Device, F16, F32, I4, I8, I32, int, numbers, plan, refused, t, transposed};
use halyard_sim_ascend_ops::{Tensor, cast_storage_dims, matmul_weight_elements};

/// The tensor read as FRACTAL_NZ with true storage.
fn nz(tensor: &Tensor, storage: &[i64]) -> Tensor {
    Tensor { format: 29, storage_dims: storage.to_vec(), ..tensor.clone() }
}

#[test]
fn sizes_of_fractals() {
    assert_eq!(cast_storage_dims(&[20, 40], F16).unwrap(), [3, 2, 16, 16]);
    assert_eq!(cast_storage_dims(&[5, 20, 40], I8).unwrap(), [5, 2, 2, 16, 32]);
    assert_eq!(matmul_weight_elements(&[20, 40], F16).unwrap(), 3 * 2 * 256);
    assert!(matmul_weight_elements(&[20, 40], F32).unwrap_err().message.contains("aclDataType 0"));
}

#[test]
fn a_weight_is_rewritten_in_place_and_multiplied() {
    let d = Device::default();
    let (x, w) = (numbers(3 * 40, 1), numbers(20 * 40, 2));
    let xs = d.floats(F16, &[3, 40], &x);
    // [N, K] with room for full fractals.
    let room = d.empty(F16, &[3 * 2 * 256]);
    let weight = Tensor { address: room.address, ..d.floats(F16, &[20, 40], &w) };
    d.call("InplaceCopy", &[t(&weight), t(&d.floats(F16, &[20, 40], &w))]);
    let (expected, out) = (d.empty(F16, &[3, 20]), d.empty(F16, &[3, 20]));
    d.call("Mm", &[t(&xs), t(&transposed(&weight)), t(&expected), int(0)]);
    d.call("TransMatmulWeight", &[t(&weight)]);
    // Row 1, column 17 of [20, 40] lies in the second stripe, second row, second place.
    assert_eq!(d.read_floats(&room)[2 * 256 + 16 + 1], w[40 + 17]);
    assert_eq!(d.read_floats(&room)[20 * 16], 0.0, "rows that fill a fractal are zeros");
    let stored = nz(&transposed(&weight), &[3, 2, 16, 16]);
    for name in ["Mm", "MatmulWeightNz"] {
        d.call(name, &[t(&xs), t(&stored), t(&out), int(0)]);
        assert_eq!(d.read_floats(&out), d.read_floats(&expected));
    }
    let flat = nz(&transposed(&weight), &[800]);
    refused("Mm", &[t(&xs), t(&flat), t(&out), int(0)], 161_002, "expected [3, 2, 16, 16] and 0");
}

#[test]
fn a_stack_of_weights_is_cast() {
    let d = Device::default();
    let codes: Vec<i64> = (0..2 * 20 * 40).map(|i| i % 251 - 125).collect();
    let from = d.ints(I8, &[2, 20, 40], &codes);
    let room = d.empty(I8, &[2, 2, 2, 16, 32]);
    let to = Tensor { address: room.address, ..nz(&from, &[2, 2, 2, 16, 32]) };
    d.call("NpuFormatCast", &[t(&from), t(&to)]);
    // Matrix 1, row 19, column 33: stripe 1, row 19, place 1.
    assert_eq!(d.read_ints(&room)[3 * 1024 + 19 * 32 + 1], codes[800 + 19 * 40 + 33]);
    let wrong = Tensor { storage_dims: vec![2, 2, 20, 32], ..to };
    refused(
        "NpuFormatCast",
        &[t(&from), t(&wrong)],
        161_002,
        "dstTensor: FRACTAL_NZ storage shape",
    );
    refused("NpuFormatCast", &[t(&from), t(&from)], 161_002, "dstTensor: format ND");
}

#[test]
fn codes_of_four_bits_are_packed() {
    let d = Device::default();
    let codes = d.ints(I32, &[1, 8], &[0, 1, 2, 7, -8, -1, 3, -4]);
    let packed = d.empty(I4, &[1, 8]);
    d.call("ConvertWeightToINT4Pack", &[t(&codes), t(&packed)]);
    assert_eq!(d.read_bytes(&packed), [0x10, 0x72, 0xF8, 0xC3]);
    let word = d.empty(I32, &[1, 1]);
    d.call("ConvertWeightToINT4Pack", &[t(&codes), t(&word)]);
    assert_eq!(d.read_ints(&word), [i64::from(0xC3F8_7210u32 as i32)]);
    let large = d.ints(I32, &[1, 2], &[8, 0]);
    let two = d.empty(I4, &[1, 2]);
    assert!(d.run(&plan("ConvertWeightToINT4Pack", &[t(&large), t(&two)]).unwrap()).is_err());
    refused(
        "ConvertWeightToINT4Pack",
        &[t(&large), t(&word)],
        161_002,
        "weight: 2 along the last axis, expected a multiple of 8",
    );
    let odd = Tensor::contiguous(I4, &[2, 3], two.address);
    refused(
        "ConvertWeightToINT4Pack",
        &[t(&large), t(&odd)],
        161_002,
        "expected even numbers side by side",
    );
}
