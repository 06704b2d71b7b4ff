//! What a backend promises beside numbers: answers, flags, scratch memory, threads.

use std::{
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::Duration,
};

use halyard_sdk::{DType, OpKind, abi::AttrKey};

use crate::{
    call::Call,
    device::Habit,
    mutant::{Mutant, bug},
};

/// A lowest bit more or less in the first element: too little for the comparison with the oracle.
fn nudge(c: &Call<'_>, slot: &str) {
    if c.dtype(slot) == DType::F32 {
        c.change(slot, |values| {
            if let Some(first) = values.first_mut() {
                *first *= 1.0 + f64::from(f32::EPSILON);
            }
        });
    }
}

/// Inputs of the launch that came last, whichever kernel it was of.
type Shared = Mutex<Vec<f64>>;
static OF_LINEAR: Shared = Mutex::new(Vec::new());
static OF_ATTENTION: Shared = Mutex::new(Vec::new());

/// Computes from scratch memory that all kernels of the process share.
fn through_shared(c: &Call<'_>, shared: &Shared, slot: &str) -> halyard_sdk::Result<()> {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let x = c.floats(slot);
    lock().clone_from(&x);
    sleep(Duration::from_millis(1));
    let seen = lock().clone();
    c.edit().map(slot, |i, v| seen.get(i).copied().unwrap_or(v)).run()
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("unknown_attribute_ignored", OpKind::ADD, "attributes that it does not know are dropped")
        .told("an attribute that it cannot know was ignored")
        .desc(|d| d.attrs.retain(|a| AttrKey::ALL.contains(&a.key))),
    bug(
        "unknown_attribute_ignored_by_attention",
        OpKind::PAGED_ATTENTION,
        "the same, where it would change results",
    )
    .told("an attribute that it cannot know was ignored")
    .desc(|d| d.attrs.retain(|a| AttrKey::ALL.contains(&a.key))),
    bug("promises_too_much", OpKind::TOPK, "`supports` says yes and `prepare` no")
        .habit(Habit::PromisesTooMuch),
    bug("promises_too_little", OpKind::TOPK, "`supports` says no and `prepare` yes")
        .told("yet it prepares")
        .habit(Habit::PromisesTooLittle),
    bug("batch_variant_linear", OpKind::LINEAR, "with many rows another order of summation")
        .told("declared batch-invariant, but rows")
        .launch(|c| {
            c.run()?;
            if c.dims("y")[0] >= 4 {
                nudge(c, "y");
            }
            Ok(())
        }),
    bug("batch_variant_norm", OpKind::RMS_NORM, "rows beside others are summed in another order")
        .told("declared batch-invariant, but rows")
        .launch(|c| {
            c.run()?;
            if c.dims("y")[0] > 1 {
                nudge(c, "y");
            }
            Ok(())
        }),
    bug(
        "batch_variant_attention",
        OpKind::PAGED_ATTENTION,
        "the split of a sequence depends on the batch",
    )
    .told("declared batch-invariant, but rows")
    .launch(|c| {
        c.run()?;
        if c.dims("kv_len")[0] > 1 {
            nudge(c, "o");
        }
        Ok(())
    }),
    bug(
        "batch_variant_experts",
        OpKind::MOE_EXPERTS,
        "an expert with many tokens sums in another order",
    )
    .told("declared batch-invariant, but rows")
    .launch(|c| {
        c.run()?;
        if c.dims("y")[0] > 8 {
            nudge(c, "y");
        }
        Ok(())
    }),
    bug("not_deterministic", OpKind::LINEAR, "sums are added in the order that threads come in")
        .told("declared deterministic, but a second launch differs")
        .launch(|c| {
            c.run()?;
            if c.before % 2 == 1 {
                nudge(c, "y");
            }
            Ok(())
        }),
    bug(
        "state_between_launches",
        OpKind::ACT_MUL,
        "a second launch adds to what the first one kept",
    )
    .launch(|c| {
        let again = c.before > 0;
        c.then("y", |_, y| if again { 2.0 * y } else { y })
    }),
    bug("scratch_taken_for_zero", OpKind::LINEAR, "scratch memory is taken to be zero")
        .told("declared deterministic, but a second launch differs")
        .scratch(64)
        .launch(|c| {
            c.run()?;
            if c.scratch().first() == Some(&0) {
                nudge(c, "y");
            }
            Ok(())
        }),
    bug(
        "scratch_summed_into",
        OpKind::MOE_EXPERTS,
        "partial sums are added to scratch that nobody cleared",
    )
    .scratch(64)
    .launch(|c| {
        let dirty = c.scratch().first() != Some(&0);
        c.then("y", |_, y| if dirty { f64::NAN } else { y })
    }),
    bug(
        "shared_scratch",
        OpKind::LINEAR,
        "all kernels share one piece of scratch memory, unlocked",
    )
    .told("with two threads at once")
    .launch(|c| through_shared(c, &OF_LINEAR, "x")),
    bug("shared_scratch_of_attention", OpKind::PAGED_ATTENTION, "the same for attention")
        .told("with two threads at once")
        .launch(|c| through_shared(c, &OF_ATTENTION, "q")),
    bug(
        "error_swallowed",
        OpKind::LINEAR,
        "a launch of more than 64 rows fails and nobody is told",
    )
    .launch(|c| if c.dims("x")[0] > 64 { Ok(()) } else { c.run() }),
];
