//! How ranks wait, fail and part.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use halyard_core::{Code, DType, Device, DeviceError, Group, ReduceOp, Rows, Tensor};

use super::{
    catalog::Conduct,
    ranks::{PATIENCE, Rank, in_threads, join, on_all},
};
use crate::execute::Trouble;

/// The time given where it is meant to run out.
const SHORT: Duration = Duration::from_secs(1);
/// The time that others get to come to a call before something happens to it.
const A_MOMENT: Duration = Duration::from_millis(20);

type Checked = Result<(), Trouble>;

/// Runs a case.
pub(super) fn run(devices: &[Device], kind: Conduct) -> Checked {
    match kind {
        Conduct::Barrier => barrier(devices),
        Conduct::Split => split(devices),
        Conduct::TwoAtOnce => two_at_once(devices),
        Conduct::Refusals => refusals(devices),
        Conduct::Abort => abort(devices),
        Conduct::Late => late(devices),
        Conduct::Absent => absent(devices),
        Conduct::DifferentCalls => DIFFERENCES.iter().try_for_each(|d| d.run(devices)),
    }
}

fn violation(text: impl Into<String>) -> Trouble {
    Trouble::Violation(text.into())
}

fn barrier(devices: &[Device]) -> Checked {
    let (world, came) = (devices.len() as u32, AtomicU32::new(0));
    let each = |rank: &mut Rank| {
        for round in 1..=20 {
            came.fetch_add(1, Ordering::SeqCst);
            rank.comm.barrier(&rank.stream)?;
            rank.stream.sync()?;
            let seen = came.load(Ordering::SeqCst);
            if seen != round * world {
                return Err(violation(format!("{seen} arrivals after barrier {round} of {world}")));
            }
            // Nobody comes to the next round before all have looked.
            rank.comm.barrier(&rank.stream)?;
            rank.stream.sync()?;
        }
        Ok(())
    };
    on_all(devices, PATIENCE, each).map(|_| ())
}

/// The sum of all ranks' numbers plus one, as every rank gets it.
fn check_sum(rank: &mut Rank, world: u32) -> Checked {
    let mine = [rank.number() + 1];
    let x = rank.device.tensor_from(&rank.stream, &[1], &mine)?;
    rank.comm.all_reduce(&rank.stream, &x, &x, ReduceOp::SUM)?;
    let mut sum = [0u32];
    x.read(&rank.stream, &mut sum)?;
    if sum[0] == world * (world + 1) / 2 {
        return Ok(());
    }
    Err(violation(format!("a sum of {} over {world} ranks", sum[0])))
}

/// Even and odd ranks part, the last ones first; of four or more, the last stays out.
fn split(devices: &[Device]) -> Checked {
    let world = devices.len() as u32;
    let group = |rank: u32| {
        let out = world > 2 && rank == world - 1;
        (!out).then_some(Group { color: (rank % 2) as u16, key: -(rank as i32) })
    };
    let plan: Vec<_> = (0..world).map(group).collect();
    let each = |rank: &mut Rank| {
        let number = rank.number();
        let part = rank.comm.split(&plan)?;
        let mut members: Vec<u32> = (0..world).filter(|&r| group(r).is_some()).collect();
        members.retain(|r| r % 2 == number % 2);
        members.reverse();
        match (part, group(number)) {
            (None, None) => {}
            (Some(comm), Some(_)) => {
                let device = rank.device.clone();
                let mut part = Rank { stream: device.stream(0)?, device, comm };
                check_members(&mut part, number, &members)?;
            }
            _ => return Err(violation("a part for a rank without a group, or none for one with")),
        }
        check_sum(rank, world)
    };
    on_all(devices, PATIENCE, each).map(|_| ())
}

fn check_members(part: &mut Rank, number: u32, members: &[u32]) -> Checked {
    let mine = part.device.tensor_from(&part.stream, &[1], &[number])?;
    let all = part.device.tensor(DType::U32, &[members.len()])?;
    part.comm.all_gather(&part.stream, &mine, &all)?;
    let mut got = vec![0u32; members.len()];
    all.read(&part.stream, &mut got)?;
    if got == members {
        return Ok(());
    }
    Err(violation(format!("ranks {got:?} met, expected {members:?}")))
}

fn two_at_once(devices: &[Device]) -> Checked {
    let world = devices.len() as u32;
    let many = || {
        let each = |rank: &mut Rank| (0..50).try_for_each(|_| check_sum(rank, world));
        on_all(devices, PATIENCE, each).map(|_| ())
    };
    thread::scope(|scope| {
        let other = scope.spawn(many);
        let mine = many();
        mine.and(other.join().unwrap_or_else(|_| Err(violation("a thread panicked"))))
    })
}

fn refusals(devices: &[Device]) -> Checked {
    let world = devices.len() as u32;
    let each = |rank: &mut Rank| {
        let (number, one) = (rank.number(), vec![1; world as usize]);
        let four = rank.device.tensor(DType::I32, &[4])?;
        let five = rank.device.tensor(DType::I32, &[5])?;
        let buffer = rank.device.alloc(64)?;
        let gaps = Tensor::strided(&buffer, DType::I32, &[2, 2], &[3, 1], 0)?;
        let places = vec![4; world as usize];
        let rows = Rows {
            send_counts: &one,
            send_displs: &places,
            recv_counts: &one,
            recv_displs: &places,
        };
        let Rank { stream, comm, .. } = rank;
        let refused = [
            ("a root beyond the world", comm.broadcast(stream, &four, world)),
            ("a peer beyond the world", comm.send(stream, &four, world)),
            ("a message to itself, without a group", comm.send(stream, &four, number)),
            ("other dims", comm.all_reduce(stream, &four, &five, ReduceOp::SUM)),
            ("a mean of integers", comm.all_reduce(stream, &four, &four, ReduceOp::AVG)),
            ("a view with gaps", comm.broadcast(stream, &gaps, 0)),
            ("a part that is none", comm.all_gather(stream, &four, &five)),
            ("rows beyond the view", comm.all_to_all_v(stream, &four, &five, rows)),
        ];
        for (what, result) in refused {
            expect(what, result.err().as_ref(), Code::INVALID_ARGUMENT)?;
        }
        check_sum(rank, world)
    };
    on_all(devices, PATIENCE, each).map(|_| ())
}

fn expect(what: &str, error: Option<&DeviceError>, code: Code) -> Checked {
    match error {
        Some(error) if error.code == code && !error.message.is_empty() => Ok(()),
        Some(error) => Err(violation(format!("{what}: expected `{code}` and why, got: {error}"))),
        None => Err(violation(format!("{what}: expected `{code}`, got no error"))),
    }
}

/// How a communicator ends, at the latest once patience does.
fn end_of(rank: &Rank, issued: Result<(), DeviceError>) -> Option<DeviceError> {
    let start = Instant::now();
    let mut ended = rank.ended(issued);
    while ended.is_ok() && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
        ended = rank.comm.handle().status();
    }
    ended.err()
}

/// Every rank must have ended with `code`, and later calls with it, too.
fn all_ended(
    what: &str,
    devices: &[Device],
    timeout: Duration,
    code: Code,
    call: impl Fn(&mut Rank) -> Result<(), DeviceError> + Sync,
) -> Checked {
    let each = |rank: &mut Rank| {
        let issued = call(rank);
        let first = end_of(rank, issued);
        let later = rank.comm.barrier(&rank.stream);
        Ok((first, rank.ended(later).err()))
    };
    for (rank, (first, later)) in on_all(devices, timeout, each)?.into_iter().enumerate() {
        expect(&format!("{what}, rank {rank}"), first.as_ref(), code)?;
        expect(&format!("{what}, rank {rank}, a call after that"), later.as_ref(), code)?;
    }
    Ok(())
}

/// The calls in which the others wait for `missing`: each a different one where messages allow it.
fn wait_for(rank: &mut Rank, missing: u32) -> Result<(), DeviceError> {
    let x = rank.device.tensor_from(&rank.stream, &[4], &[0u32; 4])?;
    if (rank.number() + missing) % 2 == 1 {
        return rank.comm.recv(&rank.stream, &x, missing);
    }
    rank.comm.all_reduce(&rank.stream, &x, &x, ReduceOp::SUM)
}

fn abort(devices: &[Device]) -> Checked {
    all_ended("an abort", devices, PATIENCE, Code::COMM_ABORTED, |rank| {
        if rank.number() != 0 {
            return wait_for(rank, 0);
        }
        thread::sleep(A_MOMENT);
        let handle = rank.comm.handle();
        thread::scope(|scope| scope.spawn(|| handle.abort()).join()).unwrap_or(Ok(()))
    })
}

fn late(devices: &[Device]) -> Checked {
    let last = devices.len() as u32 - 1;
    all_ended("a rank that does not come", devices, SHORT, Code::COMM_ERROR, |rank| {
        if rank.number() == last { Ok(()) } else { wait_for(rank, last) }
    })
}

fn absent(devices: &[Device]) -> Checked {
    let id = devices[0].comm_id()?;
    let joined = |rank| Ok(join(devices, &id, rank, SHORT).err());
    for (rank, error) in in_threads(devices.len() - 1, joined).into_iter().enumerate() {
        expect(&format!("joining as rank {rank}"), error?.as_ref(), Code::COMM_ERROR)?;
    }
    Ok(())
}

/// A pair of calls that do not belong together: of the last rank, and of the others.
struct Difference {
    what: &'static str,
    call: fn(&mut Rank, bool) -> Result<(), DeviceError>,
}

impl Difference {
    fn run(&self, devices: &[Device]) -> Checked {
        let last = devices.len() as u32 - 1;
        let call = |rank: &mut Rank| {
            let odd = rank.number() == last;
            (self.call)(rank, odd)
        };
        all_ended(self.what, devices, PATIENCE, Code::COMM_ERROR, call)
    }
}

const DIFFERENCES: [Difference; 8] = [
    Difference {
        what: "another call",
        call: |rank, odd| {
            let x = floats(rank, 4)?;
            match odd {
                true => rank.comm.barrier(&rank.stream),
                false => rank.comm.all_reduce(&rank.stream, &x, &x, ReduceOp::SUM),
            }
        },
    },
    Difference {
        what: "another size",
        call: |rank, odd| {
            let x = floats(rank, 4 + usize::from(odd))?;
            rank.comm.all_reduce(&rank.stream, &x, &x, ReduceOp::SUM)
        },
    },
    Difference {
        what: "another size, none at all",
        call: |rank, odd| {
            let x = floats(rank, if odd { 0 } else { 100_000 })?;
            rank.comm.all_reduce(&rank.stream, &x, &x, ReduceOp::SUM)
        },
    },
    Difference {
        what: "another dtype",
        call: |rank, odd| {
            let x = match odd {
                true => rank.device.tensor_from(&rank.stream, &[4], &[0i32; 4])?,
                false => floats(rank, 4)?,
            };
            rank.comm.all_reduce(&rank.stream, &x, &x, ReduceOp::SUM)
        },
    },
    Difference {
        what: "another reduction",
        call: |rank, odd| {
            let x = floats(rank, 4)?;
            let op = if odd { ReduceOp::MAX } else { ReduceOp::SUM };
            rank.comm.all_reduce(&rank.stream, &x, &x, op)
        },
    },
    Difference {
        what: "another root",
        call: |rank, odd| {
            let x = floats(rank, 4)?;
            rank.comm.broadcast(&rank.stream, &x, u32::from(odd))
        },
    },
    Difference {
        what: "other counts",
        call: |rank, odd| {
            let world = rank.comm.world() as usize;
            let (send, recv) = (floats(rank, 2 * world)?, floats(rank, 2 * world)?);
            let (counts, mut expected) = (vec![1; world], vec![1; world]);
            expected[0] += u64::from(odd);
            let places: Vec<u64> = (0..world as u64).map(|p| 2 * p).collect();
            let rows = Rows {
                send_counts: &counts,
                send_displs: &places,
                recv_counts: &expected,
                recv_displs: &places,
            };
            rank.comm.all_to_all_v(&rank.stream, &send, &recv, rows)
        },
    },
    Difference {
        what: "a message of another size",
        call: |rank, odd| {
            let x = floats(rank, 4 + usize::from(odd))?;
            let last = rank.comm.world() - 1;
            match rank.number() {
                0 => rank.comm.send(&rank.stream, &x, last),
                _ if odd => rank.comm.recv(&rank.stream, &x, 0),
                _ => rank.comm.barrier(&rank.stream),
            }
        },
    },
];

fn floats(rank: &Rank, count: usize) -> Result<Tensor, DeviceError> {
    rank.device.tensor_from(&rank.stream, &[count], &vec![1f32; count])
}
