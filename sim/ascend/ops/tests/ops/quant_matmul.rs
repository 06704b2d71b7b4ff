use crate::device::{
    BF16, Device, F16, F32, I4, I8, I32, I64, args, int, near, numbers, refused, t, transposed,
};
use halyard_sim_ascend_ops::{Arg, Tensor};

const U64: i32 = 10;
const V2: &str = "WeightQuantBatchMatmulV2";

/// Codes of a few bits, `[K, N]`.
fn codes(count: usize, most: i64) -> Vec<i64> {
    numbers(count, 9).iter().map(|v| (v * 4.0) as i64).map(|v| v.clamp(-most - 1, most)).collect()
}

/// Two codes a byte, the first in the low half.
fn packed(d: &Device, dims: &[i64], codes: &[i64]) -> Tensor {
    let bytes: Vec<u8> =
        codes.chunks(2).map(|p| (p[0] & 15) as u8 | ((p[1] & 15) as u8) << 4).collect();
    d.bytes(I4, dims, &bytes)
}

/// `x · ((w + offset) · scale)` with scales of groups, `[G, N]`.
fn expected(
    x: &[f32],
    w: &[i64],
    [m, k, n, group]: [usize; 4],
    scale: &[f32],
    offset: &[f32],
) -> Vec<f32> {
    (0..m * n)
        .map(|at| {
            let (row, column) = (at / n, at % n);
            let term = |i: usize| {
                let place = i / group * n + column;
                x[row * k + i] * (w[i * n + column] as f32 + offset[place]) * scale[place]
            };
            (0..k).map(term).sum()
        })
        .collect()
}

#[test]
fn groups_of_four_bit_codes() {
    let d = Device::default();
    let (m, k, n) = (3usize, 70usize, 4usize);
    let (x, w) = (numbers(m * k, 1), codes(k * n, 7));
    // Three groups, the last short.
    let scale: Vec<f32> = (0..12u8).map(|i| f32::from(i + 1) / 16.0).collect();
    let offset: Vec<f32> = (0..12u8).map(|i| f32::from(i % 3) - 1.0).collect();
    let wanted = expected(&x, &w, [m, k, n, 32], &scale, &offset);
    let bias: Vec<f32> = vec![1.0, 2.0, 3.0, 4.0];
    let xs = d.floats(F16, &[3, 70], &x);
    let weight = packed(&d, &[70, 4], &w);
    let [s, o] = [&scale, &offset].map(|v| d.floats(F16, &[3, 4], v));
    let (b, y) = (d.floats(F16, &[4], &bias), d.empty(F16, &[3, 4]));
    let given = vec![
        ("x", t(&xs)),
        ("weight", t(&weight)),
        ("antiquantScale", t(&s)),
        ("antiquantOffset", t(&o)),
        ("bias", t(&b)),
        ("antiquantGroupSize", int(32)),
        ("y", t(&y)),
    ];
    d.call(V2, &args(V2, &given));
    let with_bias: Vec<f32> = wanted.iter().enumerate().map(|(i, v)| v + bias[i % 4]).collect();
    near(&d.read_floats(&y), &with_bias, 2e-3);
    // Transposed, as eight codes a word.
    let turned: Vec<i64> = (0..k * n).map(|i| w[i % k * n + i / k]).collect();
    let padded: Vec<i64> = turned.chunks(k).flat_map(|row| [row, &[0, 0]].concat()).collect();
    let bytes = d.read_bytes(&packed(&d, &[4, 72], &padded));
    let words = d.bytes(I32, &[4, 9], &bytes);
    let wide_x: Vec<f32> = x.chunks(k).flat_map(|row| [row, &[0.0, 0.0]].concat()).collect();
    let more = [("x", t(&d.floats(F16, &[3, 72], &wide_x))), ("weight", t(&transposed(&words)))];
    d.call(V2, &args(V2, &[&given[..], &more].concat()));
    near(&d.read_floats(&y), &with_bias, 2e-3);
    for (param, arg, words) in [
        ("antiquantGroupSize", int(48), "antiquantGroupSize: 48"),
        (
            "antiquantGroupSize",
            int(96),
            "antiquantGroupSize: 96, expected 0 or a multiple of 32 from 32 to 69",
        ),
        ("antiquantGroupSize", int(0), "antiquantScale: shape [3, 4], expected [1], [4] or [1, 4]"),
        ("antiquantScale", t(&d.empty(F32, &[3, 4])), "antiquantScale: dtype FLOAT"),
        ("antiquantOffset", t(&d.empty(F16, &[4])), "antiquantOffset: shape [4]"),
        ("bias", t(&d.empty(F32, &[4])), "bias: dtype FLOAT, expected FLOAT16"),
        ("weight", t(&d.empty(F16, &[70, 4])), "weight: dtype FLOAT16"),
        ("weight", t(&packed(&d, &[68, 4], &[0; 272])), "weight: shape [68, 4]"),
        ("quantScale", t(&s), "quantScale: given"),
        ("y", t(&d.empty(BF16, &[3, 4])), "y: dtype BFLOAT16"),
    ] {
        refused(V2, &args(V2, &[&given[..], &[(param, arg)]].concat()), 161_002, words);
    }
}

#[test]
fn channels_of_eight_bit_codes() {
    let d = Device::default();
    let (x, w) = (numbers(2 * 40, 1), codes(40 * 5, 127));
    let scale = [0.5, 1.0, 0.25, 2.0, 0.125];
    let wanted = expected(&x, &w, [2, 40, 5, 40], &scale, &[0.0; 5]);
    let xs = d.floats(BF16, &[2, 40], &x);
    let y = d.empty(BF16, &[2, 5]);
    let weight = d.ints(I8, &[40, 5], &w);
    let room = d.empty(I8, &[1, 3, 16, 32]);
    let nz = Tensor {
        format: 29,
        address: room.address,
        storage_dims: vec![1, 3, 16, 32],
        ..weight.clone()
    };
    d.call("NpuFormatCast", &[t(&weight), t(&nz)]);
    for weight in [&weight, &nz] {
        let given = [
            ("x", t(&xs)),
            ("weight", t(weight)),
            ("antiquantScale", t(&d.floats(BF16, &[5], &scale))),
            ("innerPrecise", int(1)),
            ("y", t(&y)),
        ];
        let name = "WeightQuantBatchMatmulV3";
        d.call(name, &args(name, &given));
        near(&d.read_floats(&y), &wanted, 1e-2);
        let one = [&given[..], &[("antiquantScale", t(&d.floats(BF16, &[1], &[1.0])))]].concat();
        if weight.format == 29 {
            refused(name, &args(name, &one), 161_002, "expected one a channel");
        }
    }
}

fn int_product(x: &[i64], w: &[i64], [m, k, n]: [usize; 3]) -> Vec<i64> {
    (0..m * n).map(|at| (0..k).map(|i| x[at / n * k + i] * w[i * n + at % n]).sum()).collect()
}

#[test]
fn tokens_and_channels_have_scales() {
    let d = Device::default();
    let size = [2usize, 40, 3];
    let (x, w) = (codes(80, 127), codes(120, 127));
    let sums = int_product(&x, &w, size);
    let (channel, token, bias) = ([0.5, 0.25, 2.0], [0.1, 0.2], [10i64, -10, 0]);
    let wanted: Vec<f32> =
        (0..6).map(|i| (sums[i] + bias[i % 3]) as f32 * channel[i % 3] * token[i / 3]).collect();
    let xs = d.ints(I8, &[2, 40], &x);
    let turned: Vec<i64> = (0..120).map(|i| w[i % 40 * 3 + i / 40]).collect();
    let weight = d.ints(I8, &[3, 40], &turned);
    let room = d.empty(I8, &[2, 1, 16, 32]);
    let nz = Tensor {
        format: 29,
        address: room.address,
        storage_dims: vec![2, 1, 16, 32],
        ..weight.clone()
    };
    d.call("NpuFormatCast", &[t(&weight), t(&nz)]);
    let [c, p] = [d.floats(F32, &[3], &channel), d.floats(F32, &[2], &token)];
    let b = d.ints(I32, &[3], &bias);
    let out = d.empty(BF16, &[2, 3]);
    for name in ["QuantMatmulV4", "QuantMatmulV5", "QuantMatmulWeightNz"] {
        let mut given = vec![
            ("x1", t(&xs)),
            ("x2", t(if name == "QuantMatmulWeightNz" { &nz } else { &weight })),
            ("bias", t(&b)),
            ("transposeX2", Arg::Bool(true)),
            ("out", t(&out)),
        ];
        let scales = if name == "QuantMatmulV4" {
            ["scale", "pertokenScale"]
        } else {
            ["x2Scale", "x1Scale"]
        };
        given.extend([(scales[0], t(&c)), (scales[1], t(&p))]);
        d.call(name, &args(name, &given));
        near(&d.read_floats(&out), &wanted, 4e-3);
        let short = [&given[..], &[("transposeX2", Arg::Bool(false))]].concat();
        refused(name, &args(name, &short), 161_002, "x2: 3 rows, expected 40");
        let half =
            [&given[..], &[("out", t(&d.empty(F16, &[2, 3]))), (scales[1], Arg::Tensor(None))]]
                .concat();
        refused(
            name,
            &args(name, &half),
            561_002,
            "out: dtype FLOAT16 with a scale of FLOAT without",
        );
        let other = [&given[..], &[("bias", t(&d.empty(I64, &[3])))]].concat();
        refused(name, &args(name, &other), 161_002, "bias: dtype INT64");
    }
}

#[test]
fn static_scales_give_eight_bits() {
    let d = Device::default();
    let x = d.ints(I8, &[1, 2], &[10, 20]);
    let w = d.ints(I8, &[2, 2], &[1, 100, 2, 100]);
    let packed = d.empty(U64, &[1]);
    let half = d.floats(F32, &[1], &[0.5]);
    d.call("TransQuantParamV2", &[t(&half), t(&d.floats(F32, &[1], &[3.0])), t(&packed)]);
    let out = d.empty(I8, &[1, 2]);
    let given = [("x1", t(&x)), ("x2", t(&w)), ("scale", t(&packed)), ("out", t(&out))];
    d.call("QuantMatmulV4", &args("QuantMatmulV4", &given));
    assert_eq!(d.read_ints(&out), [28, 127]);
}

#[test]
fn both_sides_of_four_bits() {
    let d = Device::default();
    let (x, w) = (codes(2 * 8, 7), codes(8 * 2, 7));
    let sums = int_product(&x, &w, [2, 8, 2]);
    let out = d.empty(BF16, &[2, 2]);
    let given = [
        ("x1", t(&packed(&d, &[2, 8], &x))),
        ("x2", t(&packed(&d, &[8, 2], &w))),
        ("scale", t(&d.floats(BF16, &[2], &[1.0, 2.0]))),
        ("out", t(&out)),
    ];
    d.call("QuantMatmulV4", &args("QuantMatmulV4", &given));
    let wanted: Vec<f32> =
        sums.iter().zip([1.0, 2.0, 1.0, 2.0]).map(|(s, c)| *s as f32 * c).collect();
    near(&d.read_floats(&out), &wanted, 4e-3);
}
