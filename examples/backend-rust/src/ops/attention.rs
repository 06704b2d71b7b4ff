//! The paged cache and attention over it.

use halyard_sdk::{
    Error, HostTensor, OpDesc, Result,
    abi::ops::attrs::{KvCopyBlocks, KvWrite, PagedAttention},
};

use super::{Body, Call, index};

/// Slots of scales (and of nothing else this backend lacks) must be absent.
fn without(op: &OpDesc<'_>, slots: &[usize], what: &str) -> Result<()> {
    let present = |&slot: &usize| op.tensors.get(slot).is_some_and(|t| !t.is_none());
    if slots.iter().any(present) {
        return Err(Error::unsupported(format!("{} with {what}", op.kind)));
    }
    Ok(())
}

pub(super) fn kv_write(_: KvWrite, op: &OpDesc<'_>) -> Result<Body> {
    without(op, &[5, 6], "scaled caches")?;
    Ok(Box::new(|call| {
        let slots = call.tensor(2);
        for (source, cache) in [(call.tensor(0), call.tensor(3)), (call.tensor(1), call.tensor(4))]
        {
            let block = cache.dim(1);
            for t in 0..source.dim(0) {
                let Some(slot) = index(slots.get_int(&[t]), cache.dim(0) * block, "slot")? else {
                    continue;
                };
                for h in 0..source.dim(1) {
                    cache.set_row(&[slot / block, slot % block, h], source.row(&[t, h]));
                }
            }
        }
        Ok(())
    }))
}

pub(super) fn copy_blocks(_: KvCopyBlocks, op: &OpDesc<'_>) -> Result<Body> {
    without(op, &[], "")?;
    Ok(Box::new(|call| {
        let pairs = call.tensor(2);
        for cache in [call.tensor(0), call.tensor(1)] {
            for p in 0..pairs.dim(0) {
                let from = index(pairs.get_int(&[p, 0]), cache.dim(0), "block")?;
                let to = index(pairs.get_int(&[p, 1]), cache.dim(0), "block")?;
                let (Some(from), Some(to)) = (from, to) else { continue };
                for o in 0..cache.dim(1) {
                    for h in 0..cache.dim(2) {
                        cache.set_row(&[to, o, h], cache.row(&[from, o, h]));
                    }
                }
            }
        }
        Ok(())
    }))
}

/// One sequence's part of the cache.
struct Cached {
    k: HostTensor,
    v: HostTensor,
    /// Its row of the block table.
    blocks: Vec<usize>,
}

pub(super) fn paged(attrs: PagedAttention, op: &OpDesc<'_>) -> Result<Body> {
    without(op, &[8, 9], "scaled caches")?;
    Ok(Box::new(move |call| {
        let (q, o, lse) = (call.tensor(0), call.tensor(6), call.optional(7));
        let (cu_q, kv_len) = (call.tensor(4), call.tensor(5));
        let at = |t: HostTensor, i: usize| usize::try_from(t.get_int(&[i])).unwrap_or(0);
        let sequences = kv_len.dim(0);
        for b in 0..sequences {
            let (first, end, n) = (at(cu_q, b), at(cu_q, b + 1), at(kv_len, b));
            if end > q.dim(0) || first > end {
                return Err(Error::invalid(format!("sequence {b} has queries {first}..{end}")));
            }
            let cached = cached(call, b, n)?;
            for t in first..end {
                // A query before the first key (its sequence is padding) sees nothing.
                let p = (n + t).checked_sub(end);
                let visible = match p {
                    None => 0..0,
                    Some(p) => {
                        let reach = usize::try_from(attrs.window).unwrap_or(p);
                        p.saturating_sub(reach)..if attrs.causal { p + 1 } else { n }
                    }
                };
                one_token(call, &attrs, &cached, t, visible);
            }
        }
        for t in at(cu_q, sequences)..q.dim(0) {
            for h in 0..q.dim(1) {
                for d in 0..o.dim(2) {
                    o.set(&[t, h, d], 0.0);
                }
                if let Some(lse) = lse {
                    lse.set(&[t, h], f64::NEG_INFINITY);
                }
            }
        }
        Ok(())
    }))
}

fn cached(call: &Call<'_>, b: usize, n: usize) -> Result<Cached> {
    let (k, v, table) = (call.tensor(1), call.tensor(2), call.tensor(3));
    let used = n.div_ceil(k.dim(1));
    if used > table.dim(1) {
        return Err(Error::invalid(format!("kv_len {n} needs {used} blocks of a table row")));
    }
    let block = |i: usize| {
        let block = index(table.get_int(&[b, i]), k.dim(0), "block")?;
        block.ok_or_else(|| Error::invalid(format!("entry {i} of sequence {b} is padding")))
    };
    Ok(Cached { k, v, blocks: (0..used).map(block).collect::<Result<_>>()? })
}

/// All heads of token `t` over the keys `visible`.
fn one_token(
    call: &Call<'_>,
    attrs: &PagedAttention,
    cached: &Cached,
    t: usize,
    visible: std::ops::Range<usize>,
) {
    let (q, o, lse, sinks) = (call.tensor(0), call.tensor(6), call.optional(7), call.optional(10));
    let (k, v, block) = (&cached.k, &cached.v, cached.k.dim(1));
    let group = q.dim(1) / k.dim(2);
    for h in 0..q.dim(1) {
        let place = |j: usize, d: usize| [cached.blocks[j / block], j % block, h / group, d];
        let logit = |j: usize| {
            let dot: f64 = (0..q.dim(2)).map(|d| q.get(&[t, h, d]) * k.get(&place(j, d))).sum();
            let z = attrs.scale * dot;
            if attrs.softcap > 0.0 { attrs.softcap * (z / attrs.softcap).tanh() } else { z }
        };
        let z: Vec<f64> = visible.clone().map(logit).collect();
        let sink = sinks.map(|s| s.get(&[h])).filter(|_| !z.is_empty());
        let largest = z.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().copied().chain(sink).map(|z| (z - largest).exp()).sum();
        for d in 0..o.dim(2) {
            let weighted: f64 = visible
                .clone()
                .zip(&z)
                .map(|(j, z)| (z - largest).exp() / sum * v.get(&place(j, d)))
                .sum();
            o.set(&[t, h, d], weighted);
        }
        if let Some(lse) = lse {
            lse.set(&[t, h], if z.is_empty() { f64::NEG_INFINITY } else { largest + sum.ln() });
        }
    }
}
