use crate::device::{BF16, Device, F16, F32, ints, near, null, numbers, refused, t};
use halyard_sim_ascend_ops::{Arg, Tensor};

#[test]
fn rms_norm_worked_by_hand() {
    let d = Device::default();
    // The mean square is 12.5 + 0 and 0 + 4, with an epsilon of 0 and then 12.
    let x = d.floats(F16, &[2, 2], &[3.0, 4.0, 0.0, 0.0]);
    let gamma = d.floats(F32, &[2], &[1.0, 2.0]);
    let (y, rstd) = (d.empty(F16, &[2, 2]), d.empty(F32, &[2, 1]));
    d.call("RmsNorm", &[t(&x), t(&gamma), Arg::Float(4.0), t(&y), t(&rstd)]);
    let r = 1.0 / 16.5f32.sqrt();
    near(&d.read_floats(&y), &[3.0 * r, 8.0 * r, 0.0, 0.0], 1e-3);
    near(&d.read_floats(&rstd), &[r, 0.5], 1e-6);
}

#[test]
fn heads_are_normed_in_a_view() {
    let d = Device::default();
    let all = numbers(2 * 10, 3);
    let mut heads = d.floats(F32, &[2, 10], &all);
    // Two heads of three from the fourth element of each row on.
    (heads.view_dims, heads.strides, heads.offset) = (vec![2, 2, 3], vec![10, 3, 1], 4);
    let gamma = d.floats(F32, &[3], &[1.0, 1.0, 0.5]);
    let (y, rstd) = (d.empty(F32, &[2, 2, 3]), d.empty(F32, &[2, 2, 1]));
    d.call("RmsNorm", &[t(&heads), t(&gamma), Arg::Float(1e-6), t(&y), t(&rstd)]);
    let mut expected = Vec::new();
    for start in [4, 7, 14, 17] {
        let x = &all[start..start + 3];
        let r = (x.iter().map(|v| v * v).sum::<f32>() / 3.0 + 1e-6).sqrt();
        expected.extend([x[0] / r, x[1] / r, x[2] / r / 2.0]);
    }
    near(&d.read_floats(&y), &expected, 1e-5);
}

#[test]
fn add_rms_norm_norms_the_stored_sum() {
    let d = Device::default();
    // 256 + 1 is 256 in BFLOAT16, which is what is normed.
    let (a, b) = (d.floats(BF16, &[1, 2], &[256.0, 0.0]), d.floats(BF16, &[1, 2], &[1.0, 0.0]));
    let gamma = d.floats(BF16, &[2], &[1.0, 1.0]);
    let [y, x] = [d.empty(BF16, &[1, 2]), d.empty(BF16, &[1, 2])];
    let rstd = d.empty(F32, &[1, 1]);
    d.call("AddRmsNorm", &[t(&a), t(&b), t(&gamma), Arg::Float(0.0), t(&y), t(&rstd), t(&x)]);
    assert_eq!(d.read_floats(&x), [256.0, 0.0]);
    near(&d.read_floats(&rstd), &[std::f32::consts::SQRT_2 / 256.0], 1e-6);
    near(&d.read_floats(&y), &[std::f32::consts::SQRT_2, 0.0], 4e-3);
}

#[test]
fn layer_norm_worked_by_hand() {
    let d = Device::default();
    let x = d.floats(F32, &[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let (w, b) = (d.floats(F32, &[4], &[2.0; 4]), d.floats(F32, &[4], &[1.0; 4]));
    let out = d.empty(F32, &[1, 4]);
    let (mean, rstd) = (d.empty(F32, &[1, 1]), d.empty(F32, &[1, 1]));
    d.call(
        "LayerNorm",
        &[t(&x), ints(&[4]), t(&w), t(&b), Arg::Float(0.0), t(&out), t(&mean), t(&rstd)],
    );
    let s = 1.25f32.sqrt();
    near(&d.read_floats(&out), &[1.0 - 3.0 / s, 1.0 - 1.0 / s, 1.0 + 1.0 / s, 1.0 + 3.0 / s], 1e-6);
    assert_eq!(d.read_floats(&mean), [2.5]);
    near(&d.read_floats(&rstd), &[1.0 / s], 1e-6);
    let args = [t(&x), ints(&[3]), null(), null(), Arg::Float(0.0), t(&out), null(), null()];
    refused("LayerNorm", &args, 161_002, "normalizedShape: [3]");
}

#[test]
fn bad_norms_are_refused() {
    let d = Device::default();
    let x = d.floats(F16, &[2, 4], &[0.0; 8]);
    let gamma = d.floats(F16, &[4], &[0.0; 4]);
    let rstd = d.empty(F32, &[2, 1]);
    let args =
        |gamma: &Tensor, y: &Tensor, rstd: Arg| [t(&x), t(gamma), Arg::Float(1e-6), t(y), rstd];
    refused("RmsNorm", &args(&gamma, &x, null()), 161_001, "rstdOut: null");
    refused(
        "RmsNorm",
        &args(&gamma, &x, t(&d.empty(F16, &[2, 1]))),
        161_002,
        "rstdOut: dtype FLOAT16",
    );
    refused(
        "RmsNorm",
        &args(&gamma, &x, t(&d.empty(F32, &[2]))),
        161_002,
        "rstdOut: shape [2], expected [2, 1]",
    );
    refused("RmsNorm", &args(&d.empty(F16, &[3]), &x, t(&rstd)), 161_002, "gamma: shape [3]");
    refused("RmsNorm", &args(&d.empty(BF16, &[4]), &x, t(&rstd)), 161_002, "gamma: dtype BFLOAT16");
    refused(
        "RmsNorm",
        &args(&gamma, &d.empty(F32, &[2, 4]), t(&rstd)),
        161_002,
        "yOut: dtype FLOAT",
    );
    let other = d.empty(F16, &[2, 3]);
    let args = [t(&x), t(&other), t(&gamma), Arg::Float(0.0), t(&x), t(&rstd), t(&x)];
    refused("AddRmsNorm", &args, 161_002, "x2: shape [2, 3], expected [2, 4]");
}
