//! Functions of one phase that tell how large a weight is in another format.

use super::Out;
use super::object::give;
use crate::code::{Code, Failure};
use crate::object::{IntArray, Tensor};
use crate::runtime::objects;
use halyard_sim_ascend_ops::{Refusal, cast_storage_dims, matmul_weight_elements};
use std::sync::Arc;

/// `ACL_FORMAT_FRACTAL_NZ`
const FRACTAL_NZ: i32 = 29;

fn refused(refusal: Refusal) -> Failure {
    Failure::new(Code(refusal.code), refusal.message)
}

entries! { ENTRIES of Aclnn:
    /* Elements, whole fractals. */
    fn aclnnCalculateMatmulWeightSizeV2(shape: usize, dtype: i32, size: Out<u64>) {
        let shape: Arc<IntArray> = objects()?.get("tensorShape", shape)?;
        size.set("weightTensorSize", matmul_weight_elements(&shape.0, dtype).map_err(refused)?)
    }
}

entries! { ENTRIES_9 of Aclnn:
    /* The dims are the caller's to free. */
    fn aclnnNpuFormatCastCalculateSizeAndFormat(
        src: usize, dst_format: i32, additional_dtype: i32, dims: Out<*mut i64>, count: Out<u64>, format: Out<i32>,
    ) {
        let src: Arc<Tensor> = objects()?.get("srcTensor", src)?;
        let (shape, dtype) = (&src.shape().view_dims, src.shape().dtype);
        if dst_format != FRACTAL_NZ {
            return Err(Failure::argument("dstFormat", format!("{dst_format}; FRACTAL_NZ ({FRACTAL_NZ}) was expected")));
        }
        if additional_dtype != -1 && additional_dtype != dtype {
            let what = format!("{additional_dtype}; the tensor's own ({dtype}) or -1 was expected");
            return Err(Failure::argument("additionalDtype", what));
        }
        let storage = cast_storage_dims(shape, dtype).map_err(refused)?;
        give(&storage, ("dstShape", &dims), ("dstShapeSize", &count))?;
        format.set("actualFormat", FRACTAL_NZ)
    }
}
