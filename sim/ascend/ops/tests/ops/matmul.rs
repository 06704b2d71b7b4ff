use crate::device::{
    BF16, Device, F16, F32, args, int, ints, near, numbers, refused, t, transposed,
};
use halyard_sim_ascend_ops::Tensor;

fn product(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    for (row, column, i) in (0..m * n * k).map(|x| (x / (n * k), x / k % n, x % k)) {
        out[row * n + column] += a[row * k + i] * b[i * n + column];
    }
    out
}

#[test]
fn mm_worked_by_hand() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let w = d.floats(F32, &[2, 3], &[1.0, 0.0, 5.0, 0.0, 1.0, 6.0]);
    let out = d.empty(F32, &[2, 3]);
    d.call("Mm", &[t(&x), t(&w), t(&out), int(0)]);
    assert_eq!(d.read_floats(&out), [1.0, 2.0, 17.0, 3.0, 4.0, 39.0]);
}

#[test]
fn a_transposed_view_is_a_linear_layer() {
    let d = Device::default();
    let (m, k, n) = (3, 37, 70);
    let (x, w) = (numbers(m * k, 1), numbers(k * n, 2));
    let expected = product(&x, &w, (m, k, n));
    let turned: Vec<f32> = (0..n * k).map(|i| w[i % k * n + i / k]).collect();
    for dtype in [F16, BF16, F32] {
        let x = d.floats(dtype, &[3, 37], &x);
        let out = d.empty(dtype, &[3, 70]);
        let plain = d.floats(dtype, &[37, 70], &w);
        let linear = transposed(&d.floats(dtype, &[70, 37], &turned));
        for w in [plain, linear] {
            d.call("Mm", &[t(&x), t(&w), t(&out), int(0)]);
            near(&d.read_floats(&out), &expected, if dtype == BF16 { 4e-3 } else { 1e-3 });
        }
    }
}

#[test]
fn batches_broadcast() {
    let d = Device::default();
    let (x, w) = (numbers(2 * 3 * 4, 1), numbers(4 * 5, 2));
    let expected = product(&x, &w, (6, 4, 5));
    let (x, w) = (d.floats(F32, &[2, 3, 4], &x), d.floats(F32, &[1, 4, 5], &w));
    let out = d.empty(F32, &[2, 3, 5]);
    d.call("BatchMatMul", &[t(&x), t(&w), t(&out), int(0)]);
    near(&d.read_floats(&out), &expected, 1e-6);
    let flat = Tensor::contiguous(F32, &[4, 5], w.address);
    d.call("Matmul", &[t(&x), t(&flat), t(&out), int(0)]);
    near(&d.read_floats(&out), &expected, 1e-6);
}

#[test]
fn matmul_of_vectors() {
    let d = Device::default();
    let v = d.floats(F32, &[2], &[2.0, 3.0]);
    let m = d.floats(F32, &[2, 2], &[1.0, 10.0, 100.0, 1000.0]);
    let (pair, one) = (d.empty(F32, &[2]), d.empty(F32, &[]));
    d.call("Matmul", &[t(&v), t(&m), t(&pair), int(0)]);
    assert_eq!(d.read_floats(&pair), [302.0, 3020.0]);
    d.call("Matmul", &[t(&m), t(&v), t(&pair), int(0)]);
    assert_eq!(d.read_floats(&pair), [32.0, 3200.0]);
    d.call("Matmul", &[t(&v), t(&v), t(&one), int(0)]);
    assert_eq!(d.read_floats(&one), [13.0]);
}

#[test]
fn hf32_drops_bits_where_it_is_allowed() {
    let d = Device::default();
    let fine = 1.0 + 1.0 / 4096.0;
    let (x, w) = (d.floats(F32, &[1, 1], &[fine]), d.floats(F32, &[1, 1], &[1.0]));
    let out = d.empty(F32, &[1, 1]);
    for (cube, expected) in [(0, fine), (1, 1.0), (3, 1.0), (2, 1.0), (4, fine)] {
        d.call("Mm", &[t(&x), t(&w), t(&out), int(cube)]);
        assert_eq!(d.read_floats(&out), [expected], "cubeMathType {cube}");
    }
}

#[test]
fn bad_matrices_are_refused() {
    let d = Device::default();
    let x = d.floats(F16, &[2, 4], &[0.0; 8]);
    let w = d.floats(F16, &[4, 3], &[0.0; 12]);
    let out = d.empty(F16, &[2, 3]);
    let of = |dtype, dims: &[i64]| d.empty(dtype, dims);
    for (name, x, w, out, cube, words) in [
        ("Mm", &x, &of(F16, &[3, 4]), &out, 0, "mat2: shape [3, 4], expected 4 rows"),
        ("Mm", &x, &of(BF16, &[4, 3]), &out, 0, "expected no mix with BFLOAT16"),
        ("Mm", &x, &w, &of(F32, &[2, 3]), 0, "out: dtype FLOAT, expected FLOAT16"),
        ("Mm", &x, &w, &of(F16, &[3, 2]), 0, "out: shape [3, 2], expected [2, 3]"),
        ("Mm", &x, &w, &out, 5, "cubeMathType: 5"),
        ("Mm", &of(F16, &[2, 2, 4]), &w, &out, 0, "self: 3 dims"),
        ("BatchMatMul", &x, &w, &out, 0, "self: 2 dims"),
        ("Mm", &of(crate::device::I8, &[2, 4]), &w, &out, 0, "self: dtype INT8"),
        ("MatmulWeightNz", &x, &w, &out, 0, "mat2: format ND"),
    ] {
        refused(name, &[t(x), t(w), t(out), int(cube)], 161_002, words);
    }
    let bf16 = [of(BF16, &[2, 4]), of(BF16, &[4, 3]), of(BF16, &[2, 3])];
    let [x, w, out] = &bf16;
    refused(
        "Mm",
        &[t(x), t(w), t(out), int(2)],
        161_002,
        "cubeMathType: 2 (use FLOAT16) with BFLOAT16",
    );
    let nz = Tensor { format: 29, ..w.clone() };
    refused("Mm", &[t(x), t(&nz), t(out), int(0)], 161_002, "expected [1, 1, 16, 16]");
}

#[test]
fn heads_are_multiplied_between_tokens() {
    let d = Device::default();
    // Two tokens, three heads.
    let (x, w) = (numbers(2 * 3 * 4, 1), numbers(3 * 4 * 2, 2));
    let mut expected = Vec::new();
    for (token, head, column) in (0..12).map(|i| (i / 6, i / 2 % 3, i % 2)) {
        expected.push(
            (0..4).map(|i| x[(token * 3 + head) * 4 + i] * w[(head * 4 + i) * 2 + column]).sum(),
        );
    }
    let out = d.empty(F16, &[2, 3, 2]);
    let name = "TransposeBatchMatMul";
    let given = vec![
        ("x1", t(&d.floats(F16, &[2, 3, 4], &x))),
        ("x2", t(&d.floats(F16, &[3, 4, 2], &w))),
        ("permX1", ints(&[1, 0, 2])),
        ("permX2", ints(&[0, 1, 2])),
        ("permY", ints(&[1, 0, 2])),
        ("batchSplitFactor", int(1)),
        ("out", t(&out)),
    ];
    d.call(name, &args(name, &given));
    near(&d.read_floats(&out), &expected, 1e-3);
    let other = [&given[..], &[("permY", ints(&[0, 1, 2]))]].concat();
    refused(name, &args(name, &other), 161_002, "permY: [0, 1, 2]");
}
