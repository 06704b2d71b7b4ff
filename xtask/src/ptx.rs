//! `cargo xtask ptx`: the CUDA backend's kernels, compiled for each architecture, and what the vendor's assembler says of them.
//!
//! The PTX is committed, so that the backend builds without a CUDA compiler; CI compiles it again and fails on a difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};

use crate::tool::{self, each, exists, run, target};

const KERNELS: &str = "backends/cuda/kernels";

/// Target of clang, and the PTX version that its text declares: the oldest that has all that the kernels use, for the sake of
/// old drivers.
const ARCHITECTURES: [(&str, &str); 3] =
    [("sm_80", "ptx78"), ("sm_89", "ptx78"), ("sm_90", "ptx78")];

/// Modules that need newer PTX, and so a newer driver, which the backend asks for before it loads them.
const NEWER: [(&str, &str); 1] = [("gemm_fp8", "ptx84")];

/// The assembler's package: it carries `ptxas` alone.
const ASSEMBLER: &str = "nvidia-cuda-nvcc-cu12==12.9.86";

/// Flags of `cargo xtask ptx`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if the committed PTX differs from what the sources give
    #[arg(long)]
    check: bool,
    /// Only kernels/NAME.cu
    names: Vec<String>,
}

impl Args {
    /// Those of CI.
    pub(crate) fn checking() -> Self {
        Self { check: true, names: Vec::new() }
    }
}

/// Compiles the kernels; then assembles them, if the assembler can be had.
pub(crate) fn ptx(args: &Args) -> Result<()> {
    let sources = sources(&args.names)?;
    let clang = clang()?;
    let differ = Mutex::new(Vec::new());
    each(&modules(&sources), |module| {
        let committed = module.committed();
        let text = compile(&clang, module)?;
        if fs::read_to_string(&committed).is_ok_and(|old| old == text) {
            return Ok(());
        }
        if args.check {
            lock(&differ).push(committed.display().to_string());
            return Ok(());
        }
        fs::create_dir_all(committed.parent().context("a folder")?)?;
        Ok(fs::write(&committed, text)?)
    })
    .into_iter()
    .collect::<Result<()>>()?;
    let differ = lock(&differ);
    if !differ.is_empty() {
        bail!("differ from their sources (run `cargo xtask ptx`):\n{}", differ.join("\n"));
    }
    println!("{} files compiled for {} architectures", sources.len(), ARCHITECTURES.len());
    assemble(&sources)
}

/// The `.cu` files.
fn sources(names: &[String]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in fs::read_dir(KERNELS)? {
        let path = file?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = names.is_empty() || names.contains(&name);
        if path.extension().is_some_and(|e| e == "cu") && wanted {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "no such file in {KERNELS}: {}", names.join(", "));
    found.sort();
    Ok(found)
}

/// A source for one architecture.
#[derive(Clone, Copy)]
struct Module<'a> {
    source: &'a Path,
    arch: &'static str,
    version: &'static str,
}

impl Module<'_> {
    fn name(&self) -> String {
        self.source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn committed(&self) -> PathBuf {
        Path::new(KERNELS).join("ptx").join(self.arch).join(self.name() + ".ptx")
    }
}

fn modules(sources: &[PathBuf]) -> Vec<Module<'_>> {
    let of = |source: &Path| {
        let newer = NEWER.iter().find(|(name, _)| source.file_stem().is_some_and(|s| s == *name));
        ARCHITECTURES.map(|(arch, version)| (arch, newer.map_or(version, |(_, newer)| newer)))
    };
    let modules = |source| of(source).map(|(arch, version)| Module { source, arch, version });
    sources.iter().flat_map(|source| modules(source.as_path())).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// clang 19: its CUDA mode needs nothing of NVIDIA's. Other versions would give other text.
fn clang() -> Result<String> {
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang-19".into());
    if !exists(&clang, &["--version"]) && exists("apt-get", &["--version"]) {
        let install = ["install", "-y", "--no-install-recommends", "clang-19"];
        let quiet = Stdio::null;
        // Without the rights for it the message below says what to do.
        let _ = tool::command("apt-get", ["update"]).stdout(quiet()).stderr(quiet()).status();
        let _ = tool::command("apt-get", install).stdout(quiet()).stderr(quiet()).status();
    }
    ensure!(
        exists(&clang, &["--version"]),
        "{clang} is not there: install it (Debian: apt-get install clang-19), or name one with CLANG=PATH"
    );
    Ok(clang)
}

fn compile(clang: &str, module: &Module<'_>) -> Result<String> {
    let flags = "-x cuda -nocudainc -nocudalib --cuda-device-only -O3 -std=c++20 -Wall -Wextra -Werror -S -o -";
    let mut command = Command::new(clang);
    command.args(flags.split(' ')).arg(format!("--cuda-gpu-arch={}", module.arch));
    command.args(["-Xclang", "-target-feature", "-Xclang"]);
    command.arg(format!("+{}", module.version)).arg(module.source);
    tool::output(&mut command)
}

/// What the assembler said of a kernel.
#[derive(Debug, Default)]
struct Usage {
    registers: u32,
    stack: u32,
    spilled: u32,
}

/// Assembles every module; fails on spills, and on more registers than `registers.txt` allows.
fn assemble(sources: &[PathBuf]) -> Result<()> {
    let Some(ptxas) = assembler()? else {
        println!("skipped: there is no python3 with pip to fetch the assembler ({ASSEMBLER})");
        return Ok(());
    };
    let budget = budget()?;
    let (wrong, rows) = (Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
    each(&modules(sources), |module| {
        let (name, arch) = (module.name(), module.arch);
        let allowed = budget.get(&name).copied();
        let allowed = allowed.with_context(|| format!("{KERNELS}/registers.txt lacks {name}"))?;
        let kernels = usage(&ptxas, arch, &module.committed())?;
        let most = kernels.values().map(|k| k.registers).max().unwrap_or(0);
        lock(&rows).insert(format!("{name:<20} {arch:<7} {:>7} {most:>15}", kernels.len()));
        let over = |kernel: &Usage| kernel.stack + kernel.spilled > 0 || kernel.registers > allowed;
        let over = kernels.iter().filter(|(_, kernel)| over(kernel));
        let said = |(kernel, usage)| {
            format!("{arch} {kernel}: {usage:?}, {allowed} registers are allowed")
        };
        lock(&wrong).extend(over.map(said));
        Ok(())
    })
    .into_iter()
    .collect::<Result<()>>()?;
    println!("{:<20} {:<7} {:>7} {:>15}", "module", "arch", "kernels", "most registers");
    lock(&rows).iter().for_each(|row| println!("{row}"));
    let wrong = lock(&wrong);
    ensure!(wrong.is_empty(), "spills, a stack, or too many registers:\n{}", wrong.join("\n"));
    Ok(())
}

/// `ptxas`, fetched once.
fn assembler() -> Result<Option<PathBuf>> {
    let packages = target().join("python-cuda");
    let ptxas = packages.join("nvidia/cuda_nvcc/bin/ptxas");
    if !ptxas.exists() {
        if !exists("python3", &["-m", "pip", "--version"]) {
            return Ok(None);
        }
        let mut pip = tool::command("python3", ["-m", "pip", "install", "--quiet", "--no-deps"]);
        pip.args(["--disable-pip-version-check", "--target"]).arg(&packages).arg(ASSEMBLER);
        run(&mut pip)?;
    }
    Ok(Some(ptxas))
}

/// Registers that each module's kernels may use.
fn budget() -> Result<BTreeMap<String, u32>> {
    let path = format!("{KERNELS}/registers.txt");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (module, registers) =
                line.split_once(' ').context("expected `module registers`")?;
            Ok((module.to_owned(), registers.trim().parse()?))
        })
        .collect::<Result<_>>()
        .with_context(|| path)
}

/// What `ptxas -v` prints, by kernel.
fn usage(ptxas: &Path, arch: &str, ptx: &Path) -> Result<BTreeMap<String, Usage>> {
    let arguments = ["-v", &format!("-arch={arch}"), "-o", "/dev/null"];
    let done = tool::command(ptxas, arguments).arg(ptx).output()?;
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{}: {text}", ptx.display());
    let mut kernels = BTreeMap::<String, Usage>::new();
    let mut current = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = |word: &str| {
            let at = words.iter().position(|w| w.trim_end_matches(',') == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u32>().ok()
        };
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            current = name.split('\'').next().unwrap_or_default().to_owned();
        } else if line.contains("bytes stack frame") {
            let number = |at: usize| words.get(at).and_then(|w| w.parse().ok()).unwrap_or(0);
            let kernel = kernels.entry(current.clone()).or_default();
            kernel.stack = number(0);
            kernel.spilled = number(4) + number(8);
        } else if let Some(registers) = before("registers") {
            kernels.entry(current.clone()).or_default().registers = registers;
        }
    }
    Ok(kernels)
}
