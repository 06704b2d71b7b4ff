//! A device that fails when it is told to.

use std::{sync::Mutex, time::Duration};

use halyard_core::{Backend, Device};
use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    Code, Error, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc, KvLayout, LaunchArgs, MemRef,
    OpDesc, OpKind, Options, PropKey, Result, Stream, Support, Weight, WeightDesc, WeightFill,
    WeightPlan,
};

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Fine,
    /// Attention gives an error.
    Fail,
    /// Attention panics.
    Panic,
    /// Attention does not come to an end while this is the mode.
    Hang,
    /// Attention ends the process.
    Die,
    /// Weights find no room.
    NoRoom,
}

/// The reference backend, whose devices do what [`set`] says. Each test has a `WHICH` of its own.
struct Faulty<const WHICH: usize>;
struct FaultyDevice<const WHICH: usize>(RefDevice);
struct FaultyKernel<const WHICH: usize>(Box<dyn Kernel>);

static MODES: [Mutex<Mode>; 8] = [const { Mutex::new(Mode::Fine) }; 8];

pub(crate) fn set<const WHICH: usize>(mode: Mode) {
    *MODES[WHICH].lock().expect("nobody panics with it") = mode;
}

fn mode<const WHICH: usize>() -> Mode {
    *MODES[WHICH].lock().expect("nobody panics with it")
}

impl<const WHICH: usize> halyard_sdk::Backend for Faulty<WHICH> {
    type Device = FaultyDevice<WHICH>;

    fn info(key: InfoKey) -> String {
        CpuRef::info(key)
    }
    fn probe() -> i32 {
        1
    }
    fn device_count() -> Result<u32> {
        Ok(1)
    }
    fn open(ordinal: u32, options: Options) -> Result<Self::Device> {
        Ok(FaultyDevice(CpuRef::open(ordinal, options)?))
    }
}

impl<const WHICH: usize> InlineDevice for FaultyDevice<WHICH> {
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
        let kernel = InlineDevice::prepare(&self.0, op)?;
        if op.kind == OpKind::PAGED_ATTENTION {
            return Ok(Box::new(FaultyKernel::<WHICH>(kernel)));
        }
        Ok(kernel)
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        InlineDevice::weight_plan(&self.0, w)
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        if mode::<WHICH>() == Mode::NoRoom {
            return Err(Error::new(Code::OUT_OF_MEMORY, "no room for a weight"));
        }
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
}

impl<const WHICH: usize> Kernel for FaultyKernel<WHICH> {
    fn flags(&self) -> u64 {
        self.0.flags()
    }
    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        while mode::<WHICH>() == Mode::Hang {
            std::thread::sleep(Duration::from_millis(1));
        }
        match mode::<WHICH>() {
            Mode::Fail => Err(Error::invalid("no attention today")),
            Mode::Panic => panic!("attention lost its head"),
            Mode::Die => std::process::abort(),
            _ => self.0.launch(stream, args),
        }
    }
}

pub(crate) fn faulty<const WHICH: usize>() -> Device {
    let module = halyard_sdk::module::<Faulty<WHICH>>();
    Backend::builtin(module).open(0, &[]).expect("opens")
}
