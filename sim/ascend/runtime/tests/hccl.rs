//! Collectives: ranks are threads here, processes at the end.
#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    reason = "tests: sizes are small, results exact"
)]

mod common;

use common::*;
use std::ffi::{CStr, c_char};
use std::process::{Command, Stdio};
use std::{env, thread};

const FP32: u32 = 4;
const INT64: u32 = 5;
const SUM: u32 = 0;

type RootInfo = Vec<u8>;

fn root_info() -> RootInfo {
    use_device(0);
    let mut info = vec![0u8; 4108];
    ok("HcclGetRootInfo", (info.as_mut_ptr(),));
    info
}

fn join(info: &[u8], rank: u32, world: u32) -> usize {
    let mut comm = 0usize;
    ok("HcclCommInitRootInfo", (world, info.as_ptr(), rank, &raw mut comm));
    comm
}

/// What each rank gets from `f`, which has its communicator and a stream.
fn ranks<T: Send>(world: u32, f: impl Fn(u32, usize, usize) -> T + Sync) -> Vec<T> {
    libraries();
    let info = root_info();
    thread::scope(|scope| {
        let (f, info) = (&f, &info);
        let threads = (0..world).map(|rank| {
            scope.spawn(move || {
                use_device(rank as i32);
                let comm = join(info, rank, world);
                f(rank, comm, stream())
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn numbers(rank: u32, count: usize) -> Vec<f32> {
    (0..count).map(|i| (rank as usize * 100 + i) as f32).collect()
}

fn async_error(comm: usize) -> u32 {
    let mut error = 0u32;
    ok("HcclGetCommAsyncError", (comm, &raw mut error));
    error
}

#[test]
fn reductions_and_gathers() {
    let all = ranks(3, |rank, comm, s| {
        let buf = upload(&numbers(rank, 6));
        ok("HcclAllReduce", (buf, buf, 6u64, FP32, SUM, comm, s));
        let whole = malloc(4 * 18);
        ok("HcclAllGather", (buf, whole, 6u64, FP32, comm, s));
        let part = malloc(4 * 2);
        ok("HcclReduceScatter", (buf, part, 2u64, FP32, SUM, comm, s));
        ok("HcclBarrier", (comm, s));
        sync(s);
        let out = (download::<f32>(buf, 6), download::<f32>(whole, 18), download::<f32>(part, 2));
        ok("HcclCommDestroy", (comm,));
        out
    });
    let sum: Vec<f32> = (0..6u8).map(|i| 300.0 + 3.0 * f32::from(i)).collect();
    for (rank, (reduced, gathered, part)) in all.into_iter().enumerate() {
        assert_eq!(reduced, sum);
        assert_eq!(gathered, sum.repeat(3));
        let own: Vec<f32> = sum[2 * rank..2 * rank + 2].iter().map(|v| 3.0 * v).collect();
        assert_eq!(part, own);
    }
}

#[test]
fn roots_and_messages() {
    let all = ranks(2, |rank, comm, s| {
        let buf = upload(&numbers(rank, 4));
        ok("HcclBroadcast", (buf, 4u64, FP32, 1u32, comm, s));
        let reduced = upload(&[0.0f32; 4]);
        ok("HcclReduce", (buf, reduced, 4u64, FP32, SUM, 0u32, comm, s));
        let message = upload(&[0.0f32; 4]);
        if rank == 0 {
            ok("HcclSend", (buf, 4u64, FP32, 1u32, comm, s));
        } else {
            ok("HcclRecv", (message, 4u64, FP32, 0u32, comm, s));
        }
        sync(s);
        [download::<f32>(reduced, 4), download::<f32>(message, 4)]
    });
    let of_one = numbers(1, 4);
    assert_eq!(all[0][0], of_one.iter().map(|v| 2.0 * v).collect::<Vec<_>>());
    assert_eq!(all[1][1], of_one);
}

#[test]
fn rows_go_to_each_rank() {
    let all = ranks(2, |rank, comm, s| {
        // Rank 0 keeps one and sends two; rank 1 sends three and keeps none.
        let (to, from) = [([1u64, 2], [1u64, 3]), ([3, 0], [2, 0])][rank as usize];
        let (to_at, from_at) = ([0, to[0]], [0, from[0]]);
        let send = upload(&(0..3).map(|i| i64::from(rank) * 10 + i).collect::<Vec<_>>());
        let recv = upload(&[-1i64; 4]);
        ok(
            "HcclAlltoAllV",
            (
                send,
                to.as_ptr(),
                to_at.as_ptr(),
                INT64,
                recv,
                from.as_ptr(),
                from_at.as_ptr(),
                INT64,
                comm,
                s,
            ),
        );
        sync(s);
        download::<i64>(recv, 4)
    });
    assert_eq!(all, [[0, 10, 11, 12], [1, 2, -1, -1]]);
}

#[test]
fn messages_of_a_batch_do_not_wait_for_each_other() {
    #[repr(C)]
    struct Item(u32, u64, u64, u32, u32);
    let all = ranks(2, |rank, comm, s| {
        let (own, other) = (upload(&numbers(rank, 100_000)), malloc(400_000));
        let items =
            [Item(0, own, 100_000, FP32, 1 - rank), Item(1, other, 100_000, FP32, 1 - rank)];
        ok("HcclBatchSendRecv", (items.as_ptr(), 2u32, comm, s));
        sync(s);
        ok("HcclGroupStart", ());
        ok("HcclSend", (own, 2u64, FP32, 1 - rank, comm, s));
        ok("HcclRecv", (own + 4096, 2u64, FP32, 1 - rank, comm, s));
        ok("HcclGroupEnd", ());
        sync(s);
        (download::<f32>(other, 100_000), download::<f32>(own + 4096, 2))
    });
    for (rank, (batch, group)) in all.into_iter().enumerate() {
        let other = numbers(1 - u32::try_from(rank).unwrap(), 100_000);
        assert!(batch == other);
        assert_eq!(group, other[..2]);
    }
}

#[test]
fn parts_and_names() {
    let all = ranks(3, |rank, comm, s| {
        let (mut size, mut id) = (0u32, 0u32);
        ok("HcclGetRankSize", (comm, &raw mut size));
        ok("HcclGetRankId", (comm, &raw mut id));
        assert_eq!((size, id), (3, rank));
        let members = [2u32, 0];
        let (count, sub_rank) = match rank {
            1 => (0u32, 0u32),
            2 => (2, 0),
            _ => (2, 1),
        };
        let mut sub = 0usize;
        let none = std::ptr::null::<u8>();
        ok(
            "HcclCreateSubCommConfig",
            (&raw const comm, count, members.as_ptr(), 7u64, sub_rank, none, &raw mut sub),
        );
        if rank == 1 {
            return Vec::new();
        }
        let mut name = [0 as c_char; 128];
        ok("HcclGetCommName", (sub, name.as_mut_ptr()));
        // SAFETY: the function ended the name with a zero.
        assert!(unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap().ends_with("-7"));
        let (own, both) = (upload(&[rank as f32]), malloc(8));
        ok("HcclAllGather", (own, both, 1u64, FP32, sub, s));
        sync(s);
        download::<f32>(both, 2)
    });
    assert_eq!(all, [vec![2.0, 0.0], vec![], vec![2.0, 0.0]]);
}

#[test]
fn calls_that_do_not_belong_together_end_the_communicator() {
    let all = ranks(2, |rank, comm, s| {
        let buf = upload(&numbers(rank, 8));
        if rank == 0 {
            ok("HcclAllReduce", (buf, buf, 8u64, FP32, SUM, comm, s));
        } else {
            ok("HcclAllReduce", (buf, buf, 4u64, FP32, SUM, comm, s));
        }
        let status = call("aclrtSynchronizeStream", (s,));
        (status, message(), async_error(comm), call("HcclBarrier", (comm, s)))
    });
    for (rank, (status, message, error, later)) in all.into_iter().enumerate() {
        assert_eq!(status, 107_020);
        assert!(message.contains("HcclAllReduce of 8 elements of FP32 with Sum"), "{message}");
        assert!(message.contains("HcclAllReduce of 4 elements"), "{message}");
        assert!(message.contains(&format!("rank {rank} calls")), "{message}");
        assert_ne!((error, later), (0, 0));
    }
}

#[test]
fn the_order_of_calls_is_the_ranks_own() {
    let all = ranks(2, |rank, comm, s| {
        let (a, b) = (upload(&numbers(rank, 4)), malloc(32));
        if rank == 0 {
            ok("HcclAllReduce", (a, a, 4u64, FP32, SUM, comm, s));
            ok("HcclAllGather", (a, b, 4u64, FP32, comm, s));
        } else {
            ok("HcclAllGather", (a, b, 4u64, FP32, comm, s));
            ok("HcclAllReduce", (a, a, 4u64, FP32, SUM, comm, s));
        }
        assert_eq!(call("aclrtSynchronizeStream", (s,)), 107_020);
        message()
    });
    assert!(
        all[0].contains("rank 0 calls HcclAllReduce")
            && all[0].contains("rank 1 calls HcclAllGather"),
        "{}",
        all[0]
    );
}

#[test]
fn parts_of_different_sizes_may_be_said() {
    let all = ranks(2, |rank, comm, s| {
        let (buf, part) = (upload(&numbers(rank, 4)), malloc(8));
        let (counts, at) = ([2u64, 2], [0u64, 2]);
        ok(
            "HcclReduceScatterV",
            (buf, counts.as_ptr(), at.as_ptr(), part, 2u64, FP32, SUM, comm, s),
        );
        sync(s);
        download::<f32>(part, 2)
    });
    assert_eq!(all, [[100.0, 102.0], [104.0, 106.0]]);
}

#[test]
fn a_link_that_is_down() {
    use_device(0);
    // Of a call that no other test of this process makes.
    ok("halyard_sim_ascend_fault", (c"hccl:HcclScatter:19@2".as_ptr(),));
    let all = ranks(2, |_, comm, s| {
        let buf = upload(&[1.0f32, 2.0]);
        ok("HcclBarrier", (comm, s));
        sync(s);
        // One of the ranks has the fault; the other may hear of it when it calls.
        let called = call("HcclScatter", (buf, buf, 1u64, FP32, 0u32, comm, s));
        (called != 0 || call("aclrtSynchronizeStream", (s,)) == 107_020, async_error(comm))
    });
    assert!(all.iter().all(|(failed, error)| *failed && *error != 0), "{all:?}");
    assert!(all.iter().any(|(_, error)| *error == 19), "{all:?}");
    ok("halyard_sim_ascend_fault", (c"".as_ptr(),));
}

/// In a process of its own, where collectives may be captured.
#[test]
#[ignore = "run by `collectives_in_graphs`"]
fn captured_collectives() {
    const THREAD_LOCAL: u32 = 1;
    let all = ranks(2, |rank, comm, s| {
        let buf = upload(&numbers(rank, 4));
        ok("aclmdlRICaptureBegin", (s, THREAD_LOCAL));
        ok("HcclAllReduce", (buf, buf, 4u64, FP32, SUM, comm, s));
        ok("HcclAllReduce", (buf, buf, 4u64, FP32, SUM, comm, s));
        let mut model = 0usize;
        ok("aclmdlRICaptureEnd", (s, &raw mut model));
        for _ in 0..3 {
            ok("aclmdlRIExecuteAsync", (model, s));
        }
        sync(s);
        download::<f32>(buf, 4)
    });
    // The sum of both, doubled five times.
    let wanted: Vec<f32> = [100.0, 102.0, 104.0, 106.0].iter().map(|v| 32.0 * v).collect();
    assert_eq!(all, [wanted.clone(), wanted]);
}

#[test]
fn collectives_in_graphs() {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["captured_collectives", "--exact", "--ignored", "--nocapture"]);
    let done = command.env("HCCL_OP_EXPANSION_MODE", "AIV").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// What a rank that is a process does: the root's info comes on its command line.
#[test]
fn rank_of_another_process() {
    let Ok(job) = env::var("HALYARD_TEST_RANK") else { return };
    let (rank, info) = job.split_once(':').unwrap();
    let rank: u32 = rank.parse().unwrap();
    let bytes =
        (0..info.len()).step_by(2).map(|i| u8::from_str_radix(&info[i..i + 2], 16).unwrap());
    let mut bytes: Vec<u8> = bytes.collect();
    bytes.resize(4108, 0);
    use_device(rank as i32);
    let comm = join(&bytes, rank, 2);
    let s = stream();
    let buf = upload(&numbers(rank, 4));
    ok("HcclAllReduce", (buf, buf, 4u64, FP32, SUM, comm, s));
    sync(s);
    assert_eq!(download::<f32>(buf, 4), [100.0, 102.0, 104.0, 106.0]);
    if rank == 1 {
        // It is gone before the next call of the other one.
        std::process::exit(0);
    }
    ok("HcclAllReduce", (buf, buf, 4u64, FP32, SUM, comm, s));
    assert_eq!(call("aclrtSynchronizeStream", (s,)), 107_020);
    let said = message();
    assert!(said.contains("rank 1 left") || said.contains("waited"), "{said}");
    assert!([9, 21].contains(&async_error(comm)));
}

#[test]
fn ranks_are_processes() {
    let info = root_info();
    let hex: String = info[..32].iter().map(|byte| format!("{byte:02x}")).collect();
    let start = |rank: u32| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["rank_of_another_process", "--exact", "--nocapture"]);
        command.env("HALYARD_TEST_RANK", format!("{rank}:{hex}"));
        command.env("HALYARD_SIM_ASCEND_HCCL_TIMEOUT_MS", "20000");
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let children = [0, 1].map(start);
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}
