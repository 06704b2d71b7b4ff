//! Ranks that are processes: the same answers as from threads, and each way to fail told by name.

mod support;

use std::{
    env,
    error::Error,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    process::{self, Command},
    time::{Duration, Instant},
};

use halyard_core::{Backend, Device};
use halyard_engine::{
    EngineEvent, EngineHandle, LoadError, LoadOptions, Plan, RequestError,
    process::{Ended, Leader, RankProcesses, Start, Tried},
};
use halyard_weights::Checkpoint;
use support::{
    ends_with, events,
    faulty::{Mode, faulty, set},
    folder, goldens, greedy, ids, options, submit, tokens,
};

/// Set for the processes that this test starts of itself.
const IS_RANK: &str = "HALYARD_TEST_IS_A_RANK";

/// What goes wrong in a rank's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Nothing,
    /// Before it says anything.
    Exit,
    Abort,
    /// In the weights.
    NoRoom,
    /// In a step.
    Fail,
    Hang,
    Die,
}

const FAULTS: [(&str, Fault); 7] = [
    ("nothing", Fault::Nothing),
    ("exit", Fault::Exit),
    ("abort", Fault::Abort),
    ("no-room", Fault::NoRoom),
    ("fail", Fault::Fail),
    ("hang", Fault::Hang),
    ("die", Fault::Die),
];

fn cpu() -> Device {
    Backend::builtin(halyard_cpu::module()).open(0, &[("threads", "1")]).expect("opens")
}

/// What all ranks have, of which one is to come to harm.
fn device(fault: Fault) -> Device {
    if fault == Fault::Nothing { cpu() } else { faulty::<0>() }
}

/// No test: what the processes run that the tests start.
#[test]
fn a_rank() {
    if env::var_os(IS_RANK).is_none() {
        return;
    }
    let socket = io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let ends = |_| process::exit(0);
    let (leader, start) = Leader::connect(UnixStream::from(socket), ends).expect("a rank 0");
    let ended = follow(&leader, &start);
    if let Err(error) = &ended {
        let (mut all, mut next) = (vec![error.to_string()], error.source());
        while let Some(source) = next {
            all.push(source.to_string());
            next = source.source();
        }
        leader.failed(&all.join(": "));
    }
    process::exit(if matches!(ended, Ok(Ended::AsTold)) { 0 } else { 1 });
}

fn follow(leader: &Leader, start: &Start) -> Result<Ended, LoadError> {
    let [model, fault, timeout] = &start.arguments[..] else { panic!("{start:?}") };
    let (_, fault) = *FAULTS.iter().find(|(name, _)| fault == name).expect("a fault");
    let timeout = timeout.to_str().and_then(|text| text.parse().ok()).expect("seconds");
    let device = device(fault);
    // The last rank has the fault.
    if start.rank + 1 == start.world {
        set::<0>(match fault {
            Fault::Exit => process::exit(7),
            Fault::Abort => process::abort(),
            Fault::Nothing => Mode::Fine,
            Fault::NoRoom => Mode::NoRoom,
            Fault::Fail => Mode::Fail,
            Fault::Hang => Mode::Hang,
            Fault::Die => Mode::Die,
        });
    }
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let options = with_timeout(timeout);
    let plan = Plan::following(&device, (leader, start), checkpoint, &options)?;
    plan.follow(|_| Tried { digest: 7, complaint: None })
}

fn with_timeout(seconds: u64) -> LoadOptions {
    LoadOptions { step_timeout: Duration::from_secs(seconds), ..options() }
}

fn rank_processes(world: usize, model: &str, fault: Fault, timeout: u64) -> RankProcesses {
    let (name, _) = FAULTS.iter().find(|(_, other)| *other == fault).expect("listed");
    let timeout = timeout.to_string();
    let arguments = [folder(model).into(), name.into(), timeout.into()];
    let command = |_| {
        let mut command = Command::new(env::current_exe().expect("this test"));
        command.args(["--exact", "a_rank", "--nocapture"]).env(IS_RANK, "1");
        command
    };
    RankProcesses::start(world, &arguments, command).expect("start")
}

fn plan(world: usize, model: &str, fault: Fault, timeout: u64) -> Result<Plan, LoadError> {
    let device = device(fault);
    let processes = rank_processes(world, model, fault, timeout);
    let checkpoint = Checkpoint::open(&folder(model)).expect("test data");
    Plan::leading(&device, processes, checkpoint, &with_timeout(timeout))
}

fn start(world: usize, model: &str, fault: Fault, timeout: u64) -> Result<EngineHandle, LoadError> {
    plan(world, model, fault, timeout)?.load(Box::new(()), &mut |_| {})
}

/// The processes that this thread has started and that are there yet.
fn children() -> usize {
    let list = std::fs::read_to_string("/proc/thread-self/children").expect("Linux");
    list.split_whitespace().count()
}

#[test]
fn processes_answer_like_threads() {
    for (model, world) in [("llama", 2), ("qwen3", 4), ("qwen2_moe", 2)] {
        let engine = start(world, model, Fault::Nothing, 60).expect("loads");
        assert_eq!((engine.info().tensor_parallel_size, children()), (world, world - 1));
        for golden in goldens(&format!("{model}/golden.tensors")) {
            let count = u32::try_from(golden.generated.len()).expect("few");
            let found = tokens(submit(&engine, &golden.prompt, greedy(count)));
            assert_eq!(ids(&found), golden.generated, "{model}");
        }
        engine.shutdown();
        drop(engine);
        assert_eq!(children(), 0, "{model}");
    }
}

#[test]
fn ranks_agree_on_the_least_memory_and_try_what_they_exchange() {
    let plan = plan(2, "llama", Fault::Nothing, 60).expect("fits");
    let alone = Plan::new(
        &[cpu(), cpu()],
        Checkpoint::open(&folder("llama")).expect("test data"),
        &options(),
    );
    let alone = alone.expect("fits");
    let figures = |plan: &Plan| {
        let info = plan.info();
        let bytes = (info.weight_bytes, info.kv_bytes);
        (info.num_blocks, info.max_model_len, bytes, info.device.clone())
    };
    assert_eq!(figures(&plan), figures(&alone));
    let names = |plan: &Plan| -> Vec<Vec<String>> {
        let sets = plan.kernel_sets().into_iter();
        sets.map(|(_, ops)| ops.iter().map(ToString::to_string).collect()).collect()
    };
    assert_eq!(names(&plan), names(&alone), "rank 0 verifies the kernels of all");
    let places: Vec<String> =
        plan.rank_devices().iter().map(|device| device.place().to_owned()).collect();
    assert_eq!(places, ["cpu:0", "cpu:0"]);
    assert!(plan.rank_devices().iter().all(|device| !device.telemetry().is_empty()));
    let (own, others) = plan.try_exchanges(|| 1).expect("both there");
    assert_eq!((own, others), (1, vec![Tried { digest: 7, complaint: None }]));
    drop(plan);
    assert_eq!(children(), 0);
}

#[test]
fn a_process_that_cannot_load_says_why() {
    for (fault, words) in [
        (Fault::Exit, "ended with exit code 7"),
        (Fault::Abort, "was killed by signal 6"),
        (Fault::NoRoom, "no room for a weight"),
    ] {
        let begun = Instant::now();
        let error = start(2, "llama", fault, 3600).expect_err("cannot load").to_string();
        let rest = error.strip_prefix("rank 1 of 2 (pid ").expect("its name");
        assert!(rest.contains(words) && !error.contains('\n'), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for what does not come");
        assert_eq!(children(), 0, "{fault:?}");
    }
}

/// What a request is told when a rank's process comes to harm in a step.
fn harmed(world: usize, fault: Fault, timeout: u64) -> String {
    let engine = start(world, "llama", fault, timeout).expect("loads");
    let last = events(submit(&engine, &[1, 2, 3], greedy(5))).pop();
    let Some(EngineEvent::Failed(RequestError::Device(message))) = last else { panic!("{last:?}") };
    ends_with(&engine, &message, Duration::from_secs(30));
    engine.shutdown();
    drop(engine);
    assert_eq!(children(), 0, "{fault:?}");
    message
}

#[test]
fn a_process_that_fails_ends_the_engine_by_its_name() {
    let message = harmed(2, Fault::Fail, 3600);
    assert!(message.starts_with("rank 1 of 2 (pid "), "{message}");
    assert!(message.contains("no attention today"), "{message}");
    // Those that only saw it leave are not the cause.
    for (world, name) in [(2, "rank 1 of 2 (pid "), (4, "rank 3 of 4 (pid ")] {
        let message = harmed(world, Fault::Die, 3600);
        assert!(message.starts_with(name), "{message}");
        assert!(message.ends_with("was killed by signal 6"), "{message}");
    }
}

#[test]
fn a_process_that_hangs_is_killed() {
    let message = harmed(2, Fault::Hang, 2);
    assert!(message.contains("rank 1") && message.contains("waited"), "{message}");
}
