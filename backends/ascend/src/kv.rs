//! Paged caches: a plane is `[block][token][KV head][dim]` without gaps, which the operators see as `[blocks, block, heads · dim]`.

use halyard_sdk::{
    DType, Error, KvDesc, KvLayout, Result, TensorSpec,
    abi::types::{KV_MLA, KV_STANDARD},
};

use crate::memory::ALIGN;

/// Identity of the arrangement: a change of it needs a new number.
const FORMAT: u64 = 0x6163_6c6b_7600_0001;

/// Tokens a block that the attention operators run best with.
pub(crate) const PREFERRED_BLOCK: u64 = 128;

/// Block sizes of caches: powers of two up to what the attention operators take.
pub(crate) const BLOCK_MASK: u64 = 0xff;

/// One plane's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) dtype: DType,
    pub(crate) block: i64,
    pub(crate) heads: i64,
    pub(crate) dim: i64,
}

impl Plane {
    /// # Errors
    /// `UNSUPPORTED`, naming the limit.
    fn new(dtype: DType, block: i64, heads: i64, dim: i64) -> Result<Self> {
        if ![DType::F32, DType::F16, DType::BF16].contains(&dtype) {
            return Err(Error::unsupported(format!(
                "a cache of {dtype}; supported: f32, f16, bf16"
            )));
        }
        if block < 1 || BLOCK_MASK & block.cast_unsigned() == 0 || block.count_ones() != 1 {
            return Err(Error::unsupported(format!(
                "blocks of {block} tokens; supported: powers of two up to 128"
            )));
        }
        let most = i64::from(u16::MAX);
        if !(1..=most).contains(&dim) || !(1..=most).contains(&heads) {
            return Err(Error::unsupported(format!(
                "a cache of {heads} heads of {dim} dims; supported: 1 to {most} each"
            )));
        }
        Ok(Self { dtype, block, heads, dim })
    }

    /// The plane of a slot: `[blocks, block, heads, dim]`, of latents without heads.
    pub(crate) fn of(spec: &TensorSpec) -> Result<Self> {
        match *spec.dims() {
            [_, block, heads, dim] => Self::new(spec.dtype, block, heads, dim),
            [_, block, dim] => Self::new(spec.dtype, block, 1, dim),
            _ => Err(Error::invalid(format!("a cache of rank {}, expected 3 or 4", spec.rank))),
        }
    }

    /// Whether the attention operators read it; others are read by products of matrices.
    pub(crate) fn is_for_operators(&self) -> bool {
        [DType::F16, DType::BF16].contains(&self.dtype)
            && [16, 32, 64, 128].contains(&self.block)
            && self.dim % 16 == 0
            && self.dim <= 256
            && self.heads * self.dim <= 65535
    }

    fn block_bytes(&self) -> u64 {
        let elements = (self.block * self.heads * self.dim).unsigned_abs();
        self.dtype.bytes(elements).unwrap_or(u64::MAX)
    }
}

/// What a block of a cache takes.
pub(crate) fn layout(kv: &KvDesc<'_>) -> Result<KvLayout> {
    let latent = kv.kind == KV_MLA && kv.heads <= 1;
    if !(kv.kind == KV_STANDARD || latent) || !kv.attrs.is_empty() {
        return Err(Error::unsupported(format!(
            "a cache of kind {} of {} heads with {} attributes; supported: {KV_STANDARD} (keys and values), and {KV_MLA} (latents) of one head, with none",
            kv.kind,
            kv.heads,
            kv.attrs.len()
        )));
    }
    let heads = if latent { 1 } else { kv.heads };
    let plane = |dim: u32| Plane::new(kv.dtype, kv.block_size.into(), heads.into(), dim.into());
    let (k, v) = (plane(kv.dim_k)?, plane(kv.dim_v)?);
    Ok(KvLayout { block_bytes: [k.block_bytes(), v.block_bytes()], align: ALIGN, format: FORMAT })
}

#[cfg(test)]
mod tests {
    use halyard_sdk::abi::RSlice;

    use super::*;

    fn desc(dtype: DType, heads: u32, dim: u32, block_size: u32) -> KvDesc<'static> {
        let kind = KV_STANDARD;
        KvDesc { kind, dtype, heads, dim_k: dim, dim_v: dim, block_size, attrs: RSlice::EMPTY }
    }

    #[test]
    fn blocks_have_no_gaps() {
        let found = layout(&desc(DType::BF16, 8, 128, 128)).unwrap();
        assert_eq!(found.block_bytes, [128 * 8 * 128 * 2; 2]);
    }

    #[test]
    fn what_nothing_reads_is_refused() {
        for bad in [
            desc(DType::I8, 8, 128, 128),
            desc(DType::BF16, 0, 128, 128),
            desc(DType::BF16, 8, 0, 128),
            desc(DType::BF16, 8, 128, 256),
            desc(DType::BF16, 8, 128, 24),
            KvDesc { kind: 3, ..desc(DType::BF16, 8, 128, 16) },
            KvDesc { kind: KV_MLA, ..desc(DType::BF16, 2, 128, 16) },
        ] {
            assert!(layout(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_attention_operators_read_few_shapes() {
        let read = |dtype, heads, dim, block| {
            Plane::new(dtype, block, heads, dim).unwrap().is_for_operators()
        };
        assert!(read(DType::BF16, 8, 128, 128) && read(DType::F16, 1, 16, 16));
        assert!(!read(DType::F32, 8, 128, 128) && !read(DType::BF16, 8, 128, 8));
        assert!(!read(DType::BF16, 8, 120, 128) && !read(DType::BF16, 512, 128, 128));
    }
}
