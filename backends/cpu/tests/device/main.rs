//! The device as a host sees it: options, weights that come in pieces, and what it refuses.
#![expect(clippy::cast_possible_truncation, reason = "sizes of small tests")]
#![expect(clippy::float_cmp, reason = "equal bits are what is promised")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod harness;
mod noise;
mod ops;
mod schemes;

use halyard_sdk::{
    AllocReq, Code, DType, Device, KvDesc, PropKey, Scheme, Stream, Support, TensorSpec,
    TensorView, Weight, WeightDesc,
    abi::{
        RSlice,
        ops::{OpBuf, attrs},
        types::{KV_MLA, KV_STANDARD, mem},
    },
};

use harness::{create, device, fill, launch, linear, matrix, open, product};

/// Rows of Q8_0 with scale 1/16 and codes that differ from row to row.
fn q8_rows(n: usize, k: usize) -> Vec<u8> {
    let mut rows = Vec::new();
    for i in 0..n * k / 32 {
        rows.extend([0x00, 0x2c]);
        rows.extend((0..32).map(|j| ((i * 7 + j * 3) % 251) as u8));
    }
    rows
}

#[test]
fn options_are_checked() {
    assert_eq!(device().property(PropKey::COMPUTE_UNITS), Some(2));
    assert_eq!(device().property(PropKey::INLINE), Some(1));
    for bad in [("threads", "0"), ("threads", "many"), ("threads", "100000"), ("colour", "red")] {
        let error = open(&[bad]).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ARGUMENT, "{bad:?}");
        assert!(error.message.contains(bad.0), "{}", error.message);
    }
    let error = open(&[("isa", "sse9")]).unwrap_err();
    assert!(error.message.contains("sse9") && error.message.contains("portable"));
    open(&[("isa", "portable"), ("threads", "1")]).unwrap();
}

#[test]
fn a_weight_may_come_in_pieces_of_any_size_and_order() {
    let (n, k) = (77, 64);
    let device = device();
    let rows = q8_rows(n, k);
    let bytes = rows.len() / n;
    let desc = WeightDesc::linear(Scheme::GGUF_Q8_0, DType::NONE, n as u64, k as u64);
    let op = linear(Scheme::GGUF_Q8_0, DType::NONE, n as u64, k as u64);
    let x: Vec<f32> = (0..3 * k).map(|i| (i % 13) as f32 - 6.0).collect();
    let whole = create(&device, &desc);
    fill(&device, whole.weight, (0, 0), DType::U8, &rows, bytes).unwrap();
    device.weight_seal(Stream::NONE, whole.weight).unwrap();
    let want = product(&device, &op, whole.weight, &x, n, k);
    let parts = create(&device, &desc);
    for (start, end) in [(50, 77), (0, 5), (5, 33), (33, 50)] {
        let rows = &rows[start * bytes..end * bytes];
        fill(&device, parts.weight, (0, start as u64), DType::U8, rows, bytes).unwrap();
    }
    device.weight_seal(Stream::NONE, parts.weight).unwrap();
    assert_eq!(product(&device, &op, parts.weight, &x, n, k), want);
    // Integers times 1/16 are exact.
    let exact: f32 =
        (0..k).map(|j| f32::from(rows[2 + j % 32 + j / 32 * 34].cast_signed()) / 16.0 * x[j]).sum();
    assert_eq!(want[0], exact);
    for owned in [whole, parts] {
        device.weight_destroy(owned.weight).unwrap();
        device.free(owned.buffer).unwrap();
    }
}

#[test]
fn one_weight_serves_the_embedding_and_the_output_layer() {
    let (v, h) = (50, 64);
    let device = device();
    let desc = WeightDesc::embedding(Scheme::GGUF_Q8_0, DType::NONE, v as u64, h as u64);
    let owned = create(&device, &desc);
    let rows = q8_rows(v, h);
    fill(&device, owned.weight, (0, 0), DType::U8, &rows, rows.len() / v).unwrap();
    device.weight_seal(Stream::NONE, owned.weight).unwrap();
    let op = OpBuf::new(
        &attrs::Embedding::default(),
        [TensorSpec::new(DType::I32, &[-1]), TensorSpec::new(DType::F32, &[-1, h as i64])],
        [desc],
    );
    let ids: Vec<i32> = (0..v as i32).collect();
    let table = vec![f32::NAN; v * h];
    let ids_spec = TensorSpec::new(DType::I32, &[v as i64]);
    let views = [TensorView::contiguous(ids.as_ptr() as u64, 0, &ids_spec), matrix(&table, h)];
    launch(&device, &op.desc(), &views, &[owned.weight]).unwrap();
    // The output layer on unit vectors gives the same numbers back.
    let mut x = vec![0.0; h * h];
    (0..h).for_each(|i| x[i * h + i] = 1.0);
    let op = linear(Scheme::GGUF_Q8_0, DType::NONE, v as u64, h as u64);
    let y = product(&device, &op, owned.weight, &x, v, h);
    assert!((0..v * h).all(|i| y[i % h * v + i / h] == table[i]));
}

#[test]
fn experts_are_filled_one_by_one() {
    let device = device();
    let desc = WeightDesc::experts(Scheme::DENSE, DType::F32, 3, 20, 8);
    let owned = create(&device, &desc);
    for group in [2, 0, 1] {
        let rows = vec![group as f32; 20 * 8];
        fill(&device, owned.weight, (group, 0), DType::F32, &rows, 8).unwrap();
    }
    device.weight_seal(Stream::NONE, owned.weight).unwrap();
    let error = fill(&device, owned.weight, (3, 0), DType::F32, &[0.0; 8], 8).unwrap_err();
    assert_eq!(error.code, Code::INVALID_ARGUMENT);
}

#[test]
fn launches_refuse_what_they_were_not_prepared_for() {
    let device = device();
    let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, 4, 8);
    let op = linear(Scheme::DENSE, DType::F32, 4, 8);
    let owned = create(&device, &desc);
    let (x, y) = (vec![1.0f32; 16], vec![0.0f32; 8]);
    let good = [matrix(&x, 8), TensorView::NONE, matrix(&y, 4)];
    let refused = |views: &[TensorView], w: Weight, why: &str| {
        let error = launch(&device, &op.desc(), views, &[w]).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ARGUMENT, "{}", error.message);
        assert!(error.message.contains(why), "{}", error.message);
    };
    refused(&good, owned.weight, "not sealed");
    refused(&good, Weight(999), "no weight 999");
    fill(&device, owned.weight, (0, 0), DType::F32, &[1.0f32; 32], 8).unwrap();
    device.weight_seal(Stream::NONE, owned.weight).unwrap();
    launch(&device, &op.desc(), &good, &[owned.weight]).unwrap();
    assert_eq!(y, [8.0; 8]);
    refused(&[matrix(&x, 4), good[1], good[2]], owned.weight, "differ");
    refused(&[good[0], good[1], matrix(&y, 2)], owned.weight, "differ");
    let mut half = good;
    half[0].dtype = DType::F16;
    refused(&half, owned.weight, "other types");
    let other = create(&device, &WeightDesc::linear(Scheme::DENSE, DType::F32, 8, 8));
    fill(&device, other.weight, (0, 0), DType::F32, &[1.0f32; 64], 8).unwrap();
    device.weight_seal(Stream::NONE, other.weight).unwrap();
    refused(&good, other.weight, "another form");
    // No tokens: nothing to do.
    let none = [matrix(&[], 8), TensorView::NONE, matrix(&[], 4)];
    launch(&device, &op.desc(), &none, &[owned.weight]).unwrap();
}

#[test]
fn support_says_what_prepare_does() {
    let device = device();
    let cases = [
        (linear(Scheme::GGUF_Q4_K, DType::NONE, 8, 256), true),
        (linear(Scheme::GGUF_Q4_K, DType::NONE, 8, 128), false),
        (linear(Scheme::FP8_BLOCK, DType::F32, 8, 128), true),
        (linear(Scheme::FP8_BLOCK, DType::F16, 8, 128), false),
        (linear(Scheme::DENSE, DType::BF16, 8, 3), true),
        (linear(Scheme::DENSE, DType::I8, 8, 3), false),
    ];
    for (op, fits) in cases {
        let support = device.support(&op.desc());
        assert_eq!(!matches!(support, Support::No(_)), fits, "{op}: {support:?}");
        match device.prepare(&op.desc()) {
            Ok(_) => assert!(fits, "{op}"),
            Err(error) => assert_eq!(support, Support::No(error.message.into())),
        }
    }
    let quantised = attrs::Linear { act_quant: 3, ..Default::default() };
    let spec = TensorSpec::new(DType::F32, &[-1, 32]);
    let weight = WeightDesc::linear(Scheme::GGUF_Q8_0, DType::NONE, 32, 32);
    let op = OpBuf::new(&quantised, [spec, TensorSpec::NONE, spec], [weight]);
    assert!(matches!(device.support(&op.desc()), Support::No(why) if why.contains("supported: 1")));
}

#[test]
fn caches_of_known_shapes_only() {
    let device = device();
    let kv = |dtype: DType, dim: u32, block_size: u32| KvDesc {
        kind: KV_STANDARD,
        dtype,
        heads: 2,
        dim_k: dim,
        dim_v: dim,
        block_size,
        attrs: RSlice::EMPTY,
    };
    let layout = device.kv_layout(&kv(DType::F16, 64, 16)).unwrap();
    assert_eq!(layout.block_bytes, [4096, 4096]);
    // Values are padded to whole vectors.
    assert_eq!(device.kv_layout(&kv(DType::F32, 40, 16)).unwrap().block_bytes, [5120, 6144]);
    assert_eq!(device.kv_layout(&kv(DType::I8, 60, 16)).unwrap().block_bytes, [1920, 2048]);
    assert_eq!(device.kv_layout(&kv(DType::F8E4M3, 576, 1)).unwrap().block_bytes, [1152, 1152]);
    // A latent is kept once.
    let mla = KvDesc { kind: KV_MLA, heads: 1, dim_v: 64, ..kv(DType::BF16, 512, 16) };
    assert_eq!(device.kv_layout(&mla).unwrap().block_bytes, [16384, 2048]);
    for bad in [
        kv(DType::I32, 64, 16),
        kv(DType::F32, 0, 16),
        kv(DType::F32, 577, 16),
        kv(DType::F32, 64, 24),
        KvDesc { dtype: DType::I8, ..mla },
        KvDesc { dim_v: 65, ..mla },
        KvDesc { kind: 3, ..mla },
    ] {
        assert_eq!(device.kv_layout(&bad).unwrap_err().code, Code::UNSUPPORTED, "{bad:?}");
    }
    let mask = device.property(PropKey::KV_BLOCK_MASK).unwrap();
    assert!(mask & 16 != 0 && mask & (1 << 8) != 0);
}

#[test]
fn unused_memory_costs_nothing() {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let device = device();
    let before = resident();
    let request = AllocReq { bytes: 1 << 30, align: 4096, kind: mem::DEVICE, flags: 0 };
    let buffer = device.alloc(&request).unwrap();
    assert!(resident() < before + (64 << 20));
    device.free(buffer).unwrap();
    assert!(device.free(buffer).is_err());
}
