//! HCCL: communicators, collectives, messages.

use super::stream::find;
use super::{In, Out};
use crate::code::{Code, Failure, Outcome};
use crate::hccl::call::{Call, Shape, even};
use crate::hccl::comm::{Comm, NAME_BYTES, PAUSE, ROOT_INFO_BYTES, root_info};
use crate::hccl::reduce_op;
use crate::runtime::{here, runtime};
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::Arc;
use std::thread;

/// `HcclRootInfo`
type RootInfo = [u8; ROOT_INFO_BYTES];

/// `HcclCommConfig` of version 5, without what comes behind the name.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Config {
    size: u64,
    magic: u32,
    version: u32,
    reserved: u64,
    buffer_mib: u32,
    deterministic: u32,
    name: [u8; NAME_BYTES],
}

const CONFIG_MAGIC: u32 = 0xf0f0_f0f0;
/// Bytes of version 5, the oldest.
const CONFIG_BYTES: u64 = 300;

/// `HcclSendRecvItem`
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Item {
    kind: u32,
    buf: u64,
    count: u64,
    dtype: u32,
    peer: u32,
}

const _: () = assert!(size_of::<Item>() == 32);

/// The name that a configuration gives; none if it gives none.
fn configured(config: &In<Config>) -> Outcome<Option<String>> {
    let config = config.at("config", 0)?;
    if config.magic != CONFIG_MAGIC {
        let what = format!(
            "magic {:#x}; {CONFIG_MAGIC:#x} was expected (HcclCommConfigInit)",
            config.magic
        );
        return Err(Failure::argument("config", what));
    }
    if config.size < CONFIG_BYTES {
        let what = format!(
            "{} bytes of version {}; at least {CONFIG_BYTES} were expected",
            config.size, config.version
        );
        return Err(Failure::argument("config", what));
    }
    let name = config.name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name)
        .map_err(|_| Failure::argument("config", "a name that is not UTF-8"))?;
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

fn join(
    world: u32,
    info: &In<RootInfo>,
    rank: u32,
    name: Option<String>,
    out: &Out<usize>,
) -> Outcome {
    let place = here()?;
    if out.is_null() {
        return Err(Failure::null("comm"));
    }
    if world == 0 || rank >= world {
        return Err(Failure::argument("rank", format!("{rank} of {world} ranks")));
    }
    let comm = Comm::join(place, &info.at("rootInfo", 0)?, (rank, world), name)?;
    out.set("comm", place.0.handles.add(Arc::new(comm)))
}

/// Every rank of a process at once, each on its device.
fn join_all(devices: &[i32]) -> Outcome<Vec<usize>> {
    let runtime = runtime()?;
    let info = root_info()?;
    let world = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    let places = devices.iter().map(|index| runtime.device("devices", *index));
    let places = places.collect::<Outcome<Vec<_>>>()?;
    thread::scope(|scope| {
        let info = &info;
        let joins = places.into_iter().zip(0..).map(|(device, rank)| {
            scope.spawn(move || Comm::join((runtime, device), info, (rank, world), None))
        });
        let joins: Vec<_> = joins.collect();
        let joined = joins.into_iter().map(|join| {
            let comm =
                join.join().map_err(|_| Failure::new(Code::HCCL_INTERNAL, "a rank panicked"))?;
            Ok(runtime.handles.add(Arc::new(comm?)))
        });
        joined.collect()
    })
}

fn comm(handle: usize) -> Outcome<Arc<Comm>> {
    runtime()?.handles.get("comm", handle)
}

/// What a thread calls between `HcclGroupStart` and `HcclGroupEnd`: communicator and stream, and the call.
#[derive(Default)]
struct Group {
    depth: u32,
    calls: Vec<((usize, usize), Call)>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// Checks a call and issues it, or leaves that to the end of the group.
fn issue(handle: usize, stream: usize, calls: Vec<Call>) -> Outcome {
    let comm = comm(handle)?;
    let (runtime, device, found) = find(stream)?;
    if comm.device != device.index {
        let what =
            format!("of device {}, and this thread's device is {}", comm.device, device.index);
        return Err(Failure::argument("comm", what));
    }
    for call in &calls {
        call.check((runtime, device), comm.rank, comm.world)?;
    }
    let later = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.calls.extend(calls.iter().cloned().map(|call| ((handle, stream), call)));
        }
        group.depth > 0
    });
    if later { Ok(()) } else { comm.issue(runtime, &found, calls) }
}

/// Ends a group: each communicator's collectives in their order, then its messages at once.
fn end_group() -> Outcome {
    let calls = GROUP.with_borrow_mut(|group| match group.depth {
        0 => Err(Failure::new(Code::HCCL_PARA, "HcclGroupStart was not called")),
        1 => {
            group.depth = 0;
            Ok(std::mem::take(&mut group.calls))
        }
        _ => {
            group.depth -= 1;
            Ok(Vec::new())
        }
    })?;
    let (messages, collectives): (Vec<_>, Vec<_>) =
        calls.into_iter().partition(|(_, call)| call.is_message());
    for ((handle, stream), call) in collectives {
        let (runtime, _, stream) = find(stream)?;
        comm(handle)?.issue(runtime, &stream, vec![call])?;
    }
    let mut places: Vec<_> = messages.iter().map(|(place, _)| *place).collect();
    places.dedup();
    for place in places {
        let together =
            messages.iter().filter(|(its, _)| *its == place).map(|(_, call)| call.clone());
        let (runtime, _, stream) = find(place.1)?;
        comm(place.0)?.issue(runtime, &stream, together.collect())?;
    }
    Ok(())
}

/// A host array of counts or displacements, one for each rank.
fn counts(argument: &str, values: &In<u64>, handle: usize) -> Outcome<Vec<u64>> {
    let world = comm(handle)?.world as usize;
    if runtime()?.memory.lookup(values.address()).is_some() {
        let what = "memory of the device; an array of the host was expected";
        return Err(Failure::argument(argument, what));
    }
    values.all(argument, world)
}

/// A count that a rank says twice.
fn own_count(argument: &str, given: u64, counts: &[u64], handle: usize) -> Outcome {
    let rank = comm(handle)?.rank as usize;
    if counts[rank] == given {
        return Ok(());
    }
    Err(Failure::argument(
        argument,
        format!("{given}; the counts say {} for this rank", counts[rank]),
    ))
}

values! { VALUES of Hccl:
    fn HcclGetErrorString(code: u32) -> *const c_char, std::ptr::null(); {
        Ok(meaning(code).as_ptr())
    }
}

fn meaning(code: u32) -> &'static CStr {
    match code {
        0 => c"no error",
        1 => c"parameter error",
        2 => c"empty pointer",
        3 => c"memory error",
        4 => c"internal error",
        5 => c"not supported",
        6 => c"not found",
        7 => c"resource unavailable",
        8 => c"call of the system failed",
        9 => c"timeout",
        11 => c"tcp connect failed",
        12 => c"roce connect failed",
        13 => c"tcp transfer failed",
        14 => c"roce transfer failed",
        15 => c"call of the runtime failed",
        16 => c"call of the driver failed",
        19 => c"network error",
        20 => c"try again",
        21 => c"error of a remote rank",
        22 => c"communicator suspending",
        23 => c"retry of an operation failed",
        24 => c"out of memory",
        1041 => c"error in a status",
        _ => c"unknown error",
    }
}

entries! { COMMUNICATORS of Hccl:
    fn HcclGetRootInfo(info: Out<RootInfo>) {
        here()?;
        info.set("rootInfo", root_info()?)
    }

    fn HcclCommInitRootInfo(world: u32, info: In<RootInfo>, rank: u32, comm: Out<usize>) {
        join(world, &info, rank, None, &comm)
    }

    fn HcclCommInitRootInfoConfig(world: u32, info: In<RootInfo>, rank: u32, config: In<Config>, comm: Out<usize>) {
        join(world, &info, rank, configured(&config)?, &comm)
    }

    fn HcclCommInitAll(ndev: u32, devices: In<i32>, comms: Out<usize>) {
        let devices = devices.all("devices", ndev as usize)?;
        comms.set_all("comms", 0, &join_all(&devices)?)
    }

    fn HcclCommInitClusterInfo(_cluster_info: In<c_char>, _rank: u32, _comm: Out<usize>) {
        Err(no_rank_tables())
    }

    fn HcclCommInitClusterInfoConfig(_cluster_info: In<c_char>, _rank: u32, _config: In<Config>, _comm: Out<usize>) {
        Err(no_rank_tables())
    }

    /* Every rank of the communicator calls it; those that are not in the part with rankNum 0. */
    fn HcclCreateSubCommConfig(
        parent: In<usize>, rank_num: u32, rank_ids: In<u32>, id: u64, sub_rank: u32, config: In<Config>, sub: Out<usize>,
    ) {
        let place = here()?;
        let parent = comm(parent.at("comm", 0)?)?;
        if rank_num == 0 {
            return parent.part(place, None, None).map(|_| ());
        }
        let ranks = rank_ids.all("rankIds", rank_num as usize)?;
        if ranks.get(sub_rank as usize) != Some(&parent.rank) {
            let what = format!("{sub_rank}: rankIds {ranks:?} do not have rank {} there", parent.rank);
            return Err(Failure::argument("subCommRankId", what));
        }
        let color = u32::try_from(id).ok().filter(|id| *id <= i32::MAX.cast_unsigned());
        let color = color.ok_or_else(|| Failure::argument("subCommId", format!("{id}: the simulator takes ids below 2^31")))?;
        let name = if config.is_null() { None } else { configured(&config)? };
        match parent.part(place, Some((color, sub_rank, rank_num)), name)? {
            Some(part) => sub.set("subComm", place.0.handles.add(Arc::new(part))),
            None => Err(Failure::new(Code::HCCL_INTERNAL, "a rank lost its part")),
        }
    }

    fn HcclCommDestroy(handle: usize) {
        let runtime = runtime()?;
        let comm = comm(handle)?;
        if comm.healthy().is_ok() && comm.is_busy() {
            // A call whose stream was synchronised a moment ago may still be on its way out.
            thread::sleep(PAUSE);
            if comm.is_busy() {
                return Err(Failure::argument("comm", "calls on it have not run: synchronise their streams first"));
            }
        }
        runtime.handles.remove::<Comm>("comm", handle)?.leave(runtime)
    }

    fn HcclGetRankSize(handle: usize, size: Out<u32>) {
        size.set("rankSize", comm(handle)?.world)
    }

    fn HcclGetRankId(handle: usize, rank: Out<u32>) {
        rank.set("rank", comm(handle)?.rank)
    }

    fn HcclGetCommName(handle: usize, name: Out<c_char>) {
        let comm = comm(handle)?;
        let mut text: Vec<c_char> = comm.name.bytes().take(NAME_BYTES - 1).map(u8::cast_signed).collect();
        text.push(0);
        name.set_all("commName", 0, &text)
    }

    fn HcclGetCommAsyncError(handle: usize, error: Out<u32>) {
        let now = match comm(handle)?.healthy() {
            Ok(()) => 0,
            Err(failure) => {
                let number = crate::code::Family::Hccl.number(failure.code);
                crate::code::report("HcclGetCommAsyncError", number, &failure.text);
                number.cast_unsigned()
            }
        };
        error.set("asyncError", now)
    }

    fn HcclSetConfig(config: u32, value: i32) {
        match (config, value) {
            // HCCL_DETERMINISTIC: results are the same every time whatever is chosen.
            (0, 0 | 1) => Ok(()),
            _ => Err(Failure::argument("config", format!("{config} with value {value}"))),
        }
    }

    fn HcclBarrier(comm: usize, stream: usize) {
        let call = Call { name: "HcclBarrier", shape: Shape::Barrier, dtype: 0, send: 0, recv: 0 };
        issue(comm, stream, vec![call])
    }
}

fn no_rank_tables() -> Failure {
    let text = "the simulator has no communicators of rank tables; HcclCommInitRootInfo makes them";
    Failure::new(Code::HCCL_NOT_SUPPORT, text)
}

entries! { COLLECTIVES of Hccl:
    fn HcclAllReduce(send: u64, recv: u64, count: u64, dtype: u32, op: u32, comm: usize, stream: usize) {
        let shape = Shape::AllReduce { count, op: reduce_op(op)? };
        issue(comm, stream, vec![Call { name: "HcclAllReduce", shape, dtype, send, recv }])
    }

    fn HcclReduce(send: u64, recv: u64, count: u64, dtype: u32, op: u32, root: u32, comm: usize, stream: usize) {
        let shape = Shape::Reduce { count, op: reduce_op(op)?, root };
        issue(comm, stream, vec![Call { name: "HcclReduce", shape, dtype, send, recv }])
    }

    fn HcclBroadcast(buf: u64, count: u64, dtype: u32, root: u32, comm: usize, stream: usize) {
        let shape = Shape::Broadcast { count, root };
        issue(comm, stream, vec![Call { name: "HcclBroadcast", shape, dtype, send: buf, recv: buf }])
    }

    fn HcclScatter(send: u64, recv: u64, count: u64, dtype: u32, root: u32, comm: usize, stream: usize) {
        let shape = Shape::Scatter { count, root };
        issue(comm, stream, vec![Call { name: "HcclScatter", shape, dtype, send, recv }])
    }

    fn HcclAllGather(send: u64, recv: u64, count: u64, dtype: u32, handle: usize, stream: usize) {
        let [counts, offsets] = even(comm(handle)?.world, count);
        let shape = Shape::AllGather { count, counts, offsets };
        issue(handle, stream, vec![Call { name: "HcclAllGather", shape, dtype, send, recv }])
    }

    fn HcclAllGatherV(
        send: u64, count: u64, recv: u64, recv_counts: In<u64>, recv_displs: In<u64>, dtype: u32, comm: usize, stream: usize,
    ) {
        let (counts, offsets) = (counts("recvCounts", &recv_counts, comm)?, counts("recvDispls", &recv_displs, comm)?);
        own_count("sendCount", count, &counts, comm)?;
        let shape = Shape::AllGather { count, counts, offsets };
        issue(comm, stream, vec![Call { name: "HcclAllGatherV", shape, dtype, send, recv }])
    }

    fn HcclReduceScatter(send: u64, recv: u64, count: u64, dtype: u32, op: u32, handle: usize, stream: usize) {
        let [counts, offsets] = even(comm(handle)?.world, count);
        let shape = Shape::ReduceScatter { op: reduce_op(op)?, counts, offsets };
        issue(handle, stream, vec![Call { name: "HcclReduceScatter", shape, dtype, send, recv }])
    }

    fn HcclReduceScatterV(
        send: u64, send_counts: In<u64>, send_displs: In<u64>, recv: u64, count: u64, dtype: u32, op: u32, comm: usize, stream: usize,
    ) {
        let (counts, offsets) = (counts("sendCounts", &send_counts, comm)?, counts("sendDispls", &send_displs, comm)?);
        own_count("recvCount", count, &counts, comm)?;
        let shape = Shape::ReduceScatter { op: reduce_op(op)?, counts, offsets };
        issue(comm, stream, vec![Call { name: "HcclReduceScatterV", shape, dtype, send, recv }])
    }

    fn HcclAlltoAll(
        send: u64, send_count: u64, dtype: u32, recv: u64, recv_count: u64, from_dtype: u32, handle: usize, stream: usize,
    ) {
        let world = comm(handle)?.world;
        let shape = Shape::AllToAll { to: even(world, send_count), from: even(world, recv_count), from_dtype };
        issue(handle, stream, vec![Call { name: "HcclAlltoAll", shape, dtype, send, recv }])
    }

    fn HcclAlltoAllV(
        send: u64, send_counts: In<u64>, sdispls: In<u64>, dtype: u32,
        recv: u64, recv_counts: In<u64>, rdispls: In<u64>, from_dtype: u32, comm: usize, stream: usize,
    ) {
        let to = [counts("sendCounts", &send_counts, comm)?, counts("sdispls", &sdispls, comm)?];
        let from = [counts("recvCounts", &recv_counts, comm)?, counts("rdispls", &rdispls, comm)?];
        let shape = Shape::AllToAll { to, from, from_dtype };
        issue(comm, stream, vec![Call { name: "HcclAlltoAllV", shape, dtype, send, recv }])
    }

    fn HcclSend(send: u64, count: u64, dtype: u32, peer: u32, comm: usize, stream: usize) {
        let shape = Shape::Send { count, peer };
        issue(comm, stream, vec![Call { name: "HcclSend", shape, dtype, send, recv: 0 }])
    }

    fn HcclRecv(recv: u64, count: u64, dtype: u32, peer: u32, comm: usize, stream: usize) {
        let shape = Shape::Recv { count, peer };
        issue(comm, stream, vec![Call { name: "HcclRecv", shape, dtype, send: 0, recv }])
    }

    fn HcclBatchSendRecv(items: In<Item>, item_num: u32, comm: usize, stream: usize) {
        let items = items.all("sendRecvInfo", item_num as usize)?;
        let calls = items.into_iter().map(|Item { kind, buf, count, dtype, peer }| {
            let (shape, send, recv) = match kind {
                0 => (Shape::Send { count, peer }, buf, 0),
                1 => (Shape::Recv { count, peer }, 0, buf),
                _ => return Err(Failure::argument("sendRecvInfo", format!("type {kind} (0 send, 1 receive)"))),
            };
            Ok(Call { name: "HcclBatchSendRecv", shape, dtype, send, recv })
        });
        issue(comm, stream, calls.collect::<Outcome<Vec<_>>>()?)
    }
}

entries! { GROUPS of Hccl:
    fn HcclGroupStart() {
        runtime()?;
        GROUP.with_borrow_mut(|group| group.depth += 1);
        Ok(())
    }

    fn HcclGroupEnd() {
        end_group()
    }
}
