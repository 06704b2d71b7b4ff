//! What a kernel is put to beside launches on their own: other launches before and beside it, streams, mistakes in its inputs, and being
//! made and dropped ten thousand times.

mod again;
mod errors;
mod leaks;
mod streams;
mod threads;

use halyard_core::{Device, OpBuf, OpKind, ops::OpSchema};
use serde::Deserialize;

use crate::{
    array::is_float,
    catalog::Case,
    execute::{Outputs, Trouble},
    generate::Inputs,
    judge::{Reference, judge},
    weight::WeightSource,
};

/// One way to put a kernel to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Conduct {
    /// One kernel object and a second one launch by turns, with more and with fewer rows, in other memory, without a wait between.
    Again,
    /// A stream waits for another one's event, the host for an event.
    Streams,
    /// Two threads launch it at once.
    Threads,
    /// Everything is made and dropped ten thousand times.
    Leaks,
    /// An index that is out of range is an error, now or when the stream is waited for, or nobody else notices it.
    Errors,
}

/// What a case was about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) device: &'a Device,
    pub(crate) oracle: &'a Device,
    pub(crate) case: &'a Case,
    pub(crate) weights: &'a [WeightSource],
    pub(crate) inputs: &'a Inputs,
    /// What the oracle gave for them.
    pub(crate) reference: &'a Reference,
    pub(crate) seed: u64,
}

/// What is left of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It goes on.
    Usable,
    /// A mistake that it was given ended it, as it may.
    Lost,
}

/// Does what the case lists, up to what ends the device.
pub(crate) fn check(subject: Subject<'_>) -> Result<Left, Trouble> {
    for conduct in &subject.case.conduct {
        match conduct {
            Conduct::Again => again::check(subject)?,
            Conduct::Streams => streams::check(subject)?,
            Conduct::Threads => threads::check(subject)?,
            Conduct::Leaks => leaks::check(subject)?,
            Conduct::Errors => {
                if errors::check(subject)? == Left::Lost {
                    return Ok(Left::Lost);
                }
            }
        }
    }
    Ok(Left::Usable)
}

/// Compares outputs with the oracle's; `when` says what is different from a launch on its own.
fn judged(
    op: &OpBuf,
    inputs: &Inputs,
    (got, reference): (&Outputs, &Reference),
    when: &str,
) -> Result<(), Trouble> {
    match judge(op, inputs, got, reference, None).into_iter().find_map(|c| c.failure) {
        None => Ok(()),
        Some(failure) => Err(Trouble::Violation(format!("{when}: {failure}"))),
    }
}

/// Ops that only move numbers keep the sign of a zero.
pub(crate) fn signs_of_zeros(
    op: &OpBuf,
    got: &Outputs,
    reference: &Reference,
) -> Result<(), Trouble> {
    if !matches!(op.kind(), OpKind::COPY | OpKind::GATHER_ROWS) {
        return Ok(());
    }
    let names = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots).iter().map(|s| s.name);
    for (name, (got, want)) in names.zip(got.slots.iter().zip(&reference.outputs.slots)) {
        let (Some(got), Some(want)) = (got, want) else { continue };
        if !is_float(want.dtype()) {
            continue;
        }
        let zero = |i: &usize| want.get(*i) == 0.0 && got.int(*i) != want.int(*i);
        if let Some(i) = (0..want.len()).find(zero) {
            let index = want.index(i);
            return Err(Trouble::Violation(format!("{name}{index:?} is a zero of the other sign")));
        }
    }
    Ok(())
}
