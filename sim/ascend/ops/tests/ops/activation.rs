use crate::device::{Device, F16, F32, int, near, refused, t};

#[test]
fn swiglu_of_halves() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 4], &[0.0, 1.0, 5.0, 6.0, -1.0, 2.0, 7.0, 8.0]);
    let out = d.empty(F32, &[2, 2]);
    d.call("SwiGlu", &[t(&x), int(-1), t(&out)]);
    near(
        &d.read_floats(&out),
        &[0.0, 6.0 * 0.731_058_6, 7.0 * -0.268_941_43, 8.0 * 1.761_594_2],
        1e-6,
    );
    let down = d.empty(F32, &[1, 4]);
    d.call("SwiGlu", &[t(&x), int(0), t(&down)]);
    near(&d.read_floats(&down)[1..2], &[2.0 * 0.731_058_6], 1e-6);
    refused("SwiGlu", &[t(&x), int(2), t(&out)], 161_002, "dim: 2");
    refused("SwiGlu", &[t(&x), int(1), t(&x)], 161_002, "out: shape [2, 4], expected [2, 2]");
    let odd = d.empty(F16, &[3]);
    refused(
        "SwiGlu",
        &[t(&odd), int(0), t(&odd)],
        161_002,
        "x: 3 along axis 0, expected an even number",
    );
}

#[test]
fn functions() {
    let d = Device::default();
    let x = d.floats(F32, &[4], &[-4.0, -0.5, 1.0, 3.0]);
    let out = d.empty(F32, &[4]);
    d.call("Silu", &[t(&x), t(&out)]);
    near(&d.read_floats(&out), &[-0.071_944_84, -0.188_770_33, 0.731_058_6, 2.857_722_5], 1e-6);
    d.call("GeluV2", &[t(&x), int(0), t(&out)]);
    near(&d.read_floats(&out), &[-0.000_126_685, -0.154_268_77, 0.841_344_7, 2.995_950_3], 1e-6);
    d.call("GeluV2", &[t(&x), int(1), t(&out)]);
    near(&d.read_floats(&out), &[-0.000_070_25, -0.154_286, 0.841_192, 2.996_362_7], 1e-5);
    refused("GeluV2", &[t(&x), int(2), t(&out)], 161_002, "approximate: 2");
}
