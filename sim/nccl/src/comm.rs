//! Communicators: how ranks come together, fail and part.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use halyard_sdk::{
    Collective, CommDesc, DType, Stream as NoStream, TensorSpec, TensorView,
    abi::RSlice,
    comm::{join, unique_id},
};
use halyard_sim_cuda_calls::Place;

use crate::{
    result::{Code, Failure, Outcome},
    staging::Streams,
};

/// `ncclUniqueId`. The exchange's own id comes first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct UniqueId(pub(crate) [u8; 128]);

impl UniqueId {
    const USED: usize = 24;

    pub(crate) fn fresh() -> Outcome<Self> {
        let mut id = [0; 128];
        let used = unique_id(&mut id[..Self::USED])?;
        if used as usize != Self::USED {
            return Err(Failure::new(Code::InternalError, format!("an id of {used} bytes")));
        }
        Ok(Self(id))
    }
}

/// Bound of waits for other ranks. NCCL has none; a test should not hang for ever.
const TIMEOUT_MS: u64 = 600_000;

/// A rank of a communicator.
pub(crate) struct Comm {
    pub(crate) place: Place,
    /// Whether functions wait until they have succeeded.
    pub(crate) blocking: bool,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether this rank was told that it has joined.
    announced: AtomicBool,
    /// Splits that are under way.
    splitting: AtomicU32,
    pub(crate) turns: Turns,
    /// Exchanges that have begun, those of graphs' launches too.
    pub(crate) exchanges: AtomicU64,
    pub(crate) streams: Mutex<Streams>,
}

enum State {
    Joining,
    Ready(Member),
    Failed(Failure),
}

/// A rank that has joined.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) collective: Arc<dyn Collective>,
    pub(crate) rank: u32,
    pub(crate) world: u32,
}

static ALL: LazyLock<Mutex<HashMap<usize, Arc<Comm>>>> = LazyLock::new(Mutex::default);
/// Handles are never given twice, so that a stale one is noticed.
static NEXT_HANDLE: AtomicUsize = AtomicUsize::new(0x1000);

fn all() -> MutexGuard<'static, HashMap<usize, Arc<Comm>>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The communicator with this handle.
pub(crate) fn find(handle: usize) -> Outcome<Arc<Comm>> {
    let found = all().get(&handle).map(Arc::clone);
    found.ok_or_else(|| Failure::argument(format!("no communicator {handle:#x}")))
}

/// Forgets a communicator.
pub(crate) fn remove(handle: usize) -> Outcome<Arc<Comm>> {
    let found = all().remove(&handle);
    found.ok_or_else(|| Failure::argument(format!("no communicator {handle:#x}")))
}

/// Begins to join; gives the handle. [`Comm::wait`] tells how it ends.
pub(crate) fn begin_join(
    id: UniqueId,
    rank: i32,
    world: i32,
    place: Place,
    blocking: bool,
) -> Outcome<(usize, Arc<Comm>)> {
    let number =
        |what: &str, n: i32| u32::try_from(n).map_err(|_| Failure::argument(format!("{what} {n}")));
    let (rank, world) = (number("rank", rank)?, number("number of ranks", world)?);
    begin(place, blocking, move || {
        let id = RSlice::from_slice(&id.0[..UniqueId::USED]);
        let (name, attrs) = ("nccl".into(), RSlice::EMPTY);
        let desc = CommDesc { id, rank, world, timeout_ms: TIMEOUT_MS, name, attrs };
        let member = Member { collective: Arc::from(join(&desc)?), rank, world };
        member.check_devices(&place)?;
        Ok(Some(member))
    })
}

/// A communicator that `come` joins, in a thread of its own.
fn begin(
    place: Place,
    blocking: bool,
    come: impl FnOnce() -> Outcome<Option<Member>> + Send + 'static,
) -> Outcome<(usize, Arc<Comm>)> {
    let comm = Arc::new(Comm {
        place,
        blocking,
        state: Mutex::new(State::Joining),
        changed: Condvar::new(),
        announced: AtomicBool::new(false),
        splitting: AtomicU32::new(0),
        turns: Turns::default(),
        exchanges: AtomicU64::new(0),
        streams: Mutex::default(),
    });
    let joining = Arc::clone(&comm);
    let spawned = thread::Builder::new().name("nccl-join".into()).spawn(move || {
        let state = match come() {
            Ok(Some(member)) => State::Ready(member),
            Ok(None) => State::Failed(Failure::usage("this rank split off without a color")),
            Err(failure) => State::Failed(failure),
        };
        let mut now = joining.state();
        // An abort may have come first.
        if matches!(*now, State::Joining) {
            *now = state;
        }
        joining.changed.notify_all();
    });
    spawned.map_err(|e| Failure::new(Code::SystemError, format!("no thread to join in: {e}")))?;
    let handle = NEXT_HANDLE.fetch_add(16, SeqCst);
    all().insert(handle, Arc::clone(&comm));
    Ok((handle, comm))
}

impl Member {
    /// What every rank shows, by rank.
    fn gather<const N: usize>(&self, mine: [u8; N]) -> Outcome<Vec<[u8; N]>> {
        let mut shown = vec![[0; N]; self.world as usize];
        let view = |address: usize, bytes: usize| {
            let dims = [bytes.cast_signed() as i64];
            TensorView::contiguous(address as u64, 0, &TensorSpec::new(DType::U8, &dims))
        };
        let src = view((&raw const mine).addr(), N);
        let dst = view(shown.as_mut_ptr().expose_provenance(), N * shown.len());
        self.collective.all_gather(NoStream::NONE, &src, &dst)?;
        Ok(std::hint::black_box(shown))
    }

    /// Refuses two ranks on one device.
    fn check_devices(&self, place: &Place) -> Outcome {
        let devices = match self.gather(place.uuid()?) {
            // All had come; one that was through before may have failed since, which is told when this rank asks.
            Err(failure) if failure.code == Code::RemoteError => return Ok(()),
            gathered => gathered?,
        };
        for (rank, device) in devices.iter().enumerate() {
            if let Some(other) = devices[..rank].iter().position(|d| d == device) {
                let both = format!("rank {other} and rank {rank} both are on one device");
                return Err(Failure::usage(format!("Duplicate GPU detected: {both}")));
            }
        }
        Ok(())
    }

    /// The part with this rank's color.
    fn split(&self, color: i32, key: i32) -> Outcome<Option<Self>> {
        let [c0, c1, c2, c3] = color.to_le_bytes();
        let [k0, k1, k2, k3] = key.to_le_bytes();
        let shown = self.gather([c0, c1, c2, c3, k0, k1, k2, k3])?;
        let collective = self.collective.split(color, key)?;
        if color < 0 {
            return Ok(None);
        }
        let number =
            |b: &[u8; 8], at: usize| i32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let ranks = (0..self.world).zip(&shown).filter(|(_, b)| number(b, 0) == color);
        let mut members: Vec<(i32, u32)> = ranks.map(|(rank, b)| (number(b, 4), rank)).collect();
        members.sort_unstable();
        let place = members.iter().position(|&(_, rank)| rank == self.rank);
        let rank =
            place.ok_or_else(|| Failure::new(Code::InternalError, "a rank lost its part"))?;
        let (rank, world) = (rank as u32, members.len() as u32);
        Ok(Some(Self { collective: Arc::from(collective), rank, world }))
    }
}

impl Comm {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the rank has joined.
    pub(crate) fn wait(&self) -> Outcome {
        let mut state = self.state();
        while matches!(*state, State::Joining) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match &*state {
            State::Failed(failure) => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    /// The rank, which must have joined, and not have failed by itself.
    pub(crate) fn member(&self) -> Outcome<Member> {
        match &*self.state() {
            State::Joining => Err(Failure::usage("the communicator is still being made")),
            State::Ready(member) => Ok(member.clone()),
            State::Failed(failure) => Err(failure.clone()),
        }
    }

    /// Ends the communicator with a failure of this rank's.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut state = self.state();
        if let State::Ready(member) = &*state {
            // Sets the others free; how they end is the first failure's text.
            _ = member.collective.abort();
        }
        if !matches!(*state, State::Failed(_)) {
            *state = State::Failed(failure);
        }
        self.changed.notify_all();
    }

    /// `ncclCommGetAsyncError`.
    pub(crate) fn async_error(&self) -> Outcome {
        let member = match &*self.state() {
            State::Joining => return Err(in_progress()),
            State::Failed(failure) => return Err(failure.clone()),
            State::Ready(member) => member.clone(),
        };
        // Others may have joined, and failed, before this rank asks: first it hears that it has joined.
        if !self.announced.swap(true, SeqCst) {
            return Ok(());
        }
        member.collective.status()?;
        if self.splitting.load(SeqCst) > 0 {
            return Err(in_progress());
        }
        Ok(())
    }

    /// Begins a split; gives the part's handle, or none without a color.
    pub(crate) fn split(
        self: &Arc<Self>,
        color: i32,
        key: i32,
    ) -> Outcome<Option<(usize, Arc<Self>)>> {
        let member = self.member()?;
        let (parent, turn) = (Arc::clone(self), self.turns.take());
        self.splitting.fetch_add(1, SeqCst);
        let come = move || {
            let part = parent.turns.run(turn, &member, || member.split(color, key));
            if let Err(failure) = &part {
                parent.fail(failure.clone());
            }
            parent.splitting.fetch_sub(1, SeqCst);
            part
        };
        let (handle, part) = begin(self.place, self.blocking, come)?;
        if color >= 0 {
            return Ok(Some((handle, part)));
        }
        remove(handle)?;
        // Whether the others came is the parent's to tell.
        if self.blocking {
            _ = part.wait();
            self.async_error()?;
        }
        Ok(None)
    }
}

/// The result of what is not done yet.
pub(crate) fn in_progress() -> Failure {
    Failure::new(Code::InProgress, "in progress")
}

#[derive(Default)]
struct Turn {
    /// Given out so far.
    taken: u64,
    /// Over.
    done: u64,
    /// An exchange is under way.
    busy: bool,
}

/// Exchanges of a communicator run in the order they were issued in, on whichever streams.
#[derive(Default)]
pub(crate) struct Turns {
    state: Mutex<Turn>,
    changed: Condvar,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, Turn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next turn.
    pub(crate) fn take(&self) -> u64 {
        let mut state = self.state();
        state.taken += 1;
        state.taken - 1
    }

    /// Waits for the turn, or the communicator's end, and runs `exchange`.
    pub(crate) fn run<T>(
        &self,
        turn: u64,
        member: &Member,
        exchange: impl FnOnce() -> Outcome<T>,
    ) -> Outcome<T> {
        let mut state = self.wait(member, |state| state.busy || state.done < turn)?;
        state.busy = true;
        drop(state);
        let result = exchange();
        let mut state = self.state();
        (state.busy, state.done) = (false, turn + 1);
        self.changed.notify_all();
        result
    }

    /// Runs `exchange` when no other is under way: an exchange of a graph, which has no turn.
    pub(crate) fn between(&self, member: &Member, exchange: impl FnOnce() -> Outcome) -> Outcome {
        let mut state = self.wait(member, |state| state.busy)?;
        state.busy = true;
        drop(state);
        let result = exchange();
        self.state().busy = false;
        self.changed.notify_all();
        result
    }

    /// Waits until all turns are over, or the communicator's end.
    pub(crate) fn flush(&self, member: &Member) -> Outcome {
        self.wait(member, |state| state.done < state.taken).map(drop)
    }

    fn wait(
        &self,
        member: &Member,
        not_yet: impl Fn(&Turn) -> bool,
    ) -> Outcome<MutexGuard<'_, Turn>> {
        let mut state = self.state();
        while not_yet(&state) {
            member.collective.status()?;
            let slice = Duration::from_millis(10);
            let waited = self.changed.wait_timeout(state, slice);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state)
    }
}
