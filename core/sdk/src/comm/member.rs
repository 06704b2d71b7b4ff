//! A rank's membership: coming, waiting for others, failing together.

use std::{
    fmt,
    sync::atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use halyard_abi::{
    Code,
    collective::{self, MAX_WORLD},
};

use super::{
    Id, lock,
    region::{Rank, Region, TEXT_WORDS},
};
use crate::{Error, Result};

/// How often a wait looks again before it lets others have the processor, and before it sleeps.
const SPINS: u32 = 100;
const YIELDS: u32 = 110;
/// How long a wait sleeps before it looks whether whom it waits for still lives.
const SLICE: Duration = Duration::from_millis(20);

/// States of [`Control::failure`](super::region::Control::failure).
const WRITING: u32 = 1;
const FAILED: u32 = 2;
const ABORTED: u32 = 3;

/// A place in a communicator.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) rank: u32,
    pub(super) world: u32,
    /// Bound of joining and of every wait.
    pub(super) timeout_ms: u64,
    /// For messages.
    pub(super) name: String,
}

/// A set of ranks, a bit each.
pub(super) type Ranks = u64;
const _: () = assert!(MAX_WORLD <= Ranks::BITS);

/// A rank that has joined. Dropping it gives its lock back, which tells the others.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) region: Region,
    pub(super) seat: Seat,
}

impl Member {
    /// Takes a seat and waits until all are taken.
    pub(super) fn join(id: &Id, seat: Seat) -> Result<Self> {
        let Seat { rank, world, timeout_ms, .. } = seat;
        if world == 0 || world > MAX_WORLD || timeout_ms == 0 {
            let limits = format!("1 to {MAX_WORLD} ranks and a timeout of at least 1 ms");
            return Err(Error::invalid(format!(
                "{world} ranks, {timeout_ms} ms: expected {limits}"
            )));
        }
        collective::member("rank", rank, world)?;
        let this = Self { region: Region::open(id, world, timeout_ms)?, seat };
        this.sit()?;
        let missing = || {
            let ranks = &this.region.control().ranks[..world as usize];
            bits(ranks.iter().map(|r| r.joined.load(Acquire) == 0))
        };
        let joined = this.wait(&missing, &"the others to join");
        if joined.is_err() {
            this.region.unlink();
        }
        joined.map(|()| this)
    }

    fn sit(&self) -> Result<()> {
        let Seat { rank, world, timeout_ms, .. } = self.seat;
        let setup = self.region.setup(timeout_ms)?;
        let control = self.region.control();
        let locked = lock::try_lock(&self.region.file, u64::from(rank));
        let locked = locked.map_err(|e| Error::new(Code::IO, format!("locking a seat: {e}")))?;
        if !locked || self.me().joined.load(Relaxed) != 0 {
            return Err(Error::invalid(format!("{self} has joined already")));
        }
        self.me().joined.store(1, Release);
        if control.joined.fetch_add(1, AcqRel) + 1 == world {
            self.region.unlink();
        }
        drop(setup);
        self.ring_all();
        Ok(())
    }

    pub(super) fn me(&self) -> &Rank {
        &self.region.control().ranks[self.seat.rank as usize]
    }

    /// The failure, if there was one.
    pub(super) fn check(&self) -> Result<()> {
        match self.region.control().failure.load(Acquire) {
            FAILED => Err(Error::new(Code::COMM_ERROR, self.text())),
            ABORTED => Err(Error::new(Code::COMM_ABORTED, self.text())),
            // Whoever is just writing it is about to be done.
            _ => Ok(()),
        }
    }

    /// Ends the communicator for all ranks, unless it has ended before; gives what it ended with.
    pub(super) fn fail(&self, message: &str) -> Error {
        self.end(FAILED, message);
        self.check().err().unwrap_or_else(|| Error::new(Code::COMM_ERROR, message))
    }

    /// Ends the communicator for all ranks at somebody's wish.
    pub(super) fn abort(&self) {
        self.end(ABORTED, &format!("aborted by {self}"));
    }

    fn end(&self, how: u32, message: &str) {
        let control = self.region.control();
        if control.failure.compare_exchange(0, WRITING, AcqRel, Acquire).is_ok() {
            let message = format!("communicator {}: {message}", self.seat.name);
            let mut bytes = message.into_bytes();
            bytes.resize(TEXT_WORDS * 8, 0);
            for (word, bytes) in control.text.iter().zip(bytes.chunks_exact(8)) {
                word.store(u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[i])), Relaxed);
            }
            control.failure.store(how, Release);
            self.ring_all();
        } else {
            // Another rank was first: its text is there in a moment, if it lives.
            for _ in 0..100 {
                if control.failure.load(Acquire) != WRITING {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn text(&self) -> String {
        let words = self.region.control().text.iter();
        let bytes: Vec<u8> = words.flat_map(|w| w.load(Relaxed).to_le_bytes()).collect();
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// Tells a rank that something has come.
    pub(super) fn ring(&self, rank: u32) {
        let rank = &self.region.control().ranks[rank as usize];
        // Before the sleeper's flag is read: either the flag is seen here, or the sleeper sees another bell and does not sleep.
        rank.bell.fetch_add(1, SeqCst);
        if rank.asleep.load(SeqCst) != 0 {
            wake(&rank.bell);
        }
    }

    pub(super) fn ring_all(&self) {
        (0..self.seat.world).for_each(|rank| self.ring(rank));
    }

    /// Waits until nobody is `awaited` any more.
    ///
    /// # Errors
    /// How the communicator ended: by another rank, because an awaited rank is gone, or because the time is over.
    pub(super) fn wait(&self, awaited: &dyn Fn() -> Ranks, what: &dyn fmt::Display) -> Result<()> {
        let start = Instant::now();
        let timeout = Duration::from_millis(self.seat.timeout_ms);
        for turn in 0u32.. {
            let bell = self.me().bell.load(SeqCst);
            let ranks = awaited();
            // What is there is there, even if the communicator has ended since.
            if ranks == 0 {
                return Ok(());
            }
            self.check()?;
            if turn < SPINS {
                std::hint::spin_loop();
                continue;
            }
            if turn < YIELDS {
                thread::yield_now();
                continue;
            }
            let waited = start.elapsed();
            if waited >= timeout {
                let waiting = format!("{self} waited {} ms for", waited.as_millis());
                return Err(self.fail(&format!("{waiting} {} in {what}", listed(ranks))));
            }
            self.sleep(bell, SLICE.min(timeout - waited));
            let gone = self.gone(ranks);
            // What they left behind before they went still counts.
            if gone != 0 && awaited() & gone != 0 {
                let waiting = format!("{} left while {self} waited for it", listed(gone));
                return Err(self.fail(&format!("{waiting} in {what}")));
            }
        }
        Ok(())
    }

    fn sleep(&self, bell: u32, most: Duration) {
        self.me().asleep.store(1, SeqCst);
        sleep_while(&self.me().bell, bell, most);
        self.me().asleep.store(0, SeqCst);
    }

    /// Ends the communicator if some ranks live no more.
    pub(super) fn look_for_leavers(&self) -> Result<()> {
        match self.gone(Ranks::MAX) {
            0 => Ok(()),
            gone => Err(self.fail(&format!("{} left while {self} waited", listed(gone)))),
        }
    }

    /// Those of some ranks that joined and live no more.
    fn gone(&self, ranks: Ranks) -> Ranks {
        let control = self.region.control();
        bits((0..self.seat.world).map(|rank| {
            rank != self.seat.rank
                && ranks & (1 << rank) != 0
                && control.ranks[rank as usize].joined.load(Acquire) == 1
                && matches!(lock::is_held(&self.region.file, u64::from(rank)), Ok(false))
        }))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.seat.rank)
    }
}

/// The ranks for which something is true, in their order.
pub(super) fn bits(each: impl Iterator<Item = bool>) -> Ranks {
    each.enumerate().fold(0, |all, (rank, is)| all | u64::from(is) << rank)
}

fn listed(ranks: Ranks) -> String {
    let names: Vec<String> =
        (0..MAX_WORLD).filter(|r| ranks & (1 << r) != 0).map(|r| r.to_string()).collect();
    let s = if names.len() == 1 { "" } else { "s" };
    format!("rank{s} {}", names.join(", "))
}

/// Sleeps while `word` is `value`, but not longer than `most`. May return early.
fn sleep_while(word: &AtomicU32, value: u32, most: Duration) {
    let most = libc::timespec {
        tv_sec: most.as_secs().cast_signed(),
        tv_nsec: i64::from(most.subsec_nanos()),
    };
    let (word, most) = (word.as_ptr(), &raw const most);
    // SAFETY: the word is a live, aligned u32 of the shared mapping and the time a live timespec; the kernel only reads both.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, value, most) };
}

/// Wakes whoever sleeps on `word`, in any process.
fn wake(word: &AtomicU32) {
    // SAFETY: the kernel takes the address of a live u32 as a key and does not touch what it holds.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
