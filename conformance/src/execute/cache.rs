//! Paged caches in a device's own arrangement: filled and looked at through its own kernels.

use halyard_abi::{RSlice, types::KV_STANDARD};
use halyard_core::{
    DType, Device, KvCache, KvDesc, Launch, OpBuf, OpKind, Stream, Tensor, TensorSpec, Workspace,
    attrs::{KvWrite, PagedAttention},
    ops::OpSchema,
};

use super::{
    Trouble,
    layout::{Guarded, Layout},
};
use crate::{
    array::Array,
    generate::{CacheContents, KvWriteBatch},
    opbuf,
};

/// A cache on a device.
pub(super) struct Cache<'a> {
    device: &'a Device,
    stream: &'a Stream,
    cache: KvCache,
}

fn desc(c: &CacheContents) -> KvDesc<'static> {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    KvDesc {
        kind: KV_STANDARD,
        dtype: c.cache_dtype,
        heads: small(c.heads),
        dim_k: small(c.dim_k),
        dim_v: small(c.dim_v),
        block_size: small(c.block),
        attrs: RSlice::EMPTY,
    }
}

/// The op as this device wants it: without a slot for values if it keeps them with the keys.
pub(super) fn op_for(device: &Device, op: &OpBuf) -> Result<OpBuf, Trouble> {
    let schema = OpSchema::of(op.kind());
    let slot = |name: &str| schema.and_then(|s| s.slot(name));
    let (Some(k), Some(v)) = (slot("k_cache"), slot("v_cache")) else { return Ok(op.clone()) };
    let mut tensors = op.tensors().to_vec();
    let keys = tensors[k];
    let dim = |axis: usize| usize::try_from(keys.dims[axis]).unwrap_or(0);
    let width = |name: &str| {
        let spec = slot(name).and_then(|at| tensors.get(at)).filter(|t| !t.is_none())?;
        usize::try_from(*spec.dims().last()?).ok()
    };
    let dim_v = ["v", "o", "v_cache"].into_iter().find_map(width).unwrap_or(dim(3));
    let contents = CacheContents {
        cache_dtype: keys.dtype,
        compute: keys.dtype,
        heads: dim(2),
        dim_k: dim(3),
        dim_v,
        block: dim(1),
        blocks: 1,
        writes: Vec::new(),
        probe: None,
    };
    let fused = device.kv_layout(&desc(&contents))?.block_bytes[1] == 0;
    let wanted = if fused {
        TensorSpec::NONE
    } else {
        let mut spec = keys;
        spec.dims[3] = i64::try_from(dim_v).unwrap_or(-1);
        spec
    };
    if tensors.len() <= v {
        tensors.resize(v + 1, TensorSpec::NONE);
    }
    if tensors[v] == wanted {
        return Ok(op.clone());
    }
    tensors[v] = wanted;
    opbuf::with_shapes(op, tensors, op.weights().to_vec()).map_err(Trouble::Case)
}

impl<'a> Cache<'a> {
    /// A cache of garbage, with the contents' writes done.
    pub(super) fn new(
        device: &'a Device,
        stream: &'a Stream,
        contents: &CacheContents,
    ) -> Result<Self, Trouble> {
        let cache = device.kv_cache(&desc(contents), contents.blocks)?;
        for tensor in [Some(&cache.k), cache.v.as_ref()].into_iter().flatten() {
            let buffer = tensor.buffer();
            buffer.fill(stream, 0, buffer.bytes() / 4 * 4, u32::MAX)?;
        }
        let this = Self { device, stream, cache };
        for write in &contents.writes {
            this.write(write)?;
        }
        Ok(this)
    }

    pub(super) fn keys(&self) -> &Tensor {
        &self.cache.k
    }

    pub(super) fn values(&self) -> Option<&Tensor> {
        self.cache.v.as_ref()
    }

    fn cache_specs(&self) -> [TensorSpec; 2] {
        let spec = |t: &Tensor| {
            let mut spec = t.spec();
            spec.dims[0] = -1;
            spec
        };
        [spec(&self.cache.k), self.cache.v.as_ref().map_or(TensorSpec::NONE, spec)]
    }

    fn write(&self, w: &KvWriteBatch) -> Result<(), Trouble> {
        let [k, v] = self.cache_specs();
        let specs = [rows(&w.k), rows(&w.v), rows(&w.slots), k, v];
        let op = OpBuf::new(&KvWrite {}, specs, []);
        self.run(op, &[Some(&w.k), Some(&w.v), Some(&w.slots), None, None], &[], &[])?;
        Ok(())
    }

    /// Attention over every block as a sequence of its own: its token `i` sees what is in slots `0..=i` of the block.
    pub(super) fn probe(&self, contents: &CacheContents) -> Result<Option<Array>, Trouble> {
        let Some(q) = &contents.probe else { return Ok(None) };
        let (blocks, block) = (contents.blocks, contents.block);
        let counted = |n: usize, step: usize| -> Array {
            let values: Vec<i64> = (0..n).map(|i| (i * step) as i64).collect();
            Array::ints(DType::I32, &[n], &values)
        };
        let table =
            Array::from_bytes(DType::I32, &[blocks, 1], counted(blocks, 1).bytes().to_vec());
        let cu_q = counted(blocks + 1, block);
        let kv_len = Array::ints(DType::I32, &[blocks], &vec![block as i64; blocks]);
        let o = Array::poison(q.dtype(), &[q.dims()[0], q.dims()[1], contents.dim_v]);
        let [k, v] = self.cache_specs();
        let mut table_spec = rows(&table);
        table_spec.dims[1] = -1;
        let specs = [rows(q), k, v, table_spec, rows(&cu_q), rows(&kv_len), rows(&o)];
        let attrs = PagedAttention {
            scale: 1.0 / (contents.dim_k as f64).sqrt(),
            ..PagedAttention::default()
        };
        let op = OpBuf::new(&attrs, specs, []);
        let arrays = [Some(q), None, None, Some(&table), Some(&cu_q), Some(&kv_len), Some(&o)];
        let host = |a: &Array| -> Vec<i32> {
            (0..a.len()).map(|i| i32::try_from(a.int(i)).unwrap_or(i32::MAX)).collect()
        };
        let decodes = if block == 1 { blocks as u64 } else { 0 };
        let scalars = [block as u64, block as u64, decodes];
        let outputs = self.run(op, &arrays, &scalars, &[host(&cu_q), host(&kv_len)])?;
        Ok(outputs.into_iter().nth(6).flatten())
    }

    /// Runs an op on this cache; an absent array in a cache slot is the cache.
    fn run(
        &self,
        op: OpBuf,
        arrays: &[Option<&Array>],
        scalars: &[u64],
        host: &[Vec<i32>],
    ) -> Result<Vec<Option<Array>>, Trouble> {
        let kind: OpKind = op.kind();
        let slots = OpSchema::of(kind).expect("an op of the catalogue").slots;
        let kernel = self.device.prepare(op)?;
        let mut placed = Vec::new();
        for (slot, array) in slots.iter().zip(arrays) {
            let place =
                |a: &&Array| Guarded::new((self.device, self.stream), Layout::Packed, slot, a);
            placed.push(array.as_ref().map(place).transpose()?);
        }
        let tensors: Vec<Option<&Tensor>> = slots
            .iter()
            .zip(&placed)
            .map(|(slot, placed)| match slot.name {
                "k_cache" => Some(&self.cache.k),
                "v_cache" => self.cache.v.as_ref(),
                _ => placed.as_ref().map(Guarded::tensor),
            })
            .collect();
        let mut launch = Launch::new(&kernel, &tensors[..kernel.op().tensors().len()], &[])?;
        for (i, &scalar) in scalars.iter().enumerate() {
            launch.set_scalar(i, scalar)?;
        }
        let host: Vec<&[i32]> = host.iter().map(Vec::as_slice).collect();
        if !host.is_empty() {
            let plan = launch.plan(self.stream, &host)?;
            launch.set_plan(Some(plan))?;
        }
        let workspace = Workspace::new(self.device, launch.workspace_bytes())?;
        launch.run(self.stream, &workspace, &host)?;
        self.stream.sync()?;
        placed.iter().map(|p| p.as_ref().map(|p| p.finish(self.stream)).transpose()).collect()
    }
}

/// A spec with a dynamic first dim.
fn rows(array: &Array) -> TensorSpec {
    let dims: Vec<i64> = array
        .dims()
        .iter()
        .enumerate()
        .map(|(axis, &d)| if axis == 0 { -1 } else { i64::try_from(d).unwrap_or(-1) })
        .collect();
    TensorSpec::new(array.dtype(), &dims)
}
