//! `halyard bench`: throughput and latency of a model in this process, or of a running server.

mod client;
mod limits;
mod offline;
mod random;
mod serving;
mod stats;
mod work;

use std::ffi::OsString;

use crate::cli::{BenchCommand, BenchSubcommand};

pub(super) fn run(command: &BenchCommand, line: &[OsString]) -> anyhow::Result<()> {
    match &command.command {
        None => offline::run(command, line),
        Some(BenchSubcommand::Serve(args)) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(serving::run(args))
        }
    }
}
