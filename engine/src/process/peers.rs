//! Rank 0's side: starting the other ranks' processes, talking to them, and seeing them end.

use std::{
    ffi::OsString,
    io::{self, BufReader, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, Builder, JoinHandle},
    time::{Duration, Instant},
};

use halyard_core::Metric;

use super::{Failed, FrameReader, FrameWriter, FromRank, Offer, Start, ToRank, Tried};
use crate::{error::LoadError, runner::End};

/// How long a process may take to end once it was told to, or its socket has closed.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take to tell what its device measures.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a process that is about to end is looked at.
const POLL: Duration = Duration::from_millis(2);

/// The processes of ranks 1 and up, while a model is loaded. They end when this is dropped.
#[derive(Debug)]
pub struct RankProcesses {
    peers: Vec<Peer>,
    reports: Receiver<(usize, Report)>,
    end: Arc<End>,
}

/// A rank in another process. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Peer {
    shared: Arc<Shared>,
    watch: Option<JoinHandle<()>>,
}

/// What a process has reported while loading.
#[derive(Debug)]
pub(crate) enum Report {
    Offer(Offer),
    Tried(Tried),
    Loaded(u64),
    Ready,
    /// It is of no use any more; with its name.
    Lost(String),
}

#[derive(Debug)]
struct Shared {
    /// `rank 1 of 2 (pid 7)`.
    name: String,
    socket: Mutex<UnixStream>,
    process: Mutex<Child>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Its end is wanted, or its cause known.
    may_end: bool,
    is_gone: bool,
    metrics: Option<Vec<Metric>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RankProcesses {
    /// Starts a process for each rank but the first. `command` says how; its standard input and output are set here. What it prints
    /// goes to this process' standard error. `arguments` is the command line that all ranks follow.
    ///
    /// # Errors
    /// A process or its socket cannot be made.
    pub fn start(
        world: usize,
        arguments: &[OsString],
        command: impl Fn(usize) -> Command,
    ) -> io::Result<Self> {
        let (sender, reports) = channel();
        let mut this = Self { peers: Vec::new(), reports, end: Arc::default() };
        for rank in 1..world {
            let arguments = arguments.to_vec();
            let start = ToRank::Start(Start { rank, world, arguments });
            let watch = (sender.clone(), Arc::clone(&this.end));
            let peer = Peer::start((rank, world), command(rank), watch)?;
            // One that is gone already is found by its watch.
            let _ = peer.send(&start);
            this.peers.push(peer);
        }
        Ok(this)
    }

    /// Ranks altogether.
    pub(crate) fn world(&self) -> usize {
        self.peers.len() + 1
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) {
        for peer in &self.peers {
            // Fails for no time at all only.
            let _ = lock(&peer.shared.socket).set_write_timeout(Some(timeout));
        }
    }

    /// Tells all the same.
    ///
    /// # Errors
    /// The first that cannot be told, with the cause.
    pub(crate) fn tell(&self, message: &ToRank) -> Result<(), LoadError> {
        for peer in &self.peers {
            if let Err(error) = peer.send(message) {
                self.end.await_cause();
                let cause = self.end.fault().map(str::to_owned);
                let unknown = || format!("{} cannot be reached: {error}", peer.name());
                return Err(LoadError::Process(cause.unwrap_or_else(unknown)));
            }
        }
        Ok(())
    }

    /// What a rank reports next; `None` if nothing comes in time.
    ///
    /// # Errors
    /// A rank is lost.
    pub(crate) fn report(
        &self,
        within: Option<Duration>,
    ) -> Result<Option<(usize, Report)>, LoadError> {
        let report = match within {
            // The watches end after their last words.
            None => self.reports.recv().ok(),
            Some(within) => self.reports.recv_timeout(within).ok(),
        };
        match report {
            Some((_, Report::Lost(cause))) => {
                // It may have failed because another did.
                self.end.await_cause();
                let first = self.end.fault().map(str::to_owned);
                Err(LoadError::Process(first.unwrap_or(cause)))
            }
            other => Ok(other),
        }
    }

    /// One report of each rank, in their order.
    ///
    /// # Errors
    /// A rank is lost, or reports something else.
    pub(crate) fn all<T>(&self, wanted: impl Fn(Report) -> Option<T>) -> Result<Vec<T>, LoadError> {
        let mut all: Vec<Option<T>> = self.peers.iter().map(|_| None).collect();
        while all.iter().any(Option::is_none) {
            let Some((rank, report)) = self.report(None)? else { break };
            let found = wanted(report).ok_or_else(|| {
                LoadError::Process(format!("rank {rank} does not keep to the order of things"))
            })?;
            all[rank - 1] = Some(found);
        }
        let all = all.into_iter().collect::<Option<Vec<T>>>();
        all.ok_or_else(|| LoadError::Process("the other ranks are gone".into()))
    }

    /// Another handle to each process, to ask for measurements.
    pub(crate) fn gauges(&self) -> Vec<Gauge> {
        self.peers.iter().map(|peer| Gauge(Arc::clone(&peer.shared))).collect()
    }

    /// The processes, which serve now, and how they end.
    pub(crate) fn into_peers(self) -> (Vec<Peer>, Arc<End>) {
        (self.peers, self.end)
    }
}

/// Asks a rank's process what its device measures.
#[derive(Clone, Debug)]
pub(crate) struct Gauge(Arc<Shared>);

impl Gauge {
    /// Nothing if the process does not answer soon.
    pub(crate) fn measure(&self) -> Vec<Metric> {
        let Shared { state, changed, .. } = &*self.0;
        lock(state).metrics = None;
        if self.0.send(&ToRank::Measure).is_err() {
            return Vec::new();
        }
        let none = |state: &mut State| state.metrics.is_none() && !state.is_gone;
        let wait = changed.wait_timeout_while(lock(state), MEASURE_TIMEOUT, none);
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.metrics.take().unwrap_or_default()
    }
}

impl Peer {
    fn start(
        (rank, world): (usize, usize),
        mut command: Command,
        (reports, end): (Sender<(usize, Report)>, Arc<End>),
    ) -> io::Result<Self> {
        let (here, there) = UnixStream::pair()?;
        command.stdin(Stdio::from(OwnedFd::from(there)));
        command.stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?));
        let process = command.spawn()?;
        // It holds the other end.
        drop(command);
        let name = format!("rank {rank} of {world} (pid {})", process.id());
        let from = here.try_clone()?;
        let shared = Arc::new(Shared {
            name,
            socket: Mutex::new(here),
            process: Mutex::new(process),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let of_watch = Arc::clone(&shared);
        let watch = Builder::new().name(format!("halyard-watch-{rank}"));
        let watch = watch.spawn(move || {
            let report = |report| {
                // Nobody listens once the model is loaded.
                let _ = reports.send((rank, report));
            };
            of_watch.watch(from, &report, &end);
        })?;
        Ok(Self { shared, watch: Some(watch) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        lock(&self.shared.socket).write_all(frame)
    }

    fn send(&self, message: &ToRank) -> io::Result<()> {
        self.shared.send(message)
    }

    /// Returns at once. A second time changes nothing.
    pub(crate) fn tell_to_end(&self) {
        if std::mem::replace(&mut lock(&self.shared.state).may_end, true) {
            return;
        }
        // One that is gone already needs not be told.
        let _ = self.send(&ToRank::End);
        let _ = lock(&self.shared.socket).shutdown(Shutdown::Write);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tell_to_end();
        let Shared { name, process, state, changed, .. } = &*self.shared;
        let here = |state: &mut State| !state.is_gone;
        let wait = changed.wait_timeout_while(lock(state), END_TIMEOUT, here);
        let (state, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if timeout.timed_out() {
            tracing::warn!(name, "a rank hangs and is killed");
            let _ = lock(process).kill();
        }
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

impl Shared {
    fn send(&self, message: &ToRank) -> io::Result<()> {
        let mut writer = FrameWriter::default();
        let frame = message.frame(&mut writer).map_err(io::Error::from)?;
        lock(&self.socket).write_all(frame)
    }

    /// Takes in what the process says, until it has ended.
    fn watch(&self, from: UnixStream, report: &dyn Fn(Report), end: &End) {
        let said = self.listen(from, report, end);
        if let Err(error) = &said {
            tracing::debug!(name = self.name, %error, "a rank's socket broke");
            let _ = lock(&self.process).kill();
        }
        let status = self.reap();
        let (name, known) = (&self.name, lock(&self.state).may_end);
        if !known {
            let cause = match said {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    format!("{name} sent {error}")
                }
                _ => format!("{name} {}", status.map_or("is gone".into(), ended)),
            };
            report(Report::Lost(cause.clone()));
            end.lose(&cause);
        }
        lock(&self.state).is_gone = true;
        self.changed.notify_all();
    }

    fn listen(&self, from: UnixStream, report: &dyn Fn(Report), end: &End) -> io::Result<()> {
        let mut from = BufReader::new(from);
        let mut frames = FrameReader::default();
        while let Some(frame) = frames.next(&mut from)? {
            match FromRank::read(frame)? {
                FromRank::Offer(offer) => report(Report::Offer(offer)),
                FromRank::Tried(tried) => report(Report::Tried(tried)),
                FromRank::Loaded(bytes) => report(Report::Loaded(bytes)),
                FromRank::Ready => report(Report::Ready),
                FromRank::Measured(metrics) => {
                    lock(&self.state).metrics = Some(metrics);
                    self.changed.notify_all();
                }
                FromRank::Failed(failed) => self.failed(&failed, report, end),
            }
        }
        Ok(())
    }

    fn failed(&self, failed: &Failed, report: &dyn Fn(Report), end: &End) {
        if std::mem::replace(&mut lock(&self.state).may_end, true) {
            return;
        }
        let cause = format!("{}: {}", self.name, failed.message);
        if failed.by_others {
            end.hear(cause.clone());
        } else {
            end.lose(&cause);
        }
        report(Report::Lost(cause));
    }

    /// How the process ended. It is not waited for long: its socket has closed.
    fn reap(&self) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match lock(&self.process).try_wait() {
                Ok(None) => {}
                Ok(status) => return status,
                Err(_) => return None,
            }
            if begun.elapsed() > END_TIMEOUT {
                let mut process = lock(&self.process);
                let _ = process.kill();
                return process.wait().ok();
            }
            thread::sleep(POLL);
        }
    }
}

/// How a process ended, for people.
fn ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => format!("ended: {status}"),
    }
}
