use crate::device::{BF16, Device, F16, F32, I64, int, near, null, numbers, refused, t, text};
use halyard_sim_ascend_ops::{Arg, Tensor};

/// A quarter turn of the first pair, none of the second.
const COS: [f32; 2] = [0.0, 1.0];
const SIN: [f32; 2] = [1.0, 0.0];

#[test]
fn both_styles_worked_by_hand() {
    let d = Device::default();
    let x = d.floats(F32, &[1, 1, 2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let out = d.empty(F32, &[1, 1, 2, 4]);
    let both = |v: [f32; 2]| d.floats(F32, &[1, 1, 1, 4], &[v[0], v[1], v[0], v[1]]);
    d.call("RotaryPositionEmbedding", &[t(&x), t(&both(COS)), t(&both(SIN)), int(0), t(&out)]);
    assert_eq!(d.read_floats(&out), [-3.0, 2.0, 1.0, 4.0, -7.0, 6.0, 5.0, 8.0]);
    let twice = |v: [f32; 2]| d.floats(F32, &[1, 1, 1, 4], &[v[0], v[0], v[1], v[1]]);
    d.call("RotaryPositionEmbedding", &[t(&x), t(&twice(COS)), t(&twice(SIN)), int(1), t(&out)]);
    assert_eq!(d.read_floats(&out), [-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0]);
}

#[test]
fn tokens_have_angles_of_their_own_and_x_may_be_a_view() {
    let d = Device::default();
    let values = numbers(3 * 10, 5);
    let mut x = d.floats(F16, &[3, 10], &values);
    (x.view_dims, x.strides, x.offset) = (vec![1, 3, 2, 4], vec![30, 10, 4, 1], 1);
    let (cos, sin) = (numbers(12, 6), numbers(12, 7));
    let out = d.empty(F16, &[1, 3, 2, 4]);
    let [c, s] = [&cos, &sin].map(|v| d.floats(F16, &[1, 3, 1, 4], v));
    d.call("RotaryPositionEmbedding", &[t(&x), t(&c), t(&s), int(0), t(&out)]);
    let mut expected = Vec::new();
    for (token, head, i) in (0..24).map(|n| (n / 8, n / 4 % 2, n % 4)) {
        let at = |i: usize| values[token * 10 + 1 + head * 4 + i];
        let turned = if i < 2 { -at(i + 2) } else { at(i - 2) };
        expected.push(at(i) * cos[token * 4 + i] + turned * sin[token * 4 + i]);
    }
    near(&d.read_floats(&out), &expected, 1e-3);
}

#[test]
fn applied_in_place_to_queries_and_keys() {
    let d = Device::default();
    let (q, k) = (numbers(2 * 64, 1), numbers(64, 2));
    let query = d.floats(F32, &[1, 1, 2, 64], &q);
    let key = d.floats(F32, &[1, 1, 1, 64], &k);
    let (cos, sin) =
        (d.floats(F32, &[1, 1, 1, 64], &[0.0; 64]), d.floats(F32, &[1, 1, 1, 64], &[1.0; 64]));
    d.call("ApplyRotaryPosEmb", &[t(&query), t(&key), t(&cos), t(&sin), int(1)]);
    let turned =
        |x: &[f32]| -> Vec<f32> { x[32..].iter().map(|v| -v).chain(x[..32].to_vec()).collect() };
    assert_eq!(d.read_floats(&query), [turned(&q[..64]), turned(&q[64..])].concat());
    assert_eq!(d.read_floats(&key), turned(&k));
    let args = [t(&query), t(&key), t(&cos), t(&sin), int(4)];
    refused("ApplyRotaryPosEmb", &args, 161_002, "layout: 4, expected 1");
    let args = [t(&query), t(&key), t(&cos), t(&sin), int(4), text("half")];
    refused("ApplyRotaryPosEmbV2", &args, 161_002, "queryRef: 4 dims");
    let args = [t(&query), t(&key), t(&cos), t(&sin), int(1), text("interleave")];
    refused("ApplyRotaryPosEmbV2", &args, 161_002, "rotaryMode: \"interleave\"");
}

#[test]
fn interleaved_pairs_are_brought_to_halves() {
    let d = Device::default();
    let x: Vec<f32> = (0..64u8).map(f32::from).collect();
    let out = d.empty(F16, &[1, 1, 1, 64]);
    let [x, one, zero] =
        [x, vec![1.0; 64], vec![0.0; 64]].map(|v| d.floats(F16, &[1, 1, 1, 64], &v));
    d.call("InterleaveRope", &[t(&x), t(&one), t(&zero), t(&out)]);
    let sorted: Vec<f32> = (0..64u8).map(|i| f32::from(2 * (i % 32) + i / 32)).collect();
    assert_eq!(d.read_floats(&out), sorted);
    let short = d.empty(F16, &[1, 1, 1, 32]);
    refused(
        "InterleaveRope",
        &[t(&short), t(&short), t(&short), t(&short)],
        161_002,
        "x: 32 along the last axis",
    );
}

#[test]
fn rotated_by_positions_of_a_cache() {
    let d = Device::default();
    let cache =
        d.floats(F32, &[3, 4], &[1.0, 1.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0, 0.0, 1.0, 1.0, 0.0]);
    let positions = d.ints(I64, &[1], &[2]);
    let q = d.floats(F32, &[1, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let k = d.floats(F32, &[1, 6], &[0.0; 6]);
    let [qo, ko] = [d.empty(F32, &[1, 6]), d.empty(F32, &[1, 6])];
    let args = |positions: &Tensor| {
        [
            t(positions),
            t(&q),
            t(&k),
            t(&cache),
            Arg::IntArray(None),
            int(6),
            Arg::Bool(true),
            t(&qo),
            t(&ko),
        ]
    };
    d.call("RopeWithSinCosCache", &args(&positions));
    assert_eq!(d.read_floats(&qo), [-3.0, 2.0, 1.0, 4.0, 5.0, 6.0]);
    let far = d.ints(I64, &[1], &[3]);
    let plan = crate::device::plan("RopeWithSinCosCache", &args(&far)).unwrap();
    assert!(d.run(&plan).unwrap_err().message.contains("positions: 3, expected from 0 to below 3"));
}

#[test]
fn bad_rotations_are_refused() {
    let d = Device::default();
    let of = |dtype, dims: &[i64]| d.empty(dtype, dims);
    let (x, c) = (of(F16, &[1, 2, 3, 8]), of(F16, &[1, 2, 1, 8]));
    let call = |x: &Tensor, c: &Tensor, mode, out: &Tensor| [t(x), t(c), t(c), int(mode), t(out)];
    let name = "RotaryPositionEmbedding";
    refused(name, &call(&x, &c, 2, &x), 161_002, "mode: 2, expected 0 or 1");
    refused(
        name,
        &call(&x, &of(F16, &[1, 2, 1, 4]), 0, &x),
        161_002,
        "cos: 4 along the last axis, expected all 8",
    );
    refused(name, &call(&x, &of(BF16, &[1, 2, 1, 8]), 0, &x), 161_002, "cos: dtype BFLOAT16");
    refused(
        name,
        &call(&x, &of(F16, &[1, 4, 1, 8]), 0, &x),
        161_002,
        "cos: shape [1, 4, 1, 8] does not broadcast",
    );
    refused(name, &call(&of(F16, &[2, 3, 8]), &c, 0, &x), 161_002, "x: 3 dims");
    let odd = of(F16, &[1, 2, 3, 7]);
    refused(
        name,
        &call(&odd, &of(F16, &[1, 2, 1, 7]), 0, &odd),
        161_002,
        "expected an even number below 896",
    );
    let view = crate::device::transposed(&of(F16, &[1, 2, 8, 3]));
    refused(name, &call(&x, &c, 0, &view), 161_002, "expected a contiguous tensor");
    refused(name, &[t(&x), null(), t(&c), int(0), t(&x)], 161_001, "cos: null");
    let angles = |dims: &[i64]| of(F16, dims);
    let (tall, heads) = (of(F16, &[2, 4, 3, 8]), of(F16, &[1, 2, 1000, 8]));
    for (x, c, mode) in [
        (&tall, angles(&[1, 4, 3, 8]), 0),
        (&tall, angles(&[1, 1, 1, 8]), 0),
        (&tall, angles(&[2, 4, 1, 8]), 1),
        (&heads, angles(&[1, 2, 1, 8]), 0),
        // Heads outside of tokens, and only three tokens for them.
        (&tall, angles(&[1, 1, 3, 8]), 0),
    ] {
        refused(name, &call(x, &c, mode, x), 161_002, "expected tokens with one head");
    }
    for c in
        [angles(&[2, 4, 1, 8]), angles(&[1, 4, 1, 8]), angles(&[2, 4, 3, 8]), angles(&[2, 1, 1, 8])]
    {
        crate::device::plan(name, &call(&tall, &c, 0, &tall)).unwrap();
    }
}
