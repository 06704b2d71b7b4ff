//! Paged caches: `[blocks, BLOCK, heads, dim]` (of latents: no heads), row-major; an 8-bit one has a scale a head.

use halyard_sdk::{
    DType, Error, HostTensor, KvDesc, KvLayout, OpDesc, Result, TensorSpec,
    abi::types::{KV_MLA, KV_STANDARD},
};

use crate::{glue::Args, rows};

/// The bytes of a block of keys and of values, or of latents and rotated parts.
pub(crate) fn layout(kv: &KvDesc<'_>) -> Result<KvLayout> {
    if ![KV_STANDARD, KV_MLA].contains(&kv.kind) || !kv.attrs.is_empty() {
        return Err(Error::unsupported(format!(
            "a cache of kind {} with {} attributes; supported: {KV_STANDARD} (keys and values) and {KV_MLA} (latents) with none",
            kv.kind,
            kv.attrs.len()
        )));
    }
    check_dtype(kv.dtype, kv.kind == KV_MLA)?;
    let bytes = |dim: u32| {
        let elements = u64::from(kv.block_size).checked_mul(u64::from(kv.heads))?;
        kv.dtype.bytes(elements.checked_mul(u64::from(dim))?).filter(|&b| b > 0)
    };
    match (bytes(kv.dim_k), bytes(kv.dim_v)) {
        (Some(k), Some(v)) if kv.kind == KV_STANDARD || kv.heads == 1 => {
            Ok(KvLayout { block_bytes: [k, v], align: 64, format: 0 })
        }
        _ => Err(Error::invalid(format!(
            "blocks of {} tokens, {} heads of {} and {} in a cache of kind {}",
            kv.block_size, kv.heads, kv.dim_k, kv.dim_v, kv.kind
        ))),
    }
}

fn check_dtype(dtype: DType, latent: bool) -> Result<()> {
    let float = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    if float || !latent && is_scaled(dtype) {
        return Ok(());
    }
    let (what, more) = if latent { (" of latents", "") } else { ("", ", f8e4m3, i8") };
    Err(Error::unsupported(format!("a cache{what} of {dtype}; supported: f32, f16, bf16{more}")))
}

fn is_scaled(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::I8)
}

/// Checks the two caches of an op: both there, and scales only with 8-bit ones.
pub(crate) fn check(desc: &OpDesc<'_>, caches: [usize; 2], scales: &[usize]) -> Result<()> {
    let present = |slot: usize| desc.tensors.get(slot).filter(|t| !t.is_none());
    let [Some(k), Some(_)] = caches.map(present) else {
        let what = "values fused into the key cache; this backend has two caches";
        return Err(Error::unsupported(format!("{}: {what}", desc.kind)));
    };
    check_dtype(k.dtype, false)?;
    if !is_scaled(k.dtype) && scales.iter().any(|&slot| present(slot).is_some()) {
        return Err(Error::unsupported(format!(
            "{}: scales with a cache of {}; they belong to f8e4m3 and i8",
            desc.kind, k.dtype
        )));
    }
    Ok(())
}

/// Checks that caches which the LATENT attribute calls latents are such.
pub(crate) fn check_latent(desc: &OpDesc<'_>, latent: bool, cache: &TensorSpec) -> Result<()> {
    if !latent {
        return Ok(());
    }
    check_dtype(cache.dtype, true)?;
    match cache.dims()[2] {
        1 => Ok(()),
        heads => {
            Err(Error::invalid(format!("{}: latents with {heads} heads, expected 1", desc.kind)))
        }
    }
}

/// A cache and its scales.
pub(crate) struct Cache {
    elements: HostTensor,
    scale: Option<HostTensor>,
}

impl Cache {
    /// The cache in a slot, with the scales of another.
    pub(crate) fn open(args: &Args, slot: usize, scale: Option<usize>) -> Result<Self> {
        let scale = scale.map_or(Ok(None), |slot| args.optional(slot))?;
        Ok(Self { elements: args.tensor(slot)?, scale })
    }

    /// KV heads.
    pub(crate) fn heads(&self) -> usize {
        self.elements.dim(2)
    }

    /// Dimensions of a head's row.
    pub(crate) fn dim(&self) -> usize {
        rows::width(&self.elements)
    }

    /// The places that a launch's values name, checked; a negative one is `None`.
    pub(crate) fn places(&self, op: &str, slots: &HostTensor) -> Result<Vec<Option<usize>>> {
        let places = self.elements.dim(0) * self.elements.dim(1);
        let what = format!("{op}: slot");
        let place = |slot| (slot >= 0).then(|| rows::checked(&what, slot, places)).transpose();
        rows::ints(slots).into_iter().map(place).collect()
    }

    fn index(&self, block: usize, offset: usize, head: usize) -> Vec<usize> {
        [block, offset, head][..self.elements.rank() - 1].to_vec()
    }

    fn scale(&self, head: usize) -> f64 {
        self.scale.map_or(1.0, |s| s.get(&[head]))
    }

    /// Stores `row / scale` at a place.
    pub(crate) fn write(&self, place: usize, head: usize, row: &[f64]) {
        let block = self.elements.dim(1);
        let index = self.index(place / block, place % block, head);
        let scale = self.scale(head);
        self.elements.set_row(&index, row.iter().map(|x| x / scale));
    }

    /// The first `tokens` rows, times the scale, of sequence `b` in one head.
    pub(crate) fn read(
        &self,
        op: &str,
        block_table: &HostTensor,
        tokens: usize,
        [b, head]: [usize; 2],
    ) -> Result<Vec<Vec<f64>>> {
        let (block, scale) = (self.elements.dim(1), self.scale(head));
        let (block_name, id_name) = (format!("{op}: block"), format!("{op}: block id"));
        let read = |j: usize| {
            let column = rows::checked(&block_name, (j / block) as i64, block_table.dim(1))?;
            let id = block_table.get_int(&[b, column]);
            let id = rows::checked(&id_name, id, self.elements.dim(0))?;
            let row = rows::read(&self.elements, &self.index(id, j % block, head));
            Ok(row.into_iter().map(|x| x * scale).collect())
        };
        (0..tokens).map(read).collect()
    }
}
