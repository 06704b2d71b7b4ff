//! The gate on kernels of every kind, and its cache.

use halyard_conformance::{
    Outcome, gate,
    gate::{GateOptions, GateReport},
    oracle,
};
use halyard_core::{
    DType, OpBuf, Scheme, TensorSpec, WeightDesc,
    attrs::{
        Act, ActMul, Add, Argmax, Copy, Embedding, GatherRows, KvCopyBlocks, KvWrite, Linear,
        LogitsProcess, Logprobs, MoeExperts, MoeRouter, PagedAttention, RmsNorm, Rope, Sample,
        Topk,
    },
};

const VOCAB: i64 = 1003;
const HIDDEN: i64 = 512;

fn spec(dtype: DType, dims: &[i64]) -> TensorSpec {
    TensorSpec::new(dtype, dims)
}

/// A model with experts, a sliding window and tied embeddings, in one compute type.
fn kernels(compute: DType) -> Vec<OpBuf> {
    let x = |width: i64| spec(compute, &[-1, width]);
    let f32s = |dims: &[i64]| spec(DType::F32, dims);
    let ids = |dims: &[i64]| spec(DType::I32, dims);
    let none = TensorSpec::NONE;
    let (v, h) = (VOCAB.cast_unsigned(), HIDDEN.cast_unsigned());
    let (q, k) = (spec(compute, &[-1, 8, 64]), spec(compute, &[-1, 2, 64]));
    let cache = spec(compute, &[-1, 16, 2, 64]).opaque();
    let table = WeightDesc::embedding(Scheme::GGUF_Q8_0, DType::NONE, v, h);
    let tied = WeightDesc::linear(Scheme::GGUF_Q8_0, DType::NONE, v, h);
    let qkv = WeightDesc::linear(Scheme::GGUF_Q4_K, DType::NONE, 768, h);
    let up = WeightDesc::experts(Scheme::GGUF_Q5_0, DType::NONE, 12, 192, h);
    let down = WeightDesc::experts(Scheme::GGUF_Q5_0, DType::NONE, 12, h, 96);
    let logits = f32s(&[-1, VOCAB]);
    let window = PagedAttention { scale: 0.125, window: 90, ..PagedAttention::default() };
    let router = MoeRouter { norm: true, ..MoeRouter::default() };
    let act = ActMul { act: Act::Silu, limit: 0.0 };
    let one = f32s(&[-1]);
    let words = spec(DType::U64, &[-1]);
    let slots = spec(DType::I64, &[-1]);
    vec![
        OpBuf::new(&Embedding::default(), [ids(&[-1]), x(HIDDEN)], [table]),
        OpBuf::new(&RmsNorm::default(), [x(HIDDEN), f32s(&[HIDDEN]), x(HIDDEN), x(HIDDEN)], []),
        OpBuf::new(&Linear::default(), [x(HIDDEN), f32s(&[768]), x(768)], [qkv]),
        OpBuf::new(&Linear::default(), [x(HIDDEN), none, logits], [tied]),
        OpBuf::new(&Rope::default(), [q, k, ids(&[-1]), f32s(&[300, 64])], []),
        OpBuf::new(&KvWrite {}, [k, k, slots, cache, cache], []),
        OpBuf::new(&window, [q, cache, cache, ids(&[-1, -1]), ids(&[-1]), ids(&[-1]), q], []),
        OpBuf::new(&KvCopyBlocks { latent: false }, [cache, cache, ids(&[-1, 2])], []),
        OpBuf::new(&act, [x(192), x(96)], []),
        OpBuf::new(&Add::default(), [x(HIDDEN), x(HIDDEN), x(HIDDEN)], []),
        OpBuf::new(&router, [f32s(&[-1, 12]), none, ids(&[-1, 3]), f32s(&[-1, 3])], []),
        OpBuf::new(
            &MoeExperts::default(),
            [x(HIDDEN), ids(&[-1, 3]), f32s(&[-1, 3]), x(HIDDEN), x(HIDDEN)],
            [up, down],
        ),
        OpBuf::new(&GatherRows {}, [x(HIDDEN), ids(&[-1]), x(HIDDEN)], []),
        OpBuf::new(&Copy {}, [logits, logits], []),
        OpBuf::new(
            &LogitsProcess {},
            [
                logits,
                spec(DType::U32, &[-1, 32]),
                ids(&[-1, -1]),
                ids(&[-1, -1]),
                ids(&[-1, -1]),
                f32s(&[-1, 3]),
                ids(&[-1, -1]),
                f32s(&[-1, -1]),
            ],
            [],
        ),
        OpBuf::new(&Argmax {}, [logits, ids(&[-1])], []),
        OpBuf::new(&Topk {}, [logits, f32s(&[-1, 20]), ids(&[-1, 20])], []),
        OpBuf::new(&Logprobs {}, [logits, ids(&[-1, 20]), f32s(&[-1, 20])], []),
        OpBuf::new(&Sample {}, [logits, one, ids(&[-1]), one, one, words, words, ids(&[-1])], []),
    ]
}

fn run(kernels: &[OpBuf], options: &GateOptions) -> GateReport {
    let oracle = || oracle().expect("the reference is linked in");
    gate(&oracle(), &oracle(), kernels, options, &mut |_| {})
}

#[test]
fn every_kind_of_kernel_is_verified() {
    for compute in [DType::F32, DType::BF16, DType::F16] {
        let kernels = kernels(compute);
        let report = run(&kernels, &GateOptions::default());
        if let Err(error) = report.require() {
            panic!("{error}");
        }
        assert_eq!(report.kernels.len(), kernels.len());
        for kernel in &report.kernels {
            assert!(!kernel.comparisons.is_empty(), "{} was not compared", kernel.op);
            assert!(kernel.comparisons.iter().all(|c| c.elements > 0), "{}", kernel.op);
        }
    }
}

#[test]
fn what_passed_is_not_run_again_until_something_changes() {
    let dir = tempfile::tempdir().unwrap();
    let options = GateOptions { seed: 3, cache_dir: Some(dir.path().join("gate")) };
    let all = kernels(DType::F32);
    let (few, fewer) = (&all[..2], &all[..1]);
    assert!(!run(few, &options).from_cache);
    let again = run(few, &options);
    assert!(again.from_cache && again.passed() && again.kernels.len() == 2);
    assert!(!run(fewer, &options).from_cache, "other kernels");
    assert!(!run(few, &GateOptions { seed: 4, ..options.clone() }).from_cache, "another seed");
    assert!(!run(few, &GateOptions { cache_dir: None, ..options }).from_cache);
}

#[test]
fn a_kernel_that_the_backend_lacks_closes_the_gate_and_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let options = GateOptions { seed: 0, cache_dir: Some(dir.path().to_owned()) };
    let x = spec(DType::F32, &[-1, 64]);
    let w = WeightDesc::linear(Scheme::DENSE, DType::F32, 64, 64);
    let fixed = Linear { act_quant: 3, ..Linear::default() };
    let op = OpBuf::new(&fixed, [x, TensorSpec::NONE, x], [w]);
    for _ in 0..2 {
        let report = run(std::slice::from_ref(&op), &options);
        assert!(!report.from_cache);
        assert_eq!(report.kernels[0].outcome, Outcome::Unsupported);
        let error = report.require().unwrap_err().to_string();
        assert!(
            error.contains("quantised activations") && error.contains("act_quant=3"),
            "{error}"
        );
    }
}
