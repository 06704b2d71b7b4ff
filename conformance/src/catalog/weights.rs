//! The names that case files have for weights.

use halyard_abi::{
    ops::schema::{Dim, WeightSlot},
    types::{WEIGHT_PERM, WEIGHT_ZERO},
};
use halyard_core::{DType, OpKind, Role, Scheme, WeightDesc};

use crate::symbols::Symbols;

/// What `weights` says: each name, with `gguf` and `scaled` as their members.
pub(super) fn names(listed: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for name in listed {
        match name.as_str() {
            "gguf" => {
                let gguf = Scheme::ALL.iter().filter(|s| s.gguf_block().is_some());
                all.extend(gguf.map(ToString::to_string));
            }
            "scaled" => all.extend(
                ["fp8_block", "fp8_channel", "int8_channel", "int4_group-g32"].map(String::from),
            ),
            _ => all.push(name.clone()),
        }
    }
    all
}

/// Storage of a weight: scheme, dtype, group size and flags.
struct Storage {
    scheme: Scheme,
    dtype: DType,
    group: Option<u64>,
    flags: u32,
}

/// A name with its options: `int4_group-g64-zero-perm-f16` has groups of 64 columns (`gK`: all), zero points, an order of columns, and
/// scales of f16 (f32 if nothing is said).
fn storage(name: &str, compute: DType) -> Result<Storage, String> {
    let dense = |dtype| Storage { scheme: Scheme::DENSE, dtype, group: Some(0), flags: 0 };
    if name == "same" {
        return Ok(dense(compute));
    }
    let mut words = name.split('-');
    let first = words.next().unwrap_or_default();
    if let Some(dtype) = DType::from_name(first) {
        return Ok(dense(dtype));
    }
    let scheme =
        Scheme::from_name(first).ok_or_else(|| format!("no weights are called {first}"))?;
    let gguf = scheme.gguf_block().is_some();
    let dtype = if gguf { DType::NONE } else { DType::F32 };
    let mut storage = Storage { scheme, dtype, group: Some(0), flags: 0 };
    for word in words {
        match (word, word.strip_prefix('g').map(str::parse)) {
            ("zero", _) => storage.flags |= WEIGHT_ZERO,
            ("perm", _) => storage.flags |= WEIGHT_PERM,
            ("gK", _) => storage.group = None,
            (_, Some(Ok(group))) => storage.group = Some(group),
            _ => {
                let scale = DType::from_name(word);
                storage.dtype = scale.ok_or_else(|| format!("weights {name}: {word}?"))?;
            }
        }
    }
    Ok(storage)
}

/// The descriptor of a weight slot. `kind` decides the role; `tied` makes a linear layer's weight an embedding table.
pub(super) fn desc(
    slot: &WeightSlot,
    name: &str,
    (kind, tied, compute): (OpKind, bool, DType),
    symbols: &Symbols,
) -> Result<WeightDesc<'static>, String> {
    let value = |d: Dim| -> Result<u64, String> {
        let sym = d.sym().ok_or("a weight of fixed size")?;
        let value = symbols.known(sym).ok_or_else(|| format!("{sym:?} has no value"))?;
        u64::try_from(d.of(value as i64)).map_err(|_| format!("{sym:?} is too large"))
    };
    let Storage { scheme, dtype, group, flags } = storage(name, compute)?;
    let (n, k) = (value(slot.n)?, value(slot.k)?);
    let role = match kind {
        OpKind::BATCHED_LINEAR => Role::BATCHED,
        OpKind::EMBEDDING => Role::EMBEDDING,
        _ if tied => Role::EMBEDDING,
        _ if slot.groups.is_some() => Role::EXPERTS,
        _ => Role::LINEAR,
    };
    let groups = slot.groups.map_or(Ok(1), value)?;
    let mut desc = WeightDesc::linear(scheme, dtype, n, k);
    desc.role = role.0;
    desc.groups = u32::try_from(groups).map_err(|e| e.to_string())?;
    desc.flags = flags;
    if scheme == Scheme::INT4_GROUP {
        desc.group_size = u32::try_from(group.unwrap_or(k)).map_err(|e| e.to_string())?;
    }
    Ok(desc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_everything_about_the_storage() {
        let full = storage("int4_group-g64-zero-perm-f16", DType::BF16).unwrap();
        assert_eq!((full.scheme, full.dtype), (Scheme::INT4_GROUP, DType::F16));
        assert_eq!((full.group, full.flags), (Some(64), WEIGHT_ZERO | WEIGHT_PERM));
        assert_eq!(storage("int4_group-gK", DType::BF16).unwrap().group, None);
        assert_eq!(storage("same", DType::BF16).unwrap().dtype, DType::BF16);
        assert_eq!(storage("q4_k", DType::BF16).unwrap().dtype, DType::NONE);
        assert!(storage("int4_group-g32-pern", DType::BF16).is_err());
        assert!(storage("q9_k", DType::BF16).is_err());
    }
}
