//! Backends with one planted bug each: a suite that lets one pass is broken.

mod bugs;
mod device;

use bugs::*;
use device::{Bug, Planted};
use halyard_conformance::{Options, Outcome, Report, gate, gate::GateOptions, oracle, verify};
use halyard_core::{
    Backend, DType, OpBuf, Scheme, TensorSpec, WeightDesc,
    attrs::{Linear, PagedAttention},
};

fn device<B: Bug>() -> halyard_core::Device {
    Backend::builtin(halyard_sdk::module::<Planted<B>>()).open(0, &[]).expect("it always opens")
}

/// Runs the cases of the bug's op.
fn report<B: Bug>() -> Report {
    let options = Options { ops: vec![B::KIND.to_string()], ..Options::default() };
    let oracle = oracle().expect("the reference is linked in");
    verify(&device::<B>(), &oracle, &options, &mut |_| {}).expect("the catalogue is well-formed")
}

/// The bug fails some cases, and for the reason given; how many.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the score, for those who ask with --nocapture")]
fn caught<B: Bug>(reason: &str) {
    let report = report::<B>();
    let failed: Vec<_> = report.cases.iter().filter(|c| c.outcome == Outcome::Failed).collect();
    println!("{} of {} cases fail", failed.len(), report.cases.len());
    assert!(!failed.is_empty(), "the bug was not caught");
    let told = failed.iter().any(|c| c.message.as_deref().is_some_and(|m| m.contains(reason)));
    let messages: Vec<_> = failed.iter().take(5).map(|c| (&c.name, &c.message)).collect();
    assert!(told, "nobody says `{reason}`: {messages:#?}");
}

#[test]
fn a_wrapper_without_a_bug_passes() {
    let report = report::<NoBug>();
    assert!(report.passed(), "{}", report.table());
}

#[test]
fn causal_mask_off_by_one() {
    caught::<MaskOffByOne>("o[");
}

#[test]
fn wrong_kv_head() {
    caught::<WrongKvHead>("o[");
}

#[test]
fn last_partial_block_missed() {
    caught::<LastBlockMissed>("o[");
}

#[test]
fn window_off_by_one() {
    caught::<WindowOffByOne>("o[");
}

#[test]
fn eps_dropped() {
    caught::<EpsDropped>("y[");
}

#[test]
fn bias_dropped() {
    caught::<BiasDropped>("y[");
}

#[test]
fn accumulation_ignored() {
    caught::<AccumulateIgnored>("y[");
}

#[test]
fn stride_ignored() {
    caught::<StrideIgnored>("y");
}

#[test]
fn written_past_the_end() {
    caught::<PastTheEnd>("y was written past its end");
}

#[test]
fn input_overwritten() {
    caught::<InputOverwritten>("x was changed, although the op only reads it");
}

#[test]
fn ties_to_the_last() {
    caught::<TiesToTheLast>("ids[");
}

#[test]
fn padding_slot_written() {
    caught::<PaddingWritten>("the cache, seen by attention");
}

#[test]
fn high_bits_of_scales_lost() {
    caught::<ScaleBitsLost>("y[");
}

#[test]
fn sine_and_cosine_of_the_next_position() {
    caught::<NextPosition>("q[");
}

#[test]
fn min_p_ignored() {
    caught::<MinPIgnored>("ids[");
}

#[test]
fn first_expert_of_the_slice_ignored() {
    caught::<ExpertStartIgnored>("y[");
}

#[test]
fn unknown_attributes_ignored() {
    caught::<UnknownAttrIgnored>("an attribute that it cannot know was ignored");
}

#[test]
fn results_that_depend_on_the_batch() {
    caught::<BatchVariant>("declared batch-invariant, but rows");
}

#[test]
fn results_that_depend_on_scratch() {
    caught::<ScratchRead>("declared deterministic, but a second launch differs");
}

#[test]
fn panics_are_reported_and_do_not_hide_other_cases() {
    let options = Options { case: Some("act_mul/".into()), ..Options::default() };
    let device = device::<PanicsAtEight>();
    let report = verify(&device, &oracle().unwrap(), &options, &mut |_| {}).unwrap();
    let message = |c: &halyard_conformance::CaseResult| c.message.clone().unwrap_or_default();
    assert!(report.cases.iter().any(|c| message(c).contains("panic")));
    assert!(report.cases.iter().all(|c| !message(c).contains("poisoned")), "{}", report.table());
    assert!(
        report.counts.failed > 0 && report.counts.failed < report.cases.len(),
        "{}",
        report.table()
    );
}

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

#[test]
fn the_gate_closes_for_a_bug_and_says_where() {
    let oracle = oracle().unwrap();
    let open =
        gate(&device::<NoBug>(), &oracle, &kernel_set(), &GateOptions::default(), &mut |_| {});
    open.require().unwrap();

    let shut = gate(
        &device::<BiasDropped>(),
        &oracle,
        &kernel_set(),
        &GateOptions::default(),
        &mut |_| {},
    );
    let error = shut.require().unwrap_err();
    let text = error.to_string();
    println!("{text}");
    assert!(text.starts_with("1 of 2 kernels of backend planted"), "{text}");
    assert!(
        text.contains("linear x:f32[*,576] bias:f32[960] y:f32[*,960] w0:q4_1[960,576]"),
        "{text}"
    );
    assert!(text.contains("1 rows, packed: y[") && text.contains("expected"), "{text}");
    assert!(text.contains("seed 0"), "{text}");

    let shut = gate(
        &device::<WrongKvHead>(),
        &oracle,
        &kernel_set(),
        &GateOptions::default(),
        &mut |_| {},
    );
    assert!(shut.require().unwrap_err().to_string().contains("paged_attention"));
}
