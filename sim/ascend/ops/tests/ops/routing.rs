use crate::device::{
    BF16, Device, F16, F32, I8, I32, I64, args, int, ints, near, plan, refused, t,
};
use halyard_sim_ascend_ops::{Arg, Tensor};

const V2: &str = "MoeInitRoutingV2";
const V3: &str = "MoeInitRoutingV3";

type Given = Vec<(&'static str, Arg)>;

/// Three tokens with two experts of four each: copies 1, 2, 4 go to experts 0 and 1, the others further.
fn routing(d: &Device, dtype: i32, rows: i64) -> (Given, Tensor, Tensor) {
    let x = d.floats(F16, &[3, 2], &[1.0, -10.0, 2.0, -20.0, 3.0, -30.0]);
    let ids = d.ints(I32, &[3, 2], &[3, 1, 0, 3, 1, 2]);
    let (expanded, index) = (d.empty(dtype, &[rows, 2]), d.empty(I32, &[6]));
    let given = vec![
        ("x", t(&x)),
        ("expertIdx", t(&ids)),
        ("expertNum", int(4)),
        ("expandedXOut", t(&expanded)),
        ("expandedRowIdxOut", t(&index)),
    ];
    (given, expanded, index)
}

#[test]
fn copies_are_sorted_by_expert() {
    let d = Device::default();
    let (mut given, expanded, index) = routing(&d, F16, 6);
    let counts = d.empty(I32, &[4]);
    given.push(("expertTokensCountOrCumsumOut", t(&counts)));
    let with = |flag| [&given[..], &[("expertTokensCountOrCumsumFlag", int(flag))]].concat();
    d.call(V2, &args(V2, &with(1)));
    let firsts: Vec<f32> = d.read_floats(&expanded).chunks(2).map(|r| r[0]).collect();
    assert_eq!(firsts, [2.0, 1.0, 3.0, 3.0, 1.0, 2.0]);
    assert_eq!(d.read_ints(&index), [4, 1, 0, 5, 2, 3]);
    assert_eq!(d.read_ints(&counts), [1, 3, 4, 6]);
    d.call(V2, &args(V2, &with(2)));
    assert_eq!(d.read_ints(&counts), [1, 2, 1, 2]);
    let wide = d.empty(I64, &[4]);
    let more: [(&str, &str, Arg); 3] = [
        (
            "expertTokensCountOrCumsumOut: dtype INT64, expected INT32",
            "expertTokensCountOrCumsumOut",
            t(&wide),
        ),
        ("dropPadMode: 1", "dropPadMode", int(1)),
        ("expandedXOut: shape [6, 2], expected [4, 2]", "activeNum", int(4)),
    ];
    for (words, param, arg) in more {
        refused(V2, &args(V2, &[&with(1)[..], &[(param, arg)]].concat()), 161_002, words);
    }
}

#[test]
fn a_rank_takes_its_own_experts() {
    let d = Device::default();
    let (mut given, expanded, index) = routing(&d, F16, 6);
    let (counts, pairs, scale) = (d.empty(I64, &[2]), d.empty(I64, &[4, 2]), d.empty(F32, &[6]));
    given.extend([
        ("activeNum", int(-1)),
        ("quantMode", int(-1)),
        ("expertTokensNumType", int(1)),
        ("expertTokensNumFlag", Arg::Bool(true)),
        ("activeExpertRange", ints(&[1, 3])),
        ("expertTokensCountOrCumsumOut", t(&counts)),
        ("expandedScaleOut", t(&scale)),
    ]);
    d.call(V3, &args(V3, &given));
    assert_eq!(d.read_ints(&counts), [2, 1]);
    assert_eq!(d.read_ints(&index), [-1, 0, -1, -1, 1, 2]);
    let first_rows = Tensor::contiguous(F16, &[3, 2], expanded.address);
    assert_eq!(d.read_floats(&first_rows), [1.0, -10.0, 3.0, -30.0, 3.0, -30.0]);
    let scatter = [
        ("rowIdxType", int(1)),
        ("expertTokensNumType", int(2)),
        ("expertTokensCountOrCumsumOut", t(&pairs)),
    ];
    d.call(V3, &args(V3, &[&given[..], &scatter].concat()));
    assert_eq!(d.read_ints(&index), [1, 4, 5, -1, -1, -1]);
    assert_eq!(d.read_ints(&pairs), [1, 2, 2, 1, 0, 0, 0, 0]);
    for (param, arg, words) in [
        (
            "expertTokensCountOrCumsumOut",
            t(&d.empty(I32, &[2])),
            "expertTokensCountOrCumsumOut: dtype INT32, expected INT64",
        ),
        (
            "expertTokensCountOrCumsumOut",
            t(&d.empty(I64, &[4])),
            "expertTokensCountOrCumsumOut: shape [4], expected [2]",
        ),
        ("activeExpertRange", ints(&[3, 5]), "activeExpertRange: [3, 5]"),
        ("quantMode", int(0), "quantMode: 0"),
        ("rowIdxType", int(2), "rowIdxType: 2"),
    ] {
        refused(V3, &args(V3, &[&given[..], &[(param, arg)]].concat()), 161_002, words);
    }
    let far = [("expertIdx", t(&d.ints(I32, &[3, 2], &[4; 6])))];
    let fault = d.run(&plan(V3, &args(V3, &[&given[..], &far].concat())).unwrap()).unwrap_err();
    assert!(fault.message.contains("expertIdx: 4, expected from 0 to below 4"), "{fault}");
}

#[test]
fn copies_are_quantised_on_the_way() {
    let d = Device::default();
    let (mut given, expanded, _) = routing(&d, I8, 6);
    let (counts, scale) = (d.empty(I64, &[4]), d.empty(F32, &[6]));
    given.extend([
        ("quantMode", int(1)),
        ("expertTokensNumFlag", Arg::Bool(true)),
        ("expertTokensCountOrCumsumOut", t(&counts)),
        ("expandedScaleOut", t(&scale)),
    ]);
    d.call(V3, &args(V3, &given));
    assert_eq!(d.read_ints(&expanded)[..4], [13, -127, 13, -127]);
    near(&d.read_floats(&scale)[..2], &[20.0 / 127.0, 10.0 / 127.0], 1e-6);
    assert_eq!(d.read_ints(&counts), [1, 3, 4, 6]);
}

#[test]
fn permuted_and_brought_back() {
    let d = Device::default();
    let x = d.floats(BF16, &[2, 1], &[5.0, 7.0]);
    let ids = d.ints(I64, &[2, 2], &[2, 0, 1, 0]);
    let (out, sorted) = (d.empty(BF16, &[4, 1]), d.empty(I32, &[4]));
    d.call("MoeTokenPermute", &[t(&x), t(&ids), int(0), Arg::Bool(false), t(&out), t(&sorted)]);
    assert_eq!(d.read_floats(&out), [5.0, 7.0, 7.0, 5.0]);
    assert_eq!(d.read_ints(&sorted), [3, 0, 2, 1]);
    let rows = d.floats(BF16, &[4, 1], &[1.0, 2.0, 3.0, 4.0]);
    let probs = d.floats(F32, &[2, 2], &[0.5, 0.25, 1.0, 2.0]);
    let back = d.empty(BF16, &[2, 1]);
    let args = |rows: &Tensor, sorted: &Tensor| {
        [t(rows), t(sorted), t(&probs), Arg::Bool(false), Arg::IntArray(None), t(&back)]
    };
    d.call("MoeTokenUnpermute", &args(&rows, &sorted));
    assert_eq!(d.read_floats(&back), [2.25, 7.0]);
    let few = d.floats(BF16, &[3, 1], &[1.0, 2.0, 3.0]);
    d.call("MoeTokenUnpermute", &args(&few, &sorted));
    assert_eq!(d.read_floats(&back), [0.25, 7.0], "a dropped copy counts nothing");
    let negative = d.ints(I32, &[4], &[-1, 0, 2, 1]);
    let fault = d.run(&plan("MoeTokenUnpermute", &args(&rows, &negative)).unwrap()).unwrap_err();
    assert!(fault.message.contains("sortedIndices: -1"), "{fault}");
    refused("MoeTokenUnpermute", &args(&rows, &ids), 161_002, "sortedIndices: dtype INT64");
}

#[test]
fn finalized_in_both_orders() {
    let d = Device::default();
    let rows = d.floats(F32, &[4, 1], &[1.0, 2.0, 3.0, 4.0]);
    let (residual, scales) =
        (d.floats(F32, &[2, 1], &[10.0, 20.0]), d.floats(F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let bias = d.floats(F32, &[3, 1], &[0.0, 0.5, 0.0]);
    let experts = d.ints(I32, &[2, 2], &[0, 1, 2, 0]);
    let index = d.ints(I32, &[4], &[3, 2, 1, 0]);
    let out = d.empty(F32, &[2, 1]);
    let name = "MoeFinalizeRoutingV2";
    let given = vec![
        ("expandedX", t(&rows)),
        ("expandedRowIdx", t(&index)),
        ("x1", t(&residual)),
        ("bias", t(&bias)),
        ("scales", t(&scales)),
        ("expertIdx", t(&experts)),
        ("dropPadMode", int(2)),
        ("out", t(&out)),
    ];
    d.call(name, &args(name, &given));
    assert_eq!(d.read_floats(&out), [10.0 + 4.0 + 2.0 * 3.5, 20.0 + 3.0 * 2.0 + 4.0]);
    d.call(name, &args(name, &[&given[..], &[("dropPadMode", int(0))]].concat()));
    assert_eq!(d.read_floats(&out), [10.0 + 4.0 + 2.0 * 2.5, 20.0 + 3.0 * 3.0 + 4.0]);
    let no_experts = [("expertIdx", Arg::Tensor(None))];
    refused(
        name,
        &args(name, &[&given[..], &no_experts].concat()),
        161_001,
        "expertIdx: null with bias",
    );
    refused(
        name,
        &args(name, &[&given[..], &[("dropPadMode", int(3))]].concat()),
        161_002,
        "dropPadMode: 3",
    );
}

#[test]
fn ends_of_experts() {
    let d = Device::default();
    let sorted = d.ints(I32, &[5], &[0, 0, 2, 2, 3]);
    let out = d.empty(I32, &[5]);
    d.call("MoeComputeExpertTokens", &[t(&sorted), int(5), t(&out)]);
    assert_eq!(d.read_ints(&out), [2, 2, 4, 5, 5]);
    refused(
        "MoeComputeExpertTokens",
        &[t(&sorted), int(5), t(&d.empty(I64, &[5]))],
        161_002,
        "out: dtype INT64",
    );
}
