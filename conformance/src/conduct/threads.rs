//! Two threads launch the same op at once.

use super::{Subject, judged};
use crate::{
    execute::{Prepared, Setting, Trouble},
    generate::{Inputs, inputs},
    judge::Reference,
    rng::Rng,
    verify::{SCRATCH, expected},
};

/// Launches of each thread.
const LAUNCHES: usize = 8;

/// Each thread has a kernel, weights and a stream of its own.
pub(super) fn check(subject: Subject<'_>) -> Result<(), Trouble> {
    let Subject { case, weights, .. } = subject;
    // The other thread's inputs are its own, or memory that both use would not show.
    let mut rng = Rng::new(subject.seed.wrapping_add(1), &case.name);
    let others = inputs(&case.op, &case.symbols, &case.recipe, &mut rng);
    let others = others.map_err(Trouble::Case)?.shown(&case.op, case.layout);
    let theirs = expected(subject.oracle, &case.op, weights, &others, case.layout)?;

    let alone = |inputs: &Inputs, want: &Reference| -> Result<(), Trouble> {
        let prepared = Prepared::new(subject.device, &case.op, weights)?;
        for scratch in SCRATCH.into_iter().cycle().take(LAUNCHES) {
            let got = prepared.launch(inputs, Setting { layout: case.layout, scratch })?;
            judged(&case.op, inputs, (&got, want), "with two threads at once")?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| alone(&others, &theirs));
        let mine = alone(subject.inputs, subject.reference);
        let theirs = other.join().unwrap_or_else(|_| {
            Err(Trouble::Violation("a thread that launched it panicked".into()))
        });
        mine.and(theirs)
    })
}
