//! Ops on the paged cache and around attention, through the traits that a host calls.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes of small tests"
)]
#![expect(clippy::float_cmp, reason = "equal bits, or infinities")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use halyard_cpu::{Cpu, CpuDevice};
use halyard_sdk::{
    Backend, DType, Device, KvDesc, LaunchArgs, Options, Plan, Stream, TensorSpec, TensorView,
    abi::{
        RSlice, fp8,
        ops::{OpBuf, attrs},
        types::{KV_MLA, KV_STANDARD},
    },
};

fn device() -> CpuDevice {
    Cpu::open(0, Options::new(vec![("threads".into(), "2".into())])).unwrap()
}

/// A tensor in memory of its own.
struct Owned {
    spec: TensorSpec,
    bytes: Vec<u64>,
}

impl Owned {
    fn of<T: Copy>(dtype: DType, dims: &[i64], numbers: &[T]) -> Self {
        let size = size_of_val(numbers);
        let mut bytes = vec![0u64; size / 8 + 1];
        // SAFETY: plain numbers into memory that is large enough.
        unsafe {
            std::ptr::copy_nonoverlapping(
                numbers.as_ptr().cast(),
                bytes.as_mut_ptr().cast::<u8>(),
                size,
            );
        };
        Self { spec: TensorSpec::new(dtype, dims), bytes }
    }

    fn floats(dims: &[i64], f: impl Fn(usize) -> f32) -> Self {
        let n = dims.iter().product::<i64>() as usize;
        Self::of(DType::F32, dims, &(0..n).map(f).collect::<Vec<f32>>())
    }

    fn nothing(dims: &[i64]) -> Self {
        Self::floats(dims, |_| f32::NAN)
    }

    fn read(&self) -> Vec<f32> {
        let n = self.spec.dims().iter().product::<i64>() as usize;
        // SAFETY: a tensor of f32.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), n) }.to_vec()
    }
}

/// A cache of two planes.
fn caches(device: &CpuDevice, kv: &KvDesc<'_>, blocks: i64) -> [Owned; 2] {
    let layout = device.kv_layout(kv).unwrap();
    let plane = |block_bytes: u64, dim: u32| {
        let dims = [blocks, i64::from(kv.block_size), i64::from(kv.heads), i64::from(dim)];
        let spec = TensorSpec::new(kv.dtype, &dims).opaque();
        Owned { spec, bytes: vec![u64::MAX; (block_bytes * blocks as u64) as usize / 8 + 1] }
    };
    [plane(layout.block_bytes[0], kv.dim_k), plane(layout.block_bytes[1], kv.dim_v)]
}

/// The plane in slots without heads.
fn headless(x: &Owned) -> TensorSpec {
    let dims = x.spec.dims();
    TensorSpec::new(x.spec.dtype, &[dims[0], dims[1], dims[3]]).opaque()
}

type Slot<'a> = Option<(TensorSpec, &'a Owned)>;

fn plain(x: &Owned) -> Slot<'_> {
    Some((x.spec, x))
}

fn launch(device: &CpuDevice, attrs: &impl attrs::OpAttrs, slots: &[Slot<'_>]) {
    let specs = slots.iter().map(|s| s.map_or(TensorSpec::NONE, |(spec, _)| spec));
    let op = OpBuf::new(attrs, specs.collect::<Vec<_>>(), []);
    let kernel = device.prepare(&op.desc()).unwrap();
    let view = |s: &Slot<'_>| {
        s.map_or(TensorView::NONE, |(spec, x)| {
            TensorView::contiguous(x.bytes.as_ptr() as u64, 0, &spec)
        })
    };
    // A descriptor ends with the last slot that is there.
    let views: Vec<_> = slots.iter().map(view).take(op.tensors().len()).collect();
    let shapes: Vec<_> = views.iter().map(TensorView::spec).collect();
    let bytes = kernel.workspace_bytes(&shapes);
    let workspace = vec![0u64; bytes as usize / 8 + 16];
    let args = LaunchArgs {
        plan: Plan::NONE,
        workspace: (workspace.as_ptr() as u64).next_multiple_of(64),
        workspace_bytes: bytes,
        tensors: RSlice::from_slice(&views),
        weights: RSlice::EMPTY,
        scalars: RSlice::EMPTY,
        host: RSlice::EMPTY,
    };
    kernel.launch(Stream::NONE, &args).unwrap();
}

fn ints(numbers: &[i32]) -> Owned {
    Owned::of(DType::I32, &[numbers.len() as i64], numbers)
}

fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!((a - b).abs() <= 1e-5 + 1e-5 * b.abs() || a == b, "[{i}] {a}, want {b}");
    }
}

/// Small whole numbers, which every cell type holds, also divided by a scale of a half or a quarter.
fn whole(i: usize) -> f32 {
    ((i * 7 + 3) % 16) as f32 - 8.0
}

fn standard(dtype: DType, block_size: u32) -> KvDesc<'static> {
    KvDesc {
        kind: KV_STANDARD,
        dtype,
        heads: 2,
        dim_k: 24,
        dim_v: 20,
        block_size,
        attrs: RSlice::EMPTY,
    }
}

#[test]
fn what_was_written_is_gathered_also_from_copied_blocks() {
    let device = device();
    for dtype in [DType::F32, DType::BF16, DType::I8, DType::F8E4M3] {
        for block in [4, 16] {
            let [k_cache, v_cache] = caches(&device, &standard(dtype, block), 4);
            let scaled = matches!(dtype, DType::I8 | DType::F8E4M3);
            let scales = [
                Owned::of(DType::F32, &[2], &[0.5f32, 0.25]),
                Owned::of(DType::F32, &[2], &[1.0f32, 0.25]),
            ];
            let [k_scale, v_scale] = [&scales[0], &scales[1]].map(|s| plain(s).filter(|_| scaled));
            let (k, v) =
                (Owned::floats(&[5, 2, 24], whole), Owned::floats(&[5, 2, 20], |i| whole(i + 5)));
            // Tokens 0 to 3 in block 2, token 4 skipped.
            let slots = Owned::of(
                DType::I64,
                &[5],
                &[2, 3, 0, 1, -1].map(|s: i64| if s < 0 { s } else { 2 * i64::from(block) + s }),
            );
            let slots = [
                plain(&k),
                plain(&v),
                plain(&slots),
                plain(&k_cache),
                plain(&v_cache),
                k_scale,
                v_scale,
            ];
            launch(&device, &attrs::KvWrite {}, &slots);
            let pairs = Owned::of(DType::I32, &[2, 2], &[2i32, 1, -1, 0]);
            launch(
                &device,
                &attrs::KvCopyBlocks::default(),
                &[plain(&k_cache), plain(&v_cache), plain(&pairs)],
            );
            let table = Owned::of(DType::I32, &[3, 1], &[1i32, -1, 2]);
            let cu_k = ints(&[0, 3, 3, 4]);
            let (k_out, v_out) = (Owned::nothing(&[5, 2, 24]), Owned::nothing(&[5, 2, 20]));
            let slots = [
                plain(&k_cache),
                plain(&v_cache),
                plain(&table),
                plain(&cu_k),
                plain(&k_out),
                plain(&v_out),
                k_scale,
                v_scale,
            ];
            launch(&device, &attrs::KvGather::default(), &slots);
            for (written, gathered, dim) in [(&k, &k_out, 24), (&v, &v_out, 20)] {
                let (written, gathered) = (written.read(), gathered.read());
                // Slots 0, 1, 2 of the block hold tokens 2, 3, 0.
                for (row, token) in [2, 3, 0, 2].into_iter().enumerate() {
                    let want = &written[token * 2 * dim..][..2 * dim];
                    assert_eq!(
                        &gathered[row * 2 * dim..][..2 * dim],
                        want,
                        "{dtype} {block} {row}"
                    );
                }
                assert!(gathered[4 * 2 * dim..].iter().all(|&x| x == 0.0));
            }
        }
    }
}

#[test]
fn latents_are_written_copied_gathered_and_attended_to() {
    let device = device();
    let desc = KvDesc { kind: KV_MLA, heads: 1, dim_k: 32, dim_v: 8, ..standard(DType::F32, 16) };
    let [c_cache, r_cache] = caches(&device, &desc, 3);
    let (c, r) = (Owned::floats(&[3, 32], whole), Owned::floats(&[3, 8], |i| whole(i + 1)));
    let slots = Owned::of(DType::I64, &[3], &[0i64, 1, 2]);
    let planes = [Some((headless(&c_cache), &c_cache)), Some((headless(&r_cache), &r_cache))];
    launch(
        &device,
        &attrs::MlaWrite {},
        &[plain(&c), plain(&r), plain(&slots), planes[0], planes[1]],
    );
    let pairs = Owned::of(DType::I32, &[1, 2], &[0i32, 2]);
    let latent = attrs::KvCopyBlocks { latent: true };
    launch(&device, &latent, &[plain(&c_cache), plain(&r_cache), plain(&pairs)]);
    let table = Owned::of(DType::I32, &[1, 1], &[2i32]);
    let (c_out, r_out) = (Owned::nothing(&[3, 1, 32]), Owned::nothing(&[3, 1, 8]));
    let cu_k = ints(&[0, 3]);
    let slots = [
        plain(&c_cache),
        plain(&r_cache),
        plain(&table),
        plain(&cu_k),
        plain(&c_out),
        plain(&r_out),
    ];
    launch(&device, &attrs::KvGather { latent: true }, &slots);
    assert_eq!((c_out.read(), r_out.read()), (c.read(), r.read()));
    // As plain attention with keys of both parts and values of the latents.
    let (qc, qr) = (
        Owned::floats(&[2, 4, 32], |i| whole(i) / 64.0),
        Owned::floats(&[2, 4, 8], |i| whole(i) / 32.0),
    );
    let (cu_q, kv_len) = (ints(&[0, 2]), ints(&[3]));
    let (o, lse) = (Owned::nothing(&[2, 4, 32]), Owned::nothing(&[2, 4]));
    let attend = attrs::MlaAttention { scale: 0.3, ..Default::default() };
    let slots = [
        plain(&qc),
        plain(&qr),
        planes[0],
        planes[1],
        plain(&table),
        plain(&cu_q),
        plain(&kv_len),
        plain(&o),
        plain(&lse),
    ];
    launch(&device, &attend, &slots);
    let join = |a: &Owned, b: &Owned, rows: usize| -> Vec<f32> {
        let (a, b) = (a.read(), b.read());
        let (n, m) = (a.len() / rows, b.len() / rows);
        (0..rows).flat_map(|i| [&a[i * n..][..n], &b[i * m..][..m]].concat()).collect()
    };
    let q = Owned::of(DType::F32, &[2, 4, 40], &join(&qc, &qr, 8));
    let k = Owned::of(DType::F32, &[3, 1, 40], &join(&c, &r, 3));
    let v = Owned::of(DType::F32, &[3, 1, 32], &c.read());
    let (want, want_lse) = (Owned::nothing(&[2, 4, 32]), Owned::nothing(&[2, 4]));
    let attend = attrs::VarlenAttention { scale: 0.3, ..Default::default() };
    let slots = [
        plain(&q),
        plain(&k),
        plain(&v),
        plain(&cu_q),
        plain(&cu_k),
        plain(&want),
        plain(&want_lse),
    ];
    launch(&device, &attend, &slots);
    close(&o.read(), &want.read());
    close(&lse.read(), &want_lse.read());
}

#[test]
fn attention_over_parts_merges_into_attention_over_all() {
    let device = device();
    let q = Owned::floats(&[2, 2, 16], |i| whole(i) / 16.0);
    let (k, v) = (Owned::floats(&[9, 1, 16], |i| whole(i * 3)), Owned::floats(&[9, 1, 20], whole));
    let cu_q = ints(&[0, 2]);
    let attend = |from: usize, to: usize| {
        let rows = |x: &Owned, dim: usize| {
            Owned::of(
                DType::F32,
                &[(to - from) as i64, 1, dim as i64],
                &x.read()[from * dim..to * dim],
            )
        };
        let (k, v, cu_k) = (rows(&k, 16), rows(&v, 20), ints(&[0, (to - from) as i32]));
        let (o, lse) = (Owned::nothing(&[2, 2, 20]), Owned::nothing(&[2, 2]));
        let rules = attrs::VarlenAttention { scale: 0.2, causal: false, ..Default::default() };
        launch(
            &device,
            &rules,
            &[plain(&q), plain(&k), plain(&v), plain(&cu_q), plain(&cu_k), plain(&o), plain(&lse)],
        );
        (o, lse)
    };
    let merge = |(o1, lse1): &(Owned, Owned), (o2, lse2): &(Owned, Owned)| {
        let (o, lse) = (Owned::nothing(&[2, 2, 20]), Owned::nothing(&[2, 2]));
        launch(
            &device,
            &attrs::MergeAttention {},
            &[plain(o1), plain(lse1), plain(o2), plain(lse2), plain(&o), plain(&lse)],
        );
        (o, lse)
    };
    let (whole, merged) = (attend(0, 9), merge(&attend(0, 4), &attend(4, 9)));
    close(&merged.0.read(), &whole.0.read());
    close(&merged.1.read(), &whole.1.read());
    let one = merge(&attend(0, 0), &whole);
    close(&one.0.read(), &whole.0.read());
    let none = merge(&attend(0, 0), &attend(3, 3));
    assert!(none.0.read().iter().all(|&x| x == 0.0));
    assert!(none.1.read().iter().all(|&x| x == f32::NEG_INFINITY));
}

#[test]
fn the_fusion_is_its_steps() {
    let device = device();
    let (tokens, width) = (3, 2 * 2 * 24 + 2 * 24 + 2 * 20);
    let desc = standard(DType::F32, 16);
    let qkv = Owned::floats(&[tokens, width], |i| whole(i) / 3.0);
    let row = |from: usize, n: usize, heads: i64| {
        let x = qkv.read();
        let of = |t: usize| x[t * width as usize + from..][..n].to_vec();
        Owned::of(
            DType::F32,
            &[tokens, heads, n as i64 / heads],
            &(0..3).flat_map(of).collect::<Vec<f32>>(),
        )
    };
    let (q, k, v) = (row(0, 96, 4), row(96, 48, 2), row(144, 40, 2));
    let gammas = [
        Owned::floats(&[24], |i| 1.0 + i as f32 / 50.0),
        Owned::floats(&[24], |i| 1.0 - i as f32 / 70.0),
    ];
    let (pos, slots) = (ints(&[4, -1, 2]), Owned::of(DType::I64, &[3], &[1i64, 0, 2]));
    let table = Owned::floats(&[6, 16], |i| (i as f32).sin());
    for interleaved in [false, true] {
        let [k_cache, v_cache] = caches(&device, &desc, 1);
        let [k_want, v_want] = caches(&device, &desc, 1);
        let got = Owned::nothing(&[tokens, 4, 24]);
        let fusion = attrs::QkvPost { eps: 1e-5, plus_one: false, interleaved, offset: 8 };
        launch(
            &device,
            &fusion,
            &[
                plain(&qkv),
                plain(&gammas[0]),
                plain(&gammas[1]),
                plain(&pos),
                plain(&table),
                plain(&slots),
                plain(&got),
                plain(&k_cache),
                plain(&v_cache),
            ],
        );
        let norm = attrs::RmsNorm { eps: 1e-5, plus_one: false };
        let (q_norm, k_norm) = (Owned::nothing(&[tokens, 4, 24]), Owned::nothing(&[tokens, 2, 24]));
        launch(&device, &norm, &[plain(&q), plain(&gammas[0]), plain(&q_norm)]);
        launch(&device, &norm, &[plain(&k), plain(&gammas[1]), plain(&k_norm)]);
        let rope = attrs::Rope { interleaved, offset: 8 };
        launch(&device, &rope, &[plain(&q_norm), plain(&k_norm), plain(&pos), plain(&table)]);
        launch(
            &device,
            &attrs::KvWrite {},
            &[plain(&k_norm), plain(&v), plain(&slots), plain(&k_want), plain(&v_want)],
        );
        assert_eq!(got.read(), q_norm.read());
        assert!(k_cache.bytes == k_want.bytes && v_cache.bytes == v_want.bytes);
    }
}

#[test]
fn floats_are_copied_to_8_bits_and_back() {
    let device = device();
    let x = Owned::of(DType::F32, &[5], &[1.0625f32, -500.0, 1e9, f32::NAN, -0.0]);
    for (dtype, code, value) in [
        (DType::F8E4M3, fp8::e4m3_from_f64 as fn(f64) -> u8, fp8::e4m3_to_f32 as fn(u8) -> f32),
        (DType::F8E5M2, fp8::e5m2_from_f64, fp8::e5m2_to_f32),
    ] {
        let (codes, back) = (Owned::of(dtype, &[5], &[0u8; 5]), Owned::nothing(&[5]));
        launch(&device, &attrs::Copy {}, &[plain(&x), plain(&codes)]);
        launch(&device, &attrs::Copy {}, &[plain(&codes), plain(&back)]);
        for (x, got) in x.read().into_iter().zip(back.read()) {
            let want = value(code(f64::from(x)));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x} {got}");
        }
    }
}
