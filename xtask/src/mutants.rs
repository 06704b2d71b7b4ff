//! `cargo xtask mutants`: the score of the conformance suite against planted bugs.

use std::process::Command;

use anyhow::Result;

use crate::tool::{cargo, run};

/// Flags of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on: a part of a name or op, `--verbose`, `--threads N`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Tries every mutant; fails if one escapes.
pub(crate) fn mutants(args: &Args) -> Result<()> {
    run(command().args(&args.rest))
}

/// The command that tries every mutant and prints the score.
pub(crate) fn command() -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "halyard-mutants", "--"]);
    command
}
