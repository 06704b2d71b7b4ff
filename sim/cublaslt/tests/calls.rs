//! The software cuBLASLt on the software GPU, called as a caller would, rightly and wrongly.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

#[path = "../../cuda/driver/tests/loading/mod.rs"]
mod loading;

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::{Arc, OnceLock},
};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use libloading::Library;

type Raw = *mut c_void;

const SUCCESS: u32 = 0;
const NOT_INITIALIZED: u32 = 1;
const INVALID_VALUE: u32 = 7;
const NOT_SUPPORTED: u32 = 15;

const F32: c_int = 0;
const F16: c_int = 2;
const BF16: c_int = 14;
const F64: c_int = 1;

/// Both libraries, loaded once; the devices are two of a kind.
fn library() -> &'static Library {
    static LIBRARIES: OnceLock<Vec<Library>> = OnceLock::new();
    let all =
        LIBRARIES.get_or_init(|| loading::libraries("h100,h100", &["libhalyard_sim_cublaslt.so"]));
    &all[1]
}

/// Calls a function of the library, whose arguments have the types that the documentation says.
macro_rules! call {
    ($name:literal, $($arg:expr => $type:ty),* $(,)?) => {{
        type Function = unsafe extern "C" fn($($type),*) -> u32;
        // SAFETY: the type is the function's in the library's documentation.
        let function = unsafe { library().get::<Function>($name.as_bytes()) }.unwrap();
        // SAFETY: pointers are of values that outlive the call, or wrong in a way that the library finds.
        unsafe { function($($arg),*) }
    }};
}

/// Why the thread's last call failed.
fn reason(status: u32) -> String {
    type Function = unsafe extern "C" fn(u32) -> *const c_char;
    // SAFETY: the type is the function's in the library's documentation.
    let function = unsafe { library().get::<Function>(b"cublasLtGetStatusString") }.unwrap();
    // SAFETY: it takes any status.
    let text = unsafe { function(status) };
    // SAFETY: texts end with a zero, and live until the thread asks again.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Checks that a call failed, with a status and for a reason.
#[track_caller]
fn refused(status: u32, expected: u32, why: &str) {
    let text = reason(status);
    assert_eq!(status, expected, "{text}");
    assert!(text.contains(why), "{text:?} does not say {why:?}");
}

fn set(function: &str, object: Raw, attribute: c_int, value: &[u8]) -> u32 {
    let (value, bytes) = (value.as_ptr(), value.len());
    match function {
        "layout" => {
            call!("cublasLtMatrixLayoutSetAttribute", object => Raw, attribute => c_int, value => *const u8, bytes => usize)
        }
        "product" => {
            call!("cublasLtMatmulDescSetAttribute", object => Raw, attribute => c_int, value => *const u8, bytes => usize)
        }
        _ => {
            call!("cublasLtMatmulPreferenceSetAttribute", object => Raw, attribute => c_int, value => *const u8, bytes => usize)
        }
    }
}

fn layout(float: c_int, rows: u64, columns: u64, leading: i64) -> Raw {
    let mut layout = ptr::null_mut();
    let made = call!("cublasLtMatrixLayoutCreate", &raw mut layout => *mut Raw, float => c_int, rows => u64, columns => u64, leading => i64);
    assert_eq!(made, SUCCESS, "{}", reason(made));
    layout
}

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Default)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// `yᵀ = W xᵀ` of f32 with 8 outputs, 4 inputs and 3 rows, all in order until a test changes something.
struct Setup {
    stream: Arc<CudaStream>,
    handle: Raw,
    product: Raw,
    preference: Raw,
    layouts: [Raw; 3],
    w: CudaSlice<f32>,
    x: CudaSlice<f32>,
    y: CudaSlice<f32>,
    workspace: CudaSlice<u8>,
    beta: f32,
}

const N: usize = 8;
const K: usize = 4;
const T: usize = 3;

fn w() -> Vec<f32> {
    (0..N * K).map(|i| i as f32 - 9.0).collect()
}

fn x() -> Vec<f32> {
    (0..T * K).map(|i| 0.5 * i as f32).collect()
}

/// x Wᵀ.
fn expected() -> Vec<f32> {
    let (w, x) = (w(), x());
    let dot = |t: usize, n: usize| (0..K).map(|k| x[t * K + k] * w[n * K + k]).sum();
    (0..T * N).map(|at| dot(at / N, at % N)).collect()
}

impl Setup {
    fn new() -> Self {
        library();
        let context = CudaContext::new(0).unwrap();
        // SAFETY: each test uses one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let [mut handle, mut product, mut preference] = [ptr::null_mut(); 3];
        assert_eq!(call!("cublasLtCreate", &raw mut handle => *mut Raw), SUCCESS);
        assert_eq!(
            call!("cublasLtMatmulDescCreate", &raw mut product => *mut Raw, 68 => c_int, F32 => c_int),
            SUCCESS
        );
        assert_eq!(set("product", product, 3, &1i32.to_le_bytes()), SUCCESS);
        assert_eq!(
            call!("cublasLtMatmulPreferenceCreate", &raw mut preference => *mut Raw),
            SUCCESS
        );
        assert_eq!(set("preference", preference, 1, &(1u64 << 20).to_le_bytes()), SUCCESS);
        let leading = |n: usize| n as i64;
        let layouts = [
            layout(F32, K as u64, N as u64, leading(K)),
            layout(F32, K as u64, T as u64, leading(K)),
            layout(F32, N as u64, T as u64, leading(N)),
        ];
        let upload = |values: &[f32]| stream.clone_htod(values).unwrap();
        Self {
            handle,
            product,
            preference,
            layouts,
            w: upload(&w()),
            x: upload(&x()),
            y: upload(&[1.0; N * T]),
            workspace: stream.alloc_zeros(1 << 20).unwrap(),
            beta: 0.0,
            stream,
        }
    }

    fn heuristic(&self) -> (u32, Heuristic) {
        let (mut result, mut found) = (Heuristic::default(), 0);
        let [w, x, y] = self.layouts;
        let status = call!("cublasLtMatmulAlgoGetHeuristic", self.handle => Raw, self.product => Raw, w => Raw, x => Raw, y => Raw, y => Raw,
            self.preference => Raw, 1 => c_int, &raw mut result => *mut Heuristic, &raw mut found => *mut c_int);
        assert_eq!(found, c_int::from(status == SUCCESS));
        (status, result)
    }

    /// With the right algorithm.
    fn multiply(&mut self) -> u32 {
        let (status, found) = self.heuristic();
        assert_eq!(status, SUCCESS, "{}", reason(status));
        self.multiply_by(&found.algorithm, |_| ())
    }

    /// With an algorithm, and what a test changes of the addresses of w, x, y and the workspace, and of its size.
    fn multiply_by(&mut self, algorithm: &[u64; 8], change: impl FnOnce(&mut [u64; 5])) -> u32 {
        let (alpha, beta) = (1.0f32, self.beta);
        let [w_layout, x_layout, y_layout] = self.layouts;
        let stream = &self.stream;
        let mut at = [
            self.w.device_ptr(stream).0,
            self.x.device_ptr(stream).0,
            self.y.device_ptr_mut(stream).0,
            self.workspace.device_ptr(stream).0,
            1 << 20,
        ];
        change(&mut at);
        let [w, x, y, workspace, bytes] = at;
        call!("cublasLtMatmul", self.handle => Raw, self.product => Raw, &raw const alpha => *const f32, w => u64, w_layout => Raw,
            x => u64, x_layout => Raw, &raw const beta => *const f32, y => u64, y_layout => Raw, y => u64, y_layout => Raw,
            algorithm.as_ptr() => *const u64, workspace => u64, bytes as usize => usize, self.stream.cu_stream().cast() => Raw)
    }

    fn y(&self) -> Vec<f32> {
        let y = self.stream.clone_dtoh(&self.y).unwrap();
        self.stream.synchronize().unwrap();
        y
    }
}

#[test]
fn a_product_is_the_product() {
    let mut setup = Setup::new();
    assert_eq!(setup.multiply(), SUCCESS);
    assert_eq!(setup.y(), expected());
}

#[test]
fn what_was_there_and_a_bias_are_added() {
    let mut setup = Setup::new();
    setup.beta = 2.0;
    let bias: Vec<f32> = (0..N).map(|n| 10.0 * n as f32).collect();
    let bias_at = setup.stream.clone_htod(&bias).unwrap();
    let address = bias_at.device_ptr(&setup.stream).0;
    assert_eq!(set("product", setup.product, 7, &4u32.to_le_bytes()), SUCCESS);
    assert_eq!(set("product", setup.product, 8, &address.to_le_bytes()), SUCCESS);
    assert_eq!(setup.multiply(), SUCCESS);
    let expected: Vec<f32> =
        expected().iter().enumerate().map(|(at, y)| y + bias[at % N] + 2.0).collect();
    assert_eq!(setup.y(), expected);
}

#[test]
fn gaps_between_columns_are_left_alone() {
    let mut setup = Setup::new();
    // Two rows of y with a row of others between them.
    setup.layouts[1] = layout(F32, K as u64, 2, K as i64);
    setup.layouts[2] = layout(F32, N as u64, 2, 2 * N as i64);
    assert_eq!(setup.multiply(), SUCCESS);
    let y = setup.y();
    assert_eq!(y[..N], expected()[..N]);
    assert_eq!(y[N..2 * N], [1.0; N]);
    assert_eq!(y[2 * N..], expected()[N..2 * N]);
}

#[test]
fn sums_of_sixteen_bits_are_in_f32() {
    for (float, bits, largest) in [(BF16, 0x3f80u16, 256usize), (F16, 0x3c00, 2048)] {
        // Ones, so that each sum is K, which the type itself has no room for.
        let k = largest + 8 + 1;
        let leading = k.next_multiple_of(8);
        let mut setup = Setup::new();
        let ones = setup.stream.clone_htod(&vec![bits; leading * 8]).unwrap();
        let mut y = setup.stream.alloc_zeros::<f32>(8).unwrap();
        setup.layouts = [
            layout(float, k as u64, 8, leading as i64),
            layout(float, k as u64, 1, leading as i64),
            layout(F32, 8, 1, 8),
        ];
        let (status, found) = setup.heuristic();
        assert_eq!(status, SUCCESS, "{}", reason(status));
        let stream = Arc::clone(&setup.stream);
        let (ones_at, y_at) = (ones.device_ptr(&stream).0, y.device_ptr_mut(&stream).0);
        let done = setup.multiply_by(&found.algorithm, |at| {
            [at[0], at[1], at[2]] = [ones_at, ones_at, y_at];
        });
        assert_eq!(done, SUCCESS, "{}", reason(done));
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [k as f32; 8]);
    }
}

#[test]
fn a_graph_multiplies_what_is_there_when_it_is_launched() {
    let mut setup = Setup::new();
    let (_, found) = setup.heuristic();
    let stream = Arc::clone(&setup.stream);
    let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    stream.begin_capture(mode).unwrap();
    assert_eq!(setup.multiply_by(&found.algorithm, |_| ()), SUCCESS);
    let flags = cudarc::driver::sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(setup.y(), [1.0; N * T], "nothing was done yet");
    graph.launch().unwrap();
    assert_eq!(setup.y(), expected());
    let twice: Vec<f32> = x().iter().map(|x| 2.0 * x).collect();
    stream.memcpy_htod(&twice, &mut setup.x).unwrap();
    graph.launch().unwrap();
    assert_eq!(setup.y(), expected().iter().map(|y| 2.0 * y).collect::<Vec<_>>());
}

#[test]
fn objects_must_be_alive_and_of_their_kind() {
    let mut setup = Setup::new();
    let (_, found) = setup.heuristic();
    let right = setup.layouts;
    setup.layouts[0] = setup.product;
    let status = setup.multiply_by(&found.algorithm, |_| ());
    refused(status, INVALID_VALUE, "is no matrix layout");
    setup.layouts = right;
    assert_eq!(call!("cublasLtMatrixLayoutDestroy", right[1] => Raw), SUCCESS);
    let status = setup.multiply_by(&found.algorithm, |_| ());
    refused(status, INVALID_VALUE, "was destroyed");
    let status = call!("cublasLtMatrixLayoutDestroy", right[1] => Raw);
    refused(status, INVALID_VALUE, "was destroyed");
    assert_eq!(call!("cublasLtDestroy", setup.handle => Raw), SUCCESS);
    refused(setup.heuristic().0, NOT_INITIALIZED, "is no handle");
    assert_eq!(setup.y(), [1.0; N * T], "nothing was enqueued");
}

#[test]
fn shapes_and_types_must_go_together() {
    let mut setup = Setup::new();
    let right = setup.layouts;
    setup.layouts[1] = layout(F32, 2 * K as u64, T as u64, 2 * K as i64);
    refused(setup.heuristic().0, INVALID_VALUE, "B is 8x3, expected 4x3");
    setup.layouts[1] = layout(F32, K as u64, T as u64, K as i64 - 1);
    refused(setup.heuristic().0, INVALID_VALUE, "leading dimension 3");
    setup.layouts[1] = layout(BF16, K as u64, T as u64, 8);
    refused(setup.heuristic().0, NOT_SUPPORTED, "A and B of one type");
    setup.layouts = [right[0], right[1], layout(F16, N as u64, T as u64, N as i64)];
    refused(setup.heuristic().0, NOT_SUPPORTED, "C and D both of that or of F32");
    // Five floats from column to column.
    setup.layouts = [right[0], layout(F32, K as u64, T as u64, 5), right[2]];
    refused(setup.heuristic().0, NOT_SUPPORTED, "aligned");
    let mut made = ptr::null_mut();
    let status = call!("cublasLtMatrixLayoutCreate", &raw mut made => *mut Raw, F64 => c_int, 1 => u64, 1 => u64, 1 => i64);
    refused(status, NOT_SUPPORTED, "data type 1");
    // CUBLAS_COMPUTE_16F.
    let status =
        call!("cublasLtMatmulDescCreate", &raw mut made => *mut Raw, 64 => c_int, F32 => c_int);
    refused(status, NOT_SUPPORTED, "compute type 64");
    refused(
        set("layout", right[0], 4, &4i32.to_le_bytes()),
        INVALID_VALUE,
        "of 4 bytes, expected 8",
    );
    refused(set("layout", right[0], 1, &1i32.to_le_bytes()), NOT_SUPPORTED, "order 1");
    refused(set("layout", right[0], 77, &4i32.to_le_bytes()), INVALID_VALUE, "attribute 77");
    // CUBLASLT_EPILOGUE_RELU.
    refused(set("product", setup.product, 7, &2u32.to_le_bytes()), NOT_SUPPORTED, "epilogue 2");
    refused(
        set("preference", setup.preference, 5, &3u32.to_le_bytes()),
        INVALID_VALUE,
        "alignment of 3",
    );
}

#[test]
fn algorithms_belong_to_their_product() {
    let mut setup = Setup::new();
    let (_, found) = setup.heuristic();
    refused(setup.multiply_by(&[0; 8], |_| ()), INVALID_VALUE, "the algorithm is none");
    setup.layouts[1] = layout(F32, K as u64, 2, K as i64);
    setup.layouts[2] = layout(F32, N as u64, 2, N as i64);
    let status = setup.multiply_by(&found.algorithm, |_| ());
    refused(status, INVALID_VALUE, "found for another product");
    // A bias that came after the algorithm.
    let mut setup = Setup::new();
    assert_eq!(set("product", setup.product, 7, &4u32.to_le_bytes()), SUCCESS);
    let status = setup.multiply_by(&found.algorithm, |_| ());
    refused(status, INVALID_VALUE, "found for another product");
    refused(setup.multiply(), INVALID_VALUE, "a bias at 0x0");
}

#[test]
fn addresses_are_checked_to_the_last_byte() {
    let mut setup = Setup::new();
    let (_, found) = setup.heuristic();
    assert!(found.workspace_bytes > 0);
    let wanted = found.workspace_bytes as u64;
    let mut multiply = |change: &dyn Fn(&mut [u64; 5])| setup.multiply_by(&found.algorithm, change);
    refused(multiply(&|at| at[0] += 4), INVALID_VALUE, "A at");
    refused(multiply(&|at| at[0] += 256), INVALID_VALUE, "A at");
    refused(multiply(&|at| at[1] = 0), INVALID_VALUE, "no memory of the driver's");
    refused(multiply(&|at| at[2] = at[1]), INVALID_VALUE, "D at");
    refused(multiply(&|at| at[3] += 8), INVALID_VALUE, "no multiple of 256");
    refused(multiply(&|at| at[3] += 256), INVALID_VALUE, "the workspace at");
    refused(multiply(&|at| at[3] = 0), INVALID_VALUE, "the workspace at");
    refused(multiply(&|at| at[4] = wanted - 1), INVALID_VALUE, "the algorithm wants");
    refused(multiply(&|at| at[4] = 0), INVALID_VALUE, "the algorithm wants");
    let pageable = [0.0f32; 1024];
    let aligned = (pageable.as_ptr().addr() as u64).next_multiple_of(256);
    refused(multiply(&|at| at[0] = aligned), INVALID_VALUE, "A at");
    assert_eq!(multiply(&|_| ()), SUCCESS);
    assert_eq!(setup.y(), expected());
}

#[test]
fn results_may_not_overlap_what_is_read() {
    let mut setup = Setup::new();
    let (_, found) = setup.heuristic();
    // W, x and y in one allocation, y from the last row of x on.
    let all = setup.stream.alloc_zeros::<f32>(1024).unwrap();
    let start = all.device_ptr(&setup.stream).0;
    let status = setup.multiply_by(&found.algorithm, |at| {
        [at[0], at[1], at[2]] = [start, start + 1024, start + 1024];
    });
    refused(status, INVALID_VALUE, "D overlaps an operand");
    let status = setup.multiply_by(&found.algorithm, |at| [at[2], at[3]] = [at[3], at[3]]);
    refused(status, INVALID_VALUE, "the workspace overlaps a matrix");
}

#[test]
fn memory_and_contexts_of_other_devices_are_refused() {
    let mut setup = Setup::new();
    let (_, found) = setup.heuristic();
    let other = CudaContext::new(1).unwrap();
    let stream = other.new_stream().unwrap();
    let elsewhere = stream.alloc_zeros::<f32>(64).unwrap();
    let address = elsewhere.device_ptr(&stream).0;
    stream.synchronize().unwrap();
    refused(setup.heuristic().0, INVALID_VALUE, "the context that is current");
    setup.stream.context().bind_to_thread().unwrap();
    let status = setup.multiply_by(&found.algorithm, |at| at[1] = address);
    refused(status, INVALID_VALUE, "in device 1's memory");
}

#[test]
fn workspaces_that_are_not_allowed_are_not_wanted() {
    let setup = Setup::new();
    assert_eq!(set("preference", setup.preference, 1, &0u64.to_le_bytes()), SUCCESS);
    assert_eq!(setup.heuristic().1.workspace_bytes, 0);
    assert_eq!(set("preference", setup.preference, 1, &(1u64 << 20).to_le_bytes()), SUCCESS);
    // CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE only.
    assert_eq!(set("preference", setup.preference, 3, &4u32.to_le_bytes()), SUCCESS);
    assert_eq!(setup.heuristic().1.workspace_bytes, 0);
}
