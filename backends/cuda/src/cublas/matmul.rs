//! Products `y = x Wᵀ`. The library counts columns first, so it is told of `yᵀ[N, T] = W[N, K] xᵀ[K, T]`, each matrix as its transpose.

use std::{collections::HashMap, ffi::c_int, ptr, sync::PoisonError};

use halyard_sdk::Result;

use super::{Algorithm, Blas, Destroy, Functions, Heuristic, NOT_SUPPORTED, Raw, SetAttribute};
use crate::{driver::Stream, ops::Float};

/// `cudaDataType_t`
fn data_type(float: Float) -> c_int {
    match float {
        Float::F32 => 0,
        Float::F16 => 2,
        Float::Bf16 => 14,
    }
}

/// `CUDA_R_32F`, of the factors.
const SCALE_F32: c_int = 0;
/// `CUBLAS_COMPUTE_32F`
const COMPUTE_F32: c_int = 68;
/// `CUBLAS_OP_T`
const TRANSPOSED: i32 = 1;
/// `CUBLASLT_EPILOGUE_DEFAULT` and `CUBLASLT_EPILOGUE_BIAS`: added to the sums in f32, before they are rounded.
const WITHOUT_BIAS: u32 = 1;
const WITH_BIAS: u32 = 4;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`, beside none at all: parts of K are summed in f32 and in a fixed order, never in y's type.
const REDUCTIONS: u32 = 2;
/// What addresses and rows are multiples of, in bytes.
pub(crate) const OPERAND_ALIGN: u64 = 16;

/// `cublasLtMatmulDescAttributes_t`
const TRANSPOSE_A: c_int = 3;
const EPILOGUE: c_int = 7;
const BIAS_POINTER: c_int = 8;
/// `cublasLtMatrixLayoutAttribute_t`
const TYPE: c_int = 0;
const COLUMNS: c_int = 3;
const LEADING_DIMENSION: c_int = 4;
/// `cublasLtMatmulPreferenceAttributes_t`
const MOST_WORKSPACE: c_int = 1;
const REDUCTION_SCHEMES: c_int = 3;
/// Of A, B, C and D.
const LEAST_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

/// Something of the library's that has attributes.
#[derive(Debug)]
struct Object {
    raw: Raw,
    functions: &'static Functions,
    set: SetAttribute,
    destroy: Destroy,
}

// SAFETY: an object is a name that the library takes from any thread, one at a time, which `&mut` keeps.
unsafe impl Send for Object {}

impl Object {
    fn set<T: Copy>(&mut self, attribute: c_int, value: T) -> Result<()> {
        // SAFETY: the object is alive; the value is read before the call returns, with its size.
        let set =
            unsafe { (self.set)(self.raw, attribute, (&raw const value).cast(), size_of::<T>()) };
        self.functions.named("cublasLt…SetAttribute", set)
    }

    /// A matrix of so many rows, and as many columns until more are said.
    fn layout(
        functions: &'static Functions,
        float: Float,
        rows: u64,
        columns: u64,
        leading: i64,
    ) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the layout goes to a variable of ours.
        let made = unsafe {
            (functions.layout_create)(&raw mut raw, data_type(float), rows, columns, leading)
        };
        functions.named("cublasLtMatrixLayoutCreate", made)?;
        Ok(Self { raw, functions, set: functions.layout_set, destroy: functions.layout_destroy })
    }

    fn product(functions: &'static Functions) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the description goes to a variable of ours.
        let made = unsafe { (functions.product_create)(&raw mut raw, COMPUTE_F32, SCALE_F32) };
        functions.named("cublasLtMatmulDescCreate", made)?;
        Ok(Self { raw, functions, set: functions.product_set, destroy: functions.product_destroy })
    }

    fn preference(functions: &'static Functions) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the preference goes to a variable of ours.
        let made = unsafe { (functions.preference_create)(&raw mut raw) };
        functions.named("cublasLtMatmulPreferenceCreate", made)?;
        Ok(Self {
            raw,
            functions,
            set: functions.preference_set,
            destroy: functions.preference_destroy,
        })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the object is ours; the library has copied what products under way need of it.
        let destroyed = unsafe { (self.destroy)(self.raw) };
        if let Err(error) = self.functions.named("cublasLt…Destroy", destroyed) {
            tracing::debug!(%error, "an object of cuBLASLt");
        }
    }
}

/// The matrices of a layer: x and W of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operands {
    pub(crate) float: Float,
    pub(crate) n: u64,
    pub(crate) k: u64,
    /// Elements from row to row of W.
    pub(crate) w_stride: i64,
}

/// What an algorithm is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) rows: u32,
    /// Elements from row to row.
    pub(crate) x_stride: i64,
    pub(crate) y_stride: i64,
    pub(crate) y_type: Float,
    pub(crate) biased: bool,
}

/// Where a product's matrices are, each at a multiple of [`OPERAND_ALIGN`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) y: u64,
    /// Of y's type; there if the shape says so.
    pub(crate) bias: Option<u64>,
    /// With [`Blas::workspace_bytes`], aligned to 256.
    pub(crate) workspace: u64,
}

/// The algorithm of each shape that layers of a device met: always the same, so equal inputs give equal bits. None of shapes that the
/// library refuses.
pub(super) type Algorithms = HashMap<(Operands, Shape), Option<Algorithm>>;

/// The products of one layer.
#[derive(Debug)]
pub(crate) struct Matmul {
    operands: Operands,
    product: Object,
    w: Object,
    x: Object,
    y: Object,
    preference: Object,
}

impl Matmul {
    /// # Errors
    /// What the library says.
    pub(crate) fn new(blas: &Blas, operands: Operands) -> Result<Self> {
        let Operands { float, n, k, w_stride } = operands;
        let functions = blas.functions;
        let mut product = Object::product(functions)?;
        product.set(TRANSPOSE_A, TRANSPOSED)?;
        let mut preference = Object::preference(functions)?;
        preference.set(MOST_WORKSPACE, blas.workspace_bytes)?;
        preference.set(REDUCTION_SCHEMES, REDUCTIONS)?;
        for attribute in LEAST_ALIGNMENTS {
            preference.set(attribute, OPERAND_ALIGN as u32)?;
        }
        Ok(Self {
            operands,
            product,
            w: Object::layout(functions, float, k, n, w_stride)?,
            x: Object::layout(functions, float, k, 1, k.cast_signed())?,
            y: Object::layout(functions, float, n, 1, n.cast_signed())?,
            preference,
        })
    }

    /// Describes a launch; the bias as well, which some versions look at when they choose.
    fn describe(&mut self, shape: &Shape, bias: Option<u64>) -> Result<()> {
        let rows = u64::from(shape.rows);
        self.x.set(COLUMNS, rows)?;
        self.x.set(LEADING_DIMENSION, shape.x_stride)?;
        self.y.set(TYPE, data_type(shape.y_type))?;
        self.y.set(COLUMNS, rows)?;
        self.y.set(LEADING_DIMENSION, shape.y_stride)?;
        if let Some(bias) = bias {
            self.product.set(BIAS_POINTER, bias)?;
        }
        self.product.set(EPILOGUE, if shape.biased { WITH_BIAS } else { WITHOUT_BIAS })
    }

    /// The algorithm of a shape, which is described; none if the library refuses it, which is told once.
    fn algorithm(&self, blas: &Blas, shape: &Shape) -> Result<Option<Algorithm>> {
        let mut algorithms = blas.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = algorithms.get(&(self.operands, *shape)) {
            return Ok(*known);
        }
        let (mut result, mut found) = (Heuristic::default(), 0);
        // SAFETY: all objects are alive; there is room for the one result that is asked for.
        let status = unsafe {
            (blas.functions.heuristic)(
                blas.raw,
                self.product.raw,
                self.w.raw,
                self.x.raw,
                self.y.raw,
                self.y.raw,
                self.preference.raw,
                1,
                &raw mut result,
                &raw mut found,
            )
        };
        let refused = status == NOT_SUPPORTED || (status == 0 && found == 0) || result.status != 0;
        if !refused {
            blas.functions.named("cublasLtMatmulAlgoGetHeuristic", status)?;
        }
        let chosen = (!refused).then_some(result.algorithm);
        if refused {
            tracing::info!(operands = ?self.operands, ?shape, "cuBLASLt refuses a shape: an own kernel multiplies");
        }
        algorithms.insert((self.operands, *shape), chosen);
        Ok(chosen)
    }

    /// Enqueues `y = x Wᵀ + bias`, plus what y was if `accumulate`; false, and nothing is enqueued, if the library refuses the shape.
    ///
    /// # Errors
    /// What the library says.
    ///
    /// # Safety
    /// Addresses are of device memory with room for the shape and the workspace, which nothing else uses until the stream has reached
    /// this point.
    pub(crate) unsafe fn enqueue(
        &mut self,
        blas: &Blas,
        on: &Stream,
        shape: &Shape,
        at: &Addresses,
        accumulate: bool,
    ) -> Result<bool> {
        self.describe(shape, at.bias)?;
        let Some(algorithm) = self.algorithm(blas, shape)? else { return Ok(false) };
        let (alpha, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: all objects are alive, and the factors are read before the call returns; for the addresses the caller's promise.
        let status = unsafe {
            (blas.functions.multiply)(
                blas.raw,
                self.product.raw,
                (&raw const alpha).cast(),
                at.w as *const _,
                self.w.raw,
                at.x as *const _,
                self.x.raw,
                (&raw const beta).cast(),
                at.y as *const _,
                self.y.raw,
                at.y as *mut _,
                self.y.raw,
                &raw const algorithm,
                at.workspace as *mut _,
                blas.workspace_bytes as usize,
                on.raw().cast(),
            )
        };
        blas.functions.named("cublasLtMatmul", status)?;
        Ok(true)
    }
}
