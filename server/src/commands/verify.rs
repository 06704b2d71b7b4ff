//! `halyard verify`.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use halyard_conformance::{Options, Progress, Report, html, junit, oracle, verify};
use halyard_core::{Backend, InfoKey};

use super::backends::{Search, open_ordinal};
use crate::{
    cli::{VerifyCommand, values::DeviceChoice},
    ui::{self, Unit},
};

pub(super) fn run(command: &VerifyCommand) -> anyhow::Result<()> {
    let backends = backends(command)?;
    let mut reports = Vec::with_capacity(backends.len());
    for (backend, ordinal) in &backends {
        reports.push(verify_one(command, backend, *ordinal)?);
    }
    let to_terminal = command.json.as_deref() == Some(Path::new("-"));
    match &command.json {
        Some(_) if to_terminal => ui::json(&reports)?,
        Some(path) => write(path, &serde_json::to_string_pretty(&reports)?)?,
        None => {}
    }
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
    let options = Options {
        case: command.case.clone(),
        profiles: command.profile.clone(),
        ops: command.op.clone(),
        seed: command.seed,
    };
    let bar = ui::progress("verifying", 0, Unit::Items);
    let mut on_progress = |progress: Progress<'_>| {
        bar.set_length(u64::try_from(progress.total).unwrap_or(0));
        bar.set_position(u64::try_from(progress.done).unwrap_or(0));
    };
    let report = verify(&device, &oracle, &options, &mut on_progress)?;
    bar.finish_and_clear();
    if report.cases.is_empty() {
        bail!("no case has this name, profile and op");
    }
    Ok(report)
}
