//! The CUDA backend on the software GPU.

use std::{
    env, ffi::OsString, fs, io::ErrorKind, os::unix::fs::symlink, path::PathBuf, process::Command,
};

use anyhow::{Result, bail};

use crate::{
    model, ptx,
    tool::{cargo, run, run_at_once, target},
};

/// The devices that the software GPU can be.
const DEVICES: [&str; 5] = ["a100-80g", "a100-40g", "h100", "l20", "rtx4090"];

/// The device whose kernels are counted.
const COUNTED: &str = "h100";

/// One for each architecture that kernels are compiled for.
const ARCHITECTURES: [&str; 3] = ["a100-80g", "h100", "l20"];

/// Devices of a kind: the largest world of a communicator that the suite has.
const DEVICES_OF_A_KIND: usize = 8;

/// The software GPU's libraries, and the names under which they are looked for.
const LIBRARIES: [(&str, [&str; 2]); 2] = [
    ("libhalyard_sim_cuda.so", ["libcuda.so", "libcuda.so.1"]),
    ("libhalyard_sim_nccl.so", ["libnccl.so", "libnccl.so.2"]),
];

/// The software GPU's cuBLASLt, in a folder of its own: the backend uses it where it finds it.
const CUBLASLT: (&str, [&str; 1]) = ("libhalyard_sim_cublaslt.so", ["libcublasLt.so.12"]);

/// Whether the backend uses cuBLASLt; a developer's machine may have the real one, which has no use for a software GPU.
pub(crate) const USES_CUBLASLT: &str = "HALYARD_CUDA_CUBLASLT";

/// Ops that cuBLASLt may compute.
const BY_CUBLASLT: [&str; 4] = ["--op", "linear", "--op", "linear_act_mul"];

/// Flags of `cargo xtask verify-cuda`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this device: a100-80g, a100-40g, h100, l20 or rtx4090
    #[arg(long)]
    device: Option<String>,
    /// Instead: every golden answer of a real model, SmolLM2-135M-Instruct, which is fetched; takes minutes
    #[arg(long, conflicts_with_all = ["device", "flags"])]
    models: bool,
    /// With the software cuBLASLt, which then has to be used
    #[arg(long)]
    cublaslt: bool,
    /// Further flags of `halyard verify`
    #[arg(last = true)]
    flags: Vec<String>,
}

/// `halyard verify cuda` on the software GPU, as each device. The library is the one that a user installs.
pub(crate) fn verify(args: &Args) -> Result<()> {
    if args.models {
        return models();
    }
    build()?;
    let wanted = |device: &&str| args.device.as_ref().is_none_or(|one| one == device);
    let devices: Vec<&str> = DEVICES.into_iter().filter(wanted).collect();
    if devices.is_empty() {
        bail!("--device: expected one of {}", DEVICES.join(", "));
    }
    let flags: Vec<_> = args.flags.iter().map(String::as_str).collect();
    let suite = |device| Suite { device, cublaslt: args.cublaslt, flags: &flags };
    verify_all(&devices.into_iter().map(suite).collect::<Vec<_>>())
}

/// The tests that `cargo xtask test` leaves out, since the software GPU takes a second a token.
fn models() -> Result<()> {
    let model = model::fetch()?;
    let mut test = cargo();
    test.args(["test", "--workspace", "--test", "smollm2", "--", "--ignored"]);
    run(test.env("HALYARD_SMOLLM2", model))
}

/// `halyard verify cuda` as one device.
#[derive(Clone, Copy)]
struct Suite<'a> {
    device: &'a str,
    cublaslt: bool,
    flags: &'a [&'a str],
}

impl Suite<'_> {
    fn command(&self) -> Result<Command> {
        let mut halyard = halyard(&[self.device; DEVICES_OF_A_KIND].join(","))?;
        if self.cublaslt {
            let folders = [driver()?, linked("sim-cublaslt", CUBLASLT.0, &CUBLASLT.1)?];
            halyard.env("LD_LIBRARY_PATH", env::join_paths(folders)?).env(USES_CUBLASLT, "1");
        }
        halyard.args(["verify", "cuda"]).args(self.flags);
        Ok(halyard)
    }

    fn name(&self) -> String {
        format!("{}{}", self.device, if self.cublaslt { " with cuBLASLt" } else { "" })
    }
}

/// Several suites at once; each then computes on one core.
fn verify_all(suites: &[Suite<'_>]) -> Result<()> {
    let command = |suite: &Suite<'_>| {
        let mut command = suite.command()?;
        if suites.len() > 1 {
            command.env("HALYARD_SIM_CUDA_THREADS", "1");
        }
        Ok((suite.name(), command))
    };
    let all = suites.iter().map(command).collect::<Result<_>>()?;
    run_at_once("cuda did not pass on the software GPU as", all)
}

/// Flags of `cargo xtask cuda-figures`.
#[derive(Debug, clap::Args)]
pub(crate) struct FiguresArgs {
    /// Only launches whose name contains this
    part: Option<String>,
    /// The device whose kernels run: a100-80g, a100-40g, h100, l20 or rtx4090
    #[arg(long, default_value = COUNTED)]
    device: String,
}

/// A table of what each kernel did in one launch, of `conformance/cases/counted.toml`. Fails if a `gemv` or `decode` moves more than
/// 1.05 of the bytes that it must, a `gemm` of 16 bits or of codes, a `flash` or `grouped` does not multiply on tensor cores, or any of
/// these has bank conflicts of more than two ways.
pub(crate) fn figures(args: &FiguresArgs) -> Result<()> {
    build()?;
    count(args.part.as_deref(), &args.device)
}

/// The step of `cargo xtask test`, after everything is built.
pub(crate) fn figures_test() -> Result<()> {
    count(None, COUNTED)
}

fn count(part: Option<&str>, device: &str) -> Result<()> {
    run(cargo().args(["build", "--workspace", "--example", "figures"]))?;
    let built = target().join("debug");
    let mut figures = Command::new(built.join("examples/figures"));
    run(figures.env("HALYARD_BACKEND_PATH", &built).envs(environment(device)?).args(part))
}

/// Builds the binary, the backend and the software GPU.
pub(crate) fn build() -> Result<()> {
    run(cargo().args(["build", "--workspace"]))
}

/// The binary, where it finds the backend, and the software GPU as the driver.
pub(crate) fn halyard(devices: &str) -> Result<Command> {
    let built = target().join("debug");
    let mut command = Command::new(built.join("halyard"));
    command.env("HALYARD_BACKEND_PATH", &built).envs(environment(devices)?);
    Ok(command)
}

/// Variables with which programs find the software GPU as the driver, and these devices. Kernels are the backend's own.
pub(crate) fn environment(devices: &str) -> Result<[(&'static str, OsString); 3]> {
    let driver = driver()?.into_os_string();
    let devices = ("HALYARD_SIM_CUDA_DEVICES", devices.into());
    Ok([devices, ("LD_LIBRARY_PATH", driver), (USES_CUBLASLT, "0".into())])
}

/// A folder in which the software GPU's libraries have the names of the real ones.
fn driver() -> Result<PathBuf> {
    for (library, names) in LIBRARIES {
        linked("sim-cuda", library, &names)?;
    }
    Ok(target().join("sim-cuda"))
}

/// A folder in which a library of this workspace has these names.
fn linked(folder: &str, library: &str, names: &[&str]) -> Result<PathBuf> {
    let folder = target().join(folder);
    fs::create_dir_all(&folder)?;
    for link in names.iter().map(|name| folder.join(name)) {
        match symlink(format!("../debug/{library}"), &link) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    Ok(folder)
}

/// The step of `cargo xtask test`, after everything is built: sources and committed PTX agree, and every kernel passes on every
/// architecture; so do linear layers by cuBLASLt, which is one code for all of them.
pub(crate) fn test() -> Result<()> {
    ptx::ptx(&ptx::Args::checking())?;
    let own = ARCHITECTURES.map(|device| Suite { device, cublaslt: false, flags: &[] });
    let library = Suite { device: COUNTED, cublaslt: true, flags: &BY_CUBLASLT };
    verify_all(&[&own[..], &[library]].concat())
}
