//! Machines with software GPUs: the CUDA backend's own library, and the simulator's libraries in the places of the vendor's.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{MODELS, SERVE, halyard};

/// The file of a library, and the names by which it is looked for.
const LIBRARIES: [(&str, &[&str]); 2] = [
    ("libhalyard_sim_cuda.so", &["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"]),
    ("libhalyard_sim_nccl.so", &["libnccl.so"]),
];

/// A machine: its libraries, its devices, and what goes wrong in it.
pub(crate) struct Machine {
    folder: TempDir,
    settings: Vec<(&'static str, String)>,
}

/// A library that cargo has put beside this test.
pub(crate) fn beside(name: &str) -> PathBuf {
    env::current_exe().expect("a test knows its path").with_file_name(name)
}

impl Machine {
    /// With these devices, such as `l20,l20`.
    pub(crate) fn with(devices: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (library, names) in LIBRARIES {
            for name in names {
                symlink(beside(library), folder.path().join(name)).expect("a link");
            }
        }
        let cache = folder.path().join("cache").display().to_string();
        let settings = vec![
            ("HALYARD_SIM_CUDA_DEVICES", devices.to_owned()),
            ("XDG_CACHE_HOME", cache),
            ("HALYARD_CUDA_CUBLASLT", "0".into()),
        ];
        Self { folder, settings }
    }

    /// With a setting of the simulator's.
    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }

    /// With the software cuBLASLt, which must be used.
    pub(crate) fn with_cublaslt(self) -> Self {
        let place = self.folder.path().join("libcublasLt.so.12");
        symlink(beside("libhalyard_sim_cublaslt.so"), place).expect("a link");
        self.set("HALYARD_CUDA_CUBLASLT", "1")
    }

    /// With failures of hardware or driver (`sim/cuda/driver/src/faults.rs`).
    pub(crate) fn failing(self, faults: &str) -> Self {
        self.set("HALYARD_SIM_CUDA_FAULTS", faults)
    }

    /// Where a library of this name is another file. One that is no library hides those that a developer's machine may have.
    pub(crate) fn replacing(self, name: &str, with: &Path) -> Self {
        let place = self.folder.path().join(name);
        fs::remove_file(&place).expect("it was there");
        symlink(with, place).expect("a link");
        self
    }

    /// `halyard` with a command.
    pub(crate) fn halyard(&self, command: &str) -> Command {
        let mut halyard = halyard(command);
        // Who may write to a developer's target folder is not what is tested here.
        halyard.arg("--insecure-plugins").arg("--backend-path");
        halyard.arg(beside("libhalyard_backend_cuda.so"));
        halyard.env("LD_LIBRARY_PATH", self.folder.path());
        halyard.envs(self.settings.iter().map(|(name, value)| (name, value)));
        halyard
    }

    /// `halyard serve --device cuda` of a golden model, whose kernels are not verified unless a flag says so.
    pub(crate) fn serve(&self, model: &str, flags: &[&str]) -> Command {
        let mut serve = self.halyard("serve");
        serve.arg(format!("{MODELS}/{model}")).args(SERVE).args(["--device", "cuda"]);
        if !flags.contains(&"--conformance") {
            serve.args(["--conformance", "off"]);
        }
        serve.args(flags);
        serve
    }
}
