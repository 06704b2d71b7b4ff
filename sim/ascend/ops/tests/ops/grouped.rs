use crate::device::{
    BF16, Device, F16, F32, I4, I8, I32, I64, args, int, ints, list, near, numbers, plan, refused,
    t, transposed,
};
use halyard_sim_ascend_ops::{Arg, Tensor};

const V4: &str = "GroupedMatmulV4";

type Given = Vec<(&'static str, Arg)>;

/// Rows of five, of three groups with 2, 0 and 3 rows.
const SPANS: [(usize, usize); 3] = [(0, 2), (2, 0), (2, 3)];

fn product(x: &[f32], w: &[f32], k: usize, n: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for (group, (start, count)) in SPANS.into_iter().enumerate() {
        for (row, column) in (0..count * n).map(|i| (start + i / n, i % n)) {
            out.push((0..k).map(|i| x[row * k + i] * w[(group * k + i) * n + column]).sum());
        }
    }
    out
}

fn call(x: &Tensor, w: &Tensor, groups: &Tensor, kind: i64, out: &Tensor) -> Given {
    vec![
        ("x", list(&[x])),
        ("weight", list(&[w])),
        ("groupList", t(groups)),
        ("splitItem", int(2)),
        ("groupListType", int(kind)),
        ("out", list(&[out])),
    ]
}

#[test]
fn floats_with_every_kind_of_list() {
    let d = Device::default();
    let (x, w) = (numbers(5 * 8, 1), numbers(3 * 8 * 4, 2));
    let wanted = product(&x, &w, 8, 4);
    let xs = d.floats(F16, &[5, 8], &x);
    let turned: Vec<f32> = (0..96).map(|i| w[i / 32 * 32 + i % 8 * 4 + i / 8 % 4]).collect();
    let plain = d.floats(F16, &[3, 8, 4], &w);
    let linear = transposed(&d.floats(F16, &[3, 4, 8], &turned));
    let lists = [
        d.ints(I64, &[3], &[2, 2, 5]),
        d.ints(I64, &[3], &[2, 0, 3]),
        d.ints(I64, &[3, 2], &[0, 2, 2, 3, 0, 0]),
    ];
    for (kind, groups) in (0..).zip(&lists) {
        for w in [&plain, &linear] {
            let out = d.empty(F16, &[5, 4]);
            d.call(V4, &args(V4, &call(&xs, w, groups, kind, &out)));
            near(&d.read_floats(&out), &wanted, 1e-3);
        }
    }
    let out = d.empty(F16, &[5, 4]);
    let older = |groups| {
        vec![
            ("x", list(&[&xs])),
            ("weight", list(&[&plain])),
            ("groupList", groups),
            ("splitItem", int(3)),
            ("y", list(&[&out])),
        ]
    };
    d.call("GroupedMatmulV2", &args("GroupedMatmulV2", &older(ints(&[2, 2, 5]))));
    near(&d.read_floats(&out), &wanted, 1e-3);
    d.call("GroupedMatmulV3", &args("GroupedMatmulV3", &older(t(&lists[0]))));
    near(&d.read_floats(&out), &wanted, 1e-3);
    let split: Vec<Tensor> = w.chunks(32).map(|w| d.floats(F16, &[8, 4], w)).collect();
    let parts: Vec<&Tensor> = split.iter().collect();
    let given = [&call(&xs, &plain, &lists[0], 0, &out)[..], &[("weight", list(&parts))]].concat();
    d.call("GroupedMatmulV5", &args("GroupedMatmulV5", &given));
    near(&d.read_floats(&out), &wanted, 1e-3);
    let bias = d.floats(F16, &[3, 4], &[&[1.0; 4][..], &[9.0; 4], &[2.0; 4]].concat());
    let given = [&given[..], &[("bias", list(&[&bias]))]].concat();
    d.call("GroupedMatmulV5", &args("GroupedMatmulV5", &given));
    let moved: Vec<f32> =
        wanted.iter().enumerate().map(|(i, v)| v + if i < 8 { 1.0 } else { 2.0 }).collect();
    near(&d.read_floats(&out), &moved, 1e-3);
}

#[test]
fn rows_behind_the_groups_are_left_alone() {
    let d = Device::default();
    let xs = d.floats(F32, &[5, 1], &[1.0; 5]);
    let w = d.floats(F32, &[2, 1, 1], &[2.0, 3.0]);
    let out = d.floats(F32, &[5, 1], &[7.0; 5]);
    let given = call(&xs, &w, &d.ints(I64, &[2], &[1, 2]), 1, &out);
    d.call(V4, &args(V4, &given));
    assert_eq!(d.read_floats(&out), [2.0, 3.0, 3.0, 7.0, 7.0]);
    for (values, words) in
        [([4, 2], "groupList: 2, expected from 0 to below 2"), ([-1, 2], "groupList: -1")]
    {
        let given = call(&xs, &w, &d.ints(I64, &[2], &values), 1, &out);
        let fault = d.run(&plan(V4, &args(V4, &given)).unwrap()).unwrap_err();
        assert!(fault.message.contains(words), "{fault}");
    }
    let falls = call(&xs, &w, &d.ints(I64, &[2], &[3, 2]), 0, &out);
    assert!(
        d.run(&plan(V4, &args(V4, &falls)).unwrap()).unwrap_err().message.contains("groupList: -1")
    );
}

#[test]
fn eight_bits_with_scales_of_tokens_and_channels() {
    let d = Device::default();
    let code = |count, seed| -> Vec<f32> {
        numbers(count, seed).iter().map(|v| (v * 8.0).trunc()).collect()
    };
    let (x, w) = (code(5 * 8, 1), code(3 * 8 * 4, 2));
    let sums = product(&x, &w, 8, 4);
    let as_ints = |v: &[f32]| -> Vec<i64> { v.iter().map(|v| *v as i64).collect() };
    let xs = d.ints(I8, &[5, 8], &as_ints(&x));
    let weight = d.ints(I8, &[3, 8, 4], &as_ints(&w));
    let room = d.empty(I8, &[3, 1, 1, 16, 32]);
    let nz = Tensor {
        format: 29,
        address: room.address,
        storage_dims: vec![3, 1, 1, 16, 32],
        ..weight.clone()
    };
    d.call("NpuFormatCast", &[t(&weight), t(&nz)]);
    let (scale, token) = ([0.5, 1.0, 2.0, 0.25].repeat(3), [0.1, 0.2, 0.3, 0.4, 0.5]);
    let wanted: Vec<f32> = (0..20).map(|i| sums[i] * scale[i % 4] * token[i / 4]).collect();
    let groups = d.ints(I64, &[3], &[2, 0, 3]);
    let out = d.empty(BF16, &[5, 4]);
    for (name, w) in [(V4, &weight), ("GroupedMatmulWeightNz", &nz)] {
        let mut given = call(&xs, w, &groups, 1, &out);
        given.push(("scale", list(&[&d.floats(BF16, &[3, 4], &scale)])));
        given.push(("perTokenScale", list(&[&d.floats(F32, &[5], &token)])));
        d.call(name, &args(name, &given));
        near(&d.read_floats(&out), &wanted, 4e-3);
        given.push(("scale", list(&[&d.floats(F32, &[3, 4], &scale)])));
        refused(name, &args(name, &given), 161_002, "scale[0]: dtype FLOAT, expected BFLOAT16");
    }
    let name = "GroupedMatmulSwigluQuant";
    let (codes, scales) = (d.empty(I8, &[5, 2]), d.empty(F32, &[5]));
    let given = [
        ("x", t(&xs)),
        ("weight", t(&nz)),
        ("weightScale", t(&d.floats(F32, &[3, 4], &scale))),
        ("xScale", t(&d.floats(F32, &[5], &token))),
        ("groupList", t(&d.ints(I64, &[3], &[2, 2, 5]))),
        ("output", t(&codes)),
        ("outputScale", t(&scales)),
    ];
    d.call(name, &args(name, &given));
    let back = d.read_floats(&scales);
    for (at, code) in d.read_ints(&codes).into_iter().enumerate() {
        let row = &wanted[at / 2 * 4..];
        let exact = row[at % 2] / (1.0 + (-row[at % 2]).exp()) * row[2 + at % 2];
        assert!((code as f32 * back[at / 2] - exact).abs() <= back[at / 2] * 0.51, "{at}");
    }
}

#[test]
fn codes_of_weights_with_groups() {
    let d = Device::default();
    let x = numbers(5 * 8, 1);
    let codes: Vec<i64> = numbers(96, 2).iter().map(|v| (v * 3.0) as i64).collect();
    let (scale, offset) = (numbers(3 * 2 * 4, 3), numbers(3 * 2 * 4, 4));
    let w: Vec<f32> = (0..96)
        .map(|i| {
            let place = i / 32 * 8 + i / 4 % 8 / 4 * 4 + i % 4;
            (codes[i] as f32 + offset[place]) * scale[place]
        })
        .collect();
    let wanted = product(&x, &w, 8, 4);
    let bytes: Vec<u8> =
        codes.chunks(2).map(|p| (p[0] & 15) as u8 | ((p[1] & 15) as u8) << 4).collect();
    let groups = d.ints(I64, &[3], &[2, 0, 3]);
    let out = d.empty(F16, &[5, 4]);
    let xs = d.floats(F16, &[5, 8], &x);
    let [s, o] = [&scale, &offset].map(|v| d.floats(F16, &[3, 2, 4], v));
    for w in [d.bytes(I4, &[3, 8, 4], &bytes), d.ints(I8, &[3, 8, 4], &codes)] {
        let mut given = call(&xs, &w, &groups, 1, &out);
        given.extend([("antiquantScale", list(&[&s])), ("antiquantOffset", list(&[&o]))]);
        d.call(V4, &args(V4, &given));
        near(&d.read_floats(&out), &wanted, 2e-3);
        let three = d.empty(F16, &[3, 3, 4]);
        given.extend([
            ("antiquantScale", list(&[&three])),
            ("antiquantOffset", Arg::TensorList(None)),
        ]);
        refused(
            V4,
            &args(V4, &given),
            161_002,
            "antiquantScale: 3 groups, expected a divisor of 8",
        );
    }
}

#[test]
fn bad_groups_are_refused() {
    let d = Device::default();
    let (xs, w) = (d.empty(BF16, &[5, 8]), d.empty(BF16, &[3, 8, 4]));
    let (groups, out) = (d.empty(I64, &[3]), d.empty(BF16, &[5, 4]));
    let base = call(&xs, &w, &groups, 1, &out);
    for (param, arg, code, words) in [
        ("groupList", t(&d.empty(I32, &[3])), 161_002, "groupList: dtype INT32, expected INT64"),
        ("groupList", t(&d.empty(I64, &[4])), 161_002, "groupList: shape [4], expected [3]"),
        ("groupList", Arg::Tensor(None), 161_001, "groupList: null"),
        ("groupListType", int(3), 161_002, "groupListType: 3"),
        ("splitItem", int(0), 161_002, "splitItem: 0"),
        ("groupType", int(2), 161_002, "groupType: 2"),
        ("actType", int(1), 161_002, "actType: 1"),
        ("x", Arg::TensorList(None), 161_001, "x: null"),
        ("weight", list(&[]), 161_002, "weight: an empty list"),
        ("weight", list(&[&d.empty(F16, &[3, 8, 4])]), 161_002, "weight: dtype FLOAT16"),
        ("weight", list(&[&d.empty(BF16, &[3, 7, 4])]), 161_002, "weight: 7 rows a group"),
        (
            "bias",
            list(&[&d.empty(BF16, &[3, 4])]),
            161_002,
            "bias[0]: dtype BFLOAT16, expected FLOAT",
        ),
        ("out", list(&[&d.empty(BF16, &[5, 3])]), 161_002, "out[0]: shape [5, 3]"),
        ("scale", list(&[&out]), 161_002, "scale: given"),
    ] {
        refused(V4, &args(V4, &[&base[..], &[(param, arg)]].concat()), code, words);
    }
    refused(
        "GroupedMatmulWeightNz",
        &args("GroupedMatmulWeightNz", &base),
        161_002,
        "weight: format ND",
    );
}
