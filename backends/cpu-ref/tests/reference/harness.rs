//! Tensors in plain memory and a launch of one op on them.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test values are small and known"
)]

use half::{bf16, f16};
use halyard_cpu_ref::RefDevice;
use halyard_sdk::{
    Buffer, DType, InlineDevice, LaunchArgs, MemRef, OpKind, Plan, Result, Stream, TensorSpec,
    TensorView, Weight, WeightDesc, WeightFill,
    abi::{
        OpBuf, RSlice, fp8,
        ops::{OpAttrs, OpSchema, schema::Layout},
        scheme::{self, Part, Rows},
        types::mem,
    },
};

/// A tensor and its memory. Elements at other places than the view's stay as they were.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    dtype: DType,
    dims: Vec<i64>,
    strides: Vec<i64>,
    bytes: Vec<u8>,
}

/// A row-major tensor.
pub(crate) fn tensor(dtype: DType, dims: &[i64], values: &[f64]) -> Tensor {
    let spec = TensorSpec::new(dtype, dims);
    let strides = TensorView::contiguous(0, 0, &spec).strides().to_vec();
    let mut t = Tensor { dtype, dims: dims.to_vec(), strides, bytes: Vec::new() };
    t.bytes = values.iter().flat_map(|&v| encode(dtype, v)).collect();
    assert_eq!(values.len() as i64, dims.iter().product::<i64>(), "values and dims {dims:?}");
    t
}

pub(crate) fn f32s(dims: &[i64], values: &[f64]) -> Tensor {
    tensor(DType::F32, dims, values)
}

pub(crate) fn i32s(dims: &[i64], values: &[i64]) -> Tensor {
    tensor(DType::I32, dims, &values.iter().map(|&v| v as f64).collect::<Vec<_>>())
}

/// An absent slot.
pub(crate) fn absent() -> Tensor {
    Tensor { dtype: DType::NONE, dims: vec![], strides: vec![], bytes: vec![] }
}

/// An output, filled with what no op may leave there.
pub(crate) fn output(dtype: DType, dims: &[i64]) -> Tensor {
    let count = dims.iter().product::<i64>() as usize;
    let integer = matches!(dtype, DType::I8 | DType::I32 | DType::I64);
    let poison = if integer { -77.0 } else { f64::NAN };
    tensor(dtype, dims, &vec![poison; count])
}

pub(crate) fn encode(dtype: DType, v: f64) -> Vec<u8> {
    match dtype {
        DType::F32 => (v as f32).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f64(v).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(v).to_le_bytes().to_vec(),
        DType::F8E4M3 => vec![fp8::e4m3_from_f64(v)],
        DType::F8E5M2 => vec![fp8::e5m2_from_f64(v)],
        DType::I8 => vec![(v as i8).cast_unsigned()],
        DType::I32 => (v as i32).to_le_bytes().to_vec(),
        DType::U32 => (v as u32).to_le_bytes().to_vec(),
        DType::I64 => (v as i64).to_le_bytes().to_vec(),
        DType::U64 => (v as u64).to_le_bytes().to_vec(),
        other => panic!("no encoding of {other}"),
    }
}

fn decode(dtype: DType, b: &[u8]) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(b.try_into().unwrap())),
        DType::F16 => f64::from(f16::from_le_bytes(b.try_into().unwrap())),
        DType::BF16 => f64::from(bf16::from_le_bytes(b.try_into().unwrap())),
        DType::F8E4M3 => f64::from(fp8::e4m3_to_f32(b[0])),
        DType::F8E5M2 => f64::from(fp8::e5m2_to_f32(b[0])),
        DType::I8 => f64::from(b[0].cast_signed()),
        DType::I32 => f64::from(i32::from_le_bytes(b.try_into().unwrap())),
        DType::U32 => f64::from(u32::from_le_bytes(b.try_into().unwrap())),
        DType::I64 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
        DType::U64 => u64::from_le_bytes(b.try_into().unwrap()) as f64,
        other => panic!("no decoding of {other}"),
    }
}

impl Tensor {
    /// The same memory seen with other dims and strides.
    pub(crate) fn seen(mut self, dims: &[i64], strides: &[i64]) -> Self {
        (self.dims, self.strides) = (dims.to_vec(), strides.to_vec());
        self
    }

    /// All of its memory, in order.
    pub(crate) fn memory(&self) -> Vec<f64> {
        let size = (self.dtype.bits().unwrap() / 8) as usize;
        self.bytes.chunks(size).map(|b| decode(self.dtype, b)).collect()
    }

    /// Raw bytes, for what f64 cannot hold.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    fn view(&mut self) -> TensorView {
        if self.dtype == DType::NONE {
            return TensorView::NONE;
        }
        let spec = TensorSpec::new(self.dtype, &self.dims);
        let mut view = TensorView::contiguous(self.bytes.as_mut_ptr() as u64, 0, &spec);
        view.strides[..self.strides.len()].copy_from_slice(&self.strides);
        view
    }
}

/// A weight's description and bytes: all parts of the first group, then all of the next.
pub(crate) struct Filled(pub(crate) WeightDesc<'static>, pub(crate) Vec<u8>);

/// A dense f32 weight.
pub(crate) fn dense(desc: WeightDesc<'static>, values: &[f64]) -> Filled {
    Filled(desc, values.iter().flat_map(|&v| encode(desc.dtype, v)).collect())
}

fn load(device: &RefDevice, Filled(desc, bytes): &Filled) -> Result<(Weight, Buffer)> {
    let plan = device.weight_plan(desc)?;
    assert_eq!(plan.bytes, bytes.len() as u64, "bytes of {desc:?}");
    let request =
        halyard_sdk::AllocReq { bytes: plan.bytes, align: 1, kind: mem::DEVICE, flags: 0 };
    let buffer = halyard_sdk::Device::alloc(device, &request)?;
    let place = MemRef { base: buffer.base, offset: 0, kind: mem::DEVICE, device: 0 };
    let w = device.weight_create(desc, &place)?;
    for (g, group) in bytes.chunks(bytes.len() / desc.groups as usize).enumerate() {
        // Few enough rows at once that a large weight comes in several fills.
        for row0 in (0..desc.n).step_by(128) {
            let rows = (desc.n - row0).min(128);
            let parts = parts_of(desc, group, row0, rows);
            let parts = RSlice::from_slice(&parts);
            let fill = WeightFill { group: g as u32, flags: 0, row0, rows, parts };
            device.weight_fill(w, &fill)?;
        }
    }
    device.weight_seal(w)?;
    Ok((w, buffer))
}

/// Views of some rows of a group's parts.
fn parts_of(desc: &WeightDesc<'_>, group: &[u8], row0: u64, rows: u64) -> Vec<TensorView> {
    let mut at = 0;
    let view = |part: &Part| {
        let before = if part.rows == Rows::Shared { 0 } else { part.bytes(row0).unwrap() };
        let start = &group[(at + before) as usize..];
        at += part.bytes(desc.n).unwrap();
        let spec = TensorSpec::new(part.dtype, &part.dims(rows));
        TensorView::contiguous(start.as_ptr() as u64, 0, &spec)
    };
    scheme::parts(desc).unwrap().iter().map(view).collect()
}

/// Prepares the op for exactly these tensors and weights, and launches it once.
pub(crate) fn launch<A: OpAttrs>(
    attrs: &A,
    tensors: &mut [Tensor],
    weights: &[Filled],
) -> Result<()> {
    let device = RefDevice::default();
    let slots = OpSchema::of(A::KIND).unwrap().slots;
    let views: Vec<TensorView> = tensors.iter_mut().map(Tensor::view).collect();
    let spec = |(i, v): (usize, &TensorView)| {
        let opaque = !v.is_none() && slots[i].layout == Layout::Opaque;
        if opaque { v.spec().opaque() } else { v.spec() }
    };
    let specs: Vec<TensorSpec> = views.iter().enumerate().map(spec).collect();
    let descs: Vec<WeightDesc<'static>> = weights.iter().map(|w| w.0).collect();
    let op = OpBuf::new(attrs, specs, descs);
    let kernel = device.prepare(&op.desc())?;
    let loaded = weights.iter().map(|w| load(&device, w).map(|(weight, _)| weight));
    let loaded: Vec<Weight> = loaded.collect::<Result<_>>()?;
    kernel.launch(
        Stream::NONE,
        &LaunchArgs {
            plan: Plan::NONE,
            workspace: 0,
            workspace_bytes: 0,
            tensors: RSlice::from_slice(&views),
            weights: RSlice::from_slice(&loaded),
            scalars: RSlice::EMPTY,
            host: RSlice::EMPTY,
        },
    )
}

/// Runs an op that must succeed.
pub(crate) fn run<A: OpAttrs>(attrs: &A, tensors: &mut [Tensor], weights: &[Filled]) {
    if let Err(error) = launch(attrs, tensors, weights) {
        panic!("{}: {error}", A::KIND);
    }
}

/// The message of an op that must fail.
pub(crate) fn refused<A: OpAttrs>(attrs: &A, tensors: &mut [Tensor], weights: &[Filled]) -> String {
    let kind: OpKind = A::KIND;
    match launch(attrs, tensors, weights) {
        Ok(()) => panic!("{kind} accepted what it should refuse"),
        Err(error) => error.to_string(),
    }
}

/// Whether equal within `1e-6` of the larger magnitude, NaN and infinities in the same places.
pub(crate) fn is_close(got: &[f64], want: &[f64]) -> bool {
    let near = |g: f64, w: f64| {
        g.to_bits() == w.to_bits()
            || (g.is_nan() && w.is_nan())
            || (g - w).abs() <= 1e-6 * w.abs().max(1e-3)
    };
    got.len() == want.len() && got.iter().zip(want).all(|(&g, &w)| near(g, w))
}

/// Asserts [`is_close`].
#[track_caller]
pub(crate) fn close(got: &[f64], want: &[f64]) {
    assert!(is_close(got, want), "got  {got:?}\nwant {want:?}");
}
