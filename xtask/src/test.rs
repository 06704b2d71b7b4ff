//! `cargo xtask test`: everything CI runs, cheapest first, stopping at the first failure.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    ascend, cuda, example, example_c, model, mutants_cuda,
    tool::{self, cargo, exists, has_pip, run, target},
};

/// Flags of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only the steps whose name contains this
    #[arg(long)]
    only: Option<String>,
}

type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("format", format),
    ("architecture", architecture),
    ("clippy", clippy),
    ("licences", licences),
    ("build", build),
    ("demo model", demo_model),
    ("tests", tests),
    ("doc tests", doc_tests),
    ("example backend", example::example),
    ("example backend in C", example_c::example),
    ("cuda on the software GPU", cuda::test),
    ("figures of the CUDA kernels", cuda::figures_test),
    ("mutants of the CUDA kernels", mutants_cuda::test),
    ("ascend on the software NPU", ascend::test),
    ("openai sdk", openai_sdk),
];

/// Runs the steps.
pub(crate) fn test(args: &Args) -> Result<()> {
    let start = Instant::now();
    for (name, step) in STEPS {
        if args.only.as_ref().is_some_and(|part| !name.contains(part.as_str())) {
            continue;
        }
        let began = Instant::now();
        println!("== {name}");
        step().with_context(|| format!("step `{name}` failed"))?;
        println!("== {name}: {:.0} s", began.elapsed().as_secs_f64());
    }
    println!("All steps passed in {:.0} s.", start.elapsed().as_secs_f64());
    Ok(())
}

fn format() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
}

/// The invariants of `ARCHITECTURE.md` that a dependency tree or a search can hold.
fn architecture() -> Result<()> {
    let sdk = ["halyard-abi", "halyard-sdk"];
    let host = ["halyard-abi", "halyard-core", "halyard-text", "halyard-weights"];
    depends_only_on("halyard-cpu", &sdk)?;
    depends_only_on("halyard-cpu-ref", &sdk)?;
    depends_only_on("halyard-backend-cuda", &sdk)?;
    depends_only_on("halyard-ascend-sys", &[])?;
    depends_only_on("halyard-backend-ascend", &[&sdk[..], &["halyard-ascend-sys"]].concat())?;
    let calls = ["halyard-sim-cuda-calls"];
    depends_only_on("halyard-sim-nccl", &[&sdk[..], &calls].concat())?;
    depends_only_on("halyard-sim-cublaslt", &calls)?;
    depends_only_on(calls[0], &[])?;
    depends_only_on("halyard-sim-ascend-ops", &[])?;
    let software_npu =
        ["halyard-abi", "halyard-sdk", "halyard-sim-ascend-ops", "halyard-sim-memory"];
    depends_only_on("halyard-sim-ascend", &software_npu)?;
    depends_only_on("halyard-core", &["halyard-abi"])?;
    depends_only_on("halyard-engine", &host)?;
    depends_only_on("halyard-text", &["halyard-weights"])?;
    depends_only_on("halyard-weights", &[])?;
    // The oracle touches memory through the SDK alone; its one door is `glue.rs`.
    unsafe_only_in("backends/cpu-ref/src", &["/glue.rs"])?;
    // The driver's API, NCCL's, NVML's and cuBLASLt's, the launches of kernels, and rows of weights in the host's memory.
    let libraries = ["/driver/", "/nccl/", "/nvml/", "/cublas/"];
    let cuda =
        [&libraries[..], &["/ops/args.rs", "/weights/", "/device.rs", "/collective/co"]].concat();
    unsafe_only_in("backends/cuda/src", &cuda)?;
    let software_gpu = ["/warp/mod.rs", "/compile/mod.rs"];
    unsafe_only_in("sim/memory/src", &["/arena.rs"])?;
    // Calls of CANN, HCCL and DCMI, and rows of weights in the host's memory.
    let ascend = ["/driver/", "/ops/mod.rs", "/weights.rs", "/device.rs", "/collective/co"];
    unsafe_only_in("backends/ascend/src", &ascend)?;
    unsafe_only_in("sim/cuda/exec/src", &software_gpu)?;
    unsafe_only_in("sim/cuda/driver/src", &["/api/mod.rs", "/api/stream.rs"])?;
    unsafe_only_in("sim/ascend/ops/src", &[])?;
    unsafe_only_in("sim/ascend/runtime/src", &["/api/"])?;
    unsafe_only_in("sim/nccl/src", &["/api.rs"])?;
    unsafe_only_in("sim/cublaslt/src", &["/api.rs", "/driver.rs"])
}

/// A crate's own Halyard crates, development dependencies aside, must be among `allowed`.
fn depends_only_on(package: &str, allowed: &[&str]) -> Result<()> {
    let mut tree = cargo();
    tree.args(["tree", "--edges", "normal,build", "--prefix", "none", "--package", package]);
    let tree = tool::output(&mut tree)?;
    let others = tree.lines().filter_map(|line| line.split(' ').next());
    for name in others.filter(|name| name.starts_with("halyard-") && *name != package) {
        if !allowed.contains(&name) {
            bail!("{package} depends on {name}; it may depend on {allowed:?}");
        }
    }
    Ok(())
}

/// Code of `folder` may say `unsafe` only in files whose path has one of `doors`.
fn unsafe_only_in(folder: &str, doors: &[&str]) -> Result<()> {
    let found = tool::command("grep", ["-rnw", "--include=*.rs", "unsafe", folder])
        .output()
        .with_context(|| format!("cannot search {folder}"))?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    // Each line is `path:number:code`.
    let code = |line: &str| !line.splitn(3, ':').last().unwrap_or("").trim().starts_with("//");
    let allowed = |line: &str| {
        let path = line.split(':').next().unwrap_or_default();
        doors.iter().any(|door| path.contains(door))
    };
    let outside: Vec<_> = found.lines().filter(|line| code(line) && !allowed(line)).collect();
    if !outside.is_empty() {
        bail!("{folder} uses `unsafe` outside {doors:?}:\n{}", outside.join("\n"));
    }
    Ok(())
}

fn clippy() -> Result<()> {
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

/// Licences, sources and duplicate versions (`deny.toml`), where cargo-deny is installed.
fn licences() -> Result<()> {
    if !exists("cargo", &["deny", "--version"]) {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}

fn build() -> Result<()> {
    run(cargo().args(["build", "--workspace"]))
}

/// What tests of a real model want; without it they say that they test nothing.
fn demo_model() -> Result<()> {
    if !has_pip() {
        return Ok(());
    }
    model::fetch().map(drop)
}

fn tests() -> Result<()> {
    let args: &[&str] = if exists("cargo", &["nextest", "--version"]) {
        &["nextest", "run", "--workspace"]
    } else {
        &["test", "--workspace", "--all-targets"]
    };
    let (mut tests, model) = (cargo(), model::path());
    // Where `CARGO_TARGET_DIR` has put it, which the tests do not know.
    if model.exists() {
        tests.env("HALYARD_SMOLLM2", model);
    }
    run(tests.args(args))
}

fn doc_tests() -> Result<()> {
    run(cargo().args(["test", "--workspace", "--doc"]))
}

/// The unmodified `openai` package against the real binary.
fn openai_sdk() -> Result<()> {
    let packages = target().join("python");
    if !has_pip() {
        return Ok(());
    }
    if !packages.join("openai").exists() {
        let mut pip = tool::command("python3", ["-m", "pip", "install", "--quiet"]);
        pip.args(["--disable-pip-version-check", "--target"]).arg(&packages).arg("openai==3.54.0");
        run(&mut pip)?;
    }
    let mut python = tool::command("python3", ["server/tests/sdk/openai_sdk.py"]);
    run(python.env("PYTHONPATH", &packages).env("HALYARD", target().join("debug/halyard")))
}
