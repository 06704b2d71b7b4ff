//! The log: `tracing` events on standard error.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{
    EnvFilter,
    fmt::{fmt, writer::BoxMakeWriter},
};

use crate::cli::args::{LogArgs, LogFormat, LogLevel};

/// Sets the log up for the whole process; a second call changes nothing. In the process of a rank, its number of so many stands in
/// each line.
pub fn init(args: &LogArgs, rank: Option<(usize, usize)>) {
    let level = match args.log_level {
        LogLevel::Error => "error",
        LogLevel::Warning => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::builder()
        .with_default_directive(level.parse().unwrap_or(tracing::Level::INFO.into()))
        .from_env_lossy();
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(writer(args.log_format, rank))
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let result = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().with_target(true).try_init(),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "the log was set up before");
    }
}

fn writer(format: LogFormat, rank: Option<(usize, usize)>) -> BoxMakeWriter {
    let Some((rank, world)) = rank else { return BoxMakeWriter::new(io::stderr) };
    let (instead_of, name) = match format {
        LogFormat::Text => ("", format!("rank {rank} of {world}: ")),
        LogFormat::Json => ("{", format!("{{\"rank\":{rank},")),
    };
    BoxMakeWriter::new(move || RankWriter { instead_of, name: name.clone() })
}

/// Writes lines, which it is given one at a time, with a rank's name before them.
struct RankWriter {
    /// What the name stands in the place of.
    instead_of: &'static str,
    name: String,
}

impl Write for RankWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let rest = line.strip_prefix(self.instead_of.as_bytes()).unwrap_or(line);
        let named = [self.name.as_bytes(), rest].concat();
        // In one piece: other ranks write there, too.
        io::stderr().lock().write_all(&named)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
