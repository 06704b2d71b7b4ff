//! Unmodified cudarc on the software NCCL and the software GPU: ranks are threads here, processes at the end.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "tests: sizes are small, results exact where compared"
)]

#[path = "../../cuda/driver/tests/loading/mod.rs"]
mod loading;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtrMut};
use cudarc::nccl::{
    result,
    safe::{Comm, Id, ReduceOp},
    sys::{self, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId},
};
use libloading::Library;
use std::ffi::{CStr, c_char};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{env, ptr, thread};

/// Both libraries, loaded once; the devices are eight of a kind.
fn load() -> &'static [Library] {
    static LIBRARIES: OnceLock<Vec<Library>> = OnceLock::new();
    let devices = ["h100"; 8].join(",");
    LIBRARIES.get_or_init(|| loading::libraries(&devices, &["libhalyard_sim_nccl.so"]))
}

fn stream(device: usize) -> Arc<CudaStream> {
    load();
    CudaContext::new(device).unwrap().new_stream().unwrap()
}

/// What each rank gets from `f`.
fn ranks<T: Send>(world: usize, f: impl Fn(usize, Comm) -> T + Sync) -> Vec<T> {
    load();
    let id = *Id::new().unwrap().internal();
    thread::scope(|scope| {
        let f = &f;
        let spawn = |rank| {
            let join = move || Comm::from_rank(stream(rank), rank, world, Id::uninit(id)).unwrap();
            scope.spawn(move || f(rank, join()))
        };
        let threads: Vec<_> = (0..world).map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn upload(stream: &Arc<CudaStream>, values: &[f32]) -> CudaSlice<f32> {
    stream.clone_htod(values).unwrap()
}

fn download(stream: &Arc<CudaStream>, values: &CudaSlice<f32>) -> Vec<f32> {
    let values = stream.clone_dtoh(values).unwrap();
    stream.synchronize().unwrap();
    values
}

fn numbers(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| (rank * 1000 + i) as f32).collect()
}

#[test]
fn sums_of_any_size_on_two_and_four_ranks() {
    for world in [2, 4] {
        let sums = ranks(world, |rank, comm| {
            [1, 5, 50_000].map(|count| {
                let stream = comm.stream();
                let src = upload(&stream, &numbers(rank, count));
                let mut dst = stream.alloc_zeros::<f32>(count).unwrap();
                comm.all_reduce(&src, &mut dst, &ReduceOp::Sum).unwrap();
                let apart = download(&stream, &dst);
                let mut both = src;
                comm.all_reduce_in_place(&mut both, &ReduceOp::Sum).unwrap();
                assert_eq!(apart, download(&stream, &both));
                apart
            })
        });
        for got in sums {
            for (got, count) in got.iter().zip([1, 5, 50_000]) {
                let sum = |i| (0..world).map(|r| numbers(r, count)[i]).sum::<f32>();
                assert_eq!(got.len(), count);
                assert!([0, count / 2, count - 1].iter().all(|&i| got[i] == sum(i)));
            }
        }
    }
}

#[test]
fn every_collective_moves_what_it_says() {
    ranks(4, |rank, comm| {
        let stream = comm.stream();
        let mine = upload(&stream, &numbers(rank, 3));
        let mut all = stream.alloc_zeros::<f32>(12).unwrap();
        comm.all_gather(&mine, &mut all).unwrap();
        let gathered: Vec<f32> = (0..4).flat_map(|r| numbers(r, 3)).collect();
        assert_eq!(download(&stream, &all), gathered);

        let mut part = stream.alloc_zeros::<f32>(3).unwrap();
        comm.reduce_scatter(&all, &mut part, &ReduceOp::Max).unwrap();
        assert_eq!(download(&stream, &part), numbers(rank, 3));

        let mut shared = stream.alloc_zeros::<f32>(3).unwrap();
        comm.broadcast(Some(&mine), &mut shared, 2).unwrap();
        assert_eq!(download(&stream, &shared), numbers(2, 3));

        let mut product = upload(&stream, &[7.0; 3]);
        let to = (rank == 1).then_some(&mut product);
        comm.reduce(&shared, to, &ReduceOp::Sum, 1).unwrap();
        let want =
            if rank == 1 { numbers(2, 3).iter().map(|x| 4.0 * x).collect() } else { vec![7.0; 3] };
        assert_eq!(download(&stream, &product), want);
    });
}

#[test]
fn messages_of_a_group_do_not_wait_for_each_other() {
    ranks(2, |rank, comm| {
        let stream = comm.stream();
        let sent = upload(&stream, &numbers(rank, 40_000));
        let mut got = [stream.alloc_zeros::<f32>(40_000).unwrap(), upload(&stream, &[0.0; 40_000])];
        result::group_start().unwrap();
        for peer in [1, 0] {
            comm.send(&sent, peer).unwrap();
        }
        for (peer, got) in (0..).zip(&mut got) {
            comm.recv(got, peer).unwrap();
        }
        result::group_end().unwrap();
        assert!(got.iter().enumerate().all(|(p, g)| download(&stream, g) == numbers(p, 40_000)));
    });
}

#[test]
fn one_thread_may_have_all_ranks() {
    let streams: Vec<_> = (4..8).map(stream).collect();
    let comms = Comm::from_devices(streams.clone()).unwrap();
    let mut data: Vec<_> = streams.iter().map(|s| upload(s, &[1.0; 5])).collect();
    result::group_start().unwrap();
    for (comm, data) in comms.iter().zip(&mut data) {
        comm.all_reduce_in_place(data, &ReduceOp::Sum).unwrap();
    }
    result::group_end().unwrap();
    assert!(data.iter().zip(&streams).all(|(d, s)| download(s, d) == [4.0; 5]));
}

/// A communicator by NCCL's own functions, which end it with what a test wants to see.
struct Raw(ncclComm_t);

// SAFETY: a communicator is a name that the library takes from any thread.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    /// What the communicator ended with, once it has, and the text of that.
    fn end(&self) -> (ncclResult_t, String) {
        let mut code = ncclResult_t::ncclSuccess;
        while matches!(code, ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress) {
            thread::yield_now();
            // SAFETY: the code goes to a variable of ours.
            assert_eq!(unsafe { sys::ncclCommGetAsyncError(self.0, &raw mut code) } as u32, 0);
        }
        (code, last_error())
    }

    /// Joins; blocking as the configuration says.
    fn join(rank: usize, world: usize, id: ncclUniqueId, blocking: bool) -> (ncclResult_t, Self) {
        let undefined = i32::MIN;
        let mut config = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: 0xcafe_beef,
            version: 21_801,
            blocking: i32::from(blocking),
            cgaClusterSize: undefined,
            minCTAs: undefined,
            maxCTAs: undefined,
            netName: ptr::null(),
            splitShare: undefined,
        };
        let mut comm = ptr::null_mut();
        let (world, rank) = (world as i32, rank as i32);
        // SAFETY: both pointers are to variables of ours.
        let joined =
            unsafe { sys::ncclCommInitRankConfig(&raw mut comm, world, id, rank, &raw mut config) };
        (joined, Self(comm))
    }

    fn all_reduce(
        &self,
        stream: &Arc<CudaStream>,
        data: &mut CudaSlice<f32>,
        count: usize,
    ) -> ncclResult_t {
        let (data, _on) = data.device_ptr_mut(stream);
        let data = data as *mut std::ffi::c_void;
        let (dtype, op) = (ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
        // SAFETY: the memory has at least `count` elements, and lives until the stream was waited for.
        unsafe {
            sys::ncclAllReduce(data, data, count, dtype, op, self.0, stream.cu_stream().cast())
        }
    }
}

fn last_error() -> String {
    // SAFETY: the communicator may be left out.
    let text = unsafe { sys::ncclGetLastError(ptr::null_mut()) };
    // SAFETY: the text ends with a zero and lives until this thread's next failure.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

fn unique_id() -> ncclUniqueId {
    load();
    result::get_uniqueid().unwrap()
}

/// What each rank gets from `f` with a communicator that does not wait.
fn raw_ranks<T: Send>(world: usize, f: impl Fn(usize, Raw, Arc<CudaStream>) -> T + Sync) -> Vec<T> {
    let id = unique_id();
    thread::scope(|scope| {
        let f = &f;
        let play = move |rank| {
            let stream = stream(rank);
            let (joined, comm) = Raw::join(rank, world, id, false);
            assert_eq!(joined, ncclResult_t::ncclInProgress);
            let mut now = ncclResult_t::ncclInProgress;
            while now == ncclResult_t::ncclInProgress {
                thread::yield_now();
                // SAFETY: the code goes to a variable of ours.
                unsafe { sys::ncclCommGetAsyncError(comm.0, &raw mut now) };
            }
            assert_eq!(now, ncclResult_t::ncclSuccess, "{}", last_error());
            f(rank, comm, stream)
        };
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || play(rank))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn sizes_that_differ_end_the_communicator_for_all() {
    let ends = raw_ranks(2, |rank, comm, stream| {
        let mut data = upload(&stream, &[1.0; 8]);
        let issued = comm.all_reduce(&stream, &mut data, 4 + rank);
        assert_eq!(issued, ncclResult_t::ncclInProgress);
        let end = comm.end();
        stream.synchronize().unwrap();
        (end, comm.all_reduce(&stream, &mut data, 4))
    });
    for ((code, text), later) in ends {
        assert_eq!((code, later), (ncclResult_t::ncclRemoteError, ncclResult_t::ncclRemoteError));
        assert!(text.contains("of 4 f32") && text.contains("of 5 f32"), "{text}");
    }
}

#[test]
fn an_abort_frees_whoever_waits() {
    let ends = raw_ranks(2, |rank, comm, stream| {
        let mut data = upload(&stream, &[1.0; 8]);
        if rank == 0 {
            thread::sleep(Duration::from_millis(50));
            // SAFETY: the communicator is used no more.
            return unsafe { sys::ncclCommAbort(comm.0) };
        }
        comm.all_reduce(&stream, &mut data, 8);
        let (code, _) = comm.end();
        stream.synchronize().unwrap();
        code
    });
    assert_eq!(ends, [ncclResult_t::ncclSuccess, ncclResult_t::ncclRemoteError]);
}

#[test]
fn a_rank_that_leaves_is_noticed() {
    let ends = raw_ranks(2, |rank, comm, stream| {
        let mut data = upload(&stream, &[1.0; 8]);
        if rank == 0 {
            // SAFETY: the communicator is used no more.
            assert_eq!(unsafe { sys::ncclCommDestroy(comm.0) }, ncclResult_t::ncclSuccess);
            return String::new();
        }
        comm.all_reduce(&stream, &mut data, 8);
        let (_, text) = comm.end();
        stream.synchronize().unwrap();
        text
    });
    assert!(ends[1].contains("rank 0 left"), "{ends:?}");
}

#[test]
fn two_ranks_on_one_device_are_refused() {
    let id = unique_id();
    let join = move |rank| {
        let _stream = stream(0);
        (Raw::join(rank, 2, id, true).0, last_error())
    };
    thread::scope(|scope| {
        let threads = [0, 1].map(|rank| scope.spawn(move || join(rank)));
        for (code, text) in threads.map(|t| t.join().unwrap()) {
            assert_eq!(code, ncclResult_t::ncclInvalidUsage);
            assert!(text.contains("Duplicate GPU detected"), "{text}");
        }
    });
}

#[test]
fn joins_of_a_group_do_not_wait_for_each_other() {
    let (streams, id) = ([stream(2), stream(3)], unique_id());
    result::group_start().unwrap();
    let comms = [0, 1].map(|rank| {
        streams[rank].context().bind_to_thread().unwrap();
        Raw::join(rank, 2, id, true).1
    });
    result::group_end().unwrap();
    for (rank, comm) in comms.iter().enumerate() {
        let (mut place, mut device) = (-1, -1);
        // SAFETY: the number goes to a variable of ours.
        unsafe { sys::ncclCommUserRank(comm.0, &raw mut place) };
        // SAFETY: as above.
        unsafe { sys::ncclCommCuDevice(comm.0, &raw mut device) };
        assert_eq!((place, device), (rank as i32, 2 + rank as i32));
    }
}

#[test]
fn parts_are_in_the_order_of_keys() {
    let places = raw_ranks(4, |rank, comm, stream| {
        let color = if rank == 3 { -1 } else { (rank % 2) as i32 };
        let mut part = ptr::null_mut();
        // SAFETY: the handle goes to a variable of ours; no configuration is the parent's.
        let began = unsafe {
            sys::ncclCommSplit(comm.0, color, -(rank as i32), &raw mut part, ptr::null_mut())
        };
        assert_eq!(began, ncclResult_t::ncclInProgress);
        for waited in [comm.0, part].into_iter().filter(|c| !c.is_null()) {
            let mut now = ncclResult_t::ncclInProgress;
            while now == ncclResult_t::ncclInProgress {
                thread::yield_now();
                // SAFETY: the code goes to a variable of ours.
                unsafe { sys::ncclCommGetAsyncError(waited, &raw mut now) };
            }
            assert_eq!(now, ncclResult_t::ncclSuccess, "{}", last_error());
        }
        let mut data = upload(&stream, &[rank as f32]);
        if part.is_null() {
            return f32::NAN;
        }
        assert_eq!(Raw(part).all_reduce(&stream, &mut data, 1), ncclResult_t::ncclInProgress);
        download(&stream, &data)[0]
    });
    assert_eq!(places[..3], [2.0, 1.0, 2.0]);
    assert!(places[3].is_nan());
}

const ROLE: &str = "HALYARD_TEST_NCCL_RANK";

#[test]
fn ranks_may_be_processes() {
    if let Ok(role) = env::var(ROLE) {
        return play(&role);
    }
    let id: String = unique_id().internal.iter().map(|b| format!("{:02x}", *b as u8)).collect();
    let start = |rank| {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "ranks_may_be_processes", "--nocapture"])
            .env(ROLE, format!("{rank} {id}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for process in [0, 1].map(start) {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// A graph exchanges what its memory holds at each launch, behind calls that came before it and before those that come after.
#[test]
fn captured_calls_exchange_anew_each_time() {
    use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    let sums = ranks(2, |rank, comm| {
        let stream = comm.stream();
        // SAFETY: there is one stream a device here.
        unsafe { stream.context().disable_event_tracking() };
        let mut data = upload(&stream, &[1.0 + rank as f32]);
        stream.synchronize().unwrap();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
        comm.all_reduce_in_place(&mut data, &ReduceOp::Sum).unwrap();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        let before = download(&stream, &data);
        graph.launch().unwrap();
        graph.launch().unwrap();
        comm.all_reduce_in_place(&mut data, &ReduceOp::Sum).unwrap();
        graph.launch().unwrap();
        (before, download(&stream, &data))
    });
    // Three, doubled by the second launch, the call and the third launch.
    assert_eq!(sums, [(vec![1.0], vec![24.0]), (vec![2.0], vec![24.0])]);
}

fn play(role: &str) {
    let (rank, id) = role.split_once(' ').unwrap();
    let byte = |at: usize| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap() as c_char;
    let (rank, id) = (rank.parse().unwrap(), Id::uninit(std::array::from_fn(byte)));
    let comm = Comm::from_rank(stream(rank), rank, 2, id).unwrap();
    let stream = comm.stream();
    let mut data = upload(&stream, &numbers(rank, 20_000));
    comm.all_reduce_in_place(&mut data, &ReduceOp::Avg).unwrap();
    let got = download(&stream, &data);
    assert!(got.iter().enumerate().all(|(i, &x)| x == 500.0 + i as f32));
    // Nobody leaves before the other has its result.
    let mut done = upload(&stream, &[0.0]);
    comm.all_reduce_in_place(&mut done, &ReduceOp::Sum).unwrap();
    stream.synchronize().unwrap();
}
