//! Tensors: views that own a share of their buffer and stay inside it.

use halyard_abi::{
    DType, KvDesc, TensorSpec, TensorView,
    types::{FLAG_OPAQUE, KV_MLA},
};

use crate::{Device, DeviceBuffer, Element, Result, Stream, error::DeviceError};

/// A tensor in device memory. Cheap to clone; clones and slices share the memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) buffer: DeviceBuffer,
    pub(crate) view: TensorView,
}

/// A paged cache in the backend's own arrangement.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Keys `[blocks, block, heads, dim_k]`, opaque; latents `[blocks, block, dim_k]` of a [`KV_MLA`] cache.
    pub k: Tensor,
    /// Values `[blocks, block, heads, dim_v]`, opaque; rotated parts `[blocks, block, dim_v]` of a [`KV_MLA`] cache; `None` if the
    /// backend fuses them into `k`.
    pub v: Option<Tensor>,
}

impl KvCache {
    /// A [`KV_MLA`] cache as one of a single head, `[blocks, block, 1, dim]`: what the ops that move whole caches take.
    #[must_use]
    pub fn with_head(&self) -> Self {
        let one_head = |tensor: &Tensor| {
            let mut dims = tensor.view.dims().to_vec();
            if dims.len() == 3 {
                dims.insert(2, 1);
            }
            let spec = TensorSpec::new(tensor.view.dtype, &dims).opaque();
            let view = TensorView::contiguous(tensor.view.data, tensor.view.byte_offset, &spec);
            Tensor { buffer: tensor.buffer.clone(), view }
        };
        Self { k: one_head(&self.k), v: self.v.as_ref().map(one_head) }
    }
}

fn bad(message: String) -> DeviceError {
    DeviceError::invalid("tensor", message)
}

fn spec(dtype: DType, dims: &[usize]) -> Result<TensorSpec> {
    let dims: Option<Vec<i64>> = dims.iter().map(|&d| i64::try_from(d).ok()).collect();
    match dims {
        Some(dims) if dims.len() <= halyard_abi::types::MAX_RANK => {
            Ok(TensorSpec::new(dtype, &dims))
        }
        _ => Err(bad(format!("{dims:?} are no dims"))),
    }
}

impl Device {
    /// Allocates a row-major tensor; its contents are undefined.
    ///
    /// # Errors
    /// For impossible dims, or `OUT_OF_MEMORY`.
    pub fn tensor(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let view = TensorView::contiguous(0, 0, &spec(dtype, dims)?);
        let bytes = view.extent_bytes().ok_or_else(|| bad(format!("{dtype} {dims:?}")))?;
        Tensor::in_buffer(&self.alloc(bytes)?, dtype, dims, 0)
    }

    /// Allocates a row-major tensor that holds `data`.
    ///
    /// # Errors
    /// If the dims do not have as many elements, or `OUT_OF_MEMORY`.
    pub fn tensor_from<T: Element>(
        &self,
        stream: &Stream,
        dims: &[usize],
        data: &[T],
    ) -> Result<Tensor> {
        let tensor = self.tensor(T::DTYPE, dims)?;
        tensor.write(stream, data)?;
        Ok(tensor)
    }

    /// Allocates a paged cache of `blocks` blocks.
    ///
    /// # Errors
    /// If the backend cannot arrange one, or `OUT_OF_MEMORY`.
    pub fn kv_cache(&self, desc: &KvDesc<'_>, blocks: usize) -> Result<KvCache> {
        self.kv_cache_in(desc, blocks, &mut |bytes, align| {
            Ok((self.alloc_aligned(bytes, align)?, 0))
        })
    }

    /// A paged cache of `blocks` blocks in memory that `place` finds: given bytes and alignment, a buffer and the offset in it. It is
    /// asked for the keys, then for the values if the backend keeps them apart.
    ///
    /// # Errors
    /// If the backend cannot arrange one, what `place` says, or if it is too small.
    pub fn kv_cache_in(
        &self,
        desc: &KvDesc<'_>,
        blocks: usize,
        place: &mut dyn FnMut(u64, u64) -> Result<(DeviceBuffer, u64)>,
    ) -> Result<KvCache> {
        let layout = self.kv_layout(desc)?;
        let mut part = |block_bytes: u64, dim: u32| -> Result<Option<Tensor>> {
            if block_bytes == 0 {
                return Ok(None);
            }
            let bytes = block_bytes.checked_mul(blocks as u64);
            let bytes = bytes.ok_or_else(|| bad(format!("{blocks} blocks of {block_bytes}")))?;
            let (buffer, offset) = place(bytes, layout.align)?;
            buffer.check_room(&self.inner, (offset, bytes), layout.align, "kv_cache")?;
            let dims = [blocks, desc.block_size as usize, desc.heads as usize, dim as usize];
            let latent = [dims[0], dims[1], dims[3]];
            let dims = if desc.kind == KV_MLA { &latent[..] } else { &dims[..] };
            let spec = spec(desc.dtype, dims)?.opaque();
            let view = TensorView::contiguous(buffer.base(), offset, &spec);
            Ok(Some(Tensor { buffer, view }))
        };
        let k = part(layout.block_bytes[0], desc.dim_k)?;
        let k = k.ok_or_else(|| bad("the backend's layout has no bytes for keys".into()))?;
        Ok(KvCache { k, v: part(layout.block_bytes[1], desc.dim_v)? })
    }
}

impl Tensor {
    /// A row-major tensor at `byte_offset` of a buffer.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn in_buffer(
        buffer: &DeviceBuffer,
        dtype: DType,
        dims: &[usize],
        byte_offset: u64,
    ) -> Result<Self> {
        let view = TensorView::contiguous(buffer.base(), byte_offset, &spec(dtype, dims)?);
        Self::checked(buffer.clone(), view)
    }

    /// A tensor at `byte_offset` of a buffer with own strides in elements.
    ///
    /// # Errors
    /// If it leaves the buffer.
    pub fn strided(
        buffer: &DeviceBuffer,
        dtype: DType,
        dims: &[usize],
        strides: &[usize],
        byte_offset: u64,
    ) -> Result<Self> {
        let mut view = TensorView::contiguous(buffer.base(), byte_offset, &spec(dtype, dims)?);
        let strides = spec(dtype, strides)?;
        if strides.rank != view.rank {
            return Err(bad(format!("{dims:?} with strides {:?}", strides.dims())));
        }
        view.strides = strides.dims;
        Self::checked(buffer.clone(), view)
    }

    /// Checks that a view stays inside its buffer.
    fn checked(buffer: DeviceBuffer, view: TensorView) -> Result<Self> {
        let end = view.extent_bytes().and_then(|e| e.checked_add(view.byte_offset));
        if end.is_none_or(|end| end > buffer.bytes()) {
            return Err(bad(format!(
                "{} {:?} with strides {:?} at byte {} leaves a buffer of {} bytes",
                view.dtype,
                view.dims(),
                view.strides(),
                view.byte_offset,
                buffer.bytes()
            )));
        }
        Ok(Self { buffer, view })
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }

    /// Extents.
    #[must_use]
    pub fn dims(&self) -> Vec<usize> {
        self.view.dims().iter().map(|&d| d.cast_unsigned() as usize).collect()
    }

    /// Type and shape.
    #[must_use]
    pub fn spec(&self) -> TensorSpec {
        self.view.spec()
    }

    /// The memory it lies in.
    #[must_use]
    pub fn buffer(&self) -> &DeviceBuffer {
        &self.buffer
    }

    /// Elements `start..start + len` of an axis.
    ///
    /// # Errors
    /// If there are not so many, or the tensor is opaque.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let dims = self.dims();
        let inside =
            dims.get(axis).is_some_and(|&d| start.checked_add(len).is_some_and(|e| e <= d));
        if !inside || self.view.flags & FLAG_OPAQUE != 0 {
            return Err(bad(format!("elements {start}+{len} of axis {axis} of {dims:?}")));
        }
        let mut view = self.view;
        let skipped = view.strides[axis].cast_unsigned() * start as u64;
        let bytes = self.dtype().bytes(skipped).ok_or_else(|| bad("a huge stride".into()))?;
        view.byte_offset += bytes;
        view.dims[axis] = len.cast_signed() as i64;
        Self::checked(self.buffer.clone(), view)
    }

    /// The same elements with other dims.
    ///
    /// # Errors
    /// If the count differs, or the tensor is not contiguous. Splitting the last axis of a row-strided matrix is possible too:
    /// `[T, H * D]` to `[T, H, D]`.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let old = self.dims();
        let wanted = TensorView::contiguous(0, 0, &spec(self.dtype(), dims)?);
        let packed = TensorView::contiguous(0, 0, &self.view.spec()).strides == self.view.strides;
        let mut view = TensorView { strides: wanted.strides, dims: wanted.dims, ..self.view };
        view.rank = wanted.rank;
        let fits = if packed {
            wanted.elements() == self.view.elements()
        } else {
            // Row-strided: the rows stay, their contents are divided.
            view.strides[0] = self.view.strides[0];
            old.len() == 2
                && self.view.strides[1] == 1
                && dims.first() == old.first()
                && dims[1..].iter().product::<usize>() == old[1]
        };
        if !fits || self.view.flags & FLAG_OPAQUE != 0 {
            return Err(bad(format!("{old:?} cannot be seen as {dims:?}")));
        }
        Self::checked(self.buffer.clone(), view)
    }

    fn contiguous_bytes(&self, elements: usize, dtype: DType) -> Result<u64> {
        let packed = TensorView::contiguous(0, 0, &self.view.spec());
        let fits = packed.strides == self.view.strides
            && self.view.elements() == Some(elements as u64)
            && (dtype == self.dtype() || dtype == DType::U8)
            && self.view.flags & FLAG_OPAQUE == 0;
        if fits {
            return Ok(self.view.byte_offset);
        }
        Err(bad(format!(
            "{elements} elements of {dtype} for a tensor of {} {:?} with strides {:?}",
            self.dtype(),
            self.dims(),
            self.view.strides()
        )))
    }

    /// Copies all elements to the device.
    ///
    /// # Errors
    /// If count, dtype or contiguity differ, or the copy fails.
    pub fn write<T: Element>(&self, stream: &Stream, data: &[T]) -> Result<()> {
        let offset = self.contiguous_bytes(data.len(), T::DTYPE)?;
        self.buffer.write(stream, offset, data)
    }

    /// Copies all elements from the device.
    ///
    /// # Errors
    /// As [`Tensor::write`].
    pub fn read<T: Element>(&self, stream: &Stream, data: &mut [T]) -> Result<()> {
        let offset = self.contiguous_bytes(data.len(), T::DTYPE)?;
        self.buffer.read(stream, offset, data)
    }
}
