//! What operators are called with: tensors, lists, scalars, arrays.

use crate::code::{Code, Failure, Outcome};
use crate::runtime::{FIRST_DEVICE_ADDRESS, Kind};
use half::{bf16, f16};
use halyard_sim_ascend_ops as ops;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

/// `aclTensor`
pub(crate) struct Tensor {
    /// All but the address.
    shape: ops::Tensor,
    address: AtomicU64,
    /// Handle of the list that it belongs to, or 0.
    pub(crate) list: AtomicUsize,
}

/// `aclTensorList`, which has its tensors for its own.
pub(crate) struct TensorList {
    pub(crate) handles: Vec<usize>,
    pub(crate) tensors: Vec<Arc<Tensor>>,
}

/// `aclScalar`
pub(crate) struct Scalar(pub(crate) ops::Scalar);

/// `aclIntArray`
pub(crate) struct IntArray(pub(crate) Vec<i64>);

/// `aclFloatArray`
pub(crate) struct FloatArray;

/// `aclBoolArray`
pub(crate) struct BoolArray;

macro_rules! kinds {
    ($($kind:ident $name:literal)*) => {
        $(impl Kind for $kind {
            const NAME: &'static str = $name;
            const BAD: Code = Code::ACLNN_PARAM;
        })*
    };
}

kinds! {
    Tensor "tensor"
    TensorList "tensor list"
    Scalar "scalar"
    IntArray "int array"
    FloatArray "float array"
    BoolArray "bool array"
}

/// Most dims that a tensor has.
const MAX_RANK: usize = 8;
/// What addresses must be multiples of.
const ALIGNMENT: u64 = 32;
/// Data types that a 910B has.
const DTYPES: &[i32] = &[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 16, 17, 27, 29, 30, 33];
const FORMATS: &[i32] = &[0, 1, 2, 3, 4, 12, 16, 27, 29, 30, 32, 33, 35, 47];
/// `ACL_FORMAT_FRACTAL_NZ`
const FRACTAL_NZ: i32 = 29;

impl Tensor {
    /// A tensor, if its parts fit each other.
    pub(crate) fn new(shape: ops::Tensor) -> Outcome<Self> {
        check_shape(&shape)?;
        check_address("tensorData", shape.address)?;
        let address = AtomicU64::new(shape.address);
        Ok(Self { shape, address, list: AtomicUsize::new(0) })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address.load(SeqCst)
    }

    pub(crate) fn set_address(&self, address: u64) -> Outcome {
        check_address("addr", address)?;
        self.address.store(address, SeqCst);
        Ok(())
    }

    /// As it is now.
    pub(crate) fn now(&self) -> ops::Tensor {
        ops::Tensor { address: self.address(), ..self.shape.clone() }
    }

    pub(crate) fn shape(&self) -> &ops::Tensor {
        &self.shape
    }
}

fn check_shape(tensor: &ops::Tensor) -> Outcome {
    if !DTYPES.contains(&tensor.dtype) {
        let what = format!("{} is no data type of a 910B", tensor.dtype);
        return Err(Failure::argument("dataType", what));
    }
    if !FORMATS.contains(&tensor.format) {
        return Err(Failure::argument(
            "format",
            format!("{} is no format of a 910B", tensor.format),
        ));
    }
    let rank = tensor.view_dims.len();
    if rank > MAX_RANK || tensor.storage_dims.len() > MAX_RANK {
        return Err(Failure::argument(
            "viewDimsNum",
            format!("{rank} dims; at most {MAX_RANK} were expected"),
        ));
    }
    let all = [
        ("viewDims", &tensor.view_dims),
        ("stride", &tensor.strides),
        ("storageDims", &tensor.storage_dims),
    ];
    for (argument, values) in all {
        if values.iter().any(|value| *value < 0) {
            return Err(Failure::argument(argument, format!("{values:?} has a negative number")));
        }
    }
    if tensor.offset < 0 {
        return Err(Failure::argument("offset", tensor.offset));
    }
    check_storage(tensor)
}

/// The view lies inside of the storage.
fn check_storage(tensor: &ops::Tensor) -> Outcome {
    let product = |dims: &[i64]| dims.iter().try_fold(1i64, |all, dim| all.checked_mul(*dim));
    let (Some(stored), Some(viewed)) = (product(&tensor.storage_dims), product(&tensor.view_dims))
    else {
        return Err(Failure::argument("viewDims", "more elements than there are numbers"));
    };
    if tensor.format == FRACTAL_NZ || viewed == 0 {
        return Ok(());
    }
    let last = tensor
        .view_dims
        .iter()
        .zip(&tensor.strides)
        .try_fold(tensor.offset, |at, (dim, stride)| {
            (dim - 1).checked_mul(*stride).and_then(|more| at.checked_add(more))
        });
    match last {
        Some(last) if last < stored => Ok(()),
        _ => {
            let (dims, strides, offset) = (&tensor.view_dims, &tensor.strides, tensor.offset);
            let what = format!(
                "{stored} elements; the view {dims:?} with strides {strides:?} from {offset} goes beyond"
            );
            Err(Failure::argument("storageDims", what))
        }
    }
}

/// A place on a device, or NULL for one that comes later.
fn check_address(argument: &str, address: u64) -> Outcome {
    if address != 0 && address < FIRST_DEVICE_ADDRESS {
        let what = format!("{address:#x} is memory of the host; memory of the device was expected");
        return Err(Failure::argument(argument, what));
    }
    if !address.is_multiple_of(ALIGNMENT) {
        let what = format!("{address:#x} is no multiple of {ALIGNMENT}");
        return Err(Failure::argument(argument, what));
    }
    Ok(())
}

/// Bytes that a tensor's view reaches from its address on, the last one's end.
pub(crate) fn reach(tensor: &ops::Tensor) -> u64 {
    let whole = |dims: &[i64]| dims.iter().product::<i64>();
    let elements = if whole(&tensor.view_dims) == 0 {
        0
    } else if tensor.format == FRACTAL_NZ {
        whole(&tensor.storage_dims)
    } else {
        let steps =
            tensor.view_dims.iter().zip(&tensor.strides).map(|(dim, stride)| (dim - 1) * stride);
        tensor.offset + steps.sum::<i64>() + 1
    };
    let bits = match tensor.dtype {
        29 => 4,
        30 => 1,
        dtype => 8 * crate::api::convert::element_bytes(dtype).unwrap_or(0) as u64,
    };
    (elements.cast_unsigned() * bits).div_ceil(8)
}

impl Scalar {
    /// A scalar from the bytes of a value.
    pub(crate) fn new(dtype: i32, bytes: &[u8]) -> Outcome<Self> {
        let whole = |signed: bool| {
            let mut wide =
                [if signed && bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            ops::Scalar::Int(i64::from_le_bytes(wide))
        };
        let float = |value: f32| ops::Scalar::Float(f64::from(value));
        let wrong =
            || Failure::argument("dataType", format!("{dtype} is no data type of a scalar"));
        Ok(Self(match dtype {
            0 => float(f32::from_le_bytes(bytes.try_into().map_err(|_| wrong())?)),
            1 => float(f16::from_le_bytes(bytes.try_into().map_err(|_| wrong())?).to_f32()),
            27 => float(bf16::from_le_bytes(bytes.try_into().map_err(|_| wrong())?).to_f32()),
            11 => ops::Scalar::Float(f64::from_le_bytes(bytes.try_into().map_err(|_| wrong())?)),
            2 | 3 | 6 | 9 => whole(true),
            4 | 7 | 8 | 10 => whole(false),
            12 => ops::Scalar::Int(i64::from(bytes.first().is_some_and(|b| *b != 0))),
            _ => return Err(wrong()),
        }))
    }
}
