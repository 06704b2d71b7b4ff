//! Tensors, lists, scalars and arrays; executors.

use super::convert::element_bytes;
use super::{In, Out};
use crate::code::{Failure, Outcome};
use crate::executor::Executor;
use crate::object::{BoolArray, FloatArray, IntArray, Scalar, Tensor, TensorList};
use crate::runtime::{Kind, objects};
use halyard_sim_ascend_ops as ops;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

fn add<T: Kind>(thing: T) -> Outcome<usize> {
    Ok(objects()?.add(Arc::new(thing)))
}

fn destroy<T: Kind>(argument: &str, handle: usize) -> Outcome {
    objects()?.remove::<T>(argument, handle).map(|_| ())
}

fn tensor(handle: usize) -> Outcome<Arc<Tensor>> {
    objects()?.get("tensor", handle)
}

/// A number that the caller counts with.
fn count(argument: &str, number: u64) -> Outcome<usize> {
    let small = usize::try_from(number).ok().filter(|number| *number < 1 << 32);
    small.ok_or_else(|| Failure::argument(argument, format!("{number} elements")))
}

/// A copy of `values` that the caller frees.
pub(super) fn give(
    values: &[i64],
    out: (&str, &Out<*mut i64>),
    length: (&str, &Out<u64>),
) -> Outcome {
    // SAFETY: any size may be asked for.
    let place = unsafe { libc::malloc(size_of_val(values).max(1)) }.cast::<i64>();
    if place.is_null() {
        return Err(Failure::new(crate::code::Code::MEMORY, "the host has no memory left"));
    }
    Out(place).set_all(out.0, 0, values)?;
    out.1.set(out.0, place)?;
    length.1.set(length.0, values.len() as u64)
}

/// What `aclCreateTensor` has of its caller.
struct Shape {
    view: (In<i64>, u64),
    dtype: i32,
    strides: In<i64>,
    offset: i64,
    format: i32,
    storage: (In<i64>, u64),
}

impl Shape {
    fn tensor(&self, address: u64) -> Outcome<Tensor> {
        let rank = count("viewDimsNum", self.view.1)?;
        let view_dims = self.view.0.all("viewDims", rank)?;
        let storage = count("storageDimsNum", self.storage.1)?;
        let storage_dims = self.storage.0.all("storageDims", storage)?;
        let (dtype, offset, format) = (self.dtype, self.offset, self.format);
        let strides = if self.strides.is_null() {
            ops::Tensor::contiguous(dtype, &view_dims, 0).strides
        } else {
            self.strides.all("stride", rank)?
        };
        Tensor::new(ops::Tensor {
            dtype,
            view_dims,
            strides,
            offset,
            format,
            storage_dims,
            address,
        })
    }
}

/// A list takes its tensors over.
fn list(value: &In<usize>, size: u64) -> Outcome<usize> {
    let handles = value.all("value", count("size", size)?)?;
    let all = objects()?;
    let mut tensors = Vec::with_capacity(handles.len());
    for (index, handle) in handles.iter().enumerate() {
        let name = format!("value[{index}]");
        let tensor: Arc<Tensor> = all.get(&name, *handle)?;
        let owner = tensor.list.load(SeqCst);
        if owner != 0 {
            return Err(Failure::argument(&name, format!("it belongs to tensor list {owner:#x}")));
        }
        if handles[..index].contains(handle) {
            return Err(Failure::argument(&name, "a tensor is in a list once"));
        }
        tensors.push(tensor);
    }
    let made = Arc::new(TensorList { handles, tensors });
    let handle = all.add(Arc::clone(&made));
    made.tensors.iter().for_each(|tensor| tensor.list.store(handle, SeqCst));
    Ok(handle)
}

values! { CREATE of Aclnn:
    fn aclCreateTensor(
        view_dims: In<i64>, view_dims_num: u64, dtype: i32, stride: In<i64>, offset: i64,
        format: i32, storage_dims: In<i64>, storage_dims_num: u64, data: u64,
    ) -> usize, 0; {
        let (view, storage) = ((view_dims, view_dims_num), (storage_dims, storage_dims_num));
        add(Shape { view, dtype, strides: stride, offset, format, storage }.tensor(data)?)
    }

    fn aclCreateTensorList(value: In<usize>, size: u64) -> usize, 0; {
        list(&value, size)
    }

    fn aclCreateScalar(value: In<u8>, dtype: i32) -> usize, 0; {
        let bytes = element_bytes(dtype).unwrap_or(0);
        add(Scalar::new(dtype, &value.bytes("value", 0, bytes)?)?)
    }

    fn aclCreateIntArray(value: In<i64>, size: u64) -> usize, 0; {
        add(IntArray(value.all("value", count("size", size)?)?))
    }

    fn aclCreateFloatArray(value: In<f32>, size: u64) -> usize, 0; {
        value.all("value", count("size", size)?)?;
        add(FloatArray)
    }

    fn aclCreateBoolArray(value: In<u8>, size: u64) -> usize, 0; {
        value.all("value", count("size", size)?)?;
        add(BoolArray)
    }
}

entries! { ENTRIES of Aclnn:
    fn aclDestroyTensor(handle: usize) {
        let owner = tensor(handle)?.list.load(SeqCst);
        if owner != 0 {
            let what = format!("it belongs to tensor list {owner:#x}, which destroys it");
            return Err(Failure::argument("tensor", what));
        }
        destroy::<Tensor>("tensor", handle)
    }

    fn aclDestroyTensorList(array: usize) {
        let list = objects()?.remove::<TensorList>("array", array)?;
        list.handles.iter().try_for_each(|handle| destroy::<Tensor>("array", *handle))
    }

    fn aclDestroyScalar(scalar: usize) {
        destroy::<Scalar>("scalar", scalar)
    }

    fn aclDestroyIntArray(array: usize) {
        destroy::<IntArray>("array", array)
    }

    fn aclDestroyFloatArray(array: usize) {
        destroy::<FloatArray>("array", array)
    }

    fn aclDestroyBoolArray(array: usize) {
        destroy::<BoolArray>("array", array)
    }

    fn aclGetViewShape(handle: usize, view_dims: Out<*mut i64>, view_dims_num: Out<u64>) {
        give(&tensor(handle)?.shape().view_dims, ("viewDims", &view_dims), ("viewDimsNum", &view_dims_num))
    }

    fn aclGetStorageShape(handle: usize, storage_dims: Out<*mut i64>, storage_dims_num: Out<u64>) {
        give(&tensor(handle)?.shape().storage_dims, ("storageDims", &storage_dims), ("storageDimsNum", &storage_dims_num))
    }

    fn aclGetViewStrides(handle: usize, strides: Out<*mut i64>, strides_num: Out<u64>) {
        give(&tensor(handle)?.shape().strides, ("stridesValue", &strides), ("stridesNum", &strides_num))
    }

    fn aclGetViewOffset(handle: usize, offset: Out<i64>) {
        offset.set("offset", tensor(handle)?.shape().offset)
    }

    fn aclGetFormat(handle: usize, format: Out<i32>) {
        format.set("format", tensor(handle)?.shape().format)
    }

    fn aclGetDataType(handle: usize, dtype: Out<i32>) {
        dtype.set("dataType", tensor(handle)?.shape().dtype)
    }

    fn aclSetRawTensorAddr(handle: usize, addr: u64) {
        tensor(handle)?.set_address(addr)
    }

    fn aclGetRawTensorAddr(handle: usize, addr: Out<u64>) {
        addr.set("addr", tensor(handle)?.address())
    }

    fn aclSetAclOpExecutorRepeatable(executor: usize) {
        objects()?.get::<Executor>("executor", executor)?.make_repeatable()
    }

    fn aclDestroyAclOpExecutor(handle: usize) {
        let executor: Arc<Executor> = objects()?.get("executor", handle)?;
        if !executor.is_repeatable() {
            return Err(Failure::argument("executor", "only a repeatable executor is destroyed; the second phase frees others"));
        }
        destroy::<Executor>("executor", handle)
    }

    fn aclSetInputTensorAddr(executor: usize, index: usize, own: usize, addr: u64) {
        tensor(own)?.set_address(addr)?;
        let executor: Arc<Executor> = objects()?.get("executor", executor)?;
        executor.set_address(|param| !param.writes, ("index", index), 0, addr)
    }

    fn aclSetOutputTensorAddr(executor: usize, index: usize, own: usize, addr: u64) {
        tensor(own)?.set_address(addr)?;
        let executor: Arc<Executor> = objects()?.get("executor", executor)?;
        executor.set_address(|param| param.writes, ("index", index), 0, addr)
    }

    fn aclSetTensorAddr(executor: usize, index: usize, own: usize, addr: u64) {
        tensor(own)?.set_address(addr)?;
        let executor: Arc<Executor> = objects()?.get("executor", executor)?;
        executor.set_address(|_| true, ("index", index), 0, addr)
    }

    fn aclSetDynamicTensorAddr(executor: usize, ir_index: usize, relative_index: usize, tensors: usize, addr: u64) {
        let list: Arc<TensorList> = objects()?.get("tensors", tensors)?;
        let Some(one) = list.tensors.get(relative_index) else {
            let what = format!("{relative_index} of {} tensors", list.tensors.len());
            return Err(Failure::argument("relativeIndex", what));
        };
        one.set_address(addr)?;
        let executor: Arc<Executor> = objects()?.get("executor", executor)?;
        executor.set_address(|_| true, ("irIndex", ir_index), relative_index, addr)
    }
}
