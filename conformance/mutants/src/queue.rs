//! The reference with streams that work on their own: a thread each, which a launch, copy or fill only gives work to.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use halyard_sdk::{Code, Error, Event, Result, Stream};

/// What is wrong with streams and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueBug {
    /// Nothing.
    None,
    /// A stream does not wait for events.
    WaitIgnored,
    /// An event is reached when it is recorded.
    ReachedAtOnce,
    /// Work that fails says nothing.
    ErrorLost,
    /// An error is told again and again.
    ErrorKept,
    /// A fill does not queue up.
    FillOvertakes,
    /// A launch goes to the default stream, whatever it is told.
    OneStream,
    /// No time passes between events.
    NoTime,
}

/// How long a launch makes the host's mistakes show.
const SLOW: Duration = Duration::from_micros(150);

type Job = Box<dyn FnOnce() + Send>;

/// A counter that only rises, and those who wait for it.
#[derive(Debug, Default)]
struct Mark {
    /// How far it has come, and when it came there.
    reached: Mutex<(u64, Option<Instant>)>,
    moved: Condvar,
    wanted: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mark {
    fn reach(&self, number: u64) {
        let mut reached = lock(&self.reached);
        if number > reached.0 {
            *reached = (number, Some(Instant::now()));
        }
        self.moved.notify_all();
    }

    fn wait(&self, number: u64) {
        let mut reached = lock(&self.reached);
        while reached.0 < number {
            reached = self.moved.wait(reached).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_at(&self, number: u64) -> bool {
        lock(&self.reached).0 >= number
    }

    fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }
}

/// A stream: its thread ends when the sender goes.
#[derive(Debug)]
struct Line {
    jobs: Sender<Job>,
    done: Arc<Mark>,
}

impl Line {
    fn new() -> Self {
        let (jobs, work) = channel::<Job>();
        // It ends with its line.
        let _worker = thread::spawn(move || work.into_iter().for_each(|job| job()));
        Self { jobs, done: Arc::default() }
    }

    fn push(&self, job: Job) {
        let number = self.done.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        let done = Arc::clone(&self.done);
        // The worker lives as long as the line.
        let _sent = self.jobs.send(Box::new(move || {
            job();
            done.reach(number);
        }));
    }
}

/// The streams and events of a device.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) bug: QueueBug,
    lines: Mutex<HashMap<u64, Line>>,
    events: Mutex<HashMap<u64, Arc<Mark>>>,
    handles: AtomicU64,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Queues {
    pub(crate) fn new(bug: QueueBug) -> Self {
        let lines = Mutex::new(HashMap::from([(Stream::NONE.0, Line::new())]));
        Self {
            bug,
            lines,
            events: Mutex::default(),
            handles: AtomicU64::new(1),
            failed: Arc::default(),
        }
    }

    fn line<T>(&self, s: Stream, f: impl FnOnce(&Line) -> T) -> Result<T> {
        let lines = lock(&self.lines);
        lines.get(&s.0).map(f).ok_or_else(|| Error::invalid(format!("no stream {}", s.0)))
    }

    fn mark(&self, e: Event) -> Result<Arc<Mark>> {
        let found = lock(&self.events).get(&e.0).cloned();
        found.ok_or_else(|| Error::invalid(format!("no event {}", e.0)))
    }

    /// Gives a stream work; its error is told later.
    pub(crate) fn push(
        &self,
        s: Stream,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let failed = (self.bug != QueueBug::ErrorLost).then(|| Arc::clone(&self.failed));
        self.line(s, |line| {
            line.push(Box::new(move || {
                if let (Err(error), Some(failed)) = (work(), failed) {
                    *lock(&failed) = Some(error);
                }
            }));
        })
    }

    /// A launch, which takes its time.
    pub(crate) fn launch(
        &self,
        s: Stream,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let s = if self.bug == QueueBug::OneStream { Stream::NONE } else { s };
        self.push(s, move || {
            thread::sleep(SLOW);
            work()
        })
    }

    pub(crate) fn fill(
        &self,
        s: Stream,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        if self.bug == QueueBug::FillOvertakes { work() } else { self.push(s, work) }
    }

    /// What failed since this was last asked.
    fn told(&self) -> Result<()> {
        let mut failed = lock(&self.failed);
        let error = if self.bug == QueueBug::ErrorKept { failed.clone() } else { failed.take() };
        error.map_or(Ok(()), Err)
    }

    pub(crate) fn create(&self) -> Stream {
        let s = self.handles.fetch_add(1, Ordering::Relaxed);
        lock(&self.lines).insert(s, Line::new());
        Stream(s)
    }

    pub(crate) fn destroy(&self, s: Stream) -> Result<()> {
        let gone = lock(&self.lines).remove(&s.0);
        gone.map(|_| ()).ok_or_else(|| Error::invalid(format!("no stream {}", s.0)))
    }

    /// Waits for a stream, and asks for no errors.
    pub(crate) fn reach(&self, s: Stream) -> Result<()> {
        let (done, number) = self.line(s, |l| (Arc::clone(&l.done), l.done.wanted()))?;
        done.wait(number);
        Ok(())
    }

    pub(crate) fn sync(&self, s: Stream) -> Result<()> {
        self.reach(s)?;
        self.told()
    }

    pub(crate) fn query(&self, s: Stream) -> Result<()> {
        let idle = self.line(s, |l| l.done.is_at(l.done.wanted()))?;
        if idle { self.told() } else { Err(not_ready()) }
    }

    pub(crate) fn event_create(&self) -> Event {
        let e = self.handles.fetch_add(1, Ordering::Relaxed);
        lock(&self.events).insert(e, Arc::default());
        Event(e)
    }

    pub(crate) fn event_destroy(&self, e: Event) -> Result<()> {
        let gone = lock(&self.events).remove(&e.0);
        gone.map(|_| ()).ok_or_else(|| Error::invalid(format!("no event {}", e.0)))
    }

    pub(crate) fn record(&self, e: Event, s: Stream) -> Result<()> {
        let mark = self.mark(e)?;
        let number = mark.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        if self.bug == QueueBug::ReachedAtOnce {
            mark.reach(number);
            return Ok(());
        }
        self.line(s, |line| line.push(Box::new(move || mark.reach(number))))
    }

    pub(crate) fn wait(&self, s: Stream, e: Event) -> Result<()> {
        let mark = self.mark(e)?;
        let number = mark.wanted();
        if self.bug == QueueBug::WaitIgnored {
            return self.line(s, |_| ());
        }
        self.line(s, |line| line.push(Box::new(move || mark.wait(number))))
    }

    pub(crate) fn event_sync(&self, e: Event) -> Result<()> {
        let mark = self.mark(e)?;
        mark.wait(mark.wanted());
        self.told()
    }

    pub(crate) fn event_query(&self, e: Event) -> Result<()> {
        let mark = self.mark(e)?;
        if mark.is_at(mark.wanted()) { self.told() } else { Err(not_ready()) }
    }

    pub(crate) fn elapsed_ns(&self, a: Event, b: Event) -> Result<u64> {
        let at = |e| -> Result<Option<Instant>> { Ok(lock(&self.mark(e)?.reached).1) };
        let (Some(a), Some(b)) = (at(a)?, at(b)?) else {
            return Err(Error::invalid("both events must have been recorded"));
        };
        let b = if self.bug == QueueBug::NoTime { a } else { b };
        Ok(u64::try_from(b.saturating_duration_since(a).as_nanos()).unwrap_or(u64::MAX))
    }
}

fn not_ready() -> Error {
    Error::new(Code::NOT_READY, "work is pending")
}
