//! Rows of weights that are missing, and indices out of range: a backend may refuse it at the launch or, if its device finds out, when the stream is waited for. One that
//! says nothing must have done everything else.

use halyard_core::{OpKind, Sym, ops::OpSchema};

use super::{Left, Subject, judged};
use crate::{
    execute::{Outputs, Prepared, Setting, Trouble},
    generate::{Inputs, Slot},
    judge::Reference,
    verify::expected,
};

/// A launch with one bad index, then, if the device lives, the right one again.
pub(super) fn check(subject: Subject<'_>) -> Result<Left, Trouble> {
    let Subject { device, case, weights, inputs, reference, .. } = subject;
    if !weights.is_empty() {
        return unfilled(subject).map(|()| Left::Usable);
    }
    let Some(bad) = Bad::of(subject) else {
        return Err(Trouble::Case("it has no index to spoil".into()));
    };
    let setting = Setting { layout: case.layout, scratch: u32::MAX };
    let prepared = Prepared::new(device, &case.op, weights)?;
    match prepared.launch(&bad.inputs, setting) {
        Err(Trouble::Device(error)) if error.is_sticky() => return Ok(Left::Lost),
        Err(Trouble::Device(_)) => {}
        Err(other) => return Err(other),
        Ok(got) => {
            let want = expected(subject.oracle, &case.op, weights, &bad.skipped, case.layout)?;
            let (got, want) = (bad.others(&got), bad.others(&want.outputs));
            let want = Reference { outputs: want, unrounded: Vec::new() };
            let when = "no error for an index out of range, and the rest is not done";
            judged(&case.op, &bad.skipped, (&got, &want), when)?;
        }
    }
    let got = prepared.launch(inputs, setting)?;
    judged(&case.op, inputs, (&got, reference), "after a launch that failed")?;
    Ok(Left::Usable)
}

/// Weights whose rows come twice or not at all.
fn unfilled(subject: Subject<'_>) -> Result<(), Trouble> {
    let stream = subject.device.stream(0)?;
    for weight in subject.weights {
        if let Some(wrong) = weight.load_wrong(subject.device, &stream)? {
            return Err(Trouble::Violation(wrong.into()));
        }
    }
    Ok(())
}

/// Inputs with one bad index.
struct Bad {
    inputs: Inputs,
    /// The same with what is bad left out.
    skipped: Inputs,
    /// Rows of the outputs that the index has nothing to do with; all of the cache.
    rows: std::ops::Range<usize>,
}

impl Bad {
    /// The first index of the op's index slot becomes the least that is out of range: what that leads to is in the guards, and what is
    /// not done because of it comes after it.
    fn of(subject: Subject<'_>) -> Option<Self> {
        let (op, symbols) = (&subject.case.op, &subject.case.symbols);
        let n = |sym: Sym| symbols.get(sym);
        let (name, beyond) = match op.kind() {
            OpKind::KV_WRITE | OpKind::MLA_WRITE => ("slots", n(Sym::Blocks) * n(Sym::Block)),
            OpKind::ROPE => ("pos", n(Sym::P)),
            OpKind::GATHER_ROWS => ("idx", n(Sym::T)),
            OpKind::PAGED_ATTENTION | OpKind::MLA_ATTENTION => ("block_table", n(Sym::Blocks)),
            _ => return None,
        };
        let slot = OpSchema::of(op.kind())?.slot(name)?;
        let with = |value: i64| -> Option<Inputs> {
            let mut inputs = subject.inputs.clone();
            let Slot::Array(ids) = &mut inputs.slots[slot] else { return None };
            ids.set_int(0, value);
            Some(inputs)
        };
        let (inputs, rows) = (with(beyond as i64)?, subject.inputs.slots[slot].array()?.len());
        if name == "block_table" {
            // The first block of the first sequence.
            let first = subject.inputs.batch.first()?[0];
            let tokens: usize = subject.inputs.batch.iter().map(|s| s[0]).sum();
            return Some(Self { inputs, skipped: subject.inputs.clone(), rows: first..tokens });
        }
        Some(Self { inputs, skipped: with(-1)?, rows: 1..rows })
    }

    fn others(&self, all: &Outputs) -> Outputs {
        let some = |a: &Option<crate::array::Array>| {
            a.as_ref().map(|a| a.narrow(self.rows.start, self.rows.len()))
        };
        Outputs { slots: all.slots.iter().map(some).collect(), probe: all.probe.clone() }
    }
}
