//! Which mutants the suite catches, and by which case.

use std::{
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use halyard_conformance::{Options, Outcome, oracle, verify_while};

use crate::{mutant::Mutant, planted};

/// The case that caught a mutant.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Its name.
    pub case: String,
    /// What it says.
    pub message: String,
}

/// What became of a mutant.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which.
    pub mutant: &'static Mutant,
    /// By what it was caught; nothing if it escaped.
    pub caught: Option<Caught>,
    /// Cases that ran.
    pub cases: usize,
    /// Time they took.
    pub time: Duration,
}

/// Runs the default cases of a mutant's op until one fails (and says what it must say).
///
/// # Errors
/// If a device cannot be opened or the catalogue is malformed.
pub fn try_mutant(mutant: &'static Mutant) -> Result<Verdict> {
    let start = Instant::now();
    let options = Options {
        ops: vec![mutant.op.to_string()],
        case: mutant.case.map(str::to_owned),
        profiles: mutant.profile.into_iter().map(str::to_owned).collect(),
        ..Options::default()
    };
    let device = planted(mutant.name).with_context(|| mutant.name)?;
    let mut caught = None;
    let report = verify_while(&device, &oracle()?, &options, &mut |_| {}, &mut |case| {
        let message = case.message.clone().unwrap_or_default();
        let told = mutant.told.is_none_or(|text| message.contains(text));
        if case.outcome == Outcome::Failed && told {
            caught = Some(Caught { case: case.name.clone(), message });
        }
        caught.is_none()
    })?;
    Ok(Verdict { mutant, caught, cases: report.cases.len(), time: start.elapsed() })
}

/// Tries some mutants on a few threads; the verdicts come in the mutants' order.
///
/// # Errors
/// As [`try_mutant`].
pub fn try_all(mutants: &[&'static Mutant], threads: usize) -> Result<Vec<Verdict>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = try_mutant(mutant)?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| {
            t.join().map_err(|_| anyhow!("a thread that tried mutants panicked"))?
        })
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|v| mutants.iter().position(|m| m.name == v.mutant.name));
    Ok(done)
}

/// For people: a line a mutant, and the score.
#[must_use]
pub fn table(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for v in verdicts {
        let by = match &v.caught {
            Some(caught) => format!("caught by {}", caught.case),
            None => format!("ESCAPED {} cases: {}", v.cases, v.mutant.wrong),
        };
        let op = v.mutant.op.to_string();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<42} {op:<16} {by}", v.mutant.name);
    }
    let caught = verdicts.iter().filter(|v| v.caught.is_some()).count();
    let _ = writeln!(text, "\n{caught} of {} mutants caught", verdicts.len());
    text
}
