//! Running other programs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command with its arguments.
pub(crate) fn command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs a command to its end; anything but success is an error that shows it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", show(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", show(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", show(command)))?;
    if !done.status.success() {
        bail!("{} ended with {}", show(command), done.status);
    }
    String::from_utf8(done.stdout).with_context(|| format!("{} printed no UTF-8", show(command)))
}

/// The same, but what the command says to standard error is shown only if it fails.
pub(crate) fn output_quietly(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot start {}", show(command)))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !done.status.success() {
        let said = [text(&done.stdout), text(&done.stderr)].join("\n");
        bail!("{} ended with {}: {}", show(command), done.status, said.trim());
    }
    String::from_utf8(done.stdout).with_context(|| format!("{} printed no UTF-8", show(command)))
}

/// Whether a program is there and answers.
pub(crate) fn exists(program: &str, args: &[&str]) -> bool {
    let mut command = command(program, args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

/// Whether Python can install packages; says so if not.
pub(crate) fn has_pip() -> bool {
    let has = exists("python3", &["-m", "pip", "--version"]);
    if !has {
        println!("skipped: there is no python3 with pip");
    }
    has
}

fn show(command: &Command) -> String {
    let args = command.get_args().map(|a| a.to_string_lossy());
    let words: Vec<_> =
        std::iter::once(command.get_program().to_string_lossy()).chain(args).collect();
    format!("`{}`", words.join(" "))
}

/// Does something with each of the items, as many at a time as there are cores; what came of it, in their order.
pub(crate) fn each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    let next = AtomicUsize::new(0);
    let serve = || {
        let take = || {
            let at = next.fetch_add(1, Ordering::Relaxed);
            items.get(at).map(|item| (at, item))
        };
        std::iter::from_fn(take).map(|(at, item)| (at, work(item))).collect::<Vec<_>>()
    };
    let cores = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let mut all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(serve)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("work does not panic")).collect()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, result)| result).collect()
}

/// Runs named commands, all at once, and shows what one printed when it has ended; of what a failed one says to standard error the last lines.
/// `what` a failure says before the names.
pub(crate) fn run_at_once(what: &str, commands: Vec<(String, Command)>) -> Result<()> {
    let failed = Mutex::new(Vec::new());
    let one = |name: String, mut command: Command| -> Result<()> {
        let done = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{name}: {}", String::from_utf8_lossy(&done.stdout));
        if !done.status.success() {
            println!("{}", last_lines(&String::from_utf8_lossy(&done.stderr)));
            failed.push(name);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let one = &one;
        let start = |(name, command)| scope.spawn(move || one(name, command));
        let threads: Vec<_> = commands.into_iter().map(start).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("running does not panic"))
    })?;
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("{what} {}", failed.join(", "));
    }
    Ok(())
}

/// Simulators tell each call that fails, those that are meant to fail, too: the last of them.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Builds the `halyard` binary for release and returns its path.
pub(crate) fn build_halyard() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "halyard-server"]))?;
    Ok(target().join("release/halyard"))
}
