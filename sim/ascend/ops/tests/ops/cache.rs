use crate::device::{BF16, Device, F16, I32, I64, near, null, numbers, plan, refused, t, text};
use halyard_sim_ascend_ops::{Arg, Tensor};

struct Case {
    key: Tensor,
    value: Tensor,
    slots: Tensor,
}

fn scatter(case: &Case, caches: [&Tensor; 2], mode: Arg) -> Vec<Arg> {
    let mut args = vec![t(&case.key), t(caches[0]), t(&case.slots), t(&case.value), t(caches[1])];
    args.extend([
        null(),
        null(),
        null(),
        mode,
        text("None"),
        Arg::IntArray(None),
        Arg::IntArray(None),
    ]);
    args
}

/// Two tokens with two heads, of 16 for keys and 32 for values.
fn case(d: &Device, slots: &[i64]) -> Case {
    Case {
        key: d.floats(F16, &[2, 2, 16], &numbers(64, 1)),
        value: d.floats(F16, &[2, 2, 32], &numbers(128, 2)),
        slots: d.ints(I32, &[2], slots),
    }
}

#[test]
fn slots_of_each_layout() {
    let (keys, slots) = (numbers(64, 1), [5, 2]);
    // Blocks of four slots: slot 5 is the second of the second block.
    for (mode, key_dims, value_dims) in [
        ("Norm", [2, 4, 2, 16], [2, 4, 2, 32]),
        ("NHSD", [2, 2, 4, 16], [2, 2, 4, 32]),
        ("PA_NZ", [2, 2, 4, 16], [2, 4, 4, 16]),
    ] {
        let d = Device::default();
        let c = case(&d, &slots);
        let k = d.floats(F16, &key_dims, &[9.0; 256]);
        let v = d.floats(F16, &value_dims, &[9.0; 512]);
        d.call("ScatterPaKvCache", &scatter(&c, [&k, &v], text(mode)));
        let stored = d.read_floats(&k);
        for (token, slot) in [5usize, 2].into_iter().enumerate() {
            for (head, i) in (0..32).map(|n| (n / 16, n % 16)) {
                let (block, row) = (slot / 4, slot % 4);
                let at = if mode == "Norm" {
                    (block * 4 + row) * 32 + head * 16
                } else {
                    (block * 2 + head) * 64 + row * 16
                };
                assert_eq!(
                    stored[at + i],
                    keys[token * 32 + head * 16 + i],
                    "{mode} {token} {head} {i}"
                );
            }
        }
        assert_eq!(stored.iter().filter(|v| **v == 9.0).count(), 256 - 64);
        if mode == "Norm" {
            assert_eq!(d.read_floats(&v)[5 * 64..6 * 64], numbers(128, 2)[..64]);
        }
    }
}

#[test]
fn slots_are_checked() {
    let d = Device::default();
    let [k, v] =
        [d.floats(F16, &[2, 4, 2, 16], &[0.0; 256]), d.floats(F16, &[2, 4, 2, 32], &[0.0; 512])];
    for (slots, words) in
        [([8, 0], "slotMapping: 8"), ([-1, 0], "slotMapping: -1"), ([3, 3], "3 twice")]
    {
        let call = plan("ScatterPaKvCache", &scatter(&case(&d, &slots), [&k, &v], Arg::Text(None)))
            .unwrap();
        assert!(call.workspace > 0);
        assert!(d.run(&call).unwrap_err().message.contains(words));
    }
    let c = case(&d, &[0, 1]);
    let short = Case { slots: d.ints(I32, &[1], &[0]), key: c.key.clone(), value: c.value.clone() };
    let odd = d.empty(F16, &[2, 4, 2, 8]);
    let wide = d.empty(BF16, &[2, 4, 2, 32]);
    let long = d.empty(F16, &[3, 4, 2, 32]);
    for (case, caches, mode, words) in [
        (&short, [&k, &v], "Norm", "slotMapping: 1 slots, expected 2"),
        (&c, [&odd, &v], "Norm", "keyCacheRef: shape [2, 4, 2, 8], expected [2, 4, 2, 16]"),
        (&c, [&k, &wide], "Norm", "valueCacheRef: dtype BFLOAT16"),
        (&c, [&k, &long], "Norm", "valueCacheRef: (3, 4) blocks"),
        (&c, [&k, &v], "BNSD", "cacheMode: \"BNSD\""),
    ] {
        refused("ScatterPaKvCache", &scatter(case, caches, text(mode)), 161_002, words);
    }
}

#[test]
fn pages_are_gathered() {
    let d = Device::default();
    let values: Vec<f32> = (0..96u8).map(f32::from).collect();
    let cache = d.floats(F16, &[3, 2, 1, 16], &values);
    let tables = d.ints(I32, &[2, 2], &[2, 0, 1, -7]);
    let out = d.empty(F16, &[4, 1, 16]);
    let call = |lens: &Tensor, offset: Arg, cumulative, mode: &str| {
        let mut args = vec![t(&cache), t(&cache), t(&tables), t(lens), t(&out), t(&out)];
        args.extend([offset, text(mode), Arg::Bool(cumulative)]);
        args
    };
    let rows = |d: &Device| -> Vec<f32> { d.read_floats(&out).chunks(16).map(|r| r[0]).collect() };
    d.call("GatherPaKvCache", &call(&d.ints(I32, &[2], &[3, 1]), null(), false, "Norm"));
    assert_eq!(rows(&d), [64.0, 80.0, 0.0, 32.0]);
    let offset = t(&d.ints(I32, &[2], &[1, 0]));
    d.call("GatherPaKvCache", &call(&d.ints(I32, &[3], &[0, 2, 4]), offset, true, "Norm"));
    assert_eq!(rows(&d), [80.0, 0.0, 32.0, 48.0]);
    refused(
        "GatherPaKvCache",
        &call(&d.ints(I64, &[2], &[3, 1]), null(), false, "Norm"),
        161_002,
        "seqLens: dtype INT64",
    );
    refused(
        "GatherPaKvCache",
        &call(&d.ints(I32, &[2], &[3, 1]), null(), true, "Norm"),
        161_002,
        "seqLens: shape [2], expected [3]",
    );
    refused(
        "GatherPaKvCache",
        &call(&d.ints(I32, &[2], &[3, 1]), null(), false, ""),
        161_002,
        "cacheMode: \"\"",
    );
}

#[test]
fn latents_are_normed_and_rotated_into_pages() {
    let d = Device::default();
    let kv = numbers(2 * 576, 4);
    let x = d.floats(BF16, &[2, 1, 1, 576], &kv);
    let gamma = d.floats(BF16, &[512], &[1.0; 512]);
    let (one, zero) =
        (d.floats(BF16, &[2, 1, 1, 64], &[1.0; 128]), d.floats(BF16, &[2, 1, 1, 64], &[0.0; 128]));
    let index = d.ints(I64, &[2], &[3, -1]);
    let (k, ckv) = (
        d.floats(BF16, &[2, 2, 1, 64], &[9.0; 256]),
        d.floats(BF16, &[2, 2, 1, 512], &[9.0; 2048]),
    );
    let [k_out, c_out] = [d.empty(BF16, &[2, 1, 1, 64]), d.empty(BF16, &[2, 1, 1, 512])];
    let args = |index: &Tensor, mode: &str| {
        let mut args = vec![t(&x), t(&gamma), t(&one), t(&zero), t(index), t(&k), t(&ckv)];
        args.extend([
            null(),
            null(),
            null(),
            null(),
            Arg::Float(1e-6),
            text(mode),
            Arg::Bool(true),
        ]);
        args.extend([t(&k_out), t(&c_out)]);
        args
    };
    d.call("KvRmsNormRopeCache", &args(&index, "PA"));
    let rms = (kv[..512].iter().map(|v| v * v).sum::<f32>() / 512.0).sqrt();
    let normed: Vec<f32> = kv[..512].iter().map(|v| v / rms).collect();
    let sorted: Vec<f32> = (0..64).map(|i| kv[512 + 2 * (i % 32) + i / 32]).collect();
    near(&d.read_floats(&ckv)[3 * 512..], &normed, 5e-3);
    near(&d.read_floats(&k)[3 * 64..], &sorted, 1e-6);
    assert!(
        d.read_floats(&ckv)[..3 * 512].iter().all(|v| *v == 9.0),
        "the second token has no slot"
    );
    near(&d.read_floats(&k_out)[..64], &sorted, 1e-6);
    let slots = d.ints(I32, &[2], &[3, -1]);
    refused(
        "KvRmsNormRopeCache",
        &args(&slots, "PA"),
        161_002,
        "index: dtype INT32, expected INT64",
    );
    refused(
        "KvRmsNormRopeCache",
        &args(&index, "PA_BLK_BNSD"),
        161_002,
        "cacheMode: \"PA_BLK_BNSD\"",
    );
}
