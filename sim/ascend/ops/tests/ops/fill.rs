use crate::device::{BOOL, Device, F16, F32, I32, I64, int, refused, scalar, t};
use halyard_sim_ascend_ops::{Arg, Scalar};

fn whole(value: i64) -> Arg {
    Arg::Scalar(Some(Scalar::Int(value)))
}

#[test]
fn filled_and_zeroed() {
    let d = Device::default();
    let x = d.empty(F16, &[3]);
    d.call("InplaceFillScalar", &[t(&x), scalar(2.5)]);
    assert_eq!(d.read_floats(&x), [2.5; 3]);
    d.call("InplaceZero", &[t(&x)]);
    assert_eq!(d.read_floats(&x), [0.0; 3]);
}

#[test]
fn arange_counts() {
    let d = Device::default();
    let out = d.empty(I64, &[3]);
    d.call("Arange", &[whole(2), whole(7), whole(2), t(&out)]);
    assert_eq!(d.read_ints(&out), [2, 4, 6]);
    let out = d.empty(F32, &[3]);
    d.call("Arange", &[scalar(1.0), scalar(0.25), scalar(-0.25), t(&out)]);
    assert_eq!(d.read_floats(&out), [1.0, 0.75, 0.5]);
    refused("Arange", &[whole(0), whole(4), whole(0), t(&out)], 161_002, "step: 0");
    refused(
        "Arange",
        &[whole(0), whole(4), whole(-1), t(&out)],
        161_002,
        "never leads from 0 to 4",
    );
    refused(
        "Arange",
        &[whole(0), whole(4), whole(1), t(&out)],
        161_002,
        "out: shape [3], expected [4]",
    );
}

#[test]
fn chosen_by_a_mask() {
    let d = Device::default();
    let mask = d.ints(BOOL, &[2, 1], &[1, 0]);
    let (x, y) = (d.floats(F32, &[2], &[1.0, 2.0]), d.floats(F32, &[1], &[9.0]));
    let out = d.empty(F32, &[2, 2]);
    d.call("SWhere", &[t(&mask), t(&x), t(&y), t(&out)]);
    assert_eq!(d.read_floats(&out), [1.0, 2.0, 9.0, 9.0]);
    // What is in an operand does not matter if nothing is taken of it.
    let (all, unknown, own) = (d.ints(BOOL, &[1], &[1]), d.empty(F32, &[2]), d.empty(F32, &[2]));
    d.call("SWhere", &[t(&all), t(&x), t(&unknown), t(&own)]);
    assert_eq!(d.read_floats(&own), [1.0, 2.0]);
    d.call("InplaceMaskedFillScalar", &[t(&out), t(&mask), scalar(f64::NEG_INFINITY)]);
    assert_eq!(d.read_floats(&out), [f32::NEG_INFINITY, f32::NEG_INFINITY, 9.0, 9.0]);
    refused("SWhere", &[t(&x), t(&x), t(&y), t(&out)], 161_002, "condition: dtype FLOAT");
    refused(
        "InplaceMaskedFillScalar",
        &[t(&out), t(&x), scalar(0.0)],
        161_002,
        "mask: dtype FLOAT",
    );
}

#[test]
fn the_upper_triangle() {
    let d = Device::default();
    let x = d.ints(I32, &[2, 3], &[1, 1, 1, 1, 1, 1]);
    let out = d.empty(I32, &[2, 3]);
    d.call("Triu", &[t(&x), int(1), t(&out)]);
    assert_eq!(d.read_ints(&out), [0, 1, 1, 0, 0, 1]);
    let line = d.ints(I32, &[3], &[0; 3]);
    refused("Triu", &[t(&line), int(0), t(&line)], 161_002, "self: 1 dims");
}
