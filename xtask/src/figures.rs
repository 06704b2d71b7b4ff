//! `cargo xtask figures`: measures what README.md says of the conformance suite, and prints it as it stands there.

use std::{
    path::Path,
    process::Command,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{
    mutants,
    tool::{build_halyard, command, output, run},
};

/// As much of a report's JSON as is wanted.
#[derive(Debug, Deserialize)]
struct Report {
    counts: Counts,
}

/// Cases by outcome.
#[derive(Debug, Deserialize)]
struct Counts {
    passed: usize,
    failed: usize,
    unsupported: usize,
    unavailable: usize,
}

/// Verifies `cpu`, by default and in full, tries every mutant, and prints the lines for README.md.
pub(crate) fn figures() -> Result<()> {
    let halyard = build_halyard()?;
    let (cases, time) = passed(&halyard, &[])?;
    let (full, full_time) = passed(&halyard, &["--full"])?;
    // What building takes does not count.
    run(mutants::command().arg("--help").stdout(std::process::Stdio::null()))?;
    let (score, mutants_time) = timed(&mut mutants::command())?;
    let (caught, all) = mutants_caught(&score)?;
    let cores = available_parallelism().map_or(1, usize::from);
    println!(
        "The suite has {cases} cases; `halyard verify cpu` passes all of them in {}. `--full` makes it {full} cases, every\n\
         combination of sizes, dtypes, schemes and options that models bring: {}. `cargo xtask mutants` plants {all} bugs in\n\
         the reference backend, one at a time, and the default cases catch {caught} of {all} in {} ({cores} cores).",
        show(time),
        show(full_time),
        show(mutants_time),
    );
    Ok(())
}

/// How many cases there are, all of which must pass, and what they take.
fn passed(halyard: &Path, flags: &[&str]) -> Result<(usize, Duration)> {
    let mut verify = command(halyard, ["verify", "cpu", "--json", "-"]);
    let (json, time) = timed(verify.args(flags))?;
    let reports: Vec<Report> = serde_json::from_str(&json).context("a report is no JSON")?;
    let [Report { counts }] = &reports[..] else {
        anyhow::bail!("{} reports instead of one", reports.len());
    };
    let others = counts.failed + counts.unsupported + counts.unavailable;
    ensure!(others == 0, "not every case passed: {counts:?}");
    Ok((counts.passed, time))
}

fn timed(command: &mut Command) -> Result<(String, Duration)> {
    let start = Instant::now();
    let text = output(command)?;
    Ok((text, start.elapsed()))
}

/// The numbers in `360 of 360 mutants caught`.
fn mutants_caught(score: &str) -> Result<(usize, usize)> {
    let line = score.lines().find_map(|l| l.strip_suffix(" mutants caught"));
    let line = line.context("the score is not there")?;
    let (caught, all) = line.split_once(" of ").context("the score is no pair of numbers")?;
    Ok((caught.parse()?, all.parse()?))
}

fn show(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_times_are_read_and_shown() {
        let score =
            "add_of_nothing    add    caught by add_shapes\n\n359 of 360 mutants caught\n50 s\n";
        assert_eq!(mutants_caught(score).unwrap(), (359, 360));
        assert!(mutants_caught("50 s").is_err());
        assert_eq!(show(Duration::from_secs(23)), "23 s");
        assert_eq!(show(Duration::from_secs(640)), "11 min");
    }
}
