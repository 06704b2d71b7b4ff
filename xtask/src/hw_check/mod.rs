//! `cargo xtask hw-check`: everything that only a machine with devices can tell, in one command and one report.
//!
//! It builds, lists the devices, proves every kernel on the first, runs the golden models on each number of devices that can share them,
//! launched and from graphs where there are any, times kernels beside what the device can do at best, and writes Markdown and JSON. What is
//! cut, or was not measured, is said in the report. Nothing but Rust and the driver (with CANN, for NPUs) is needed.

mod golden;
mod report;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    ascend, cuda,
    tool::{self, cargo, run, target},
};
use golden::Trial;

/// Where reports of hardware are kept.
const REPORTS: &str = "docs/hardware";

/// The release of CANN that the software NPU has.
const SOFTWARE_CANN: &str = "cann-8.5";

/// Bytes that a simulated device copies for its figure, which says nothing.
const FEW_BYTES: &str = "1048576";

/// Flags of `cargo xtask hw-check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backend whose devices are checked
    #[arg(long, value_enum, default_value = "cuda")]
    device: Backend,
    /// Use the software GPU or NPU, as these devices, such as h100,h100 or 910B1,910B1; the report says so, and has no times of kernels
    #[arg(long, value_name = "DEVICES")]
    software: Option<String>,
    /// Write the report into this folder; docs/hardware for a whole run on hardware, else target/hardware
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// How often kernels and the model are timed; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Measure tokens a second of this GGUF file or model folder, too
    #[arg(long, value_name = "PATH")]
    bench: Option<PathBuf>,
    /// Only golden models whose name contains this
    #[arg(long, value_name = "TEXT")]
    golden: Option<String>,
    /// Only kernels whose name contains this are timed
    #[arg(long, value_name = "TEXT")]
    kernels: Option<String>,
    /// Further flags of `halyard verify`, which cut what is proven
    #[arg(last = true)]
    flags: Vec<String>,
}

/// Backends that can be checked so.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Backend {
    Cuda,
    Ascend,
}

impl Backend {
    fn id(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Ascend => "ascend",
        }
    }

    /// The package of its library and of [`Self::limits`].
    fn package(self) -> String {
        format!("halyard-backend-{}", self.id())
    }

    /// The example that tells what a device can do at best.
    fn limits(self) -> &'static str {
        match self {
            Self::Cuda => "limits",
            Self::Ascend => "ascend_limits",
        }
    }

    /// What stands in for its devices.
    fn stand_in(self) -> &'static str {
        match self {
            Self::Cuda => "the software GPU",
            Self::Ascend => "the software NPU",
        }
    }

    /// Variables with which programs find these simulated devices. Everything is built.
    fn simulated(self, devices: &str) -> Result<Vec<(&'static str, OsString)>> {
        match self {
            Self::Cuda => Ok(cuda::environment(devices)?.into()),
            Self::Ascend => ascend::environment(SOFTWARE_CANN, devices),
        }
    }
}

/// A device as `halyard devices --json` has it.
#[derive(Debug, Deserialize, Serialize)]
struct Device {
    device: String,
    name: String,
    arch: String,
    driver: String,
    memory_bytes: Option<u64>,
    compute_units: Option<u64>,
    error: Option<String>,
}

/// What `halyard verify` counted.
#[derive(Debug, Deserialize, Serialize)]
struct Counts {
    passed: usize,
    failed: usize,
    unsupported: usize,
    unavailable: usize,
}

#[derive(Debug, Deserialize)]
struct Verified {
    counts: Counts,
}

/// A kernel's time, and the bytes and operations that it needs.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Kernel {
    name: String,
    bytes: u64,
    flops: u64,
    micros: Option<f64>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Timed {
    rows: Vec<Kernel>,
}

/// What [`Backend::limits`] prints.
#[derive(Debug, Deserialize, Serialize)]
struct Limits {
    /// As the device's attributes have it, if they do.
    peak_bytes_per_s: Option<f64>,
    copy_bytes_per_s: f64,
    /// Of CUDA.
    cuda_version: Option<u32>,
    cublaslt: Option<CublasLt>,
}

impl Limits {
    /// Bytes a second that shares are of.
    fn bandwidth(&self) -> f64 {
        self.peak_bytes_per_s.unwrap_or(self.copy_bytes_per_s)
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum CublasLt {
    Missing(String),
    Measured { version: usize, gemms: Vec<Gemm> },
}

#[derive(Debug, Deserialize, Serialize)]
struct Gemm {
    tokens: usize,
    outputs: usize,
    inputs: usize,
    micros: f64,
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Findings {
    commit: String,
    /// What stood in for devices, in words.
    stand_in: Option<&'static str>,
    /// What was left out, in words; empty if all was done.
    cut: Vec<String>,
    runs: u32,
    devices: Vec<Device>,
    verified: Counts,
    golden: Vec<Trial>,
    limits: Limits,
    kernels: Vec<Kernel>,
    /// The report of `halyard bench` on the first device.
    bench: Option<Value>,
}

impl Findings {
    fn passed(&self) -> bool {
        self.verified.failed == 0
            && self.verified.passed > 0
            && self.golden.iter().all(|trial| trial.problem.is_none())
            && self.kernels.iter().all(|kernel| kernel.error.is_none())
    }
}

/// The built programs, and the driver that they find.
struct Place {
    backend: Backend,
    built: PathBuf,
    /// Variables that name a simulated driver.
    software: Option<Vec<(&'static str, OsString)>>,
}

impl Place {
    /// On hardware a release; what stands in for devices is there as `cargo xtask test` builds it.
    fn build(backend: Backend, software: Option<&String>) -> Result<Self> {
        let package = backend.package();
        let example = ["--package", &package, "--example", backend.limits()];
        if let Some(devices) = software {
            match backend {
                Backend::Cuda => cuda::build()?,
                Backend::Ascend => run(cargo().args(["build", "--workspace"]))?,
            }
            run(cargo().arg("build").args(example))?;
            let software = Some(backend.simulated(devices)?);
            return Ok(Self { backend, built: target().join("debug"), software });
        }
        let packages = ["--package", "halyard-server", "--package", &package];
        run(cargo().args(["build", "--release"]).args(packages))?;
        run(cargo().args(["build", "--release"]).args(example))?;
        Ok(Self { backend, built: target().join("release"), software: None })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.built.join(program));
        command.env("HALYARD_BACKEND_PATH", &self.built);
        command.envs(self.software.iter().flatten().map(|(name, value)| (name, value)));
        command
    }

    fn halyard(&self) -> Command {
        self.command("halyard")
    }
}

/// Runs all of it; fails, after the report is written, if anything is wrong.
pub(crate) fn check(args: &Args) -> Result<()> {
    let place = Place::build(args.device, args.software.as_ref())?;
    let devices = devices(&place)?;
    println!("{} x {} ...", devices.len(), devices[0].name);
    let verified = verify(&place, &args.flags)?;
    let golden = golden::trials(&place, devices.len(), args.golden.as_deref())?;
    let findings = Findings {
        commit: commit(),
        stand_in: args.software.is_some().then(|| args.device.stand_in()),
        cut: cut(args),
        runs: args.runs,
        devices,
        verified,
        golden,
        limits: limits(&place)?,
        kernels: kernels(&place, args)?,
        bench: bench(&place, args)?,
    };
    let path = write(&findings, args.output.as_deref())?;
    println!("{}", path.display());
    ensure!(findings.passed(), "not everything passed: see {}", path.display());
    Ok(())
}

fn commit() -> String {
    let described = tool::output(Command::new("git").args(["describe", "--always", "--dirty"]));
    described.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn cut(args: &Args) -> Vec<String> {
    let mut cut = Vec::new();
    if !args.flags.is_empty() {
        cut.push(format!("`halyard verify` with `{}`", args.flags.join(" ")));
    }
    let only = [("golden models", &args.golden), ("timed kernels", &args.kernels)];
    for (what, text) in only {
        cut.extend(text.as_ref().map(|text| format!("only {what} with `{text}` in the name")));
    }
    if args.software.is_some() {
        let stand_in = args.device.stand_in();
        cut.push(format!(
            "few tokens, and no times of kernels, for which {stand_in} takes minutes"
        ));
    }
    cut
}

/// The devices that can be opened; an error says why there is none.
fn devices(place: &Place) -> Result<Vec<Device>> {
    let backend = place.backend.id();
    let all: Vec<Device> = json(place.halyard().args(["devices", "--json"]))?;
    let ours = format!("{backend}:");
    let found: Vec<Device> = all.into_iter().filter(|d| d.device.starts_with(&ours)).collect();
    if let Some(broken) = found.iter().find(|device| device.error.is_some()) {
        bail!("{}: {}", broken.device, broken.error.as_deref().unwrap_or_default());
    }
    if found.is_empty() {
        bail!("no device of {backend}: {}", why_none(place)?);
    }
    Ok(found)
}

fn why_none(place: &Place) -> Result<String> {
    let all: Vec<Value> = json(place.halyard().args(["backends", "list", "--json"]))?;
    let ours = all.iter().find(|one| one["id"] == place.backend.id());
    let state = ours.and_then(|one| one["state"].as_str());
    Ok(match state {
        None => format!("no backend of this name in {}", place.built.display()),
        Some("ok") => "its driver has none".into(),
        Some(state) => state.to_owned(),
    })
}

/// Every declared profile on the first device.
fn verify(place: &Place, flags: &[String]) -> Result<Counts> {
    let mut halyard = place.halyard();
    halyard.args(["verify", place.backend.id(), "--json", "-"]).args(flags);
    // Failures are in the report, too.
    let done = halyard.output().context("cannot start halyard")?;
    let reports: Vec<Verified> = serde_json::from_slice(&done.stdout)
        .with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?;
    let report = reports.into_iter().next().context("halyard verify gave no report")?;
    Ok(report.counts)
}

fn limits(place: &Place) -> Result<Limits> {
    let mut limits = place.command(&format!("examples/{}", place.backend.limits()));
    if place.software.is_some() {
        limits.arg(FEW_BYTES);
    }
    json(&mut limits)
}

/// Each own kernel's median of some runs, which are put beside the vendor's; none on simulated devices.
fn kernels(place: &Place, args: &Args) -> Result<Vec<Kernel>> {
    let mut runs = Vec::new();
    let count = if args.software.is_some() { 0 } else { args.runs };
    for _ in 0..count {
        let mut halyard = place.halyard();
        halyard
            .args(["verify", place.backend.id(), "--perf", "--json", "-"])
            .env(cuda::USES_CUBLASLT, "0");
        if let Some(part) = &args.kernels {
            halyard.args(["--case", part]);
        }
        let reports: Vec<Timed> = json(&mut halyard)?;
        runs.push(reports.into_iter().next().context("no kernel was timed")?.rows);
    }
    Ok(medians(&runs))
}

/// The rows of several runs as one; a kernel that failed once has failed.
fn medians(runs: &[Vec<Kernel>]) -> Vec<Kernel> {
    let [first, ..] = runs else { return Vec::new() };
    let of_all = |at: usize| {
        let all = || runs.iter().filter_map(|rows| rows.get(at));
        let mut times: Vec<f64> = all().filter_map(|kernel| kernel.micros).collect();
        times.sort_by(f64::total_cmp);
        let error = all().find_map(|kernel| kernel.error.clone());
        let micros = times.get(times.len() / 2).copied().filter(|_| error.is_none());
        Kernel { micros, error, ..first[at].clone() }
    };
    (0..first.len()).map(of_all).collect()
}

fn bench(place: &Place, args: &Args) -> Result<Option<Value>> {
    let Some(model) = &args.bench else { return Ok(None) };
    let mut halyard = place.halyard();
    let device = place.backend.id();
    halyard.args(["bench", "--json", "--device", device, "-r", &args.runs.to_string()]);
    if place.software.is_some() {
        halyard.args(["-p", "8", "-g", "4"]);
    }
    Ok(Some(json(halyard.arg(model))?))
}

fn json<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let text = tool::output_quietly(command)?;
    serde_json::from_str(&text).with_context(|| format!("no report: {text}"))
}

/// Writes both reports, and gives the path of the one for people.
fn write(findings: &Findings, output: Option<&Path>) -> Result<PathBuf> {
    let whole = findings.stand_in.is_none() && findings.cut.is_empty();
    let folder = match output {
        Some(folder) => folder.to_owned(),
        None if whole => PathBuf::from(REPORTS),
        None => target().join("hardware"),
    };
    fs::create_dir_all(&folder)?;
    let stem = stem(&findings.devices[0].name);
    let path = folder.join(format!("{stem}.md"));
    fs::write(&path, report::markdown(findings))?;
    let json = serde_json::to_string_pretty(findings)?;
    fs::write(folder.join(format!("{stem}.json")), json + "\n")?;
    Ok(path)
}

/// `NVIDIA H100 80GB HBM3` as `nvidia-h100-80gb-hbm3`.
fn stem(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(micros: Option<f64>) -> Kernel {
        let error = micros.is_none().then(|| "no room".to_owned());
        Kernel { name: "copy".into(), bytes: 1, flops: 0, micros, error }
    }

    #[test]
    fn medians_count_and_failures_stay() {
        let runs = [3.0, 1.0, 2.0].map(|micros| vec![kernel(Some(micros)), kernel(Some(5.0))]);
        let found: Vec<_> = medians(&runs).into_iter().map(|kernel| kernel.micros).collect();
        assert_eq!(found, [Some(2.0), Some(5.0)]);
        let failed = medians(&[vec![kernel(Some(1.0))], vec![kernel(None)]]);
        assert_eq!((failed[0].micros, failed[0].error.as_deref()), (None, Some("no room")));
    }

    #[test]
    fn files_are_named_as_the_device() {
        assert_eq!(stem("NVIDIA H100 80GB HBM3"), "nvidia-h100-80gb-hbm3");
        assert_eq!(stem("Simulated A100 (40 GB)"), "simulated-a100-40-gb");
    }
}
