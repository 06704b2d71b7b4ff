//! The gate on what ranks exchange: open for right collectives, closed for wrong ones, saying where.

use halyard_conformance::gate::{Exchange, exchanges};
use halyard_core::{Backend, DType, Device};
use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    Collective, CommDesc, Error, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc, KvLayout,
    MemRef, OpDesc, Options, PropKey, Result, Stream, Support, TensorView, Weight, WeightDesc,
    WeightFill, WeightPlan,
    abi::{A2av, ReduceOp},
    comm,
};

/// The reference backend, whose sums are maxima and whose gathers come to nothing.
struct Wrong;
struct WrongDevice(RefDevice);
struct WrongSums(Box<dyn Collective>);

impl halyard_sdk::Backend for Wrong {
    type Device = WrongDevice;

    fn info(key: InfoKey) -> String {
        CpuRef::info(key)
    }
    fn probe() -> i32 {
        1
    }
    fn device_count() -> Result<u32> {
        Ok(1)
    }
    fn open(ordinal: u32, options: Options) -> Result<WrongDevice> {
        Ok(WrongDevice(CpuRef::open(ordinal, options)?))
    }
}

impl InlineDevice for WrongDevice {
    fn memory(&self) -> &HostMemory {
        self.0.memory()
    }
    fn property(&self, key: PropKey) -> Option<u64> {
        InlineDevice::property(&self.0, key)
    }
    fn info(&self, key: InfoKey) -> String {
        InlineDevice::info(&self.0, key)
    }
    fn support(&self, op: &OpDesc<'_>) -> Support {
        InlineDevice::support(&self.0, op)
    }
    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        InlineDevice::prepare(&self.0, op)
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        InlineDevice::weight_plan(&self.0, w)
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        InlineDevice::weight_create(&self.0, w, dst)
    }
    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        InlineDevice::weight_fill(&self.0, w, f)
    }
    fn weight_seal(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_seal(&self.0, w)
    }
    fn weight_destroy(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_destroy(&self.0, w)
    }
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        InlineDevice::kv_layout(&self.0, kv)
    }
    fn comm_create(&self, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
        Ok(Box::new(WrongSums(comm::join(desc)?)))
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::unsupported("not of this test"))
}

impl Collective for WrongSums {
    fn all_reduce(&self, s: Stream, src: &TensorView, dst: &TensorView, _: ReduceOp) -> Result<()> {
        self.0.all_reduce(s, src, dst, ReduceOp::MAX)
    }
    fn all_gather(&self, _: Stream, _: &TensorView, _: &TensorView) -> Result<()> {
        Ok(())
    }
    fn reduce_scatter(&self, _: Stream, _: &TensorView, _: &TensorView, _: ReduceOp) -> Result<()> {
        not_here()
    }
    fn broadcast(&self, _: Stream, _: &TensorView, _: u32) -> Result<()> {
        not_here()
    }
    fn all_to_all_v(&self, _: Stream, _: &A2av<'_>) -> Result<()> {
        not_here()
    }
    fn send(&self, _: Stream, _: &TensorView, _: u32) -> Result<()> {
        not_here()
    }
    fn recv(&self, _: Stream, _: &TensorView, _: u32) -> Result<()> {
        not_here()
    }
    fn group_begin(&self) -> Result<()> {
        not_here()
    }
    fn group_end(&self) -> Result<()> {
        not_here()
    }
    fn barrier(&self, _: Stream) -> Result<()> {
        not_here()
    }
    fn status(&self) -> Result<()> {
        self.0.status()
    }
    fn abort(&self) -> Result<()> {
        self.0.abort()
    }
}

/// What a small model's ranks exchange, and what the gate says to a server.
fn verdict<B: halyard_sdk::Backend>(world: usize) -> std::result::Result<(), String> {
    let backend = Backend::builtin(halyard_sdk::module::<B>());
    let devices: Vec<Device> = (0..world).map(|_| backend.open(0, &[]).expect("opens")).collect();
    let all = [
        Exchange::Sum { dtype: DType::BF16, width: 96 },
        Exchange::Gather { dtype: DType::F32, width: 501 },
    ];
    let report = exchanges(&devices, &all, 0);
    assert_eq!(report.kernels.len(), 2);
    report.require().map_err(|error| error.to_string())
}

#[test]
fn it_is_open_for_right_collectives() {
    for world in [2, 3, 4] {
        assert_eq!(verdict::<CpuRef>(world), Ok(()));
    }
}

#[test]
fn it_closes_for_wrong_ones_and_says_where() {
    let text = verdict::<Wrong>(2).expect_err("wrong");
    assert!(text.starts_with("2 of 2 kernels of backend cpu-ref"), "{text}");
    assert!(text.contains("all_reduce(sum) of bf16 [-1, 96] between 2 ranks"), "{text}");
    assert!(text.contains("all_gather of f32 [-1, 501] between 2 ranks"), "{text}");
    assert!(text.contains("rank 0, size 96: element"), "{text}");
}
