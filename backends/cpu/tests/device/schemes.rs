//! Weights of several parts: how they are packed and what is refused.

use halyard_cpu::CpuDevice;
use halyard_sdk::{
    DType, Device, Scheme, Stream, TensorView, Weight, WeightDesc,
    abi::{
        fp8,
        ops::attrs,
        scheme::parts,
        types::{WEIGHT_PERM, WEIGHT_ZERO},
    },
};

use crate::harness::{
    assert_near, create, device, every_device, fill_parts, floats, matrix, numbers, run, times,
    view, wide,
};
use crate::noise::noise;

fn int4(n: usize, k: usize, group: u32, flags: u32) -> WeightDesc<'static> {
    let desc = WeightDesc::linear(Scheme::INT4_GROUP, DType::F32, n as u64, k as u64);
    WeightDesc { group_size: group, flags, ..desc }
}

/// Rows of an INT4_GROUP weight in canonical form.
struct Int4 {
    k: usize,
    groups: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    perm: Vec<i32>,
}

impl Int4 {
    fn new(n: usize, k: usize, groups: usize) -> Self {
        Self {
            k,
            groups,
            codes: noise(1, n * k / 2),
            scales: numbers(2, n * groups),
            zeros: noise(3, n * groups).iter().map(|z| z & 15).collect(),
            perm: (0..k as i32).map(|j| (j * 5 + 3) % k as i32).collect(),
        }
    }

    /// The parts of rows `start..end`.
    fn parts(&self, start: usize, end: usize) -> [TensorView; 4] {
        let (n, k, groups) = (end - start, self.k, self.groups);
        [
            view(&self.codes[start * k / 2..], DType::U4, &[n, k]),
            floats(&self.scales[start * groups..end * groups], &[n, groups]),
            view(&self.zeros[start * groups..], DType::U8, &[n, groups]),
            view(&self.perm, DType::I32, &[k]),
        ]
    }

    fn exact(&self) -> Vec<f64> {
        let group = self.k / self.groups;
        let mut exact = vec![0.0; self.codes.len() * 2];
        for (i, byte) in self.codes.iter().enumerate() {
            for (at, code) in [(2 * i, byte & 15), (2 * i + 1, byte >> 4)] {
                let (row, j) = (at / self.k, at % self.k);
                let g = row * self.groups + j / group;
                let column = usize::try_from(self.perm[j]).unwrap();
                exact[row * self.k + column] =
                    (f64::from(code) - f64::from(self.zeros[g])) * f64::from(self.scales[g]);
            }
        }
        exact
    }
}

/// `x Wᵀ` of a sealed linear weight.
fn products(device: &CpuDevice, desc: WeightDesc<'static>, w: Weight, x: &[f32]) -> Vec<f32> {
    let (n, k) = (desc.n as usize, desc.k as usize);
    let y = vec![f32::NAN; x.len() / k * n];
    let views = [matrix(x, k), TensorView::NONE, matrix(&y, n)];
    run(device, &attrs::Linear::default(), &views, &[(desc, w)]).unwrap();
    y
}

fn check(device: &CpuDevice, desc: WeightDesc<'static>, w: Weight, exact: &[f64]) {
    device.weight_seal(Stream::NONE, w).unwrap();
    let k = desc.k as usize;
    for tokens in [1, 5] {
        let x = numbers(9, tokens * k);
        let want: Vec<f64> = x.chunks_exact(k).flat_map(|x| times(exact, &wide(x))).collect();
        assert_near(&products(device, desc, w, &x), &want, &format!("{desc:?}"));
    }
}

#[test]
fn int4_rows_come_in_pieces_with_their_scales_zeros_and_order() {
    let (n, k, groups) = (45, 128, 4);
    let desc = int4(n, k, 32, WEIGHT_ZERO | WEIGHT_PERM);
    let rows = Int4::new(n, k, groups);
    for device in every_device() {
        let w = create(&device, &desc).weight;
        for (start, end) in [(30, 45), (0, 7), (7, 30)] {
            let at = (0, start as u64, end - start);
            fill_parts(&device, w, at, &rows.parts(start, end)).unwrap();
        }
        check(&device, desc, w, &rows.exact());
    }
}

#[test]
fn orders_that_are_none_or_change_are_refused() {
    let device = device();
    let desc = int4(2, 64, 64, WEIGHT_ZERO | WEIGHT_PERM);
    let w = create(&device, &desc).weight;
    let mut rows = Int4::new(2, 64, 1);
    let good = rows.perm.clone();
    let mut refused = |perm: Vec<i32>, why: &str| {
        rows.perm = perm;
        let error = fill_parts(&device, w, (0, 0, 1), &rows.parts(0, 1)).unwrap_err();
        assert!(error.message.contains(why), "{}", error.message);
    };
    refused(vec![1; 64], "no permutation of 0..64");
    refused((1..=64).collect(), "no permutation of 0..64");
    refused((-1..63).collect(), "no permutation of 0..64");
    rows.perm = good;
    fill_parts(&device, w, (0, 0, 1), &rows.parts(0, 1)).unwrap();
    rows.perm.swap(3, 9);
    let error = fill_parts(&device, w, (0, 1, 1), &rows.parts(1, 2)).unwrap_err();
    assert!(error.message.contains("differs"), "{}", error.message);
    // Rows of codes must begin with a byte.
    rows.perm.swap(3, 9);
    let mut parts = rows.parts(0, 2);
    parts[0].strides[0] = 65;
    let error = fill_parts(&device, w, (0, 0, 2), &parts).unwrap_err();
    assert!(error.message.contains("came twice"), "{}", error.message);
    let fresh = create(&device, &desc).weight;
    let error = fill_parts(&device, fresh, (0, 0, 2), &parts).unwrap_err();
    assert!(error.message.contains("begin with a byte"), "{}", error.message);
}

#[test]
fn fp8_blocks_have_ragged_edges() {
    let (n, k) = (300, 200);
    let desc = WeightDesc::linear(Scheme::FP8_BLOCK, DType::F32, n as u64, k as u64);
    let desc = WeightDesc { group_size: 128, ..desc };
    let codes: Vec<u8> = noise(4, n * k).iter().map(|c| c & 0xbf).collect();
    let scales = numbers(5, 3 * 2);
    let exact: Vec<f64> = (0..n * k)
        .map(|i| {
            let scale = scales[i / k / 128 * 2 + i % k / 128];
            f64::from(fp8::e4m3_to_f32(codes[i])) * f64::from(scale)
        })
        .collect();
    for device in every_device() {
        let w = create(&device, &desc).weight;
        for (start, end) in [(256, 300), (0usize, 256usize)] {
            let rows = end - start;
            let (first, blocks) = (start / 128, rows.div_ceil(128));
            let parts = [
                view(&codes[start * k..], DType::F8E4M3, &[rows, k]),
                floats(&scales[2 * first..2 * (first + blocks)], &[blocks, 2]),
            ];
            fill_parts(&device, w, (0, start as u64, rows), &parts).unwrap();
        }
        check(&device, desc, w, &exact);
    }
}

#[test]
fn a_scale_a_row_multiplies_that_row() {
    let (n, k) = (37, 77);
    let codes: Vec<u8> = noise(6, n * k).iter().map(|c| c & 0xbf).collect();
    let scales = numbers(7, n);
    for (scheme, dtype) in [(Scheme::INT8_CHANNEL, DType::I8), (Scheme::FP8_CHANNEL, DType::F8E4M3)]
    {
        let desc = WeightDesc::linear(scheme, DType::F32, n as u64, k as u64);
        let value = |code: u8| match dtype {
            DType::I8 => f64::from(code.cast_signed()),
            _ => f64::from(fp8::e4m3_to_f32(code)),
        };
        let exact: Vec<f64> =
            (0..n * k).map(|i| value(codes[i]) * f64::from(scales[i / k])).collect();
        for device in every_device() {
            let w = create(&device, &desc).weight;
            for (start, end) in [(20, 37), (0, 20)] {
                let rows = end - start;
                let parts = [
                    view(&codes[start * k..], dtype, &[rows, k]),
                    floats(&scales[start..end], &[rows]),
                ];
                fill_parts(&device, w, (0, start as u64, rows), &parts).unwrap();
            }
            check(&device, desc, w, &exact);
        }
    }
}

#[test]
fn packed_weights_stay_at_their_quantised_size() {
    let device = device();
    let (n, k) = (4096, 4096);
    for (scheme, group_size, flags) in [
        (Scheme::INT4_GROUP, 128, WEIGHT_ZERO | WEIGHT_PERM),
        (Scheme::INT4_GROUP, 4096, 0),
        (Scheme::INT8_CHANNEL, 0, 0),
        (Scheme::FP8_CHANNEL, 0, 0),
        // Here a scale of 128 rows is stored with each of them.
        (Scheme::FP8_BLOCK, 128, 0),
    ] {
        let desc = WeightDesc::linear(scheme, DType::F32, n, k);
        let desc = WeightDesc { group_size, flags, ..desc };
        let given: u64 = parts(&desc).unwrap().iter().map(|p| p.bytes(n).unwrap()).sum();
        let packed = device.weight_plan(&desc).unwrap().bytes;
        assert!(packed * 100 <= given * 104, "{scheme}: {packed} bytes of {given}");
    }
}
