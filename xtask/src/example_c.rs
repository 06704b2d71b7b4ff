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
    let mut compiler = if tool::exists("make", &["--version"]) {
        let mut make = Command::new("make");
        make.arg(format!("HALYARD={}", tool::root().display()));
        make
    } else {
        // The line at the top of its backend.c.
        let include = tool::root().join("core/abi/include").display().to_string();
        let line = "cc @flags -I \"$0\" -o libhalyard_backend_ctoy.so *.c -lm -lpthread";
        let mut shell = Command::new("sh");
        shell.args(["-c", line, &include]);
        shell
    };
    run(compiler.current_dir(&folder))?;
    Ok(folder.join("libhalyard_backend_ctoy.so"))
}
