//! Graphs of `halyard-core`, on the CUDA backend and the software GPU, and on the Ascend backend and the software NPU.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measurement of bytes"
)]

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use halyard_core::{
    Code, CommSpec, Communicator, DType, Decompose, Device, DeviceError, Graph, Kernel, Launch,
    MetricKey, OpBuf, ReduceOp, Scheme, Stream, Tensor, TensorSpec, WeightDesc, Workspace, attrs,
};
use support::{ascend, cuda};

struct Setup {
    device: Device,
    stream: Stream,
    workspace: Workspace,
    add: Kernel,
}

impl Setup {
    fn new() -> Self {
        Self::on(cuda::open([0]).remove(0))
    }

    /// On each kind of device that has graphs.
    fn each() -> [Self; 2] {
        [Self::new(), Self::on(ascend::open())]
    }

    fn on(device: Device) -> Self {
        let workspace = Workspace::new(&device, 0).expect("of nothing");
        let (stream, add) = (device.stream(0).expect("a stream"), add(&device));
        Self { device, stream, workspace, add }
    }

    fn tensor(&self, values: &[f32]) -> Tensor {
        self.device.tensor_from(&self.stream, &[1, values.len()], values).expect("fits")
    }

    /// `y = a + b`.
    fn launch(&self, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<(), DeviceError> {
        let launch = Launch::new(&self.add, &[Some(a), Some(b), Some(y)], &[])?;
        launch.run(&self.stream, &self.workspace, &[])
    }

    fn read(&self, tensor: &Tensor) -> Vec<f32> {
        let mut values = vec![0.0; 2];
        tensor.read(&self.stream, &mut values).expect("reads");
        values
    }

    fn used_bytes(&self) -> u64 {
        let all = self.device.telemetry();
        let used = all.iter().find(|m| m.key == MetricKey::MEM_USED_BY_US).expect("measured");
        used.value as u64
    }
}

fn add(device: &Device) -> Kernel {
    let spec = TensorSpec::new(DType::F32, &[-1, 2]);
    device.prepare(OpBuf::new(&attrs::Add::default(), [spec; 3], [])).expect("prepares")
}

#[test]
fn a_launch_reads_memory_anew() {
    for s in Setup::each() {
        let (a, b, y) = (s.tensor(&[1.0, 2.0]), s.tensor(&[10.0, 20.0]), s.tensor(&[0.0, 0.0]));
        let graph = s.stream.capture(|| s.launch(&a, &b, &y)).expect("captures");
        assert_eq!(s.read(&y), [0.0, 0.0], "captured, not done");
        graph.launch(&s.stream).expect("launches");
        assert_eq!(s.read(&y), [11.0, 22.0]);
        a.write(&s.stream, &[5.0, 6.0]).expect("writes");
        let other = s.device.stream(0).expect("a stream");
        graph.launch(&other).expect("launches");
        other.sync().expect("runs");
        assert_eq!(s.read(&y), [15.0, 26.0]);
    }
}

#[test]
fn a_graph_keeps_what_it_uses() {
    for s in Setup::each() {
        let empty = s.used_bytes();
        let (a, b, y) = (s.tensor(&[1.0, 2.0]), s.tensor(&[10.0, 20.0]), s.tensor(&[0.0, 0.0]));
        let used = s.used_bytes();
        let graph = s.stream.capture(|| s.launch(&a, &b, &y)).expect("captures");
        // Three tensors and a kernel.
        assert_eq!(graph.num_uses(), 4);
        drop((a, b, y));
        s.stream.sync().expect("runs");
        graph.launch(&s.stream).expect("launches");
        s.stream.sync().expect("runs");
        assert_eq!(s.used_bytes(), used);
        drop(graph);
        // Freed when a buffer is made after every stream, the default one too, has passed its mark.
        let deadline = Instant::now() + Duration::from_secs(60);
        while s.used_bytes() >= used {
            assert!(
                Instant::now() < deadline,
                "{} bytes are kept, {empty} at first",
                s.used_bytes()
            );
            drop(s.tensor(&[0.0, 0.0]));
            s.stream.sync().expect("runs");
        }
        assert!(s.used_bytes() >= empty);
    }
}

#[test]
fn what_cannot_be_captured_is_refused_and_the_stream_goes_on() {
    for s in Setup::each() {
        let (a, b, y) = (s.tensor(&[1.0, 2.0]), s.tensor(&[10.0, 20.0]), s.tensor(&[0.0, 0.0]));
        let graph = s.stream.capture(|| s.launch(&a, &b, &y)).expect("captures");
        let event = s.device.event(false).expect("an event");
        let mut into = [0.0_f32; 2];
        type Act<'a> = &'a mut dyn FnMut() -> Result<(), DeviceError>;
        let refused: [(&str, Act<'_>); 8] = [
            ("copy", &mut || a.write(&s.stream, &[0.0_f32; 2])),
            ("copy", &mut || a.read(&s.stream, &mut into)),
            ("stream_sync", &mut || s.stream.sync()),
            ("stream_query", &mut || s.stream.is_idle().map(drop)),
            ("event_record", &mut || s.stream.record(&event)),
            ("event_wait", &mut || s.stream.wait(&event)),
            ("graph_launch", &mut || graph.launch(&s.stream)),
            ("graph_begin", &mut || s.stream.capture(|| Ok(())).map(drop)),
        ];
        for (call, act) in refused {
            let error = s.stream.capture(act).expect_err("refused");
            assert_eq!((error.call, error.code), (call, Code::INVALID_ARGUMENT), "{error}");
            assert!(error.message.contains("capturing"), "{error}");
        }
        let panicked = catch_unwind(AssertUnwindSafe(|| s.stream.capture(|| panic!("in between"))));
        assert!(panicked.is_err());
        graph.launch(&s.stream).expect("launches");
        assert_eq!(s.read(&y), [11.0, 22.0]);
    }
}

/// The marks that tell when a buffer is free to go must not become part of a graph.
#[test]
fn memory_that_is_freed_meanwhile_goes_after_the_capture() {
    for s in Setup::each() {
        let (a, b, y) = (s.tensor(&[1.0, 2.0]), s.tensor(&[10.0, 20.0]), s.tensor(&[0.0, 0.0]));
        let other = s.tensor(&[7.0, 7.0]);
        let used = s.used_bytes();
        let work = || {
            drop(other);
            assert_eq!(s.used_bytes(), used);
            s.launch(&a, &b, &y)
        };
        let graph = s.stream.capture(work).expect("captures");
        s.stream.sync().expect("runs");
        drop(s.tensor(&[0.0, 0.0]));
        graph.launch(&s.stream).expect("launches");
        assert_eq!(s.read(&y), [11.0, 22.0]);
    }
}

/// A kernel that the host builds with a communicator in it.
#[test]
fn a_kernel_that_cannot_be_captured_is_refused() {
    let s = Setup::new();
    let id = s.device.comm_id().expect("an id");
    let (timeout, name, number) = (Duration::from_secs(60), "test", Some(7));
    let spec = CommSpec { id: &id, rank: 0, world: 1, timeout, name, number };
    let _alone = s.device.join(&spec).expect("joins");
    let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, 2, 2);
    let mut weight = s.device.weight(desc).expect("fits");
    let rows: Vec<u8> = [1.0_f32, 0.0, 0.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    weight.fill(&s.stream, 0, 0, 2, &[&rows]).expect("fills");
    let weight = weight.seal(&s.stream).expect("whole");
    let spec = TensorSpec::new(DType::F32, &[-1, 2]);
    let attrs = attrs::LinearAllReduce { comm: 7, ..attrs::LinearAllReduce::default() };
    let op = OpBuf::new(&attrs, [spec, TensorSpec::NONE, spec], [desc]);
    let kernel = s.device.decomposing(Decompose::Missing).prepare(op).expect("is built");
    let (x, y) = (s.tensor(&[1.0, 2.0]), s.tensor(&[0.0, 0.0]));
    let launch = Launch::new(&kernel, &[Some(&x), None, Some(&y)], &[&weight]).expect("fits");
    let workspace = Workspace::new(&s.device, launch.workspace_bytes()).expect("fits");
    let error = s.stream.capture(|| launch.run(&s.stream, &workspace, &[])).expect_err("refused");
    assert_eq!(error.code, Code::UNSUPPORTED);
    assert_eq!(error.message, "linear_all_reduce: its kernel cannot be captured");
}

/// What each of two ranks gets from `f`.
fn on_two<T: Send>(
    timeout: Duration,
    f: impl Fn(u32, &Device, Communicator) -> T + Sync,
) -> Vec<T> {
    let devices = cuda::open(0..2);
    let id = devices[0].comm_id().expect("an id");
    thread::scope(|scope| {
        let (f, id) = (&f, &id);
        let start = |(rank, device)| {
            scope.spawn(move || {
                let spec = CommSpec { id, rank, world: 2, timeout, name: "test", number: None };
                f(rank, device, device.join(&spec).expect("joins"))
            })
        };
        let threads: Vec<_> = (0..).zip(&devices).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn doubled(device: &Device, comm: &mut Communicator) -> (Stream, Tensor, Graph) {
    let stream = device.stream(0).expect("a stream");
    let x = device.tensor_from(&stream, &[2], &[1.0_f32, 2.0]).expect("fits");
    let sum = || comm.all_reduce(&stream, &x, &x, ReduceOp::SUM);
    let graph = stream.capture(sum).expect("captures");
    (stream, x, graph)
}

/// The graph keeps the communicator, which goes on beside it.
#[test]
fn ranks_exchange_at_each_launch() {
    let got = on_two(Duration::from_secs(60), |_, device, mut comm| {
        let (stream, x, graph) = doubled(device, &mut comm);
        graph.launch(&stream).expect("launches");
        comm.all_reduce(&stream, &x, &x, ReduceOp::SUM).expect("enqueues");
        drop(comm);
        graph.launch(&stream).expect("launches");
        let mut values = [0.0_f32; 2];
        x.read(&stream, &mut values).expect("reads");
        values
    });
    assert_eq!(got, [[8.0, 16.0]; 2]);
}

/// A launch whose other ranks do not come ends when the time is over, with a name, and further ones are refused.
#[test]
fn a_launch_is_watched() {
    let left = Barrier::new(2);
    on_two(Duration::from_millis(500), |rank, device, mut comm| {
        let (stream, _, graph) = doubled(device, &mut comm);
        if rank == 0 {
            graph.launch(&stream).expect("launches");
            stream.sync().expect("is let go");
            let error = comm.handle().status().expect_err("it waited in vain");
            assert_eq!(error.code, Code::COMM_ERROR);
            assert!(error.message.contains("rank 0 waited") && error.message.contains("a graph"));
        }
        left.wait();
        let error = graph.launch(&stream).expect_err("it has ended");
        assert_eq!((error.call, error.code), ("graph_launch", Code::COMM_ERROR));
    });
}

/// A router of so many rows over 256 experts, whose operator wants as much scratch memory as its logits take; with what it is told and
/// where its choice goes.
struct Router {
    launch: Launch,
    workspace: Workspace,
    weight: Tensor,
}

impl Router {
    const EXPERTS: usize = 256;

    fn new(s: &Setup, rows: usize) -> Self {
        let spec = |dtype, width| TensorSpec::new(dtype, &[-1, width]);
        let (logits, ids) = (spec(DType::F32, 256), spec(DType::I32, 1));
        let specs = [logits, TensorSpec::NONE, ids, spec(DType::F32, 1)];
        let op = OpBuf::new(&attrs::MoeRouter::default(), specs, []);
        let kernel = s.device.prepare(op).expect("prepares");
        let logits = vec![0.0_f32; rows * Self::EXPERTS];
        let logits = s.device.tensor_from(&s.stream, &[rows, Self::EXPERTS], &logits);
        let logits = logits.expect("fits");
        let ids = s.device.tensor(DType::I32, &[rows, 1]).expect("fits");
        let weight = s.device.tensor(DType::F32, &[rows, 1]).expect("fits");
        let tensors = [Some(&logits), None, Some(&ids), Some(&weight)];
        let launch = Launch::new(&kernel, &tensors, &[]).expect("fits");
        let workspace = Workspace::new(&s.device, launch.workspace_bytes()).expect("fits");
        Self { launch, workspace, weight }
    }

    fn run(&self, s: &Setup) -> Result<(), DeviceError> {
        self.launch.run(&s.stream, &self.workspace, &[])
    }
}

/// Of more than a stream has at first, and more again.
#[test]
fn a_graph_keeps_the_scratch_memory_that_its_operators_were_captured_with() {
    let s = Setup::on(ascend::open());
    let [router, larger] = [36_000, 72_000].map(|rows| Router::new(&s, rows));
    let error = s.stream.capture(|| router.run(&s)).expect_err("it would grow");
    assert_eq!(error.code, Code::OUT_OF_MEMORY);
    let words = "aclnnMoeGatingTopKSoftmaxV2: 36 MiB of scratch memory are wanted, and the stream, which is capturing, has 32";
    assert!(error.message.contains(words), "{error}");
    router.run(&s).expect("launches");
    let graph = s.stream.capture(|| router.run(&s)).expect("captures");
    larger.run(&s).expect("launches");
    s.stream.sync().expect("runs");
    graph.launch(&s.stream).expect("launches");
    let mut weight = vec![0.0_f32; 36_000];
    router.weight.read(&s.stream, &mut weight).expect("runs and reads");
    assert!(weight.iter().all(|&w| (w - 1.0 / 256.0).abs() < 1e-6));
}

/// Nothing says that HCCL's calls can be part of a graph.
#[test]
fn the_npu_captures_no_exchange() {
    let s = Setup::on(ascend::open());
    assert!(s.device.has_graphs() && !s.device.captures_exchanges());
    let id = s.device.comm_id().expect("an id");
    let (timeout, name) = (Duration::from_secs(60), "test");
    let spec = CommSpec { id: &id, rank: 0, world: 1, timeout, name, number: None };
    let mut alone = s.device.join(&spec).expect("joins");
    let x = s.tensor(&[1.0, 2.0]);
    let captured = s.stream.capture(|| alone.all_reduce(&s.stream, &x, &x, ReduceOp::SUM));
    assert_eq!(captured.expect_err("refused").code, Code::UNSUPPORTED);
    alone.all_reduce(&s.stream, &x, &x, ReduceOp::SUM).expect("enqueues");
    assert_eq!(s.read(&x), [1.0, 2.0]);
}

#[test]
fn a_device_without_graphs_says_so() {
    for device in support::devices() {
        assert!(!device.has_graphs() && !device.captures_exchanges());
        let stream = device.stream(0).expect("a stream");
        let error = stream.capture(|| Ok(())).expect_err("none");
        assert_eq!((error.call, error.code), ("graph_begin", Code::UNSUPPORTED));
    }
}
