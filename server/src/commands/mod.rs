//! One command a file.

mod backends;
mod bench;
mod completions;
mod gate;
mod generate;
mod model;
mod rank;
mod serve;
mod verify;

use std::{ffi::OsString, process::ExitCode};

use crate::{
    cli::{self, Command},
    logging, ui,
};

/// Runs a line as typed: 0 is success, 1 a failure, 2 a line that cannot be understood.
#[must_use]
pub fn run(args: &[OsString]) -> ExitCode {
    let (cli, warnings) = match cli::parse(args.to_vec()) {
        Ok(parsed) => parsed,
        Err(error) => {
            // A closed terminal is no reason to fail differently.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // The log of a rank is set up as the others' line says.
    if !matches!(cli.command, Command::Rank(_)) {
        logging::init(&cli.log, None);
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let result = match cli.command {
        Command::Serve(command) => serve::run(&command, args),
        Command::Generate(command) => generate::run(&command, args),
        Command::Bench(command) => bench::run(&command, args),
        Command::Backends(command) => backends::run(&command),
        Command::Devices(command) => backends::devices(&command),
        Command::Completions(command) => completions::run(&command),
        Command::Verify(command) => verify::run(&command),
        Command::Rank(_) => return rank::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::complain(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
