//! Paged caches: a plane is `[block][token][KV head][dim]` without gaps, which the operators see as `[blocks, block, heads · dim]`.

use halyard_sdk::{DType, Error, KvDesc, KvLayout, Result, TensorSpec, abi::types::KV_STANDARD};

use crate::memory::ALIGN;

/// Identity of the arrangement: a change of it needs a new number.
const FORMAT: u64 = 0x6163_6c6b_7600_0001;

/// Tokens a block that the attention operators run best with.
pub(crate) const PREFERRED_BLOCK: u64 = 128;

/// Block sizes that attention takes: 16, 32, 64 and 128 tokens.
pub(crate) const BLOCK_MASK: u64 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;

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
        if ![DType::F16, DType::BF16].contains(&dtype) {
            return Err(Error::unsupported(format!(
                "a cache of {dtype}; attention of this chip has f16 and bf16"
            )));
        }
        if ![16, 32, 64, 128].contains(&block) {
            return Err(Error::unsupported(format!(
                "blocks of {block} tokens; supported: 16, 32, 64, 128"
            )));
        }
        if dim % 16 != 0 || !(16..=256).contains(&dim) || !(1..=65535 / dim).contains(&heads) {
            return Err(Error::unsupported(format!(
                "a cache of {heads} heads of {dim} dims; supported: multiples of 16 dims up to 256, heads times dims up to 65535"
            )));
        }
        Ok(Self { dtype, block, heads, dim })
    }

    /// The plane of a slot: `[blocks, block, heads, dim]`.
    pub(crate) fn of(spec: &TensorSpec) -> Result<Self> {
        let [_, block, heads, dim] = *spec.dims() else {
            return Err(Error::invalid(format!("a cache of rank {}, expected 4", spec.rank)));
        };
        Self::new(spec.dtype, block, heads, dim)
    }

    fn block_bytes(&self) -> u64 {
        2 * (self.block * self.heads * self.dim).unsigned_abs()
    }
}

/// What a block of a cache takes.
pub(crate) fn layout(kv: &KvDesc<'_>) -> Result<KvLayout> {
    if kv.kind != KV_STANDARD || !kv.attrs.is_empty() {
        return Err(Error::unsupported(format!(
            "a cache of kind {} with {} attributes; supported: {KV_STANDARD} (keys and values) with none",
            kv.kind,
            kv.attrs.len()
        )));
    }
    let plane = |dim: u32| Plane::new(kv.dtype, kv.block_size.into(), kv.heads.into(), dim.into());
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
    fn what_attention_cannot_read_is_refused() {
        for bad in [
            desc(DType::F32, 8, 128, 128),
            desc(DType::I8, 8, 128, 128),
            desc(DType::BF16, 8, 120, 128),
            desc(DType::BF16, 0, 128, 128),
            desc(DType::BF16, 512, 128, 128),
            desc(DType::BF16, 8, 128, 256),
            desc(DType::BF16, 8, 128, 8),
        ] {
            assert!(layout(&bad).is_err(), "{bad:?}");
        }
    }
}
