//! `halyard verify`.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use halyard_conformance::{Options, Progress, Report, html, junit, oracle, perf, verify};
use halyard_core::{Backend, InfoKey};
use indicatif::ProgressBar;
use serde::Serialize;

use super::backends::{Search, open_ordinal};
use crate::{
    cli::{VerifyCommand, values::DeviceChoice},
    ui::{self, Unit},
};

pub(super) fn run(command: &VerifyCommand) -> anyhow::Result<()> {
    let backends = backends(command)?;
    if command.perf {
        return time(command, &backends);
    }
    let mut reports = Vec::with_capacity(backends.len());
    for (backend, ordinal) in &backends {
        reports.push(verify_one(command, backend, *ordinal)?);
    }
    let to_terminal = write_json(command, &reports)?;
    if let Some(path) = &command.junit {
        write(path, &junit(&reports))?;
    }
    if let Some(path) = &command.html {
        write(path, &html(&reports))?;
    }
    if !to_terminal {
        for report in &reports {
            ui::line(format_args!("{}", report.table()))?;
        }
    }
    let failed: Vec<&str> =
        reports.iter().filter(|report| !report.passed()).map(|r| r.backend.as_str()).collect();
    if !failed.is_empty() {
        bail!("{} did not pass", failed.join(", "));
    }
    Ok(())
}

/// Times kernels instead of checking them.
fn time(command: &VerifyCommand, backends: &[(Backend, u32)]) -> anyhow::Result<()> {
    let mut reports = Vec::with_capacity(backends.len());
    for (backend, ordinal) in backends {
        let device = open_ordinal(backend, *ordinal, command.threads)?;
        let bar = ui::progress("timing", 0, Unit::Items);
        let report = perf(&device, &options(command), &mut |progress| show(&bar, progress))?;
        bar.finish_and_clear();
        if report.rows.is_empty() {
            bail!("no shape has this name, profile and op");
        }
        reports.push(report);
    }
    if !write_json(command, &reports)? {
        for report in &reports {
            ui::line(format_args!("{}", report.table()))?;
        }
    }
    Ok(())
}

/// Writes the reports where `--json` says, and tells whether that was standard output.
fn write_json<T: Serialize>(command: &VerifyCommand, reports: &[T]) -> anyhow::Result<bool> {
    match command.json.as_deref() {
        Some(path) if path == Path::new("-") => {
            ui::json(&reports).map(|()| true).map_err(Into::into)
        }
        Some(path) => write(path, &serde_json::to_string_pretty(reports)?).map(|()| false),
        None => Ok(false),
    }
}

fn options(command: &VerifyCommand) -> Options {
    Options {
        case: command.case.clone(),
        profiles: command.profile.clone(),
        ops: command.op.clone(),
        full: command.full,
        seed: command.seed,
    }
}

fn show(bar: &ProgressBar, progress: Progress<'_>) {
    bar.set_length(u64::try_from(progress.total).unwrap_or(0));
    bar.set_position(u64::try_from(progress.done).unwrap_or(0));
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Those that are named, or all that can run here.
fn backends(command: &VerifyCommand) -> anyhow::Result<Vec<(Backend, u32)>> {
    let search = Search::new(&command.search)?;
    if !command.backends.is_empty() {
        return command.backends.iter().map(|name| named(&search, name)).collect();
    }
    let mut usable = Vec::new();
    for loaded in search.all() {
        let backend = loaded?;
        if backend.probe() > 0 {
            usable.push((backend, 0));
        } else {
            let reason = backend.info(InfoKey::PROBE_REASON);
            tracing::warn!("{} cannot run here and is left out: {reason}", backend.id());
        }
    }
    Ok(usable)
}

/// `cuda`, `cuda:1`, or a library.
fn named(search: &Search, name: &str) -> anyhow::Result<(Backend, u32)> {
    let choice: DeviceChoice = name.parse().map_err(anyhow::Error::msg)?;
    let id = choice.backend.context("name a backend, not `auto`")?;
    Ok((search.one(&id)?, choice.indices.first().copied().unwrap_or(0)))
}

fn verify_one(command: &VerifyCommand, backend: &Backend, ordinal: u32) -> anyhow::Result<Report> {
    let device = open_ordinal(backend, ordinal, command.threads)?;
    let oracle = oracle().context("cannot open the reference")?;
    let bar = ui::progress("verifying", 0, Unit::Items);
    let report = verify(&device, &oracle, &options(command), &mut |progress| show(&bar, progress))?;
    bar.finish_and_clear();
    if report.cases.is_empty() {
        bail!("no case has this name, profile and op");
    }
    Ok(report)
}
