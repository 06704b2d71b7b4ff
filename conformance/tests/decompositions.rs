//! Ops built from others, against the oracle: wherever the host knows how, even if the backend has the op.

use halyard_conformance::{Options, Outcome, oracle, verify};
use halyard_core::{
    Backend, DType, Decompose, Device, OpBuf, OpKind, Support, TensorSpec, attrs::RmsNorm,
};

/// Every case of the ops passes, and each op has some.
#[track_caller]
fn built(device: &Device, ops: &[OpKind]) {
    let device = device.decomposing(Decompose::Always);
    let ops: Vec<String> = ops.iter().map(ToString::to_string).collect();
    let options = Options { ops: ops.clone(), ..Options::default() };
    let oracle = oracle().expect("the reference is linked in");
    let report = verify(&device, &oracle, &options, &mut |_| {}).expect("well-formed cases");
    assert!(report.passed(), "{}", report.table());
    for op in ops {
        let passed = report.cases.iter().any(|c| c.op == op && c.outcome == Outcome::Passed);
        assert!(passed, "no case of {op}");
    }
}

#[test]
fn on_the_reference() {
    built(&oracle().expect("it is linked in"), &[OpKind::RMS_NORM, OpKind::ARGMAX]);
}

#[test]
fn on_the_cpu() {
    let cpu = Backend::builtin(halyard_cpu::module()).open(0, &[]).expect("it always opens");
    built(&cpu, &[OpKind::RMS_NORM, OpKind::ARGMAX]);
}

#[test]
fn support_tells_what_an_op_is_built_from() {
    let rows = TensorSpec::new(DType::F32, &[-1, 64]);
    let gamma = TensorSpec::new(DType::F32, &[64]);
    let norm = |residual| OpBuf::new(&RmsNorm::default(), [rows, gamma, rows, residual], []);
    let native = Backend::builtin(halyard_cpu::module()).open(0, &[]).expect("it always opens");
    let always = native.decomposing(Decompose::Always);
    let missing = native.decomposing(Decompose::Missing);
    assert_eq!(always.support(&norm(rows)), Support::Slow("built from add, rms_norm".into()));
    assert_eq!(missing.support(&norm(rows)), native.support(&norm(rows)));
    assert_eq!(always.support(&norm(TensorSpec::NONE)), native.support(&norm(TensorSpec::NONE)));
}
