//! Attention of each new token over its sequence's cached keys and values.
//!
//! Query `i` of sequence `b` is at `p = kv_len[b] - q_len[b] + i` and sees `j` in `max(0, p - WINDOW) ..= p` (not CAUSAL: every
//! `j < kv_len[b]`). `z_j = SCALE q·k_j`, soft-capped to `c tanh(z / c)`; `a = softmax(z)` with a sink's logit in the denominator;
//! `o = Σ a_j v_j`; `lse = ln Σ e^z`.

use std::ops::Range;

use halyard_sdk::{
    Error, HostTensor, OpDesc, Result,
    abi::ops::{Sym, attrs::PagedAttention, check::Bindings},
};

use super::{check_caches, checked_row};
use crate::{
    glue::Args,
    order::log_sum_exp,
    rows::{self, length},
};

pub(super) fn check(_: &PagedAttention, desc: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    check_caches(desc, [1, 2], &[8, 9])?;
    match (bindings.get(Sym::Hq), bindings.get(Sym::Hk)) {
        (Some(hq), Some(hk)) if hq > 0 && hk > 0 && hq % hk == 0 => Ok(()),
        (hq, hk) => Err(Error::invalid(format!(
            "paged_attention: {hq:?} query heads on {hk:?} KV heads, expected fixed numbers and a multiple"
        ))),
    }
}

pub(super) fn run(attrs: &PagedAttention, args: &Args) -> Result<()> {
    let (o, lse) = (args.tensor(6)?, args.optional(7)?);
    let (cu_q, kv_len) = (rows::ints(&args.tensor(4)?), rows::ints(&args.tensor(5)?));
    check_lengths(&cu_q, o.dim(0))?;
    for (b, &kv_len) in kv_len.iter().enumerate() {
        let tokens = length(cu_q[b])..length(cu_q[b + 1]);
        sequence(attrs, args, b, tokens, kv_len)?;
    }
    // Tokens after the last sequence are padding.
    for t in length(cu_q[kv_len.len()])..o.dim(0) {
        for h in 0..o.dim(1) {
            store(&o, lse.as_ref(), [t, h], &vec![0.0; o.dim(2)], f64::NEG_INFINITY);
        }
    }
    Ok(())
}

fn check_lengths(cu_q: &[i64], tokens: usize) -> Result<()> {
    let rising = cu_q.windows(2).all(|w| w[0] <= w[1]);
    if cu_q[0] != 0 || !rising || length(cu_q[cu_q.len() - 1]) > tokens {
        return Err(Error::invalid(format!(
            "paged_attention: cu_q {cu_q:?} for {tokens} tokens, expected to rise from 0"
        )));
    }
    Ok(())
}

/// The queries at `tokens`, all of sequence `b`.
fn sequence(
    attrs: &PagedAttention,
    args: &Args,
    b: usize,
    tokens: Range<usize>,
    kv_len: i64,
) -> Result<()> {
    let (q, k_cache, v_cache) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (o, lse, sinks) = (args.tensor(6)?, args.optional(7)?, args.optional(10)?);
    let (kv_heads, group) = (k_cache.dim(2), q.dim(1) / k_cache.dim(2));
    for kv_head in 0..kv_heads {
        let keys = cached(&k_cache, &args.tensor(3)?, b, kv_head, kv_len)?;
        let values = cached(&v_cache, &args.tensor(3)?, b, kv_head, kv_len)?;
        for (i, t) in tokens.clone().enumerate() {
            let seen = visible(attrs, kv_len - tokens.len() as i64 + i as i64, kv_len);
            for h in kv_head * group..(kv_head + 1) * group {
                let q_th = rows::read(&q, &[t, h]);
                let sink = sinks.map(|s| s.get(&[h]));
                let (out, sum) =
                    attend(attrs, &q_th, &keys[seen.clone()], &values[seen.clone()], sink);
                let out = if seen.is_empty() { vec![0.0; o.dim(2)] } else { out };
                store(&o, lse.as_ref(), [t, h], &out, sum);
            }
        }
    }
    Ok(())
}

/// The cached positions that a query at position `p` sees.
fn visible(attrs: &PagedAttention, p: i64, kv_len: i64) -> Range<usize> {
    if !attrs.causal {
        return 0..length(kv_len);
    }
    let first = if attrs.window < 0 { 0 } else { (p - attrs.window).max(0) };
    let end = p + 1;
    if end <= first { 0..0 } else { length(first)..length(end) }
}

/// Rows `0..kv_len` of sequence `b` in one KV head of a cache.
fn cached(
    cache: &HostTensor,
    block_table: &HostTensor,
    b: usize,
    head: usize,
    kv_len: i64,
) -> Result<Vec<Vec<f64>>> {
    let block = cache.dim(1);
    let mut rows = Vec::new();
    for j in 0..length(kv_len) {
        let column = checked_row("paged_attention: block", (j / block) as i64, block_table.dim(1))?;
        let id = block_table.get_int(&[b, column]);
        let id = checked_row("paged_attention: block id", id, cache.dim(0))?;
        rows.push(rows::read(cache, &[id, j % block, head]));
    }
    Ok(rows)
}

/// `o` and `lse` of one query head over the keys and values it sees.
fn attend(
    attrs: &PagedAttention,
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    sink: Option<f64>,
) -> (Vec<f64>, f64) {
    if keys.is_empty() {
        return (Vec::new(), f64::NEG_INFINITY);
    }
    let logit = |k: &Vec<f64>| {
        let z = attrs.scale * rows::dot(q, k);
        if attrs.softcap > 0.0 { attrs.softcap * (z / attrs.softcap).tanh() } else { z }
    };
    let z: Vec<f64> = keys.iter().map(logit).collect();
    let lse = log_sum_exp(&z.iter().copied().chain(sink).collect::<Vec<_>>());
    let mut o = vec![0.0; values[0].len()];
    for (z_j, v_j) in z.iter().zip(values) {
        let a = (z_j - lse).exp();
        for (o, v) in o.iter_mut().zip(v_j) {
            *o += a * v;
        }
    }
    (o, lse)
}

fn store(o: &HostTensor, lse: Option<&HostTensor>, at: [usize; 2], out: &[f64], sum: f64) {
    rows::write(o, &at, out.iter().copied());
    if let Some(lse) = lse {
        lse.set(&at, sum);
    }
}
