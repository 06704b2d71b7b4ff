use crate::device::{
    BF16, Device, F16, F32, I4, I8, I32, I64, args, int, near, null, refused, t, text,
};
use halyard_sim_ascend_ops::Arg;

const U64: i32 = 10;

#[test]
fn each_token_has_a_scale() {
    let d = Device::default();
    let x = d.floats(F16, &[2, 4], &[12.7, -6.35, 0.0, 3.2, 0.0, 0.0, 0.0, 0.0]);
    let (y, scale) = (d.empty(I8, &[2, 4]), d.empty(F32, &[2]));
    d.call("DynamicQuant", &[t(&x), null(), t(&y), t(&scale)]);
    assert_eq!(d.read_ints(&y), [127, -64, 0, 32, 0, 0, 0, 0]);
    near(&d.read_floats(&scale), &[0.1, 0.0], 1e-3);
    let smooth = d.floats(F16, &[4], &[0.0, 1.0, 1.0, 1.0]);
    d.call("DynamicQuant", &[t(&x), t(&smooth), t(&y), t(&scale)]);
    assert_eq!(d.read_ints(&y)[..4], [0, -127, 0, 64]);
    let small = d.empty(I4, &[2, 4]);
    d.call("DynamicQuant", &[t(&x), null(), t(&small), t(&scale)]);
    // 7, -4 (of 3.5, to even), 0, 2.
    assert_eq!(d.read_bytes(&small)[..2], [0xC7, 0x20]);
    for (given, words) in [
        ([t(&d.empty(F32, &[2, 4])), null(), t(&y), t(&scale)], "x: dtype FLOAT"),
        ([t(&x), null(), t(&y), t(&d.empty(F32, &[2, 1]))], "scaleOut: shape [2, 1], expected [2]"),
        ([t(&x), null(), t(&y), t(&d.empty(F16, &[2]))], "scaleOut: dtype FLOAT16"),
        ([t(&x), t(&d.empty(F16, &[3])), t(&y), t(&scale)], "smoothScales: shape [3]"),
    ] {
        refused("DynamicQuant", &given, 161_002, words);
    }
}

#[test]
fn an_offset_uses_the_whole_range() {
    let d = Device::default();
    let x = d.floats(F16, &[1, 3], &[0.0, 255.0, 100.0]);
    let (y, scale, offset) = (d.empty(I8, &[1, 3]), d.empty(F32, &[1]), d.empty(F32, &[1]));
    let name = "DynamicQuantV2";
    d.call(name, &[t(&x), null(), null(), int(2), t(&y), t(&scale), t(&offset)]);
    assert_eq!(d.read_ints(&y), [-128, 127, -28]);
    assert_eq!((d.read_floats(&scale)[0], d.read_floats(&offset)[0]), (1.0, -128.0));
    refused(
        name,
        &[t(&x), null(), null(), int(29), t(&y), t(&scale), t(&offset)],
        161_002,
        "dstType: 29, expected 2",
    );
}

#[test]
fn scales_are_packed_for_the_matrix_unit() {
    let d = Device::default();
    let scale = d.floats(F32, &[2], &[0.5, 1.0 + 1.0 / 1024.0 + 1.0 / 65_536.0]);
    let offset = d.floats(F32, &[1], &[-3.0]);
    let out = d.empty(U64, &[2]);
    d.call("TransQuantParamV2", &[t(&scale), t(&offset), t(&out)]);
    let packed = d.read_ints(&out);
    let expected = |bits: u32| i64::from(bits) | (1 << 46) | ((512 - 3) << 37);
    assert_eq!(packed, [expected(0.5f32.to_bits()), expected((1.0f32 + 1.0 / 1024.0).to_bits())]);
    refused(
        "TransQuantParamV2",
        &[t(&offset), null(), t(&d.empty(F32, &[1]))],
        161_002,
        "out: dtype FLOAT",
    );
}

#[test]
fn norms_are_quantised() {
    let d = Device::default();
    // The sum is [3, 4, 0, 0] with a mean square of 6.25.
    let (a, b) = (
        d.floats(F16, &[1, 4], &[1.0, 4.0, 0.0, 0.0]),
        d.floats(F16, &[1, 4], &[2.0, 0.0, 0.0, 0.0]),
    );
    let gamma = d.floats(F16, &[4], &[1.0; 4]);
    let (y1, y2, x) = (d.empty(I8, &[1, 4]), d.empty(I8, &[1, 4]), d.empty(F16, &[1, 4]));
    let scale = d.empty(F32, &[1]);
    let name = "AddRmsNormDynamicQuant";
    let given = [
        ("x1", t(&a)),
        ("x2", t(&b)),
        ("gamma", t(&gamma)),
        ("y1Out", t(&y1)),
        ("y2Out", t(&y2)),
        ("xOut", t(&x)),
        ("scale1Out", t(&scale)),
    ];
    d.call(name, &args(name, &given));
    assert_eq!(d.read_ints(&y1), [95, 127, 0, 0]);
    near(&d.read_floats(&scale), &[1.6 / 127.0], 1e-6);
    assert_eq!(d.read_floats(&x), [3.0, 4.0, 0.0, 0.0]);
    let name = "AddRmsNormQuant";
    let (steps, zeros) = (d.floats(F32, &[4], &[0.01; 4]), d.ints(I32, &[4], &[1, 1, 1, 1]));
    let mut given = vec![
        ("x1", t(&a)),
        ("x2", t(&b)),
        ("gamma", t(&gamma)),
        ("scales1", t(&steps)),
        ("zeroPoints1", t(&zeros)),
        ("axis", int(-1)),
        ("divMode", Arg::Bool(true)),
        ("y1Out", t(&y1)),
        ("xOut", t(&x)),
    ];
    d.call(name, &args(name, &given));
    assert_eq!(d.read_ints(&y1), [121, 127, 1, 1]);
    given.push(("axis", int(0)));
    refused(name, &args(name, &given), 161_002, "axis: 0, expected the last");
}

#[test]
fn whole_numbers_are_activated_and_quantised_again() {
    let d = Device::default();
    let name = "DequantSwigluQuant";
    let x = d.ints(I32, &[2, 4], &[2, 4, 10, 20, 2, 4, 10, 20]);
    let weights = d.floats(F32, &[2, 4], &[0.5, 0.5, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0]);
    let tokens = d.floats(F32, &[2], &[1.0, 0.5]);
    let groups = d.ints(I64, &[2], &[1, 1]);
    let (y, scale) = (d.empty(I8, &[2, 2]), d.empty(F32, &[2]));
    let mut given = vec![
        ("x", t(&x)),
        ("weightScale", t(&weights)),
        ("activationScale", t(&tokens)),
        ("groupIndex", t(&groups)),
        ("activateLeft", Arg::Bool(true)),
        ("quantMode", text("dynamic")),
        ("yOut", t(&y)),
        ("scaleOut", t(&scale)),
    ];
    d.call(name, &args(name, &given));
    let silu = |v: f32| v / (1.0 + (-v).exp());
    // The first row is [1, 2 | 1, 2], the second [1, 2 | 5, 10].
    near(&d.read_floats(&scale), &[silu(2.0) * 2.0 / 127.0, silu(2.0) * 10.0 / 127.0], 1e-6);
    let small = (silu(1.0) / (silu(2.0) * 2.0) * 127.0).round() as i64;
    assert_eq!(d.read_ints(&y), [small, 127, small, 127]);
    given.push(("weightScale", null()));
    refused(name, &args(name, &given), 161_001, "weightScale: null with x of INT32");
    given.push(("x", t(&d.empty(BF16, &[2, 4]))));
    refused(
        name,
        &args(name, &given),
        161_002,
        "activationScale: given, expected null with x of a float",
    );
    given.push(("quantMode", text("static")));
    refused(name, &args(name, &given), 161_002, "quantMode: \"static\"");
}
