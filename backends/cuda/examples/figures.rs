//! What the kernels do, counted by the software GPU: `cargo xtask cuda-figures` runs this with its libraries in place.
//!
//! Each line is one launch. Kernels are held to what their name's first word says: `gemv` and `decode` to the bytes that they must
//! move, the others to tensor cores in their main loop and to few bank conflicts.
#![expect(clippy::print_stdout, reason = "a report on the terminal")]

use std::{collections::BTreeMap, env, ffi::c_char, path::Path, process::ExitCode};

use halyard_conformance::{Counted, Counter, counted};
use halyard_core::{
    Backend, Device,
    loader::{SearchPath, Trust, discover, load},
};
use libloading::Library;
use serde::Deserialize;

/// Most bytes that a decode's kernel may move, of those that it must.
const MOST_BYTES: f64 = 1.05;
/// Most passes that an access to shared memory may take, of those that it must.
const MOST_PASSES: u64 = 2;

/// Devices whose least time is printed.
const DEVICES: [&str; 5] = ["a100-80g", "a100-40g", "h100", "l20", "rtx4090"];

/// What the software GPU counted of one kernel.
#[derive(Clone, Debug, Deserialize)]
struct Kernel {
    tensor_ops: u64,
    tensor_ops_fp8: u64,
    tensor_ops_int8: u64,
    read_sectors: u64,
    written_sectors: u64,
    unique_read_sectors: u64,
    unique_written_sectors: u64,
    shared_passes: u64,
    shared_ideal_passes: u64,
    worst_bank_conflict: u64,
    /// By the device's name.
    roofline_seconds: BTreeMap<String, f64>,
}

/// The software GPU's own functions.
struct Simulator(Library);

impl Simulator {
    fn open() -> Result<Self, String> {
        // SAFETY: whatever has that name is a driver, whose loading does nothing by itself.
        let library = unsafe { Library::new("libcuda.so.1") };
        library.map(Self).map_err(|error| error.to_string())
    }

    fn reset(&self) -> Result<(), String> {
        type Reset = unsafe extern "C" fn() -> u32;
        // SAFETY: the software GPU has it with this signature; another driver has no such symbol.
        let reset = unsafe { self.0.get::<Reset>(b"halyard_sim_cuda_counters_reset") };
        let reset = reset.map_err(|_| "libcuda.so.1 is not the software GPU".to_owned())?;
        // SAFETY: it takes nothing.
        match unsafe { reset() } {
            0 => Ok(()),
            code => Err(format!("the counters cannot be reset: error {code}")),
        }
    }

    fn kernels(&self) -> Result<BTreeMap<String, Kernel>, String> {
        type Counters = unsafe extern "C" fn(*mut c_char, usize, *mut usize) -> u32;
        // SAFETY: the software GPU has it with this signature; another driver has no such symbol.
        let counters = unsafe { self.0.get::<Counters>(b"halyard_sim_cuda_counters") };
        let counters = counters.map_err(|_| "libcuda.so.1 is not the software GPU".to_owned())?;
        let mut text = vec![0u8; 1 << 16];
        let mut bytes = 0;
        // SAFETY: there is room for as many bytes as it is told, and for the count.
        let code = unsafe { counters(text.as_mut_ptr().cast(), text.len(), &raw mut bytes) };
        if code != 0 || bytes >= text.len() {
            return Err(format!("the counters cannot be read: error {code}, {bytes} bytes"));
        }
        serde_json::from_slice(&text[..bytes]).map_err(|error| error.to_string())
    }
}

/// Prints a line a launch.
struct Table {
    simulator: Simulator,
    /// Of the launch that has begun.
    reset: Result<(), String>,
    broken: usize,
}

impl Counter for Table {
    fn begin(&mut self) {
        self.reset = self.simulator.reset();
    }

    fn end(&mut self, kernel: &Counted, result: Result<(), String>) {
        let counted = result.and_then(|()| self.reset.clone());
        let line = counted.and_then(|()| self.simulator.kernels());
        match line.and_then(|kernels| self.line(kernel, &kernels)) {
            Ok(line) => println!("{line}"),
            Err(why) => {
                self.broken += 1;
                println!("{:<46}  {why}", kernel.name);
            }
        }
    }
}

impl Table {
    fn head(&self) {
        let columns = ["DRAM", "read", "written", "asked", "tensor", "passes", "worst"];
        let columns = columns.map(|column| format!(" {column:>7}")).concat();
        let roofs: String = DEVICES.iter().map(|name| format!(" {name:>9}")).collect();
        println!("{:<46}{columns}{roofs}  kernels", "launch");
    }

    fn line(
        &mut self,
        kernel: &Counted,
        kernels: &BTreeMap<String, Kernel>,
    ) -> Result<String, String> {
        if kernels.is_empty() {
            return Err("no kernel ran".into());
        }
        let sum = |of: fn(&Kernel) -> u64| kernels.values().map(of).sum::<u64>();
        let of_least = |sectors: u64| sectors as f64 * 32.0 / kernel.bytes as f64;
        let read = of_least(sum(|k| k.unique_read_sectors));
        let written = of_least(sum(|k| k.unique_written_sectors));
        let moved = read + written;
        let asked = of_least(sum(|k| k.read_sectors + k.written_sectors));
        let tensor = sum(|k| k.tensor_ops + k.tensor_ops_fp8 + k.tensor_ops_int8);
        let tensor = tensor as f64 / kernel.flops.max(1) as f64;
        let passes = sum(|k| k.shared_passes) as f64 / sum(|k| k.shared_ideal_passes).max(1) as f64;
        let worst = kernels.values().map(|k| k.worst_bank_conflict).max().unwrap_or(0);
        let figures = Figures { moved, tensor, worst };
        let broken = figures.broken(kernel);
        self.broken += usize::from(broken.is_some());
        let roofs = DEVICES.iter().map(|device| {
            let seconds = kernels.values().map(|k| k.roofline_seconds.get(*device).copied());
            let seconds: Option<f64> = seconds.sum();
            seconds.map_or_else(|| format!(" {:>9}", "-"), |s| format!(" {:>6.2} µs", s * 1e6))
        });
        let names: Vec<&str> = kernels.keys().map(String::as_str).collect();
        Ok(format!(
            "{:<46} {moved:>7.3} {read:>7.3} {written:>7.3} {asked:>7.3} {:>6.0}% {passes:>7.2} {worst:>7}{}  {}{}",
            kernel.name,
            100.0 * tensor.min(1.0),
            roofs.collect::<String>(),
            names.join(" + "),
            broken.map_or_else(String::new, |why| format!("  BROKEN: {why}")),
        ))
    }
}

/// What kernels are held to.
struct Figures {
    /// Bytes that cross the device's memory, of those that must.
    moved: f64,
    /// Operations of tensor cores, of those of the products of matrices.
    tensor: f64,
    /// Passes of the worst access to shared memory.
    worst: u64,
}

impl Figures {
    fn broken(&self, kernel: &Counted) -> Option<String> {
        let kind = kernel.name.split(['_', '/']).next().unwrap_or_default();
        let conflicts = || {
            let most = MOST_PASSES;
            (self.worst > most).then(|| format!("bank conflicts of at most {most} ways"))
        };
        match kind {
            "gemv" | "decode" => (self.moved > MOST_BYTES)
                .then(|| format!("at most {MOST_BYTES} of the bytes that it must move"))
                .or_else(conflicts),
            "gemm" | "flash" | "grouped" => (self.tensor < 1.0)
                .then(|| "all products of its main loop on tensor cores".to_owned())
                .or_else(conflicts),
            _ => None,
        }
    }
}

fn open() -> Result<(Device, Simulator), String> {
    let found = discover(&SearchPath::standard(&[])).map_err(|error| error.to_string())?;
    let named =
        |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().contains("cuda"));
    let cuda = found.iter().find(|library| named(&library.path));
    let cuda = cuda.ok_or("HALYARD_BACKEND_PATH has no CUDA backend")?;
    let backend: Backend = load(cuda, &Trust { insecure: true, ..Trust::default() })
        .map_err(|error| error.to_string())?;
    let device = backend.open(0, &[]).map_err(|error| error.to_string())?;
    Ok((device, Simulator::open()?))
}

fn main() -> ExitCode {
    let (device, simulator) = match open() {
        Ok(opened) => opened,
        Err(why) => {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let mut table = Table { simulator, reset: Ok(()), broken: 0 };
    table.head();
    let part = env::args().nth(1).unwrap_or_default();
    if let Err(error) = counted(&device, &part, &mut table) {
        println!("{error}");
        return ExitCode::FAILURE;
    }
    if table.broken > 0 {
        println!("{} launches do not keep what they are held to", table.broken);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
