//! `halyard-mutants`: tries every mutant and prints the score.
#![expect(clippy::print_stdout, reason = "a command-line tool talks to its user")]

use std::{process::ExitCode, thread::available_parallelism, time::Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use halyard_mutants::{mutants, table, try_all};

/// Plants one bug at a time in the reference backend and tells which cases catch it.
#[derive(Debug, Parser)]
#[command(name = "halyard-mutants")]
struct Cli {
    /// Only mutants whose name, or whose op, contains this
    filter: Option<String>,
    /// How many are tried at once [default: processors]
    #[arg(long)]
    threads: Option<usize>,
    /// Show what each failing case said
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let start = Instant::now();
    let wanted = |part: &String, m: &halyard_mutants::Mutant| {
        m.name.contains(part.as_str()) || m.op.to_string().contains(part.as_str())
    };
    let chosen: Vec<_> =
        mutants().filter(|m| cli.filter.as_ref().is_none_or(|part| wanted(part, m))).collect();
    ensure!(!chosen.is_empty(), "no mutant's name or op contains that");
    let threads = cli.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    let verdicts = try_all(&chosen, threads)?;
    if cli.verbose {
        for v in &verdicts {
            let said = v.caught.as_ref().map_or("", |c| c.message.as_str());
            println!("{}: {} cases, {} ms: {said}", v.mutant.name, v.cases, v.time.as_millis());
        }
    }
    print!("{}", table(&verdicts));
    println!("{:.0} s", start.elapsed().as_secs_f64());
    let escaped = verdicts.iter().any(|v| v.caught.is_none());
    Ok(if escaped { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
