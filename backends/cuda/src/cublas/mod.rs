//! cuBLASLt as safe Rust: products of dense matrices, where NVIDIA's library is there.
//!
//! Nothing is linked: the library is looked for when a device is opened, function by function. [`VARIABLE`] says whether it is wanted.
//! Without it, and for shapes that it refuses, the backend's own kernels multiply.

mod matmul;

use std::{
    env,
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::{Mutex, Once, OnceLock},
};

use halyard_sdk::{Code, Error, Result};
use libloading::Library;

use matmul::Algorithms;
pub(crate) use matmul::{Addresses, Matmul, OPERAND_ALIGN, Operands, Shape};

/// `0`: never; `1`: always, so that a device without it is an error; not set: where it is there.
const VARIABLE: &str = "HALYARD_CUDA_CUBLASLT";

/// Files that may be the library, those that older drivers run first.
const NAMES: [&str; 3] = ["libcublasLt.so.12", "libcublasLt.so.13", "libcublasLt.so"];

/// `cublasStatus_t`; 0 is success.
type Status = c_int;
/// Handles, layouts, descriptors and preferences.
type Raw = *mut c_void;
type Destroy = unsafe extern "C" fn(Raw) -> Status;
type SetAttribute = unsafe extern "C" fn(Raw, c_int, *const c_void, usize) -> Status;

/// `CUBLAS_STATUS_NOT_SUPPORTED`
const NOT_SUPPORTED: Status = 15;

/// Words of `cublasLtMatmulAlgo_t`.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    status: Status,
    waves: f32,
    reserved: [c_int; 4],
}

type GetHeuristic = unsafe extern "C" fn(
    handle: Raw,
    product: Raw,
    a: Raw,
    b: Raw,
    c: Raw,
    d: Raw,
    preference: Raw,
    wanted: c_int,
    results: *mut Heuristic,
    found: *mut c_int,
) -> Status;

type Multiply = unsafe extern "C" fn(
    handle: Raw,
    product: Raw,
    alpha: *const c_void,
    a: *const c_void,
    a_layout: Raw,
    b: *const c_void,
    b_layout: Raw,
    beta: *const c_void,
    c: *const c_void,
    c_layout: Raw,
    d: *mut c_void,
    d_layout: Raw,
    algorithm: *const Algorithm,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> Status;

/// The functions in use. They stay where they are: a library is never unloaded.
#[derive(Debug)]
struct Functions {
    version: unsafe extern "C" fn() -> usize,
    status_text: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(*mut Raw) -> Status,
    destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Raw, c_int, u64, u64, i64) -> Status,
    layout_set: SetAttribute,
    layout_destroy: Destroy,
    product_create: unsafe extern "C" fn(*mut Raw, c_int, c_int) -> Status,
    product_set: SetAttribute,
    product_destroy: Destroy,
    preference_create: unsafe extern "C" fn(*mut Raw) -> Status,
    preference_set: SetAttribute,
    preference_destroy: Destroy,
    heuristic: GetHeuristic,
    multiply: Multiply,
    _library: Library,
}

impl Functions {
    /// # Errors
    /// `UNSUPPORTED` if there is no library of the name, or it lacks a function.
    fn load(name: &str) -> Result<Self> {
        // SAFETY: loading runs the library's initialisers, which are made for that.
        let library = unsafe { Library::new(name) }
            .map_err(|error| Error::unsupported(format!("{name}: {error}")))?;
        Ok(Self {
            version: function(&library, "cublasLtGetVersion")?,
            status_text: function(&library, "cublasLtGetStatusString")?,
            create: function(&library, "cublasLtCreate")?,
            destroy: function(&library, "cublasLtDestroy")?,
            layout_create: function(&library, "cublasLtMatrixLayoutCreate")?,
            layout_set: function(&library, "cublasLtMatrixLayoutSetAttribute")?,
            layout_destroy: function(&library, "cublasLtMatrixLayoutDestroy")?,
            product_create: function(&library, "cublasLtMatmulDescCreate")?,
            product_set: function(&library, "cublasLtMatmulDescSetAttribute")?,
            product_destroy: function(&library, "cublasLtMatmulDescDestroy")?,
            preference_create: function(&library, "cublasLtMatmulPreferenceCreate")?,
            preference_set: function(&library, "cublasLtMatmulPreferenceSetAttribute")?,
            preference_destroy: function(&library, "cublasLtMatmulPreferenceDestroy")?,
            heuristic: function(&library, "cublasLtMatmulAlgoGetHeuristic")?,
            multiply: function(&library, "cublasLtMatmul")?,
            _library: library,
        })
    }

    /// Says which call failed, and why.
    fn named(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any status has a text.
        let text = unsafe { (self.status_text)(status) };
        let text = if text.is_null() {
            "unknown".into()
        } else {
            // SAFETY: the library's texts end with a zero, and live until the thread's next call at least.
            unsafe { CStr::from_ptr(text) }.to_string_lossy()
        };
        let message = format!("{call}: status {status}: {text}");
        let code = if status == NOT_SUPPORTED { Code::UNSUPPORTED } else { Code::INTERNAL };
        Err(Error { vendor_code: status, ..Error::new(code, message) })
    }
}

/// A function of the library; `F` is its type in the library's header.
fn function<F: Copy>(library: &Library, name: &str) -> Result<F> {
    // SAFETY: the types in `Functions` are those of the library's header, which keeps what it has once published.
    match unsafe { library.get::<F>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(_) => Err(Error::unsupported(format!("libcublasLt.so has no {name}"))),
    }
}

/// The first library that starts on the device whose context is bound, chosen once a process.
fn start() -> &'static core::result::Result<Functions, String> {
    static KNOWN: OnceLock<core::result::Result<Functions, String>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let mut reasons = Vec::new();
        for name in NAMES {
            let functions = Functions::load(name);
            let started = functions.and_then(|f| create(&f).map(|raw| (f, raw)));
            match started {
                Ok((functions, raw)) => {
                    // SAFETY: it was created just now, and nobody else has it.
                    let destroyed = unsafe { (functions.destroy)(raw) };
                    functions
                        .named("cublasLtDestroy", destroyed)
                        .map_err(|e| e.message.to_string())?;
                    return Ok(functions);
                }
                Err(error) => reasons.push(error.message.to_string()),
            }
        }
        Err(reasons.join("; "))
    })
}

fn create(functions: &Functions) -> Result<Raw> {
    let mut raw = ptr::null_mut();
    // SAFETY: the handle goes to a variable of ours.
    functions.named("cublasLtCreate", unsafe { (functions.create)(&raw mut raw) })?;
    Ok(raw)
}

/// Whether the library is wanted, if that is said.
///
/// # Errors
/// `INVALID_ARGUMENT` for another word than 0 and 1.
fn wanted() -> Result<Option<bool>> {
    match env::var_os(VARIABLE) {
        None => Ok(None),
        Some(word) if word == "0" => Ok(Some(false)),
        Some(word) if word == "1" => Ok(Some(true)),
        Some(word) => Err(Error::invalid(format!(
            "{VARIABLE} is {}, expected 0 (own kernels only) or 1 (cuBLASLt must be there)",
            word.display()
        ))),
    }
}

/// The library on one device.
#[derive(Debug)]
pub(crate) struct Blas {
    functions: &'static Functions,
    raw: Raw,
    workspace_bytes: u64,
    algorithms: Mutex<Algorithms>,
}

// SAFETY: the library takes a handle from any thread, and from several at once.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    /// For the device whose context is bound, of this compute capability; none if it is not wanted or not there, which is told once.
    ///
    /// # Errors
    /// If it is wanted in any case and not there; for a setting that is none.
    pub(crate) fn open(capability: (u32, u32)) -> Result<Option<Self>> {
        static TOLD: Once = Once::new();
        let wanted = wanted()?;
        if wanted == Some(false) {
            TOLD.call_once(|| {
                tracing::debug!("cuBLASLt is turned off: own kernels for all linear layers");
            });
            return Ok(None);
        }
        let functions = match start() {
            Ok(functions) => functions,
            Err(why) if wanted == Some(true) => {
                return Err(Error::unsupported(format!(
                    "{VARIABLE} is 1, and there is no cuBLASLt: {why}"
                )));
            }
            Err(why) => {
                TOLD.call_once(
                    || tracing::info!(%why, "no cuBLASLt: own kernels for all linear layers"),
                );
                return Ok(None);
            }
        };
        // What NVIDIA recommends for each architecture.
        let workspace_bytes = if capability.0 >= 9 { 32 << 20 } else { 4 << 20 };
        let algorithms = Mutex::default();
        let blas = Self { functions, raw: create(functions)?, workspace_bytes, algorithms };
        TOLD.call_once(|| {
            tracing::info!(
                version = blas.version(),
                "cuBLASLt for dense linear layers on many rows"
            );
        });
        Ok(Some(blas))
    }

    /// Such as `12.4.5`.
    pub(crate) fn version(&self) -> String {
        // SAFETY: it takes nothing and gives a number.
        let version = unsafe { (self.functions.version)() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Scratch memory of a product.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }
}

impl Drop for Blas {
    /// The device's context is bound.
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and products under way do not need it.
        let destroyed = unsafe { (self.functions.destroy)(self.raw) };
        if let Err(error) = self.functions.named("cublasLtDestroy", destroyed) {
            tracing::debug!(%error, "cuBLASLt on a device that failed");
        }
    }
}
