//! Communicators: how ranks come together, fail and part.

use super::call::Call;
use crate::code::{Code, Failure, Outcome};
use crate::fault;
use crate::runtime::{Device, Kind, Runtime};
use crate::stream::{Site, Stream};
use halyard_sdk::abi::RSlice;
use halyard_sdk::{Collective, CommDesc, DType, Stream as NoStream, TensorSpec, TensorView, comm};
use halyard_sim_memory::Home;
use std::env;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// `HcclRootInfo`: the id comes first.
pub(crate) const ROOT_INFO_BYTES: usize = 4108;
/// Bytes of it that are used.
const ID_BYTES: usize = 24;
/// Longest name of a communicator, with the zero at its end.
pub(crate) const NAME_BYTES: usize = 128;

/// The bound of a wait for other ranks in milliseconds, instead of those of the two `HCCL_*_TIMEOUT`.
const BOUND: &str = "HALYARD_SIM_ASCEND_HCCL_TIMEOUT_MS";

/// A rank of a communicator.
pub(crate) struct Comm {
    pub(crate) name: String,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) device: u32,
    member: Arc<dyn Collective>,
    turns: Turns,
    failed: Mutex<Option<Failure>>,
    /// Calls that have not run.
    pending: AtomicU64,
    /// Device memory that it takes.
    buffer: u64,
}

impl Kind for Comm {
    const NAME: &'static str = "communicator";
    const BAD: Code = Code::HCCL_PARA;
}

/// Exchanges of a communicator run in the order they were issued in, on whichever streams.
#[derive(Default)]
struct Turns {
    state: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, (u64, u64)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> u64 {
        let mut state = self.state();
        state.0 += 1;
        state.0 - 1
    }

    /// Waits for the turn, runs `exchange` and lets the next have it.
    fn run<T>(&self, turn: u64, exchange: impl FnOnce() -> T) -> T {
        drop(self.changed.wait_while(self.state(), |state| state.1 < turn));
        let out = exchange();
        self.state().1 = turn + 1;
        self.changed.notify_all();
        out
    }
}

/// A fresh `HcclRootInfo`.
pub(crate) fn root_info() -> Outcome<[u8; ROOT_INFO_BYTES]> {
    let mut info = [0; ROOT_INFO_BYTES];
    let used = comm::unique_id(&mut info[..ID_BYTES]).map_err(|e| of_exchange(&e))?;
    match used as usize {
        ID_BYTES => Ok(info),
        used => Err(Failure::new(Code::HCCL_INTERNAL, format!("an id of {used} bytes"))),
    }
}

/// A failure of the exchange in HCCL's codes.
pub(crate) fn of_exchange(error: &halyard_sdk::Error) -> Failure {
    let text = error.message.to_string();
    let code = match error.code {
        halyard_sdk::Code::INVALID_ARGUMENT => Code::HCCL_PARA,
        halyard_sdk::Code::UNSUPPORTED => Code::HCCL_NOT_SUPPORT,
        halyard_sdk::Code::IO => Code::HCCL_SYSCALL,
        // The exchange has one code for a rank that is late and one that is gone; its text says for how long it waited.
        halyard_sdk::Code::COMM_ERROR if text.contains(" ms for ") => Code::HCCL_TIMEOUT,
        halyard_sdk::Code::COMM_ERROR | halyard_sdk::Code::COMM_ABORTED => Code::HCCL_REMOTE,
        _ => Code::HCCL_INTERNAL,
    };
    Failure::new(code, text)
}

/// Waits for ranks that come, in seconds: `HCCL_CONNECT_TIMEOUT`.
fn bound_ms() -> Outcome<u64> {
    let number = |name: &str| env::var(name).ok().map(|text| (text.parse::<u64>(), text));
    if let Some((parsed, text)) = number(BOUND) {
        return parsed.map_err(|_| Failure::argument(BOUND, text));
    }
    match number("HCCL_CONNECT_TIMEOUT") {
        None => Ok(120_000),
        Some((Ok(seconds @ 120..=7200), _)) => Ok(seconds * 1000),
        Some((_, text)) => {
            let what = format!("'{text}'; 120 to 7200 seconds were expected");
            Err(Failure::argument("HCCL_CONNECT_TIMEOUT", what))
        }
    }
}

/// Device memory of a communicator: twice `HCCL_BUFFSIZE` (MiB).
fn buffer_bytes() -> usize {
    let mib = env::var("HCCL_BUFFSIZE").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    2 * mib * (1 << 20)
}

/// Where a rank is: its process and device.
fn place(device: &Device) -> [u8; 8] {
    let (process, device) = (std::process::id().to_le_bytes(), device.index.to_le_bytes());
    [process, device].concat().try_into().unwrap_or_default()
}

impl Comm {
    /// Joins; waits until all ranks have come.
    pub(crate) fn join(
        (runtime, device): (&Runtime, &Device),
        info: &[u8],
        (rank, world): (u32, u32),
        name: Option<String>,
    ) -> Outcome<Self> {
        let name = name.unwrap_or_else(|| {
            info[ID_BYTES - 8..ID_BYTES]
                .iter()
                .fold("hccl-".to_owned(), |all, b| format!("{all}{b:02x}"))
        });
        let desc = CommDesc {
            id: RSlice::from_slice(&info[..ID_BYTES]),
            rank,
            world,
            timeout_ms: bound_ms()?,
            name: name.as_str().into(),
            attrs: RSlice::EMPTY,
        };
        let member = comm::join(&desc).map_err(|error| match error.code {
            // The rank and the world were looked at before.
            halyard_sdk::Code::INVALID_ARGUMENT => Failure::argument("rootInfo", error.message),
            _ => of_exchange(&error),
        })?;
        Self::seat((runtime, device), Arc::from(member), (rank, world), name)
    }

    /// What a rank that has joined gets.
    fn seat(
        (runtime, device): (&Runtime, &Device),
        member: Arc<dyn Collective>,
        (rank, world): (u32, u32),
        name: String,
    ) -> Outcome<Self> {
        let places = gather(&*member, world, &place(device))?;
        for (other, its) in places.chunks(8).enumerate() {
            if other != rank as usize && its == place(device) {
                let what = format!("ranks {other} and {rank} are both on device {}", device.index);
                return Err(Failure::new(Code::HCCL_PARA, what));
            }
        }
        let buffer = runtime.memory.allocate(buffer_bytes(), Home::Device(device.index));
        let buffer = buffer
            .map_err(|e| Failure::new(Code(24), format!("buffers of the communicator: {e}")))?;
        let (turns, failed, pending) = Default::default();
        Ok(Self { name, rank, world, device: device.index, member, turns, failed, pending, buffer })
    }

    /// A communicator of some of the ranks; every rank of this one must call it. Rank `key` of the part, or none.
    pub(crate) fn part(
        &self,
        place: (&Runtime, &Device),
        part: Option<(u32, u32, u32)>,
        name: Option<String>,
    ) -> Outcome<Option<Self>> {
        self.healthy()?;
        let (color, key) =
            part.map_or((-1, 0), |(id, key, _)| (id.cast_signed(), key.cast_signed()));
        let turn = self.turns.take();
        let member =
            self.turns.run(turn, || self.member.split(color, key)).map_err(|e| of_exchange(&e))?;
        let Some((id, rank, world)) = part else { return Ok(None) };
        let name = name.unwrap_or_else(|| format!("{}-{id}", self.name));
        Self::seat(place, Arc::from(member), (rank, world), name).map(Some)
    }

    fn failed(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failure that ended it, if one did.
    pub(crate) fn healthy(&self) -> Outcome {
        if let Some(failure) = self.failed().clone() {
            return Err(failure);
        }
        self.member.status().map_err(|e| of_exchange(&e))
    }

    fn fail(&self, failure: &Failure) {
        self.failed().get_or_insert_with(|| failure.clone());
        // Sets the others free; how they end is the first failure's text.
        _ = self.member.abort();
    }

    /// Whether calls have not run.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending.load(SeqCst) > 0
    }

    /// Leaves; its memory is free.
    pub(crate) fn leave(&self, runtime: &Runtime) -> Outcome {
        let order = runtime.timeline().host_order("HcclCommDestroy");
        Ok(runtime.memory.free(self.buffer, &order)?)
    }

    /// Enqueues calls that belong together: one collective, or messages that do not wait for each other.
    pub(crate) fn issue(
        self: &Arc<Self>,
        runtime: &'static Runtime,
        stream: &Stream,
        calls: Vec<Call>,
    ) -> Outcome {
        self.healthy()?;
        let Some(name) = calls.first().map(|call| call.name) else { return Ok(()) };
        let expands = env::var("HCCL_OP_EXPANSION_MODE").unwrap_or_default();
        if stream.capturing().is_some() && expands != "AIV" {
            let what = format!(
                "argument `stream`: capturing, which HCCL_OP_EXPANSION_MODE=AIV allows and '{expands}' does not"
            );
            return Err(Failure::new(Code::HCCL_NOT_SUPPORT, what));
        }
        let captured = stream.capturing().is_some();
        // A replayed call takes its turn when it runs: ranks replay in one order.
        let turn = (!captured).then(|| self.turns.take());
        if turn.is_some() {
            self.pending.fetch_add(1, SeqCst);
        }
        let comm = Arc::clone(self);
        stream.enqueue(
            runtime,
            name,
            Arc::new(move |site: &Site<'_>| {
                let turn = turn.unwrap_or_else(|| comm.turns.take());
                let stopped = Arc::clone(&comm);
                let stop = move || {
                    let text = "the stream was aborted while ranks waited for each other";
                    stopped.fail(&Failure::new(Code::HCCL_INTERNAL, text));
                };
                let done = comm
                    .turns
                    .run(turn, || site.stoppable(stop, || comm.exchange(site, name, &calls)));
                if !captured {
                    comm.pending.fetch_sub(1, SeqCst);
                }
                done.map_err(|failure| {
                    comm.fail(&failure);
                    let what = format!("communicator {}, rank {}", comm.name, comm.rank);
                    failure.within(what).coded(Code::TASK_TIMEOUT)
                })
            }),
        )
    }

    fn exchange(&self, site: &Site<'_>, name: &str, calls: &[Call]) -> Outcome {
        fault::on_exchange(name)?;
        self.healthy()?;
        match calls {
            [call] if !call.is_message() => self.collective(site, call),
            _ => self.messages(site, calls),
        }
    }

    fn collective(&self, site: &Site<'_>, call: &Call) -> Outcome {
        let shown = gather(&*self.member, self.world, &call.header(self.world))?;
        let headers: Vec<&[u8]> = shown.chunks(Call::HEADER).collect();
        call.compare(self.rank, &headers)?;
        let mut input = call.read(site, self.rank, self.world)?;
        // Gathered pieces have one size: that of the longest.
        let longest = headers.iter().map(|header| Call::payload_bytes(header)).max().unwrap_or(0);
        input.resize(longest, 0);
        let all = gather(&*self.member, self.world, &input)?;
        let parts: Vec<&[u8]> = match longest {
            0 => vec![&[]; self.world as usize],
            _ => all.chunks(longest).collect(),
        };
        call.write(site, self.rank, &parts)
    }

    /// Sends and receives at once: first what comes, so that both sides know, then the bytes.
    fn messages(&self, site: &Site<'_>, calls: &[Call]) -> Outcome {
        let mut headers: Vec<Vec<u8>> = calls.iter().map(Call::message_header).collect();
        self.transfer(calls, &mut headers)?;
        for (call, header) in calls.iter().zip(&headers) {
            call.compare_message(header)?;
        }
        let inputs = calls.iter().map(|call| call.message(site));
        let mut bytes = inputs.collect::<Outcome<Vec<_>>>()?;
        self.transfer(calls, &mut bytes)?;
        calls.iter().zip(&bytes).try_for_each(|(call, bytes)| call.deliver(site, bytes))
    }

    fn transfer(&self, calls: &[Call], bytes: &mut [Vec<u8>]) -> Outcome {
        let failed = |e: halyard_sdk::Error| of_exchange(&e);
        self.member.group_begin().map_err(failed)?;
        for (call, bytes) in calls.iter().zip(bytes.iter_mut()) {
            let view = view(bytes.as_mut_ptr().expose_provenance(), bytes.len());
            let peer = call.peer();
            let sent = match call.sends() {
                true => self.member.send(NoStream::NONE, &view, peer),
                false => self.member.recv(NoStream::NONE, &view, peer),
            };
            sent.map_err(failed)?;
        }
        self.member.group_end().map_err(failed)
    }
}

fn view(address: usize, bytes: usize) -> TensorView {
    let dims = [bytes.cast_signed() as i64];
    TensorView::contiguous(address as u64, 0, &TensorSpec::new(DType::U8, &dims))
}

/// What every rank shows, by rank; all show as much.
fn gather(member: &dyn Collective, world: u32, mine: &[u8]) -> Outcome<Vec<u8>> {
    let mut shown = vec![0; mine.len() * world as usize];
    let src = view(mine.as_ptr().expose_provenance(), mine.len());
    let dst = view(shown.as_mut_ptr().expose_provenance(), shown.len());
    member.all_gather(NoStream::NONE, &src, &dst).map_err(|e| of_exchange(&e))?;
    // It was written through its address.
    Ok(std::hint::black_box(shown))
}

/// A pause of a rank that waits for its calls before it leaves.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);
