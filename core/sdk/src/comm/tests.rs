//! Ranks as threads. What every method gives is proved by the conformance profile `comm`; here is how it ends badly.

use std::{thread, time::Duration};

use halyard_abi::{Code, CommDesc, DType, RSlice, ReduceOp, Stream, TensorSpec, TensorView};

use super::{Control, Id, join, unique_id};
use crate::{Collective, Result};

const LONG: u64 = 20_000;

fn id() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let count = unique_id(&mut bytes).unwrap();
    bytes.truncate(count as usize);
    bytes
}

fn member(id: &[u8], rank: u32, world: u32, timeout_ms: u64) -> Result<Box<dyn Collective>> {
    let (id, attrs) = (RSlice::from_slice(id), RSlice::EMPTY);
    join(&CommDesc { id, rank, world, timeout_ms, name: "test".into(), attrs })
}

fn view<T>(data: &mut [T], dtype: DType) -> TensorView {
    let spec = TensorSpec::new(dtype, &[data.len() as i64]);
    TensorView::contiguous(data.as_mut_ptr() as u64, 0, &spec)
}

/// What each rank of a world gets from `f`.
fn ranks<T: Send>(
    world: u32,
    timeout_ms: u64,
    f: impl Fn(u32, Box<dyn Collective>) -> T + Sync,
) -> Vec<T> {
    let id = id();
    thread::scope(|scope| {
        let spawn = |rank| {
            let (id, f) = (&id, &f);
            scope.spawn(move || f(rank, member(id, rank, world, timeout_ms).unwrap()))
        };
        let threads: Vec<_> = (0..world).map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn sum(comm: &dyn Collective, data: &mut [f32]) -> Result<()> {
    let view = view(data, DType::F32);
    comm.all_reduce(Stream::NONE, &view, &view, ReduceOp::SUM)
}

fn file_exists(id: &[u8]) -> bool {
    std::path::Path::new("/dev/shm").join(Id::from_bytes(id).unwrap().file_name()).exists()
}

#[test]
fn sums_of_any_size_are_the_same_everywhere() {
    for world in [1, 2, 3, 8] {
        let sizes = [0, 1, 3, 1000, 50_000];
        let all = ranks(world, LONG, |rank, comm| {
            sizes.map(|n| {
                let mut data: Vec<f32> = (0..n).map(|i| (rank as usize * n + i) as f32).collect();
                sum(&*comm, &mut data).unwrap();
                data
            })
        });
        for got in all {
            for (n, got) in sizes.into_iter().zip(got) {
                let of = |i: usize| (0..world as usize).map(|r| (r * n + i) as f32).sum();
                let want: Vec<f32> = (0..n).map(of).collect();
                assert!(got == want, "world {world}, {n} elements");
            }
        }
    }
}

#[test]
fn the_name_goes_once_all_have_joined_or_one_has_given_up() {
    let one = id();
    let alone = member(&one, 0, 1, LONG).unwrap();
    assert!(!file_exists(&one));
    drop(alone);

    let two = id();
    let error = member(&two, 1, 2, 50).err().unwrap();
    assert_eq!(error.code, Code::COMM_ERROR);
    assert!(error.message.contains("rank 1 waited") && error.message.contains("for rank 0 in"));
    assert!(!file_exists(&two));
}

#[test]
fn seats_are_checked() {
    let refused = |result: Result<Box<dyn Collective>>, word: &str| {
        let error = result.err().unwrap();
        assert_eq!(error.code, Code::INVALID_ARGUMENT);
        assert!(error.message.contains(word), "{error}");
    };
    refused(member(&id(), 2, 2, LONG), "rank 2 of 2");
    refused(member(&id(), 0, 0, LONG), "0 ranks");
    refused(member(&id(), 0, 65, LONG), "65 ranks");
    refused(member(&id(), 0, 2, 0), "0 ms");
    refused(member(b"../../etc/passwd", 0, 2, LONG), "no id");
    let shared = id();
    thread::scope(|scope| {
        let first = scope.spawn(|| member(&shared, 0, 2, LONG));
        while !file_exists(&shared) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(50));
        refused(member(&shared, 0, 2, LONG), "joined already");
        refused(member(&shared, 1, 3, LONG), "joined one of 2");
        let second = member(&shared, 1, 2, LONG).unwrap();
        first.join().unwrap().unwrap();
        drop(second);
    });
}

#[test]
fn an_abort_from_another_thread_unblocks_everybody() {
    let errors = ranks(4, LONG, |rank, comm| {
        let mut data = [1f32; 8];
        if rank == 2 {
            // While the others wait for this rank, in different ways.
            thread::sleep(Duration::from_millis(30));
            comm.abort().unwrap();
            return comm.barrier(Stream::NONE).unwrap_err();
        }
        match rank {
            0 => comm.recv(Stream::NONE, &view(&mut data, DType::F32), 2),
            _ => sum(&*comm, &mut data),
        }
        .unwrap_err()
    });
    for error in errors {
        assert_eq!(error.code, Code::COMM_ABORTED);
        assert!(error.message.contains("aborted by rank 2"), "{error}");
    }
}

#[test]
fn a_rank_that_leaves_is_noticed_before_the_time_is_over() {
    let results = ranks(3, LONG, |rank, comm| {
        if rank == 1 {
            return Ok(());
        }
        comm.barrier(Stream::NONE)
    });
    for (rank, result) in results.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let error = result.unwrap_err();
        assert_eq!(error.code, Code::COMM_ERROR);
        assert!(error.message.contains("rank 1 left"), "rank {rank}: {error}");
    }
}

#[test]
fn what_was_sent_before_leaving_arrives() {
    ranks(2, LONG, |rank, comm| {
        let mut data = [f32::from(u8::from(rank == 0)); 3];
        let view = view(&mut data, DType::F32);
        if rank == 0 {
            return comm.send(Stream::NONE, &view, 1).unwrap();
        }
        thread::sleep(Duration::from_millis(60));
        comm.recv(Stream::NONE, &view, 0).unwrap();
        assert_eq!(std::hint::black_box(data).map(f32::to_bits), [1f32.to_bits(); 3]);
    });
}

#[test]
fn a_late_rank_times_everybody_out() {
    let errors = ranks(2, 100, |rank, comm| {
        if rank == 1 {
            while comm.status().is_ok() {
                thread::yield_now();
            }
            return comm.status().unwrap_err();
        }
        comm.barrier(Stream::NONE).unwrap_err()
    });
    for error in errors {
        assert_eq!(error.code, Code::COMM_ERROR);
        assert!(error.message.contains("for rank 1 in barrier"), "{error}");
    }
}

#[test]
fn different_calls_fail_everywhere_and_name_both() {
    let errors = ranks(3, LONG, |rank, comm| {
        let mut data = [1f32; 4];
        let whole = view(&mut data, DType::F32);
        match rank {
            2 => comm.broadcast(Stream::NONE, &whole, 1),
            _ => comm.all_reduce(Stream::NONE, &whole, &whole, ReduceOp::SUM),
        }
        .unwrap_err()
    });
    for error in errors {
        assert_eq!(error.code, Code::COMM_ERROR);
        assert!(error.message.contains("all_reduce(sum) of 4 f32"), "{error}");
        assert!(error.message.contains("rank 2 in broadcast of 4 f32 from rank 1"), "{error}");
    }
}

#[test]
fn messages_in_a_group_go_in_any_order() {
    const COUNT: usize = 40_000;
    ranks(3, LONG, |rank, comm| {
        let mut sent = vec![rank as i32; COUNT];
        let mut got = vec![vec![-1i32; COUNT]; 3];
        comm.group_begin().unwrap();
        for peer in 0..3 {
            comm.send(Stream::NONE, &view(&mut sent, DType::I32), peer).unwrap();
        }
        for peer in (0..3).rev() {
            comm.recv(Stream::NONE, &view(&mut got[peer as usize], DType::I32), peer).unwrap();
        }
        comm.group_end().unwrap();
        for (peer, got) in got.iter().enumerate() {
            assert!(got.iter().all(|&v| v == peer as i32), "rank {rank} from {peer}");
        }
        assert_eq!(comm.group_end().unwrap_err().code, Code::INVALID_ARGUMENT);
        let to_itself = comm.send(Stream::NONE, &view(&mut sent, DType::I32), rank);
        assert_eq!(to_itself.unwrap_err().code, Code::INVALID_ARGUMENT);
    });
}

#[test]
fn a_split_orders_by_key_and_leaves_some_out() {
    let worlds = ranks(4, LONG, |rank, comm| {
        let color = if rank == 3 { -1 } else { (rank % 2) as i32 };
        let part = comm.split(color, -(rank as i32)).unwrap();
        let mut mine = [rank as i32];
        let mut all = vec![-1i32; if color == 0 { 2 } else { 1 }];
        let (src, dst) = (view(&mut mine, DType::I32), view(&mut all, DType::I32));
        let gathered = part.all_gather(Stream::NONE, &src, &dst);
        comm.barrier(Stream::NONE).unwrap();
        gathered.map(|()| std::hint::black_box(all))
    });
    assert_eq!(worlds[0].as_deref(), Ok([2, 0].as_slice()));
    assert_eq!(worlds[2].as_deref(), Ok([2, 0].as_slice()));
    assert_eq!(worlds[1].as_deref(), Ok([1].as_slice()));
    assert_eq!(worlds[3].as_ref().unwrap_err().code, Code::INVALID_ARGUMENT);
}

/// What each rank gets from `f` with membership alone.
fn controls<T: Send>(world: u32, f: impl Fn(Control) -> T + Sync) -> Vec<T> {
    let id = id();
    thread::scope(|scope| {
        let spawn = |rank| {
            let (id, f) = (RSlice::from_slice(&id), &f);
            let (name, attrs) = ("test".into(), RSlice::EMPTY);
            let desc = CommDesc { id, rank, world, timeout_ms: LONG, name, attrs };
            scope.spawn(move || f(Control::join(&desc).unwrap()))
        };
        let threads: Vec<_> = (0..world).map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Waits until `ask` gives an error.
fn end_of(ask: impl Fn() -> Result<()>) -> crate::Error {
    loop {
        match ask() {
            Ok(()) => thread::yield_now(),
            Err(error) => return error,
        }
    }
}

#[test]
fn whoever_fails_or_aborts_ends_a_control_for_all() {
    let failed = controls(3, |control| {
        if control.rank() == 1 {
            return control.fail("the cable is out");
        }
        end_of(|| control.status())
    });
    for error in failed {
        assert_eq!(error.code, Code::COMM_ERROR);
        assert!(error.message.contains("the cable is out"), "{error}");
    }
    let aborted = controls(2, |control| {
        if control.rank() == 0 {
            control.abort();
        }
        let first = end_of(|| control.status());
        assert_eq!(control.fail("too late").code, first.code);
        first
    });
    assert!(aborted.iter().all(|e| e.code == Code::COMM_ABORTED));
}

#[test]
fn leavers_of_a_control_are_named_and_parts_have_own_ranks() {
    let seen = controls(3, |control| {
        let color = if control.rank() == 1 { -1 } else { 0 };
        let part = control.split(color, -(control.rank() as i32)).unwrap();
        let place = part.map(|p| (p.rank(), p.world()));
        if control.rank() == 1 {
            return (place, None);
        }
        (place, Some(end_of(|| control.look_for_leavers())))
    });
    assert_eq!([&seen[0].0, &seen[1].0, &seen[2].0], [&Some((1, 2)), &None, &Some((0, 2))]);
    for error in [&seen[0].1, &seen[2].1] {
        let error = error.as_ref().unwrap();
        assert!(error.code == Code::COMM_ERROR && error.message.contains("left"), "{error}");
    }
}
