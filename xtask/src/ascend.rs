//! The Ascend backend on the software NPU.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tool::{cargo, command, output, run, run_at_once, target};

/// Releases of CANN whose libraries the software NPU can be.
const RELEASES: [&str; 3] = ["cann-8.1", "cann-8.5", "cann-9.1"];

/// Those of `cargo xtask test`: operators in one library, and split.
const TESTED: [&str; 2] = ["cann-8.1", "cann-8.5"];

/// Devices: the largest world of a communicator that the suite has.
const DEVICES: usize = 8;

/// Flags of `cargo xtask verify-ascend`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this release's libraries: cann-8.1, cann-8.5 or cann-9.1
    #[arg(long)]
    release: Option<String>,
    /// The chip: 910B1, 910B2, 910B2C, 910B3 or 910B4
    #[arg(long, default_value = "910B1")]
    chip: String,
    /// Further flags of `halyard verify`
    #[arg(last = true)]
    flags: Vec<String>,
}

/// `halyard verify ascend` on the software NPU, with each release's libraries. The backend's library is the one that a user installs.
pub(crate) fn verify(args: &Args) -> Result<()> {
    run(cargo().args(["build", "--workspace"]))?;
    let wanted = |release: &&str| args.release.as_ref().is_none_or(|one| one == release);
    let releases: Vec<&str> = RELEASES.into_iter().filter(wanted).collect();
    if releases.is_empty() {
        bail!("--release: expected one of {}", RELEASES.join(", "));
    }
    on_each(&releases, &args.chip, &args.flags)
}

/// The suite with the libraries of each release.
fn on_each(releases: &[&str], chip: &str, flags: &[String]) -> Result<()> {
    let verify = |release: &&str| {
        let mut halyard = halyard(release, &[chip; DEVICES].join(","))?;
        halyard.args(["verify", "ascend"]).args(flags);
        Ok((release.to_string(), halyard))
    };
    let all = releases.iter().map(verify).collect::<Result<_>>()?;
    run_at_once("ascend did not pass on the software NPU with", all)
}

/// The binary, where it finds the backend, and a release's libraries.
fn halyard(release: &str, devices: &str) -> Result<Command> {
    let built = target().join("debug");
    let mut command = Command::new(built.join("halyard"));
    command.env("HALYARD_BACKEND_PATH", &built).envs(environment(release, devices)?);
    Ok(command)
}

/// Variables with which programs find a release's libraries, made anew, and these devices. A machine may have a toolkit, which is not found.
pub(crate) fn environment(release: &str, devices: &str) -> Result<Vec<(&'static str, OsString)>> {
    let libraries = libraries(release)?.into_os_string();
    let places = ["LD_LIBRARY_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"];
    let places = places.map(|name| (name, libraries.clone()));
    Ok(places.into_iter().chain([("HALYARD_SIM_ASCEND_DEVICES", devices.into())]).collect())
}

/// A folder with a release's libraries, made anew.
fn libraries(release: &str) -> Result<PathBuf> {
    let folder = target().join("sim-ascend").join(release);
    let layout = target().join("debug/halyard-sim-ascend-layout");
    run(command(layout, [release]).arg(&folder))?;
    Ok(folder)
}

/// The step of `cargo xtask test`, after everything is built: the profiles that the backend declares.
pub(crate) fn test() -> Result<()> {
    let mut info = halyard(TESTED[0], "910B1")?;
    let info = output(info.args(["backends", "info", "ascend", "--json"]))?;
    let info: Value =
        serde_json::from_str(&info).context("`halyard backends info` gave no JSON")?;
    let declared = info["profiles"].as_array().context("no profiles in `halyard backends info`")?;
    let declared = declared.iter().filter_map(Value::as_str);
    let flags: Vec<String> = declared.map(|profile| format!("--profile={profile}")).collect();
    if flags.is_empty() {
        bail!("the Ascend backend declares no profile: there is nothing to verify");
    }
    on_each(&TESTED, "910B1", &flags)
}
