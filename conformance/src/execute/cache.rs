//! Paged caches in a device's own arrangement: filled and looked at through its own kernels.

use halyard_abi::{
    RSlice,
    types::{KV_MLA, KV_STANDARD},
};
use halyard_core::{
    DType, Device, KvCache, KvDesc, Launch, OpBuf, OpKind, Stream, Tensor, TensorSpec, Workspace,
    attrs::{KvGather, KvWrite, MlaAttention, MlaWrite, PagedAttention},
    ops::OpSchema,
};

use super::{
    Trouble,
    fenced::Fenced,
    layout::{Guarded, Layout},
};
use crate::{
    array::Array,
    generate::{CacheContents, KvWriteBatch, is_latent},
    opbuf,
};

/// A cache on a device.
pub(super) struct Cache<'a> {
    device: &'a Device,
    stream: &'a Stream,
    cache: KvCache,
    /// Of the keys, and of the values if they are apart.
    memory: Vec<Fenced>,
}

fn desc(c: &CacheContents) -> KvDesc<'static> {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    KvDesc {
        kind: if c.latent { KV_MLA } else { KV_STANDARD },
        dtype: c.cache_dtype,
        heads: small(c.heads),
        dim_k: small(c.dim_k),
        dim_v: small(c.dim_v),
        block_size: small(c.block),
        attrs: RSlice::EMPTY,
    }
}

/// Slots of an op's two caches.
fn cache_slots(kind: OpKind) -> Option<(usize, usize)> {
    let schema = OpSchema::of(kind)?;
    let either = |a, b| schema.slot(a).or_else(|| schema.slot(b));
    Some((either("k_cache", "c_cache")?, either("v_cache", "r_cache")?))
}

/// The op as this device wants it: without a slot for values if it keeps them with the keys.
pub(super) fn op_for(device: &Device, op: &OpBuf) -> Result<OpBuf, Trouble> {
    let Some((k, v)) = cache_slots(op.kind()) else { return Ok(op.clone()) };
    let mut tensors = op.tensors().to_vec();
    let keys = tensors[k];
    let dim = |axis: usize| usize::try_from(keys.dims[axis]).unwrap_or(0);
    let width = |name: &str| usize::try_from(*opbuf::spec(op, name)?.dims().last()?).ok();
    let last = keys.dims().len() - 1;
    let values = ["v", "r", "qr", "o", "v_cache", "r_cache"];
    let dim_v = values.into_iter().find_map(width).unwrap_or(dim(last));
    let kv = KvDesc {
        kind: if is_latent(op) { KV_MLA } else { KV_STANDARD },
        dtype: keys.dtype,
        heads: if last == 3 { u32::try_from(dim(2)).unwrap_or(u32::MAX) } else { 1 },
        dim_k: u32::try_from(dim(last)).unwrap_or(u32::MAX),
        dim_v: u32::try_from(dim_v).unwrap_or(u32::MAX),
        block_size: u32::try_from(dim(1)).unwrap_or(u32::MAX),
        attrs: RSlice::EMPTY,
    };
    let fused = device.kv_layout(&kv)?.block_bytes[1] == 0;
    let wanted = if fused {
        TensorSpec::NONE
    } else {
        let mut spec = keys;
        spec.dims[last] = i64::try_from(dim_v).unwrap_or(-1);
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
        let mut memory = Vec::new();
        let cache = device.kv_cache_in(&desc(contents), contents.blocks, &mut |bytes, align| {
            let piece = Fenced::new((device, stream), bytes, align)?;
            piece.fill(stream, u32::MAX)?;
            let place = (piece.buffer.clone(), piece.offset);
            memory.push(piece);
            Ok(place)
        })?;
        let this = Self { device, stream, cache, memory };
        for write in &contents.writes {
            this.write(contents, write)?;
        }
        Ok(this)
    }

    /// All its bytes.
    pub(super) fn bytes(&self) -> Result<Vec<Vec<u8>>, Trouble> {
        Ok(self.memory.iter().map(|m| m.read(self.stream)).collect::<Result<_, _>>()?)
    }

    /// Checks that nothing around it was written, and that it holds what it held if an op only reads it.
    pub(super) fn check(&self, before: Option<&[Vec<u8>]>) -> Result<(), Trouble> {
        for piece in &self.memory {
            piece.check(self.stream, "a cache")?;
        }
        match before {
            Some(before) if self.bytes()? != before => Err(Trouble::Violation(
                "the cache was changed, although the op only reads it".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Its memory.
    pub(super) fn into_memory(self) -> Vec<Fenced> {
        self.memory
    }

    /// The two caches as an op takes them: the ops that move whole caches see a latent one as one of a single head.
    pub(super) fn seen_by(&self, kind: OpKind) -> KvCache {
        match kind {
            OpKind::KV_GATHER | OpKind::KV_COPY_BLOCKS => self.cache.with_head(),
            _ => self.cache.clone(),
        }
    }

    fn cache_specs(&self, kind: OpKind) -> [TensorSpec; 2] {
        let spec = |t: &Tensor| {
            let mut spec = t.spec();
            spec.dims[0] = -1;
            spec
        };
        let cache = self.seen_by(kind);
        [spec(&cache.k), cache.v.as_ref().map_or(TensorSpec::NONE, spec)]
    }

    fn write(&self, contents: &CacheContents, w: &KvWriteBatch) -> Result<(), Trouble> {
        let inputs = [Some(&w.k), Some(&w.v), Some(&w.slots), None, None];
        if contents.latent {
            let [c, r] = self.cache_specs(OpKind::MLA_WRITE);
            let op = OpBuf::new(&MlaWrite {}, [rows(&w.k), rows(&w.v), rows(&w.slots), c, r], []);
            self.run(op, &inputs, &[], &[])?;
            return Ok(());
        }
        let [k, v] = self.cache_specs(OpKind::KV_WRITE);
        let mut specs = vec![rows(&w.k), rows(&w.v), rows(&w.slots), k, v];
        let mut inputs = inputs.to_vec();
        if let Some(scales) = &contents.scales {
            specs.extend(scales.iter().map(fixed));
            inputs.extend(scales.iter().map(Some));
        }
        self.run(OpBuf::new(&KvWrite {}, specs, []), &inputs, &[], &[])?;
        Ok(())
    }

    /// What the cache holds: seen by attention, or read as it is if its elements have 8 bits.
    pub(super) fn probe(&self, contents: &CacheContents) -> Result<Vec<Array>, Trouble> {
        match contents.probe.as_slice() {
            _ if contents.read_back => self.gather(contents),
            [] => Ok(Vec::new()),
            queries => self.attend(contents, queries).map(|o| vec![o]),
        }
    }

    /// Attention over every block as a sequence of its own: its token `i` sees what is in slots `0..=i` of the block.
    fn attend(&self, contents: &CacheContents, queries: &[Array]) -> Result<Array, Trouble> {
        let (blocks, block) = (contents.blocks, contents.block);
        let kind = if contents.latent { OpKind::MLA_ATTENTION } else { OpKind::PAGED_ATTENTION };
        let q = &queries[0];
        let table = every_block(blocks);
        let cu_q = counted(blocks + 1, block);
        let kv_len = Array::ints(DType::I32, &[blocks], &vec![block as i64; blocks]);
        let width = if contents.latent { contents.dim_k } else { contents.dim_v };
        let o = Array::poison(q.dtype(), &[q.dims()[0], q.dims()[1], width]);
        let [k, v] = self.cache_specs(kind);
        let scale = 1.0 / (contents.dim_k as f64).sqrt();
        let mut specs: Vec<TensorSpec> = queries.iter().map(rows).collect();
        specs.extend([k, v, table_spec(&table), rows(&cu_q), rows(&kv_len), rows(&o)]);
        let op = if contents.latent {
            OpBuf::new(&MlaAttention { scale, ..MlaAttention::default() }, specs, [])
        } else {
            OpBuf::new(&PagedAttention { scale, ..PagedAttention::default() }, specs, [])
        };
        let mut arrays: Vec<Option<&Array>> = queries.iter().map(Some).collect();
        arrays.extend([None, None, Some(&table), Some(&cu_q), Some(&kv_len), Some(&o)]);
        let host = [integers(&cu_q), integers(&kv_len)];
        let decodes = if block == 1 { blocks as u64 } else { 0 };
        let outputs = self.run(op, &arrays, &[block as u64, block as u64, decodes], &host)?;
        outputs[arrays.len() - 1]
            .clone()
            .ok_or_else(|| Trouble::Case("attention has no output".into()))
    }

    /// Keys and values of every slot, as numbers.
    fn gather(&self, contents: &CacheContents) -> Result<Vec<Array>, Trouble> {
        let (blocks, block) = (contents.blocks, contents.block);
        let table = every_block(blocks);
        let cu_k = counted(blocks + 1, block);
        let dims = |dim: usize| [blocks * block, contents.heads, dim];
        // In f32: a code times its scale as it is.
        let k = Array::poison(DType::F32, &dims(contents.dim_k));
        let v = Array::poison(DType::F32, &dims(contents.dim_v));
        let [k_cache, v_cache] = self.cache_specs(OpKind::KV_GATHER);
        let mut specs = vec![k_cache, v_cache, table_spec(&table), rows(&cu_k), rows(&k), rows(&v)];
        let mut arrays = vec![None, None, Some(&table), Some(&cu_k), Some(&k), Some(&v)];
        if let Some(scales) = &contents.scales {
            specs.extend(scales.iter().map(fixed));
            arrays.extend(scales.iter().map(Some));
        }
        let op = OpBuf::new(&KvGather { latent: contents.latent }, specs, []);
        let host = [integers(&cu_k)];
        let outputs = self.run(op, &arrays, &[block as u64], &host)?;
        Ok(outputs.into_iter().skip(4).take(2).flatten().collect())
    }

    /// Runs an op over this cache and gives back every slot's array.
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
        for (at, (slot, array)) in slots.iter().zip(arrays).enumerate() {
            let place = |a: &&Array| {
                Guarded::new((self.device, self.stream), Layout::Packed, (slot, at), a)
            };
            placed.push(array.as_ref().map(place).transpose()?);
        }
        let (k, v) = cache_slots(kind).expect("an op with caches");
        let cache = self.seen_by(kind);
        let mut tensors: Vec<Option<&Tensor>> =
            placed.iter().map(|p| p.as_ref().map(Guarded::tensor)).collect();
        (tensors[k], tensors[v]) = (Some(&cache.k), cache.v.as_ref());
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

/// `0, step, 2 step, …`
fn counted(n: usize, step: usize) -> Array {
    let values: Vec<i64> = (0..n).map(|i| (i * step) as i64).collect();
    Array::ints(DType::I32, &[n], &values)
}

/// A block table with a sequence for each block.
fn every_block(blocks: usize) -> Array {
    Array::from_bytes(DType::I32, &[blocks, 1], counted(blocks, 1).bytes().to_vec())
}

fn integers(array: &Array) -> Vec<i32> {
    (0..array.len()).map(|i| array.int(i) as i32).collect()
}

fn fixed(array: &Array) -> TensorSpec {
    let dims: Vec<i64> = array.dims().iter().map(|&d| d as i64).collect();
    TensorSpec::new(array.dtype(), &dims)
}

/// A spec with a dynamic first dim.
fn rows(array: &Array) -> TensorSpec {
    let mut spec = fixed(array);
    spec.dims[0] = -1;
    spec
}

fn table_spec(table: &Array) -> TensorSpec {
    let mut spec = rows(table);
    spec.dims[1] = -1;
    spec
}
