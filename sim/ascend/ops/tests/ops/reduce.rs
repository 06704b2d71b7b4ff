use crate::device::{Device, F16, F32, I32, I64, int, ints, refused, t};
use halyard_sim_ascend_ops::{Arg, Tensor};

#[test]
fn sums_and_means() {
    let d = Device::default();
    let x = d.floats(F16, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let out = d.empty(F32, &[3]);
    let call = |name: &str, dims: &[i64], keep, out: &Tensor| {
        d.call(name, &[t(&x), ints(dims), Arg::Bool(keep), Arg::DataType(F32), t(out)]);
        d.read_floats(out)
    };
    assert_eq!(call("ReduceSum", &[0], false, &out), [5.0, 7.0, 9.0]);
    assert_eq!(call("Mean", &[-1], true, &d.empty(F32, &[2, 1])), [2.0, 5.0]);
    assert_eq!(call("ReduceSum", &[], true, &d.empty(F32, &[1, 1])), [21.0]);
    let n = d.ints(I32, &[2], &[3, 4]);
    let total = d.empty(I64, &[]);
    d.call("ReduceSum", &[t(&n), ints(&[0]), Arg::Bool(false), Arg::DataType(I64), t(&total)]);
    assert_eq!(d.read_ints(&total), [7]);
    let args = |dims: &[i64], dtype, out: &Tensor| {
        [t(&x), ints(dims), Arg::Bool(false), Arg::DataType(dtype), t(out)]
    };
    refused("ReduceSum", &args(&[0, -2], F32, &out), 161_002, "dims: [0, -2]");
    refused("ReduceSum", &args(&[1], F32, &out), 161_002, "out: shape [3], expected [2]");
    refused("ReduceSum", &args(&[0], F16, &out), 161_002, "out: dtype FLOAT, expected FLOAT16");
    refused("Mean", &args(&[2], F32, &out), 161_002, "dim: 2");
}

#[test]
fn running_sums() {
    let d = Device::default();
    let x = d.ints(I32, &[2, 2], &[1, 2, 3, 4]);
    let out = d.empty(I32, &[2, 2]);
    d.call("Cumsum", &[t(&x), int(0), Arg::DataType(I32), t(&out)]);
    assert_eq!(d.read_ints(&out), [1, 2, 4, 6]);
    d.call("Cumsum", &[t(&x), int(1), Arg::DataType(I32), t(&out)]);
    assert_eq!(d.read_ints(&out), [1, 3, 3, 7]);
    refused("Cumsum", &[t(&x), int(0), Arg::DataType(I64), t(&out)], 161_002, "out: dtype INT32");
}
