//! The C functions. Pointers of the caller appear only here.

use std::{
    ffi::{c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

use halyard_sim_cuda_calls::{Place, Stream};

use crate::{
    enqueue::Addresses,
    object::{self, Layout, Object, Preference, Product, Type, Value},
    problem::{Algorithm, Problem},
    status::{self, Failure, Outcome, Status},
};

/// cuBLASLt 12.2.5, of the driver that the software GPU is.
const VERSION: usize = 120_205;

/// Where a result goes. The caller of an entry promises that it may be written, or is null.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    fn set(&self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(Failure::value("a null pointer for a result"));
        }
        // SAFETY: the caller of the entry promises that the pointer, which is not null, may be written.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// What a caller gives. It promises that it may be read, or is null.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    fn get(&self, what: &str) -> Outcome<T> {
        if self.0.is_null() {
            return Err(Failure::value(format!("{what} is a null pointer")));
        }
        // SAFETY: the caller of the entry promises that the pointer, which is not null, may be read.
        Ok(unsafe { self.0.read_unaligned() })
    }
}

impl In<u8> {
    fn bytes(&self, count: usize) -> Outcome<Vec<u8>> {
        if self.0.is_null() || count > 64 {
            return Err(Failure::value(format!(
                "an attribute's value of {count} bytes at {:p}",
                self.0
            )));
        }
        // SAFETY: the caller of the entry promises so many bytes behind a pointer that is not null.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) }.to_vec())
    }
}

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
pub(crate) struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// Runs an entry.
fn guard(entry: impl FnOnce() -> Outcome) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(entry));
    let outcome = outcome.unwrap_or_else(|_| {
        Err(Failure::new(Status::InternalError, "a bug in the software cuBLASLt: panic"))
    });
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            status::remember(&failure);
            failure.status as u32
        }
    }
}

/// Defines entries: each exported by its name, its body guarded.
macro_rules! entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of cuBLASLt.")]
        ///
        /// # Safety
        /// Pointers are as cuBLASLt asks.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            guard(move || $body)
        }
    )* };
}

/// `cublasLtGetVersion` of cuBLASLt.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

/// `cublasLtGetStatusString` of cuBLASLt: also why, if the status is that of the thread's last failure.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cublasLtGetStatusString(status: u32) -> *const c_char {
    status::text(status)
}

fn problem(product: usize, [a, b, c, d]: [usize; 4]) -> Outcome<Problem> {
    let layouts = [object::layout(a)?, object::layout(b)?, object::layout(c)?, object::layout(d)?];
    Problem::new(object::product(product)?, layouts)
}

entries! {
    fn cublasLtCreate(handle: Out<usize>) {
        handle.set(object::insert(Object::Handle(Place::current()?)))
    }

    fn cublasLtDestroy(handle: usize) {
        object::remove(handle, "handle")
    }

    fn cublasLtMatrixLayoutCreate(layout: Out<usize>, float: c_int, rows: u64, columns: u64, leading: i64) {
        let made = Layout { float: Type::of(float)?, rows, columns, leading };
        layout.set(object::insert(Object::Layout(made)))
    }

    fn cublasLtMatrixLayoutSetAttribute(layout: usize, attribute: c_int, value: In<u8>, bytes: usize) {
        let value = value.bytes(bytes)?;
        object::change(layout, "matrix layout", |object| match object {
            Object::Layout(layout) => layout.set(attribute, Value(&value)),
            _ => Ok(()),
        })
    }

    fn cublasLtMatrixLayoutDestroy(layout: usize) {
        object::remove(layout, "matrix layout")
    }

    fn cublasLtMatmulDescCreate(product: Out<usize>, compute: c_int, scale: c_int) {
        // CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC; CUDA_R_32F.
        if !matches!(compute, 68 | 69) || scale != 0 {
            return Err(Failure::unsupported(format!(
                "compute type {compute} with factors of type {scale}; the software cuBLASLt computes in f32"
            )));
        }
        let made = Product { transposed: [false; 2], biased: false, bias: 0, bias_type: None };
        product.set(object::insert(Object::Product(made)))
    }

    fn cublasLtMatmulDescSetAttribute(product: usize, attribute: c_int, value: In<u8>, bytes: usize) {
        let value = value.bytes(bytes)?;
        object::change(product, "matmul descriptor", |object| match object {
            Object::Product(product) => product.set(attribute, Value(&value)),
            _ => Ok(()),
        })
    }

    fn cublasLtMatmulDescDestroy(product: usize) {
        object::remove(product, "matmul descriptor")
    }

    fn cublasLtMatmulPreferenceCreate(preference: Out<usize>) {
        preference.set(object::insert(Object::Preference(Preference::new())))
    }

    fn cublasLtMatmulPreferenceSetAttribute(preference: usize, attribute: c_int, value: In<u8>, bytes: usize) {
        let value = value.bytes(bytes)?;
        object::change(preference, "matmul preference", |object| match object {
            Object::Preference(preference) => preference.set(attribute, Value(&value)),
            _ => Ok(()),
        })
    }

    fn cublasLtMatmulPreferenceDestroy(preference: usize) {
        object::remove(preference, "matmul preference")
    }

    fn cublasLtMatmulAlgoGetHeuristic(
        handle: usize, product: usize, a: usize, b: usize, c: usize, d: usize,
        preference: usize, wanted: c_int, results: Out<Heuristic>, found: Out<c_int>,
    ) {
        object::handle(handle)?;
        let problem = problem(product, [a, b, c, d])?;
        let preference = object::preference(preference)?;
        if wanted < 1 {
            return Err(Failure::value(format!("{wanted} algorithms are wanted")));
        }
        let Some((algorithm, bytes)) = problem.algorithm(&preference) else {
            found.set(0)?;
            return Err(Failure::unsupported("no algorithm for matrices that are aligned so"));
        };
        results.set(Heuristic { algorithm, workspace_bytes: bytes as usize, status: 0, waves: 1.0, reserved: [0; 4] })?;
        found.set(1)
    }

    fn cublasLtMatmul(
        handle: usize, product: usize, alpha: In<f32>, a: u64, a_layout: usize, b: u64, b_layout: usize,
        beta: In<f32>, c: u64, c_layout: usize, d: u64, d_layout: usize,
        algorithm: In<Algorithm>, workspace: u64, workspace_bytes: usize, stream: *mut c_void,
    ) {
        let place = object::handle(handle)?;
        let problem = problem(product, [a_layout, b_layout, c_layout, d_layout])?;
        let factors = [alpha.get("alpha")?, beta.get("beta")?];
        let algorithm = algorithm.get("the algorithm")?;
        let at = Addresses { matrices: [a, b, c, d], workspace, workspace_bytes: workspace_bytes as u64 };
        problem.enqueue(&place, &at, &algorithm, factors, Stream(stream.addr()))
    }
}
