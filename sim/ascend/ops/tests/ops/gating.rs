use crate::device::{BOOL, Device, F16, F32, I32, I64, args, int, near, refused, t};
use halyard_sim_ascend_ops::{Arg, Tensor};

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn groups_of_experts_with_a_bias() {
    let d = Device::default();
    // Groups {0, 1}, {2, 3}, {4, 5}. The bias lifts the last group in the choice, not in the weights.
    let logits = [1.0f32, 0.0, 2.0, 2.0, -1.0, -1.0];
    let x = d.floats(F32, &[1, 6], &logits);
    let bias = d.floats(F32, &[6], &[0.0, 0.0, 0.0, 0.0, 1.0, 0.9]);
    let (y, ids, all) = (d.empty(F32, &[1, 3]), d.empty(I32, &[1, 3]), d.empty(F32, &[1, 6]));
    let given = vec![
        ("x", t(&x)),
        ("bias", t(&bias)),
        ("k", int(3)),
        ("kGroup", int(2)),
        ("groupCount", int(3)),
        ("groupSelectMode", int(1)),
        ("normType", int(1)),
        ("outFlag", Arg::Bool(true)),
        ("routedScalingFactor", Arg::Float(2.5)),
        ("yOut", t(&y)),
        ("expertIdxOut", t(&ids)),
        ("outOut", t(&all)),
    ];
    let name = "MoeGatingTopK";
    d.call(name, &args(name, &given));
    let s = logits.map(sigmoid);
    assert_eq!(d.read_ints(&ids), [4, 5, 2]);
    let sum = s[4] + s[5] + s[2];
    near(&d.read_floats(&y), &[s[4], s[5], s[2]].map(|v| 2.5 * v / sum), 1e-6);
    near(&d.read_floats(&all), &s, 1e-6);
    let wide = d.empty(I64, &[1, 3]);
    for (param, arg, words) in [
        ("k", int(7), "k: 7"),
        ("kGroup", int(4), "kGroup: 4, expected 1 to groupCount 3"),
        ("kGroup", int(1), "k: 3, expected at most the 2 experts"),
        ("groupCount", int(4), "groupCount: 4, expected a divisor of 6"),
        ("normType", int(2), "normType: 2"),
        ("expertIdxOut", t(&wide), "expertIdxOut: dtype INT64, expected INT32"),
        ("bias", t(&d.empty(F32, &[5])), "bias: shape [5], expected [6]"),
    ] {
        refused(name, &args(name, &[&given[..], &[(param, arg)]].concat()), 161_002, words);
    }
}

#[test]
fn softmax_weights_are_divided_only_where_asked() {
    let d = Device::default();
    let logits = [3f32.ln(), 0.0, 4f32.ln()];
    let x = d.floats(F32, &[1, 3], &logits);
    let (y, ids, unused) = (d.empty(F32, &[1, 2]), d.empty(I32, &[1, 2]), d.empty(F32, &[1]));
    let call = |renorm| {
        let given = [
            ("x", t(&x)),
            ("k", int(2)),
            ("kGroup", int(1)),
            ("groupCount", int(1)),
            ("renorm", int(renorm)),
            ("routedScalingFactor", Arg::Float(1.0)),
            ("yOut", t(&y)),
            ("expertIdxOut", t(&ids)),
            ("outOut", t(&unused)),
        ];
        d.call("MoeGatingTopK", &args("MoeGatingTopK", &given));
        d.read_floats(&y)
    };
    near(&call(0), &[0.5, 0.375], 1e-6);
    near(&call(1), &[4.0 / 7.0, 3.0 / 7.0], 1e-6);
    assert_eq!(d.read_ints(&ids), [2, 0]);
}

#[test]
fn softmax_before_and_after_the_choice() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 3], &[3f32.ln(), 0.0, 4f32.ln(), 0.0, 0.0, 0.0]);
    let [y, all] = [d.empty(F32, &[2, 2]), d.empty(F32, &[2, 3])];
    let [ids, rows] = [d.empty(I32, &[2, 2]), d.empty(I32, &[2, 2])];
    let done = d.ints(BOOL, &[2], &[0, 1]);
    d.call("MoeGatingTopKSoftmax", &[t(&x), t(&done), int(2), t(&y), t(&ids), t(&rows)]);
    near(&d.read_floats(&y), &[0.5, 0.375, 1.0 / 3.0, 1.0 / 3.0], 1e-6);
    assert_eq!(d.read_ints(&ids), [2, 0, 3, 3], "a finished row has an expert behind the last");
    assert_eq!(d.read_ints(&rows), [0, 2, 1, 3]);
    let v2 = |renorm, flag, all: &Tensor| {
        [t(&x), Arg::Tensor(None), int(2), int(renorm), Arg::Bool(flag), t(&y), t(&ids), t(all)]
    };
    d.call("MoeGatingTopKSoftmaxV2", &v2(1, false, &all));
    near(&d.read_floats(&y), &[4.0 / 7.0, 3.0 / 7.0, 0.5, 0.5], 1e-6);
    d.call("MoeGatingTopKSoftmaxV2", &v2(0, true, &all));
    near(&d.read_floats(&all)[..3], &[0.375, 0.125, 0.5], 1e-6);
    refused(
        "MoeGatingTopKSoftmaxV2",
        &v2(1, true, &all),
        161_002,
        "outputSoftmaxResultFlag: true with renorm 1",
    );
    refused(
        "MoeGatingTopKSoftmaxV2",
        &v2(0, true, &d.empty(F16, &[2, 3])),
        161_002,
        "softmaxResultOut: dtype FLOAT16",
    );
}
