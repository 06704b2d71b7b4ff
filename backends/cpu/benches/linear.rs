//! Speed of LINEAR at the shapes of a small real model (SmolLM2-135M: 30 layers, Q4_1, a Q8_0 output
//! layer), through the same traits that a host calls.
//!
//! ```text
//! cargo bench -p halyard-cpu --bench linear [-- [SCHEME] [--threads N] [--isa NAME]]
//! ```
//!
//! Every layer has its own weights, so that decoding streams them from memory as a model does. The best
//! and the middle of several passes are shown; only the best means much on a machine that others use.
#![expect(clippy::print_stdout, reason = "a program that prints a table")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "measurements for people, of sizes that fit any integer"
)]

use std::time::{Duration, Instant};

use halyard_cpu::Cpu;
use halyard_sdk::{
    AllocReq, Backend, Buffer, DType, Device, Kernel, LaunchArgs, MemRef, Options, Plan, Scheme,
    Stream, TensorSpec, TensorView, Weight, WeightDesc, WeightFill,
    abi::{
        RSlice,
        ops::{OpBuf, attrs},
        scheme::{self, Part},
        types::mem,
    },
};

/// A matrix: rows, columns, how many there are.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    n: u64,
    k: u64,
    copies: usize,
}

const MODEL: [Shape; 5] = [
    Shape { name: "qkv", n: 960, k: 576, copies: 30 },
    Shape { name: "o", n: 576, k: 576, copies: 30 },
    Shape { name: "gate_up", n: 3072, k: 576, copies: 30 },
    Shape { name: "down", n: 576, k: 1536, copies: 30 },
    Shape { name: "lm_head", n: 49152, k: 576, copies: 1 },
];

struct Settings {
    scheme: Option<Scheme>,
    threads: String,
    isa: Option<String>,
    passes: usize,
}

fn settings() -> Settings {
    let mut all = Settings { scheme: None, threads: String::new(), isa: None, passes: 1 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo says so when it is to measure; else one pass shows that this still runs.
            "--bench" => all.passes = 9,
            "--threads" => all.threads = args.next().expect("a number after --threads"),
            "--isa" => all.isa = args.next(),
            name => all.scheme = Some(Scheme::from_name(name).expect("the name of a scheme")),
        }
    }
    all
}

fn main() {
    let settings = settings();
    let mut options = Vec::new();
    if !settings.threads.is_empty() {
        options.push(("threads".to_owned(), settings.threads.clone()));
    }
    if let Some(isa) = &settings.isa {
        options.push(("isa".to_owned(), isa.clone()));
    }
    let device = Cpu::open(0, Options::new(options)).expect("the options are right");
    println!(
        "{} ({}), {} threads",
        device.info(halyard_sdk::InfoKey::NAME),
        device.info(halyard_sdk::InfoKey::ARCH),
        device.property(halyard_sdk::PropKey::COMPUTE_UNITS).unwrap_or(0),
    );
    let bench = Bench { device: &device, passes: settings.passes };
    match settings.scheme {
        Some(scheme) => bench.model(scheme, scheme),
        None => {
            bench.model(Scheme::GGUF_Q4_1, Scheme::GGUF_Q8_0);
            bench.model(Scheme::DENSE, Scheme::DENSE);
        }
    }
}

struct Bench<'a, D> {
    device: &'a D,
    passes: usize,
}

/// The best and the middle time of one launch.
#[derive(Clone, Copy)]
struct Times {
    best: Duration,
    middle: Duration,
}

impl<D: Device> Bench<'_, D> {
    fn model(&self, scheme: Scheme, output: Scheme) {
        println!("\n{scheme} layers, {output} output layer");
        println!(
            "{:<8} {:>4} {:>12} {:>10} {:>10} {:>8} {:>9}",
            "matrix", "T", "N x K", "best us", "middle us", "GB/s", "GFLOP/s"
        );
        for tokens in [1, 8, 64, 512] {
            let mut total = 0.0;
            for shape in MODEL {
                let last = shape.copies == 1;
                let scheme = if last { output } else { scheme };
                // K-quants come in blocks of 256: the nearest width that has whole ones.
                let k = if k_quant(scheme) { shape.k.next_multiple_of(256) } else { shape.k };
                // Only the last token of a prompt, or each of several sequences, needs logits.
                let rows = if last && tokens > 64 { 1 } else { tokens };
                total += self.matrix(Shape { k, ..shape }, scheme, rows);
            }
            println!("T = {tokens}: {:.0} tokens/s from these alone", tokens as f64 / total);
        }
    }

    /// Measures one of a model's matrices; returns the best time of all its copies in seconds.
    fn matrix(&self, shape: Shape, scheme: Scheme, tokens: usize) -> f64 {
        let Shape { name, n, k, copies } = shape;
        let weights: Vec<_> = (0..copies).map(|i| self.weight(scheme, n, k, i)).collect();
        let launch = Launch::new(self.device, scheme, n, k, tokens);
        let mut times = Vec::new();
        // Long launches need fewer repetitions for the same certainty.
        let passes = if tokens > 64 { self.passes.div_ceil(3) } else { self.passes };
        for _ in 0..passes {
            for (weight, _) in &weights {
                let start = Instant::now();
                launch.run(*weight);
                times.push(start.elapsed());
            }
        }
        times.sort_unstable();
        let times = Times { best: times[0], middle: times[times.len() / 2] };
        let bytes = weights[0].1.bytes as f64;
        let flop = 2.0 * n as f64 * k as f64 * tokens as f64;
        let best = times.best.as_secs_f64();
        println!(
            "{name:<8} {tokens:>4} {:>12} {:>10.1} {:>10.1} {:>8.1} {:>9.1}",
            format!("{n} x {k}"),
            best * 1e6,
            times.middle.as_secs_f64() * 1e6,
            bytes / best / 1e9,
            flop / best / 1e9
        );
        for (weight, buffer) in weights {
            self.device.weight_destroy(weight).expect("it was created");
            self.device.free(buffer).expect("it was allocated");
        }
        best * copies as f64
    }

    /// A weight of arbitrary numbers.
    fn weight(&self, scheme: Scheme, n: u64, k: u64, seed: usize) -> (Weight, Buffer) {
        let desc = describe(scheme, n, k);
        let plan = self.device.weight_plan(&desc).expect("the shape is right");
        let buffer = self.alloc(plan.bytes);
        let place = MemRef { base: buffer.base, offset: 0, kind: mem::DEVICE, device: 0 };
        let weight = self.device.weight_create(&desc, &place).expect("the memory is there");
        let parts = scheme::parts(&desc).expect("the shape is right");
        let fill = |part: &Part| vec![(seed & 0x3f) as u8; part.bytes(n).unwrap_or(0) as usize];
        let data: Vec<_> = parts.iter().map(fill).collect();
        let view = |(part, data): (&Part, &Vec<u8>)| {
            let spec = TensorSpec::new(part.dtype, &part.dims(n));
            TensorView::contiguous(data.as_ptr() as u64, 0, &spec)
        };
        let parts: Vec<_> = parts.iter().zip(&data).map(view).collect();
        let parts = RSlice::from_slice(&parts);
        let fill = WeightFill { group: 0, flags: 0, row0: 0, rows: n, parts };
        self.device.weight_fill(Stream::NONE, weight, &fill).expect("the rows are right");
        self.device.weight_seal(Stream::NONE, weight).expect("all rows have come");
        (weight, buffer)
    }

    fn alloc(&self, bytes: u64) -> Buffer {
        let request = AllocReq { bytes, align: 256, kind: mem::DEVICE, flags: 0 };
        self.device.alloc(&request).expect("there is memory")
    }
}

/// A linear weight of a scheme, with groups of 128 columns where it has a choice.
fn describe(scheme: Scheme, n: u64, k: u64) -> WeightDesc<'static> {
    let (dtype, group_size) = match scheme {
        Scheme::DENSE => (DType::BF16, 0),
        Scheme::INT4_GROUP => (DType::F16, if k.is_multiple_of(128) { 128 } else { 64 }),
        Scheme::FP8_BLOCK => (DType::F32, 128),
        Scheme::FP8_CHANNEL | Scheme::INT8_CHANNEL => (DType::F32, 0),
        _ => (DType::NONE, 0),
    };
    WeightDesc { group_size, ..WeightDesc::linear(scheme, dtype, n, k) }
}

fn k_quant(scheme: Scheme) -> bool {
    scheme.gguf_block().is_some_and(|(elements, _)| elements == 256)
}

/// A prepared kernel with its arguments.
struct Launch {
    kernel: Box<dyn Kernel>,
    views: [TensorView; 3],
    workspace: Vec<u64>,
    _memory: [Vec<u32>; 2],
}

impl Launch {
    fn new(device: &impl Device, scheme: Scheme, n: u64, k: u64, tokens: usize) -> Self {
        // Quantised layers take f32, dense ones of a bf16 model bf16.
        let dense = scheme == Scheme::DENSE;
        let dtype = if dense { DType::BF16 } else { DType::F32 };
        let weight = describe(scheme, n, k);
        let spec = |t: i64, cols: u64| TensorSpec::new(dtype, &[t, cols.cast_signed()]);
        let op = OpBuf::new(
            &attrs::Linear::default(),
            [spec(-1, k), TensorSpec::NONE, spec(-1, n)],
            [weight],
        );
        let kernel = device.prepare(&op.desc()).expect("the op is supported");
        let t = tokens as i64;
        let shapes = [spec(t, k), TensorSpec::NONE, spec(t, n)];
        let x = vec![0x3f80_3f80; tokens * k as usize];
        let y = vec![0; tokens * n as usize];
        let views = [
            TensorView::contiguous(x.as_ptr() as u64, 0, &shapes[0]),
            TensorView::NONE,
            TensorView::contiguous(y.as_ptr() as u64, 0, &shapes[2]),
        ];
        let workspace = vec![0; kernel.workspace_bytes(&shapes) as usize / 8 + 16];
        Self { kernel, views, workspace, _memory: [x, y] }
    }

    fn run(&self, weight: Weight) {
        let start = self.workspace.as_ptr() as u64;
        let workspace = start.next_multiple_of(64);
        let weights = [weight];
        let args = LaunchArgs {
            plan: Plan::NONE,
            workspace,
            workspace_bytes: self.workspace.len() as u64 * 8 - (workspace - start),
            tensors: RSlice::from_slice(&self.views),
            weights: RSlice::from_slice(&weights),
            scalars: RSlice::EMPTY,
            host: RSlice::EMPTY,
        };
        self.kernel.launch(Stream::NONE, &args).expect("the arguments are right");
    }
}
