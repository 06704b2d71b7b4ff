use crate::device::{BF16, Device, F16, F32, I32, I64, int, near, plan, refused, t};
use halyard_sim_ascend_ops::{Arg, Tensor};

#[test]
fn softmax_along_an_axis() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 2], &[0.0, 3f32.ln(), 100.0, 100.0]);
    let out = d.empty(F32, &[2, 2]);
    d.call("Softmax", &[t(&x), int(-1), t(&out)]);
    near(&d.read_floats(&out), &[0.25, 0.75, 0.5, 0.5], 1e-6);
    d.call("LogSoftmax", &[t(&x), int(1), t(&out)]);
    near(&d.read_floats(&out), &[0.25f32.ln(), 0.75f32.ln(), 0.5f32.ln(), 0.5f32.ln()], 1e-6);
    let down = d.floats(F16, &[2, 1], &[1.0, 1.0]);
    let half = d.empty(F16, &[2, 1]);
    d.call("Softmax", &[t(&down), int(0), t(&half)]);
    assert_eq!(d.read_floats(&half), [0.5, 0.5]);
    refused("Softmax", &[t(&x), int(2), t(&out)], 161_002, "dim: 2, expected from -2 to 1");
}

#[test]
fn the_largest_come_first_and_ties_in_order() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 4], &[1.0, 3.0, 3.0, 2.0, -1.0, -2.0, f32::NEG_INFINITY, -1.0]);
    let (values, indices) = (d.empty(F32, &[2, 3]), d.empty(I64, &[2, 3]));
    let args = |k, sorted, values: &Tensor, indices: &Tensor| {
        [t(&x), int(k), int(-1), Arg::Bool(true), Arg::Bool(sorted), t(values), t(indices)]
    };
    d.call("Topk", &args(3, true, &values, &indices));
    assert_eq!(d.read_floats(&values), [3.0, 3.0, 2.0, -1.0, -1.0, -2.0]);
    assert_eq!(d.read_ints(&indices), [1, 2, 3, 0, 3, 1]);
    let narrow = d.empty(I32, &[2, 3]);
    refused("Topk", &args(3, false, &values, &indices), 161_002, "sorted: false");
    refused(
        "Topk",
        &args(3, true, &values, &narrow),
        161_002,
        "indicesOut: dtype INT32, expected INT64",
    );
    refused("Topk", &args(5, true, &values, &indices), 161_002, "k: 5, expected 0 to 4");
    refused(
        "Topk",
        &args(2, true, &values, &indices),
        161_002,
        "valuesOut: shape [2, 3], expected [2, 2]",
    );
    let (values, indices) = (d.empty(F32, &[2, 4]), d.empty(I64, &[2, 4]));
    d.call("Sort", &[t(&x), Arg::Bool(true), int(1), Arg::Bool(false), t(&values), t(&indices)]);
    assert_eq!(d.read_ints(&indices), [0, 3, 1, 2, 2, 1, 0, 3]);
}

#[test]
fn the_largest_of_each_row() {
    let d = Device::default();
    let x = d.floats(BF16, &[2, 3], &[1.0, 5.0, 5.0, -3.0, -4.0, -5.0]);
    let out = d.empty(I32, &[2]);
    d.call("ArgMax", &[t(&x), int(-1), Arg::Bool(false), t(&out)]);
    assert_eq!(d.read_ints(&out), [1, 0]);
    let (values, indices) = (d.empty(BF16, &[1, 3]), d.empty(I64, &[1, 3]));
    d.call("MaxDim", &[t(&x), int(0), Arg::Bool(true), t(&values), t(&indices)]);
    assert_eq!(d.read_floats(&values), [1.0, 5.0, 5.0]);
    assert_eq!(d.read_ints(&indices), [0, 0, 0]);
    refused(
        "ArgMax",
        &[t(&x), int(-1), Arg::Bool(false), t(&values)],
        161_002,
        "out: dtype BFLOAT16, expected INT32 or INT64",
    );
    refused(
        "ArgMax",
        &[t(&x), int(-1), Arg::Bool(true), t(&out)],
        161_002,
        "out: shape [2], expected [2, 1]",
    );
}

#[test]
fn top_k_and_top_p() {
    let d = Device::default();
    let logits: Vec<f32> = [0.1f32, 0.2, 0.3, 0.4].iter().map(|v| v.ln()).collect();
    let x = d.floats(F32, &[3, 4], &[&logits[..], &logits, &logits].concat());
    let p = d.floats(F32, &[3], &[1.0, 0.65, 0.0]);
    let k = d.ints(I32, &[3], &[2, 4, 4]);
    let out = d.empty(F32, &[3, 4]);
    d.call("ApplyTopKTopP", &[t(&x), t(&p), t(&k), t(&out)]);
    let kept: Vec<usize> = d
        .read_floats(&out)
        .iter()
        .enumerate()
        .filter(|(_, v)| v.is_finite())
        .map(|(i, _)| i)
        .collect();
    // Two by k; 0.1 + 0.2 lie within 1 - 0.65; the largest alone.
    assert_eq!(kept, [2, 3, 6, 7, 11]);
    let wide = d.ints(I64, &[3], &[1; 3]);
    refused(
        "ApplyTopKTopP",
        &[t(&x), t(&p), t(&wide), t(&out)],
        161_002,
        "k: dtype INT64, expected INT32",
    );
    let none = d.ints(I32, &[3], &[5; 3]);
    let call = plan("ApplyTopKTopP", &[t(&x), t(&p), t(&none), t(&out)]).unwrap();
    assert!(d.run(&call).unwrap_err().message.contains("k: 5, expected from 0 to below 5"));
}

#[test]
fn draws_follow_the_probabilities() {
    let d = Device::default();
    let x = d.floats(F32, &[3], &[0.0, 1.0, 3.0]);
    let out = d.empty(I64, &[4000]);
    let args = |count, again, seed, out: &Tensor| {
        [t(&x), int(count), Arg::Bool(again), int(seed), int(0), t(out)]
    };
    d.call("Multinomial", &args(4000, true, 7, &out));
    let first = d.read_ints(&out);
    let of = |value| first.iter().filter(|v| **v == value).count();
    assert_eq!(of(0), 0);
    assert!((2850..3150).contains(&of(2)), "{} of 4000", of(2));
    d.call("Multinomial", &args(4000, true, 7, &out));
    assert_eq!(d.read_ints(&out), first, "a seed has its draws");
    d.call("Multinomial", &args(4000, true, 8, &out));
    assert_ne!(d.read_ints(&out), first);
    let two = d.empty(I64, &[2]);
    d.call("Multinomial", &args(2, false, 1, &two));
    let mut drawn = d.read_ints(&two);
    drawn.sort_unstable();
    assert_eq!(drawn, [1, 2]);
    refused("Multinomial", &args(4, false, 1, &d.empty(I64, &[4])), 161_002, "numsamples: 4");
}
