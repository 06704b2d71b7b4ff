//! `halyard completions`.

use std::io;

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsCommand};

pub(super) fn run(command: &CompletionsCommand) -> anyhow::Result<()> {
    clap_complete::generate(
        command.shell,
        &mut Cli::command(),
        "halyard",
        &mut io::stdout().lock(),
    );
    Ok(())
}
