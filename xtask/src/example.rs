//! The example backend, built as a vendor would: in a folder of its own, outside the workspace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::tool::{self, cargo, run, target};

/// A small model whose kernels the example has.
const MODEL: &str = "testdata/models/llama";

/// A bug: a query does not see its own position.
const RIGHT: &str = "if attrs.causal { p + 1 } else { n }";
const WRONG: &str = "if attrs.causal { p.max(1) } else { n }";

/// The example loads, passes its profiles and answers as `cpu` does; with a planted bug it is refused.
pub(crate) fn example() -> Result<()> {
    let good = build("vendor", |source| source)?;
    let list = tool::output(&mut halyard(&["backends", "list"], &good))?;
    ensure!(list.contains("toy"), "`halyard backends list` does not show the example:\n{list}");
    run(&mut halyard(&["verify", "toy"], &good))?;
    let prompts = target().join("example-backend/prompts.txt");
    fs::write(&prompts, "Hello\nThe quick brown fox\n1 2 3 4\n")?;
    let answer = |device: &str| {
        let flags = ["generate", MODEL, "--device", device, "--dtype", "float32", "--quiet"];
        let mut generate = halyard(&flags, &good);
        generate.args(["--temperature", "0", "--max-tokens", "8", "--input"]).arg(&prompts);
        tool::output(&mut generate)
    };
    let (toy, cpu) = (answer("toy")?, answer("cpu")?);
    ensure!(texts(&toy)? == texts(&cpu)?, "the example answers otherwise than `cpu`");

    let planted = build("planted", |source| source.replace(RIGHT, WRONG))?;
    let mut serve = halyard(&["serve", MODEL, "--device", "toy", "--port", "0"], &planted);
    let refused = serve.output().context("cannot start halyard")?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success(), "a backend with a planted bug was served");
    ensure!(said.contains("paged_attention"), "the refusal does not name the op:\n{said}");
    Ok(())
}

/// Builds a copy of the example after `edit` has been at its source; returns the library.
fn build(name: &str, edit: impl Fn(String) -> String) -> Result<PathBuf> {
    let folder = target().join("example-backend").join(name);
    let original = tool::root().join("examples/backend-rust");
    let mut edited = false;
    for file in ["Cargo.toml", "src/lib.rs", "src/weights.rs"]
        .map(String::from)
        .into_iter()
        .chain(["mod", "rows", "linear", "attention", "logits"].map(|f| format!("src/ops/{f}.rs")))
    {
        let source = fs::read_to_string(original.join(&file)).with_context(|| file.clone())?;
        let source = source.replace("../..", &tool::root().display().to_string());
        // Packages of one name in one target folder would overwrite each other's library, which cargo then takes for fresh.
        let source = source.replace("backend-toy", &format!("backend-{name}"));
        let source = source.replace("backend_toy", &format!("backend_{name}"));
        let new = edit(source.clone());
        edited |= new != source;
        write_if_changed(&folder.join(&file), &new)?;
    }
    if name == "planted" && !edited {
        bail!("the line to plant a bug in is gone from the example");
    }
    // What it depends on is built once for both.
    let built = target().join("example-backend/target");
    run(cargo().args(["build", "--release"]).current_dir(&folder).env("CARGO_TARGET_DIR", &built))?;
    Ok(built.join(format!("release/libhalyard_backend_{name}.so")))
}

/// Leaves an unchanged file alone, so that cargo does not build again.
fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
    Ok(fs::write(path, text)?)
}

pub(crate) fn halyard(args: &[&str], library: &Path) -> Command {
    let mut command = tool::command(target().join("debug/halyard"), args);
    command.arg("--backend-path").arg(library);
    command
}

/// The answers' texts, without times and ids.
pub(crate) fn texts(lines: &str) -> Result<Vec<serde_json::Value>> {
    let text = |line: &str| -> Result<_> {
        let answer: serde_json::Value = serde_json::from_str(line)?;
        Ok(answer["choices"].clone())
    };
    lines.lines().map(text).collect()
}
