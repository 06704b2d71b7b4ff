//! What the oracle does not do, it says.

use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    Backend, Code, DType, InfoKey, InlineDevice, KvDesc, Options, Scheme, Support, TensorSpec,
    WeightDesc,
    abi::{
        OpBuf, RSlice,
        ops::attrs::{Copy, Linear, PagedAttention},
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
    let copy = OpBuf::new(&Copy {}, [spec(DType::F8E4M3, &[-1]), spec(DType::F32, &[-1])], []);
    assert!(refusal(&copy).contains("copy from f8e4m3 to f32; supported: f32"));
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
    let quant = Linear { act_quant: 1, ..Default::default() };
    assert!(refusal(&OpBuf::new(&quant, tensors, weight(Scheme::DENSE))).contains("activations"));
}

#[test]
fn eight_bit_caches_and_scales_are_refused() {
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
    assert!(refusal(&attention(DType::F8E4M3, false)).contains("a cache of f8e4m3; supported"));
    assert!(refusal(&attention(DType::BF16, true)).contains("scales with a cache of bf16"));
    assert_eq!(
        RefDevice::default().support(&attention(DType::F16, false).desc()),
        Support::Slow("plain loops, for checking other backends".into())
    );
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
    let layout = device.kv_layout(&desc).unwrap();
    assert_eq!(layout.block_bytes, [16 * 2 * 8 * 2, 16 * 2 * 4 * 2]);
    let code = |desc: &KvDesc<'_>| device.kv_layout(desc).unwrap_err().code;
    assert_eq!(code(&KvDesc { kind: KV_MLA, ..desc }), Code::UNSUPPORTED);
    assert_eq!(code(&KvDesc { dtype: DType::I8, ..desc }), Code::UNSUPPORTED);
    assert_eq!(code(&KvDesc { heads: 0, ..desc }), Code::INVALID_ARGUMENT);
}

#[test]
fn the_backend_introduces_itself() {
    assert_eq!(CpuRef::info(InfoKey::ID), "cpu-ref");
    let profiles = CpuRef::info(InfoKey::PROFILES);
    assert!(
        profiles.starts_with("dense,moe,quant:fp8_block,") && profiles.ends_with(",sample,comm")
    );
    let bad = Options::new(vec![("threads".into(), "4".into())]);
    assert!(CpuRef::open(0, bad).unwrap_err().message.contains("unknown option threads"));
}
