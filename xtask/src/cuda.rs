//! The CUDA backend on the software GPU.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    ptx,
    tool::{cargo, run, target},
};

/// The devices that the software GPU can be.
const DEVICES: [&str; 5] = ["a100-80g", "a100-40g", "h100", "l20", "rtx4090"];

/// Devices of a kind: the largest world of a communicator that the suite has.
const DEVICES_OF_A_KIND: usize = 8;

/// The software GPU's libraries, and the names under which they are looked for.
const LIBRARIES: [(&str, [&str; 2]); 2] = [
    ("libhalyard_sim_cuda.so", ["libcuda.so", "libcuda.so.1"]),
    ("libhalyard_sim_nccl.so", ["libnccl.so", "libnccl.so.2"]),
];

/// Flags of `cargo xtask verify-cuda`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this device: a100-80g, a100-40g, h100, l20 or rtx4090
    #[arg(long)]
    device: Option<String>,
    /// Further flags of `halyard verify`
    #[arg(last = true)]
    flags: Vec<String>,
}

/// `halyard verify cuda` on the software GPU, as each device. The library is the one that a user installs.
pub(crate) fn verify(args: &Args) -> Result<()> {
    let packages =
        ["halyard-server", "halyard-backend-cuda", "halyard-sim-cuda", "halyard-sim-nccl"];
    run(cargo().arg("build").args(packages.iter().flat_map(|p| ["--package", p])))?;
    let wanted = |device: &&&str| args.device.as_ref().is_none_or(|one| one == **device);
    for device in DEVICES.iter().filter(wanted) {
        let mut halyard = halyard(&[*device; DEVICES_OF_A_KIND].join(","))?;
        halyard.args(["verify", "cuda"]).args(&args.flags);
        run(&mut halyard).with_context(|| format!("on the software GPU as {device}"))?;
    }
    Ok(())
}

/// The binary, where it finds the backend, and the software GPU as the driver.
pub(crate) fn halyard(devices: &str) -> Result<Command> {
    let built = target().join("debug");
    let mut command = Command::new(built.join("halyard"));
    command.env("HALYARD_BACKEND_PATH", &built).env("HALYARD_SIM_CUDA_DEVICES", devices);
    command.env("LD_LIBRARY_PATH", driver()?);
    Ok(command)
}

/// A folder in which the software GPU's libraries have the names of the real ones.
fn driver() -> Result<PathBuf> {
    let folder = target().join("sim-cuda");
    fs::create_dir_all(&folder)?;
    for (library, names) in LIBRARIES {
        for link in names.map(|name| folder.join(name)) {
            if fs::symlink_metadata(&link).is_err() {
                std::os::unix::fs::symlink(format!("../debug/{library}"), &link)?;
            }
        }
    }
    Ok(folder)
}

/// The step of `cargo xtask test`: sources and committed PTX agree, and every kernel passes on every device.
pub(crate) fn test() -> Result<()> {
    ptx::ptx(&ptx::Args::checking())?;
    verify(&Args { device: None, flags: Vec::new() })
}
