//! What the oracle does not do, it says.

use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    Backend, Code, DType, InfoKey, InlineDevice, KvDesc, Options, Scheme, Support, TensorSpec,
    WeightDesc,
    abi::{
        OpBuf, RSlice,
        ops::attrs::{KvGather, Linear, PagedAttention},
        types::{KV_MLA, KV_STANDARD},
    },
};

fn refusal(op: &OpBuf) -> String {
    let device = RefDevice::default();
    assert!(device.prepare(&op.desc()).is_err(), "{op}");
    match device.support(&op.desc()) {
        Support::No(why) => why,
        other => panic!("{op}: {other:?}"),
    }
}

fn spec(dtype: DType, dims: &[i64]) -> TensorSpec {
    TensorSpec::new(dtype, dims)
}

#[test]
fn unsupported_types_schemes_and_modes_are_named() {
    let tensors = [spec(DType::F32, &[-1, 128]), TensorSpec::NONE, spec(DType::F32, &[-1, 4])];
    let weight = |scheme: Scheme| {
        let dtype = if scheme.gguf_block().is_some() { DType::NONE } else { DType::F32 };
        [WeightDesc::linear(scheme, dtype, 4, 128)]
    };
    let odd = WeightDesc { group_size: 48, ..weight(Scheme::INT4_GROUP)[0] };
    let groups = OpBuf::new(&Linear::default(), tensors, [odd]);
    assert!(refusal(&groups).contains("rows of 128 are not whole groups of 48"));
    let blocks = OpBuf::new(&Linear::default(), tensors, weight(Scheme::GGUF_Q4_K));
    assert!(refusal(&blocks).contains("whole blocks of 256"));
    let quant = Linear { act_quant: 3, ..Default::default() };
    let why = refusal(&OpBuf::new(&quant, tensors, weight(Scheme::DENSE)));
    assert!(why.contains("quantised activations of mode 3; supported: 1"), "{why}");
}

#[test]
fn caches_that_it_cannot_keep_are_refused() {
    let attention = |dtype, scale| {
        let cache = spec(dtype, &[-1, 16, 2, 8]).opaque();
        let scale = if scale { spec(DType::F32, &[2]) } else { TensorSpec::NONE };
        let q = spec(DType::F32, &[-1, 4, 8]);
        let ints = |dims: &[i64]| spec(DType::I32, dims);
        OpBuf::new(
            &PagedAttention::default(),
            [
                q,
                cache,
                cache,
                ints(&[-1, -1]),
                ints(&[-1]),
                ints(&[-1]),
                q,
                TensorSpec::NONE,
                scale,
            ],
            [],
        )
    };
    assert!(refusal(&attention(DType::BF16, true)).contains("scales with a cache of bf16"));
    for (dtype, scale) in [(DType::F16, false), (DType::F8E4M3, true), (DType::I8, false)] {
        assert_eq!(
            RefDevice::default().support(&attention(dtype, scale).desc()),
            Support::Slow("plain loops, for checking other backends".into())
        );
    }
    let gather = |dtype, heads, values| {
        let cache = spec(dtype, &[-1, 16, heads, 8]).opaque();
        let k = spec(DType::F32, &[-1, heads, 8]);
        let values = if values { cache } else { TensorSpec::NONE };
        let ints = |dims: &[i64]| spec(DType::I32, dims);
        OpBuf::new(
            &KvGather { latent: true },
            [cache, values, ints(&[-1, -1]), ints(&[-1]), k, k],
            [],
        )
    };
    assert!(refusal(&gather(DType::F32, 2, true)).contains("latents with 2 heads"));
    assert!(refusal(&gather(DType::I8, 1, true)).contains("a cache of latents of i8; supported"));
    assert!(refusal(&gather(DType::F32, 1, false)).contains("fused into the key cache"));
}

#[test]
fn caches_are_plain_and_sized_by_their_type() {
    let device = RefDevice::default();
    let desc = KvDesc {
        kind: KV_STANDARD,
        dtype: DType::BF16,
        heads: 2,
        dim_k: 8,
        dim_v: 4,
        block_size: 16,
        attrs: RSlice::EMPTY,
    };
    let bytes = |desc: &KvDesc<'_>| device.kv_layout(desc).unwrap().block_bytes;
    assert_eq!(bytes(&desc), [16 * 2 * 8 * 2, 16 * 2 * 4 * 2]);
    assert_eq!(bytes(&KvDesc { dtype: DType::I8, ..desc }), [16 * 2 * 8, 16 * 2 * 4]);
    let latents = KvDesc { kind: KV_MLA, heads: 1, dim_k: 512, dim_v: 64, ..desc };
    assert_eq!(bytes(&latents), [16 * 512 * 2, 16 * 64 * 2]);
    let code = |desc: &KvDesc<'_>| device.kv_layout(desc).unwrap_err().code;
    assert_eq!(code(&KvDesc { kind: 3, ..desc }), Code::UNSUPPORTED);
    assert_eq!(code(&KvDesc { dtype: DType::F8E5M2, ..desc }), Code::UNSUPPORTED);
    assert_eq!(code(&KvDesc { dtype: DType::I8, ..latents }), Code::UNSUPPORTED);
    assert_eq!(code(&KvDesc { heads: 2, ..latents }), Code::INVALID_ARGUMENT);
    assert_eq!(code(&KvDesc { heads: 0, ..desc }), Code::INVALID_ARGUMENT);
}

#[test]
fn the_backend_introduces_itself() {
    assert_eq!(CpuRef::info(InfoKey::ID), "cpu-ref");
    let profiles = CpuRef::info(InfoKey::PROFILES);
    for profile in ["dense", "mla", "kv8", "quant:fp8_block", "quant:iq4_nl", "comm"] {
        assert!(profiles.split(',').any(|p| p == profile), "{profiles}");
    }
    let bad = Options::new(vec![("threads".into(), "4".into())]);
    assert!(CpuRef::open(0, bad).unwrap_err().message.contains("unknown option threads"));
}
