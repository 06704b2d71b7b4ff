//! The libraries of a profile, loaded as a backend loads them, and calls of their functions by name.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "each test program uses a part of it"
)]

use halyard_sim_ascend::layout::{Profile, built_core, install};
use libloading::Library;
use std::env;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::OnceLock;

/// Devices of the test's process.
pub const DEVICES: &str = "910B1,910B1,910B1,910B1,910B4,910B3";

/// Values of an element's `aclDataType`.
pub const F32: i32 = 0;
pub const F16: i32 = 1;
pub const I8: i32 = 2;
pub const I32: i32 = 3;
pub const I64: i32 = 9;
pub const ND: i32 = 2;

/// `aclrtMemcpyKind`
pub const TO_DEVICE: u32 = 1;
pub const TO_HOST: u32 = 2;
pub const ON_DEVICE: u32 = 3;

/// Every library of a folder that `install` made.
pub fn open(folder: &Path) -> Vec<(String, Library)> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let vendors = files.filter(|path| !path.ends_with("libhalyard_sim_ascend.so"));
    let opened = vendors.map(|path| {
        // SAFETY: they are libraries of this package, whose loading does nothing by itself.
        let library = unsafe { Library::new(&path) }.unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), library)
    });
    opened.collect()
}

/// The libraries of CANN 9.1 and of a tool, and a device for this thread.
pub fn libraries() -> &'static [(String, Library)] {
    static LIBRARIES: OnceLock<Vec<(String, Library)>> = OnceLock::new();
    let all = LIBRARIES.get_or_init(|| {
        // SAFETY: tests that read the environment come here first.
        unsafe { env::set_var("HALYARD_SIM_ASCEND_DEVICES", DEVICES) };
        let folder = tempfile::tempdir().unwrap();
        install(Profile::Cann91, &built_core().unwrap(), folder.path()).unwrap();
        let mut all = open(folder.path());
        // SAFETY: as in `open`.
        let core = unsafe { Library::new(built_core().unwrap()) }.unwrap();
        all.push(("core".to_owned(), core));
        all
    });
    static INIT: OnceLock<i32> = OnceLock::new();
    let status = *INIT.get_or_init(|| raw(all, "aclInit", (std::ptr::null::<c_char>(),)));
    assert_eq!(status, 0);
    all
}

/// Arguments of a function.
pub trait Args {
    /// # Safety
    /// The function takes these and gives an `R`.
    unsafe fn pass<R>(self, function: *const c_void) -> R;
}

macro_rules! arities {
    () => {};
    ($first:ident $($rest:ident)*) => {
        #[allow(non_snake_case, reason = "a name for each type")]
        impl<$first, $($rest),*> Args for ($first, $($rest,)*) {
            unsafe fn pass<R>(self, function: *const c_void) -> R {
                type Function<R, $first, $($rest),*> = unsafe extern "C" fn($first, $($rest),*) -> R;
                let ($first, $($rest,)*) = self;
                // SAFETY: the caller promises it.
                let function = unsafe {
                    std::mem::transmute::<*const c_void, Function<R, $first, $($rest),*>>(function)
                };
                // SAFETY: the caller promises it.
                unsafe { function($first, $($rest),*) }
            }
        }
        arities! { $($rest)* }
    };
}

arities! {
    A0 A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11
    A12 A13 A14 A15 A16 A17 A18 A19 A20 A21 A22 A23
    A24 A25 A26 A27 A28 A29 A30 A31 A32 A33 A34 A35
    A36 A37 A38 A39 A40 A41 A42 A43 A44 A45 A46 A47
}

impl Args for () {
    unsafe fn pass<R>(self, function: *const c_void) -> R {
        // SAFETY: the caller promises it.
        let function =
            unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn() -> R>(function) };
        // SAFETY: the caller promises it.
        unsafe { function() }
    }
}

fn raw<R>(all: &[(String, Library)], name: &str, args: impl Args) -> R {
    // SAFETY: it is only looked up here.
    let find = |library: &Library| unsafe { library.get::<*const c_void>(name).ok().map(|f| *f) };
    let function = all.iter().find_map(|(_, library)| find(library));
    let function = function.unwrap_or_else(|| panic!("no library has {name}"));
    // SAFETY: the tests pass what the function takes.
    unsafe { args.pass(function) }
}

/// Calls a function that gives a result.
pub fn call(name: &str, args: impl Args) -> i32 {
    raw(libraries(), name, args)
}

/// Calls a function that gives something else.
pub fn value<R>(name: &str, args: impl Args) -> R {
    raw(libraries(), name, args)
}

/// Calls a function that must succeed.
#[track_caller]
pub fn ok(name: &str, args: impl Args) {
    let status = call(name, args);
    assert_eq!(status, 0, "{name}: {}", message());
}

/// This thread's messages.
pub fn message() -> String {
    let text: *const c_char = value("aclGetRecentErrMsg", ());
    // SAFETY: the function gives a text that ends with a zero, and is not called before it is copied.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
}

/// Gives this thread a device.
pub fn use_device(index: i32) {
    ok("aclrtSetDevice", (index,));
}

pub fn stream() -> usize {
    let mut stream = 0usize;
    ok("aclrtCreateStream", (&raw mut stream,));
    stream
}

pub fn event(flags: u32) -> usize {
    let mut event = 0usize;
    ok("aclrtCreateEventExWithFlag", (&raw mut event, flags));
    event
}

pub fn malloc(bytes: usize) -> u64 {
    let mut address = 0u64;
    ok("aclrtMalloc", (&raw mut address, bytes, 0u32));
    address
}

pub fn sync(stream: usize) {
    ok("aclrtSynchronizeStream", (stream,));
}

/// Plain numbers.
pub trait Plain: Copy + Default {}
impl Plain for f32 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for u8 {}
impl Plain for i32 {}
impl Plain for i64 {}
impl Plain for u64 {}

/// Device memory with these values.
pub fn upload<T: Plain>(values: &[T]) -> u64 {
    let bytes = size_of_val(values);
    let address = malloc(bytes);
    ok("aclrtMemcpy", (address, bytes, values.as_ptr(), bytes, TO_DEVICE));
    address
}

pub fn download<T: Plain>(address: u64, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    let bytes = size_of_val(&*values);
    ok("aclrtMemcpy", (values.as_mut_ptr(), bytes, address, bytes, TO_HOST));
    values
}

/// A tensor of all of its storage, row-major; 0 if it is refused.
pub fn try_tensor(dtype: i32, dims: &[i64], address: u64) -> usize {
    let rank = dims.len() as u64;
    let none = std::ptr::null::<i64>();
    value(
        "aclCreateTensor",
        (dims.as_ptr(), rank, dtype, none, 0i64, ND, dims.as_ptr(), rank, address),
    )
}

pub fn tensor(dtype: i32, dims: &[i64], address: u64) -> usize {
    let tensor = try_tensor(dtype, dims, address);
    assert_ne!(tensor, 0, "{}", message());
    tensor
}

pub fn scalar(value_of: f32) -> usize {
    value("aclCreateScalar", (&raw const value_of, F32))
}

pub fn int_array(values: &[i64]) -> usize {
    value("aclCreateIntArray", (values.as_ptr(), values.len() as u64))
}

pub fn list(tensors: &[usize]) -> usize {
    value("aclCreateTensorList", (tensors.as_ptr(), tensors.len() as u64))
}

/// Both phases of an operator without a workspace, of which `plan` makes the first; gives the second's status.
pub fn run(op: &str, stream: usize, plan: impl FnOnce(*mut u64, *mut usize) -> i32) -> i32 {
    let (mut size, mut executor) = (0u64, 0usize);
    let status = plan(&raw mut size, &raw mut executor);
    if status != 0 {
        return status;
    }
    let workspace = if size > 0 { malloc(size as usize) } else { 0 };
    call(op, (workspace, size, executor, stream))
}

pub fn destroy(tensors: &[usize]) {
    tensors.iter().for_each(|tensor| ok("aclDestroyTensor", (*tensor,)));
}

/// `out = a + b` of `count` floats.
pub fn add(a: u64, b: u64, out: u64, count: i64, stream: usize) -> i32 {
    let [a, b, out] = [a, b, out].map(|address| tensor(F32, &[count], address));
    let one = scalar(1.0);
    let status = run("aclnnAdd", stream, |size, executor| {
        call("aclnnAddGetWorkspaceSize", (a, b, one, out, size, executor))
    });
    destroy(&[a, b, out]);
    ok("aclDestroyScalar", (one,));
    status
}
