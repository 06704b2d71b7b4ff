//! A device with one stream, as small as tests want it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "each test and the benchmark use a part of it; numbers are small"
)]

use half::bf16;
use halyard_sim_cuda_exec::{
    Counters, Executor, Fault, Home, Image, Launch, LoadError, Memory, Order, Past, Profile,
};
use std::cell::Cell;
use std::sync::Arc;

pub(crate) struct Machine {
    pub(crate) executor: Executor,
    pub(crate) image: Image,
    op: Cell<u32>,
    pub(crate) seed: Cell<u64>,
}

/// One argument of a launch, as its bytes.
pub(crate) struct Arg(Vec<u8>);

macro_rules! args {
    ($($ty:ty)*) => { $(impl From<$ty> for Arg {
        fn from(value: $ty) -> Self { Self(value.to_le_bytes().to_vec()) }
    })* };
}
args!(u64 i64 u32 f32 f64 i32 u8);

impl From<[u8; 128]> for Arg {
    fn from(value: [u8; 128]) -> Self {
        Self(value.into())
    }
}

impl Machine {
    pub(crate) fn new(ptx: &str) -> Self {
        Self::with_helpers(ptx, 1)
    }

    pub(crate) fn with_helpers(ptx: &str, helpers: usize) -> Self {
        Self::load(ptx, "h100", helpers).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn load(ptx: &str, profile: &str, helpers: usize) -> Result<Self, LoadError> {
        let profile = Profile::named(profile).unwrap();
        let memory = Arc::new(Memory::new(vec![profile.memory_bytes]));
        let order = Order { op: 1, ..Order::default() };
        let image = Image::load(ptx, &memory, (0, profile.capability), &order)?;
        let (op, seed) = (Cell::new(1), Cell::new(1));
        Ok(Self { executor: Executor::new(memory, helpers), image, op, seed })
    }

    /// The same device, which compiles nothing.
    pub(crate) fn interpreting(self) -> Self {
        Self { executor: self.executor.interpreting(), ..self }
    }

    fn memory(&self) -> &Memory {
        self.executor.memory()
    }

    /// The next operation of the one stream: after all others.
    fn order(&self) -> Order {
        let mut past = Past::default();
        (1..=self.op.get()).for_each(|op| past.insert(op));
        self.op.set(self.op.get() + 1);
        Order { op: self.op.get(), past }
    }

    /// Memory that nothing wrote.
    pub(crate) fn space(&self, bytes: usize) -> u64 {
        self.memory().allocate(bytes, Home::Device(0)).unwrap()
    }

    pub(crate) fn free(&self, address: u64) {
        self.memory().free(address, &self.order()).unwrap();
    }

    pub(crate) fn buffer<T: Copy, const N: usize>(
        &self,
        values: &[T],
        bytes: impl Fn(T) -> [u8; N],
    ) -> u64 {
        let data: Vec<u8> = values.iter().flat_map(|value| bytes(*value)).collect();
        let address = self.space(data.len());
        self.memory().write_bytes(address, &data, &self.order()).unwrap();
        address
    }

    pub(crate) fn f32s(&self, values: &[f32]) -> u64 {
        self.buffer(values, f32::to_le_bytes)
    }

    pub(crate) fn u32s(&self, values: &[u32]) -> u64 {
        self.buffer(values, u32::to_le_bytes)
    }

    pub(crate) fn read<T, const N: usize>(
        &self,
        address: u64,
        count: usize,
        value: impl Fn([u8; N]) -> T,
    ) -> Vec<T> {
        let mut data = vec![0; count * N];
        self.memory().read_bytes(address, &mut data, &self.order()).unwrap();
        data.chunks_exact(N).map(|bytes| value(bytes.try_into().unwrap())).collect()
    }

    pub(crate) fn launch(
        &self,
        kernel: &str,
        (grid, block, shared_bytes): ([u32; 3], [u32; 3], u32),
        args: &[Arg],
    ) -> Result<Counters, Box<Fault>> {
        let kernel = self.image.kernel(kernel).expect("the kernel is there").clone();
        assert_eq!(args.len(), kernel.params().len(), "arguments of {}", kernel.name());
        let mut params = vec![0; kernel.param_bytes()];
        for (arg, (at, bytes)) in args.iter().zip(kernel.params()) {
            params[*at..at + bytes].copy_from_slice(&arg.0);
        }
        let seed = self.seed.get();
        let order = self.order();
        let launch =
            Launch { kernel, grid, block, shared_bytes, params, device: 0, peers: 0, order, seed };
        launch.check(Profile::named("h100").unwrap(), 1 << 20).unwrap();
        self.executor.run(launch)
    }
}

impl Arg {
    /// Appends words: a struct by value.
    pub(crate) fn extend(&mut self, words: impl IntoIterator<Item = u32>) {
        self.0.extend(words.into_iter().flat_map(u32::to_le_bytes));
    }
}

/// Words that the seed decides.
pub(crate) fn words(count: usize, seed: u64) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    (0..count).map(move |_| next())
}

/// Numbers from -1 to 1 that the seed decides.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    words(count, seed).map(|word| (word >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

pub(crate) fn halves(count: usize, seed: u64) -> Vec<bf16> {
    numbers(count, seed).into_iter().map(bf16::from_f32).collect()
}
