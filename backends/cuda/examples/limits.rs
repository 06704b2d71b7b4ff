//! What a CUDA device can do at best, as JSON: the bandwidth of its memory as its attributes have it and as a copy has it, and products of
//! matrices by cuBLASLt where that is installed. `cargo xtask hw-check` puts the backend's kernels beside it.
//!
//! An argument is the bytes of the copy. Nothing here is of the backend.
#![expect(clippy::print_stdout, reason = "a report on the terminal")]

use std::{
    env,
    error::Error,
    ffi::{c_char, c_int, c_void},
    process::ExitCode,
    ptr,
    time::{Duration, Instant},
};

use libloading::Library;
use serde::Serialize;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Bytes of a copy: beyond any cache.
const COPY_BYTES: usize = 1 << 30;
/// Measurements, of which the median counts.
const SAMPLES: usize = 7;
/// What a measurement should last at least.
const AT_LEAST: Duration = Duration::from_millis(5);

/// Tokens, outputs and inputs of the dense linear layers of `conformance/cases/perf.toml`.
const GEMMS: [[usize; 3]; 5] =
    [[1, 6144, 4096], [16, 6144, 4096], [512, 6144, 4096], [1, 4096, 14336], [512, 4096, 14336]];

/// Scratch memory that cuBLASLt may use.
const WORKSPACE_BYTES: usize = 32 << 20;

#[derive(Serialize)]
struct Limits {
    name: String,
    /// Of the driver: 12020 is CUDA 12.2.
    cuda_version: c_int,
    processors: c_int,
    clock_khz: c_int,
    /// Twice the memory's clock times the width of its bus; `None` where the driver does not tell.
    peak_bytes_per_s: Option<f64>,
    /// Read and written.
    copy_bytes_per_s: f64,
    cublaslt: CublasLt,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum CublasLt {
    Missing(String),
    Measured { version: usize, gemms: Vec<Gemm> },
}

/// `y[T, N] = x[T, K] · w[N, K]ᵀ` of bf16, sums in f32.
#[derive(Serialize)]
struct Gemm {
    tokens: usize,
    outputs: usize,
    inputs: usize,
    micros: f64,
}

/// Calls a function of a C library that gives 0 if all is well.
macro_rules! call {
    ($library:expr, $name:literal, $($arg:expr => $type:ty),*) => {{
        type Function = unsafe extern "C" fn($($type),*) -> c_int;
        // SAFETY: the type is the function's in the library's documentation.
        let function = unsafe { $library.get::<Function>($name.as_bytes()) }?;
        // SAFETY: pointers are of values that outlive the call, addresses of memory that was allocated with the size that is used.
        match unsafe { function($($arg),*) } {
            0 => Ok::<(), Box<dyn Error>>(()),
            code => Err(format!("{} gave {code}", $name).into()),
        }
    }};
}

fn open(name: &str) -> Fallible<Library> {
    // SAFETY: whatever has that name is the vendor's library, or stands in for it; loading it does nothing by itself.
    Ok(unsafe { Library::new(name) }?)
}

/// The first device, its context current on this thread.
struct Device {
    driver: Library,
    number: c_int,
}

impl Device {
    fn open() -> Fallible<Self> {
        let driver = open("libcuda.so.1")?;
        let (mut number, mut context) = (0, ptr::null_mut::<c_void>());
        call!(driver, "cuInit", 0 => u32)?;
        call!(driver, "cuDeviceGet", &raw mut number => *mut c_int, 0 => c_int)?;
        call!(driver, "cuDevicePrimaryCtxRetain", &raw mut context => *mut *mut c_void, number => c_int)?;
        call!(driver, "cuCtxSetCurrent", context => *mut c_void)?;
        Ok(Self { driver, number })
    }

    fn name(&self) -> Fallible<String> {
        let mut text = [0u8; 256];
        call!(self.driver, "cuDeviceGetName", text.as_mut_ptr().cast() => *mut c_char, 256 => c_int, self.number => c_int)?;
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    fn attribute(&self, attribute: c_int) -> Fallible<c_int> {
        let mut value = 0;
        call!(self.driver, "cuDeviceGetAttribute", &raw mut value => *mut c_int, attribute => c_int, self.number => c_int)?;
        Ok(value)
    }

    fn cuda_version(&self) -> Fallible<c_int> {
        let mut version = 0;
        call!(self.driver, "cuDriverGetVersion", &raw mut version => *mut c_int)?;
        Ok(version)
    }

    /// Zeros, until the process ends.
    fn memory(&self, bytes: usize) -> Fallible<u64> {
        let mut address = 0;
        call!(self.driver, "cuMemAlloc_v2", &raw mut address => *mut u64, bytes => usize)?;
        call!(self.driver, "cuMemsetD8_v2", address => u64, 0 => u8, bytes => usize)?;
        Ok(address)
    }

    /// Numbers of bf16 between -2 and 2, until the process ends: zeros would cost less power than numbers do.
    fn numbers(&self, count: usize) -> Fallible<u64> {
        let mut state = 1u32;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // A sign, an exponent of at most 0, a mantissa.
            let [low, high, ..] = (state >> 16 & 0x807f | 0x3f00 | state & 0x80).to_le_bytes();
            [low, high]
        };
        let numbers: Vec<[u8; 2]> = (0..count).map(|_| draw()).collect();
        let address = self.memory(2 * count)?;
        call!(self.driver, "cuMemcpyHtoD_v2", address => u64, numbers.as_ptr() => *const [u8; 2], 2 * count => usize)?;
        Ok(address)
    }

    fn wait(&self) -> Fallible<()> {
        call!(self.driver, "cuCtxSynchronize",)
    }

    /// Seconds of what `enqueue` enqueues: the median of some measurements.
    fn time(&self, mut enqueue: impl FnMut() -> Fallible<()>) -> Fallible<f64> {
        let mut several = |count: u32| -> Fallible<Duration> {
            self.wait()?;
            let start = Instant::now();
            for _ in 0..count {
                enqueue()?;
            }
            self.wait()?;
            Ok(start.elapsed() / count)
        };
        // The first loads what it needs.
        several(1)?;
        let once = several(1)?.as_nanos().max(1);
        let count = u32::try_from(AT_LEAST.as_nanos() / once + 1)?;
        let mut times = (0..SAMPLES).map(|_| several(count)).collect::<Fallible<Vec<_>>>()?;
        times.sort_unstable();
        Ok(times[SAMPLES / 2].as_secs_f64())
    }

    fn copy(&self, bytes: usize) -> Fallible<f64> {
        let (from, to) = (self.memory(bytes)?, self.memory(bytes)?);
        let stream = ptr::null_mut::<c_void>();
        let seconds = self.time(|| {
            call!(self.driver, "cuMemcpyDtoDAsync_v2", to => u64, from => u64, bytes => usize, stream => *mut c_void)
        })?;
        Ok(2.0 * bytes as f64 / seconds)
    }

    fn peak(&self) -> Option<f64> {
        // Kilohertz and bits; the memory gives data twice a clock.
        let [clock, bits] = [36, 37].map(|attribute| self.attribute(attribute).unwrap_or(0));
        let peak = 2.0 * f64::from(clock) * 1e3 * f64::from(bits) / 8.0;
        (peak > 0.0).then_some(peak)
    }
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Default)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

const CUDA_R_16BF: c_int = 14;
const CUDA_R_32F: c_int = 0;
const CUBLAS_COMPUTE_32F: c_int = 68;
const CUBLASLT_MATMUL_DESC_TRANSA: c_int = 3;
const CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: c_int = 1;

struct Blas<'a> {
    device: &'a Device,
    library: Library,
    handle: *mut c_void,
}

impl<'a> Blas<'a> {
    fn open(device: &'a Device) -> Fallible<Self> {
        let names = ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];
        let library = names.iter().find_map(|name| open(name).ok());
        let library = library.ok_or("libcublasLt.so is not on the library path")?;
        let mut handle = ptr::null_mut();
        call!(library, "cublasLtCreate", &raw mut handle => *mut *mut c_void)?;
        Ok(Self { device, library, handle })
    }

    fn version(&self) -> Fallible<usize> {
        // SAFETY: it takes nothing and gives a number.
        let version =
            unsafe { self.library.get::<unsafe extern "C" fn() -> usize>(b"cublasLtGetVersion") }?;
        // SAFETY: as above.
        Ok(unsafe { version() })
    }

    /// A matrix of bf16 whose columns lie one after the other.
    fn matrix(&self, rows: usize, columns: usize) -> Fallible<*mut c_void> {
        let mut layout = ptr::null_mut();
        call!(self.library, "cublasLtMatrixLayoutCreate", &raw mut layout => *mut *mut c_void, CUDA_R_16BF => c_int,
            rows as u64 => u64, columns as u64 => u64, rows as i64 => i64)?;
        Ok(layout)
    }

    /// A description of the product with the first operand transposed.
    fn product(&self) -> Fallible<*mut c_void> {
        let (mut product, transposed) = (ptr::null_mut(), 1i32);
        call!(self.library, "cublasLtMatmulDescCreate", &raw mut product => *mut *mut c_void, CUBLAS_COMPUTE_32F => c_int, CUDA_R_32F => c_int)?;
        call!(self.library, "cublasLtMatmulDescSetAttribute", product => *mut c_void, CUBLASLT_MATMUL_DESC_TRANSA => c_int,
            (&raw const transposed).cast() => *const c_void, size_of::<i32>() => usize)?;
        Ok(product)
    }

    fn preference(&self) -> Fallible<*mut c_void> {
        let (mut preference, bytes) = (ptr::null_mut(), WORKSPACE_BYTES as u64);
        call!(self.library, "cublasLtMatmulPreferenceCreate", &raw mut preference => *mut *mut c_void)?;
        call!(self.library, "cublasLtMatmulPreferenceSetAttribute", preference => *mut c_void,
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES => c_int, (&raw const bytes).cast() => *const c_void, size_of::<u64>() => usize)?;
        Ok(preference)
    }

    /// In columns: `yᵀ[N, T] = (wᵀ[K, N])ᵀ · xᵀ[K, T]`.
    fn gemm(&self, [tokens, outputs, inputs]: [usize; 3]) -> Fallible<Gemm> {
        let (product, preference) = (self.product()?, self.preference()?);
        let [w, x, y] = [[inputs, outputs], [inputs, tokens], [outputs, tokens]];
        let layouts =
            [self.matrix(w[0], w[1])?, self.matrix(x[0], x[1])?, self.matrix(y[0], y[1])?];
        let mut found = Heuristic::default();
        let mut count = 0;
        call!(self.library, "cublasLtMatmulAlgoGetHeuristic", self.handle => *mut c_void, product => *mut c_void,
            layouts[0] => *mut c_void, layouts[1] => *mut c_void, layouts[2] => *mut c_void, layouts[2] => *mut c_void,
            preference => *mut c_void, 1 => c_int, &raw mut found => *mut Heuristic, &raw mut count => *mut c_int)?;
        if count == 0 {
            return Err("cuBLASLt has no algorithm for this product".into());
        }
        let numbers = |[rows, columns]: [usize; 2]| self.device.numbers(rows * columns);
        let [w, x, y] = [numbers(w)?, numbers(x)?, numbers(y)?];
        let workspace = self.device.memory(WORKSPACE_BYTES)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let seconds = self.device.time(|| {
            call!(self.library, "cublasLtMatmul", self.handle => *mut c_void, product => *mut c_void,
                (&raw const one).cast() => *const c_void, w => u64, layouts[0] => *mut c_void, x => u64, layouts[1] => *mut c_void,
                (&raw const zero).cast() => *const c_void, y => u64, layouts[2] => *mut c_void, y => u64, layouts[2] => *mut c_void,
                found.algorithm.as_ptr() => *const u64, workspace => u64, WORKSPACE_BYTES => usize,
                ptr::null_mut() => *mut c_void)
        })?;
        Ok(Gemm { tokens, outputs, inputs, micros: seconds * 1e6 })
    }
}

fn measure() -> Fallible<Limits> {
    let bytes = env::args().nth(1).map_or(Ok(COPY_BYTES), |bytes| bytes.parse())?;
    let device = Device::open()?;
    let cublaslt = match Blas::open(&device) {
        Err(why) => CublasLt::Missing(why.to_string()),
        Ok(blas) => CublasLt::Measured {
            version: blas.version()?,
            gemms: GEMMS.iter().map(|&gemm| blas.gemm(gemm)).collect::<Fallible<_>>()?,
        },
    };
    Ok(Limits {
        name: device.name()?,
        cuda_version: device.cuda_version()?,
        processors: device.attribute(16)?,
        clock_khz: device.attribute(13).unwrap_or(0),
        peak_bytes_per_s: device.peak(),
        copy_bytes_per_s: device.copy(bytes)?,
        cublaslt,
    })
}

fn main() -> ExitCode {
    let limits = measure().and_then(|limits| Ok(serde_json::to_string(&limits)?));
    match limits {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}
