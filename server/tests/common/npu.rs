//! Machines with software NPUs: the Ascend backend's own library, and the simulator's libraries in the places of the vendor's.

use std::{env, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use halyard_sim_ascend::layout::{Profile, install, install_without};
use tempfile::TempDir;

use super::{MODELS, SERVE, gpu::beside, halyard};

/// A machine: its CANN, its devices, and what goes wrong in it.
pub(crate) struct Npus {
    folder: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Npus {
    /// With the libraries of a release of CANN and these devices, such as `910B1,910B1`.
    pub(crate) fn with(release: &str, devices: &str) -> Self {
        let profile = Profile::named(release).expect("a release");
        let npus = Self::without_cann(devices);
        let core = beside("libhalyard_sim_ascend.so");
        install(profile, &core, npus.folder.path()).expect("cc links the libraries");
        npus
    }

    /// With a release that lacks a function.
    pub(crate) fn without(function: &str, release: &str, devices: &str) -> Self {
        let profile = Profile::named(release).expect("a release");
        let npus = Self::without_cann(devices);
        let core = beside("libhalyard_sim_ascend.so");
        install_without(&[function], profile, &core, npus.folder.path()).expect("cc links them");
        npus
    }

    /// Without CANN.
    pub(crate) fn without_cann(devices: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("cache").display().to_string();
        let settings =
            vec![("HALYARD_SIM_ASCEND_DEVICES", devices.to_owned()), ("XDG_CACHE_HOME", cache)];
        Self { folder, settings }
    }

    /// With a variable of the environment.
    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }

    /// With failures of hardware or driver (`sim/ascend/runtime/src/fault.rs`).
    pub(crate) fn failing(self, faults: &str) -> Self {
        self.set("HALYARD_SIM_ASCEND_FAULT", faults)
    }

    /// Without a library.
    pub(crate) fn lacking(self, name: &str) -> Self {
        fs::remove_file(self.folder.path().join(name)).expect("it was there");
        self
    }

    /// Where the library of one name is that of another.
    pub(crate) fn mistaking(self, name: &str, other: &str) -> Self {
        let at = |name: &str| self.folder.path().join(name);
        fs::copy(at(other), at(name)).expect("both are there");
        self
    }

    /// With a program of this name that the shell runs, before all others.
    pub(crate) fn program(self, name: &str, script: &str) -> Self {
        let path = self.folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our file");
        let others = env::var("PATH").unwrap_or_default();
        let all = format!("{}:{others}", self.folder.path().display());
        self.set("PATH", &all)
    }

    /// `halyard` with a command.
    pub(crate) fn halyard(&self, command: &str) -> Command {
        let mut halyard = halyard(command);
        // Who may write to a developer's target folder is not what is tested here.
        halyard.arg("--insecure-plugins").arg("--backend-path");
        halyard.arg(beside("libhalyard_backend_ascend.so"));
        let libraries: &Path = self.folder.path();
        halyard.env("LD_LIBRARY_PATH", libraries).env("ASCEND_HOME_PATH", libraries);
        halyard.env_remove("ASCEND_TOOLKIT_HOME").env_remove("ASCEND_RT_VISIBLE_DEVICES");
        halyard.envs(self.settings.iter().map(|(name, value)| (name, value)));
        halyard
    }

    /// `halyard serve --device ascend` of a golden model, whose kernels are not verified unless a flag says so.
    pub(crate) fn serve(&self, model: &str, flags: &[&str]) -> Command {
        self.serve_path(Path::new(&format!("{MODELS}/{model}")), flags)
    }

    /// The same of any model.
    pub(crate) fn serve_path(&self, model: &Path, flags: &[&str]) -> Command {
        let mut serve = self.halyard("serve");
        serve.arg(model).args(SERVE).args(["--device", "ascend"]);
        if !flags.contains(&"--conformance") {
            serve.args(["--conformance", "off"]);
        }
        serve.args(flags);
        serve
    }
}
