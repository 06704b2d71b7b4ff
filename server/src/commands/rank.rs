//! `halyard rank`: a rank of a model in a process of its own. What it serves stands in the command line of rank 0's process, which comes
//! through the socket that is its standard input.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    process::{self, ExitCode},
};

use anyhow::{Context, anyhow, bail};
use halyard_engine::process::{Ended, Leader, Lost, Start};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use super::model;
use crate::{
    cli::{self, Command},
    logging, ui,
};

pub(super) fn run() -> ExitCode {
    match serve() {
        Ok(Ended::AsTold) => ExitCode::SUCCESS,
        // Rank 0 has been told, and says it.
        Ok(Ended::Failed) => ExitCode::FAILURE,
        Err(error) => {
            ui::complain(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<Ended> {
    let _signals = leave_signals_to_rank_0().context("cannot handle signals")?;
    let alone =
        "`halyard rank` is started by `halyard serve` and others, which have a socket to it";
    let socket = io::stdin().as_fd().try_clone_to_owned().context(alone)?;
    let socket = UnixStream::from(socket);
    socket.local_addr().context(alone)?;
    let (leader, start) = Leader::connect(socket, end).context(alone)?;
    let followed = follow(&leader, &start);
    if let Err(error) = &followed {
        leader.failed(&format!("{error:#}"));
    }
    Ok(followed.unwrap_or(Ended::Failed))
}

/// There is nothing to be done without rank 0, and the device may be in the middle of anything.
fn end(lost: Lost) {
    match lost {
        Lost::Told => process::exit(0),
        Lost::Gone(why) => {
            tracing::warn!("rank 0 is gone, so this rank ends: {why}");
            process::exit(1);
        }
    }
}

/// Signals to the whole group of processes, as a terminal and a service manager send them, are for rank 0: requests that run are
/// finished first.
fn leave_signals_to_rank_0() -> io::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        // From now on it does not end the process, whether somebody listens or not.
        drop(signal(kind)?);
    }
    drop(entered);
    Ok(runtime)
}

fn follow(leader: &Leader, start: &Start) -> anyhow::Result<Ended> {
    let (cli, _) = cli::parse(start.arguments.clone())
        .map_err(|error| anyhow!("the command line of rank 0 cannot be read: {error}"))?;
    logging::init(&cli.log, Some((start.rank, start.world)));
    let (model, device, engine) = match &cli.command {
        Command::Serve(command) => (&command.model, &command.device, &command.engine),
        Command::Generate(command) => (&command.model, &command.device, &command.engine),
        Command::Bench(command) => (&command.model, &command.device, &command.engine),
        other => bail!("no model is shared by {other:?}"),
    };
    model::follow(model, device, &model::options(model, engine), (leader, start))
}
