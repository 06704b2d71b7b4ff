//! The `halyard` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    halyard_server::commands::run(&std::env::args_os().collect::<Vec<_>>())
}
