//! The gate that a server passes before it serves: open for a right backend, closed for a mutant, saying where.

use halyard_conformance::{gate, gate::GateOptions, oracle};
use halyard_core::{
    DType, Device, OpBuf, Scheme, TensorSpec, WeightDesc,
    attrs::{Linear, PagedAttention},
};
use halyard_mutants::{correct, planted};

/// Kernels of a small model, as an engine lists them.
fn kernel_set() -> Vec<OpBuf> {
    let f32s = |dims: &[i64]| TensorSpec::new(DType::F32, dims);
    let ids = |dims: &[i64]| TensorSpec::new(DType::I32, dims);
    let w = WeightDesc::linear(Scheme::GGUF_Q4_1, DType::NONE, 960, 576);
    let cache = f32s(&[-1, 32, 3, 64]).opaque();
    let heads = f32s(&[-1, 9, 64]);
    let lists = [ids(&[-1, -1]), ids(&[-1]), ids(&[-1])];
    vec![
        OpBuf::new(&Linear::default(), [f32s(&[-1, 576]), f32s(&[960]), f32s(&[-1, 960])], [w]),
        OpBuf::new(
            &PagedAttention { scale: 0.125, ..PagedAttention::default() },
            [heads, cache, cache, lists[0], lists[1], lists[2], heads],
            [],
        ),
    ]
}

/// What the gate says to a server.
fn verdict(device: &Device) -> Result<(), String> {
    let oracle = oracle().expect("the reference is linked in");
    let report = gate(device, &oracle, &kernel_set(), &GateOptions::default(), &mut |_| {});
    report.require().map_err(|e| e.to_string())
}

#[test]
fn it_is_open_for_a_right_backend() {
    verdict(&correct().unwrap()).unwrap();
}

#[test]
fn it_closes_for_a_bug_and_says_where() {
    let text = verdict(&planted("linear_bias_dropped").unwrap()).unwrap_err();
    assert!(text.starts_with("1 of 2 kernels of backend mutants"), "{text}");
    assert!(
        text.contains("linear x:f32[*,576] bias:f32[960] y:f32[*,960] w0:q4_1[960,576]"),
        "{text}"
    );
    assert!(text.contains("1 rows, packed: y[") && text.contains("expected"), "{text}");
    assert!(text.contains("seed 0"), "{text}");
}

#[test]
fn it_closes_for_wrong_heads() {
    let text = verdict(&planted("attention_kv_heads_alternate").unwrap()).unwrap_err();
    assert!(text.contains("paged_attention"), "{text}");
}
