//! The side of every rank but rank 0: its only tie to the world is the socket to rank 0.

use std::{
    io::{self, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::Builder,
    time::Duration,
};

use halyard_core::Device;

use super::{Agreed, FIRST_PART, Failed, FrameReader, FrameWriter, FromRank, Start, ToRank, Tried};
use crate::{
    error::LoadError,
    runner::{Mailbox, Refused, Work},
};

/// Bytes that are read of the socket at once: those of most frames.
const BUFFER_BYTES: usize = 1 << 16;

/// The tie to rank 0.
#[derive(Clone, Debug)]
pub struct Leader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: Mutex<UnixStream>,
    /// What rank 0 wants done, but parts of steps.
    wishes: Mutex<Receiver<ToRank>>,
    device: OnceLock<Device>,
    serving: OnceLock<Serving>,
}

/// Where parts of steps go.
#[derive(Debug)]
struct Serving {
    mailbox: Arc<Mailbox>,
    /// What frames are read into, to be swapped with what is in the mailbox.
    work: Mutex<Work>,
    timeout: Duration,
}

/// Why a rank's process has nothing left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Rank 0 wants no more of it.
    Told,
    /// Rank 0 is gone, or does not make sense.
    Gone(String),
}

/// How a rank's process ended that has served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Rank 0 wanted no more of it.
    AsTold,
    /// It failed, and has said why.
    Failed,
}

/// What to do before loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    TryExchanges,
    Load,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leader {
    /// Reads what rank 0 says first, and listens to it from then on in a thread. `lost` is called there when rank 0 is gone, and
    /// when it wants no more while the model is not loaded yet: it is to end the process, whatever that is doing.
    ///
    /// # Errors
    /// There is no rank 0 of this program's version at the other end.
    pub fn connect(
        socket: UnixStream,
        lost: impl FnOnce(Lost) + Send + 'static,
    ) -> io::Result<(Self, Start)> {
        let mut from = BufReader::with_capacity(BUFFER_BYTES, socket.try_clone()?);
        let mut frames = FrameReader::default();
        let first = frames.next(&mut from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let ToRank::Start(start) = ToRank::read(first)? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "rank 0 does not begin"));
        };
        let (sender, wishes) = channel();
        let shared = Arc::new(Shared {
            socket: Mutex::new(socket),
            wishes: Mutex::new(wishes),
            device: OnceLock::new(),
            serving: OnceLock::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = Builder::new().name("halyard-leader".into());
        thread.spawn(move || match of_thread.listen(&mut from, &mut frames, &sender) {
            Ok(true) => {}
            Ok(false) => lost(Lost::Told),
            Err(error) => lost(Lost::Gone(error.to_string())),
        })?;
        Ok((Self { shared }, start))
    }

    /// Says why this rank ends.
    pub fn failed(&self, message: &str) {
        self.fail(Failed { message: message.to_owned(), by_others: false });
    }

    pub(crate) fn fail(&self, failed: Failed) {
        // Rank 0 may be gone; this process ends in either case.
        let _ = self.shared.send(&FromRank::Failed(failed));
    }

    /// Tells rank 0 something.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn tell(&self, message: &FromRank) -> Result<(), LoadError> {
        let sent = self.shared.send(message);
        sent.map_err(|error| LoadError::Process(format!("rank 0 cannot be reached: {error}")))
    }

    /// What came of all offers.
    ///
    /// # Errors
    /// Rank 0 wants something else.
    pub(crate) fn agreed(&self) -> Result<Agreed, LoadError> {
        match self.wish()? {
            ToRank::Agreed(agreed) => Ok(agreed),
            other => Err(unexpected(&other)),
        }
    }

    /// What rank 0 wants next.
    ///
    /// # Errors
    /// It is something that cannot come now.
    pub(crate) fn next(&self) -> Result<Next, LoadError> {
        match self.wish()? {
            ToRank::TryExchanges => Ok(Next::TryExchanges),
            ToRank::Load => Ok(Next::Load),
            other => Err(unexpected(&other)),
        }
    }

    /// How the trial of exchanges went.
    ///
    /// # Errors
    /// Rank 0 is gone.
    pub(crate) fn tried(&self, tried: Tried) -> Result<(), LoadError> {
        self.tell(&FromRank::Tried(tried))
    }

    /// From now on measurements can be asked for.
    pub(crate) fn set_device(&self, device: Device) {
        let _ = self.shared.device.set(device);
    }

    /// From now on parts of steps go into the mailbox, each in at most `timeout`.
    pub(crate) fn serve(&self, mailbox: Arc<Mailbox>, work: Work, timeout: Duration) {
        let work = Mutex::new(work);
        let _ = self.shared.serving.set(Serving { mailbox, work, timeout });
    }

    fn wish(&self) -> Result<ToRank, LoadError> {
        let wish = lock(&self.shared.wishes).recv();
        wish.map_err(|_| LoadError::Process("rank 0 is gone".into()))
    }
}

fn unexpected(message: &ToRank) -> LoadError {
    LoadError::Process(format!("rank 0 does not keep to the order of things: {message:?}"))
}

impl Shared {
    fn send(&self, message: &FromRank) -> io::Result<()> {
        let mut writer = FrameWriter::default();
        let frame = message.frame(&mut writer).map_err(io::Error::from)?;
        lock(&self.socket).write_all(frame)
    }

    /// Takes in what rank 0 says, to its end; whether that is one that the mailbox knows of.
    fn listen(
        &self,
        from: &mut BufReader<UnixStream>,
        frames: &mut FrameReader,
        wishes: &Sender<ToRank>,
    ) -> io::Result<bool> {
        while let Some((kind, fields)) = frames.next(from)? {
            if kind >= FIRST_PART {
                let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
                let serving = self.serving.get();
                let Serving { mailbox, work, timeout } = serving
                    .ok_or_else(|| invalid("a part of a step, before the model is there"))?;
                let mut work = lock(work);
                work.read((kind, fields))?;
                let put = mailbox.put(*timeout, |slot| std::mem::swap(slot, &mut *work));
                match put {
                    // That it ends is said elsewhere.
                    Ok(()) | Err(Refused::Ended) => continue,
                    Err(Refused::Full) => return Err(io::ErrorKind::TimedOut.into()),
                }
            }
            match (ToRank::read((kind, fields))?, self.serving.get()) {
                (ToRank::Measure, _) => {
                    let device = self.device.get();
                    let metrics = device.map(Device::telemetry).unwrap_or_default();
                    self.send(&FromRank::Measured(metrics))?;
                }
                (ToRank::End, Some(serving)) => {
                    serving.mailbox.stop();
                    return Ok(true);
                }
                (ToRank::End, None) => return Ok(false),
                (wish, _) => {
                    // The process may be past listening, on its way out.
                    let _ = wishes.send(wish);
                }
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
