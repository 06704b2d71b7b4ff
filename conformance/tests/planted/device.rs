//! The reference backend with a hole in it.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failing helper fails the test"
)]

use std::{
    collections::HashMap,
    marker::PhantomData,
    sync::{Arc, Mutex},
};

use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    Attr, Backend, CopyReq, Device as _, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc,
    KvLayout, LaunchArgs, MemRef, OpDesc, OpKind, Options, PropKey, Result, Scheme, Stream,
    Support, TensorSpec, TensorView, Weight, WeightDesc, WeightFill, WeightPlan,
    abi::{RSlice, types::mem},
};

/// What is wrong with one op.
pub(crate) trait Bug: Send + Sync + 'static {
    /// The op.
    const KIND: OpKind;
    /// Scratch that the kernel asks for.
    const SCRATCH: u64 = 0;

    /// Changes what is prepared.
    fn descriptor(_attrs: &mut Vec<Attr>, _tensors: &mut Vec<TensorSpec>) {}

    /// Changes what is launched, before or after.
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        kernel.run(args)
    }

    /// Changes the bytes of a weight's rows.
    fn weight(_scheme: Scheme, _bytes: &mut [u8]) {}
}

/// The kernel that is right, and the memory it works on.
pub(crate) struct Inner {
    device: Arc<RefDevice>,
    kernel: Box<dyn Kernel>,
}

impl Inner {
    pub(crate) fn run(&self, args: &LaunchArgs<'_>) -> Result<()> {
        self.kernel.launch(Stream::NONE, args)
    }

    /// Runs with other tensors.
    pub(crate) fn run_with(&self, args: &LaunchArgs<'_>, tensors: &[TensorView]) -> Result<()> {
        self.run(&LaunchArgs { tensors: RSlice::from_slice(tensors), ..*args })
    }

    /// Bytes at an address.
    pub(crate) fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0u8; bytes];
        copy(&self.device, data.as_mut_ptr() as u64, address, bytes);
        data
    }

    /// Puts bytes at an address.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        copy(&self.device, address, bytes.as_ptr() as u64, bytes.len());
    }

    /// 32-bit integers of a packed tensor.
    pub(crate) fn ints(&self, view: &TensorView) -> Vec<i32> {
        let count = view.elements().unwrap() as usize;
        let bytes = self.read(view.data + view.byte_offset, 4 * count);
        bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }
}

/// A copy within the host's memory, through the device's own method.
fn copy(device: &RefDevice, to: u64, from: u64, bytes: usize) {
    let place = |base| MemRef { base, offset: 0, kind: mem::HOST, device: 0 };
    let n = bytes as u64;
    let (dst, src) = (place(to), place(from));
    let req = CopyReq { dst, src, row_bytes: n, rows: 1, dst_pitch: n, src_pitch: n };
    device.copy(Stream::NONE, &req).unwrap();
}

/// The same view of other memory.
pub(crate) fn moved(view: &TensorView, memory: &[impl Copy]) -> TensorView {
    TensorView::contiguous(memory.as_ptr() as u64, 0, &view.spec())
}

/// A backend with a bug.
pub(crate) struct Planted<B>(PhantomData<B>);

pub(crate) struct PlantedDevice<B> {
    inner: Arc<RefDevice>,
    /// By weight.
    schemes: Mutex<HashMap<u64, Scheme>>,
    bug: PhantomData<B>,
}

impl<B: Bug> Backend for Planted<B> {
    type Device = PlantedDevice<B>;

    fn info(key: InfoKey) -> String {
        if key == InfoKey::ID { "planted".into() } else { CpuRef::info(key) }
    }
    fn probe() -> i32 {
        1
    }
    fn device_count() -> Result<u32> {
        Ok(1)
    }
    fn open(_ordinal: u32, _options: Options) -> Result<PlantedDevice<B>> {
        Ok(PlantedDevice { inner: Arc::default(), schemes: Mutex::default(), bug: PhantomData })
    }
}

impl<B: Bug> InlineDevice for PlantedDevice<B> {
    fn memory(&self) -> &HostMemory {
        self.inner.memory()
    }
    fn property(&self, key: PropKey) -> Option<u64> {
        InlineDevice::property(&*self.inner, key)
    }
    fn info(&self, key: InfoKey) -> String {
        InlineDevice::info(&*self.inner, key)
    }
    fn support(&self, op: &OpDesc<'_>) -> Support {
        InlineDevice::support(&*self.inner, op)
    }
    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        if op.kind != B::KIND {
            return InlineDevice::prepare(&*self.inner, op);
        }
        let (mut attrs, mut tensors) = (op.attrs.to_vec(), op.tensors.to_vec());
        B::descriptor(&mut attrs, &mut tensors);
        let op = OpDesc {
            attrs: RSlice::from_slice(&attrs),
            tensors: RSlice::from_slice(&tensors),
            ..*op
        };
        let kernel = InlineDevice::prepare(&*self.inner, &op)?;
        let inner = Inner { device: Arc::clone(&self.inner), kernel };
        Ok(Box::new(PlantedKernel::<B> { inner, bug: PhantomData }))
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        InlineDevice::weight_plan(&*self.inner, w)
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        let weight = InlineDevice::weight_create(&*self.inner, w, dst)?;
        self.schemes.lock().unwrap().insert(weight.0, w.scheme);
        Ok(weight)
    }
    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        let mut parts = f.parts.to_vec();
        let part = parts[0];
        let mut data = vec![0u8; part.extent_bytes().unwrap() as usize];
        let from = part.data + part.byte_offset;
        copy(&self.inner, data.as_mut_ptr() as u64, from, data.len());
        B::weight(self.schemes.lock().unwrap()[&w.0], &mut data);
        parts[0] = TensorView { data: data.as_ptr() as u64, byte_offset: 0, ..part };
        let fill = WeightFill { parts: RSlice::from_slice(&parts), ..*f };
        InlineDevice::weight_fill(&*self.inner, w, &fill)
    }
    fn weight_seal(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_seal(&*self.inner, w)
    }
    fn weight_destroy(&self, w: Weight) -> Result<()> {
        InlineDevice::weight_destroy(&*self.inner, w)
    }
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        InlineDevice::kv_layout(&*self.inner, kv)
    }
}

struct PlantedKernel<B> {
    inner: Inner,
    bug: PhantomData<B>,
}

impl<B: Bug> Kernel for PlantedKernel<B> {
    fn flags(&self) -> u64 {
        self.inner.kernel.flags()
    }
    fn workspace_bytes(&self, _shapes: &[TensorSpec]) -> u64 {
        B::SCRATCH
    }
    fn launch(&self, _stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        B::launch(&self.inner, args)
    }
}
