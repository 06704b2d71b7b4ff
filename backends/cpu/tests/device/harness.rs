//! A host in small: devices, weights and launches.

use halyard_cpu::{Cpu, CpuDevice};
use halyard_sdk::{
    AllocReq, Backend, Buffer, DType, Device, LaunchArgs, MemRef, OpDesc, Options, Plan, Scheme,
    Stream, TensorSpec, TensorView, Weight, WeightDesc, WeightFill,
    abi::{
        RSlice,
        ops::{
            OpBuf,
            attrs::{self, OpAttrs},
        },
        types::mem,
    },
};

use crate::noise::noise;

pub(crate) fn open(options: &[(&str, &str)]) -> halyard_sdk::Result<CpuDevice> {
    let own = |&(k, v): &(&str, &str)| (k.to_owned(), v.to_owned());
    Cpu::open(0, Options::new(options.iter().map(own).collect()))
}

pub(crate) fn device() -> CpuDevice {
    open(&[("threads", "2")]).unwrap()
}

/// A device for each instruction set of this machine.
pub(crate) fn every_device() -> Vec<CpuDevice> {
    let sets = ["avx512", "avx2", "portable"];
    let all: Vec<_> =
        sets.iter().filter_map(|isa| open(&[("threads", "2"), ("isa", isa)]).ok()).collect();
    assert!(!all.is_empty());
    all
}

/// A weight with its memory.
pub(crate) struct Owned {
    pub(crate) weight: Weight,
    pub(crate) buffer: Buffer,
}

pub(crate) fn create(device: &CpuDevice, desc: &WeightDesc<'_>) -> Owned {
    let plan = device.weight_plan(desc).unwrap();
    let request = AllocReq { bytes: plan.bytes, align: plan.align, kind: mem::DEVICE, flags: 0 };
    let buffer = device.alloc(&request).unwrap();
    let place = MemRef { base: buffer.base, offset: 0, kind: mem::DEVICE, device: 0 };
    Owned { weight: device.weight_create(desc, &place).unwrap(), buffer }
}

/// Fills rows of a weight of one part.
pub(crate) fn fill<T>(
    device: &CpuDevice,
    w: Weight,
    (group, row0): (u32, u64),
    dtype: DType,
    rows: &[T],
    cols: usize,
) -> halyard_sdk::Result<()> {
    let n = rows.len() / cols;
    fill_parts(device, w, (group, row0, n), &[view(rows, dtype, &[n, cols])])
}

/// Fills `(group, first row, rows)` of a weight.
pub(crate) fn fill_parts(
    device: &CpuDevice,
    w: Weight,
    (group, row0, rows): (u32, u64, usize),
    parts: &[TensorView],
) -> halyard_sdk::Result<()> {
    let parts = RSlice::from_slice(parts);
    let fill = WeightFill { group, flags: 0, row0, rows: rows as u64, parts };
    device.weight_fill(Stream::NONE, w, &fill)
}

/// A dense f32 weight of all these rows.
pub(crate) fn dense(device: &CpuDevice, desc: &WeightDesc<'_>, values: &[f32]) -> Weight {
    let owned = create(device, desc);
    let (n, k) = (desc.n as usize, desc.k as usize);
    for (group, rows) in values.chunks_exact(n * k).enumerate() {
        fill(device, owned.weight, (group as u32, 0), DType::F32, rows, k).unwrap();
    }
    device.weight_seal(Stream::NONE, owned.weight).unwrap();
    owned.weight
}

pub(crate) fn linear(scheme: Scheme, dtype: DType, n: u64, k: u64) -> OpBuf {
    let spec = |cols: u64| TensorSpec::new(DType::F32, &[-1, cols.cast_signed()]);
    OpBuf::new(
        &attrs::Linear::default(),
        [spec(k), TensorSpec::NONE, spec(n)],
        [WeightDesc::linear(scheme, dtype, n, k)],
    )
}

/// Runs an op.
pub(crate) fn launch(
    device: &CpuDevice,
    op: &OpDesc<'_>,
    views: &[TensorView],
    weights: &[Weight],
) -> halyard_sdk::Result<()> {
    let kernel = device.prepare(op)?;
    let shapes: Vec<_> = views.iter().map(TensorView::spec).collect();
    let bytes = kernel.workspace_bytes(&shapes);
    let workspace = vec![u64::MAX; bytes as usize / 8 + 16];
    let start = (workspace.as_ptr() as u64).next_multiple_of(64);
    kernel.launch(
        Stream::NONE,
        &LaunchArgs {
            plan: Plan::NONE,
            workspace: start,
            workspace_bytes: bytes,
            tensors: RSlice::from_slice(views),
            weights: RSlice::from_slice(weights),
            scalars: RSlice::EMPTY,
            host: RSlice::EMPTY,
        },
    )
}

/// Prepares an op for just these tensors and runs it.
pub(crate) fn run<A: OpAttrs>(
    device: &CpuDevice,
    attrs: &A,
    views: &[TensorView],
    weights: &[(WeightDesc<'static>, Weight)],
) -> halyard_sdk::Result<()> {
    let specs: Vec<_> = views.iter().map(TensorView::spec).collect();
    let descs: Vec<_> = weights.iter().map(|w| w.0).collect();
    let handles: Vec<_> = weights.iter().map(|w| w.1).collect();
    launch(device, &OpBuf::new(attrs, specs, descs).desc(), views, &handles)
}

/// What a launch has written, which the compiler cannot know.
pub(crate) fn written<T>(data: T) -> T {
    std::hint::black_box(data)
}

/// A contiguous tensor.
pub(crate) fn view<T>(data: &[T], dtype: DType, dims: &[usize]) -> TensorView {
    let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    TensorView::contiguous(data.as_ptr() as u64, 0, &TensorSpec::new(dtype, &dims))
}

pub(crate) fn floats(data: &[f32], dims: &[usize]) -> TensorView {
    assert_eq!(data.len(), dims.iter().product::<usize>());
    view(data, DType::F32, dims)
}

pub(crate) fn ints(data: &[i32], dims: &[usize]) -> TensorView {
    assert_eq!(data.len(), dims.iter().product::<usize>());
    view(data, DType::I32, dims)
}

pub(crate) fn matrix(data: &[f32], cols: usize) -> TensorView {
    floats(data, &[data.len() / cols, cols])
}

pub(crate) fn product(
    device: &CpuDevice,
    op: &OpBuf,
    w: Weight,
    x: &[f32],
    n: usize,
    k: usize,
) -> Vec<f32> {
    let y = vec![f32::NAN; x.len() / k * n];
    let views = [matrix(x, k), TensorView::NONE, matrix(&y, n)];
    launch(device, &op.desc(), &views, &[w]).unwrap();
    y
}

/// Numbers between -1 and 1 that look random.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let bytes = noise(seed, 2 * count);
    let value = |b: &[u8; 2]| f32::from(i16::from_le_bytes(*b)) / 32768.0;
    bytes.as_chunks().0.iter().map(value).collect()
}

/// `W x` of row-major `w`, in f64.
pub(crate) fn times(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// All numbers agree but for what sums in f32 lose, relative to the largest.
pub(crate) fn assert_near(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= 1e-5 * size, "{what}: number {i} is {got}, expected {want} (of {size})");
    }
}
