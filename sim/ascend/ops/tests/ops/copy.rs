use crate::device::{
    BF16, BOOL, Device, F16, F32, I8, I32, I64, int, ints, list, refused, t, transposed,
};
use halyard_sim_ascend_ops::Arg;

#[test]
fn cast_rounds_and_truncates() {
    let d = Device::default();
    let x = d.floats(F32, &[4], &[1.5, -2.75, 65_504.0, 1.0 + 1.0 / 256.0]);
    for (dtype, expected) in [
        (F16, [1.5, -2.75, 65_504.0, 1.003_906_3]),
        // Half way between two BFLOAT16 goes to the even one; 65504 is nearer to 65536.
        (BF16, [1.5, -2.75, 65_536.0, 1.0]),
    ] {
        let out = d.empty(dtype, &[4]);
        d.call("Cast", &[t(&x), Arg::DataType(dtype), t(&out)]);
        assert_eq!(d.read_floats(&out), expected);
    }
    let out = d.empty(I32, &[4]);
    d.call("Cast", &[t(&x), Arg::DataType(I32), t(&out)]);
    assert_eq!(d.read_ints(&out), [1, -2, 65_504, 1]);
    let counts = d.ints(I32, &[2], &[-3, 70_000]);
    let wide = d.empty(I64, &[2]);
    d.call("Cast", &[t(&counts), Arg::DataType(I64), t(&wide)]);
    assert_eq!(d.read_ints(&wide), [-3, 70_000]);
    let truth = d.empty(BOOL, &[2]);
    d.call("Cast", &[t(&d.floats(F32, &[2], &[0.0, 0.5])), Arg::DataType(BOOL), t(&truth)]);
    assert_eq!(d.read_ints(&truth), [0, 1]);
    refused(
        "Cast",
        &[t(&x), Arg::DataType(F16), t(&out)],
        161_002,
        "out: dtype INT32, expected FLOAT16",
    );
    refused("Cast", &[t(&x), Arg::DataType(11), t(&out)], 161_002, "dtype: aclDataType 11");
}

#[test]
fn inplace_copy_converts_and_broadcasts_into_views() {
    let d = Device::default();
    let to = d.floats(F16, &[2, 3], &[0.0; 6]);
    let from = d.ints(I8, &[3, 1], &[1, 2, 3]);
    d.call("InplaceCopy", &[t(&transposed(&to)), t(&from)]);
    assert_eq!(d.read_floats(&to), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    refused(
        "InplaceCopy",
        &[t(&to), t(&from)],
        161_002,
        "src: shape [3, 1] does not broadcast to [2, 3]",
    );
}

#[test]
fn permute_makes_contiguous_tensors() {
    let d = Device::default();
    let x = d.floats(F32, &[1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let out = d.empty(F32, &[3, 1, 2]);
    d.call("Permute", &[t(&x), ints(&[2, 0, -2]), t(&out)]);
    assert_eq!(d.read_floats(&out), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    refused("Permute", &[t(&x), ints(&[2, 0, 0]), t(&out)], 161_002, "dims: [2, 0, 0]");
    let square = d.empty(F32, &[2, 3]);
    let turned = transposed(&square);
    refused("Permute", &[t(&square), ints(&[1, 0]), t(&turned)], 161_002, "out: strides [1, 3]");
}

#[test]
fn cat_joins_along_an_axis() {
    let d = Device::default();
    let a = d.floats(F16, &[2, 1], &[1.0, 2.0]);
    let b = d.floats(F16, &[2, 2], &[3.0, 4.0, 5.0, 6.0]);
    let out = d.empty(F16, &[2, 3]);
    d.call("Cat", &[list(&[&a, &b]), int(-1), t(&out)]);
    assert_eq!(d.read_floats(&out), [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
    refused(
        "Cat",
        &[list(&[&a]), int(1), t(&out)],
        161_002,
        "out: 3 along axis 1, the tensors have 1",
    );
    refused("Cat", &[list(&[&a, &b, &b]), int(1), t(&out)], 161_002, "have 5 or more");
    refused("Cat", &[list(&[]), int(1), t(&out)], 161_002, "tensors: an empty list");
    let wide = d.floats(F32, &[2, 2], &[0.0; 4]);
    refused("Cat", &[list(&[&a, &wide]), int(1), t(&out)], 161_002, "tensors[1]: dtype FLOAT");
}

#[test]
fn slice_clamps_and_steps() {
    let d = Device::default();
    let x = d.ints(I32, &[1, 5], &[0, 1, 2, 3, 4]);
    let out = d.empty(I32, &[1, 2]);
    d.call("Slice", &[t(&x), int(1), int(-4), int(99), int(2), t(&out)]);
    assert_eq!(d.read_ints(&out), [1, 3]);
    refused("Slice", &[t(&x), int(1), int(0), int(5), int(0), t(&out)], 161_002, "step: 0");
    refused("Slice", &[t(&x), int(2), int(0), int(5), int(1), t(&out)], 161_002, "dim: 2");
}

#[test]
fn expand_and_repeat() {
    let d = Device::default();
    let x = d.ints(I64, &[2, 1], &[5, 6]);
    let wide = d.empty(I64, &[2, 2, 3]);
    d.call("Expand", &[t(&x), ints(&[2, -1, 3]), t(&wide)]);
    assert_eq!(d.read_ints(&wide), [5, 5, 5, 6, 6, 6, 5, 5, 5, 6, 6, 6]);
    let pair = d.floats(BF16, &[2], &[1.0, 2.0]);
    let out = d.empty(BF16, &[2, 4]);
    d.call("Repeat", &[t(&pair), ints(&[2, 2]), t(&out)]);
    assert_eq!(d.read_floats(&out), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    refused(
        "Expand",
        &[t(&x), ints(&[3, 3]), t(&wide)],
        161_002,
        "self: shape [2, 1] does not broadcast",
    );
    refused("Repeat", &[t(&x), ints(&[3]), t(&wide)], 161_002, "repeats: [3]");
}
