//! Paged caches: how they are arranged, and as kernels take them.
//!
//! A plane is `[block][KV head][token][dim]`: the rows of one head in a block lie one behind the other, as both the decode of a sequence
//! and the tiles of a prefill read them. Rows begin at multiples of [`ROW_ALIGN`] bytes, with zeros after their end, so that kernels read 16
//! bytes at a time.

use halyard_sdk::{
    DType, Error, KvDesc, KvLayout, OpDesc, Result, TensorSpec, TensorView,
    abi::types::{KV_MLA, KV_STANDARD},
};

use crate::{memory::ALIGN, ops::address, weights::ROW_ALIGN};

/// Identity of the arrangement: a change of it needs a new number.
const FORMAT: u64 = 0x6375_6461_6b76_0001;

/// Largest power of two of tokens a block.
const MAX_BLOCK_SHIFT: u32 = 10;

/// Block sizes that caches can have: powers of two.
pub(crate) const BLOCK_MASK: u64 = (2 << MAX_BLOCK_SHIFT) - 1;

/// Largest number of dims of a row; of latents, with the rotated part.
pub(crate) const MAX_DIM: u32 = 576;

/// The element types of caches, as kernels' names have them.
const CELLS: [(DType, &str); 5] = [
    (DType::F32, "f32"),
    (DType::F16, "f16"),
    (DType::BF16, "bf16"),
    (DType::F8E4M3, "e4m3"),
    (DType::I8, "i8"),
];

/// Whether codes of this type are multiplied by a scale.
pub(crate) fn is_scaled(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::I8)
}

/// A cache's type as kernels' names have it.
///
/// # Errors
/// `UNSUPPORTED`, naming the types there are.
pub(crate) fn cell(dtype: DType) -> Result<&'static str> {
    let found = CELLS.iter().find(|(known, _)| *known == dtype);
    found.map(|(_, name)| *name).ok_or_else(|| {
        let known = CELLS.map(|(dtype, _)| dtype.to_string()).join(", ");
        Error::unsupported(format!("a cache of {dtype}; supported: {known}"))
    })
}

/// One plane's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) dtype: DType,
    block_shift: u32,
    pub(crate) heads: u32,
    pub(crate) dim: u32,
}

impl Shape {
    /// # Errors
    /// `UNSUPPORTED`, naming the limit.
    fn new(dtype: DType, block: u64, heads: u64, dim: u64) -> Result<Self> {
        cell(dtype)?;
        if !block.is_power_of_two() || BLOCK_MASK & block == 0 {
            return Err(Error::unsupported(format!(
                "blocks of {block} tokens; supported: powers of two up to {}",
                1 << MAX_BLOCK_SHIFT
            )));
        }
        if !(1..=u64::from(MAX_DIM)).contains(&dim) || !(1..=u64::from(u16::MAX)).contains(&heads) {
            return Err(Error::unsupported(format!(
                "a cache of {heads} heads of {dim} dims; supported: up to {} heads of 1 to {MAX_DIM} dims",
                u16::MAX
            )));
        }
        let block_shift = block.trailing_zeros();
        Ok(Self { dtype, block_shift, heads: heads as u32, dim: dim as u32 })
    }

    /// The plane of a slot: `[blocks, BLOCK, heads, dim]`, of latents without heads.
    pub(crate) fn of(spec: &TensorSpec) -> Result<Self> {
        let fixed = |dim: i64| {
            u64::try_from(dim).map_err(|_| {
                Error::unsupported("a cache whose block, heads or width is known at launch only")
            })
        };
        match *spec.dims() {
            [_, block, heads, dim] => {
                Self::new(spec.dtype, fixed(block)?, fixed(heads)?, fixed(dim)?)
            }
            [_, block, dim] => Self::new(spec.dtype, fixed(block)?, 1, fixed(dim)?),
            _ => Err(Error::invalid(format!("a cache of rank {}, expected 3 or 4", spec.rank))),
        }
    }

    /// Bytes from row to row.
    fn pitch(&self) -> u64 {
        self.dtype.bytes(self.dim.into()).unwrap_or(0).next_multiple_of(ROW_ALIGN)
    }

    /// Bytes of a head's rows in a block.
    fn head_bytes(&self) -> u64 {
        self.pitch() << self.block_shift
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.head_bytes() * u64::from(self.heads)
    }

    /// The plane as kernels take it.
    pub(crate) fn plane(&self, view: &TensorView) -> Result<Plane> {
        let blocks = u32::try_from(view.dims[0]).map_err(|_| {
            Error::unsupported(format!("a cache of {} blocks; at most 2^32", view.dims[0]))
        })?;
        Ok(Plane {
            data: address(view),
            block_bytes: self.block_bytes().cast_signed(),
            head_bytes: self.head_bytes().cast_signed(),
            token_bytes: self.pitch().cast_signed(),
            dim: self.dim,
            blocks,
            block_shift: self.block_shift,
            rows: 0,
        })
    }
}

/// `struct Plane` of `kernels/cell.h`: rows of a cache or a tensor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plane {
    pub(crate) data: u64,
    pub(crate) block_bytes: i64,
    pub(crate) head_bytes: i64,
    pub(crate) token_bytes: i64,
    pub(crate) dim: u32,
    /// 0 of a tensor.
    pub(crate) blocks: u32,
    pub(crate) block_shift: u32,
    /// Rows of the tensor.
    pub(crate) rows: u32,
}

/// What a block of a cache takes.
pub(crate) fn layout(kv: &KvDesc<'_>) -> Result<KvLayout> {
    if ![KV_STANDARD, KV_MLA].contains(&kv.kind) || !kv.attrs.is_empty() {
        return Err(Error::unsupported(format!(
            "a cache of kind {} with {} attributes; supported: {KV_STANDARD} (keys and values) and {KV_MLA} (latents) with none",
            kv.kind,
            kv.attrs.len()
        )));
    }
    let shape = |dim: u32| Shape::new(kv.dtype, kv.block_size.into(), kv.heads.into(), dim.into());
    let (k, v) = (shape(kv.dim_k)?, shape(kv.dim_v)?);
    if kv.kind == KV_MLA {
        check_latent(&k, &v)?;
    }
    Ok(KvLayout { block_bytes: [k.block_bytes(), v.block_bytes()], align: ALIGN, format: FORMAT })
}

fn check_latent(c: &Shape, r: &Shape) -> Result<()> {
    if c.heads != 1 {
        return Err(Error::invalid(format!("latents with {} heads, expected 1", c.heads)));
    }
    if is_scaled(c.dtype) {
        return Err(Error::unsupported("latents of 8 bits; supported: f32, f16, bf16"));
    }
    if c.dim + r.dim > MAX_DIM {
        return Err(Error::unsupported(format!(
            "latents of {} dims with {} rotated ones; supported: {MAX_DIM} together",
            c.dim, r.dim
        )));
    }
    Ok(())
}

/// Both planes of an op's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache {
    pub(crate) k: Shape,
    pub(crate) v: Shape,
}

impl Cache {
    /// The cache in slots `k` and `v`, and the slots of its scales; `latent` says that it is one of latents and rotated parts.
    pub(crate) fn of(
        desc: &OpDesc<'_>,
        [k, v]: [usize; 2],
        scales: &[usize],
        latent: bool,
    ) -> Result<Self> {
        let present = |slot: usize| desc.tensors.get(slot).filter(|t| !t.is_none());
        let op = desc.kind;
        let (Some(k), Some(v)) = (present(k), present(v)) else {
            return Err(Error::unsupported(format!(
                "{op}: values fused into the key cache; this backend has two caches"
            )));
        };
        let named = |e: Error| Error { message: format!("{op}: {}", e.message).into(), ..e };
        let cache = Self { k: Shape::of(k).map_err(named)?, v: Shape::of(v).map_err(named)? };
        if cache.k.dtype != cache.v.dtype {
            return Err(Error::unsupported(format!(
                "{op}: keys of {} with values of {}",
                cache.k.dtype, cache.v.dtype
            )));
        }
        if latent {
            check_latent(&cache.k, &cache.v).map_err(named)?;
        }
        if !is_scaled(cache.k.dtype) && scales.iter().any(|&slot| present(slot).is_some()) {
            return Err(Error::unsupported(format!(
                "{op}: scales with a cache of {}; they belong to f8e4m3 and i8",
                cache.k.dtype
            )));
        }
        Ok(cache)
    }
}

#[cfg(test)]
mod tests {
    use halyard_sdk::abi::RSlice;

    use super::*;

    fn desc(
        kind: u32,
        dtype: DType,
        heads: u32,
        dims: [u32; 2],
        block_size: u32,
    ) -> KvDesc<'static> {
        let [dim_k, dim_v] = dims;
        KvDesc { kind, dtype, heads, dim_k, dim_v, block_size, attrs: RSlice::EMPTY }
    }

    #[test]
    fn rows_are_padded_to_16_bytes() {
        let bytes = |desc| layout(&desc).unwrap().block_bytes;
        assert_eq!(bytes(desc(KV_STANDARD, DType::BF16, 2, [64, 20], 16)), [4096, 1536]);
        assert_eq!(bytes(desc(KV_STANDARD, DType::I8, 1, [1, 17], 1)), [16, 32]);
        assert_eq!(bytes(desc(KV_MLA, DType::BF16, 1, [512, 64], 64)), [65536, 8192]);
    }

    #[test]
    fn what_kernels_cannot_read_is_refused() {
        for bad in [
            desc(KV_STANDARD, DType::BF16, 2, [64, 64], 12),
            desc(KV_STANDARD, DType::BF16, 2, [64, 64], 2048),
            desc(KV_STANDARD, DType::BF16, 2, [577, 64], 16),
            desc(KV_STANDARD, DType::BF16, 0, [64, 64], 16),
            desc(KV_STANDARD, DType::I32, 2, [64, 64], 16),
            desc(KV_MLA, DType::I8, 1, [512, 64], 16),
            desc(KV_MLA, DType::BF16, 1, [512, 128], 16),
            desc(3, DType::BF16, 1, [64, 64], 16),
        ] {
            assert!(layout(&bad).is_err(), "{bad:?}");
        }
    }
}
