//! Ranks that are processes: this test runs itself once more for each rank.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use halyard_core::{
    Backend, Code, CommId, CommSpec, Communicator, Device, DeviceError, ReduceOp, Stream,
};

const WORLD: u32 = 4;
/// The rank that is killed.
const VICTIM: u32 = 2;
const VARIABLE: &str = "HALYARD_TEST_RANK";
/// More than goes through a buffer at once.
const ELEMENTS: u32 = 100_000;

#[test]
fn processes_work_together_and_notice_when_one_is_killed() {
    match env::var(VARIABLE) {
        Ok(role) => play(&role),
        Err(_) => direct(),
    }
}

/// The parent: an id for all, a process a rank, a kill.
fn direct() {
    let id = device().comm_id().expect("the backend has collectives");
    let id: String = id.as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let start = |rank| {
        Command::new(env::current_exe().expect("a test knows its path"))
            .args(["--exact", "processes_work_together_and_notice_when_one_is_killed"])
            .arg("--nocapture")
            .env(VARIABLE, format!("{rank} {id}"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process starts")
    };
    let mut ranks: Vec<Child> = (0..WORLD).map(start).collect();
    let victim = &mut ranks[VICTIM as usize];
    let output = BufReader::new(victim.stdout.take().expect("it is piped"));
    let told = output.lines().map_while(Result::ok).any(|line| line.contains("asleep"));
    assert!(told, "the victim ended before it was killed");
    victim.kill().expect("it is a child of this process");
    for (rank, process) in ranks.into_iter().enumerate() {
        let output = process.wait_with_output().expect("it is a child of this process");
        let text = String::from_utf8_lossy(&output.stdout);
        let expected = rank != VICTIM as usize;
        assert_eq!(output.status.success(), expected, "rank {rank}: {text}");
    }
}

/// A rank: sums, then sleeps until it is killed, or waits for the one that is.
#[expect(clippy::print_stdout, reason = "tells the parent how far it is")]
fn play(role: &str) {
    let (rank, id) = role.split_once(' ').expect("rank and id");
    let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).expect("digits");
    let id: Vec<u8> = (0..id.len()).step_by(2).map(byte).collect();
    let id = CommId::from_bytes(&id).expect("an id");
    let rank: u32 = rank.parse().expect("a number");
    let timeout = Duration::from_secs(60);
    let device = device();
    let spec = CommSpec { id: &id, rank, world: WORLD, timeout, name: "processes", number: None };
    let mut comm = device.join(&spec).expect("all come");
    let stream = device.stream(0).expect("it has streams");
    for round in 0..3 {
        sum(&device, &stream, &mut comm, round).expect("all live");
    }
    if rank == VICTIM {
        println!("asleep");
        std::thread::sleep(timeout);
        panic!("nobody killed this process");
    }
    let error = sum(&device, &stream, &mut comm, 3).expect_err("one was killed");
    assert_eq!(error.code, Code::COMM_ERROR, "{error}");
    assert!(error.message.contains("rank 2 left"), "{error}");
    let later = comm.barrier(&stream).expect_err("it has ended");
    assert_eq!(later.code, Code::COMM_ERROR, "{later}");
}

fn sum(
    device: &Device,
    stream: &Stream,
    comm: &mut Communicator,
    round: u32,
) -> Result<(), DeviceError> {
    let of = |rank: u32, i: u32| (rank + 1) * (i + round);
    let mine: Vec<u32> = (0..ELEMENTS).map(|i| of(comm.rank(), i)).collect();
    let x = device.tensor_from(stream, &[mine.len()], &mine)?;
    comm.all_reduce(stream, &x, &x, ReduceOp::SUM)?;
    let mut got = vec![0u32; mine.len()];
    x.read(stream, &mut got)?;
    let want: Vec<u32> = (0..ELEMENTS).map(|i| (0..WORLD).map(|r| of(r, i)).sum()).collect();
    assert!(got == want, "round {round}");
    Ok(())
}

fn device() -> Device {
    Backend::builtin(halyard_cpu_ref::module()).open(0, &[]).expect("it always opens")
}
