//! Every mutant is caught by the default cases of its op, and the wrapper itself is right.

use std::collections::HashSet;

use halyard_conformance::{Options, Outcome, oracle, verify};
use halyard_core::OpKind;
use halyard_mutants::{Mutant, correct, mutants, planted, queued, table, try_all};

/// The mutants of some ops, all caught.
#[track_caller]
fn caught(of: impl Fn(&str) -> bool) {
    let chosen: Vec<&Mutant> = mutants().filter(|m| of(&m.op.to_string())).collect();
    assert!(!chosen.is_empty(), "no mutants of these ops");
    let verdicts = try_all(&chosen, 1).expect("a device opens and the catalogue is well-formed");
    assert!(verdicts.iter().all(|v| v.caught.is_some()), "\n{}", table(&verdicts));
}

// Apart, so that they run side by side.

#[test]
fn of_element_wise_ops_and_rows() {
    caught(|op| ["copy", "add", "mul", "act_mul", "gather_rows", "embedding"].contains(&op));
}

#[test]
fn of_norms_and_rope() {
    caught(|op| op.starts_with("rms_norm") || op == "rope");
}

#[test]
fn of_linear_layers() {
    caught(|op| op.contains("linear"));
}

#[test]
fn of_attention() {
    caught(|op| op.contains("attention"));
}

#[test]
fn of_caches() {
    caught(|op| op.starts_with("kv_") || op.starts_with("mla_w"));
}

#[test]
fn of_mixtures_of_experts() {
    caught(|op| op.starts_with("moe_"));
}

#[test]
fn of_logits_and_sampling() {
    caught(|op| ["argmax", "topk", "logprobs", "logits_process", "sample"].contains(&op));
}

#[test]
fn names_are_unique_and_say_what_is_wrong() {
    let mut names = HashSet::new();
    for m in mutants() {
        assert!(names.insert(m.name), "{} is there twice", m.name);
        assert!(!m.wrong.is_empty(), "{}", m.name);
    }
    assert!(names.len() >= 120, "{} mutants", names.len());
    assert!(planted("no_such_bug").unwrap_err().to_string().contains("no mutant is called"));
}

#[test]
fn every_op_that_the_reference_has_is_mutated() {
    let device = correct().unwrap();
    let options = Options::default();
    let oracle = oracle().unwrap();
    let mut ops = HashSet::new();
    // Nothing but the ops' names is wanted of the report.
    let mut note = |case: &halyard_conformance::CaseResult| {
        if case.outcome == Outcome::Passed {
            ops.insert(case.op.clone());
        }
        true
    };
    let report =
        halyard_conformance::verify_while(&device, &oracle, &options, &mut |_| {}, &mut note);
    let report = report.unwrap();
    assert!(report.passed(), "the wrapper without a bug: {}", report.table());
    // Collectives are no ops of the catalogue.
    for op in ops.into_iter().filter(|op| OpKind::from_name(op).is_some()) {
        assert!(mutants().any(|m| m.op.to_string() == op), "no mutant of {op}");
    }
}

#[test]
fn a_right_device_passes_whose_streams_work_on_their_own() {
    let (device, oracle) = (queued().unwrap(), oracle().unwrap());
    for case in ["again_", "streams_", "kv_write", "experts_routing"] {
        let options = Options { case: Some(case.into()), ..Options::default() };
        let report = verify(&device, &oracle, &options, &mut |_| {}).unwrap();
        assert!(report.counts.passed > 0 && report.passed(), "{}", report.table());
    }
}

#[test]
fn panics_are_reported_and_do_not_hide_other_cases() {
    let options = Options { case: Some("act_mul/".into()), ..Options::default() };
    let device = planted("act_mul_panics").unwrap();
    let report = verify(&device, &oracle().unwrap(), &options, &mut |_| {}).unwrap();
    let message = |c: &halyard_conformance::CaseResult| c.message.clone().unwrap_or_default();
    assert!(report.cases.iter().any(|c| message(c).contains("panic")));
    assert!(report.cases.iter().all(|c| !message(c).contains("poisoned")), "{}", report.table());
    // The device that is opened anew has the bug as well: it is opened with the same options.
    let with_bug = report.cases.iter().filter(|c| c.name.contains("/I=8/")).count();
    assert!(with_bug > 0 && with_bug < report.cases.len());
    assert_eq!(report.counts.failed, with_bug, "{}", report.table());
}
