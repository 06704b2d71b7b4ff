//! Communicators.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use halyard_abi::{
    A2av, AbiError, Attr, AttrKey, CollectiveBox, CommDesc, PropKey, RSlice, RSliceMut, ReduceOp,
    TensorView, collective,
};

use crate::{
    Device, Result, Stream, Tensor,
    device::DeviceInner,
    error::{DeviceError, Named},
    graph::unsupported,
};

/// A communicator's name, made by one rank and carried to the others by the host. Who has it can join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommId(Vec<u8>);

impl CommId {
    /// Most bytes of an id.
    pub const MAX_BYTES: usize = 8 << 10;

    /// An id that came from another rank.
    ///
    /// # Errors
    /// If it is longer than any id.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > Self::MAX_BYTES {
            let message = format!("a communicator id of {} bytes", bytes.len());
            return Err(DeviceError::invalid("comm_create", message));
        }
        Ok(Self(bytes.to_vec()))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// How to join a communicator.
#[derive(Clone, Debug)]
pub struct CommSpec<'a> {
    /// From [`Device::comm_id`] of one rank.
    pub id: &'a CommId,
    /// This rank.
    pub rank: u32,
    /// Ranks altogether.
    pub world: u32,
    /// Bound of joining and of every wait.
    pub timeout: Duration,
    /// For messages.
    pub name: &'a str,
    /// The number by which [`LinearAllReduce`](crate::attrs::LinearAllReduce) names it on this device. A later communicator with the
    /// same number takes its place.
    pub number: Option<i64>,
}

/// One rank of a communicator; it leaves when dropped. All ranks issue the same calls in the same order.
///
/// Calls are enqueued on a stream; a failure of their run surfaces there or from [`CommHandle::status`]. What is wrong with the
/// arguments of this rank alone is `INVALID_ARGUMENT` at once. Methods take `&mut self`, since calls naming one communicator must not
/// overlap; [`Communicator::handle`] is for other threads.
#[derive(Debug)]
pub struct Communicator {
    shared: Arc<Shared>,
    rank: u32,
    world: u32,
    /// What the open group uses; it is issued at the end.
    group: Option<Vec<Tensor>>,
}

/// Tells how a communicator is, and ends it, from any thread. While one is there the rank has not left.
#[derive(Clone, Debug)]
pub struct CommHandle {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    raw: CollectiveBox,
    device: Arc<DeviceInner>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Communicator on {:?}", self.device)
    }
}

/// Rows to and from each peer, an entry a rank: counts, and the first row of each.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// How many to each peer.
    pub send_counts: &'a [u64],
    /// From which row on.
    pub send_displs: &'a [u64],
    /// How many from each peer.
    pub recv_counts: &'a [u64],
    /// To which row on.
    pub recv_displs: &'a [u64],
}

/// Where a rank goes when a communicator is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Ranks of one color stay together.
    pub color: u16,
    /// Lower keys come first.
    pub key: i32,
}

impl Device {
    /// A fresh communicator id.
    ///
    /// # Errors
    /// `UNSUPPORTED` if the backend has no collectives.
    pub fn comm_id(&self) -> Result<CommId> {
        let mut bytes = vec![0; CommId::MAX_BYTES];
        let count = self.inner.raw.comm_unique_id(RSliceMut::from_mut_slice(&mut bytes));
        let count = count.named("comm_unique_id")? as usize;
        if count > bytes.len() {
            let message = format!("an id of {count} bytes, at most {} are allowed", bytes.len());
            return Err(DeviceError::invalid("comm_unique_id", message));
        }
        bytes.truncate(count);
        Ok(CommId(bytes))
    }

    /// Joins a communicator; waits until all ranks have.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a rank or world that cannot be, `COMM_ERROR` if others do not come in time.
    pub fn join(&self, spec: &CommSpec<'_>) -> Result<Communicator> {
        let &CommSpec { id, rank, world, timeout, name, number } = spec;
        collective::member("rank", rank, world).named("comm_create")?;
        let attr = number.map(|n| Attr { key: AttrKey::COMM, ty: 1, bits: n.cast_unsigned() });
        let desc = CommDesc {
            id: RSlice::from_slice(&id.0),
            rank,
            world,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            name: name.into(),
            attrs: RSlice::from_slice(attr.as_slice()),
        };
        let raw = self.inner.raw.comm_create(&desc).named("comm_create")?;
        let comm = Communicator::new(raw, Arc::clone(&self.inner), rank, world);
        if let Some(number) = number {
            self.inner.number(number, &comm.shared);
        }
        Ok(comm)
    }
}

impl Shared {
    /// Sums a tensor over the ranks, in place.
    pub(crate) fn sum(
        &self,
        stream: halyard_abi::Stream,
        view: &TensorView,
    ) -> std::result::Result<(), AbiError> {
        self.raw.all_reduce(stream, view, view, ReduceOp::SUM).into_result()
    }
}

/// The communicators that ops can name: those that live.
#[derive(Debug, Default)]
pub(crate) struct Numbered(Mutex<Vec<(i64, Weak<Shared>)>>);

impl DeviceInner {
    fn number(&self, number: i64, shared: &Arc<Shared>) {
        let mut numbered = self.comms.0.lock().unwrap_or_else(PoisonError::into_inner);
        numbered.retain(|(n, comm)| *n != number && comm.strong_count() > 0);
        numbered.push((number, Arc::downgrade(shared)));
    }

    /// The communicator with this number.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if none lives.
    pub(crate) fn communicator(&self, number: i64) -> std::result::Result<Arc<Shared>, AbiError> {
        let numbered = self.comms.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = numbered.iter().find(|(n, _)| *n == number);
        found.and_then(|(_, comm)| comm.upgrade()).ok_or_else(|| {
            AbiError::invalid(format!(
                "this device has joined no communicator with number {number}"
            ))
        })
    }
}

impl CommHandle {
    /// How the communicator is; never blocks.
    ///
    /// # Errors
    /// How it ended.
    pub fn status(&self) -> Result<()> {
        self.shared.raw.status().named("status")
    }

    /// Ends the communicator: every rank's pending calls give `COMM_ABORTED`.
    ///
    /// # Errors
    /// If it cannot be told to the others.
    pub fn abort(&self) -> Result<()> {
        self.shared.raw.abort().named("abort")
    }
}

impl Communicator {
    fn new(raw: CollectiveBox, device: Arc<DeviceInner>, rank: u32, world: u32) -> Self {
        Self { shared: Arc::new(Shared { raw, device }), rank, world, group: None }
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks altogether.
    #[must_use]
    pub fn world(&self) -> u32 {
        self.world
    }

    /// For other threads.
    #[must_use]
    pub fn handle(&self) -> CommHandle {
        CommHandle { shared: Arc::clone(&self.shared) }
    }

    /// `dst = op over ranks of src`, everywhere. `dst` may be `src`.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn all_reduce(
        &mut self,
        stream: &Stream,
        src: &Tensor,
        dst: &Tensor,
        op: ReduceOp,
    ) -> Result<()> {
        const CALL: &str = "all_reduce";
        collective::all_reduce(&src.view, &dst.view, op).named(CALL)?;
        self.uses(CALL, stream, &[src, dst])?;
        self.shared.raw.all_reduce(stream.raw, &src.view, &dst.view, op).named(CALL)
    }

    /// `dst` is every rank's `src`, one after the other along dim 0. `src` may be the own part of `dst`.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn all_gather(&mut self, stream: &Stream, src: &Tensor, dst: &Tensor) -> Result<()> {
        const CALL: &str = "all_gather";
        collective::all_gather(&src.view, &dst.view, self.rank, self.world).named(CALL)?;
        self.uses(CALL, stream, &[src, dst])?;
        self.shared.raw.all_gather(stream.raw, &src.view, &dst.view).named(CALL)
    }

    /// `dst` is this rank's part of `op over ranks of src` along dim 0. `dst` may be the own part of `src`.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn reduce_scatter(
        &mut self,
        stream: &Stream,
        src: &Tensor,
        dst: &Tensor,
        op: ReduceOp,
    ) -> Result<()> {
        const CALL: &str = "reduce_scatter";
        let (rank, world) = (self.rank, self.world);
        collective::reduce_scatter(&src.view, &dst.view, op, rank, world).named(CALL)?;
        self.uses(CALL, stream, &[src, dst])?;
        self.shared.raw.reduce_scatter(stream.raw, &src.view, &dst.view, op).named(CALL)
    }

    /// `buf` of rank `root`, everywhere.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn broadcast(&mut self, stream: &Stream, buf: &Tensor, root: u32) -> Result<()> {
        const CALL: &str = "broadcast";
        collective::member("root", root, self.world).named(CALL)?;
        collective::contiguous_bytes("buf", &buf.view).named(CALL)?;
        self.uses(CALL, stream, &[buf])?;
        self.shared.raw.broadcast(stream.raw, &buf.view, root).named(CALL)
    }

    /// Rows (of dim 0) of `send` to each peer, and of `recv` from each.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn all_to_all_v(
        &mut self,
        stream: &Stream,
        send: &Tensor,
        recv: &Tensor,
        rows: Rows<'_>,
    ) -> Result<()> {
        const CALL: &str = "all_to_all_v";
        let args = A2av {
            send: send.view,
            recv: recv.view,
            send_counts: RSlice::from_slice(rows.send_counts),
            send_displs: RSlice::from_slice(rows.send_displs),
            recv_counts: RSlice::from_slice(rows.recv_counts),
            recv_displs: RSlice::from_slice(rows.recv_displs),
        };
        collective::all_to_all_v(&args, self.world).named(CALL)?;
        self.uses(CALL, stream, &[send, recv])?;
        self.shared.raw.all_to_all_v(stream.raw, &args).named(CALL)
    }

    /// To one peer, which receives as many elements of the same dtype.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn send(&mut self, stream: &Stream, src: &Tensor, peer: u32) -> Result<()> {
        self.message("send", stream, src, peer)?;
        self.shared.raw.send(stream.raw, &src.view, peer).named("send")
    }

    /// From one peer.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn recv(&mut self, stream: &Stream, dst: &Tensor, peer: u32) -> Result<()> {
        self.message("recv", stream, dst, peer)?;
        self.shared.raw.recv(stream.raw, &dst.view, peer).named("recv")
    }

    fn message(
        &mut self,
        call: &'static str,
        stream: &Stream,
        tensor: &Tensor,
        peer: u32,
    ) -> Result<()> {
        collective::member("peer", peer, self.world).named(call)?;
        collective::contiguous_bytes("message", &tensor.view).named(call)?;
        self.uses(call, stream, &[tensor])
    }

    /// Issues the calls that `f` makes together: their order does not matter. Their results are there once the stream has come to the
    /// end of the group. If `f` fails, the group cannot be taken back and the communicator is aborted.
    ///
    /// # Errors
    /// What `f` gave, or the failure of the group.
    pub fn group(&mut self, f: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.shared.raw.group_begin().named("group_begin")?;
        self.group = Some(Vec::new());
        let filled = f(self);
        if filled.is_err() {
            // The others need not wait for what will not come.
            if let Err(error) = self.handle().abort() {
                tracing::warn!(%error, "could not abort a communicator");
            }
        }
        let ended = self.shared.raw.group_end().named("group_end");
        self.group = None;
        filled.and(ended)
    }

    /// No rank passes before all have come.
    ///
    /// # Errors
    /// As said at [`Communicator`].
    pub fn barrier(&mut self, stream: &Stream) -> Result<()> {
        self.uses("barrier", stream, &[])?;
        self.shared.raw.barrier(stream.raw).named("barrier")
    }

    /// A communicator of the ranks whose group in `plan` (an entry a rank, the same everywhere) has the same color as this rank's,
    /// ordered by key, then rank; `None` for a rank without a group. All ranks call it.
    ///
    /// # Errors
    /// If `plan` has not an entry a rank, the backend cannot split, or others do not come in time.
    pub fn split(&mut self, plan: &[Option<Group>]) -> Result<Option<Self>> {
        if plan.len() != self.world as usize {
            let message = format!("a plan for {} ranks of {}", plan.len(), self.world);
            return Err(DeviceError::invalid("split", message));
        }
        let mine = plan[self.rank as usize];
        let (color, key) = mine.map_or((-1, 0), |g| (i32::from(g.color), g.key));
        let raw = self.shared.raw.split(color, key).named("split")?;
        let Some(mine) = mine else { return Ok(None) };
        let mut members: Vec<(i32, u32)> = (0..self.world)
            .zip(plan)
            .filter_map(|(rank, g)| g.filter(|g| g.color == mine.color).map(|g| (g.key, rank)))
            .collect();
        members.sort_unstable();
        let before = members.iter().take_while(|&&(_, rank)| rank != self.rank).count();
        let device = Arc::clone(&self.shared.device);
        Ok(Some(Self::new(raw, device, before as u32, members.len() as u32)))
    }

    /// Checks that all is of this device; keeps what an open group uses.
    fn uses(&mut self, call: &'static str, stream: &Stream, tensors: &[&Tensor]) -> Result<()> {
        if !Arc::ptr_eq(&stream.device, &self.shared.device) {
            return Err(DeviceError::invalid(call, "a stream of another device"));
        }
        for tensor in tensors {
            tensor.buffer().is_of(stream, call)?;
        }
        if stream.is_capturing() {
            let can = self.shared.device.raw.property(PropKey::GRAPH_COMM).into_option();
            if can != Some(1) {
                return Err(unsupported(call, "the backend cannot capture what ranks exchange"));
            }
            stream.captured(|uses| uses.comm(&self.shared, tensors));
        }
        if let Some(group) = &mut self.group {
            group.extend(tensors.iter().map(|&t| t.clone()));
        }
        Ok(())
    }
}
