use crate::device::{Device, F32, I32, I64, refused, t};

const BOOL: i32 = 12;
const U8: i32 = 4;

#[test]
fn comparisons_broadcast_and_nothing_compares_with_nan() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 2], &[1.0, 2.0, f32::NAN, 3.0]);
    let y = d.floats(F32, &[2], &[2.0, 2.0]);
    let out = d.empty(BOOL, &[2, 2]);
    for (name, expected) in
        [("LtTensor", [1, 0, 0, 0]), ("LeTensor", [1, 1, 0, 0]), ("EqTensor", [0, 1, 0, 0])]
    {
        d.call(name, &[t(&x), t(&y), t(&out)]);
        assert_eq!(d.read_ints(&out), expected, "{name}");
    }
    refused("LtTensor", &[t(&x), t(&y), t(&d.empty(F32, &[2, 2]))], 161_002, "out: dtype FLOAT");
}

#[test]
fn wide_integers_are_compared_as_they_are() {
    let d = Device::default();
    let x = d.ints(I64, &[2], &[(1 << 53) + 1, -1]);
    let y = d.ints(I64, &[2], &[1 << 53, 0]);
    let out = d.empty(BOOL, &[2]);
    d.call("LtTensor", &[t(&x), t(&y), t(&out)]);
    assert_eq!(d.read_ints(&out), [0, 1]);
}

#[test]
fn bits_of_whole_numbers() {
    let d = Device::default();
    let x = d.ints(I32, &[2, 1], &[0b1100, -1]);
    let y = d.ints(I32, &[2], &[0b1010, 1]);
    let out = d.empty(I32, &[2, 2]);
    d.call("BitwiseAndTensor", &[t(&x), t(&y), t(&out)]);
    assert_eq!(d.read_ints(&out), [0b1000, 0, 0b1010, 1]);
    d.call("BitwiseXorTensor", &[t(&x), t(&y), t(&out)]);
    assert_eq!(d.read_ints(&out), [0b0110, 0b1101, !0b1010, !1]);
    let floats = d.floats(F32, &[2], &[1.0, 2.0]);
    refused("BitwiseXorTensor", &[t(&floats), t(&y), t(&out)], 161_002, "self: dtype FLOAT");
    let bytes = d.ints(U8, &[2], &[127, 1]);
    d.call("BitwiseAndTensor", &[t(&bytes), t(&bytes), t(&bytes)]);
    assert_eq!(d.read_ints(&bytes), [127, 1]);
}
