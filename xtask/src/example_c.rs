//! The example backend in C, built as a vendor would: without Rust.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{
    example::{halyard, texts},
    model,
    tool::{self, run, target},
};

/// The example passes its profiles and answers as `cpu` does: a small model in floats, and the demo model in quantised form.
pub(crate) fn example() -> Result<()> {
    let library = build()?;
    let list = tool::output(&mut halyard(&["backends", "list"], &library))?;
    ensure!(list.contains("ctoy"), "`halyard backends list` does not show the example:\n{list}");
    run(&mut halyard(&["verify", "ctoy"], &library))?;
    let mut models = vec!["testdata/models/llama".to_owned()];
    if tool::exists("python3", &["-m", "pip", "--version"]) {
        models.push(model::fetch()?.display().to_string());
    } else {
        println!("without the demo model: there is no python3 with pip to fetch it");
    }
    for model in &models {
        let answer = |device: &str| {
            let prompts = target().join("example-backend/c/prompts.txt");
            fs::write(&prompts, "Hello\nThe quick brown fox\n")?;
            let flags = ["generate", model, "--device", device, "--dtype", "float32", "--quiet"];
            let mut generate = halyard(&flags, &library);
            generate.args(["--temperature", "0", "--max-tokens", "8", "--input"]).arg(&prompts);
            texts(&tool::output(&mut generate)?)
        };
        ensure!(answer("ctoy")? == answer("cpu")?, "{model}: answers otherwise than `cpu`");
    }
    Ok(())
}

/// Builds a copy of the example's folder outside the workspace; returns the library.
fn build() -> Result<PathBuf> {
    let folder = target().join("example-backend/c");
    fs::create_dir_all(&folder)?;
    for file in fs::read_dir(tool::root().join("examples/backend-c"))? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    let library = folder.join("libhalyard_backend_ctoy.so");
    if tool::exists("make", &["--version"]) {
        let header = format!("HALYARD={}", tool::root().display());
        run(Command::new("make").arg("--silent").arg("-C").arg(&folder).arg(header))?;
        return Ok(library);
    }
    // What the Makefile does, where there is no make.
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O2"]);
    cc.args(["-fPIC", "-fvisibility=hidden", "-shared", "-I"]);
    cc.arg(tool::root().join("core/abi/include")).arg("-o").arg(&library);
    for file in fs::read_dir(&folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "c") {
            cc.arg(path);
        }
    }
    run(cc.args(["-lm", "-lpthread"]))?;
    Ok(library)
}
