//! Ops that are parts or fusions of others: against plain loops in f64, and against what they are made of.

use halyard_cpu::CpuDevice;
use halyard_sdk::{
    DType, Role, Scheme, TensorView, Weight, WeightDesc,
    abi::{
        fp8,
        ops::attrs::{
            ActMul, BatchedLinear, GroupedLinear, Linear, LinearActMul, MoeExperts, MoePermute,
            MoeUnpermute, QuantAct, RmsNorm, RmsNormQuant,
        },
    },
};

use crate::harness::{
    assert_near, create, dense, every_device, fill_parts, floats, ints, matrix, numbers, run,
    times, view, wide, written,
};
use crate::noise::noise;

const NONE: TensorView = TensorView::NONE;

#[test]
fn each_group_of_a_batched_linear_has_its_matrix() {
    let (groups, n, k) = (5, 21, 40);
    let desc = WeightDesc {
        role: Role::BATCHED.0,
        ..WeightDesc::experts(Scheme::DENSE, DType::F32, groups as u32, n as u64, k as u64)
    };
    let values = numbers(1, groups * n * k);
    for device in every_device() {
        let w = dense(&device, &desc, &values);
        // Few tokens, and more than threads share by groups.
        for tokens in [0, 1, 3, 70] {
            let x = numbers(2, tokens * groups * k);
            let y = vec![f32::NAN; tokens * groups * n];
            let views = [floats(&x, &[tokens, groups, k]), floats(&y, &[tokens, groups, n])];
            run(&device, &BatchedLinear {}, &views, &[(desc, w)]).unwrap();
            let want: Vec<f64> = (0..tokens * groups)
                .flat_map(|i| {
                    let w = &values[i % groups * n * k..][..n * k];
                    times(&wide(w), &wide(&x[i * k..][..k]))
                })
                .collect();
            assert_near(&y, &want, &format!("{tokens} tokens"));
        }
    }
}

/// A mixture of experts, and its parts run one after the other.
struct Mixture {
    tokens: usize,
    top: usize,
    h: usize,
    inner: usize,
    experts: usize,
    start: i64,
    x: Vec<f32>,
    ids: Vec<i32>,
    weight: Vec<f32>,
}

impl Mixture {
    fn new(tokens: usize) -> Self {
        let (top, h, inner, experts, start) = (3, 40, 24, 4, 2);
        // Some ids are negative, some before the slice, some after it.
        let ids = noise(3, tokens * top).iter().map(|b| i32::from(b % 9) - 1).collect();
        let (x, weight) = (numbers(4, tokens * h), numbers(5, tokens * top));
        Self { tokens, top, h, inner, experts, start, x, ids, weight }
    }

    fn descs(&self) -> [WeightDesc<'static>; 2] {
        let [h, inner] = [self.h as u64, self.inner as u64];
        let desc = |n, k| WeightDesc::experts(Scheme::DENSE, DType::F32, self.experts as u32, n, k);
        [desc(2 * inner, h), desc(h, inner)]
    }

    fn weights(&self, device: &CpuDevice) -> [(WeightDesc<'static>, Weight); 2] {
        self.descs().map(|desc| {
            let values = numbers(desc.n, (u64::from(desc.groups) * desc.n * desc.k) as usize);
            (desc, dense(device, &desc, &values))
        })
    }

    fn permute(&self, device: &CpuDevice) -> (Vec<f32>, Vec<i32>, Vec<i32>) {
        let pairs = self.tokens * self.top;
        let xp = vec![f32::NAN; pairs * self.h];
        let (offsets, inverse) = (vec![-7; self.experts + 1], vec![-7; pairs]);
        let views = [
            matrix(&self.x, self.h),
            ints(&self.ids, &[self.tokens, self.top]),
            floats(&xp, &[pairs, self.h]),
            ints(&offsets, &[self.experts + 1]),
            ints(&inverse, &[self.tokens, self.top]),
        ];
        run(device, &MoePermute { expert_start: self.start }, &views, &[]).unwrap();
        (xp, offsets, inverse)
    }

    /// The trio, with ACT_MUL between.
    fn in_parts(&self, device: &CpuDevice, act_quant: i64, add: &[f32]) -> Vec<f32> {
        let (xp, offsets, inverse) = self.permute(device);
        let [up, down] = self.weights(device);
        let pairs = self.tokens * self.top;
        let offsets = ints(&offsets, &[self.experts + 1]);
        let rows = |cols: usize| vec![f32::NAN; pairs * cols];
        let (gate_up, gated, yp) = (rows(2 * self.inner), rows(self.inner), rows(self.h));
        let [xp, gu, g, yp] = [
            floats(&xp, &[pairs, self.h]),
            floats(&gate_up, &[pairs, 2 * self.inner]),
            floats(&gated, &[pairs, self.inner]),
            floats(&yp, &[pairs, self.h]),
        ];
        run(device, &GroupedLinear { act_quant }, &[xp, offsets, gu], &[up]).unwrap();
        run(device, &ActMul::default(), &[gu, g], &[]).unwrap();
        run(device, &GroupedLinear { act_quant }, &[g, offsets, yp], &[down]).unwrap();
        let y = vec![f32::NAN; self.tokens * self.h];
        let inverse = ints(&inverse, &[self.tokens, self.top]);
        let views = [yp, inverse, self.weight_view(), matrix(&y, self.h), matrix(add, self.h)];
        run(device, &MoeUnpermute {}, &views, &[]).unwrap();
        y
    }

    fn weight_view(&self) -> TensorView {
        floats(&self.weight, &[self.tokens, self.top])
    }

    fn fused(&self, device: &CpuDevice, act_quant: i64, add: &[f32]) -> Vec<f32> {
        let y = vec![f32::NAN; self.tokens * self.h];
        let views = [
            matrix(&self.x, self.h),
            ints(&self.ids, &[self.tokens, self.top]),
            self.weight_view(),
            matrix(&y, self.h),
            matrix(add, self.h),
        ];
        let attrs = MoeExperts { expert_start: self.start, act_quant, ..Default::default() };
        run(device, &attrs, &views, &self.weights(device)).unwrap();
        y
    }
}

#[test]
fn pairs_are_sorted_by_expert_then_token() {
    for device in every_device() {
        for tokens in [0, 1, 50] {
            let m = Mixture::new(tokens);
            let (xp, offsets, inverse) = m.permute(&device);
            let local = |&pair: &usize| i64::from(m.ids[pair]) - m.start;
            let here =
                |pair: &usize| m.ids[*pair] >= 0 && (0..m.experts as i64).contains(&local(pair));
            let mut order: Vec<usize> = (0..tokens * m.top).filter(here).collect();
            order.sort_by_key(|pair| local(pair));
            for (e, &offset) in offsets.iter().enumerate() {
                let before = order.iter().filter(|pair| local(pair) < e as i64).count();
                assert_eq!(i64::from(offset), before as i64);
            }
            let mut places = vec![-1; tokens * m.top];
            let mut rows = vec![0.0; tokens * m.top * m.h];
            for (p, &pair) in order.iter().enumerate() {
                places[pair] = p as i32;
                rows[p * m.h..][..m.h].copy_from_slice(&m.x[pair / m.top * m.h..][..m.h]);
            }
            assert_eq!((inverse, xp), (places, rows));
        }
    }
}

#[test]
fn experts_are_what_their_parts_make() {
    for device in every_device() {
        for (tokens, act_quant) in [(1, 0), (50, 0), (50, 1), (50, 2)] {
            let m = Mixture::new(tokens);
            let add = numbers(8, tokens * m.h);
            // The same arithmetic on the same rows.
            assert_eq!(m.fused(&device, act_quant, &add), m.in_parts(&device, act_quant, &add));
        }
    }
}

#[test]
fn numbers_of_rows_that_are_none_are_refused() {
    let device = crate::harness::device();
    let m = Mixture::new(2);
    let [up, _] = m.weights(&device);
    let (x, y) = (numbers(1, 6 * m.h), vec![7.0; 6 * 2 * m.inner]);
    for bad in [[1, 1, 2, 3, 6], [0, 3, 2, 4, 6], [0, 1, 2, 3, 7], [0, -1, 2, 3, 6]] {
        let views = [matrix(&x, m.h), ints(&bad, &[5]), matrix(&y, 2 * m.inner)];
        let error = run(&device, &GroupedLinear { act_quant: 0 }, &views, &[up]).unwrap_err();
        assert!(error.message.contains("expected to rise from 0"), "{}", error.message);
    }
    assert!(y.iter().all(|&y| y == 7.0));
    let y = vec![7.0; 2 * m.h];
    let (weight, inverse) = ([1.0; 6], [0, 1, 2, 3, 4, 6]);
    let views =
        [matrix(&x, m.h), ints(&inverse, &[2, 3]), floats(&weight, &[2, 3]), matrix(&y, m.h)];
    let error = run(&device, &MoeUnpermute {}, &views, &[]).unwrap_err();
    assert!(error.message.contains("inverse is 6"), "{}", error.message);
    assert!(y.iter().all(|&y| y == 7.0));
}

/// Codes and scales of rows of `k`, straight from the definition.
fn quantised(mode: i64, x: &[f32], k: usize) -> (Vec<u8>, Vec<f32>) {
    let (group, largest) = if mode == 1 { (k, 127.0) } else { (128, 448.0) };
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(k).flat_map(|row| row.chunks(group)) {
        let amax = x.iter().fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
        let scale = if amax == 0.0 { 1.0 } else { (amax / largest) as f32 };
        codes.extend(x.iter().map(|&x| {
            let quotient = f64::from(x) / f64::from(scale);
            match mode {
                1 => (quotient.round_ties_even() as i8).cast_unsigned(),
                _ => fp8::e4m3_from_f64(quotient),
            }
        }));
        scales.push(scale);
    }
    (codes, scales)
}

fn code_type(mode: i64) -> DType {
    if mode == 1 { DType::I8 } else { DType::F8E4M3 }
}

/// Rows to quantise: one of zeros, one of very small numbers, ties.
fn to_quantise(tokens: usize, k: usize) -> Vec<f32> {
    let mut x = numbers(6, tokens * k);
    x[k..2 * k].fill(0.0);
    x[2 * k..3 * k].iter_mut().for_each(|x| *x *= 1e-30);
    x[3 * k..4 * k].iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 - 20.0) / 2.0);
    x[3 * k] = 127.0;
    x
}

#[test]
fn activations_get_the_nearest_codes() {
    let tokens = 7;
    for device in every_device() {
        for (mode, k) in [(1, 130), (1, 16), (2, 130), (2, 256), (2, 37)] {
            let x = to_quantise(tokens, k);
            let scales = if mode == 1 { 1 } else { k.div_ceil(128) };
            let (q, scale) = (vec![0x55u8; tokens * k], vec![f32::NAN; tokens * scales]);
            let views = [
                matrix(&x, k),
                view(&q, code_type(mode), &[tokens, k]),
                floats(&scale, &[tokens, scales]),
            ];
            run(&device, &QuantAct { mode }, &views, &[]).unwrap();
            assert_eq!((q, scale), quantised(mode, &x, k), "mode {mode}, {k} columns");
        }
    }
}

#[test]
fn a_nan_spoils_its_group_only() {
    let k = 256;
    let mut x = numbers(7, 2 * k);
    x[5] = f32::NAN;
    x[k + 200] = f32::INFINITY;
    for device in every_device() {
        let (q, scale) = (vec![0x55u8; 2 * k], vec![0.0; 4]);
        let views = [matrix(&x, k), view(&q, DType::F8E4M3, &[2, k]), floats(&scale, &[2, 2])];
        run(&device, &QuantAct { mode: 2 }, &views, &[]).unwrap();
        let scale = written(scale);
        assert!(scale[0].is_nan() && scale[1].is_finite());
        assert!(scale[2].is_finite() && scale[3].is_infinite());
        let scale = vec![0.0; 2];
        let views = [matrix(&x, k), view(&q, DType::I8, &[2, k]), floats(&scale, &[2, 1])];
        run(&device, &QuantAct { mode: 1 }, &views, &[]).unwrap();
        let (q, scale) = written((q, scale));
        assert!(scale[0].is_nan() && scale[1].is_infinite());
        assert!(q[..k].iter().all(|&q| q == 0));
    }
}

#[test]
fn wrong_types_of_codes_and_numbers_of_scales_are_refused() {
    let device = crate::harness::device();
    let (x, q, scale) = (numbers(1, 200), vec![0u8; 200], [0.0; 2]);
    let views = |dtype, scales: usize| {
        [matrix(&x, 200), view(&q, dtype, &[1, 200]), floats(&scale[..scales], &[1, scales])]
    };
    for (mode, dtype, scales) in [
        (1, DType::F8E4M3, 1),
        (1, DType::I8, 2),
        (2, DType::I8, 2),
        (2, DType::F8E4M3, 1),
        (3, DType::I8, 1),
    ] {
        assert!(run(&device, &QuantAct { mode }, &views(dtype, scales), &[]).is_err());
    }
    run(&device, &QuantAct { mode: 2 }, &views(DType::F8E4M3, 2), &[]).unwrap();
}

#[test]
fn a_norm_with_codes_is_a_norm_then_codes() {
    let (tokens, k) = (5, 150);
    let gamma = numbers(2, k);
    for device in every_device() {
        for mode in [1, 2] {
            let x = numbers(1, tokens * k);
            let residual = numbers(3, tokens * k);
            let (r, normed) = (residual.clone(), vec![f32::NAN; tokens * k]);
            let attrs = RmsNorm { eps: 1e-5, plus_one: true };
            let gamma = floats(&gamma, &[k]);
            let views = [matrix(&x, k), gamma, matrix(&normed, k), matrix(&r, k)];
            run(&device, &attrs, &views, &[]).unwrap();
            let scales = if mode == 1 { 1 } else { 2 };
            let (q, scale) = (vec![0u8; tokens * k], vec![f32::NAN; tokens * scales]);
            let fused_r = residual.clone();
            let views = [
                matrix(&x, k),
                gamma,
                view(&q, code_type(mode), &[tokens, k]),
                floats(&scale, &[tokens, scales]),
                matrix(&fused_r, k),
            ];
            run(&device, &RmsNormQuant { eps: 1e-5, plus_one: true, mode }, &views, &[]).unwrap();
            assert_eq!((q, scale), quantised(mode, &normed, k));
            assert_eq!(r, fused_r);
        }
    }
}

/// Weights of three schemes with their exact values.
fn weights(device: &CpuDevice, n: usize, k: usize) -> Vec<(WeightDesc<'static>, Weight, Vec<f64>)> {
    let desc = |scheme| WeightDesc::linear(scheme, DType::F32, n as u64, k as u64);
    let values = numbers(20, n * k);
    let plain = desc(Scheme::DENSE);
    let mut all = vec![(plain, dense(device, &plain, &values), wide(&values))];
    let (codes, scales) = (noise(21, n * k), numbers(22, n * k / 32));
    let int8 = desc(Scheme::INT8_CHANNEL);
    let w = create(device, &int8).weight;
    let parts = [view(&codes, DType::I8, &[n, k]), floats(&scales[..n], &[n])];
    fill_parts(device, w, (0, 0, n), &parts).unwrap();
    let exact = |i: usize| f64::from(codes[i].cast_signed()) * f64::from(scales[i / k]);
    all.push((int8, w, (0..n * k).map(exact).collect()));
    let int4 = WeightDesc { group_size: 32, ..desc(Scheme::INT4_GROUP) };
    let w = create(device, &int4).weight;
    let parts = [view(&codes, DType::U4, &[n, k]), floats(&scales, &[n, k / 32])];
    fill_parts(device, w, (0, 0, n), &parts).unwrap();
    let exact = |i: usize| {
        let code = (codes[i / 2] >> (4 * (i % 2))) & 15;
        (f64::from(code) - 8.0) * f64::from(scales[i / 32])
    };
    all.push((int4, w, (0..n * k).map(exact).collect()));
    for (_, w, _) in &all[1..] {
        halyard_sdk::Device::weight_seal(device, halyard_sdk::Stream::NONE, *w).unwrap();
    }
    all
}

#[test]
fn linear_layers_multiply_what_quantising_leaves() {
    let (tokens, n, k) = (7, 37, 160);
    let x = to_quantise(tokens, k);
    for device in every_device() {
        for (desc, w, exact) in weights(&device, n, k) {
            for mode in [1, 2] {
                let (codes, scales) = quantised(mode, &x, k);
                let per_row = scales.len() / tokens;
                let values: Vec<f64> = (0..tokens * k)
                    .map(|i| {
                        let scale =
                            scales[i / k * per_row + i % k / if mode == 1 { k } else { 128 }];
                        let value = match mode {
                            1 => f64::from(codes[i].cast_signed()),
                            _ => f64::from(fp8::e4m3_to_f32(codes[i])),
                        };
                        value * f64::from(scale)
                    })
                    .collect();
                let y = vec![f32::NAN; tokens * n];
                let views = [matrix(&x, k), NONE, matrix(&y, n)];
                let attrs = Linear { act_quant: mode, ..Default::default() };
                run(&device, &attrs, &views, &[(desc, w)]).unwrap();
                for (t, y) in y.chunks_exact(n).enumerate() {
                    let want = times(&exact, &values[t * k..][..k]);
                    assert_near(y, &want, &format!("{} mode {mode} token {t}", desc.scheme));
                }
            }
        }
    }
}

#[test]
fn a_gated_linear_is_a_linear_and_a_gate() {
    let (tokens, inner, k) = (9, 21, 64);
    let x = numbers(1, tokens * k);
    let bias = numbers(2, 2 * inner);
    for device in every_device() {
        for (desc, w, _) in weights(&device, 2 * inner, k) {
            for act_quant in [0, 1] {
                let (gu, y) = (vec![f32::NAN; tokens * 2 * inner], vec![f32::NAN; tokens * inner]);
                let bias = floats(&bias, &[2 * inner]);
                let views = [matrix(&x, k), bias, matrix(&gu, 2 * inner)];
                let attrs = Linear { act_quant, ..Default::default() };
                run(&device, &attrs, &views, &[(desc, w)]).unwrap();
                let gate = ActMul { limit: 0.5, ..Default::default() };
                run(&device, &gate, &[matrix(&gu, 2 * inner), matrix(&y, inner)], &[]).unwrap();
                let fused = vec![f32::NAN; tokens * inner];
                let views = [matrix(&x, k), bias, matrix(&fused, inner)];
                let attrs = LinearActMul { limit: 0.5, act_quant, ..Default::default() };
                run(&device, &attrs, &views, &[(desc, w)]).unwrap();
                assert_eq!(y, fused, "{}", desc.scheme);
            }
        }
    }
}
